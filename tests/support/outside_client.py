"""Two nodes whose services a client outside asks for, with real sockets.

        ┌ client x
switch ─┼ node one ── pod_a, pod_b
        └ node two ── pod_c
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from tests.support.datapath_world import World
from tests.support.service_world import Balancer, balancing
from tests.support.traffic_nodes import NODES, ONE, PREFIX, TWO, ip, namespaces, running, wire_host, wire_pod

CLIENT, SWITCH = f"{PREFIX}x", f"{PREFIX}w"
CLIENT4, CLIENT6 = "192.0.2.9", "2001:db8:f::9"
VIRTUAL4, VIRTUAL6 = "198.51.100.80", "2001:db8:80::80"
NODE6 = {1: "2001:db8:f::1", 2: "2001:db8:f::2"}
ASKED, SERVED = 30080, 7777
A, C = ONE.pod("a"), TWO.pod("c")
VIRTUAL = {4: f"{VIRTUAL4}@{ASKED}", 6: f"{VIRTUAL6}@{ASKED}"}


class Backend(msgspec.Struct, frozen=True):
    """Who serves, and whom it takes for the client."""

    where: str
    ipv4: str
    ipv6: str
    seen4: str = CLIENT4
    seen6: str = CLIENT6
    flags: tuple[str, ...] = ("OUTSIDE",)


BACKENDS = {
    "a pod of the node": Backend("a", A.ipv4, A.ipv6),
    "a pod of another node": Backend("c", C.ipv4, C.ipv6, "10.0.1.1", "fd00:1::1"),
    "a pod that answers itself": Backend("c", C.ipv4, C.ipv6, flags=("OUTSIDE", "DSR")),
    "the node": Backend("n1", ONE.underlay, NODE6[1]),
    "another node": Backend("n2", TWO.underlay, NODE6[2], ONE.underlay, NODE6[1]),
}


def wire() -> None:
    """Join nodes and client by a switch."""
    ip(SWITCH, *["link", "add", "switch", "type", "bridge"])
    ip(SWITCH, *["link", "set", "switch", "up"])
    for space in (ONE.namespace, TWO.namespace, CLIENT):
        port = space.removeprefix(PREFIX)
        ip(space, *f"link add eth type veth peer name {port} netns {SWITCH}".split())
        ip(SWITCH, *f"link set {port} up master switch".split())
    for command in (
        f"addr add {CLIENT4}/24 dev eth",
        f"addr add {CLIENT6}/64 dev eth nodad",
        "link set eth up",
        f"route add {VIRTUAL4} via {ONE.underlay}",
        f"-6 route add {VIRTUAL6} via {NODE6[1]}",
    ):
        ip(CLIENT, *command.split())
    for node in NODES:
        wire_host(node, f"{node.underlay}/24", f"{NODE6[node.number]}/64")


def know(world: World, number: int) -> None:
    """What the small worlds lack: IPv6 addresses of nodes, and hosts that serve."""
    value = world.layout.value
    world.settings["ipv6"] = world.address(NODE6[number])
    world.settings["mtu"][0] = 1450
    world.settings["flags"][0] |= value("NODE_HOST_BACKENDS")
    world.add_endpoint(NODE6[number], identity=1, flags=value("ENDPOINT_HOST"))
    flags = value("IPCACHE_HOST_ADDRESS") | value("IPCACHE_UNDERLAY")
    world.add_prefix(f"{NODE6[3 - number]}/128", 6, flags=flags)


@contextmanager
def nodes_and_client() -> Iterator[dict[str, World]]:
    """The worlds of the nodes, by name."""
    pods = [(node, node.pod(name)) for node in NODES for name in node.pods]
    names = [node.namespace for node in NODES] + [f"{PREFIX}{pod.name}" for _, pod in pods]
    with namespaces([SWITCH, CLIENT, *names]):
        wire()
        for node, pod in pods:
            wire_pod(node, pod)
        with running(ONE, TWO) as one, running(TWO, ONE) as two:
            know(one, 1)
            know(two, 2)
            yield {"n1": one, "n2": two}


@contextmanager
def balanced(cluster: dict[str, World]) -> Iterator[list[Balancer]]:
    """The services of both nodes, which are the same."""
    with balancing(cluster["n1"]) as one, balancing(cluster["n2"]) as two:
        yield [one, two]


def serve_by(balancers: list[Balancer], backend: Backend, protocol: str) -> None:
    """Have a backend behind the virtual addresses of both families."""
    for balancer in balancers:
        for frontend, address in ((VIRTUAL4, backend.ipv4), (VIRTUAL6, backend.ipv6)):
            balancer.add(frontend, ASKED, (address, SERVED), protocol=protocol, flags=backend.flags)
