"""CiliumNodes into `nodes`."""

import msgspec

from cilia.cluster.store import CILIUM_NODES, decode
from cilia.model.node import Node
from cilia.model.resources.base import AnyObject
from cilia.model.resources.cilium_node import CiliumNode, NodeSpec
from cilia.sources.reflector import Translation

UNDERLAY = ("InternalIP", "ExternalIP")
ROUTER = ("CiliumInternalIP",)


def nodes() -> Translation[str, Node]:
    """Translate all nodes of the cluster."""
    return Translation(CILIUM_NODES, row, key)


def key(any_object: AnyObject) -> str:
    """The name."""
    return any_object.metadata.name


def row(raw: msgspec.Raw) -> Node:
    """Return the row of a node."""
    node = decode(raw, CiliumNode)
    spec = node.spec
    health = (spec.health.ipv4, spec.health.ipv6) if spec.health else ()
    return Node(
        name=node.metadata.name,
        addresses=addresses(spec, UNDERLAY),
        router_addresses=addresses(spec, ROUTER),
        pod_cidrs=(spec.ipam.pod_cidrs or ()) if spec.ipam else (),
        health_addresses=tuple(address for address in health if address),
        labels=node.metadata.labels or {},
        boot_id=spec.bootid or "",
    )


def addresses(spec: NodeSpec, types: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses of some types: by type, then IPv4 first, else as listed."""
    found = [
        (types.index(entry.type), ":" in entry.ip, entry.ip)
        for entry in spec.addresses or ()
        if entry.type in types and entry.ip
    ]
    found.sort(key=lambda rank: (rank[1], rank[0]))
    return tuple(ip for _, _, ip in found)
