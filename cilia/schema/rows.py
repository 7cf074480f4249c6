"""Row types that only tables need."""

from __future__ import annotations

import msgspec

from cilia.model.endpoint import NamedPort
from cilia.model.ids import EndpointId


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


class CidrGroupRow(msgspec.Struct, frozen=True, kw_only=True):
    """A CiliumCIDRGroup: prefixes in canonical text, sorted."""

    name: str
    labels: dict[str, str] = {}
    prefixes: tuple[str, ...] = ()


class ServiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What control needs of a Service."""

    namespace: str
    name: str
    labels: dict[str, str] = {}
    selector: dict[str, str] = {}
    """Empty: its backends are listed by hand, in EndpointSlices."""


class EndpointSliceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What control needs of an EndpointSlice."""

    namespace: str
    name: str
    service: str
    addresses: tuple[str, ...] = ()
    """Of all its endpoints, canonical text, sorted."""


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
