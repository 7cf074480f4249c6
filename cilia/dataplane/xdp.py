"""Services in the drivers of native devices: where the program hangs, and by which kind of hook.

The links are ours by their names and outlive the agent, as all others.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Iterable

from cilia.dataplane import bpf
from cilia.dataplane.bpf import Attach, BpfError
from cilia.dataplane.loader import Dataplane

PROGRAM = "from_driver"
LINK_PREFIX = "from_driver_"


class Acceleration(enum.StrEnum):
    """Which devices get the program; the words users know."""

    DISABLED = "disabled"
    NATIVE = "native"
    """All of them, or none starts."""
    BEST_EFFORT = "best-effort"
    """Those whose driver can."""
    GENERIC = "testing-only"
    """All of them, after the driver has made a socket buffer: for tests, since nothing is won."""


def attach(dataplane: Dataplane, ifindexes: Iterable[int], acceleration: Acceleration) -> dict[int, str]:
    """Hang the program onto devices and take it from all others; again: exchange it in place.

    What could not be done of a best effort, by ifindex, as sentences. Raises BpfError for NATIVE.
    """
    wanted = [] if acceleration is Acceleration.DISABLED else list(ifindexes)
    flags = bpf.XDP_GENERIC if acceleration is Acceleration.GENERIC else bpf.XDP_DRIVER
    names = {f"{LINK_PREFIX}{ifindex}" for ifindex in wanted}
    for name in dataplane.attached():
        if name.startswith(LINK_PREFIX) and name not in names:
            dataplane.detach(name)
    failures = {}
    for ifindex in wanted:
        try:
            dataplane.attach(f"{LINK_PREFIX}{ifindex}", PROGRAM, ifindex, Attach.XDP, flags)
        except OSError as error:
            failures[ifindex] = _sentence(ifindex, error)
    if failures and acceleration is not Acceleration.BEST_EFFORT:
        raise BpfError("; ".join(failures.values()))
    return failures


def _sentence(ifindex: int, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return f"device {ifindex} has another XDP program: take that off, or switch acceleration off"
    reason = os.strerror(error.errno or 0)
    return f"device {ifindex} takes no XDP program ({reason}): choose best-effort or disabled"
