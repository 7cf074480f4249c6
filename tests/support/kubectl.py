"""kubectl of the wheel, asking a lab's API server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from cilia.lab.plan import LabPlan

KUBECTL = Path(sys.executable).with_name("kubectl")


def kubectl(plan: LabPlan, *arguments: str, stdin: str = "") -> str:
    """What it prints; a call that fails fails the test with what it said."""
    done = subprocess.run(
        [str(KUBECTL), *arguments],
        check=False,
        text=True,
        capture_output=True,
        env={**os.environ, "KUBECONFIG": plan.kubeconfig},
        input=stdin,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stream(*documents: dict[str, Any]) -> str:
    """Objects as one text for its standard input."""
    return "\n---\n".join(msgspec.json.encode(document).decode() for document in documents)
