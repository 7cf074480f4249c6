"""Nodes of the cluster."""

from __future__ import annotations

import msgspec


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node, as its CiliumNode tells."""

    name: str
    addresses: tuple[str, ...] = ()
    """Underlay addresses (InternalIP, ExternalIP), IPv4 first."""
    router_addresses: tuple[str, ...] = ()
    """CiliumInternalIP: the address the node itself has among the pods."""
    pod_cidrs: tuple[str, ...] = ()
    health_addresses: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    boot_id: str = ""


class IpcacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who is behind a prefix (map `ipcache`)."""

    prefix: str
    identity: int
    tunnel_endpoint: str = ""
    """Underlay address of the node that hosts it; empty: here, or not in the cluster."""
    flags: int = 0
    """enum ipcache_flags of bpf/abi/ipcache.h"""
    cluster: int = 0
    namespace: str = ""
    """With `pod`: who has the address, for people; not in the kernel."""
    pod: str = ""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route the node needs to reach pods from its own stack."""

    prefix: str
    device: str
    gateway: str = ""
    source: str = ""
    mtu: int = 0


class NodeAddress(msgspec.Struct, frozen=True, kw_only=True):
    """An underlay address of a node of the cluster (map `nodes`)."""

    address: str
    node: str
    local: bool
    mtu: int = 0
