"""Rounds of the event loop, shared: however many want something, each round has little of it.

    rounds.add(step, give_up)   steps that do not wait: as many in a round as fit into some milliseconds
    await gate.turn()           what tasks do between two waits: one of them in each round

A hundred clients at a time are then no longer a wait for the rest of the agent than one. Who comes last has
all others before it, but only once each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic

SECONDS = 0.002
"""Of a round, for steps; the last may end later."""


class Rounds:
    """Does small steps in the order in which they came."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._steps: deque[tuple[Callable[[], None], Callable[[], None]]] = deque()
        self._running = False

    def add(self, step: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Do something soon; `give_up` is called if it raises, which the loop tells of."""
        self._steps.append((step, give_up))
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        end = monotonic() + self._seconds
        try:
            while self._steps:
                step, give_up = self._steps.popleft()
                try:
                    step()
                except Exception:
                    give_up()
                    raise
                if monotonic() >= end:
                    break
        finally:
            self._running = bool(self._steps)
            if self._running:
                asyncio.get_running_loop().call_soon(self._round)


class Gate:
    """Lets one through in each round."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], bool]] = deque()
        self._running = False
        self.number = 0
        """Of the turn: while it is what it was when one was let through, it is one's turn still."""

    async def turn(self) -> None:
        """Wait for one's turn; what is done until the next wait is done in it."""
        future = asyncio.get_running_loop().create_future()

        def wake() -> bool:
            if future.done():
                return False
            future.set_result(None)
            return True

        self.add(wake)
        await future

    def add(self, wake: Callable[[], bool]) -> None:
        """Wake somebody when it is their turn, instead; `wake` says whether there was somebody still."""
        self._waiting.append(wake)
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Wake one. Loops keep the order of what is to be called: whoever is woken has had their turn when
        this comes again. Those who went away while they waited take no turn."""
        self.number += 1
        self._running = bool(self._waiting)
        if not self._running:
            return
        try:
            while self._waiting and not self._waiting.popleft()():
                pass
        finally:
            asyncio.get_running_loop().call_soon(self._next)
