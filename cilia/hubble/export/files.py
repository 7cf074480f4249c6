"""The file of an exporter: appended to, set aside when it is full, made anew when somebody takes it away.

Everything here blocks, so it runs in threads: `write` in one at a time, `tidy` beside it.

Names are those of lumberjack, which Cilium's users' tools know: `events.log` is written to,
`events-2026-11-23T14-05-01.123.log` was set aside at that moment (UTC), and `.gz` after it says that it is
compressed.

Durability: a batch is handed to the kernel whole, and from then on survives the death of the agent. Batches
are not synced one by one, so a crash of the machine may cost what the kernel had not written yet (some 30 s
with Linux's defaults); a file that is set aside is synced.
"""

from __future__ import annotations

import datetime
import errno
import gzip
import os
import re
import select
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from cilia.hubble.export.settings import STDOUT, ExportSettings
from cilia.kit.files import sync_directory

MIB = 1 << 20
STANDARD_OUTPUT = 1
PIPE_STEP = select.PIPE_BUF
"""Bytes that a pipe which says it has room takes without blocking."""
PIPE_PATIENCE = 5.0
"""Seconds a reader of a pipe may sleep before what is for it counts as not written."""
NEW_FILE, NEW_DIRECTORY = 0o600, 0o755
BLOCK = 1 << 20
LINE_START = b'{"'
"""How lines of ours begin."""
LONGEST_LINE = 4 << 20
"""Bytes at the end of a file in which its last line begins."""
CLOCK_SLACK = 1.0
"""Seconds by which names of files set aside may be ahead of the clock: of one moment each has its own."""


class Output(Protocol):
    """Where lines go."""

    untidy: bool
    """`tidy` has work."""

    def write(self, data: bytes) -> None:
        """Write whole lines, all or none. Raises OSError; it may be tried again."""
        ...

    def tidy(self) -> None:
        """Remove and compress what was set aside. Raises OSError."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def output(settings: ExportSettings, wall: Callable[[], float]) -> Output:
    """The output that settings name. `wall`: seconds since the epoch."""
    if settings.path == STDOUT:
        return Stream(STANDARD_OUTPUT)
    return RotatedFile(
        Path(settings.path),
        size=settings.max_size_mb * MIB,
        backups=settings.max_backups,
        compress=settings.compress,
        wall=wall,
    )


class RotatedFile:
    """A regular file; a pipe at its place is written to, and never set aside."""

    def __init__(
        self, path: Path, *, size: int, backups: int, compress: bool, wall: Callable[[], float]
    ) -> None:
        self._path = path
        self._size = size
        self._backups = backups
        self._compress = compress
        self._wall = wall
        self._descriptor = -1
        self._stream: Stream | None = None
        """What stands at the path, when it is no regular file."""
        self.untidy = True

    def write(self, data: bytes) -> None:
        self._follow_path()
        if self._stream is not None:
            self._stream.write(data)
        else:
            self._append(data)

    def _append(self, data: bytes) -> None:
        before = os.fstat(self._descriptor).st_size
        if before and before + len(data) > self._size:
            self._set_aside()
            before = 0
        try:
            for piece in pieces(data, BLOCK):
                while piece:
                    piece = piece[os.write(self._descriptor, piece) :]
        except OSError:
            os.ftruncate(self._descriptor, before)
            raise

    def _follow_path(self) -> None:
        """Have the file open that stands at the path now."""
        if self._descriptor >= 0:
            try:
                there, ours = self._path.stat(), os.fstat(self._descriptor)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return
            except FileNotFoundError:
                pass
            self.close()
        self._open()

    def _open(self) -> None:
        self._path.parent.mkdir(mode=NEW_DIRECTORY, parents=True, exist_ok=True)
        # Without O_NONBLOCK, opening a pipe would wait for its reader.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(self._path, flags, NEW_FILE)
        regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._stream = None if regular else Stream(self._descriptor)
        if regular:
            self._end_line()

    def _end_line(self) -> None:
        """Take away the half line that a predecessor left who was killed while writing."""
        half = last_line(self._path)
        if half.startswith(LINE_START) and not is_json(half):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - len(half))
        elif half:
            # Only its end is missing, or it is somebody else's text.
            os.write(self._descriptor, b"\n")

    def _set_aside(self) -> None:
        mode = stat.S_IMODE(os.fstat(self._descriptor).st_mode)
        moment = self._wall()
        while (backup := backup_name(self._path, moment)).exists() or Path(f"{backup}.gz").exists():
            moment += 0.001
        self._path.rename(backup)
        self.close()
        self._open()
        # Whoever could read the old one reads the new one: the agent's umask would forbid it.
        os.fchmod(self._descriptor, mode)
        self.untidy = True

    def tidy(self) -> None:
        self.untidy = False
        if self._stream is not None:
            return
        found = self._newest_first()
        remove_unpacked(self._path)
        if self._backups:
            for path in found[self._backups :]:
                path.unlink(missing_ok=True)
            found = found[: self._backups]
        for path in found:
            if path.suffix != ".gz":
                self._seal(path)

    def _newest_first(self) -> list[Path]:
        """The files set aside. One of a moment that is still to come is of a clock that was wrong: were it
        the newest, what is set aside now would go first."""
        now = backup_name(self._path, self._wall() + CLOCK_SLACK).name
        return sorted(set_aside(self._path), key=lambda path: (path.name < now, path.name), reverse=True)

    def _seal(self, path: Path) -> None:
        scratch = path.with_name(f".{path.name}.gz.tmp")
        with path.open("rb") as plain:
            if not self._compress:
                os.fsync(plain.fileno())
                return
            try:
                pack(plain, scratch)
            except OSError:
                # On a full disk half a copy helps nobody.
                scratch.unlink(missing_ok=True)
                raise
        scratch.rename(path.with_name(f"{path.name}.gz"))
        path.unlink(missing_ok=True)
        sync_directory(path.parent)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Stream:
    """A pipe, a terminal, or whatever standard output is. What a reader has got can't be taken back: a write
    that is tried again goes on where it ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.untidy = False
        self._data = b""
        """What was given last, unless all of it is written."""
        self._left = memoryview(b"")
        """What of it is not written yet."""

    def write(self, data: bytes) -> None:
        """Raises TimeoutError when nobody reads for a while."""
        if data is not self._data:
            self._left = memoryview(self._open_line() + data)
            self._data = data
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while self._left:
            if not poll.poll(PIPE_PATIENCE * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "nobody reads")
            self._left = self._left[os.write(self._descriptor, self._left[:PIPE_STEP]) :]
        self._data = b""

    def _open_line(self) -> bytes:
        """The rest of a line whose beginning the reader has, when its batch is given up."""
        done = len(self._data) - len(self._left)
        if done <= 0 or not self._left or self._data[done - 1 : done] == b"\n":
            return b""
        return self._data[done : self._data.find(b"\n", done) + 1]

    def tidy(self) -> None:
        pass

    def close(self) -> None:
        pass


def pack(plain: BinaryIO, target: Path) -> None:
    """Write a compressed copy that is as private as its original. Raises OSError."""
    with target.open("wb") as file:
        os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(plain.fileno()).st_mode))
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6) as packed:
            shutil.copyfileobj(plain, packed, BLOCK)
        file.flush()
        os.fsync(file.fileno())


def last_line(path: Path) -> bytes:
    """What stands after the last end of a line. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() in (b"", b"\n"):
            return b""
        file.seek(max(0, size - LONGEST_LINE))
        return file.read().rpartition(b"\n")[2]


def is_json(text: bytes) -> bool:
    """Whether a text is a whole value."""
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True


def pieces(data: bytes, size: int) -> Iterator[memoryview]:
    """Views of parts that are at most so long."""
    view = memoryview(data)
    for start in range(0, len(view), size):
        yield view[start : start + size]


def backup_name(path: Path, moment: float) -> Path:
    """Name of a file that is set aside at a moment (seconds since the epoch)."""
    when = datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat("T", "milliseconds")
    return path.with_name(f"{path.stem}-{when[:-6].replace(':', '-')}{path.suffix}")


def set_aside(path: Path) -> list[Path]:
    """The files of this name that were set aside."""
    pattern = re.compile(aside_pattern(path) + r"(\.gz)?")
    return [each for each in path.parent.iterdir() if pattern.fullmatch(each.name)]


def remove_unpacked(path: Path) -> None:
    """Remove what was left of compressed copies by a predecessor that was killed."""
    pattern = re.compile(r"\." + aside_pattern(path) + r"\.gz\.tmp")
    for each in path.parent.iterdir():
        if pattern.fullmatch(each.name):
            each.unlink(missing_ok=True)


def aside_pattern(path: Path) -> str:
    """Of the names `backup_name` gives, as a regular expression."""
    return re.escape(path.stem) + r"-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}" + re.escape(path.suffix)
