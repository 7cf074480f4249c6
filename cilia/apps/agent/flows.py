"""From the kernel's rings into Hubble's store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from cilia.hubble.store import FlowStore, Loss

Events = np.ndarray[Any, np.dtype[np.void]]


class LostEvents(Protocol):
    """A gap in one CPU's sequence numbers of one ring."""

    @property
    def cpu(self) -> int: ...
    @property
    def ring(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...


def clock_offset() -> int:
    """Wall clock minus the kernel's monotonic clock, in nanoseconds: the closest of a few readings."""
    best, width = 0, 1 << 62
    for _ in range(5):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        wall = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if after - before < width:
            best, width = wall - (before + after) // 2, after - before
    return best


class FlowPump:
    """Appends what the rings give; measures the clocks' distance anew now and then."""

    def __init__(self, store: FlowStore) -> None:
        self._store = store
        self._offset = clock_offset()
        self._measured = time.monotonic()

    def take(self, batches: Sequence[Events], lost: Sequence[LostEvents]) -> None:
        """Store one drain of both rings."""
        now = time.monotonic()
        if now - self._measured > 10.0:
            self._offset, self._measured = clock_offset(), now
        self._store.append(
            batches,
            [Loss(cpu=gap.cpu, count=gap.count, first=gap.first, last=gap.last) for gap in lost],
            offset=self._offset,
        )
