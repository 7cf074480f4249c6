"""The cluster's nodes: their underlay addresses, and the routes of this node's stack to pods."""

from __future__ import annotations

from cilia.model.node import Node, NodeAddress, Route
from cilia.schema import Desired, Inputs


class NodesNode:
    """nodes -> node_addresses, routes."""

    def __init__(self, inputs: Inputs, desired: Desired, *, node: str, device: str, mtu: int) -> None:
        self._inputs = inputs
        self._desired = desired
        self._node = node
        self._device = device
        self._mtu = mtu
        self._nodes = inputs.nodes.cursor()

    def step(self) -> None:
        """Recompute when any node changed: there are few."""
        if not self._nodes.pending:
            return
        self._nodes.take()
        own = self._inputs.nodes.get(self._node)
        self._desired.node_addresses.replace(
            NodeAddress(address=address, node=node.name, local=node.name == self._node, mtu=self._mtu)
            for node in self._inputs.nodes
            for address in node.addresses
        )
        self._desired.routes.replace(
            route for node in self._inputs.nodes for route in self._routes(node, own) if own is not None
        )

    def _routes(self, node: Node, own: Node | None) -> list[Route]:
        if own is None:
            return []
        return [
            Route(
                prefix=cidr,
                device=self._device,
                source=_same_family(own.router_addresses, cidr),
                mtu=self._mtu,
            )
            for cidr in node.pod_cidrs
        ]


def _same_family(addresses: tuple[str, ...], cidr: str) -> str:
    """The first of `addresses` of the family of `cidr`, or an empty string."""
    return next((a for a in addresses if (":" in a) == (":" in cidr)), "")
