"""Real sockets of a client outside, asking one node for services whose backends are on either.

        ┌ client x
switch ─┼ node one ── pod_a, pod_b
        └ node two ── pod_c
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.datapath_world import DENY_ALL, INGRESS, Rule, World
from tests.support.outside_client import (
    ASKED,
    BACKENDS,
    CLIENT4,
    NODE6,
    SERVED,
    VIRTUAL,
    VIRTUAL4,
    VIRTUAL6,
    Backend,
    serve_by,
)
from tests.support.service_world import FAMILIES, Balancer
from tests.support.traffic_nodes import ONE, TWO, ask, ip, talk

pytestmark = pytest.mark.root

HOST_NUMBER, HOST_SUBJECT = 65_535, 9


def exchange(client: str, backend: Backend, kind: str, family: int, size: int) -> str:
    """`size` bytes each way; the address the server saw, or what went wrong."""
    address = backend.ipv4 if family == 4 else backend.ipv6
    return talk(client, backend.where, address, kind, size, asked=VIRTUAL[family])


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
