"""A client outside and two nodes on one switch, a pod on each node: Cilia's, and plain kernel routing.

       ┌ client
switch ─┼ node 1 ── pod 1
       └ node 2 ── pod 2         VXLAN between the nodes; the client's way to all pods is node 1
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from bench import services
from bench.netbench import PORT
from bench.topologies import PREFIX, CiliaNode, Pod, in_namespace, ip, namespaces, sysctl, veth
from cilia import abi
from cilia.model.ids import IdentityId
from cilia.model.node import IpcacheEntry
from cilia.model.service import ForwardingMode, FrontendKind, ServiceEntry

NODES = (1, 2)
REMOTE_NODE = 6
TUNNEL, HOST_ADDRESS, UNDERLAY = "IPCACHE_TUNNEL", "IPCACHE_HOST_ADDRESS", "IPCACHE_UNDERLAY"
CLIENT_PORTS = "18000 33999"
"""Fewer than a node has for the translated flows to one backend: closed connections keep theirs a while."""
BEHIND_NODE, BY_NODE, DIRECT = 30_000, 30_100, 30_200
"""Node ports: of the pod on node 1; of the pod on node 2, answered through node 1; the same, answered by
node 2 itself."""


class Network(msgspec.Struct, frozen=True):
    """Names and addresses of one such network."""

    tag: str
    number: int

    def space(self, part: str) -> str:
        """A network namespace: c, w (the switch), n1, n2, p1 or p2."""
        return f"{PREFIX}-{self.tag}{part}"

    def node(self, number: int) -> str:
        """A node's address; the client's is that of node 9."""
        return f"172.30.{self.number}.{number}"

    def pod(self, node: int) -> str:
        """The address of a node's pod."""
        return f"10.{self.number}.{node}.2"

    def gateway(self, node: int) -> str:
        """The node's own address among its pods."""
        return f"10.{self.number}.{node}.1"

    def pods(self, node: int) -> str:
        """The node's prefix."""
        return f"10.{self.number}.{node}.0/24"


@contextmanager
def _wired(network: Network) -> Iterator[None]:
    """Client, switch and nodes with their addresses; the pods have nothing yet."""
    spaces = {part: network.space(part) for part in ("c", "w", "n1", "n2", "p1", "p2")}
    with namespaces(*spaces.values()):
        ip("link", "add", "switch", "type", "bridge", namespace=spaces["w"])
        ip("link", "set", "switch", "up", namespace=spaces["w"])
        for part, number in (("c", 9), ("n1", 1), ("n2", 2)):
            veth(spaces[part], "eth0", spaces["w"], part)
            ip("link", "set", part, "master", "switch", namespace=spaces["w"])
            ip("addr", "add", f"{network.node(number)}/24", "dev", "eth0", namespace=spaces[part])
        for node in NODES:
            ip("route", "add", network.pods(node), "via", network.node(1), namespace=spaces["c"])
        sysctl(spaces["c"], ipv4__ip_local_port_range=CLIENT_PORTS)
        yield


@contextmanager
def plain(number: int) -> Iterator[Network]:
    """Nodes that only route."""
    network = Network("o", number)
    with _wired(network):
        for node, other in (NODES, NODES[::-1]):
            space, pod = network.space(f"n{node}"), network.space(f"p{node}")
            veth(pod, "eth0", space, "pod")
            ip("link", "set", "eth0", "mtu", "1450", namespace=pod)
            ip("addr", "add", f"{network.pod(node)}/24", "dev", "eth0", namespace=pod)
            ip("addr", "add", f"{network.gateway(node)}/24", "dev", "pod", namespace=space)
            ip("route", "add", "default", "via", network.gateway(node), namespace=pod)
            words = f"link add vx type vxlan id 7 dstport 8472 dev eth0 remote {network.node(other)}"
            ip(*words.split(), namespace=space)
            ip("addr", "add", f"10.{number}.9.{node}/24", "dev", "vx", namespace=space)
            ip("link", "set", "vx", "up", namespace=space)
            ip("route", "add", network.pods(other), "via", f"10.{number}.9.{other}", namespace=space)
            sysctl(space, ipv4__ip_forward="1", ipv4__conf__all__rp_filter="0")
        # The answers of the pod on node 2 go back as its requests came.
        ip("route", "add", f"{network.node(9)}/32", "via", f"10.{number}.9.1", namespace=network.space("n2"))
        yield network


@contextmanager
def cilia(number: int) -> Iterator[tuple[Network, list[CiliaNode]]]:
    """Cilia's nodes, with node ports at node 1."""
    network = Network("i", number)
    with _wired(network), ExitStack() as stack:
        nodes = []
        for at in NODES:
            node = CiliaNode(network.space(f"n{at}"), network.pods(at), events=False)
            stack.callback(node.close)
            node.add_pod(Pod(network.space(f"p{at}"), network.pod(at), IdentityId(500 + at), 1))
            nodes.append(node)
        for node, other, at in ((nodes[0], nodes[1], 2), (nodes[1], nodes[0], 1)):
            node.know(other, Pod(network.space(f"p{at}"), network.pod(at), IdentityId(500 + at), 1))
            _know_node(node, network, at)
            for entry in _node_ports(network):
                node.desired.service_entries.put(entry)
            node.apply()
        yield network, nodes


def _know_node(node: CiliaNode, network: Network, other: int) -> None:
    """The other node's own addresses."""
    value = abi.layout().value
    outer, inner = network.node(other), network.gateway(other)
    node.desired.ipcache.put(
        IpcacheEntry(prefix=f"{outer}/32", identity=REMOTE_NODE, flags=value(HOST_ADDRESS) | value(UNDERLAY))
    )
    node.desired.ipcache.put(
        IpcacheEntry(
            prefix=f"{inner}/32",
            identity=REMOTE_NODE,
            tunnel_endpoint=outer,
            flags=value(HOST_ADDRESS) | value(TUNNEL),
        )
    )


def _node_ports(network: Network) -> Iterator[ServiceEntry]:
    for port, pod, mode in (
        (BEHIND_NODE, network.pod(1), ForwardingMode.SNAT),
        (BY_NODE, network.pod(2), ForwardingMode.SNAT),
        (DIRECT, network.pod(2), ForwardingMode.DSR),
    ):
        yield services.entry(
            network.node(1), port, (pod, PORT), kind=FrontendKind.NODE_PORT, outside=True, mode=mode
        )


def reaches(network: Network, port: int) -> bool:
    """Whether a TCP connection of the client to a node port comes about."""
    with in_namespace(network.space("c")):
        client = socket.socket()
    client.settimeout(2.0)
    with client:
        return client.connect_ex((network.node(1), port)) == 0
