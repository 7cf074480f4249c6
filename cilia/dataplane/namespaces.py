"""Entering network namespaces, owning the one we are in, and its sysctls."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703
"""ioctl_nsfs(2)."""
SO_NETNS_COOKIE = 71
"""asm-generic/socket.h"""
SYSCTLS = Path("/proc/sys/net")

_libc = ctypes.CDLL(None, use_errno=True)


def lock_own() -> int:
    """Lock the network namespace of this thread, for those who would own its links: a descriptor that
    holds the lock. Raises BlockingIOError when another process has it.
    """
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def open_network(path: str) -> int:
    """Open a network namespace by its path. Raises OSError, with the path, when there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError(errno.ENOENT, "there is no network namespace", path) from None
    try:
        kind = fcntl.ioctl(descriptor, NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != CLONE_NEWNET:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no network namespace", path)
    return descriptor


def cookie(namespace: int | None = None) -> int:
    """The kernel's number for a network namespace, never used again: this thread's, or the one behind a
    descriptor. 0 where the kernel has none. Raises OSError when it can't be entered."""
    if namespace is not None:
        with entered(namespace):
            return cookie()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
        except OSError:
            return 0


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
