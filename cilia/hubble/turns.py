"""Turns of the event loop: what takes long stops when its turn is over, and goes on in the next one.

    turn.begin()
    try:
        matcher.mask(rows)
    except TurnOver:
        await asyncio.sleep(0)      # and again: what was answered is remembered

So a filter with a thousand selectors over a thousand pods costs its client time, and nobody else. What can't
stop goes `beside` the loop, and pauses there: a thread that computes lets the loop wait each time it gives
the interpreter away, which numpy does all the time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic, sleep
from typing import TypeVar

T = TypeVar("T")

SECONDS = 0.004
"""Of one turn."""
WORK, PAUSE = 0.0005, 0.001
"""Seconds of a thread beside the loop, in turns."""


class TurnOver(Exception):
    """Others wait: ask the same again later."""


class Turn:
    """How long one may go on."""

    def __init__(self, monotonic: Callable[[], float], seconds: float = SECONDS) -> None:
        """`monotonic`: seconds that never go back."""
        self._monotonic = monotonic
        self._seconds = seconds
        self._end = 0.0

    def begin(self) -> None:
        """It is one's turn."""
        self._end = self._monotonic() + self._seconds

    def progressed(self) -> None:
        """Call after each step that need not be done again. Raises TurnOver."""
        if self._monotonic() >= self._end:
            raise TurnOver


def unhurried(items: Iterable[T]) -> Iterator[T]:
    """One after the other; beside the loop with pauses between them."""
    if threading.current_thread() is threading.main_thread():
        yield from items
        return
    end = monotonic() + WORK
    for item in items:
        yield item
        if monotonic() >= end:
            sleep(PAUSE)
            end = monotonic() + WORK
