"""This node in the cluster: its CiliumNode, its pod prefixes, its addresses for pods."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence

import msgspec
import structlog

from cilia.apps.agent.attach import PoolExhausted
from cilia.cluster import store as cluster
from cilia.cluster.store import Store
from cilia.control.ipam import AddressPool, PoolError
from cilia.kit.backoff import Backoff
from cilia.kit.clock import Clock
from cilia.model.endpoint import Attachment
from cilia.model.node import Node
from cilia.model.resources import cilium_node as cn
from cilia.model.resources.base import AnyObject, ObjectMeta
from cilia.sources.reflector import Translation

log = structlog.get_logger(__name__)

POLL = 0.1
"""Seconds between two looks for the operator's answer; only at start."""


class BadPrefix(Exception):
    """The node can't give out addresses from what it was given; the text says what to mend."""


class PodAddresses:
    """The address pools of this node, one per family, under one owner name for both."""

    def __init__(self, prefixes: Sequence[str], clock: Clock) -> None:
        """Raises BadPrefix for what is no range of pod addresses."""
        self._clock = clock
        self._pools: dict[int, AddressPool] = {}
        for prefix in prefixes:
            try:
                network = ipaddress.ip_network(prefix)
                self._pools.setdefault(network.version, AddressPool(network))
            except (ValueError, PoolError) as error:
                raise BadPrefix(
                    f"the pod prefix {prefix!r} can't be used ({error}): mend --ipv4-pod-cidr, "
                    "--ipv6-pod-cidr or spec.ipam.podCIDRs of this node's CiliumNode"
                ) from error

    def router(self, version: int) -> str:
        """The node's own address among its pods, or an empty string."""
        pool = self._pools.get(version)
        return str(pool.router) if pool is not None else ""

    def usage(self, version: int) -> tuple[int, int]:
        """Addresses in use, and how many there are."""
        pool = self._pools.get(version)
        return (len(pool), pool.capacity) if pool is not None else (0, 0)

    def allocate(self, owner: str) -> tuple[str, str]:
        """An address of each family the node has. Raises PoolExhausted, and nothing is taken then."""
        held: list[str] = []
        try:
            for version in (4, 6):
                pool = self._pools.get(version)
                held.append(str(pool.allocate(owner, self._clock.monotonic())) if pool is not None else "")
        except PoolError as error:
            self.release(owner)
            raise PoolExhausted(str(error)) from error
        return held[0], held[1]

    def restore(self, attachment: Attachment) -> None:
        """Note the addresses of an endpoint that was here before."""
        owner = f"{attachment.container_id}/{attachment.interface}"
        for text in (attachment.ipv4, attachment.ipv6):
            if not text:
                continue
            address = ipaddress.ip_address(text)
            pool = self._pools.get(address.version)
            try:
                if pool is not None:
                    pool.claim(address, owner)
            except PoolError as error:
                log.warning("address outside of this node's prefixes", address=text, reason=str(error))

    def release(self, owner: str) -> None:
        """Give back all addresses of an owner."""
        for pool in self._pools.values():
            for address, holder in list(pool.owners()):
                if holder == owner:
                    pool.release(address, self._clock.monotonic(), owner=owner)


def own_labels(name: str) -> Translation[str, Node]:
    """Translate the Kubernetes Node of this name, as far as its labels go."""

    def row(raw: msgspec.Raw) -> Node:
        return Node(name=name, labels=cluster.decode(raw, AnyObject).metadata.labels or {})

    return Translation(cluster.NODES, row, lambda _: name, field_selector=f"metadata.name={name}")


class Registration:
    """Writes this node's CiliumNode and waits for what the operator puts into it."""

    def __init__(self, store: Store, name: str, addresses: Sequence[str], boot_id: str) -> None:
        self._store = store
        self._name = name
        self.addresses = tuple(addresses)
        self._boot_id = boot_id
        self.labels: dict[str, str] | None = None
        """The node's, which its object is to have; None: nobody tells, and the object keeps its own."""

    async def pod_prefixes(self) -> list[str]:
        """Make the node known and return the prefixes the operator gives it.

        Waits as long as it takes: without prefixes there are no pods.
        """
        backoff = Backoff(limit=2.0)
        told = False
        while True:
            try:
                node = await self._ensure(())
                prefixes = node.spec.ipam.pod_cidrs if node.spec and node.spec.ipam else None
                if prefixes:
                    return list(prefixes)
                if not told:
                    log.info(
                        "waiting for the operator to give this node its pod prefixes: where there is none, "
                        "give them with --ipv4-pod-cidr and --ipv6-pod-cidr"
                    )
                    told = True
                await asyncio.sleep(POLL)
            except cluster.StoreError as error:
                log.warning("the node is not registered yet", error=str(error))
                await asyncio.sleep(backoff.next())

    async def keep(self, prefixes: Sequence[str], routers: Sequence[str], *, fixed: bool) -> None:
        """Once: make the CiliumNode say what this node uses; tries until the store lets it.

        A node whose object was deleted gets it back with the prefixes its pods have. Other prefixes than
        those in use are not adopted while pods hold addresses: that takes a restart without them.
        `fixed`: the prefixes are this node's own setting, and the object follows.
        """
        backoff = Backoff(limit=5.0)
        while True:
            try:
                node = await self._ensure(prefixes)
                held = (node.spec.ipam.pod_cidrs if node.spec and node.spec.ipam else None) or ()
                if not held or (fixed and set(held) != set(prefixes)):
                    await self._merge({"spec": {"ipam": {"podCIDRs": list(prefixes)}}})
                elif set(held) != set(prefixes):
                    log.error(
                        "the node was given other pod prefixes: drain it and restart the agent",
                        given=list(held),
                        used=list(prefixes),
                    )
                await self._announce(node, routers)
                return
            except cluster.StoreError as error:
                log.warning("the node's object is not up to date yet", error=str(error))
                await asyncio.sleep(backoff.next())

    async def stay(
        self, due: asyncio.Event, prefixes: Sequence[str], routers: Sequence[str], *, fixed: bool
    ) -> None:
        """`keep` whenever it is due, for ever."""
        while True:
            await due.wait()
            due.clear()
            await self.keep(prefixes, routers, fixed=fixed)

    async def _announce(self, node: cn.CiliumNode, routers: Sequence[str]) -> None:
        """Add the node's own addresses among its pods, and its labels."""
        change: dict[str, object] = {}
        wanted = self._wanted(routers)
        if node.spec is None or node.spec.addresses != wanted:
            change["spec"] = {"addresses": msgspec.to_builtins(wanted)}
        before = node.metadata.labels or {}
        if self.labels is not None and before != self.labels:
            # In a merge patch null removes (RFC 7386).
            change["metadata"] = {"labels": dict.fromkeys(before) | self.labels}
        if change:
            await self._merge(change)

    async def _ensure(self, prefixes: Sequence[str]) -> cn.CiliumNode:
        """The node's object, made with `prefixes` when there is none."""
        node = await self._get()
        if node is not None:
            return node
        body = cn.CiliumNode(
            metadata=ObjectMeta(name=self._name),
            spec=cn.NodeSpec(
                addresses=self._wanted(()),
                bootid=self._boot_id or None,
                ipam=cn.NodeIPAM(pod_cidrs=tuple(prefixes) or None),
            ),
        )
        raw = await self._store.create(cluster.CILIUM_NODES, cluster.encode(cluster.CILIUM_NODES, body))
        return cluster.decode(raw, cn.CiliumNode)

    async def _get(self) -> cn.CiliumNode | None:
        try:
            return cluster.decode(await self._store.get(cluster.CILIUM_NODES, self._name), cn.CiliumNode)
        except cluster.NotFound:
            return None

    async def _merge(self, change: dict[str, object]) -> None:
        await self._store.patch(cluster.CILIUM_NODES, self._name, msgspec.json.encode(change))

    def _wanted(self, routers: Sequence[str]) -> tuple[cn.NodeAddress, ...]:
        return (
            *(cn.NodeAddress(type="InternalIP", ip=address) for address in self.addresses),
            *(cn.NodeAddress(type="CiliumInternalIP", ip=address) for address in routers if address),
        )
