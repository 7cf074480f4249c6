"""Answers from sealed files: the observer's past.

Files are chosen by name, row groups by the times in the footer. One group of one file is read at a time, in a
thread, when the client has taken the one before; only its rows that match stay in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import structlog

from cilia.hubble.columns import Mask
from cilia.hubble.history.codec import Damaged, SealedFile
from cilia.hubble.history.shelf import Shelf, Title
from cilia.hubble.past import Part, Question, TooManyReaders
from cilia.hubble.store import FlowStore, LossRow, LossSource, Rows
from cilia.kit import threads

log = structlog.get_logger(__name__)

MAX_READERS = 16
"""Answers that are read at once: each holds a group of a file, some 4 MiB."""
Place = tuple[Title, int]
"""A file, and the number of a group in it."""

HELD = 16_384
"""The newest so many flows are held while files are read backwards; of more, files are read twice."""


class Reader:
    """One answer's way through the files; every method but `close` runs in a thread."""

    def __init__(self, shelf: Shelf, store: FlowStore, question: Question) -> None:
        self._shelf = shelf
        self._store = store
        self._question = question
        self._title: Title | None = None
        self._file: SealedFile | None = None
        self._match: Callable[[Rows], Mask] | None = None

    def groups(self, title: Title) -> list[int]:
        """The groups that can have rows of the answer. Raises Damaged, FileNotFoundError."""
        file = self._open(title)
        question = self._question
        return [
            group
            for group in file.groups()
            if (question.since is None or file.times(group)[1] >= question.since)
            and (question.until is None or file.times(group)[0] <= question.until)
        ]

    def read(self, title: Title, group: int) -> Part:
        """The matching rows of a group. Raises Damaged, FileNotFoundError."""
        file = self._open(title)
        rows = file.read(group)
        assert self._match is not None
        mask = self._match(rows) & self._wanted(title, rows)
        # A gap belongs before the row of its position; one after all rows belongs to the last group.
        first = int(rows.numbers[0]) if group else -1
        last = int(rows.numbers[-1]) if group < file.groups()[-1] else title.end
        gaps = [gap for gap in file.footer.gaps if first < gap.position <= last and self._in_time(gap)]
        return Part(rows.where(mask), file.known, gaps)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file = self._title = None

    def _open(self, title: Title) -> SealedFile:
        if self._file is None or self._title != title:
            self.close()
            holder = self._shelf.holder(title)
            if holder is None:
                raise FileNotFoundError(self._shelf.path(title))
            self._file, self._title = SealedFile(self._shelf.path(holder), self._store.dtype), title
            self._match = self._question.match(self._file.known)
        return self._file

    def _wanted(self, title: Title, rows: Rows) -> Mask:
        """Rows of the right time and number: a file may have been merged with its neighbours."""
        question, first, end = self._question, title.first, title.end
        if title.boot == self._store.boot:
            first, end = max(first, question.first or 0), min(end, question.before)
        mask = np.asarray((rows.numbers >= first) & (rows.numbers < end), np.bool_)
        if question.since is not None:
            mask &= rows.wall >= question.since
        if question.until is not None:
            mask &= rows.wall <= question.until
        return mask

    def _in_time(self, gap: LossRow) -> bool:
        question = self._question
        return (question.since is None or gap.last >= question.since) and (
            question.until is None or gap.first <= question.until
        )


class Archive:
    """The files of this node, as the observer reads them."""

    def __init__(self, shelf: Shelf, store: FlowStore) -> None:
        self._shelf = shelf
        self._store = store
        self._readers = 0
        self._told: set[Title] = set()
        """Damaged files the log has named."""

    async def read(self, question: Question) -> AsyncIterator[Part]:
        """As `past.Past.read`. Raises TooManyReaders."""
        if self._readers >= MAX_READERS:
            raise TooManyReaders(
                f"{MAX_READERS} answers are being read from history already: ask again in a moment"
            )
        self._readers += 1
        reader = Reader(self._shelf, self._store, question)
        try:
            titles = [title for title in self._shelf.titles if self._asked(title, question)]
            way = self._newest if question.newest and question.limit is not None else self._oldest
            async for part in way(reader, titles, question.limit):
                yield part
        finally:
            self._readers -= 1
            reader.close()

    def _asked(self, title: Title, question: Question) -> bool:
        """Whether rows of the answer can be in a file."""
        if title.boot == self._store.boot:
            here = title.first < question.before and title.end > (question.first or 0)
        else:
            here = question.first is None
        return here and title.overlaps(question.since, question.until)

    async def _oldest(
        self, reader: Reader, titles: Sequence[Title], limit: int | None
    ) -> AsyncIterator[Part]:
        """Parts in their order, up to so many rows."""
        async for title, group in self._places(reader, titles):
            part = await self._part(reader, title, group)
            if limit is not None:
                part = part._replace(rows=part.rows.where(slice(0, limit)))
                limit -= len(part.rows.wall)
            if len(part.rows.wall) or part.gaps:
                yield part
            if limit == 0:
                return

    async def _newest(
        self, reader: Reader, titles: Sequence[Title], limit: int | None
    ) -> AsyncIterator[Part]:
        """The last `limit` rows in their order: found backwards, and read again where they are many."""
        assert limit is not None
        places: list[Place] = []
        held: dict[Place, Part] = {}
        found = 0
        async for place in self._places(reader, titles, backwards=True):
            part = await self._part(reader, *place)
            places.append(place)
            found += len(part.rows.wall)
            if found <= HELD:
                held[place] = part
            if found >= limit:
                break
        surplus = max(0, found - limit)
        for place in reversed(places):
            part = held.pop(place) if place in held else await self._part(reader, *place)
            if surplus:
                # The oldest group has more than was asked for, and what is lost there came before.
                part = part._replace(rows=part.rows.where(slice(surplus, None)), gaps=())
                surplus = 0
            if len(part.rows.wall) or part.gaps:
                yield part

    async def _places(
        self, reader: Reader, titles: Sequence[Title], *, backwards: bool = False
    ) -> AsyncIterator[Place]:
        """The groups to read. Files that can't be read, or are gone, have one: `_part` says so."""
        for title in reversed(titles) if backwards else titles:
            try:
                groups: Sequence[int] = await threads.start("read flows", reader.groups, title)
            except (Damaged, FileNotFoundError):
                groups = (0,)
            for group in reversed(groups) if backwards else groups:
                yield title, group

    async def _part(self, reader: Reader, title: Title, group: int) -> Part:
        """A group's rows; of a damaged file a gap."""
        try:
            return await threads.start("read flows", reader.read, title, group)
        except FileNotFoundError:
            return self._nothing()
        except Damaged as error:
            reader.close()
            if title not in self._told:
                self._told.add(title)
                log.error(
                    "a file of flows is damaged and left out of answers: remove it, or bring it back",
                    file=str(self._shelf.path(title)),
                    error=str(error),
                )
            return self._nothing()._replace(gaps=[unreadable(title)])

    def _nothing(self) -> Part:
        return Part(no_rows(self._store.dtype), self._store, ())


def unreadable(title: Title) -> LossRow:
    """What a damaged file costs: up to all of its rows."""
    return LossRow(
        serial=0,
        position=title.first,
        source=LossSource.HUBBLE_RING_BUFFER,
        count=title.rows,
        cpu=None,
        first=title.since,
        last=title.until,
    )


def no_rows(dtype: np.dtype[np.void]) -> Rows:
    """Columns without a row."""
    refs = (np.zeros(0, np.uint32) for _ in Rows._fields[3:])
    return Rows(np.zeros(0, np.int64), np.zeros(0, dtype), np.zeros(0, np.int64), *refs)
