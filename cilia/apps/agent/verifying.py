"""Looks now and then whether the kernel has what it should: what was found is told, counted, and put right
when somebody asks for it.

A round goes beside all other work, a step at a time. One that is asked for does not wait for the next, and
one follows soon when a source was listed anew: what a gap hid may have got lost further down, too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

import structlog

from cilia.api.types import MapDifference, VerifyReport
from cilia.dataplane.verify import Verifier
from cilia.kit.clock import Clock

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 0.005
"""Between two steps of a round that nobody waits for."""
GLANCE_SECONDS = 1.0
"""Between two looks for sources that were listed anew; what these say is in the kernel by then."""
SHOWN = 1000
"""Differences that are told; the rest is counted."""


class Verifying:
    """Rounds of the verifier, one at a time."""

    def __init__(
        self,
        verifier: Verifier,
        kick: Callable[[], None],
        clock: Clock,
        interval: float,
        lists: Callable[[], int] = int,
    ) -> None:
        """`kick`: has the tables applied, after a repair. `interval`: seconds between two rounds. `lists`:
        how often a source was listed."""
        self._verifier = verifier
        self._kick = kick
        self._clock = clock
        self._interval = interval
        self._lists = lists
        self._turn = asyncio.Lock()
        self._started = clock.monotonic()
        self._said: tuple[str, ...] = ()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._rest()
            async with self._turn:
                await self._round(PAUSE_SECONDS)

    async def verify(self, *, repair: bool) -> VerifyReport:
        """Compare now; `repair`: and put right what differs. Raises OSError."""
        async with self._turn:
            if not await self._round(0):
                raise OSError("the kernel's maps can't be read: see the agent's log")
            found = self._verifier.differences
            repaired = self._verifier.repair() if repair else 0
        if repaired:
            log.warning("the kernel is put right", repaired=repaired)
            self._kick()
        return VerifyReport(
            differences=tuple(
                MapDifference(map=one.map, key=one.key, intended=one.intended, actual=one.actual)
                for one in found[:SHOWN]
            ),
            count=len(found),
            by_map=dict(Counter(one.map for one in found)),
            repaired=repaired,
        )

    async def _rest(self) -> None:
        """Until the next round."""
        before, left = self._lists(), self._interval
        while left > 0 and self._lists() == before:
            step = min(GLANCE_SECONDS, left)
            await asyncio.sleep(step)
            left -= step

    @property
    def by_map(self) -> Mapping[str, int]:
        """How many the last round found, by map."""
        return Counter(one.map for one in self._verifier.differences)

    @property
    def differences(self) -> int:
        """How many the last round found."""
        return len(self._verifier.differences)

    def since_difference(self) -> float:
        """Seconds since a round found something; without any, since the agent began to look."""
        last = self._verifier.differed
        return self._clock.monotonic() - (self._started if last is None else last)

    def since_check(self) -> float:
        """Seconds since a round ended."""
        last = self._verifier.checked
        return self._clock.monotonic() - (self._started if last is None else last)

    async def _round(self, pause: float) -> bool:
        """One round; whether it could be made."""
        try:
            for _ in self._verifier.round(self._clock.monotonic):
                await asyncio.sleep(pause)
        except OSError as error:
            log.warning("what the kernel has can't be compared", reason=error.strerror or str(error))
            return False
        said = tuple(f"{one.map} {one.key}" for one in self._verifier.differences[:10])
        if said and said != self._said:
            log.error("the kernel differs from what is intended", count=self.differences, first=list(said))
        self._said = said
        return True
