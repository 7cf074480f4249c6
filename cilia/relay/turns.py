"""Who may go on, a few peers at a time, so that their answers never come all at once.

The event loop reads every socket that has something before anything else gets its turn: a thousand peers
that answer in the same moment hold it for a third of a second, whatever the work for each is cut into. So a
peer is asked for more only while few others owe an answer.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

AT_ONCE = 4
"""Peers that owe an answer: some 3 ms of work when all come together."""
PATIENCE = 0.01
"""Seconds after which a peer holds up the next no longer, though it has not answered: it may have nothing to
say. A thousand idle ones are asked in 3 s."""
GRACE = 0.001
"""Seconds more for what has come already, when it was this process that was late."""


class Turn:
    """One peer's; ends with the block, or by itself after a while."""

    def __init__(self, places: asyncio.Semaphore, patience: float) -> None:
        self._places = places
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Turn:
        await self._places.acquire()
        self._timer = asyncio.get_running_loop().call_later(self._patience, self._expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _expire(self) -> None:
        # Timers come before sockets: an answer may lie there.
        self._timer = asyncio.get_running_loop().call_later(GRACE, self.end)

    def end(self) -> None:
        """Let the next go on."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
            self._places.release()


class Turns:
    """Hands out turns in the order they were asked for."""

    def __init__(self, at_once: int = AT_ONCE, patience: float = PATIENCE) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._patience = patience

    def turn(self) -> Turn:
        """For `async with`."""
        return Turn(self._places, self._patience)
