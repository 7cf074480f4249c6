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


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the data path knows of its node and may change while it runs (struct node_settings of
    bpf/abi/node.h, field by field)."""

    ipv4: str = ""
    """Underlay address that masqueraded traffic leaves with."""
    ipv6: str = ""
    router_ipv4: str = ""
    """The pods' gateway."""
    router_ipv6: str = ""
    flags: int = 0
    """enum node_flags, without NODE_READER_ASLEEP, which belongs to the ring reader, and NODE_HOST_POLICY,
    which follows the host's policy."""
    host_ifindex: int = 0
    """The host's end of the node's own veth pair."""
    net_ifindex: int = 0
    """Its other end, where the host's packets surface."""
    tunnel_ifindex: int = 0
    native_ifindex: int = 0
    """The device of the default route."""
    mtu: int = 1500
    """Of the pods."""
    host_mac: str = ""
    """Of `host_ifindex`."""
    aggregation: int = 3
    """enum aggregation; 3: medium."""
    report_interval: int = 5
    """Seconds between two reports of one established flow."""
    report_tcp_flags: int = 0x07
    """TCP flags whose first sight is reported: FIN, SYN and RST."""
    drop_rate: int = 100
    """Drop reports per second, endpoint and reason; 0: unlimited."""
    drop_burst: int = 200
    event_rate: int = 0
    """Events per second of each of the two rings; 0: as many as there are."""
    event_burst: int = 0
    """Of these, at once after a pause."""
    nat_first_port: int = 49152
    """With the next: outside ports of masqueraded flows. The node's own sockets must not get them, or a pod
    that chooses the port of such a socket would get its answers."""
    nat_last_port: int = 65535
    tunnel_port: int = 8472
    cluster: int = 0
    ct_quota: int = 0
    """Conntrack entries one endpoint may open; 0: unlimited."""
    node_port_first: int = 30000
    node_port_last: int = 32767
    hash_seed: int = 0x4B3F_91C7
    """Of Maglev: the same on every node, or one flow would find two backends."""
    netns: int = 0
    """Cookie of the node's own network namespace (SO_NETNS_COOKIE)."""
