"""Namespaces, mounts and capabilities: the system calls Python 3.11 has no names for.

All errors are OSError with the path that was meant. Sources: setns(2), unshare(2), mount(2), umount2(2).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000

MS_NOSUID = 2
MS_NODEV = 4
MS_BIND = 4096
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def _check(result: int, subject: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), subject)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode() or None), target)


def unmount(target: str) -> None:
    """Detach a mount: it disappears at once, and for good when the last user is gone."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), target)


def setns(descriptor: int, kind: int, subject: str) -> None:
    """Move the calling thread into a namespace."""
    _check(_libc.setns(descriptor, kind), subject)


@contextmanager
def inside_network(path: str | os.PathLike[str]) -> Iterator[None]:
    """Run the block's code, in this thread, in another network namespace.

    Nothing may be awaited inside: other coroutines would run there, too.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(there, CLONE_NEWNET, str(path))
        finally:
            os.close(there)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET, "the home network namespace")
    finally:
        os.close(home)


def create_network(path: str | os.PathLike[str]) -> None:
    """Make a network namespace and keep it alive by a bind mount on a new file `path`."""
    target = Path(path)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o600))
        try:
            _check(_libc.unshare(CLONE_NEWNET), str(target))
            try:
                mount("/proc/thread-self/ns/net", str(target), "none", MS_BIND)
            finally:
                setns(home, CLONE_NEWNET, "the home network namespace")
        except OSError:
            target.unlink()
            raise
    finally:
        os.close(home)


def delete_network(path: str | os.PathLike[str]) -> None:
    """Let a network namespace go; one that isn't there is no error."""
    target = Path(path)
    try:
        unmount(str(target))
    except OSError:
        if str(target) in mounts_below(str(target)):
            raise
    target.unlink(missing_ok=True)


def mounts_below(path: str) -> list[str]:
    """Return the mount points at or below `path`, the deepest and newest first."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point = line.split(" ")[1].encode().decode("unicode_escape")
        if point == path or point.startswith(path + "/"):
            found.append(point)
    return found[::-1]


def write_sysctl(name: str, value: str | int) -> None:
    """Set a sysctl of the current network namespace, such as `net/ipv4/ip_forward`."""
    Path("/proc/sys", name).write_text(str(value))
