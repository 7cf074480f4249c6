"""The operator as a whole: what it does while it leads."""

import asyncio

import structlog

from cilia.cluster.store import Store, StoreError
from cilia.control.ipam import NodePools
from cilia.kit.backoff import Backoff
from cilia.kit.clock import Clock
from cilia.kit.tasks import TaskGroup
from cilia.operator import crds
from cilia.operator.garbage import GarbageCollector
from cilia.operator.leader import Elector
from cilia.operator.metrics import Metrics
from cilia.operator.nodes import NodeAllocator
from cilia.operator.settings import ElectionSettings, GarbageSettings

log = structlog.get_logger(__name__)


class Operator:
    """One operator process, leading or waiting to."""

    def __init__(
        self,
        store: Store,
        *,
        pools: NodePools,
        election: ElectionSettings,
        garbage: GarbageSettings,
        clock: Clock,
        metrics: Metrics,
        install_definitions: bool = True,
    ) -> None:
        self.elector = Elector(store, election, clock)
        self._store = store
        self._pools = pools
        self._election = election
        self._garbage = garbage
        self._clock = clock
        self._metrics = metrics
        self._install_definitions = install_definitions

    async def run(self) -> None:
        """Lead when possible, until cancelled; then the lease is given back."""
        await self.elector.run(self.lead)

    async def lead(self) -> None:
        """Do all chores until cancelled."""
        self._metrics.leading(True)
        try:
            if self._install_definitions:
                await self._install()
            collector = GarbageCollector(self._store, self._garbage, self._clock, self._metrics)
            async with TaskGroup() as tasks:
                tasks.spawn("nodes", NodeAllocator(self._store, self._pools, self._metrics).run())
                tasks.spawn("endpoint garbage", collector.run_endpoints())
                tasks.spawn("policy status garbage", collector.run_words())
                tasks.spawn("identity garbage", collector.run_identities())
                await tasks.failed.wait()
        finally:
            self._metrics.leading(False)

    async def _install(self) -> None:
        backoff = Backoff()
        while True:
            try:
                return await crds.install(self._store)
            except StoreError as error:
                log.warning("definitions not installed", error=str(error))
                await asyncio.sleep(backoff.next())

    def why_unhealthy(self) -> str:
        """Return why the operator can't do its work, or an empty string.

        It is healthy while it waits for another leader, as long as it hears the store.
        """
        heard = self.elector.heard
        if heard is None:
            return "the API server has not answered yet"
        silent = self._clock.monotonic() - heard
        if silent > self._election.lease_duration:
            return f"the API server has not answered for {silent:.0f} s"
        return ""
