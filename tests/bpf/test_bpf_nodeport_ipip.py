"""Frontends told by wrapping the client's packet, in a cluster without a tunnel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from tests.support.datapath_world import FAR_NODE4, FAR_NODE6, TCX_DROP, World, load_world, payload
from tests.support.service_world import (
    DIRECT,
    FAMILIES,
    NODE_PORT,
    OF,
    TRANSPORTS,
    Balancer,
    answer,
    balancing,
    ends,
    ip,
    request,
    whole,
)

pytestmark = pytest.mark.root
BACKEND = {4: "203.0.113.77", 6: "2001:db8:77::77"}
FAR_NODE = {4: FAR_NODE4, 6: FAR_NODE6}


@pytest.fixture(scope="module")
def wrapping_world() -> Iterator[World]:
    with load_world("ipip", tunnel_enabled=False, dsr_ipip=True) as world:
        yield world


@pytest.fixture
def wrapping(wrapping_world: World) -> Iterator[Balancer]:
    wrapping_world.furnish()
    with balancing(wrapping_world) as made:
        yield made


def wrapped(node: str, backend: str, inner: Packet) -> Packet:
    return ip(node, backend, **({"nh": 41} if ":" in node else {"proto": 4})) / inner


@FAMILIES
@TRANSPORTS
def test_wrapped(wrapping: Balancer, family: int, transport: str) -> None:
    """Every packet of the flow, also to a backend that is no pod."""
    world, at = wrapping.world, OF[family]
    wrapping.add(at.balancer, 80, (BACKEND[family], 8080), protocol=transport, flags=DIRECT)
    for flags in "SA":
        packet = ip(at.world, at.balancer) / request(transport, 5000, 80, flags) / payload()
        done = world.from_wire(packet)
        assert (done.action, done.ifindex) == ("NETWORK", world.devices["eth"])
        outer = whole(done.packet.payload)
        assert (outer.src, outer.dst) == (at.node, BACKEND[family])
        inner = outer[IP if family == 4 else IPv6].payload
        assert ends(inner) == (at.world, 5000, at.balancer, 80)
        assert (inner.ttl if family == 4 else inner.hlim) == 63
        assert bytes(inner.lastlayer()) == bytes(payload())


@FAMILIES
def test_room_for_wrapping(wrapping: Balancer, family: int) -> None:
    world, at = wrapping.world, OF[family]
    wrapping.add(at.balancer, 53, (BACKEND[family], 5353), protocol="udp", flags=DIRECT)
    full = payload(1450 - (28 if family == 4 else 48))
    assert world.from_wire(ip(at.world, at.balancer) / request("udp", 5000, 53) / full).reason == 193


@FAMILIES
@TRANSPORTS
@pytest.mark.parametrize("kind", ["balancer", "node port"])
def test_unwrapped(wrapping: Balancer, family: int, transport: str, kind: str) -> None:
    world, at = wrapping.world, OF[family]
    if kind == "balancer":
        frontend, port, key = at.balancer, 80, at.balancer
    else:
        frontend, port, key = FAR_NODE[family], NODE_PORT, "0.0.0.0" if family == 4 else "::"
    wrapping.add(key, port, ("10.9.9.9", 1), (at.pod, 8080), protocol=transport, flags=DIRECT)
    for flags in "SA":
        inner = ip(at.world, frontend) / request(transport, 5000, port, flags) / payload()
        done = world.from_wire(wrapped(FAR_NODE[family], at.pod, inner))
        assert (done.action, done.ifindex) == ("LOCAL", world.pod_a.ifindex)
        assert ends(whole(done.packet.payload)) == (at.world, 5000, at.pod, 8080)
    back = world.from_pod(world.pod_a, ip(at.pod, at.world) / answer(transport, 8080, 5000) / payload())
    assert (back.action, back.state) == ("NETWORK", 3)
    assert ends(whole(back.packet.payload)) == (frontend, port, at.world, 5000)


@FAMILIES
def test_forged_wrappings(wrapping: Balancer, family: int) -> None:
    """From others than nodes, for frontends that are none, from pods' addresses, to others' backends."""
    world, at = wrapping.world, OF[family]
    other = "10.0.0.12" if family == 4 else "fd00::12"
    wrapping.add(at.balancer, 80, (at.pod, 8080), flags=DIRECT)
    wrapping.add(at.balancer, 81, (at.pod, 8080))
    node, syn = FAR_NODE[family], request("tcp", 5000, 80)
    for expected, packet in {
        170: wrapped(at.world, at.pod, ip(at.world, at.balancer) / syn),
        171: wrapped(node, at.pod, ip(at.world, at.balancer) / request("tcp", 5000, 81)),
        132: wrapped(node, at.pod, ip(other, at.balancer) / syn),
        158: wrapped(node, other, ip(at.world, at.balancer) / syn),
    }.items():
        done = world.from_wire(packet)
        assert (done.value, done.reason) == (TCX_DROP, expected)
