"""Seals what comes into the store, block by block, and keeps the files within their budget.

The ring is the only buffer: a block is copied out of it when it is sealed, and stays in it when that fails.
What the ring overwrites before it could be sealed is counted, and told in the next file as a gap.
"""

from __future__ import annotations

import asyncio
import functools

import structlog

from cilia.hubble.cursor import Arrived, Cursor
from cilia.hubble.history import codec
from cilia.hubble.history.age import Doubt
from cilia.hubble.history.numbers import HistoryNumbers
from cilia.hubble.history.settings import HistorySettings
from cilia.hubble.history.shelf import Shelf, Title
from cilia.hubble.store import FlowStore, LossRow, LossSource, fold
from cilia.kit import threads
from cilia.kit.backoff import Backoff
from cilia.kit.clock import Clock

log = structlog.get_logger(__name__)

KEPT_GAPS = 256
"""Of one file."""
LONGEST_PAUSE = 30.0
"""Seconds between two attempts on a disk that is full."""


class Recorder:
    """One writer; `run` is a task of the agent."""

    def __init__(
        self, store: FlowStore, shelf: Shelf, node: str, settings: HistorySettings, clock: Clock
    ) -> None:
        """`node`: as flows name it."""
        self._store = store
        self._shelf = shelf
        self._node = node
        self._settings = settings
        self._clock = clock
        self._block = min(settings.block, max(1, store.capacity // 4))
        self._cursor = Cursor(store, 0)
        self._enough = asyncio.Event()
        self._ended = asyncio.Event()
        self._carried: list[LossRow] = []
        """Gaps that no file tells yet."""
        self._backoff = Backoff(limit=LONGEST_PAUSE)
        self._doubt = Doubt(clock)
        self._problem = ""
        self.lost = 0
        self.failures = 0
        """Attempts to seal that failed."""
        self.reach = 0
        """Rows below this number are sealed, or counted as lost."""

    def numbers(self) -> HistoryNumbers:
        """How it stands."""
        titles = self._shelf.titles
        return HistoryNumbers(
            files=len(titles),
            bytes=self._shelf.total,
            rows=sum(title.rows for title in titles),
            oldest=min((title.since for title in titles), default=None),
            lost=self.lost,
            failures=self.failures,
            problem=self._problem,
        )

    async def run(self) -> None:
        """Seal until `stop`, and then what is left."""
        if self._shelf.titles:
            self._doubt.known(max(title.until for title in self._shelf.titles) / 1e9)
        self._store.listeners.add(self._arrived)
        try:
            while not self._ended.is_set():
                await self._wait(self._settings.interval)
                while not self._ended.is_set() and await self._seal() and self._waiting >= self._block:
                    pass
                if self._problem and not self._ended.is_set():
                    await self._wait_out(self._backoff.next())
            while await self._seal():
                pass
        finally:
            self._store.listeners.discard(self._arrived)

    def stop(self) -> None:
        """Have `run` seal what is there and end."""
        self._ended.set()
        self._enough.set()

    # -- when ---------------------------------------------------------------------------------------------

    @property
    def _waiting(self) -> int:
        """Rows that are not sealed."""
        return self._store.head - self._cursor.position

    def _arrived(self) -> None:
        if self._waiting >= self._block:
            self._enough.set()

    async def _wait(self, seconds: float) -> None:
        """Until a block is full, or so long after there was something."""
        self._enough.clear()
        self._arrived()
        if self._ended.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await self._enough.wait()
        except TimeoutError:
            pass

    async def _wait_out(self, seconds: float) -> None:
        """A pause that only `stop` ends."""
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            pass

    # -- what ---------------------------------------------------------------------------------------------

    async def _seal(self) -> bool:
        """Seal one block; False when there was nothing, or it failed."""
        cursor, before = self._cursor, (self._cursor.position, self._cursor.gap)
        arrived = cursor.step(self._block)
        gaps = folded([*self._carried, *arrived.gaps, *self._missed(arrived)])
        spans = self._store.spans(arrived.first, arrived.end)
        if spans:
            try:
                await self._write(codec.detach(spans, self._store, gaps), arrived)
            except OSError as error:
                cursor.position, cursor.gap = before
                self._failed(error)
                return False
            self._recovered()
            gaps = []
        self._carried = gaps
        self.lost += arrived.overwritten
        self.reach = arrived.end
        await self._tidy()
        return bool(spans)

    def _missed(self, arrived: Arrived) -> list[LossRow]:
        """What the ring has overwritten, as a gap."""
        if not arrived.overwritten:
            return []
        now = int(self._clock.wall() * 1e9)
        first = self._store.time_of(arrived.first) or now
        gap = LossRow(
            serial=0,
            position=arrived.first,
            source=LossSource.HUBBLE_RING_BUFFER,
            count=arrived.overwritten,
            cpu=None,
            first=first,
            last=max(first, now),
        )
        return [gap]

    async def _write(self, block: codec.Block, arrived: Arrived) -> None:
        """Raises OSError."""
        wall = block.rows.wall
        title = Title(
            serial=self._shelf.next_serial,
            boot=block.known.boot,
            first=arrived.first,
            end=arrived.end,
            rows=len(wall),
            since=int(wall.min()),
            until=int(wall.max()),
        )
        size = await threads.start("seal flows", codec.write, self._shelf.path(title), block, self._node)
        self._shelf.add(title, size)

    async def _tidy(self) -> None:
        """Merge small files, and give up what is too much or too old."""
        try:
            await self._merge()
            oldest = int((self._doubt.now() - self._settings.max_age) * 1e9)
            surplus = self._shelf.surplus(self._settings.max_bytes, oldest)
            self._shelf.forget(surplus)
            if surplus:
                await threads.start("give up flows", self._shelf.unlink, surplus)
        except OSError as error:
            log.warning("history can't be tidied up; it is tried again with the next flows", error=str(error))

    async def _merge(self) -> None:
        """Raises OSError."""
        titles = self._shelf.small(self._settings.merged, self._block // 2)
        if not titles:
            return
        whole = Title(
            serial=self._shelf.next_serial,
            boot=titles[0].boot,
            first=titles[0].first,
            end=titles[-1].end,
            rows=sum(title.rows for title in titles),
            since=min(title.since for title in titles),
            until=max(title.until for title in titles),
        )
        paths = [self._shelf.path(title) for title in titles]
        try:
            size = await threads.start(
                "merge flows", codec.merge, paths, self._shelf.path(whole), self._store.dtype
            )
        except codec.Damaged as error:
            log.warning("files of flows can't be merged: one of them is damaged", error=str(error))
            self._shelf.apart.update(titles)
            return
        self._shelf.add(whole, size, titles)
        await threads.start("give up flows", self._shelf.unlink, titles)

    # -- how it goes --------------------------------------------------------------------------------------

    def _failed(self, error: OSError) -> None:
        if not self._problem:
            log.error(
                "flows can't be written to history: make room or give the directory its rights back; "
                "the newest flows are still in memory, and it is tried again",
                directory=str(self._shelf.directory),
                error=error.strerror or str(error),
            )
        self.failures += 1
        self._problem = f"{self._shelf.directory} can't be written ({error.strerror or error})"

    def _recovered(self) -> None:
        if self._problem:
            log.info("flows are written to history again", lost=self.lost)
        self._problem = ""
        self._backoff.reset()


def folded(gaps: list[LossRow]) -> list[LossRow]:
    """At most KEPT_GAPS gaps: where there are more, the oldest become one."""
    surplus = len(gaps) - KEPT_GAPS
    if surplus <= 0:
        return gaps
    return [functools.reduce(fold, gaps[: surplus + 1]), *gaps[surplus + 1 :]]
