"""Growing pauses between attempts, with jitter so that a crowd does not return at once."""

from __future__ import annotations

import random


class Backoff:
    """`next()` gives the seconds to wait before the next attempt; `reset()` after a success."""

    def __init__(self, first: float = 0.05, limit: float = 15.0, factor: float = 2.0) -> None:
        self._first = first
        self._limit = limit
        self._factor = factor
        self._current = first

    def next(self) -> float:
        """Seconds: the current pause, between half and all of it, and grow."""
        pause = self._current
        self._current = min(self._limit, self._current * self._factor)
        return pause * (0.5 + random.random() / 2)

    def reset(self) -> None:
        """Start again from the first pause."""
        self._current = self._first
