"""Take a lab away, whole or half-made, from whatever is left of it.

Processes first (the cgroup names them all; what is written down is the second source), then mounts, then
groups, then files. Network namespaces vanish with their mounts, and all links with the namespaces.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from cilia.lab import cgroups, kernel, processes, records
from cilia.lab.plan import DEFAULT_NAME, STATE_ROOT, make_plan, state_directory


class TeardownError(Exception):
    """Something did not go away; the message says what and what to do."""


def take_down(name: str = DEFAULT_NAME, root: Path = STATE_ROOT) -> bool:
    """Remove a lab; False when there was nothing of it. Raises TeardownError, PlanError."""
    state = state_directory(name, root)
    group = _group(name)
    if not state.exists() and (group is None or not group.exists()):
        return False
    try:
        if group is not None:
            cgroups.remove(group)
        _end_recorded(state)
        _unmount(state)
        _remove_files(state)
    except (OSError, cgroups.CgroupError) as error:
        raise TeardownError(
            f"lab {name!r} is not wholly gone, run `cilia lab down` again: {error}"
        ) from error
    if root == STATE_ROOT and root.is_dir() and not any(root.iterdir()):
        root.rmdir()
    return True


def _group(name: str) -> Path | None:
    try:
        return cgroups.find_mount() / make_plan(name).cgroup_name
    except cgroups.CgroupError:
        return None


def _end_recorded(state: Path) -> None:
    found: list[records.ProcessRecord | records.PodRecord | None] = [
        *(records.read(path, records.ProcessRecord) for path in state.glob("processes/*.json")),
        *(records.read(path, records.PodRecord) for path in state.glob("pods/*/pod.json")),
    ]
    for record in found:
        if record is not None:
            processes.end(record.pid, record.started)


def _unmount(state: Path) -> None:
    for point in kernel.mounts_below(str(state)):
        kernel.unmount(point)


def _remove_files(state: Path, timeout: float = 2.0) -> None:
    """Remove the state directory; a process that is just ending may still write into it for a moment."""
    deadline = time.monotonic() + timeout
    while state.exists():
        if kernel.mounts_below(str(state)):
            raise OSError(f"something is still mounted below {state}")
        try:
            shutil.rmtree(state)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
