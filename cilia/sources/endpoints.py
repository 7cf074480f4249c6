"""CiliumEndpoints of other nodes into `remote_endpoints`."""

from collections.abc import Container

import msgspec

from cilia.cluster.store import CILIUM_ENDPOINTS, decode
from cilia.model.endpoint import NamedPort, RemoteEndpoint
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.resources.base import AnyObject
from cilia.model.resources.cilium_endpoint import CiliumEndpoint, EndpointStatus
from cilia.sources.reflector import Translation


def endpoints(own_addresses: Container[str]) -> Translation[tuple[str, str], RemoteEndpoint]:
    """Translate the endpoints whose node has none of `own_addresses`."""

    def row(raw: msgspec.Raw) -> RemoteEndpoint | None:
        endpoint = decode(raw, CiliumEndpoint)
        status = endpoint.status
        if status is None or status.networking is None or status.identity is None:
            return None
        node = status.networking.node or ""
        if not node or node in own_addresses or not status.identity.id:
            return None
        return RemoteEndpoint(
            namespace=endpoint.metadata.namespace,
            name=endpoint.metadata.name,
            identity=IdentityId(status.identity.id),
            node_ip=node,
            addresses=_addresses(status),
            labels=Labels.parse(status.identity.labels or ()),
            named_ports=_named_ports(status),
        )

    return Translation(CILIUM_ENDPOINTS, row, key)


def key(any_object: AnyObject) -> tuple[str, str]:
    """Namespace and name."""
    return any_object.metadata.namespace, any_object.metadata.name


def _addresses(status: EndpointStatus) -> tuple[str, ...]:
    pairs = status.networking.addressing if status.networking else ()
    return tuple(address for pair in pairs for address in (pair.ipv4, pair.ipv6) if address)


def _named_ports(status: EndpointStatus) -> tuple[NamedPort, ...]:
    return tuple(
        NamedPort(port.name, port.port, port.protocol or "TCP")
        for port in status.named_ports or ()
        if port.name and port.port
    )
