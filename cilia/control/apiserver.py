"""Where the API server is: a rule about the entity kube-apiserver means these addresses.

What this node dials is one address of it, in a pod often the Service's alone; the others are those that the
API server itself publishes, as the slices of Service `default/kubernetes`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cilia.control.nodes import known_nodes
from cilia.model.node import Node
from cilia.schema import Inputs
from cilia.tables.table import Table

SERVICE = ("default", "kubernetes")


class ApiServerAddress(msgspec.Struct, frozen=True):
    """An address of the API server."""

    address: str
    outside: bool
    """It is no node's: a part of the world, that rules about the world and its prefixes mean, too."""


def addresses_table() -> Table[str, ApiServerAddress]:
    """An empty table of them."""
    return Table("apiservers", lambda row: row.address)


class ApiServerNode:
    """nodes + endpoint_slices -> `addresses`."""

    def __init__(self, inputs: Inputs, *, dialled: Iterable[str] = (), own: Node | None = None) -> None:
        """`dialled`: by which this node reaches it; `own`: what this node knows of itself."""
        self.addresses = addresses_table()
        self._inputs = inputs
        self._dialled = frozenset(dialled)
        self._own = own
        self._nodes = inputs.nodes.cursor()
        self._slices = inputs.endpoint_slices.cursor()
        self._settle()

    def step(self) -> None:
        """Look again when nodes or slices changed."""
        if self._nodes.pending or self._slices.pending:
            self._nodes.take()
            self._slices.take()
            self._settle()

    def _settle(self) -> None:
        nodes = known_nodes(self._inputs.nodes, self._own)
        of_nodes = {address for node in nodes for address in (*node.addresses, *node.router_addresses)}
        slices = self._inputs.endpoint_slices.by("service", SERVICE)
        published = {address for row in slices for address in row.addresses}
        self.addresses.replace(
            ApiServerAddress(address, outside=address not in of_nodes)
            for address in sorted(self._dialled | published)
        )
