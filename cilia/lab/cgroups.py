"""The lab's control groups: they hold its processes, so that teardown can end exactly those.

Layout below the version 2 mount: `cilia-lab-NAME/{daemon,control,NODE/agent,NODE/pods/ID}`.
Source: Documentation/admin-guide/cgroup-v2.rst (cgroup.procs, cgroup.kill).
"""

from __future__ import annotations

import os
import time
from pathlib import Path


class CgroupError(Exception):
    """Control groups can't be used; the message says what to do."""


def find_mount(mounts: str | None = None) -> Path:
    """Return where version 2 is mounted; raises CgroupError when it is nowhere."""
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) > 2 and fields[2] == "cgroup2":
            return Path(fields[1])
    raise CgroupError("no cgroup version 2 is mounted: run `mount -t cgroup2 none /sys/fs/cgroup` first")


def create(path: Path) -> Path:
    """Make a group (and those above it) and return it."""
    path.mkdir(parents=True, exist_ok=True)
    return path


def join(path: Path, pid: int) -> None:
    """Move a process into a group; one that has just ended is no error."""
    try:
        (path / "cgroup.procs").write_text(str(pid))
    except ProcessLookupError:
        return


def processes(path: Path) -> list[int]:
    """Return the processes of a group and of all groups below it."""
    found = []
    for directory, _, files in os.walk(path):
        if "cgroup.procs" in files:
            text = Path(directory, "cgroup.procs").read_text()
            # A process of another pid namespace reads as 0.
            found += [int(line) for line in text.split() if line != "0"]
    return found


def remove(path: Path, timeout: float = 5.0) -> None:
    """Kill everything in a group and below, wait for the end, and remove the groups.

    Raises CgroupError when a process does not die within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    try:
        (path / "cgroup.kill").write_text("1")
        while "populated 1" in (path / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise CgroupError(f"processes do not end: look at them with `cat {path}/cgroup.procs`")
            time.sleep(0.005)
    except FileNotFoundError:
        # Nothing there, or somebody else is removing it at the same time.
        return
    for directory, _, _ in os.walk(path, topdown=False):
        _remove_directory(Path(directory), deadline)


def _remove_directory(path: Path, deadline: float) -> None:
    while True:
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            # The kernel lets a group go a moment after its last process.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
