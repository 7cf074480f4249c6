"""The underlay: a bridge in the fabric's namespace, one veth pair per node, a host of the outside world.

    node-1 eth0 ── node-1 ┐
    node-2 eth0 ── node-2 ┤ br0 (172.18.0.1, fd00:172:18::1)   fabric   outside0 ── eth0 outside
                          ┘                                    203.0.113.1       203.0.113.2

The fabric routes between the bridge and the outside and knows no pod addresses, as a real underlay. All links
are made inside the lab's namespaces, so the machine's own never changes.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pyroute2 import IPRoute

from cilia.lab import kernel
from cilia.lab.plan import OUTSIDE_HOST, OUTSIDE_V4, OUTSIDE_V6, UNDERLAY_V4, UNDERLAY_V6, LabPlan, NodePlan

MTU = 1500
BRIDGE = "br0"
_NODAD = 0x02
"""IFA_F_NODAD of linux/if_addr.h: the address is usable at once."""


def build(plan: LabPlan) -> None:
    """Make all namespaces and links of the lab; raises OSError or NetlinkError."""
    Path(plan.netns_dir).mkdir(mode=0o700, exist_ok=True)
    for path in (plan.fabric, plan.outside, *(node.netns for node in plan.nodes)):
        kernel.create_network(path)
    with kernel.inside_network(plan.fabric), IPRoute() as route:
        _routing_sysctls()
        _up(route, "lo")
        route.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_mcast_snooping=0)
        _addresses(route, BRIDGE, f"{UNDERLAY_V4}1", f"{UNDERLAY_V6}1")
        _up(route, BRIDGE)
        _pair(route, "outside0", plan.outside)
        _addresses(route, "outside0", f"{OUTSIDE_V4}1", f"{OUTSIDE_V6}1")
        _up(route, "outside0")
        for node in plan.nodes:
            _pair(route, node.name, node.netns)
            route.link("set", index=_index(route, node.name), master=_index(route, BRIDGE))
            _up(route, node.name)
    _finish_host(plan.outside, *OUTSIDE_HOST, f"{OUTSIDE_V4}1", f"{OUTSIDE_V6}1")
    for node in plan.nodes:
        _finish_node(node)


def listen(netns: str, address: str, port: int) -> socket.socket:
    """Return a listening TCP socket inside another namespace."""
    with kernel.inside_network(netns):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=512)


def _pair(route: IPRoute, name: str, netns: str) -> None:
    """Make a veth pair whose far end is `eth0` in `netns`."""
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        peer = {"ifname": "eth0", "net_ns_fd": descriptor, "mtu": MTU}
        route.link("add", ifname=name, kind="veth", mtu=MTU, peer=peer)
    finally:
        os.close(descriptor)


def _finish_node(node: NodePlan) -> None:
    with kernel.inside_network(node.netns):
        _routing_sysctls()
    _finish_host(node.netns, node.ipv4, node.ipv6, f"{UNDERLAY_V4}1", f"{UNDERLAY_V6}1")


def _finish_host(netns: str, ipv4: str, ipv6: str, gateway4: str, gateway6: str) -> None:
    with kernel.inside_network(netns), IPRoute() as route:
        _up(route, "lo")
        kernel.write_sysctl("net/ipv6/conf/eth0/accept_ra", 0)
        _addresses(route, "eth0", ipv4, ipv6)
        _up(route, "eth0")
        route.route("add", family=socket.AF_INET, dst="default", gateway=gateway4)
        route.route("add", family=socket.AF_INET6, dst="default", gateway=gateway6)


def _addresses(route: IPRoute, name: str, ipv4: str, ipv6: str) -> None:
    index = _index(route, name)
    route.addr("add", index=index, address=ipv4, prefixlen=24)
    route.addr("add", index=index, address=ipv6, prefixlen=64, flags=_NODAD)


def _up(route: IPRoute, name: str) -> None:
    route.link("set", index=_index(route, name), state="up")


def _index(route: IPRoute, name: str) -> int:
    return int(route.link_lookup(ifname=name)[0])


def _routing_sysctls() -> None:
    kernel.write_sysctl("net/ipv4/ip_forward", 1)
    kernel.write_sysctl("net/ipv6/conf/all/forwarding", 1)
