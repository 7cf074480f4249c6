"""What is written down about processes, and when it is believed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cilia.lab import cgroups, processes, records
from cilia.lab.plan import PlanError, make_plan
from cilia.lab.records import ProcessRecord


def test_a_process_is_known_by_its_start_time_too() -> None:
    mine = ProcessRecord(name="me", pid=os.getpid(), started=records.start_time(os.getpid()))
    assert records.alive(mine)
    assert not records.alive(ProcessRecord(name="other", pid=os.getpid(), started=mine.started + 1))
    assert not records.alive(ProcessRecord(name="none", pid=0, started=0))


def test_a_reused_number_is_never_killed() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        started = records.start_time(child.pid)
        processes.end(child.pid, started + 1)
        assert child.poll() is None
        processes.end(child.pid, started)
        assert child.wait(30) == -9


def test_half_written_records_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert records.read(path, ProcessRecord) is None
    path.write_text('{"name": "x", "pi')
    assert records.read(path, ProcessRecord) is None
    records.write(path, ProcessRecord(name="x", pid=1, started=2))
    assert records.read(path, ProcessRecord) == ProcessRecord(name="x", pid=1, started=2)


def test_a_missing_lab_is_answered_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="start it with `cilia lab up`"):
        records.find_lab("trial", tmp_path)
    plan = make_plan("trial", 1, root=tmp_path)
    (tmp_path / "trial").mkdir()
    records.write(records.plan_path(Path(plan.state)), plan)
    assert records.find_lab("trial", tmp_path) == plan
    with pytest.raises(PlanError, match="running: trial"):
        records.find_lab("other", tmp_path)


def test_the_version_2_mount_is_found_wherever_it_is() -> None:
    hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    assert cgroups.find_mount(hybrid) == Path("/sys/fs/cgroup/unified")
    assert cgroups.find_mount("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0") == Path("/sys/fs/cgroup")
    with pytest.raises(cgroups.CgroupError, match="mount -t cgroup2"):
        cgroups.find_mount("tmpfs /run tmpfs rw 0 0")
