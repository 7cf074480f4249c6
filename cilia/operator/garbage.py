"""Garbage: CiliumEndpoints nobody stands behind, CiliumIdentities nobody uses, and in statuses of policies
what nodes said that are gone.

Each look reads the garbage first and its referents after: a referent that is missing in the later list was
gone, or about to go, when the earlier was made. Deletions carry uid and resourceVersion, so that whoever took
an object into use meanwhile keeps it. One object that can't be decoded ends a look: it might be the referent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import UTC, datetime
from typing import Literal, TypeVar

import msgspec
import structlog

from cilia.cluster import store as cluster
from cilia.cluster.store import (
    CILIUM_ENDPOINTS,
    CILIUM_IDENTITIES,
    CILIUM_NODES,
    PODS,
    Preconditions,
    Resource,
    Store,
    StoreError,
    decode,
)
from cilia.kit.clock import Clock
from cilia.model.resources.base import AnyObject, ObjectMeta
from cilia.model.resources.cilium_endpoint import CiliumEndpoint
from cilia.model.resources.cilium_identity import HEARTBEAT_ANNOTATION
from cilia.model.resources.cilium_node import CiliumNode
from cilia.operator.metrics import Metrics
from cilia.operator.settings import GarbageSettings

log = structlog.get_logger(__name__)

POLICIES = (cluster.CILIUM_NETWORK_POLICIES, cluster.CILIUM_CLUSTERWIDE_NETWORK_POLICIES)
"""Kinds in whose status nodes speak."""

T = TypeVar("T")
Name = tuple[str, str]


class Sweep(msgspec.Struct, frozen=True):
    """What to do with one identity."""

    meta: ObjectMeta
    action: Literal["mark", "unmark", "delete"]


class Words(msgspec.Struct, frozen=True):
    """What nodes say of a policy, by their names."""

    nodes: dict[str, msgspec.Raw] | None = None


class Policy(msgspec.Struct, frozen=True):
    """A policy object, as far as nodes speak of it."""

    metadata: ObjectMeta
    status: Words | None = None


def orphans(
    endpoints: Iterable[CiliumEndpoint], pods: dict[Name, str], nodes: Collection[str]
) -> list[CiliumEndpoint]:
    """Return the endpoints whose pod is gone (or another of the same name) or whose node is gone.

    `pods` is namespace and name to uid, `nodes` the addresses of all CiliumNodes.
    """
    return [endpoint for endpoint in endpoints if _is_orphan(endpoint, pods, nodes)]


def _is_orphan(endpoint: CiliumEndpoint, pods: dict[Name, str], nodes: Collection[str]) -> bool:
    meta = endpoint.metadata
    uid = pods.get((meta.namespace, meta.name))
    if uid is None:
        return True
    owner = next((owner for owner in meta.owner_references or () if owner.kind == "Pod"), None)
    if owner is not None and owner.uid != uid:
        return True
    networking = endpoint.status.networking if endpoint.status is not None else None
    return networking is not None and bool(networking.node) and networking.node not in nodes


def sweeps(
    identities: Iterable[ObjectMeta], used: Collection[str], now: float, timeout: float
) -> list[Sweep]:
    """Return what to do with each identity that is not as it should be.

    An unused identity is marked with the time at which it was found so; marked for `timeout` seconds, it is
    deleted; a mark on a used one is taken away. `used` are the numbers as names, `now` is wall time.
    """
    found: list[Sweep] = []
    for meta in identities:
        marked = _seconds((meta.annotations or {}).get(HEARTBEAT_ANNOTATION))
        if meta.name in used:
            if HEARTBEAT_ANNOTATION in (meta.annotations or {}):
                found.append(Sweep(meta, "unmark"))
        elif marked is None:
            found.append(Sweep(meta, "mark"))
        elif now >= marked + timeout:
            found.append(Sweep(meta, "delete"))
    return found


def _seconds(text: str | None) -> float | None:
    """Return the wall-clock seconds of an RFC 3339 time, None when it is none."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None


class GarbageCollector:
    """Looks for garbage now and then."""

    def __init__(self, store: Store, settings: GarbageSettings, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._metrics = metrics

    async def run_endpoints(self) -> None:
        """Collect endpoints for ever."""
        await self._repeat("endpoints", self._settings.endpoint_interval, self.collect_endpoints)

    async def run_words(self) -> None:
        """Collect what nodes that are gone said of policies, for ever."""
        await self._repeat("policy statuses", self._settings.endpoint_interval, self.collect_words)

    async def run_identities(self) -> None:
        """Collect identities for ever."""
        await self._repeat("identities", self._settings.identity_interval, self.collect_identities)

    async def _repeat(self, what: str, interval: float, look: Callable[[], Awaitable[None]]) -> None:
        while interval > 0:
            try:
                await look()
            except StoreError as error:
                log.warning("garbage not collected", of=what, error=str(error))
            await asyncio.sleep(interval)

    async def collect_endpoints(self) -> None:
        """Look once; raises StoreError when the lists can't be had."""
        endpoints = await self._all(CILIUM_ENDPOINTS, CiliumEndpoint)
        pods = {
            (pod.metadata.namespace, pod.metadata.name): pod.metadata.uid
            for pod in await self._all(PODS, AnyObject)
        }
        nodes = {
            address.ip
            for node in await self._all(CILIUM_NODES, CiliumNode)
            for address in node.spec.addresses or ()
            if address.ip
        }
        for endpoint in orphans(endpoints, pods, nodes)[: self._settings.limit]:
            self._metrics.endpoint_collected(await self._delete(CILIUM_ENDPOINTS, endpoint.metadata))

    async def collect_words(self) -> None:
        """Look once; raises StoreError when the lists can't be had."""
        policies = {resource: await self._all(resource, Policy) for resource in POLICIES}
        nodes = {node.metadata.name for node in await self._all(CILIUM_NODES, AnyObject)}
        todo = [
            (resource, policy.metadata, gone)
            for resource, objects in policies.items()
            for policy in objects
            if (gone := sorted(((policy.status and policy.status.nodes) or {}).keys() - nodes))
        ]
        for resource, meta, gone in todo[: self._settings.limit]:
            await self._silence(resource, meta, gone)

    async def _silence(self, resource: Resource, meta: ObjectMeta, gone: list[str]) -> None:
        change = {"status": {"nodes": dict.fromkeys(gone)}}
        try:
            await self._store.patch(
                resource,
                meta.name,
                msgspec.json.encode(change),
                namespace=meta.namespace or None,
                subresource="status",
            )
        except cluster.NotFound:
            return
        except cluster.Unavailable:
            raise
        except StoreError as error:
            # One that the server refuses to change must not keep the others as they are.
            log.warning("nodes that are gone stay in a status", name=meta.name, error=str(error))
            return
        log.info("nodes that are gone taken out of a status", kind=resource.kind, name=meta.name, nodes=gone)

    async def collect_identities(self) -> None:
        """Look once; raises StoreError when the lists can't be had."""
        started = self._clock.monotonic()
        try:
            deleted, alive = await self._sweep_identities()
        except StoreError:
            self._metrics.identity_run(False, self._clock.monotonic() - started)
            raise
        self._metrics.identity_run(True, self._clock.monotonic() - started)
        self._metrics.identities(alive=alive, deleted=deleted)

    async def _sweep_identities(self) -> tuple[int, int]:
        """Return how many were deleted and how many are left."""
        identities = [entry.metadata for entry in await self._all(CILIUM_IDENTITIES, AnyObject)]
        used = {
            str(endpoint.status.identity.id)
            for endpoint in await self._all(CILIUM_ENDPOINTS, CiliumEndpoint)
            if endpoint.status is not None and endpoint.status.identity is not None
        }
        deleted = 0
        todo = sweeps(identities, used, self._clock.wall(), self._settings.identity_timeout)
        for sweep in todo[: self._settings.limit]:
            if sweep.action == "delete":
                deleted += await self._delete(CILIUM_IDENTITIES, sweep.meta)
            else:
                await self._annotate(sweep)
        return deleted, len(identities) - deleted

    async def _all(self, resource: Resource, model: type[T]) -> list[T]:
        return [decode(raw, model) for raw in (await self._store.list(resource)).items]

    async def _annotate(self, sweep: Sweep) -> None:
        stamp = datetime.fromtimestamp(self._clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        annotations = {HEARTBEAT_ANNOTATION: stamp if sweep.action == "mark" else None}
        metadata = {"resourceVersion": sweep.meta.resource_version, "annotations": annotations}
        try:
            await self._store.patch(
                CILIUM_IDENTITIES, sweep.meta.name, msgspec.json.encode({"metadata": metadata})
            )
        except (cluster.Conflict, cluster.NotFound):
            return

    async def _delete(self, resource: Resource, meta: ObjectMeta) -> bool:
        """Delete an object that is still as it was judged; returns whether it is gone."""
        conditions = Preconditions(uid=meta.uid or None, resource_version=meta.resource_version or None)
        try:
            await self._store.delete(
                resource, meta.name, namespace=meta.namespace or None, preconditions=conditions
            )
        except cluster.NotFound:
            return True
        except StoreError as error:
            log.info("not deleted", kind=resource.kind, name=meta.name, error=str(error))
            return False
        log.info("deleted as garbage", kind=resource.kind, namespace=meta.namespace, name=meta.name)
        return True
