"""CiliumNodes into `nodes`.

What is wrong in one is left out and told, the rest stands: without the node, its pods could not be reached.
"""

from collections.abc import Callable, Iterable

import msgspec
import structlog

from cilia.cluster.store import CILIUM_NODES, Invalid, decode
from cilia.model.node import Node
from cilia.model.resources.base import AnyObject
from cilia.model.resources.cilium_node import CiliumNode, NodeSpec
from cilia.sources import checks
from cilia.sources.reflector import Translation

log = structlog.get_logger(__name__)

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
    name, spec = node.metadata.name, node.spec
    health = (spec.health.ipv4, spec.health.ipv6) if spec.health else ()
    return Node(
        name=name,
        addresses=usable(name, addresses(spec, UNDERLAY), checks.address),
        router_addresses=usable(name, addresses(spec, ROUTER), checks.address),
        pod_cidrs=usable(name, (spec.ipam.pod_cidrs or ()) if spec.ipam else (), checks.prefix),
        health_addresses=usable(name, (address for address in health if address), checks.address),
        labels=node.metadata.labels or {},
        boot_id=spec.bootid or "",
    )


def usable(node: str, texts: Iterable[str], check: Callable[[str], str]) -> tuple[str, ...]:
    """Return what passes the check, once each; the rest is told."""
    passed: dict[str, None] = {}
    for text in texts:
        try:
            passed[check(text)] = None
        except Invalid as error:
            log.error("part of an object ignored", kind=CILIUM_NODES.kind, name=node, error=str(error))
    return tuple(passed)


def addresses(spec: NodeSpec, types: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses of some types: by type, then IPv4 first, else as listed."""
    found = [
        (types.index(entry.type), ":" in entry.ip, entry.ip)
        for entry in spec.addresses or ()
        if entry.type in types and entry.ip
    ]
    found.sort(key=lambda rank: (rank[1], rank[0]))
    return tuple(ip for _, _, ip in found)
