"""Work beside the event loop, by one thread at a time: two that compute take twice as much from the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from cilia.kit import threads

T = TypeVar("T")
P = ParamSpec("P")


class Beside:
    """One thread for all who need it: first come, first served."""

    def __init__(self, name: str) -> None:
        """`name`: of the thread."""
        self._name = name
        self._lock = asyncio.Lock()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a function returns or raises. Who waits for it may leave; the next still waits for its end."""
        await self._lock.acquire()
        work = threads.start(self._name, function, *args, **kwargs)
        work.add_done_callback(lambda _: self._lock.release())
        return await asyncio.shield(work)
