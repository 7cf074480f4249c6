"""Real sockets that send what is larger than a packet: streams in batches of many segments, datagrams in
pieces, frames beyond 1,500 bytes. Every byte arrives as it was sent, both ways.

        ┌ client x
switch ─┼ node one ── pod_a, pod_b
        └ node two ── pod_c
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.datapath_world import TCP, UDP, Frontend, World
from tests.support.outside_client import (
    ASKED,
    CLIENT,
    SWITCH,
    VIRTUAL,
    VIRTUAL4,
    VIRTUAL6,
    balanced,
    nodes_and_client,
)
from tests.support.service_world import FAMILIES, Balancer
from tests.support.traffic_nodes import NODES, ONE, PREFIX, TWO, ip, talk

pytestmark = pytest.mark.root

STREAM, LARGEST, BATCH = 3_000_000, 65_400, 40_000
A, C = ONE.pod("a"), TWO.pod("c")
PLACES = {"its node": ("a", A), "another node": ("c", C)}
SIZES = {"usual": (1500, 1450), "jumbo": (9000, 8950)}
"""Largest packets on the wire and of pods."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, World]]:
    """Two nodes and a client."""
    with nodes_and_client() as worlds:
        yield worlds


def widen(space: str, device: str, mtu: int) -> None:
    ip(space, "link", "set", device, "mtu", str(mtu))


@pytest.fixture(scope="module", params=SIZES)
def cluster(request: pytest.FixtureRequest, nodes: dict[str, World]) -> dict[str, World]:
    """With small packets and with large ones."""
    wire_mtu, pod_mtu = SIZES[request.param]
    for space in (CLIENT, ONE.namespace, TWO.namespace):
        widen(SWITCH, space.removeprefix(PREFIX), wire_mtu)
        widen(space, "eth", wire_mtu)
    for node in NODES:
        widen(node.namespace, "vx", pod_mtu)
        nodes[node.name].settings["mtu"][0] = pod_mtu
        for name in node.pods:
            widen(node.namespace, f"pod_{name}", wire_mtu)
            widen(f"{PREFIX}{name}", "eth0", pod_mtu)
    return nodes


@pytest.fixture
def balancers(cluster: dict[str, World]) -> Iterator[list[Balancer]]:
    """Of both nodes."""
    with balanced(cluster) as both:
        yield both
        for world in cluster.values():
            world.forget_flows()


def serve_by(balancers: list[Balancer], place: str, *flags: str) -> None:
    """The service of both protocols and families, by a pod."""
    pod = PLACES[place][1]
    for balancer in balancers:
        for frontend, address in ((VIRTUAL4, pod.ipv4), (VIRTUAL6, pod.ipv6)):
            for protocol in ("tcp", "udp"):
                balancer.add(frontend, ASKED, (address, 7777), protocol=protocol, flags=("OUTSIDE", *flags))


def exchange(client: str, place: str, kind: str, family: int, size: int, asked: str) -> str:
    """`size` bytes each way; whom the pod saw, or what went wrong."""
    server, pod = PLACES[place]
    return talk(client, server, pod.ipv4 if family == 4 else pod.ipv6, kind, size, asked=asked)


def is_address(text: str) -> bool:
    return text.replace(".", "").replace(":", "").isalnum() and "\n" not in text


@FAMILIES
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("kind", "size"), [("bulk", STREAM), ("udp", LARGEST), ("batch", BATCH)])
def test_a_cluster_address(
    cluster: dict[str, World], balancers: list[Balancer], place: str, kind: str, size: int, family: int
) -> None:
    """From a pod, translated packet by packet."""
    node, pod = cluster["n1"], PLACES[place][1]
    vip, backend = ("10.96.0.10", pod.ipv4) if family == 4 else ("fd00:96::10", pod.ipv6)
    for number, protocol in enumerate((TCP, UDP), 1):
        node.add_service(Frontend(number, vip, 80, protocol), [(backend, 7777)])
    client = "b"
    seen = ONE.pod("b").ipv4 if family == 4 else ONE.pod("b").ipv6
    assert exchange(client, place, kind, family, size, f"{vip}@80") == seen


@FAMILIES
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("kind", "size"), [("bulk", STREAM), ("udp", LARGEST), ("batch", BATCH)])
def test_a_client_outside(balancers: list[Balancer], place: str, kind: str, size: int, family: int) -> None:
    """Another node's pod sees the node that was asked."""
    serve_by(balancers, place)
    assert is_address(exchange("x", place, kind, family, size, VIRTUAL[family]))


@FAMILIES
def test_answers_that_go_straight(balancers: list[Balancer], family: int) -> None:
    """A stream tells of its service with the handshake: its batches have no need to."""
    serve_by(balancers, "another node", "DSR")
    seen = "192.0.2.9" if family == 4 else "2001:db8:f::9"
    assert exchange("x", "another node", "bulk", family, STREAM, VIRTUAL[family]) == seen


@FAMILIES
@pytest.mark.parametrize("size", [1200, 1440, 1460, 20_000, LARGEST])
def test_datagrams_whose_answers_go_straight(balancers: list[Balancer], family: int, size: int) -> None:
    """Where the first packet has no room to tell of the service, the client learns how much there is."""
    serve_by(balancers, "another node", "DSR")
    seen = "192.0.2.9" if family == 4 else "2001:db8:f::9"
    done = exchange("x", "another node", "again", family, size, VIRTUAL[family])
    assert done.split(" after ")[0] == seen


@FAMILIES
def test_batches_of_datagrams_whose_answers_go_straight(balancers: list[Balancer], family: int) -> None:
    """Each datagram tells of the service, also where they are cut from one buffer last of all."""
    serve_by(balancers, "another node", "DSR")
    seen = "192.0.2.9" if family == 4 else "2001:db8:f::9"
    assert exchange("x", "another node", "batch", family, BATCH, VIRTUAL[family]) == seen
