"""How many peers are connected, in the log: one line for all that changes within a second.

A thousand peers that come at once would else be a thousand lines; each by itself is told at debug level.
"""

from __future__ import annotations

import asyncio

import structlog

from cilia.relay.pool import Pool, reasons

log = structlog.get_logger(__name__)

GATHER = 1.0
"""Seconds that changes wait for each other."""


class Tally:
    """Says so whenever another set of peers is away."""

    def __init__(self, pool: Pool, gather: float = GATHER) -> None:
        self._pool = pool
        self._gather = gather
        self._timer: asyncio.TimerHandle | None = None
        self._said: tuple[int, frozenset[str]] | None = None
        """Peers, and who of them was away."""

    def changed(self) -> None:
        """Something has: for the pool's listeners."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._gather, self._say)

    def close(self) -> None:
        """Say nothing more."""
        if self._timer:
            self._timer.cancel()

    def _say(self) -> None:
        self._timer = None
        links = self._pool.links()
        away = [link for link in links if link.channel is None]
        now = len(links), frozenset(link.name for link in away)
        if now == self._said:
            return
        self._said = now
        counted = f"{len(links) - len(away):,} of {len(links):,} peers connected"
        failed = [link for link in away if not link.dialling]
        if failed:
            log.warning(counted, away=reasons(failed))
        else:
            log.info(counted)
