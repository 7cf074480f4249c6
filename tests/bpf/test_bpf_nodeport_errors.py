"""ICMP errors about flows of services asked for from outside: each end hears of its own packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.support.datapath_world import (
    FAR_NODE4,
    GATEWAY_MAC,
    TCX_DROP,
    TCX_REDIRECT,
    Outcome,
    World,
    payload,
)
from tests.support.service_world import (
    DIRECT,
    FAMILIES,
    OF,
    TRANSPORTS,
    Balancer,
    answer,
    balancing,
    ends,
    from_tunnel,
    ip,
    request,
    whole,
)

pytestmark = pytest.mark.root
ROUTER = {4: "198.51.100.254", 6: "2001:db8:fe::fe"}


@pytest.fixture
def balancer(world: World) -> Iterator[Balancer]:
    with balancing(world) as made:
        yield made


def too_big(source: str, destination: str, about: Packet) -> Packet:
    """A router on the way has a smaller link."""
    kind: Packet = ICMPv6PacketTooBig(mtu=1300) if ":" in source else ICMP(type=3, code=4, nexthopmtu=1300)
    return ip(source, destination) / kind / about


def quoted(error: Packet) -> Packet:
    """The packet an error is about; the error's own checksums are right."""
    if error.version == 4:
        copy = error.copy()
        del copy.chksum, copy[ICMP].chksum
        assert bytes(copy) == bytes(error)
        inner = IP(bytes(error[ICMP].payload))
        again = inner.copy()
        del again.chksum
        assert inner.chksum == IP(bytes(again)).chksum
        return inner
    copy = error.copy()
    del copy[ICMPv6PacketTooBig].cksum
    assert bytes(copy) == bytes(error)
    return IPv6(bytes(error[ICMPv6PacketTooBig].payload))


@FAMILIES
def test_about_answers_of_a_pod_here(balancer: Balancer, family: int) -> None:
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 80, (at.pod, 8080))
    world.from_wire(ip(at.world, at.balancer) / request("tcp", 5000, 80))
    left = ip(at.balancer, at.world) / answer("tcp", 80, 5000)
    done = world.from_wire(too_big(ROUTER[family], at.balancer, left))
    assert (done.action, done.ifindex, done.state) == ("LOCAL", world.pod_a.ifindex, 4)
    seen = done.packet.payload
    assert (seen.src, seen.dst) == (ROUTER[family], at.pod)
    assert ends(quoted(seen)) == (at.pod, 8080, at.world, 5000)


@FAMILIES
@pytest.mark.parametrize("mode", ["translated", "direct"])
def test_about_answers_of_a_pod_elsewhere(balancer: Balancer, family: int, mode: str) -> None:
    """It hears of them from this node, the only one whose word is taken for what is outside."""
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 80, (at.far, 8080), flags=DIRECT if mode == "direct" else ("OUTSIDE",))
    out = world.from_wire(ip(at.world, at.balancer) / request("tcp", 5000, 80)).packet.payload
    left = ip(at.balancer, at.world) / answer("tcp", 80, 5000)
    done = world.from_wire(too_big(ROUTER[family], at.balancer, left))
    assert (done.action, done.tunnel, done.vni) == ("TUNNEL", FAR_NODE4, 9 if family == 4 else 10)
    seen = done.packet.payload
    assert (seen.src, seen.dst) == (at.router, at.far)
    assert ends(quoted(seen)) == (at.far, 8080, out.src, out[TCP].sport)


@FAMILIES
def test_about_requests_to_a_pod_elsewhere(door: World, balancer: Balancer, family: int) -> None:
    """The client knows neither the backend nor this node's part in it."""
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 53, (at.far, 5353), protocol="udp")
    out = world.from_wire(ip(at.world, at.balancer) / request("udp", 5000, 53) / payload())
    done = from_tunnel(world, too_big(at.far, at.router, out.packet.payload))
    assert (done.action, done.state) == ("NETWORK", 4)
    seen = done.packet.payload
    assert (seen.src, seen.dst) == (at.balancer, at.world)
    assert ends(quoted(seen)) == (at.world, 5000, at.balancer, 53)


@FAMILIES
def test_about_requests_to_a_pod_here(balancer: Balancer, family: int) -> None:
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 53, (at.pod, 5353), protocol="udp")
    got = world.from_wire(ip(at.world, at.balancer) / request("udp", 5000, 53) / payload()).packet.payload
    done = world.from_pod(world.pod_a, too_big(at.pod, at.world, got))
    assert (done.action, done.state) == ("NETWORK", 4)
    seen = done.packet.payload
    assert (seen.src, seen.dst) == (at.balancer, at.world)
    assert ends(quoted(seen)) == (at.world, 5000, at.balancer, 53)


@FAMILIES
def test_of_the_host(balancer: Balancer, family: int) -> None:
    world, at = balancer.world, OF[family]
    world.settings["flags"][0] |= world.layout.value("NODE_HOST_BACKENDS")
    balancer.add(at.balancer, 53, (at.node, 5353), protocol="udp")
    got = world.from_wire(ip(at.world, at.balancer) / request("udp", 5000, 53) / payload()).packet.payload
    done = world.to_wire(too_big(at.node, at.world, got))
    seen = done.packet.payload
    assert (seen.src, seen.dst) == (at.balancer, at.world)
    assert ends(quoted(seen)) == (at.world, 5000, at.balancer, 53)
    back = world.from_wire(
        too_big(ROUTER[family], at.balancer, ip(at.balancer, at.world) / UDP(sport=53, dport=5000))
    )
    assert (back.action, back.packet.payload.dst) == ("STACK", at.node)
    assert ends(quoted(back.packet.payload)) == (at.node, 5353, at.world, 5000)


@FAMILIES
def test_about_nothing_that_was_sent(balancer: Balancer, family: int) -> None:
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 80, (at.pod, 8080))
    packet = too_big(ROUTER[family], at.balancer, ip(at.balancer, at.world) / answer("tcp", 80, 5000))
    done = world.from_wire(packet)
    assert (done.action, bytes(done.packet.payload)) == ("STACK", bytes(packet))


@FAMILIES
def test_a_client_that_asks_the_host_itself(balancer: Balancer, family: int) -> None:
    """The service it asked before from the same port is forgotten."""
    world, at = balancer.world, OF[family]
    world.settings["flags"][0] |= world.layout.value("NODE_HOST_BACKENDS")
    balancer.add(at.balancer, 80, (at.node, 8080))
    world.from_wire(ip(at.world, at.balancer) / request("tcp", 5000, 80))
    world.from_wire(ip(at.world, at.node) / request("tcp", 5000, 8080))
    back = world.to_wire(ip(at.node, at.world) / answer("tcp", 8080, 5000))
    assert ends(whole(back.packet.payload)) == (at.node, 8080, at.world, 5000)
    assert back.value != TCX_DROP


def arrive_at_device(world: World, packet: Packet) -> Outcome:
    """A frame that is addressed to the device: only such ones are answered."""
    with IPRoute() as network:
        (link,) = network.get_links(world.devices["eth"])
    frame = Ether(src=GATEWAY_MAC, dst=link.get_attr("IFLA_ADDRESS")) / packet
    return world.run("from_netdev", frame, ifindex=world.devices["eth"])


@FAMILIES
@TRANSPORTS
def test_nobody_serves(balancer: Balancer, family: int, transport: str) -> None:
    """The client hears it from the frontend; where that is not wanted it hears nothing."""
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 80, protocol=transport, flags=("OUTSIDE", "REJECT"))
    packet = ip(at.world, at.balancer) / request(transport, 5000, 80) / payload()
    done = arrive_at_device(world, packet)
    assert (done.value, done.action, done.reason) == (TCX_REDIRECT, "DROP", 158)
    seen = done.packet.payload
    assert (done.packet.dst, seen.src, seen.dst) == (GATEWAY_MAC, at.balancer, at.world)
    if family == 4:
        assert (seen[ICMP].type, seen[ICMP].code, bytes(seen[ICMP].payload)) == (3, 3, bytes(packet))
    else:
        error = seen[ICMPv6DestUnreach]
        assert (error.code, bytes(error.payload)) == (4, bytes(packet))
    left = world.run("to_netdev", done.data, ifindex=world.devices["eth"], mark=0x300)
    assert (left.action, left.data) == ("STACK", done.data)
    balancer.add(at.balancer, 81, protocol=transport)
    assert arrive_at_device(world, ip(at.world, at.balancer) / request(transport, 1, 81)).value == TCX_DROP


@FAMILIES
def test_too_large_to_tell(balancer: Balancer, family: int) -> None:
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 53, (at.far, 5353), protocol="udp", flags=DIRECT)
    done = arrive_at_device(
        world,
        ip(at.world, at.balancer) / request("udp", 5000, 53) / payload(1450 - (28 if family == 4 else 48)),
    )
    assert (done.value, done.reason) == (TCX_REDIRECT, 193)
    seen = done.packet.payload
    assert (seen.src, seen.dst) == (at.balancer, at.world)
    if family == 4:
        assert (seen[ICMP].type, seen[ICMP].code, seen[ICMP].nexthopmtu) == (3, 4, 1442)
    else:
        assert seen[ICMPv6PacketTooBig].mtu == 1426
