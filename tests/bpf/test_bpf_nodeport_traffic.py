"""Real sockets of a client outside, asking one node for services whose backends are on either.

        ┌ client x
switch ─┼ node one ── pod_a, pod_b
        └ node two ── pod_c
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.support.datapath_world import DENY_ALL, INGRESS, Rule, World
from tests.support.service_world import Balancer, balancing
from tests.support.traffic_nodes import (
    NODES,
    ONE,
    PREFIX,
    TWO,
    ask,
    inside,
    ip,
    namespaces,
    running,
    talk,
    wire_pod,
)

pytestmark = pytest.mark.root

CLIENT, SWITCH = f"{PREFIX}x", f"{PREFIX}w"
CLIENT4, CLIENT6 = "192.0.2.9", "2001:db8:f::9"
VIRTUAL4, VIRTUAL6 = "198.51.100.80", "2001:db8:80::80"
NODE6 = {1: "2001:db8:f::1", 2: "2001:db8:f::2"}
ASKED, SERVED = 30080, 7777
HOST_NUMBER, HOST_SUBJECT = 65_535, 9
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
        wire_node(node.namespace, node.number, node.underlay)


def wire_node(space: str, number: int, underlay: str) -> None:
    for command in (
        f"addr add {underlay}/24 dev eth",
        f"addr add {NODE6[number]}/64 dev eth nodad",
        "link set eth up",
        "link add vx type vxlan external dstport 8472 nolearning",
        "link set vx up mtu 1450",
        "link add host type veth peer name net",
        "link set host up",
        "link set net up",
        f"addr add 10.0.{number}.1/32 dev host",
        f"addr add fd00:{number}::1/128 dev host nodad",
        f"route add 10.0.0.0/16 dev host src 10.0.{number}.1 mtu 1450",
        f"route add fd00::/16 dev host src fd00:{number}::1 mtu 1450",
    ):
        ip(space, *command.split())
    with inside(space):
        for family in ("ipv4", "ipv6"):
            Path(f"/proc/sys/net/{family}/conf/all/forwarding").write_text("1")


def know(world: World, number: int) -> None:
    """What the small worlds lack: IPv6 addresses of nodes, and hosts that serve."""
    value = world.layout.value
    world.settings["ipv6"] = world.address(NODE6[number])
    world.settings["mtu"][0] = 1450
    world.settings["flags"][0] |= value("NODE_HOST_BACKENDS")
    world.add_endpoint(NODE6[number], identity=1, flags=value("ENDPOINT_HOST"))
    flags = value("IPCACHE_HOST_ADDRESS") | value("IPCACHE_UNDERLAY")
    world.add_prefix(f"{NODE6[3 - number]}/128", 6, flags=flags)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, World]]:
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


@pytest.fixture
def balancers(cluster: dict[str, World]) -> Iterator[list[Balancer]]:
    """Of both nodes: every node knows all services."""
    with balancing(cluster["n1"]) as one, balancing(cluster["n2"]) as two:
        yield [one, two]


def serve_by(balancers: list[Balancer], backend: Backend, protocol: str) -> None:
    for balancer in balancers:
        for frontend, address in ((VIRTUAL4, backend.ipv4), (VIRTUAL6, backend.ipv6)):
            balancer.add(frontend, ASKED, (address, SERVED), protocol=protocol, flags=backend.flags)


def exchange(client: str, backend: Backend, kind: str, family: int, size: int) -> str:
    """`size` bytes each way; the address the server saw, or what went wrong."""
    address = backend.ipv4 if family == 4 else backend.ipv6
    return talk(client, backend.where, address, kind, size, asked=VIRTUAL[family])


FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@FAMILIES
@pytest.mark.parametrize("kind", BACKENDS)
def test_streams_and_datagrams(balancers: list[Balancer], kind: str, family: int) -> None:
    """The last datagrams come in pieces; the flow's first packet has told of the frontend by then."""
    backend = BACKENDS[kind]
    seen = backend.seen4 if family == 4 else backend.seen6
    serve_by(balancers, backend, "tcp")
    assert exchange("x", backend, "tcp", family, 300_000) == seen
    serve_by(balancers, backend, "udp")
    for size in (1200, 1420, 5000):
        if "DSR" not in backend.flags or size < 1300:
            assert exchange("x", backend, "udp", family, size) == seen


@FAMILIES
@pytest.mark.parametrize("kind", BACKENDS)
def test_closed_ports_are_told(balancers: list[Balancer], kind: str, family: int) -> None:
    """A reset, and an ICMP error that quotes what the client had sent."""
    for protocol in ("tcp", "udp"):
        serve_by(balancers, BACKENDS[kind], protocol)
        assert ask("x", protocol, VIRTUAL[family]) == "refused"


@FAMILIES
def test_nobody_serves(balancers: list[Balancer], family: int) -> None:
    address = VIRTUAL4 if family == 4 else VIRTUAL6
    for protocol in ("tcp", "udp"):
        balancers[0].add(address, ASKED, protocol=protocol, flags=("OUTSIDE", "REJECT"))
        assert ask("x", protocol, VIRTUAL[family]) == "refused"


@pytest.mark.parametrize("kind", ["a pod of the node", "a pod of another node", "the node"])
def test_a_node_asks_another(balancers: list[Balancer], kind: str) -> None:
    """Also for what it has itself."""
    ip(TWO.namespace, "route", "replace", VIRTUAL4, "via", ONE.underlay)
    backend = BACKENDS[kind]
    serve_by(balancers[:1], backend, "tcp")
    seen = TWO.underlay if backend.seen4 == CLIENT4 else backend.seen4
    assert exchange("n2", backend, "tcp", 4, 100_000) == seen


def test_the_nodes_own_traffic(balancers: list[Balancer]) -> None:
    """Services change nothing for who asks the node itself, or is asked by it."""
    serve_by(balancers, BACKENDS["a pod of the node"], "tcp")
    assert talk("x", "n1", ONE.underlay, "tcp", 100_000) == CLIENT4
    assert talk("n1", "x", CLIENT4, "tcp", 100_000) == ONE.underlay


def test_nothing_is_left_open(cluster: dict[str, World], balancers: list[Balancer]) -> None:
    """Both ways of each flow are known as long as each other."""
    serve_by(balancers, BACKENDS["a pod of another node"], "tcp")
    exchange("x", BACKENDS["a pod of another node"], "tcp", 4, 1000)
    keys, values = cluster["n1"].dataplane.maps["snat"].dump()
    assert sorted(int(key["way"]) for key in keys) == [1, 2]
    assert np.ptp(values["seen"]) <= 1


@pytest.fixture
def closed_host(cluster: dict[str, World]) -> Iterator[World]:
    """The host of node one may neither be talked to nor talk itself."""
    world = cluster["n1"]
    value = world.layout.value
    addresses = (ONE.underlay, NODE6[1], "10.0.1.1", "fd00:1::1")
    for address in addresses:
        fields = {"id": HOST_NUMBER, "subject": HOST_SUBJECT}
        world.add_endpoint(address, identity=1, flags=value("ENDPOINT_HOST"), **fields)
    world.set_policy(HOST_SUBJECT, DENY_ALL)
    world.settings["flags"][0] |= value("NODE_HOST_POLICY")
    try:
        yield world
    finally:
        world.settings["flags"][0] &= ~np.uint32(value("NODE_HOST_POLICY"))
        world.forget_flows()
        for address in addresses:
            world.add_endpoint(address, identity=1, flags=value("ENDPOINT_HOST"))


@pytest.mark.parametrize("kind", BACKENDS)
def test_the_hosts_policy(balancers: list[Balancer], closed_host: World, kind: str) -> None:
    """It says nothing of what the node passes on, though that leaves with the node's address."""
    backend = BACKENDS[kind]
    for balancer in balancers:
        balancer.add(ONE.underlay, ASKED, (backend.ipv4, SERVED), flags=backend.flags)
        balancer.add("0.0.0.0", ASKED, (backend.ipv4, SERVED), flags=backend.flags)
    asked = f"{ONE.underlay}@{ASKED}"
    if kind == "the node":
        assert talk("x", "n1", ONE.underlay, "tcp", asked=asked) == "silence\n"
        closed_host.set_policy(HOST_SUBJECT, (*DENY_ALL, Rule(INGRESS, protocol=6, port=SERVED, bits=24)))
    assert talk("x", backend.where, backend.ipv4, "tcp", 1000, asked=asked) == backend.seen4
