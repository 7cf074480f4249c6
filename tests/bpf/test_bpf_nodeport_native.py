"""Services asked for from outside in a cluster without a tunnel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.datapath_world import DENY_ALL, WORLD4, Outcome, World, load_world, payload
from tests.support.service_world import (
    BALANCER4,
    DIRECT,
    FAMILIES,
    OF,
    TRANSPORTS,
    Balancer,
    answer,
    balancing,
    ends,
    ip,
    request,
    telling,
    told,
    whole,
)

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def native_world() -> Iterator[World]:
    with load_world("dsr", tunnel_enabled=False) as world:
        yield world


@pytest.fixture
def native(native_world: World) -> Iterator[Balancer]:
    native_world.furnish()
    with balancing(native_world) as made:
        yield made


@FAMILIES
@TRANSPORTS
def test_natively(native: Balancer, family: int, transport: str) -> None:
    world, at = native.world, OF[family]
    frontend = at.balancer
    backend = "203.0.113.77" if family == 4 else "2001:db8:77::77"
    world.add_prefix(f"{backend}/{32 if family == 4 else 128}", 1004)
    native.add(frontend, 80, (backend, 8080), protocol=transport, flags=DIRECT)
    done = world.from_wire(ip(at.world, frontend) / request(transport, 5000, 80) / payload())
    assert (done.action, done.ifindex) == ("NETWORK", world.devices["eth"])
    assert told(whole(done.packet.payload)) == (frontend, 80)
    arriving = telling(ip(at.world, at.pod) / request(transport, 5001, 8080) / payload(), frontend, 80)
    heard = world.from_wire(arriving)
    assert (heard.action, heard.ifindex) == ("LOCAL", world.pod_a.ifindex)
    back = world.from_pod(world.pod_a, ip(at.pod, at.world) / answer(transport, 8080, 5001) / payload())
    assert (back.action, back.state) == ("NETWORK", 3)
    assert ends(whole(back.packet.payload)) == (frontend, 80, at.world, 5001)


def test_a_host_that_is_told(native: Balancer) -> None:
    world, at = native.world, OF[4]
    world.settings["flags"][0] |= world.layout.value("NODE_HOST_BACKENDS")
    native.add(BALANCER4, 80, (at.node, 8080), flags=DIRECT)
    done: Outcome = world.from_wire(telling(ip(WORLD4, at.node) / request("tcp", 5000, 8080), BALANCER4, 80))
    assert done.action == "STACK"
    back = world.to_wire(ip(at.node, WORLD4) / answer("tcp", 8080, 5000))
    assert ends(whole(back.packet.payload)) == (BALANCER4, 80, WORLD4, 5000)


def test_what_is_denied_tells_nothing(native: Balancer) -> None:
    """Else anybody could fill the table of translations, with datagrams to a pod that hears none."""
    world = native.world
    native.add(BALANCER4, 80, (OF[4].pod, 8080), protocol="udp", flags=DIRECT)
    packet = telling(ip(WORLD4, OF[4].pod) / request("udp", 5000, 8080), BALANCER4, 80)
    world.set_policy(1, DENY_ALL)
    assert world.from_wire(packet).action == "DROP"
    assert not len(world.dataplane.maps["snat"].dump()[0])


def test_a_host_that_is_no_backend_is_told_nothing(native: Balancer) -> None:
    world, at = native.world, OF[4]
    native.add(BALANCER4, 80, (at.pod, 8080), flags=DIRECT)
    packet = telling(ip(WORLD4, at.node) / request("tcp", 5000, 22), BALANCER4, 80)
    assert world.from_wire(packet).action == "STACK"
    assert not len(world.dataplane.maps["snat"].dump()[0])


def test_a_client_tells_nothing_that_this_node_was_asked_itself(native: Balancer) -> None:
    """An option of its own does not change whose answers it hears."""
    world, at = native.world, OF[4]
    native.add(BALANCER4, 80, (at.pod, 8080), flags=DIRECT)
    native.add(BALANCER4, 81, (at.pod, 8080), flags=DIRECT)
    done = world.from_wire(telling(ip(WORLD4, BALANCER4) / request("tcp", 5000, 81), BALANCER4, 80))
    assert done.action == "LOCAL"
    back = world.from_pod(world.pod_a, ip(at.pod, WORLD4) / answer("tcp", 8080, 5000))
    assert ends(whole(back.packet.payload)) == (BALANCER4, 81, WORLD4, 5000)
