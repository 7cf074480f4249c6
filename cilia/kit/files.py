"""Files that are either whole or not there, and whether one was replaced."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple, Self


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` with `content` in one step; with `durable` it survives a power cut.

    The file has just `mode`, whatever the process's umask: it says what all files but these get.
    Raises OSError (disk full, no permission); the old content is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(descriptor, mode)
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    if durable:
        sync_directory(path.parent)


def remove_scratch(directory: Path) -> None:
    """Remove what writers that were killed left in a directory nobody else writes to now."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make a rename or removal in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: Path, most: int) -> bytes:
    """What a file has, its first `most` bytes and one more: enough to see that it is too long.

    Raises OSError, also for what is no file: to open a pipe may take for ever, and a device has no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))
        return file.read(most + 1)


class Stamp(NamedTuple):
    """Which file this is with which content, as far as one knows without reading it; another one after each
    replacement, be it by a rename, by a swapped symbolic link or in place."""

    inode: int
    modified: int
    """Nanoseconds since the epoch."""
    size: int
    """Bytes."""

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """From what the kernel says of a file."""
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


def stamp(path: Path) -> Stamp | None:
    """Of the file at `path`, behind all symbolic links; None when it is not there or can't be asked for."""
    try:
        return Stamp.of(path.stat())
    except OSError:
        return None


def private_directory(path: Path) -> None:
    """Create `path` (and its parents) readable by its owner only; tighten it when it is there."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
