"""A place in the store: for everybody who reads flows as they come, each at its own pace.

    with Cursor(store) as cursor:
        while await cursor.wait():
            arrived = cursor.step(limit)
            for rows in store.spans(arrived.first, arrived.end):
                ...

A cursor is two numbers. Who is late costs nothing and learns exactly how many rows the ring has overwritten
before it came.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NamedTuple, Self

from cilia.hubble.store import FlowStore, LossRow


class Arrived(NamedTuple):
    """What came since the last step."""

    first: int
    """Number of the first row that may have come; `FlowStore.spans` knows which are here."""
    end: int
    """Number after the last row."""
    overwritten: int
    """Rows of [first, end) that are gone unread."""
    gaps: list[LossRow]
    """What the kernel could not hand over, by position; each is told once."""


class Cursor:
    """Follows a store from a row on; a context manager, for it listens."""

    def __init__(self, store: FlowStore, position: int | None = None) -> None:
        """`position`: number of the first row wanted; None: what comes from now on."""
        self._store = store
        self.position = store.head if position is None else position
        """Number of the next row not seen."""
        self.gap = store.gaps
        """Serial of the next gap not told."""
        self._bell = asyncio.Event()
        self._wanted = 0
        """Rows for which the bell rings."""

    def __enter__(self) -> Self:
        self._store.listeners.add(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._store.listeners.discard(self._look)

    def _look(self) -> None:
        if self._store.head - self.position >= self._wanted:
            self._bell.set()

    @property
    def waiting(self) -> bool:
        """Nothing is there that was not seen."""
        return self.position == self._store.head and self.gap == self._store.gaps

    async def wait(self, seconds: float | None = None) -> bool:
        """Until something is there; False when so many seconds went by without."""
        try:
            async with asyncio.timeout(seconds):
                while self.waiting:
                    self._bell.clear()
                    await self._bell.wait()
        except TimeoutError:
            return False
        return True

    async def gather(self, seconds: float, enough: int) -> None:
        """Let rows come for so many seconds, or until so many are there: many at once cost less each. A small
        ring is read before it is full."""
        enough = min(enough, self._store.capacity // 4)
        if seconds <= 0 or self._store.head - self.position >= enough:
            return
        self._wanted = enough
        self._bell.clear()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._bell.wait()
        finally:
            self._wanted = 0

    def step(self, limit: int) -> Arrived:
        """Go on by at most `limit` rows."""
        first = self.position
        end = self._store.reach(first, limit)
        overwritten = self._store.missing(first, end)
        gaps = [gap for gap in self._store.losses if gap.serial >= self.gap and gap.position <= end]
        self.position = end
        if gaps:
            self.gap = gaps[-1].serial + 1
        return Arrived(first, end, overwritten, gaps)
