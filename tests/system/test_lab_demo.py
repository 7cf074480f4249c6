"""The demo: comes out as told, and says so when it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cilia.abi import object_path
from cilia.lab.demo.stage import Stage, Unexpected
from cilia.lab.demo.story import Story
from cilia.lab.plan import STATE_ROOT, make_plan

NAME = f"td{os.getpid() % 1000000}"

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]


@pytest.mark.timeout(300)
@pytest.mark.skipif(not object_path().exists(), reason="needs the eBPF object: run make bpf")
def test_the_demo_comes_out_as_expected(tmp_path: Path) -> None:
    recording = tmp_path / "demo.txt"
    program = "from cilia.apps.ctl import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "demo", "--name", NAME, "--record", str(recording)],
        check=False,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=220,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = recording.read_text()
    assert [f"{number}. " in told for number in range(1, 12)] == [True] * 11
    assert "everything as expected" in told
    assert not (STATE_ROOT / NAME).exists()


def test_what_does_not_come_out_stops_it_and_says_expected_and_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Agents that report nothing have no flows to show."""
    monkeypatch.setattr("cilia.lab.demo.story.PATIENCE", 3.0)
    plan = make_plan(NAME, 2, events=False)
    with pytest.raises(Unexpected):
        Story(plan, Stage()).tell()
    assert not Path(plan.state).exists()


def test_only_root_may_show_it() -> None:
    program = "import os; os.geteuid = lambda: 65534; from cilia.apps.ctl import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "demo"], check=False, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 1
    assert "to run as root" in done.stdout
