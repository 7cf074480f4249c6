"""Row types that only tables need."""

from __future__ import annotations

import msgspec

from cilia.model.endpoint import NamedPort


class PodRow(msgspec.Struct, frozen=True, kw_only=True):
    """What control needs of a Pod."""

    namespace: str
    name: str
    uid: str = ""
    node: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    service_account: str = "default"
    named_ports: tuple[NamedPort, ...] = ()
    host_network: bool = False
    owner_kind: str = ""
    """Of the controlling owner, as the workload users think in (Deployment for a ReplicaSet's pods)."""
    owner_name: str = ""


class NamespaceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What control needs of a Namespace."""

    name: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
