"""The cluster's nodes: their underlay addresses, and the routes of this node's stack to pods."""

from __future__ import annotations

import bisect
import ipaddress
from collections.abc import Iterable

import msgspec

from cilia.model.address import IPNetwork
from cilia.model.node import Node, NodeAddress, Route
from cilia.schema import Desired, Inputs


class NodesNode:
    """nodes -> node_addresses, routes."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        *,
        node: str,
        device: str,
        mtu: int,
        own: Node | None = None,
    ) -> None:
        self._inputs = inputs
        self._desired = desired
        self._node = node
        self._own = own
        self._unsaid = own is not None
        self._device = device
        self._mtu = mtu
        self._nodes = inputs.nodes.cursor()

    def step(self) -> None:
        """Recompute when any node changed: there are few."""
        if not (self._nodes.pending or self._unsaid):
            return
        self._nodes.take()
        self._unsaid = False
        nodes = known_nodes(self._inputs.nodes, self._own)
        own = next((node for node in nodes if node.name == self._node), None)
        # The last row of an address stands: nobody else takes ours.
        self._desired.node_addresses.replace(
            NodeAddress(address=address, node=node.name, local=node is own, mtu=self._mtu)
            for node in sorted(nodes, key=lambda node: (node is own, node.name))
            for address in node.addresses
        )
        cidrs = usable_pod_cidrs(nodes, self._node) if own is not None else {}
        self._desired.routes.replace(self._route(cidr, own) for found in cidrs.values() for cidr in found)

    def _route(self, cidr: str, own: Node | None) -> Route:
        routers = own.router_addresses if own is not None else ()
        return Route(prefix=cidr, device=self._device, source=_same_family(routers, cidr), mtu=self._mtu)


def known_nodes(rows: Iterable[Node], own: Node | None) -> list[Node]:
    """What the cluster says of its nodes; of this one, what it knows itself, with the cluster's labels."""
    if own is None:
        return list(rows)
    found = {row.name: row for row in rows}
    told = found.pop(own.name, own)
    return [msgspec.structs.replace(own, labels=told.labels), *found.values()]


def usable_pod_cidrs(nodes: Iterable[Node], own: str) -> dict[str, tuple[str, ...]]:
    """The pod prefixes of each node that hold no node's underlay address, nor others' pods.

    A route to a node's address would lead the tunnels themselves into the tunnel; what overlaps the pods of
    the node `own` is not somebody else's.
    """
    found = list(nodes)
    mine = [ipaddress.ip_network(cidr) for node in found if node.name == own for cidr in node.pod_cidrs]
    underlay: dict[int, list[int]] = {4: [], 6: []}
    for node in found:
        for text in node.addresses:
            address = ipaddress.ip_address(text)
            underlay[address.version].append(int(address))
    for numbers in underlay.values():
        numbers.sort()
    return {
        node.name: tuple(
            cidr
            for cidr in node.pod_cidrs
            if not _holds(ipaddress.ip_network(cidr), underlay)
            and (node.name == own or not any(map(ipaddress.ip_network(cidr).overlaps, mine)))
        )
        for node in found
    }


def _holds(network: IPNetwork, underlay: dict[int, list[int]]) -> bool:
    numbers = underlay[network.version]
    at = bisect.bisect_left(numbers, int(network.network_address))
    return at < len(numbers) and numbers[at] <= int(network.broadcast_address)


def _same_family(addresses: tuple[str, ...], cidr: str) -> str:
    """The first of `addresses` of the family of `cidr`, or an empty string."""
    return next((a for a in addresses if (":" in a) == (":" in cidr)), "")
