"""Puts the compiled eBPF object into the wheel: a node needs no compiler.

Runs `make -C bpf` (which does nothing when the object is up to date). Where there is no compiler an
object that is already there is taken as it is; an editable install may come before it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OBJECT = Path("cilia/abi/cilia.bpf.o")


class ObjectBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling before it collects the wheel's files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the object. Raises RuntimeError when a wheel would lack it."""
        root = Path(self.root)
        problem = build(root)
        if version != "editable" and not (root / OBJECT).exists():
            raise RuntimeError(f"the eBPF object can't be built: {problem}")
        build_data["pure_python"] = True


def build(root: Path) -> str:
    """Compile below `root`; what kept it from succeeding, or an empty string."""
    for tool in ("make", "clang"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    done = subprocess.run(["make", "-C", str(root / "bpf")], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip()
