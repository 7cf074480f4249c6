"""A pod hears by ICMP that its own egress policy denied a packet."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.support.datapath_world import (
    DENY,
    DENY_ALL,
    EGRESS,
    FAR_NODE4,
    INGRESS,
    POD_FAR4,
    ROUTER4,
    ROUTER6,
    TCX_DROP,
    TCX_REDIRECT,
    WORLD4,
    WORLD6,
    Rule,
    World,
    payload,
)
from tests.support.ring_reader import Ring

pytestmark = pytest.mark.root

A4, A6, B4, B6 = "10.0.0.11", "fd00::11", "10.0.0.12", "fd00::12"
RATE = 100
EGRESS_DENIED = (Rule(EGRESS, DENY, cookie=4), Rule(INGRESS, cookie=1))


@pytest.fixture
def telling(world: World) -> World:
    """A node that answers; pod_a may send nothing."""
    world.settings["flags"][0] |= world.layout.value("NODE_DENY_RESPONSE")
    world.set_policy(1, EGRESS_DENIED)
    return world


def verified(layer: Packet) -> bytes:
    """The packet's bytes after comparing them with the same packet, its checksums made by scapy."""
    anew = layer.copy()
    for part in (anew, anew.payload):
        for name in ("chksum", "cksum"):
            if name in part.fields:
                delattr(part, name)
    assert bytes(anew) == bytes(layer)
    return bytes(layer)


REFUSED: dict[str, Packet] = {
    "TCP to a pod": IP(src=A4, dst=B4) / TCP(sport=5, dport=80, flags="S"),
    "UDP to a pod elsewhere": IP(src=A4, dst=POD_FAR4) / UDP(sport=5, dport=53) / payload(100),
    "a ping of the world": IP(src=A4, dst=WORLD4) / ICMP(id=9) / payload(3),
    "options": IP(src=A4, dst=B4, options=[b"\x94\x04\0\0"]) / UDP(sport=5, dport=53) / payload(1),
    "a protocol without ports": IP(src=A4, dst=B4, proto=50) / payload(33),
    "a first fragment": IP(src=A4, dst=B4, flags="MF") / UDP(sport=5, dport=53, len=99) / payload(32),
    "a large packet": IP(src=A4, dst=B4) / UDP(sport=5, dport=53) / payload(1300),
    "just longer than a quote": IP(src=A4, dst=B4) / UDP(sport=5, dport=53) / payload(521),
    "the node": IP(src=A4, dst=ROUTER4) / TCP(sport=5, dport=22, flags="S"),
    "another node": IP(src=A4, dst=FAR_NODE4) / TCP(sport=5, dport=22, flags="S"),
}


@pytest.mark.parametrize("packet", REFUSED.values(), ids=REFUSED.keys())
def test_ipv4(telling: World, packet: Packet) -> None:
    before = telling.counted(181)
    done = telling.from_pod(telling.pod_a, packet)
    assert (done.action, done.reason, done.value) == ("DROP", 181, TCX_REDIRECT)
    assert telling.counted(181) == before + 1
    frame = done.packet
    assert (frame.dst, frame.src, frame.type) == (telling.pod_a.mac, telling.pod_a.host_mac, 0x0800)
    answer = frame[IP]
    verified(answer)
    assert (answer.src, answer.dst, answer.proto) == (ROUTER4, A4, 1)
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 13)
    assert bytes(answer[ICMP])[4:] == bytes(4) + bytes(packet)[:548]


REFUSED6: dict[str, Packet] = {
    "TCP to a pod": IPv6(src=A6, dst=B6) / TCP(sport=5, dport=80, flags="S"),
    "a ping of the world": IPv6(src=A6, dst=WORLD6) / ICMPv6EchoRequest(id=9) / payload(3),
    "extension headers": IPv6(src=A6, dst=B6) / IPv6ExtHdrHopByHop() / UDP(sport=5, dport=53) / payload(1),
    "a large packet": IPv6(src=A6, dst=B6) / UDP(sport=5, dport=53) / payload(1300),
}


@pytest.mark.parametrize("packet", REFUSED6.values(), ids=REFUSED6.keys())
def test_ipv6(telling: World, packet: Packet) -> None:
    done = telling.from_pod(telling.pod_a, packet)
    assert (done.action, done.reason, done.value) == ("DROP", 181, TCX_REDIRECT)
    answer = done.packet[IPv6]
    verified(answer)
    assert (answer.src, answer.dst, answer.nh) == (ROUTER6, A6, 58)
    assert (answer[ICMPv6DestUnreach].type, answer[ICMPv6DestUnreach].code) == (1, 1)
    quote = bytes(answer)[48:]
    assert quote == bytes(packet)[:1232]
    assert len(answer) <= 1280


def test_a_default_denial_is_answered_too(telling: World) -> None:
    telling.set_policy(1, DENY_ALL)
    done = telling.from_pod(telling.pod_a, REFUSED["TCP to a pod"])
    assert (done.reason, done.value) == (133, TCX_REDIRECT)


def test_remembered_denials_are_answered(telling: World) -> None:
    packet = IP(src=A4, dst=B4) / TCP(sport=5, dport=80, flags="A")
    telling.set_policy(1, (Rule(EGRESS), Rule(INGRESS)))
    assert telling.from_pod(telling.pod_a, packet).action == "LOCAL"
    telling.set_policy(1, EGRESS_DENIED)
    assert [telling.from_pod(telling.pod_a, packet).value for _ in range(2)] == [TCX_REDIRECT] * 2


ASKED = IP(src=B4, dst=A4) / UDP(sport=1, dport=2)
SILENT: dict[str, Packet] = {
    "an ICMP error": IP(src=A4, dst=B4) / ICMP(type=3, code=3) / ASKED,
    "an ICMPv6 error": IPv6(src=A6, dst=B6) / ICMPv6TimeExceeded() / IPv6(src=B6, dst=A6) / UDP(),
    "a later fragment": IP(src=A4, dst=B4, frag=4, proto=50) / payload(),
    "a later IPv6 fragment": IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(offset=4, nh=50) / payload(),
    "multicast": IP(src=A4, dst="224.0.0.5") / UDP(sport=5, dport=5),
    "a foreign source": IP(src=B4, dst=WORLD4) / UDP(sport=5, dport=5),
    "a frame for everybody": Ether(src="0a:00:00:00:00:0a", dst="ff:ff:ff:ff:ff:ff")
    / IP(src=A4, dst=B4)
    / UDP(sport=5, dport=5),
}


@pytest.mark.parametrize("packet", SILENT.values(), ids=SILENT.keys())
def test_nothing_is_said_of(telling: World, packet: Packet) -> None:
    done = telling.from_pod(telling.pod_a, packet)
    assert (done.action, done.value) == ("DROP", TCX_DROP)


def test_nothing_is_said_unless_asked_for(world: World) -> None:
    world.set_policy(1, EGRESS_DENIED)
    done = world.from_pod(world.pod_a, REFUSED["TCP to a pod"])
    assert (done.reason, done.value) == (181, TCX_DROP)


def test_the_receivers_policy_is_not_told(telling: World) -> None:
    telling.set_policy(2, DENY_ALL)
    telling.set_policy(1, (Rule(EGRESS), Rule(INGRESS)))
    done = telling.from_pod(telling.pod_a, REFUSED["TCP to a pod"])
    assert (done.reason, done.value) == (133, TCX_DROP)


def test_a_reply_that_the_initiator_may_not_hear_is_not_answered(telling: World) -> None:
    telling.set_policy(1, (Rule(EGRESS), Rule(INGRESS)))
    assert telling.from_pod(telling.pod_a, REFUSED["TCP to a pod"]).action == "LOCAL"
    telling.set_policy(1, EGRESS_DENIED)
    reply = IP(src=B4, dst=A4) / TCP(sport=80, dport=5, flags="SA")
    done = telling.from_pod(telling.pod_b, reply)
    assert (done.reason, done.value) == (181, TCX_DROP)


def test_answers_are_limited_and_reports_are_not_touched(telling: World) -> None:
    ring = Ring(telling.dataplane.maps["events_priority"], telling.layout.dtype("event"))
    ring.read()
    packet = bytes(Ether(src=telling.pod_a.mac, dst=telling.pod_a.host_mac) / REFUSED["TCP to a pod"])
    said = [telling.from_pod(telling.pod_a, packet).value for _ in range(4 * RATE)]
    assert RATE <= said.count(TCX_REDIRECT) < 2 * RATE
    assert said[:RATE] == [TCX_REDIRECT] * RATE
    assert len(ring.read()) == 4 * RATE
