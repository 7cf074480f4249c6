"""Commands that wait end once nobody reads what they print."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.hubble import beside

CILIA = (sys.executable, "-P", "-c", "from cilia.apps.ctl import main; main()")
PATIENCE = 60.0
WAITS = "import time\nfrom cilia.cli.readers import noticed\nwith noticed(): time.sleep(600)\n"


def ended(command: Sequence[str], **variables: str) -> tuple[int, str]:
    """Exit code and standard error of a command whose reader has gone before it says anything."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | variables
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    try:
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said


@pytest.mark.parametrize("words", ["observe --follow", "observe --follow -o json"])
def test_who_follows_flows_nobody_reads_ends(tmp_path: Path, words: str) -> None:
    with beside(tmp_path / "hubble.sock") as running:
        code, said = ended([*CILIA, *words.split()], HUBBLE_SERVER=f"unix://{running.path}")
    assert code == 0
    assert "Traceback" not in said


def test_what_is_inside_is_interrupted() -> None:
    # Programs that a script starts in its background are deaf to it from the start.
    hears = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code, said = ended([sys.executable, "-c", hears + WAITS])
    assert code != 0
    assert said.rstrip().endswith("KeyboardInterrupt")


def test_in_the_background_of_a_script_too() -> None:
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    assert ended([sys.executable, "-c", deaf + WAITS]) == (-signal.SIGTERM, "")


def test_what_ends_by_itself_is_left_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAITS.replace("600", "0.01")],
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0
