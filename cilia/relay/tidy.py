"""Gives memory back that connections have left behind.

uvloop takes 256 KiB for each TLS connection and writes to little of it. glibc lays these beside all that is
small, and the next connection elsewhere than the last: after some rounds of a thousand peers that come and go
nearly every page of 300 MiB was written to once, and stays in memory though nothing uses it.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

from cilia.relay.pool import Pool

ENOUGH = 32
"""Connections that must have ended to be worth it: they leave some 2 MiB."""
PAUSE = 10.0
"""Seconds between two times. One takes 0.2 ms, or 10 ms when there is much to give back."""


class Tidy:
    """Has free memory given back once enough connections have ended."""

    def __init__(self, pool: Pool, give_back: Callable[[], None], pause: float = PAUSE) -> None:
        self._pool = pool
        self._give_back = give_back
        self._pause = pause
        self._timer: asyncio.TimerHandle | None = None
        self._ended = 0
        """Connections that had ended the last time."""

    def changed(self) -> None:
        """Connections may have ended: for the pool's listeners."""
        if self._timer is None and self._pool.ended - self._ended >= ENOUGH:
            self._timer = asyncio.get_running_loop().call_later(self._pause, self._act)

    def close(self) -> None:
        """Give nothing back any more."""
        if self._timer:
            self._timer.cancel()

    def _act(self) -> None:
        self._timer = None
        self._ended = self._pool.ended
        self._give_back()


def give_back() -> None:
    """Return free pages to the kernel, if the C library can: glibc's malloc_trim(3)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
