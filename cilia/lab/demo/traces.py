"""What a lab could leave on the machine, seen before and after."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from cilia.lab import cgroups
from cilia.lab.plan import LabPlan


class Traces(msgspec.Struct, frozen=True):
    """Names of what is there."""

    links: frozenset[str]
    """Interfaces of the machine's own network namespace."""
    mounts: frozenset[str]
    """Mount points below the lab's state directory."""
    groups: frozenset[str]
    """Control groups of the lab."""
    files: frozenset[str]
    """The lab's state directory, if it is there."""


def look(plan: LabPlan) -> Traces:
    """Look now."""
    mounts = [line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    group = cgroups.find_mount() / plan.cgroup_name
    return Traces(
        links=frozenset(name for _, name in socket.if_nameindex()),
        mounts=frozenset(point for point in mounts if point.startswith(plan.state)),
        groups=frozenset(str(path) for path in [group, *group.glob("**/")] if path.is_dir()),
        files=frozenset(str(path) for path in [Path(plan.state)] if path.exists()),
    )


def left_over(before: Traces, after: Traces) -> list[str]:
    """Return what is there now and was not before."""
    pairs = zip(msgspec.structs.astuple(before), msgspec.structs.astuple(after), strict=True)
    return sorted(name for old, new in pairs for name in new - old)
