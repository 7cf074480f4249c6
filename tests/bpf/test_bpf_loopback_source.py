"""The address that stands for a pod to itself, which only the data path may use as a source: nobody outside,
behind the tunnel or in the host's stack speaks for it, not even into a flow of its own that stands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.datapath_world import World, payload
from tests.support.service_world import (
    FAMILIES,
    OF,
    TRANSPORTS,
    Balancer,
    balancing,
    from_tunnel,
    ip,
    request,
    telling,
)

pytestmark = pytest.mark.root

LOOPBACK = {4: "169.254.42.1", 6: "100::a9fe:2a01"}
INVALID_SOURCE, INVALID_IDENTITY = 132, 171
CLAIMS = {"world": {4: 9, 6: 10}, "pod": {4: 1003, 6: 1003}, "remote node": {4: 6, 6: 6}}


@pytest.fixture
def balancer(world: World) -> Iterator[Balancer]:
    """A pod that serves itself, with a flow to itself that stands."""
    with balancing(world) as made:
        for family in (4, 6):
            at = OF[family]
            for transport in ("tcp", "udp"):
                made.add(at.balancer, 80, (at.pod, 8080), protocol=transport, flags=("OUTSIDE", "DSR"))
                opened = world.from_pod(world.pod_a, ip(at.pod, at.balancer) / request(transport, 5000, 80))
                assert opened.action == "LOCAL"
        yield made


@FAMILIES
@TRANSPORTS
def test_from_outside(balancer: Balancer, family: int, transport: str) -> None:
    world, at = balancer.world, OF[family]
    for asked, port in ((at.pod, 8080), (at.balancer, 80), (at.node, 80)):
        packet = ip(LOOPBACK[family], asked) / request(transport, 5000, port, "A") / payload()
        done = world.from_wire(packet)
        assert (done.action, done.reason) == ("DROP", INVALID_SOURCE)


@FAMILIES
@TRANSPORTS
@pytest.mark.parametrize("claim", CLAIMS)
def test_through_the_tunnel(door: World, balancer: Balancer, family: int, transport: str, claim: str) -> None:
    """Whatever the other node claims, and though it tells of a frontend."""
    world, at = balancer.world, OF[family]
    packet = ip(LOOPBACK[family], at.pod) / request(transport, 5000, 8080)
    for sent in (packet / payload(), telling(packet, at.balancer, 80)):
        done = from_tunnel(world, sent, CLAIMS[claim][family])
        assert (done.action, done.reason) == ("DROP", INVALID_IDENTITY)


@FAMILIES
def test_from_the_stack(balancer: Balancer, family: int) -> None:
    world, at = balancer.world, OF[family]
    done = world.from_host(ip(LOOPBACK[family], at.pod) / request("tcp", 5000, 8080, "A"))
    assert (done.action, done.reason) == ("DROP", INVALID_SOURCE)


@FAMILIES
@TRANSPORTS
def test_the_pod_itself_still_may(balancer: Balancer, family: int, transport: str) -> None:
    """What the data path turns around goes to the pod, and its answers come back."""
    world, at = balancer.world, OF[family]
    done = world.from_pod(world.pod_a, ip(at.pod, at.balancer) / request(transport, 5000, 80, "A"))
    assert (done.action, done.packet.payload.src) == ("LOCAL", LOOPBACK[family])
    back = world.from_pod(world.pod_a, ip(at.pod, LOOPBACK[family]) / request(transport, 8080, 5000, "SA"))
    assert (back.action, back.packet.payload.src) == ("LOCAL", at.balancer)
