"""Pods' traffic with the outside: translated on the way out, back on the way in."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.support.datapath_world import (
    FAR_NODE4,
    NODE4,
    NODE6,
    POD_FAR4,
    TCX_DROP,
    TCX_NEXT,
    WORLD4,
    WORLD6,
    Outcome,
    Rule,
    World,
    payload,
)

pytestmark = pytest.mark.root

POD4, POD6 = "10.0.0.11", "fd00::11"


def ip(source: str, destination: str, **fields: Any) -> Packet:
    kind: type[Packet] = IPv6 if ":" in source else IP
    return kind(src=source, dst=destination, **fields)


def leave(world: World, packet: Packet) -> Packet:
    """Out of the pod and out of the node; the packet as the world sees it, its checksums verified."""
    assert world.from_pod(world.pod_a, packet).action == "NETWORK"
    done = world.to_wire(packet)
    assert (done.value, done.action) == (TCX_NEXT, "NETWORK")
    return verified(done)


def verified(done: Outcome) -> Packet:
    """The packet, after comparing it with itself with all checksums made anew."""
    found: Packet = done.packet.payload
    assert bytes(anew(found)) == bytes(found)
    return found


def anew(packet: Packet) -> Packet:
    """A copy whose checksums scapy computes; those inside a quoted packet stay."""
    copy: Packet = packet.copy()
    for layer in (copy, copy.payload):
        if isinstance(layer, UDP) and layer.chksum == 0:
            continue
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                delattr(layer, name)
    return copy


@pytest.mark.parametrize(
    ("pod", "node", "world_address"), [(POD4, NODE4, WORLD4), (POD6, NODE6, WORLD6)], ids=["ipv4", "ipv6"]
)
@pytest.mark.parametrize("transport", [TCP, UDP])
@pytest.mark.parametrize("size", [0, 1, 37])
def test_there_and_back(
    world: World, pod: str, node: str, world_address: str, transport: type[Packet], size: int
) -> None:
    out = leave(world, ip(pod, world_address) / transport(sport=40000, dport=53) / Raw(b"q" * size))
    assert (out.src, out.dst, out.dport, bytes(out[transport].payload)) == (
        node,
        world_address,
        53,
        b"q" * size,
    )
    assert 32768 <= out.sport <= 33279
    answer = transport(sport=53, dport=out.sport)
    if transport is TCP:
        answer.flags = "SA"
    done = world.from_wire(ip(world_address, node) / answer / Raw(b"a" * size))
    assert (done.action, done.ifindex, done.state) == ("LOCAL", world.pod_a.ifindex, 3)
    back = verified(done)
    assert (back.src, back.dst, back.sport, back.dport) == (world_address, pod, 53, 40000)


def test_the_same_flow_keeps_its_port(world: World) -> None:
    packet = ip(POD4, WORLD4) / UDP(sport=40000, dport=53)
    assert leave(world, packet).sport == leave(world, packet).sport


def test_a_port_of_the_range_is_kept(world: World) -> None:
    assert leave(world, ip(POD4, WORLD4) / UDP(sport=33000, dport=53)).sport == 33000
    assert (
        world.from_pod(world.pod_b, ip("10.0.0.12", WORLD4) / UDP(sport=33000, dport=53)).action == "NETWORK"
    )
    done = world.to_wire(ip("10.0.0.12", WORLD4) / UDP(sport=33000, dport=53))
    assert done.packet[UDP].sport != 33000


def test_one_port_serves_many_destinations(world: World) -> None:
    first = leave(world, ip(POD4, WORLD4) / UDP(sport=33000, dport=53))
    second = leave(world, ip(POD4, "203.0.113.10") / UDP(sport=33000, dport=53))
    assert first.sport == second.sport == 33000


def test_udp_without_checksum_stays_without(world: World) -> None:
    packet = ip(POD4, WORLD4) / UDP(sport=40000, dport=53, chksum=0) / payload()
    assert leave(world, packet)[UDP].chksum == 0


@pytest.mark.parametrize("family", [4, 6])
def test_echo(world: World, family: int) -> None:
    if family == 4:
        ask: Packet = ICMP(type=8, id=77, seq=3)
        answer: Packet = ICMP(type=0, seq=3)
        pod, node, outside = POD4, NODE4, WORLD4
    else:
        ask, answer = ICMPv6EchoRequest(id=77, seq=3), ICMPv6EchoReply(seq=3)
        pod, node, outside = POD6, NODE6, WORLD6
    out = leave(world, ip(pod, outside) / ask / payload())
    assert out.src == node
    answer.id = out[type(ask)].id
    done = world.from_wire(ip(outside, node) / answer / payload())
    back = verified(done)
    assert (done.action, back.dst, back[type(answer)].id) == ("LOCAL", pod, 77)


@pytest.mark.parametrize("family", [4, 6])
def test_pings_of_one_number_both_ways(world: World, family: int) -> None:
    """A pod and somebody outside ping each other, and he the node, all under one number."""
    pod, node, outside = (POD4, NODE4, WORLD4) if family == 4 else (POD6, NODE6, WORLD6)
    ask, answer = (8, 0) if family == 4 else (128, 129)
    layer = IP if family == 4 else IPv6

    def echo(kind: int, number: int) -> Packet:
        if family == 4:
            return ICMP(type=kind, id=number, seq=1) / payload()
        return (ICMPv6EchoRequest if kind == 128 else ICMPv6EchoReply)(id=number, seq=1) / payload()

    out = leave(world, ip(pod, outside) / echo(ask, 77))
    assert out.src == node
    taken = out[ICMP if family == 4 else ICMPv6EchoRequest].id
    assert world.from_wire(ip(outside, pod) / echo(ask, 77)).action == "LOCAL"
    back = ip(pod, outside) / echo(answer, 77)
    assert world.from_pod(world.pod_a, back).action == "NETWORK"
    assert world.to_wire(back).packet[layer].src == pod
    assert world.from_wire(ip(outside, node) / echo(ask, taken)).packet[layer].dst == node


def test_error_about_a_masqueraded_packet(world: World) -> None:
    out = leave(world, ip(POD4, WORLD4) / UDP(sport=40000, dport=53) / payload())
    done = world.from_wire(ip("198.51.100.7", NODE4) / ICMP(type=11) / out)
    assert (done.action, done.state, done.ifindex) == ("LOCAL", 4, world.pod_a.ifindex)
    back = verified(done)
    quoted = back[IPerror]
    assert (back.dst, quoted.src, quoted.dst) == (POD4, POD4, WORLD4)
    assert (back[UDPerror].sport, back[UDPerror].dport) == (40000, 53)
    assert quoted.chksum == IP(bytes(anew(IP(bytes(quoted)))))[IP].chksum


def test_error_about_a_masqueraded_packet_ipv6(world: World) -> None:
    out = leave(world, ip(POD6, WORLD6) / UDP(sport=40000, dport=53) / payload())
    done = world.from_wire(ip("2001:db8:7::7", NODE6) / ICMPv6DestUnreach(code=4) / out)
    assert (done.action, done.state) == ("LOCAL", 4)
    back = verified(done)
    quoted = IPv6(bytes(back[ICMPv6DestUnreach].payload))
    assert (back.dst, quoted.src, quoted[UDP].sport) == (POD6, POD6, 40000)


def test_error_about_a_masqueraded_echo(world: World) -> None:
    out = leave(world, ip(POD4, WORLD4) / ICMP(type=8, id=77))
    done = world.from_wire(ip(WORLD4, NODE4) / ICMP(type=3, code=1) / out)
    assert (done.action, verified(done)[ICMPerror].id) == ("LOCAL", 77)


def test_error_of_a_pod_about_an_answer(world: World) -> None:
    out = leave(world, ip(POD4, WORLD4) / UDP(sport=40000, dport=53))
    answer = ip(WORLD4, POD4) / UDP(sport=53, dport=40000) / payload()
    error = ip(POD4, WORLD4) / ICMP(type=3, code=3) / answer
    assert world.from_pod(world.pod_a, error).action == "NETWORK"
    done = world.to_wire(error)
    seen = verified(done)
    assert (seen.src, seen[IPerror].dst, seen[UDPerror].dport) == (NODE4, NODE4, out.sport)


def test_fragments_are_translated_together(world: World) -> None:
    datagram = ip(POD4, WORLD4, id=5) / UDP(sport=40000, dport=53) / payload(24)
    whole = bytes(IP(bytes(datagram))[UDP])
    first = ip(POD4, WORLD4, id=5, flags="MF", proto=17) / Raw(whole[:16])
    later = ip(POD4, WORLD4, id=5, frag=2, proto=17) / Raw(whole[16:])
    sent = [leave_fragment(world, packet) for packet in (first, later)]
    assert {packet.src for packet in sent} == {NODE4}
    joined = IP(src=NODE4, dst=WORLD4, proto=17) / Raw(bytes(sent[0].payload) + bytes(sent[1].payload))
    made = IP(bytes(joined))
    assert made[UDP].chksum == anew_checksum(made)
    back = ip(WORLD4, NODE4, id=6) / UDP(sport=53, dport=made.sport) / payload(24)
    raw = bytes(IP(bytes(back))[UDP])
    got = [
        world.from_wire(ip(WORLD4, NODE4, id=6, flags="MF", proto=17) / Raw(raw[:16])),
        world.from_wire(ip(WORLD4, NODE4, id=6, frag=2, proto=17) / Raw(raw[16:])),
    ]
    assert [(done.action, done.packet[IP].dst) for done in got] == [("LOCAL", POD4)] * 2


def leave_fragment(world: World, packet: Packet) -> Packet:
    assert world.from_pod(world.pod_a, packet).action == "NETWORK"
    left: Packet = world.to_wire(packet).packet[IP]
    return left


def anew_checksum(packet: Packet) -> int:
    copy = packet.copy()
    del copy[UDP].chksum
    return int(IP(bytes(copy))[UDP].chksum)


def test_no_port_left(world: World) -> None:
    world.settings["nat_first_port"][0] = 33000
    world.settings["nat_last_port"][0] = 33000
    leave(world, ip(POD4, WORLD4) / UDP(sport=1, dport=53))
    done = world.to_wire(ip(POD4, WORLD4) / UDP(sport=2, dport=53))
    assert (done.value, done.reason) == (TCX_DROP, 167)


def test_other_protocols_are_not_masqueraded(world: World) -> None:
    assert world.to_wire(ip(POD4, WORLD4, proto=47) / payload(20)).reason == 168
    assert world.to_wire(ip(POD4, WORLD4, proto=47, frag=3) / payload(20)).reason == 168


UNTOUCHED = {
    "the node's own": Ether(src="02:00:00:00:00:01") / IP(src=NODE4, dst=WORLD4) / UDP(),
    "a stranger's": Ether() / IP(src="10.99.0.1", dst=WORLD4) / UDP(),
    "pod to pod by native routes": Ether() / IP(src=POD4, dst=POD_FAR4) / UDP(),
    "tagged": Ether() / Dot1Q(vlan=3) / IP(src=POD4, dst=WORLD4) / UDP(),
    "no IP": Ether(type=0x88CC) / payload(30),
    "extension headers": Ether() / IPv6(src=NODE6, dst=WORLD6, nh=0) / payload(30),
    "cut off": Ether() / IP(src=NODE4, dst=WORLD4, proto=6) / payload(3),
    "echo reply": Ether() / IP(src=POD4, dst=WORLD4) / ICMP(type=0),
    "a later fragment of the node": Ether() / IP(src=NODE4, dst=WORLD4, frag=5, proto=17) / payload(),
}


@pytest.mark.parametrize("frame", UNTOUCHED.values(), ids=UNTOUCHED.keys())
@pytest.mark.parametrize("program", ["to_netdev"])
def test_departures_left_alone(world: World, program: str, frame: Packet) -> None:
    before = world.all_counted()
    done = world.run(program, frame, ifindex=world.devices["eth"])
    assert (done.value, done.action, done.data) == (TCX_NEXT, "STACK", bytes(frame))
    assert world.all_counted() == before


ARRIVALS = {
    "for the node": Ether() / IP(src=WORLD4, dst=NODE4) / TCP(dport=22),
    "for nobody": Ether() / IP(src=WORLD4, dst="198.51.100.9") / UDP(),
    "a tunnel's": Ether() / IP(src=FAR_NODE4, dst=NODE4) / UDP(dport=8472) / payload(50),
    "multicast": Ether() / IP(src=FAR_NODE4, dst="224.0.0.1") / UDP(),
    "tagged": Ether() / Dot1Q(vlan=3) / IP(src=POD4, dst=NODE4) / UDP(),
    "no IP": Ether(type=0x88CC) / payload(30),
    "neighbour discovery": Ether() / IPv6(src="fe80::1", dst="ff02::1") / payload(30),
    "error about the node's own": Ether()
    / IP(src=WORLD4, dst=NODE4)
    / ICMP(type=3)
    / IP(src=NODE4, dst=WORLD4)
    / UDP(sport=9, dport=9),
    "fragment for the node": Ether() / IP(src=WORLD4, dst=NODE4, frag=5, proto=17) / payload(),
    "protocol for the node": Ether() / IP(src=WORLD4, dst=NODE4, proto=89) / payload(20),
}


@pytest.mark.parametrize("frame", ARRIVALS.values(), ids=ARRIVALS.keys())
def test_arrivals_left_alone(world: World, frame: Packet) -> None:
    before = world.all_counted()
    done = world.run("from_netdev", frame, ifindex=world.devices["eth"])
    assert (done.value, done.action, done.data) == (TCX_NEXT, "STACK", bytes(frame))
    assert world.all_counted() == before


@pytest.mark.parametrize("source", [POD4, NODE4, POD_FAR4])
@pytest.mark.parametrize("destination", [NODE4, "10.0.0.12"])
def test_inside_addresses_from_outside(world: World, source: str, destination: str) -> None:
    done = world.from_wire(ip(source, destination) / UDP(sport=1, dport=2))
    assert (done.value, done.reason) == (TCX_DROP, 132)


def test_world_to_pod_directly(world: World) -> None:
    arrived = world.from_wire(ip(WORLD4, POD4) / TCP(sport=9, dport=80, flags="S"))
    assert (arrived.action, arrived.source_identity, arrived.ingress_cookie) == ("LOCAL", 9, 1)
    assert arrived.packet[IP].ttl == 63
    answer = ip(POD4, WORLD4) / TCP(sport=80, dport=9, flags="SA")
    assert world.from_pod(world.pod_a, answer).state == 3
    assert world.to_wire(answer).action == "STACK"
    world.set_policy(1, (Rule(1, 0, cookie=3, flags=4), Rule(2, 1, flags=4)))
    assert world.from_wire(ip(WORLD4, POD4) / TCP(sport=9, dport=80, flags="A")).reason == 133


def test_masquerade_can_be_off(world: World) -> None:
    world.settings["flags"][0] = world.layout.value("NODE_TUNNEL")
    assert world.to_wire(ip(POD4, WORLD4) / UDP(sport=1, dport=53)).action == "STACK"


def test_a_lost_way_back_is_restored(world: World) -> None:
    packet = ip(POD4, WORLD4) / UDP(sport=40000, dport=53)
    out = leave(world, packet)
    snat = world.dataplane.maps["snat"]
    keys, values = snat.dump()
    for key, value in zip(keys, values, strict=True):
        if int(key["way"]) == 2:
            snat.delete(key)
        else:
            aged = value.copy()
            aged["seen"] = 1
            snat.update(key, aged)
    assert leave(world, packet).sport == out.sport
    assert world.from_wire(ip(WORLD4, NODE4) / UDP(sport=53, dport=out.sport)).action == "LOCAL"
