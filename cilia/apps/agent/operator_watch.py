"""Whether an operator leads: asked of its Lease when somebody wants to know."""

from __future__ import annotations

import asyncio
from datetime import datetime

from cilia.api.types import Component, Health
from cilia.cluster import store as cluster
from cilia.cluster.store import Store
from cilia.kit.clock import Clock
from cilia.model.resources.core import Lease
from cilia.operator.settings import ElectionSettings

PATIENCE = 0.3
"""Seconds a status page waits for the API server."""
KEPT = 5.0
"""Seconds an answer is good for: probes ask often."""


class OperatorWatch:
    """Answers for status pages, asking the API server at most every few seconds."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lease = ElectionSettings(identity="agent")
        self._said = Component(state=Health.DISABLED)
        self._until = 0.0

    async def state(self) -> Component:
        """Ok and who leads, a warning when nobody does, disabled when none has ever run."""
        if self._clock.monotonic() >= self._until:
            self._said = await self._ask()
            self._until = self._clock.monotonic() + KEPT
        return self._said

    async def _ask(self) -> Component:
        try:
            async with asyncio.timeout(PATIENCE):
                raw = await self._store.get(cluster.LEASES, self._lease.name, namespace=self._lease.namespace)
            spec = cluster.decode(raw, Lease).spec
        except cluster.NotFound:
            return Component(state=Health.DISABLED, msg="no operator has run yet")
        except (cluster.StoreError, TimeoutError) as error:
            sentence = str(error) or "the API server does not answer"
            return Component(state=Health.WARNING, msg=f"unknown: {sentence}")
        age = self._clock.wall() - _seconds(spec.renew_time)
        if not spec.holder_identity or age > (spec.lease_duration_seconds or 0):
            return Component(state=Health.WARNING, msg="no operator leads")
        return Component(state=Health.OK, msg=f"{spec.holder_identity} leads")


def _seconds(text: str | None) -> float:
    """Unix seconds of an RFC 3339 time; 0 when there is none."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return 0.0
