"""Row types that only tables need."""

from __future__ import annotations

import msgspec

from cilia.model.endpoint import NamedPort
from cilia.model.ids import EndpointId
from cilia.model.service import Backend, Frontend, Protocol


class HostPort(msgspec.Struct, frozen=True, order=True):
    """A port of the node that a container wants."""

    port: int
    container_port: int
    protocol: Protocol
    address: str = ""
    """hostIP; empty: every address of the node."""


class PodRow(msgspec.Struct, frozen=True, kw_only=True):
    """What control needs of a Pod."""

    namespace: str
    name: str
    uid: str = ""
    node: str = ""
    labels: dict[str, str] = {}
    service_account: str = "default"
    named_ports: tuple[NamedPort, ...] = ()
    host_network: bool = False
    owner_kind: str = ""
    """Of the controlling owner, as the workload users think in (Deployment for a ReplicaSet's pods)."""
    owner_name: str = ""
    addresses: tuple[str, ...] = ()
    """Of its status, canonical text; a pod on the host's network has the node's."""
    host_ports: tuple[HostPort, ...] = ()
    ready: bool = True
    """Its condition Ready: redirects go to ready pods only."""
    terminating: bool = False


class CidrGroupRow(msgspec.Struct, frozen=True, kw_only=True):
    """A CiliumCIDRGroup: prefixes in canonical text, sorted."""

    name: str
    labels: dict[str, str] = {}
    prefixes: tuple[str, ...] = ()


class ServicePort(msgspec.Struct, frozen=True):
    """A port of a Service. `node_port`: 0 is none."""

    name: str
    port: int
    protocol: Protocol
    node_port: int = 0


class ServiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What control needs of a Service. Fields as in core/v1 ServiceSpec; addresses in canonical text."""

    namespace: str
    name: str
    created: str = ""
    """metadata.creationTimestamp: of two that want one node port the older has it; empty: not known, the
    youngest."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    """Those under service.cilium.io/ and service.kubernetes.io/ only."""
    selector: dict[str, str] = {}
    """Empty: its backends are listed by hand, in EndpointSlices."""
    type: str = "ClusterIP"
    headless: bool = False
    cluster_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    """From the status: those with ipMode VIP."""
    ports: tuple[ServicePort, ...] = ()
    external_local: bool = False
    """externalTrafficPolicy: Local."""
    internal_local: bool = False
    """internalTrafficPolicy: Local."""
    affinity: int = 0
    """Seconds of sessionAffinity: ClientIP; 0: none."""
    source_ranges: tuple[str, ...] = ()
    """Canonical, sorted; what is no prefix stands as it was written, and lets nobody in."""
    health_check_port: int = 0
    traffic_distribution: str = ""
    """PreferClose, PreferSameZone, PreferSameNode or empty."""
    problems: tuple[str, ...] = ()
    """Sentences about what could not be read, each with its field; it is left out of the row."""


class SlicePort(msgspec.Struct, frozen=True):
    """A port of all endpoints of a slice."""

    name: str
    port: int
    protocol: Protocol


class SliceEndpoint(msgspec.Struct, frozen=True):
    """One endpoint of a slice; conditions that are not told count as discovery.k8s.io/v1 says."""

    addresses: tuple[str, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone: str = ""
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()


class EndpointSliceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What control needs of an EndpointSlice."""

    namespace: str
    name: str
    service: str
    addresses: tuple[str, ...] = ()
    """Of all its endpoints, canonical text, sorted."""
    annotations: dict[str, str] = {}
    """Those under service.cilium.io/ only: weights."""
    ipv6: bool = False
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[SlicePort, ...] = ()
    problems: tuple[str, ...] = ()
    """Sentences about what could not be read, each with its field; it is left out of the row."""


class RedirectPort(msgspec.Struct, frozen=True, order=True):
    """A port of a redirect's frontend, or of its backends."""

    port: int
    protocol: Protocol
    name: str = ""


class LocalRedirectRow(msgspec.Struct, frozen=True, kw_only=True):
    """A CiliumLocalRedirectPolicy (cilium.io/v2)."""

    namespace: str
    name: str
    address: str = ""
    """addressMatcher: the frontend's address; empty: `service` matches."""
    service: str = ""
    """serviceMatcher: a ClusterIP Service of the same namespace."""
    frontend_ports: tuple[RedirectPort, ...] = ()
    """Empty with a service: all of its ports."""
    backend_labels: dict[str, str] = {}
    backend_expressions: tuple[dict[str, object], ...] = ()
    """matchExpressions of localEndpointSelector, as read."""
    backend_ports: tuple[RedirectPort, ...] = ()
    skip_from_backend: bool = False
    problem: str = ""
    """Why it has no effect, with the field at fault."""


class LocalServiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A service written by hand on this node (`cilia service update`)."""

    frontend: Frontend
    backends: tuple[Backend, ...] = ()
    name: str = ""
    algorithm: str = ""
    """As in Algorithm; empty: the node's."""
    mode: str = ""
    """As in ForwardingMode; empty: the node's."""
    affinity: int = 0
    source_ranges: tuple[str, ...] = ()
    local_only: bool = False
    """Only backends of this node, and outside clients keep their address."""


class EndpointOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Live switches of one endpoint."""

    endpoint: EndpointId
    audit: bool | None = None
    """None: as the annotation of its namespace says."""


class NamespaceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What control needs of a Namespace."""

    name: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
