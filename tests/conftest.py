"""What holds for the whole run: it leaves the machine as it found it.

Where CI is set, leftovers fail the run. On a developer's machine, where a lab may have come up meanwhile,
they are told.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

OURS = ("cilia", "lxc")
BEFORE = pytest.StashKey[frozenset[str]]()
PATIENCE = 30.0 if os.environ.get("CI") else 5.0
"""Seconds: the kernel takes namespaces and links away a moment after their last user."""


def look() -> frozenset[str]:
    """Everything on the machine that carries our names: links, mounts, control groups, pins, state."""
    return frozenset((*links(), *mounts(), *directories()))


def links() -> Iterator[str]:
    for _, name in socket.if_nameindex():
        if name.startswith(OURS):
            yield f"interface {name}"


def mounts() -> Iterator[str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point = line.split(" ")[1]
        if any(part.startswith(OURS) for part in point.split("/")):
            yield f"mount {point}"


def directories() -> Iterator[str]:
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/bpf", "/run", "/run/netns"):
        try:
            names = [path.name for path in Path(root).iterdir()]
        except OSError:
            continue
        yield from (f"{root}/{name}" for name in names if name.startswith(OURS))


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[BEFORE] = look()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    before = session.config.stash[BEFORE]
    deadline = time.monotonic() + PATIENCE
    while (left := look() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not left:
        return
    print("\nleft over by this run, or made by somebody else meanwhile: " + ", ".join(sorted(left)))
    if os.environ.get("CI"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
