"""What tests ask of the machine and process they run in."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on now; an empty address: on any."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
