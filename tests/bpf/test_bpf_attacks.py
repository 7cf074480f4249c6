"""What somebody in a pod, or beside a node, tries in order to pass for another or to get past a policy."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.support.datapath_world import (
    ALLOW_ALL,
    DENY,
    EGRESS,
    HOST_ID,
    NODE4,
    NODE6,
    POD_FAR4,
    POD_FAR6,
    WORLD4,
    WORLD6,
    Rule,
    World,
    payload,
)

pytestmark = pytest.mark.root

A4, B4, A6, B6 = "10.0.0.11", "10.0.0.12", "fd00::11", "fd00::12"
UNLISTED4 = "192.0.2.50"
BROADCAST4 = "192.0.2.255"
WORLD_ONLY = (*ALLOW_ALL, Rule(EGRESS, DENY, peer=HOST_ID, precedence=900, cookie=77))


@pytest.fixture
def unlisted(world: World) -> Iterator[str]:
    """An address of the node that its agent has not told the data path of."""
    with IPRoute() as ip:
        ip.addr("add", index=world.devices["eth"], address=UNLISTED4, prefixlen=32)
        yield UNLISTED4
        ip.addr("delete", index=world.devices["eth"], address=UNLISTED4, prefixlen=32)


# errors about others


def opened(world: World, source: str, destination: str) -> None:
    ip = IPv6 if ":" in source else IP
    packet = ip(src=source, dst=destination) / TCP(sport=40000, dport=80, flags="S")
    assert world.from_pod(world.pod_a, packet).reason == 0


@pytest.mark.parametrize("peer", [POD_FAR4, WORLD4])
def test_a_pod_may_not_report_about_what_others_said_to_each_other(world: World, peer: str) -> None:
    opened(world, A4, peer)
    quoted = IP(src=A4, dst=peer) / TCP(sport=40000, dport=80)
    error = IP(src=B4, dst=A4) / ICMP(type=3, code=4, nexthopmtu=68) / quoted
    assert world.from_pod(world.pod_b, error).reason == 144


@pytest.mark.parametrize("peer", [POD_FAR6, WORLD6])
def test_nor_over_ipv6(world: World, peer: str) -> None:
    opened(world, A6, peer)
    quoted = IPv6(src=A6, dst=peer) / TCP(sport=40000, dport=80)
    assert world.from_pod(world.pod_b, IPv6(src=B6, dst=A6) / ICMPv6DestUnreach() / quoted).reason == 146


def test_the_one_it_was_said_to_may(world: World) -> None:
    opened(world, A4, B4)
    quoted = IP(src=A4, dst=B4) / TCP(sport=40000, dport=80)
    assert world.from_pod(world.pod_b, IP(src=B4, dst=A4) / ICMP(type=3, code=3) / quoted).action == "LOCAL"


def test_a_router_may(world: World) -> None:
    opened(world, A4, POD_FAR4)
    quoted = IP(src=A4, dst=POD_FAR4) / TCP(sport=40000, dport=80)
    error = IP(src="198.51.100.1", dst=A4) / ICMP(type=11) / quoted
    assert world.from_wire(error).action == "LOCAL"


# fragments


def cut(packet: Packet, length: int, trailer: bytes) -> Packet:
    """A frame whose IP packet ends after `length` bytes; what the parser would like to see follows."""
    kind = 0x86DD if IPv6 in packet else 0x0800
    raw = bytes(packet)[:length]
    return Ether(src="0a:00:00:00:00:0a", dst="0e:00:00:00:00:0a", type=kind) / Raw(raw + trailer)


FIRST4 = IP(src=A4, dst=B4, id=7, flags="MF", len=28) / TCP(sport=40000, dport=80, flags="S")
FIRST6 = IPv6(src=A6, dst=B6, plen=16) / IPv6ExtHdrFragment(id=7, m=1) / TCP(sport=40000, dport=80, flags="S")


@pytest.mark.parametrize(("first", "length"), [(FIRST4, 28), (FIRST6, 56)])
def test_a_first_fragment_is_not_read_beyond_its_end(world: World, first: Packet, length: int) -> None:
    """Its receiver takes the flags from the second one: they could be those of a SYN."""
    frame = cut(first, length, bytes(5) + b"\x10" + bytes(20))
    assert world.from_pod(world.pod_a, frame).reason == 135
    assert world.flows() == []


# the node itself


@pytest.mark.parametrize("target", ["127.0.0.1", "0.0.0.0", "::1", "fe80::1"])
def test_what_no_router_passes_on(world: World, target: str) -> None:
    packet = IPv6(src=A6, dst=target) if ":" in target else IP(src=A4, dst=target)
    assert world.from_pod(world.pod_a, packet / UDP(sport=1, dport=2)).reason == 150


@pytest.mark.parametrize("target", [UNLISTED4, BROADCAST4])
def test_an_address_of_the_node_that_nobody_listed(world: World, unlisted: str, target: str) -> None:
    """Leave to talk to the world is none to talk to the host."""
    packet = IP(src=A4, dst=target) / UDP(sport=1, dport=2)
    assert world.from_pod(world.pod_a, packet).action == "STACK"
    world.set_policy(world.pod_a.subject, WORLD_ONLY)
    done = world.from_pod(world.pod_a, packet)
    assert (done.reason, done.egress_cookie, done.destination_identity) == (181, 77, HOST_ID)
    assert world.from_pod(world.pod_a, IP(src=A4, dst=WORLD4) / UDP(sport=1, dport=2)).action == "NETWORK"


def test_an_answer_to_it_passes(world: World, unlisted: str) -> None:
    asked = IP(src=unlisted, dst=A4) / UDP(sport=1, dport=2)
    assert world.from_host(asked).action == "LOCAL"
    world.set_policy(world.pod_a.subject, WORLD_ONLY)
    assert world.from_pod(world.pod_a, IP(src=A4, dst=unlisted) / UDP(sport=2, dport=1)).action == "STACK"


def test_the_tunnel_port_is_for_nodes_wherever_it_leads(world: World) -> None:
    """An address nobody knows may be a node's second one, or be translated to its first."""
    for target in (WORLD4, "192.0.2.99"):
        assert world.from_pod(world.pod_a, IP(src=A4, dst=target) / UDP(dport=8472)).reason == 170
    assert world.from_pod(world.pod_a, IP(src=A4, dst=POD_FAR4) / UDP(dport=8472)).action == "TUNNEL"


# who speaks


def test_a_pod_without_ipv6_does_not_speak_it(world: World) -> None:
    world.add_pod(msgspec.structs.replace(world.pod_a, ipv6=""))
    assert world.from_pod(world.pod_a, IPv6(src="::", dst=B6) / UDP(sport=1, dport=2)).reason == 132


@pytest.mark.parametrize("source", [POD_FAR4, "10.0.1.1"])
def test_a_remote_address_never_comes_through_the_stack(world: World, source: str) -> None:
    """It came in by a device without our programs: a second one, or a tagged one."""
    assert world.from_host(IP(src=source, dst=B4) / UDP(sport=1, dport=2)).reason == 132


@pytest.mark.parametrize("source", [NODE6, POD_FAR6, A6])
def test_headers_that_are_not_walked_hide_no_source(world: World, source: str) -> None:
    to_node = IPv6(src=source, dst=NODE6) / IPv6ExtHdrHopByHop() / UDP(sport=1, dport=2)
    assert world.from_wire(to_node).reason == 132
    to_node[IPv6].src = WORLD6
    assert world.from_wire(to_node).action == "STACK"


def test_a_pod_nobody_has_described_is_not_anybody(world: World) -> None:
    world.add_prefix("10.0.9.0/24", 0, tunnel="192.0.2.2")
    assert world.from_pod(world.pod_a, IP(src=A4, dst="10.0.9.9") / UDP(sport=1, dport=2)).reason == 150
    world.add_prefix("198.51.100.0/24", 0)
    assert world.from_wire(IP(src="198.51.100.9", dst=B4) / UDP(sport=1, dport=2)).reason == 171
    assert world.flows() == []


def test_it_is_known_at_once_when_described(world: World) -> None:
    world.add_prefix("10.0.9.0/24", 0, tunnel="192.0.2.2")
    world.add_prefix("10.0.9.9", 1003, tunnel="192.0.2.2")
    packet = IP(src=A4, dst="10.0.9.9") / UDP(sport=1, dport=2) / payload()
    assert world.from_pod(world.pod_a, packet).action == "TUNNEL"


def test_own_underlay_address_is_the_host(world: World) -> None:
    world.set_policy(world.pod_a.subject, WORLD_ONLY)
    assert world.from_pod(world.pod_a, IP(src=A4, dst=NODE4) / TCP(dport=10250)).egress_cookie == 77
