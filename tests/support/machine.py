"""What tests ask of the machine and process they run in."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

UNCLAIMED = range(15_000, 30_000)
"""Ports the kernel gives to nobody who asks for any, and no NodePorts."""


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on now, nor soon by chance; an empty address: on any."""
    while True:
        port = secrets.choice(UNCLAIMED)
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
        return port


def is_served(path: Path) -> bool:
    """Whether somebody accepts connections at a unix socket; one that is there may not listen yet."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
