"""The underlay: a bridge in the fabric's namespace, one veth pair per node, a host of the outside world.

    node-1 eth0 ── node-1 ┐
    node-2 eth0 ── node-2 ┤ br0 (172.18.0.1, fd00:172:18::1)   fabric   outside0 ── eth0 outside
                          ┘                                    203.0.113.1       203.0.113.2

The fabric routes between the bridge and the outside and knows no pod addresses, as a real underlay; the
addresses of load balancers (198.51.100.0/24, 2001:db8:198::/64) it sends to all nodes alike. All links
are made inside the lab's namespaces, so the machine's own never changes.
"""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from cilia.lab import kernel
from cilia.lab.plan import (
    BALANCED_V4,
    BALANCED_V6,
    OUTSIDE_HOST,
    OUTSIDE_V4,
    OUTSIDE_V6,
    UNDERLAY_V4,
    UNDERLAY_V6,
    LabPlan,
    NodePlan,
)

MTU = 1500
BRIDGE = "br0"


class FabricError(Exception):
    """The links can't be made; the message says why."""


def build(plan: LabPlan) -> None:
    """Make all namespaces and links of the lab; raises OSError or FabricError."""
    Path(plan.netns_dir).mkdir(mode=0o700, exist_ok=True)
    for path in (plan.fabric, plan.outside, *(node.netns for node in plan.nodes)):
        kernel.create_network(path)
    _allow_routing(plan.fabric)
    with kernel.inside_network(plan.fabric):
        for family in ("ipv4", "ipv6"):
            # By ports, too: one client's flows are spread.
            kernel.write_sysctl(f"net/{family}/fib_multipath_hash_policy", 1)
    _ip(plan.fabric, fabric_links(plan))
    gateway = (f"{OUTSIDE_V4}1", f"{OUTSIDE_V6}1")
    _ip(plan.outside, host_addresses(OUTSIDE_HOST, gateway))
    for node in plan.nodes:
        _finish_node(node)


def listen(netns: str, address: str, port: int) -> socket.socket:
    """Return a listening TCP socket inside another namespace."""
    with kernel.inside_network(netns):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=512)


def fabric_links(plan: LabPlan) -> list[str]:
    """Return what to tell ip(8) in the fabric's namespace. Addresses are usable at once (`nodad`)."""
    lines = [
        "link set lo up",
        f"link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0",
        f"address add {UNDERLAY_V4}1/24 dev {BRIDGE}",
        f"address add {UNDERLAY_V6}1/64 dev {BRIDGE} nodad",
        f"link set {BRIDGE} up",
        _pair("outside0", plan.outside),
        f"address add {OUTSIDE_V4}1/24 dev outside0",
        f"address add {OUTSIDE_V6}1/64 dev outside0 nodad",
        "link set outside0 up",
    ]
    for node in plan.nodes:
        lines += [_pair(node.name, node.netns), f"link set {node.name} master {BRIDGE} up"]
    return [*lines, *balanced_routes(plan)]


def balanced_routes(plan: LabPlan) -> list[str]:
    """Return the routes of load balancers' addresses: to all nodes alike."""
    four = " ".join(f"nexthop via {node.ipv4}" for node in plan.nodes)
    six = " ".join(f"nexthop via {node.ipv6}" for node in plan.nodes)
    return [f"route add {BALANCED_V4} {four}", f"route add {BALANCED_V6} {six}"]


def host_addresses(own: tuple[str, str], gateway: tuple[str, str]) -> list[str]:
    """Return what to tell ip(8) in a host's namespace: addresses and default routes of both families."""
    return [
        "link set lo up",
        f"address add {own[0]}/24 dev eth0",
        f"address add {own[1]}/64 dev eth0 nodad",
        "link set eth0 up",
        f"route add default via {gateway[0]}",
        f"route add ::/0 via {gateway[1]}",
    ]


def _pair(name: str, netns: str) -> str:
    """A veth pair whose far end is `eth0` in `netns`."""
    return f"link add {name} mtu {MTU} type veth peer name eth0 mtu {MTU} netns {netns}"


def _finish_node(node: NodePlan) -> None:
    _allow_routing(node.netns)
    _ip(node.netns, host_addresses((node.ipv4, node.ipv6), (f"{UNDERLAY_V4}1", f"{UNDERLAY_V6}1")))


def _ip(netns: str, lines: list[str]) -> None:
    command = ["nsenter", f"--net={netns}", "--", "ip", "-batch", "-"]
    done = subprocess.run(command, input="\n".join(lines), text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise FabricError(f"the lab's links can't be made: {done.stderr.strip()}")


def _allow_routing(netns: str) -> None:
    with kernel.inside_network(netns):
        kernel.write_sysctl("net/ipv4/ip_forward", 1)
        kernel.write_sysctl("net/ipv6/conf/all/forwarding", 1)
