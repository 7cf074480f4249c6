"""Entering network namespaces, and sysctls of the one the thread is in."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
SYSCTLS = Path("/proc/sys/net")

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def entered(namespace: int) -> Iterator[None]:
    """Run a block with this thread in the network namespace behind a descriptor; no await inside.

    Raises OSError when it can't be entered.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(namespace)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"a network namespace can't be entered: {os.strerror(number)}")


def read_sysctl(path: str) -> str:
    """A sysctl below net/; empty where there is none."""
    try:
        return (SYSCTLS / path).read_text().strip()
    except FileNotFoundError:
        return ""


def write_sysctls(settings: Mapping[str, str]) -> None:
    """Set sysctls below net/, named by path (ipv4/ip_forward); those of a family that is switched off
    are skipped. Raises OSError."""
    for path, value in settings.items():
        try:
            descriptor = os.open(SYSCTLS / path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if path.startswith("ipv6/"):
                continue
            raise
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
