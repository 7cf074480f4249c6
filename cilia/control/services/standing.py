"""Where this node stands: what the meaning of a Service depends on besides the Service."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cilia.control.services.settings import ServiceSettings
from cilia.model.node import Node

ZONE = "topology.kubernetes.io/zone"
"""The label that names a node's zone."""

ANY_ADDRESS = {False: "0.0.0.0", True: "::"}
"""By whether it is IPv6: as a node port's, it stands for every address of every node."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """This node. A change of it changes every Service."""

    name: str
    zone: str = ""
    labels: dict[str, str] = {}
    addresses: tuple[str, ...] = ()
    """Where its node ports are."""


def standing(name: str, nodes: Iterable[Node], settings: ServiceSettings) -> Standing:
    """This node as the cluster knows it; without a word of the cluster, just its name."""
    own = next((node for node in nodes if node.name == name), None)
    if own is None:
        return Standing(name=name, addresses=settings.node_port_addresses)
    return Standing(
        name=name,
        zone=own.labels.get(ZONE, ""),
        labels=own.labels,
        addresses=settings.node_port_addresses or own.addresses,
    )


def is_ipv6(address: str) -> bool:
    """The family of an address in canonical text."""
    return ":" in address
