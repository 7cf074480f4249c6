"""Leader election through a Lease, compatible with other Kubernetes components.

A lease is free when it has no holder, or when it has not changed for its duration by *our* monotonic clock:
clocks of different machines are never compared.

Source: Kubernetes reference, Leases; the algorithm of client-go's leader election.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
import structlog

from cilia.cluster import store as cluster
from cilia.cluster.store import LEASES, Store, StoreError
from cilia.kit.clock import Clock
from cilia.kit.tasks import TaskGroup
from cilia.model.resources.base import ObjectMeta
from cilia.model.resources.core import Lease, LeaseSpec
from cilia.operator.settings import ElectionSettings

log = structlog.get_logger(__name__)


class Sighting(msgspec.Struct, frozen=True):
    """What a lease said, and when we first saw it say so (monotonic seconds)."""

    holder: str
    renewed: str
    at: float


def sight(before: Sighting | None, spec: LeaseSpec, now: float) -> Sighting:
    """Note what a lease says; unchanged, it keeps its first time."""
    holder, renewed = spec.holder_identity or "", spec.renew_time or ""
    if before is not None and (before.holder, before.renewed) == (holder, renewed):
        return before
    return Sighting(holder, renewed, now)


def claim(
    spec: LeaseSpec, sighting: Sighting, settings: ElectionSettings, now: float, stamp: str
) -> LeaseSpec | None:
    """Return the lease to write to lead (on), or None while another operator holds it."""
    mine = sighting.holder == settings.identity
    duration = spec.lease_duration_seconds or settings.lease_duration
    if not mine and sighting.holder and now < sighting.at + duration:
        return None
    return LeaseSpec(
        holder_identity=settings.identity,
        lease_duration_seconds=round(settings.lease_duration),
        acquire_time=spec.acquire_time if mine else stamp,
        renew_time=stamp,
        lease_transitions=(spec.lease_transitions or 0) + (0 if mine else 1),
    )


def micro_time(wall: float) -> str:
    """Return a time as Leases carry it: RFC 3339 with exactly six decimals."""
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Elector:
    """Runs work while it leads. `leading` tells whether it does; `heard` when the store last answered."""

    def __init__(self, store: Store, settings: ElectionSettings, clock: Clock) -> None:
        self.leading = False
        self.heard: float | None = None
        self._store = store
        self._settings = settings
        self._clock = clock
        self._sighting: Sighting | None = None
        self._problem = ""

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait to lead, then work until leadership is lost, for ever. Cancelled, it gives the lease back.

        `work` is cancelled when the lease is lost; when it ends by itself or fails, `run` does too.
        """
        while True:
            while not await self._try(self._settings.renew_deadline):  # noqa: ASYNC110 - remote
                await asyncio.sleep(self._settings.retry_period)
            log.info("leading", identity=self._settings.identity)
            try:
                if await self._lead(work):
                    return
            finally:
                await self._release()

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Work and renew; returns whether the work ended by itself, rather than the leadership."""
        self.leading = True
        async with TaskGroup() as tasks:
            working = asyncio.ensure_future(work())
            renewing = tasks.spawn("renew lease", self._renew())
            try:
                await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.leading = False
                ended = working.done()
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
            if ended:
                working.result()
            return ended

    async def _renew(self) -> None:
        """Return when the lease could not be renewed in time or is another's."""
        deadline = self._clock.monotonic() + self._settings.renew_deadline
        while (left := deadline - self._clock.monotonic()) > 0:
            await asyncio.sleep(min(self._settings.retry_period, left))
            asked = self._clock.monotonic()
            if await self._try(max(deadline - asked, 0.0)):
                deadline = asked + self._settings.renew_deadline
            elif self._sighting is not None and self._sighting.holder != self._settings.identity:
                log.warning("the lease is another's", holder=self._sighting.holder)
                return
        log.warning("the lease could not be renewed in time", error=self._problem)

    async def _try(self, limit: float) -> bool:
        """Attempt to get or keep the lease, for `limit` seconds; returns whether it is ours now."""
        try:
            async with asyncio.timeout(limit):
                held = await self._attempt()
        except (StoreError, TimeoutError) as error:
            self._failed(str(error) or "no answer in time")
            return False
        self.heard = self._clock.monotonic()
        self._problem = ""
        return held

    async def _attempt(self) -> bool:
        settings, now = self._settings, self._clock.monotonic()
        stamp = micro_time(self._clock.wall())
        try:
            raw = await self._store.get(LEASES, settings.name, namespace=settings.namespace)
        except cluster.NotFound:
            fresh = claim(LeaseSpec(), Sighting("", "", now), settings, now, stamp)
            await self._create(fresh or LeaseSpec())
            self._sighting = Sighting(settings.identity, stamp, now)
            return True
        lease = cluster.decode(raw, Lease)
        self._sighting = sight(self._sighting, lease.spec, now)
        wanted = claim(lease.spec, self._sighting, settings, now, stamp)
        if wanted is None:
            return False
        await self._write(lease, wanted)
        self._sighting = Sighting(settings.identity, stamp, now)
        return True

    async def _create(self, spec: LeaseSpec) -> None:
        meta = ObjectMeta(name=self._settings.name, namespace=self._settings.namespace)
        body = cluster.encode(LEASES, Lease(metadata=meta, spec=spec))
        await self._store.create(LEASES, body, namespace=self._settings.namespace)

    async def _write(self, lease: Lease, spec: LeaseSpec) -> None:
        """Write only if nobody wrote since we read: of two who try, one gets Conflict."""
        body = cluster.encode(LEASES, Lease(metadata=lease.metadata, spec=spec))
        await self._store.replace(LEASES, self._settings.name, body, namespace=self._settings.namespace)

    async def _release(self) -> None:
        """Give the lease back, so that the next operator need not wait; losing this race is no loss."""
        settings = self._settings
        try:
            async with asyncio.timeout(settings.retry_period):
                raw = await self._store.get(LEASES, settings.name, namespace=settings.namespace)
                lease = cluster.decode(raw, Lease)
                if lease.spec.holder_identity == settings.identity:
                    stamp = micro_time(self._clock.wall())
                    freed = msgspec.structs.replace(
                        lease.spec, holder_identity="", lease_duration_seconds=1, renew_time=stamp
                    )
                    await self._write(lease, freed)
                    log.info("lease released")
        except (StoreError, TimeoutError) as error:
            log.warning("the lease was not released, others wait until it ends", error=str(error))

    def _failed(self, problem: str) -> None:
        if problem != self._problem:
            log.warning("lease not reached", error=problem)
        self._problem = problem
