"""Where packets go: other pods, the host, other nodes, the world."""

from __future__ import annotations

import msgspec
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.support.datapath_world import (
    FAR_IDENTITY,
    FAR_NODE4,
    FAR_NODE6,
    FAR_ROUTER4,
    HOST_MAC,
    NODE4,
    POD_FAR4,
    POD_FAR6,
    ROUTER4,
    ROUTER6,
    TCX_NEXT,
    TCX_REDIRECT,
    WORLD4,
    WORLD6,
    Rule,
    World,
    payload,
)

pytestmark = pytest.mark.root


def to(destination: str, ttl: int = 64) -> Packet:
    """A SYN of pod_a."""
    if ":" in destination:
        ip: Packet = IPv6(src="fd00::11", dst=destination, hlim=ttl)
    else:
        ip = IP(src="10.0.0.11", dst=destination, ttl=ttl)
    return ip / TCP(sport=40000, dport=80, flags="S")


def aged(packet: Packet) -> bytes:
    """The packet one hop later, checksums computed anew."""
    later = packet.copy()
    if IPv6 in later:
        later[IPv6].hlim -= 1
    else:
        later[IP].ttl -= 1
    return bytes(later)


@pytest.mark.parametrize("destination", ["10.0.0.12", "fd00::12"])
@pytest.mark.parametrize("ttl", [64, 2, 255])
def test_pod_to_pod(world: World, destination: str, ttl: int) -> None:
    packet = to(destination, ttl)
    done = world.from_pod(world.pod_a, packet)
    assert (done.value, done.action, done.ifindex) == (TCX_REDIRECT, "LOCAL", world.pod_b.ifindex)
    assert (done.source_identity, done.destination_identity) == (1001, 1002)
    assert (done.egress_cookie, done.ingress_cookie) == (2, 1)
    assert (done.packet.src, done.packet.dst) == (world.pod_b.host_mac, world.pod_b.mac)
    assert done.data[14:] == aged(packet)


@pytest.mark.parametrize("destination", ["10.0.0.12", "fd00::12", WORLD4, WORLD6])
@pytest.mark.parametrize("ttl", [0, 1])
def test_a_hop_too_many(world: World, destination: str, ttl: int) -> None:
    assert world.from_pod(world.pod_a, to(destination, ttl)).reason == 196


@pytest.mark.parametrize("destination", [ROUTER4, ROUTER6, NODE4])
def test_pod_to_its_node(world: World, destination: str) -> None:
    packet = to(destination, ttl=1)
    done = world.from_pod(world.pod_a, packet)
    assert (done.action, done.ifindex, done.destination_identity) == ("HOST", world.devices["host"], 1)
    assert done.packet.dst == HOST_MAC
    assert done.data[14:] == bytes(packet)


@pytest.mark.parametrize("destination", [POD_FAR4, POD_FAR6])
def test_pod_to_another_node(world: World, destination: str) -> None:
    packet = to(destination)
    done = world.from_pod(world.pod_a, packet)
    assert (done.action, done.ifindex) == ("TUNNEL", world.devices["tunnel"])
    assert (done.vni, done.tunnel, done.destination_identity) == (1001, FAR_NODE4, FAR_IDENTITY)
    assert done.data[14:] == bytes(packet)


def test_underlay_of_the_other_family(world: World) -> None:
    world.add_prefix(POD_FAR4, FAR_IDENTITY, tunnel=FAR_NODE6)
    assert world.from_pod(world.pod_a, to(POD_FAR4)).tunnel == FAR_NODE6


@pytest.mark.parametrize(
    ("identity", "travels_as"),
    [(1001, 1001), (0x1000007, 9), (0x2000007, 6)],
    ids=["pod", "local-prefix", "local-node"],
)
def test_what_identities_travel_as(world: World, identity: int, travels_as: int) -> None:
    world.add_pod(msgspec.structs.replace(world.pod_a, identity=identity))
    assert world.from_pod(world.pod_a, to(POD_FAR4)).vni == travels_as


def test_tunnel_without_an_end(world: World) -> None:
    world.add_prefix(POD_FAR4, FAR_IDENTITY, flags=world.layout.value("IPCACHE_TUNNEL"))
    assert world.from_pod(world.pod_a, to(POD_FAR4)).reason == 160


@pytest.mark.parametrize(
    ("destination", "identity", "gateway"),
    [(WORLD4, 9, "192.0.2.254"), (WORLD6, 10, "2001:db8:f::fe"), (FAR_NODE4, 6, FAR_NODE4)],
)
def test_pod_to_the_world(world: World, destination: str, identity: int, gateway: str) -> None:
    done = world.from_pod(world.pod_a, to(destination))
    assert (done.value, done.action, done.ifindex) == (TCX_REDIRECT, "NETWORK", world.devices["eth"])
    assert (done.destination_identity, done.tunnel) == (identity, gateway)


def test_longest_prefix_names_the_world(world: World) -> None:
    world.add_prefix("203.0.0.0/8", 0x1000001)
    world.add_prefix("203.0.113.0/24", 0x1000002)
    assert world.from_pod(world.pod_a, to(WORLD4)).destination_identity == 0x1000002
    world.add_prefix("::/0", 0x1000003)
    assert world.from_pod(world.pod_a, to("198.51.100.1")).destination_identity == 9
    assert world.from_pod(world.pod_a, to(WORLD6)).destination_identity == 0x1000003


def test_pod_address_that_no_pod_has(world: World) -> None:
    assert world.from_pod(world.pod_a, to("10.0.0.77")).reason == 151


@pytest.mark.parametrize("destination", ["224.0.0.251", "255.255.255.255", "ff02::fb"])
def test_multicast_is_counted_only(world: World, destination: str) -> None:
    before = world.counted(150)
    assert world.from_pod(world.pod_a, to(destination)).reason == 150
    assert world.counted(150) == before + 1


def test_unknown_interface(world: World) -> None:
    frame = Ether(src=HOST_MAC, dst=HOST_MAC) / to("10.0.0.12")
    assert world.run("from_container", frame, ifindex=world.devices["eth"]).reason == 172


def from_node(destination: str, source: str = ROUTER4) -> Packet:
    if ":" in destination:
        return IPv6(src=ROUTER6, dst=destination) / UDP(sport=5, dport=53) / payload()
    return IP(src=source, dst=destination) / UDP(sport=5, dport=53) / payload()


@pytest.mark.parametrize("destination", ["10.0.0.12", "fd00::12"])
def test_host_to_its_pod(world: World, destination: str) -> None:
    packet = from_node(destination)
    done = world.from_host(packet)
    assert (done.action, done.ifindex, done.source_identity) == ("LOCAL", world.pod_b.ifindex, 1)
    assert done.ingress_cookie == 1
    assert done.data[14:] == bytes(packet)


def test_host_is_held_to_ingress_policy(world: World) -> None:
    world.set_policy(2, (Rule(1, 0, cookie=3, flags=4), Rule(1, 1, peer=9, precedence=200)))
    assert world.from_host(from_node("10.0.0.12")).reason == 133
    world.set_policy(2, (Rule(1, 0, cookie=3, flags=4), Rule(1, 1, peer=1, precedence=200)))
    assert world.from_host(from_node("10.0.0.12")).action == "LOCAL"


def test_host_to_a_pod_elsewhere(world: World) -> None:
    done = world.from_host(from_node(POD_FAR4))
    assert (done.action, done.vni, done.tunnel) == ("TUNNEL", 6, FAR_NODE4)
    assert world.from_host(from_node(FAR_ROUTER4)).action == "TUNNEL"


def test_host_to_nobody(world: World) -> None:
    assert world.from_host(from_node("10.0.0.77")).reason == 150
    assert world.from_host(from_node(NODE4)).reason == 150


def test_who_speaks_as_the_host(world: World) -> None:
    assert world.from_host(from_node("10.0.0.12", source=WORLD4)).source_identity == 9
    assert world.from_host(from_node("10.0.0.12", source="10.0.0.11")).reason == 132
    marked = 4242 << 16 | 0x0F00
    assert world.from_host(from_node("10.0.0.12"), mark=marked).source_identity == 4242
    assert world.from_host(from_node("10.0.0.12", source=NODE4), mark=0x0C00).source_identity == 1


def test_to_host_passes(world: World) -> None:
    frame = Ether(src=HOST_MAC, dst=HOST_MAC) / from_node(NODE4)
    assert world.run("to_host", frame, ifindex=world.devices["host"]).value == TCX_NEXT


def test_endpoint_routes_hold_to_ingress_policy(world: World) -> None:
    frame = Ether(src=HOST_MAC, dst=world.pod_b.mac) / from_node("10.0.0.12")
    done = world.run("to_container", frame, ifindex=world.pod_b.ifindex)
    assert (done.value, done.action, done.ingress_cookie) == (TCX_NEXT, "STACK", 1)
    assert done.data == bytes(frame)
    world.set_policy(2, (Rule(1, 0, cookie=3, flags=4),))
    assert world.run("to_container", frame, ifindex=world.pod_b.ifindex).reason == 133
