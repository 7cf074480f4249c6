"""CiliumEndpoints of other nodes into `remote_endpoints`."""

from collections.abc import Container

import msgspec

from cilia.cluster.store import CILIUM_ENDPOINTS, Invalid, decode
from cilia.model.endpoint import NamedPort, RemoteEndpoint
from cilia.model.identity import CLUSTER_FIRST, HEALTH, INGRESS, INIT, LOCAL_CIDR_FIRST, UNMANAGED
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.resources.base import AnyObject
from cilia.model.resources.cilium_endpoint import CiliumEndpoint, EndpointStatus
from cilia.sources import checks
from cilia.sources.reflector import Translation

RESERVED = frozenset({UNMANAGED, HEALTH, INIT, INGRESS})
"""Reserved identities an endpoint may have; with the others it would pass for a host or for the world."""


def endpoints(own_addresses: Container[str]) -> Translation[tuple[str, str], RemoteEndpoint]:
    """Translate the endpoints whose node has none of `own_addresses`."""

    def row(raw: msgspec.Raw) -> RemoteEndpoint | None:
        endpoint = decode(raw, CiliumEndpoint)
        status = endpoint.status
        if status is None or status.networking is None or status.identity is None:
            return None
        if not status.networking.node or not status.identity.id:
            return None
        node = checks.address(status.networking.node)
        if node in own_addresses:
            return None
        return RemoteEndpoint(
            namespace=endpoint.metadata.namespace,
            name=endpoint.metadata.name,
            identity=_identity(status.identity.id),
            node_ip=node,
            addresses=_addresses(status),
            labels=Labels.parse(status.identity.labels or ()),
            named_ports=_named_ports(status),
        )

    return Translation(CILIUM_ENDPOINTS, row, key)


def key(any_object: AnyObject) -> tuple[str, str]:
    """Namespace and name."""
    return any_object.metadata.namespace, any_object.metadata.name


def _identity(number: int) -> IdentityId:
    if number not in RESERVED and not CLUSTER_FIRST <= number < LOCAL_CIDR_FIRST:
        raise Invalid(f"{number} is no identity an endpoint can have")
    return IdentityId(number)


def _addresses(status: EndpointStatus) -> tuple[str, ...]:
    pairs = status.networking.addressing if status.networking else ()
    return tuple(checks.address(text) for pair in pairs for text in (pair.ipv4, pair.ipv6) if text)


def _named_ports(status: EndpointStatus) -> tuple[NamedPort, ...]:
    return checks.named_ports((port.name, port.port, port.protocol) for port in status.named_ports or ())
