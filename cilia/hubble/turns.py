"""Turns of the event loop: what takes long stops when its turn is over, and goes on in the next one.

    turn.begin()
    try:
        matcher.mask(rows)
    except TurnOver:
        await asyncio.sleep(0)      # and again: what was answered is remembered

So a filter with a thousand selectors over a thousand pods costs its client time, and nobody else.
"""

from __future__ import annotations

from collections.abc import Callable

SECONDS = 0.004
"""Of one turn."""


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
