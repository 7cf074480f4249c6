"""The files of a history, known by their names alone: nothing is opened to find what an answer needs.

    flows-0000000042-8f1c…4a5e-0000001000-0000005000-4096-<first wall ns>-<last wall ns>.parquet
          serial     boot      first      end        rows

`serial` orders files as their rows were stored, whatever the clock did in between; `first` and `end` are row
numbers of the run `boot`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cilia.kit.files import private_directory, remove_scratch

PATTERN = re.compile(
    r"flows-(?P<serial>\d{10})-(?P<boot>[0-9a-f]{16})-(?P<first>[0-9a-f]{12})-(?P<end>[0-9a-f]{12})"
    r"-(?P<rows>\d+)-(?P<since>-?\d+)-(?P<until>-?\d+)\.parquet"
)


class Title(NamedTuple):
    """What a file's name says; sorted as the rows were stored."""

    serial: int
    boot: int
    first: int
    end: int
    rows: int
    since: int
    """Nanoseconds since the epoch of its earliest row, and below of its latest."""
    until: int

    def name(self) -> str:
        """Of the file."""
        return (
            f"flows-{self.serial:010d}-{self.boot:016x}-{self.first:012x}-{self.end:012x}"
            f"-{self.rows}-{self.since}-{self.until}.parquet"
        )

    @classmethod
    def parse(cls, name: str) -> Title | None:
        """None for a file of another kind."""
        found = PATTERN.fullmatch(name)
        if found is None:
            return None
        serial, boot, first, end, rows, since, until = found.groups()
        return cls(
            int(serial), int(boot, 16), int(first, 16), int(end, 16), int(rows), int(since), int(until)
        )

    def within(self, other: Title) -> bool:
        """Whether another file, written later, holds all rows of this one."""
        return self.boot == other.boot and other.first <= self.first and self.end <= other.end

    def overlaps(self, since: int | None, until: int | None) -> bool:
        """Whether rows of these times can be in it."""
        return (since is None or self.until >= since) and (until is None or self.since <= until)


class Shelf:
    """A directory of sealed files and how large each is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sizes: dict[Title, int] = {}
        """In their order."""
        self.apart: set[Title] = set()
        """Files that stay as they are: one that can't be read was among them."""

    def open(self) -> None:
        """Look at what is there; tidy up after a writer that was killed. Raises OSError."""
        refuse_shared(self.directory)
        private_directory(self.directory)
        remove_scratch(self.directory)
        found: dict[Title, int] = {}
        with os.scandir(self.directory) as entries:
            for entry in entries:
                title = Title.parse(entry.name)
                if title is not None:
                    found[title] = entry.stat().st_size
        kept: list[Title] = []
        merged: list[Title] = []
        for title in sorted(found, reverse=True):
            (merged if kept and title.within(kept[-1]) else kept).append(title)
        self.unlink(merged)
        self.sizes = {title: found[title] for title in reversed(kept)}

    @property
    def titles(self) -> list[Title]:
        """Oldest first."""
        return list(self.sizes)

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    @property
    def next_serial(self) -> int:
        """For the next file."""
        return max((title.serial for title in self.sizes), default=-1) + 1

    def path(self, title: Title) -> Path:
        """Of a file."""
        return self.directory / title.name()

    def add(self, title: Title, size: int, instead: Iterable[Title] = ()) -> None:
        """A new file, which may hold all rows of some older ones."""
        self.sizes[title] = size
        self.forget(instead)

    def forget(self, titles: Iterable[Title]) -> None:
        """No longer offer files; `unlink` is the second step."""
        for title in titles:
            self.sizes.pop(title, None)

    def unlink(self, titles: Iterable[Title]) -> None:
        """Delete files; what is gone already is gone. Raises OSError."""
        for title in titles:
            self.path(title).unlink(missing_ok=True)

    def holder(self, title: Title) -> Title | None:
        """The file that has the rows of `title` now: itself, or what it was merged into; None: given up."""
        if title in self.sizes:
            return title
        return next((other for other in reversed(self.sizes) if title.within(other)), None)

    def small(self, limit: int, tiny: int) -> list[Title]:
        """The newest files that are better merged into one of at most `limit` rows, if the last has fewer
        than `tiny`. Each is at most twice as large as what follows it: a row is rewritten a few times, not
        with each file."""
        found: list[Title] = []
        rows = 0
        for title in reversed(self.sizes):
            if title in self.apart or (not found and title.rows >= tiny):
                break
            if found and not (
                title.boot == found[0].boot
                and title.end == found[0].first
                and title.rows <= 2 * rows
                and title.rows + rows <= limit
            ):
                break
            found.insert(0, title)
            rows += title.rows
        return found if len(found) > 1 else []

    def surplus(self, max_bytes: int, oldest: int) -> list[Title]:
        """The files to give up: those whose newest row is from before `oldest` (nanoseconds since the epoch),
        and the oldest ones of what is over the budget; the newest file stays."""
        total, found = self.total, []
        for title in self.titles[:-1]:
            if total > max_bytes or title.until < oldest:
                found.append(title)
                total -= self.sizes[title]
        return found


def refuse_shared(directory: Path) -> None:
    """Raise OSError for a directory that others use: /var/log or /tmp must not become private by mistake."""
    if not directory.exists() or not directory.stat().st_mode & 0o077:
        return
    if any(Title.parse(path.name) is None and not path.name.endswith(".tmp") for path in directory.iterdir()):
        raise OSError(errno.ENOTEMPTY, "others may read it, and it holds files of others", str(directory))
