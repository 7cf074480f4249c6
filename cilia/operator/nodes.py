"""Pod prefixes for nodes: CiliumNode.spec.ipam.podCIDRs, and why a node has none in its status.

The decision is `NodePools.assign` over all CiliumNodes; here it is turned into patches and carried out
whenever a node changes.
"""

import asyncio

import msgspec
import structlog

from cilia.cluster import store as cluster
from cilia.cluster.store import CILIUM_NODES, Store, StoreError, decode
from cilia.control.ipam import NodeClaim, NodeGrant, NodePools
from cilia.kit.backoff import Backoff
from cilia.kit.tasks import TaskGroup
from cilia.model.resources.base import AnyObject
from cilia.model.resources.cilium_node import CiliumNode
from cilia.operator.metrics import Metrics
from cilia.sources.reflector import Reflector, Translation
from cilia.tables.table import Table

log = structlog.get_logger(__name__)


class NodePatch(msgspec.Struct, frozen=True):
    """A write that brings a node to its grant. `resource_version` is what the decision was made from."""

    name: str
    resource_version: str
    cidrs: tuple[str, ...] | None
    """New spec.ipam.podCIDRs; None leaves them."""
    error: str | None
    """New status.ipam.operator-status.error, empty to clear it; None leaves it."""


def claim(node: CiliumNode) -> NodeClaim:
    """Return what a node has."""
    meta, ipam = node.metadata, node.spec.ipam
    return NodeClaim(
        name=meta.name,
        created=meta.creation_timestamp or "",
        cidrs=(ipam.pod_cidrs or ()) if ipam is not None else (),
    )


def told(node: CiliumNode) -> str:
    """Return the error the node's status shows."""
    ipam = node.status.ipam if node.status is not None else None
    return (ipam.operator_status.error or "") if ipam is not None and ipam.operator_status is not None else ""


def patches(nodes: list[CiliumNode], grants: dict[str, NodeGrant]) -> list[NodePatch]:
    """Return the writes that are needed, in the order of `nodes`."""
    needed = []
    for node in nodes:
        grant = grants[node.metadata.name]
        cidrs = grant.cidrs if grant.cidrs != claim(node).cidrs and not grant.error else None
        error = grant.error if grant.error != told(node) else None
        if cidrs is not None or error is not None:
            needed.append(NodePatch(node.metadata.name, node.metadata.resource_version, cidrs, error))
    return needed


def _translation() -> Translation[str, CiliumNode]:
    def key(any_object: AnyObject) -> str:
        return any_object.metadata.name

    return Translation(CILIUM_NODES, lambda raw: decode(raw, CiliumNode), key)


class NodeAllocator:
    """Keeps every CiliumNode supplied with prefixes."""

    def __init__(self, store: Store, pools: NodePools, metrics: Metrics) -> None:
        self._store = store
        self._pools = pools
        self._metrics = metrics
        self._nodes: Table[str, CiliumNode] = Table("cilium_nodes", lambda node: node.metadata.name)
        self._reflector = Reflector(store, self._nodes, _translation())
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Follow the nodes for ever."""
        async with TaskGroup() as tasks:
            tasks.spawn("reflect ciliumnodes", self._reflector.run())
            tasks.spawn("supply nodes", self._supply())
            await tasks.failed.wait()

    async def _supply(self) -> None:
        """Wait for the complete list, because what is not known to be taken would be given away again."""
        self._nodes.listen(self._wake.set)
        backoff = Backoff()
        await self._reflector.synced.wait()
        while True:
            self._wake.clear()
            if await self.step():
                backoff.reset()
                await self._wake.wait()
            else:
                await asyncio.sleep(backoff.next())

    async def step(self) -> bool:
        """Supply all nodes once; returns False when something has to be repeated."""
        nodes = list(self._nodes)
        grants = self._pools.assign(claim(node) for node in nodes)
        self._measure(grants)
        done = True
        for patch in patches(nodes, grants):
            done = await self._apply(patch) and done
        return done

    async def _apply(self, patch: NodePatch) -> bool:
        """Write one patch; a node that changed or went meanwhile comes again through the watch."""
        metadata = {"resourceVersion": patch.resource_version}
        try:
            if patch.cidrs is not None:
                body = {"metadata": metadata, "spec": {"ipam": {"podCIDRs": patch.cidrs}}}
                await self._store.patch(CILIUM_NODES, patch.name, msgspec.json.encode(body))
                log.info("prefixes given", node=patch.name, cidrs=patch.cidrs)
            if patch.error is not None:
                status = {"operator-status": {"error": patch.error or None}}
                await self._store.patch(
                    CILIUM_NODES,
                    patch.name,
                    msgspec.json.encode({"status": {"ipam": status}}),
                    subresource="status",
                )
                if patch.error:
                    log.error("node can't be supplied", node=patch.name, error=patch.error)
        except (cluster.Conflict, cluster.NotFound):
            return True
        except StoreError as error:
            log.warning("node not written", node=patch.name, error=str(error))
            return False
        return True

    def _measure(self, grants: dict[str, NodeGrant]) -> None:
        failed = sum(1 for grant in grants.values() if grant.error)
        self._metrics.nodes(total=len(grants), in_deficit=failed)
        for version in self._pools.families:
            claims = [NodeClaim(name=grant.name, cidrs=grant.cidrs) for grant in grants.values()]
            self._metrics.free_prefixes(version, self._pools.free(claims, version))
