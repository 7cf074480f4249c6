"""What this node tells the cluster: after each step who has something to say is woken.

step ─► look ─┬─► endpoints   ─► CiliumEndpoints
              ├─► statuses    ─► conditions of policies
              ├─► identities  ─► CiliumIdentities that endpoints wait for
              └─► upcoming    ─► CiliumIdentities of pods whose ADD is about to come
"""

from __future__ import annotations

import asyncio

from cilia.apps.agent.identities import IdentityAllocator, PodIdentities
from cilia.apps.agent.persist import each, persist
from cilia.apps.agent.publish import EndpointPublisher
from cilia.apps.agent.statuses import StatusPublisher
from cilia.control.graph import ControlGraph
from cilia.kit.clock import Clock
from cilia.kit.tasks import TaskGroup
from cilia.schema import Inputs


class Publishing:
    """Four writers, each with its own work to do and its own way to try again."""

    def __init__(
        self,
        inputs: Inputs,
        graph: ControlGraph,
        identities: IdentityAllocator,
        endpoints: EndpointPublisher,
        statuses: StatusPublisher,
        clock: Clock,
    ) -> None:
        self._graph = graph
        self._identities = identities
        self._endpoints = endpoints
        self._statuses = statuses
        self._upcoming = PodIdentities(inputs, graph.endpoints.labels_of, identities)
        self._clock = clock
        self._endpoints_wake = asyncio.Event()
        self._statuses_wake = asyncio.Event()
        self._identities_wake = asyncio.Event()
        self._pods_wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        """Until statuses are due that wait for more."""

    def start(self, tasks: TaskGroup) -> None:
        """Write from now on, for ever."""
        for name, what, wake, work in (
            ("publish endpoints", "CiliumEndpoints", self._endpoints_wake, self._publish_endpoints),
            ("publish statuses", "policy statuses", self._statuses_wake, self._publish_statuses),
            ("allocate identities", "CiliumIdentities", self._identities_wake, self._allocate),
            ("foresee identities", "CiliumIdentities of pods", self._pods_wake, self._upcoming.allocate),
        ):
            tasks.spawn(name, persist(what, wake, work))

    def look(self) -> None:
        """To be called after each step."""
        if self._endpoints.pending:
            self._endpoints_wake.set()
        if self._statuses.pending:
            self._statuses_wake.set()
        if self._graph.endpoints.wanted:
            self._identities_wake.set()
        if self._upcoming.pending:
            self._pods_wake.set()

    async def _publish_endpoints(self) -> None:
        await each(self._endpoints.dirty(), self._endpoints.publish, self._endpoints.retry)

    async def _publish_statuses(self) -> None:
        try:
            await self._statuses.publish()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._statuses.due is not None:
                pause = max(0.0, self._statuses.due - self._clock.monotonic())
                self._timer = asyncio.get_running_loop().call_later(pause, self._statuses_wake.set)

    async def _allocate(self) -> None:
        await each(list(self._graph.endpoints.wanted), self._identities.allocate, lambda _: None)
