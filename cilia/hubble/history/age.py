"""How old flows are, by a clock that may jump.

A node whose clock is set to next year by mistake must not throw its history away. So a moment that is far
ahead of what is known counts only when the clock has insisted on it for a while; what is too old goes that
much later. A clock that is set back is believed at once: nothing goes by it.
"""

from __future__ import annotations

from cilia.kit.clock import Clock

JUMP = 60.0
"""Seconds by which a clock is corrected without anybody wondering."""
PATIENCE = 3600.0
"""Seconds for which a clock must insist on more."""


class Doubt:
    """The wall clock, as far as it is believed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead = clock.wall() - clock.monotonic()
        """Seconds between the two clocks, as believed."""
        self._since: float | None = None
        """When the wall clock began to say more (monotonic)."""

    def known(self, newest: float) -> None:
        """Begin with what is certain: when the newest flow was seen (seconds since the epoch)."""
        self._ahead = min(self._ahead, newest - self._clock.monotonic())

    def now(self) -> float:
        """Seconds since the epoch."""
        monotonic = self._clock.monotonic()
        ahead = self._clock.wall() - monotonic
        if ahead <= self._ahead + JUMP:
            self._believe(ahead)
        elif self._since is None:
            self._since = monotonic
        elif monotonic - self._since >= PATIENCE:
            self._believe(ahead)
        return monotonic + self._ahead

    def _believe(self, ahead: float) -> None:
        self._ahead, self._since = ahead, None
