"""Protocols beside TCP, UDP and ICMP: SCTP, those without ports, and chains of IPv6 extension headers."""

from __future__ import annotations

import random
import time
from typing import Any, NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    in6_chksum,
)
from scapy.layers.ipsec import AH
from scapy.layers.sctp import (
    SCTP,
    SCTPChunkAbort,
    SCTPChunkCookieEcho,
    SCTPChunkInit,
    SCTPChunkInitAck,
    SCTPChunkShutdown,
    SCTPChunkShutdownAck,
    SCTPChunkShutdownComplete,
)
from scapy.packet import Packet, Raw, bind_layers

from tests.support.datapath_ears import Ears
from tests.support.datapath_world import (
    ALLOW,
    DENY,
    EGRESS,
    INGRESS,
    NODE4,
    POD_FAR4,
    ROUTER6,
    WORLD4,
    WORLD6,
    Rule,
    World,
    payload,
)

pytestmark = pytest.mark.root

A4, B4, A6, B6 = "10.0.0.11", "10.0.0.12", "fd00::11", "fd00::12"
GRE, SCTP_NUMBER, ESP, AUTHENTICATION, NO_NEXT = 47, 132, 50, 51, 59
NEW, ESTABLISHED, REPLY, RELATED = 1, 2, 3, 4
ALLOW_OUT = Rule(EGRESS, cookie=2, flags=4)
DENY_IN = Rule(INGRESS, DENY, precedence=1, cookie=3, flags=4)


def ahead(chunk: Packet) -> Packet:
    return IP(src=A4, dst=B4) / SCTP(sport=4000, dport=3868) / chunk


def back(chunk: Packet) -> Packet:
    return IP(src=B4, dst=A4) / SCTP(sport=3868, dport=4000) / chunk


def associate(world: World) -> None:
    for pod, packet, state in (
        (world.pod_a, ahead(SCTPChunkInit()), NEW),
        (world.pod_b, back(SCTPChunkInitAck()), REPLY),
        (world.pod_a, ahead(SCTPChunkCookieEcho()), ESTABLISHED),
    ):
        done = world.from_pod(pod, packet)
        assert (done.action, done.state) == ("LOCAL", state)


def life_left(world: World) -> int:
    _, value = world.only_flow()
    return int(value["expires"]) - int(time.clock_gettime(time.CLOCK_MONOTONIC))


for number, layer in ((6, TCP), (17, UDP)):
    bind_layers(AH, layer, nh=number)

# SCTP


def test_sctp_is_one_flow_with_ports(world: World) -> None:
    associate(world)
    key, value = world.only_flow()
    assert (int(key["low_port"]), int(key["high_port"]), int(key["protocol"])) == (4000, 3868, SCTP_NUMBER)
    assert value["packets"].tolist() == [2, 1]


def test_sctp_is_judged_by_port(world: World) -> None:
    rule = Rule(INGRESS, ALLOW, protocol=SCTP_NUMBER, port=3868, bits=24, cookie=9)
    world.set_policy(2, (DENY_IN, ALLOW_OUT, rule))
    assert world.from_pod(world.pod_a, ahead(SCTPChunkInit())).ingress_cookie == 9
    other = IP(src=A4, dst=B4) / SCTP(sport=4000, dport=3869) / SCTPChunkInit()
    assert world.from_pod(world.pod_a, other).reason == 133
    udp = IP(src=A4, dst=B4) / UDP(sport=4000, dport=3868)
    assert world.from_pod(world.pod_a, udp).reason == 133


def test_sctp_lifetimes(world: World) -> None:
    world.from_pod(world.pod_a, ahead(SCTPChunkInit()))
    assert 57 <= life_left(world) <= 60
    world.from_pod(world.pod_b, back(SCTPChunkInitAck()))
    assert 57 <= life_left(world) <= 60
    world.from_pod(world.pod_a, ahead(SCTPChunkCookieEcho()))
    assert 297 <= life_left(world) <= 300
    world.from_pod(world.pod_a, ahead(SCTPChunkShutdown()))
    assert life_left(world) > 290
    world.from_pod(world.pod_b, back(SCTPChunkShutdownAck()))
    assert life_left(world) <= 10
    assert world.from_pod(world.pod_a, ahead(SCTPChunkShutdownComplete())).action == "LOCAL"


def test_sctp_abort_closes(world: World) -> None:
    associate(world)
    world.from_pod(world.pod_b, back(SCTPChunkAbort()))
    assert life_left(world) <= 10
    assert world.from_pod(world.pod_a, ahead(SCTPChunkInit())).state == NEW


def test_either_end_of_an_association_may_begin_anew(world: World) -> None:
    associate(world)
    assert world.from_pod(world.pod_b, back(SCTPChunkInit())).state == NEW
    assert world.from_pod(world.pod_a, ahead(SCTPChunkInitAck())).state == REPLY


def test_beginning_anew_needs_a_rule_of_its_own(world: World) -> None:
    associate(world)
    world.set_policy(2, (Rule(INGRESS, cookie=1), Rule(EGRESS, DENY, cookie=5)))
    assert world.from_pod(world.pod_b, back(SCTPChunkInit())).reason == 181
    assert world.from_pod(world.pod_a, ahead(SCTPChunkCookieEcho())).action == "LOCAL"


def test_sctp_events_carry_ports_and_no_tcp_flags(world: World) -> None:
    ears = Ears(world)
    world.from_pod(world.pod_a, ahead(SCTPChunkInit()))
    (event,) = ears.traces()
    assert (int(event["source_port"]), int(event["destination_port"])) == (4000, 3868)
    assert (int(event["protocol"]), int(event["tcp_flags"])) == (SCTP_NUMBER, 0)


def test_an_icmp_error_about_sctp(world: World) -> None:
    asked = ahead(SCTPChunkInit())
    world.from_pod(world.pod_a, asked)
    error = IP(src=B4, dst=A4) / ICMP(type=3, code=2) / asked
    done = world.from_pod(world.pod_b, error)
    assert (done.action, done.state) == ("LOCAL", RELATED)


def test_sctp_is_masqueraded_with_its_own_port(world: World) -> None:
    """Its checksum covers ports and data, not addresses."""
    asked = IP(src=A4, dst=WORLD4) / SCTP(sport=4000, dport=3868) / SCTPChunkInit()
    assert world.from_pod(world.pod_a, asked).action == "NETWORK"
    left = world.to_wire(asked).packet[IP]
    assert (left.src, bytes(left.payload)) == (NODE4, bytes(asked.payload))
    answer = IP(src=WORLD4, dst=NODE4) / SCTP(sport=3868, dport=4000) / SCTPChunkInitAck()
    done = world.from_wire(answer)
    assert (done.action, done.state, done.packet[IP].dst) == ("LOCAL", REPLY, A4)
    error = IP(src="198.51.100.1", dst=NODE4) / ICMP(type=11) / left
    done = world.from_wire(error)
    assert (done.action, done.packet[IP].dst) == ("LOCAL", A4)
    assert bytes(done.packet[ICMP].payload)[12:16] == bytes(asked)[12:16]


def test_sctp_ports_are_not_shared(world: World) -> None:
    for pod, reason in ((world.pod_a, 0), (world.pod_b, 168)):
        asked = IP(src=pod.ipv4, dst=WORLD4) / SCTP(sport=4000, dport=3868) / SCTPChunkInit()
        assert world.to_wire(asked).reason == reason


def test_sctp_in_pieces(world: World) -> None:
    first = IP(src=A4, dst=B4, id=7, flags="MF") / SCTP(sport=4000, dport=3868) / SCTPChunkInit()
    later = IP(src=A4, dst=B4, id=7, frag=4, proto=SCTP_NUMBER) / payload(16)
    assert world.from_pod(world.pod_a, later).reason == 175
    for packet in (first, later):
        assert world.from_pod(world.pod_a, packet).action == "LOCAL"
    assert int(world.only_flow()[1]["packets"][0]) == 2


# protocols without ports


@pytest.mark.parametrize("protocol", [2, GRE, ESP, AUTHENTICATION, 89, 112, 4, 41, 253])
def test_any_protocol_is_a_flow_by_addresses(world: World, protocol: int) -> None:
    there = IP(src=A4, dst=B4, proto=protocol) / payload(40)
    again = IP(src=B4, dst=A4, proto=protocol) / payload(40)
    assert world.from_pod(world.pod_a, there).state == NEW
    assert world.from_pod(world.pod_b, again).state == REPLY
    key, _ = world.only_flow()
    assert (int(key["low_port"]), int(key["high_port"]), int(key["protocol"])) == (0, 0, protocol)
    assert 57 <= life_left(world) <= 60


def test_protocols_are_judged_by_number(world: World) -> None:
    rule = Rule(INGRESS, ALLOW, protocol=ESP, bits=8, cookie=9)
    world.set_policy(2, (DENY_IN, ALLOW_OUT, rule))
    assert world.from_pod(world.pod_a, IP(src=A4, dst=B4, proto=ESP) / payload(20)).ingress_cookie == 9
    assert world.from_pod(world.pod_a, IP(src=A4, dst=B4, proto=GRE) / payload(20)).reason == 133
    assert world.from_pod(world.pod_a, IPv6(src=A6, dst=B6, nh=ESP) / payload(20)).ingress_cookie == 9


def test_replies_of_a_protocol_need_no_rule(world: World) -> None:
    world.set_policy(2, (Rule(INGRESS, cookie=1), Rule(EGRESS, DENY, cookie=5)))
    back = IP(src=B4, dst=A4, proto=GRE) / payload(20)
    assert world.from_pod(world.pod_b, back).reason == 181
    assert world.from_pod(world.pod_a, IP(src=A4, dst=B4, proto=GRE) / payload(20)).action == "LOCAL"
    assert world.from_pod(world.pod_b, back).action == "LOCAL"


def test_pieces_of_a_protocol_without_ports_need_no_first(world: World) -> None:
    assert world.from_pod(world.pod_a, IP(src=A4, dst=B4, frag=9, proto=ESP) / payload(8)).action == "LOCAL"
    later = IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(offset=9, nh=ESP) / payload(8)
    assert world.from_pod(world.pod_a, later).action == "LOCAL"


def test_an_icmp_error_about_a_protocol_without_ports(world: World) -> None:
    asked = IP(src=A4, dst=B4, proto=ESP) / payload(20)
    world.from_pod(world.pod_a, asked)
    done = world.from_pod(world.pod_b, IP(src=B4, dst=A4) / ICMP(type=3, code=2) / asked)
    assert (done.action, done.state) == ("LOCAL", RELATED)


@pytest.mark.parametrize("protocol", [4, 41, GRE])
def test_encapsulated_packets_go_to_pods_only(world: World, protocol: int) -> None:
    inner = payload(40)
    assert world.from_pod(world.pod_a, IP(src=A4, dst=B4, proto=protocol) / inner).action == "LOCAL"
    assert world.from_pod(world.pod_a, IP(src=A4, dst=POD_FAR4, proto=protocol) / inner).action == "TUNNEL"
    assert world.from_pod(world.pod_a, IP(src=A4, dst=NODE4, proto=protocol) / inner).reason == 170
    assert world.from_pod(world.pod_a, IP(src=A4, dst=WORLD4, proto=protocol) / inner).reason == 142


@pytest.mark.parametrize("family", [4, 6])
def test_a_large_ping_in_pieces(world: World, family: int) -> None:
    asked: list[Packet] = [
        IP(src=A4, dst=B4, id=7, flags="MF") / ICMP(id=5) / payload(16),
        IP(src=A4, dst=B4, id=7, frag=3, proto=1) / payload(16),
    ]
    answered: list[Packet] = [
        IP(src=B4, dst=A4, id=8, flags="MF") / ICMP(type=0, id=5) / payload(16),
        IP(src=B4, dst=A4, id=8, frag=3, proto=1) / payload(16),
    ]
    if family == 6:
        later = IPv6ExtHdrFragment(id=9, offset=3, nh=58) / payload(16)
        first = IPv6ExtHdrFragment(id=9, m=1)
        asked = [
            IPv6(src=A6, dst=B6) / first / ICMPv6EchoRequest(id=5) / payload(16),
            IPv6(src=A6, dst=B6) / later,
        ]
        answered = [
            IPv6(src=B6, dst=A6) / first / ICMPv6EchoReply(id=5) / payload(16),
            IPv6(src=B6, dst=A6) / later,
        ]
    for packet in asked:
        assert world.from_pod(world.pod_a, packet).action == "LOCAL"
    for packet in answered:
        assert world.from_pod(world.pod_b, packet).state == REPLY
    assert world.only_flow()[1]["packets"].tolist() == [2, 2]


def test_a_large_ping_of_the_world(world: World) -> None:
    first = IP(src=A4, dst=WORLD4, id=7, flags="MF") / ICMP(id=40000) / payload(16)
    later = IP(src=A4, dst=WORLD4, id=7, frag=3, proto=1) / payload(16)
    for packet in (first, later):
        assert world.from_pod(world.pod_a, packet).action == "NETWORK"
        assert world.to_wire(packet).packet[IP].src == NODE4


# IPv6 extension headers

CHAINS: dict[str, Packet] = {
    "hop by hop": IPv6ExtHdrHopByHop(),
    "destination options": IPv6ExtHdrDestOpt(),
    "a route that has ended": IPv6ExtHdrRouting(type=4, segleft=0),
    "authentication": AH(icv=bytes(12), payloadlen=4),
    "an atomic fragment": IPv6ExtHdrFragment(id=3),
    "all in order": IPv6ExtHdrHopByHop()
    / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrRouting(type=4, segleft=0)
    / IPv6ExtHdrFragment()
    / IPv6ExtHdrDestOpt(),
    "long options": IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(200))]),
    "as many as are walked": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrDestOpt(),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_extension_headers_are_walked(world: World, chain: Packet) -> None:
    rule = Rule(INGRESS, ALLOW, protocol=6, port=80, bits=24, cookie=9)
    world.set_policy(2, (DENY_IN, ALLOW_OUT, rule))
    done = world.from_pod(world.pod_a, IPv6(src=A6, dst=B6) / chain / TCP(sport=5, dport=80, flags="S"))
    assert (done.action, done.ingress_cookie) == ("LOCAL", 9)
    done = world.from_pod(world.pod_a, IPv6(src=A6, dst=B6) / chain / TCP(sport=5, dport=81, flags="S"))
    assert done.reason == 133


@pytest.mark.parametrize("name", sorted(set(CHAINS) - {"authentication"}))
def test_extension_headers_are_masqueraded_around(world: World, name: str) -> None:
    asked = IPv6(src=A6, dst=WORLD6) / CHAINS[name] / UDP(sport=40000, dport=53) / payload()
    left = world.to_wire(asked).packet[IPv6]
    assert left.src == "2001:db8:f::1"
    datagram = bytes(left)[-16:]
    assert datagram[2:6] == bytes(asked)[-14:-10]
    sum_of: Any = in6_chksum
    assert sum_of(17, IPv6(src=left.src, dst=WORLD6), datagram) == 0
    error = IPv6(src="2001:db8:8::8", dst=left.src) / ICMPv6DestUnreach() / left
    world.from_pod(world.pod_a, asked)
    done = world.from_wire(error)
    assert (done.action, done.state, done.packet[IPv6].dst) == ("LOCAL", RELATED, A6)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_an_icmp_error_quotes_extension_headers(world: World, chain: Packet) -> None:
    asked = IPv6(src=A6, dst=B6) / chain / UDP(sport=5, dport=53) / payload()
    assert world.from_pod(world.pod_a, asked).action == "LOCAL"
    done = world.from_pod(world.pod_b, IPv6(src=B6, dst=A6) / ICMPv6DestUnreach(code=4) / asked)
    assert (done.action, done.state) == ("LOCAL", RELATED)
    other = IPv6(src=A6, dst=B6) / chain / UDP(sport=6, dport=53) / payload()
    assert world.from_pod(world.pod_b, IPv6(src=B6, dst=A6) / ICMPv6DestUnreach() / other).reason == 146


def test_what_ends_a_chain_is_a_protocol(world: World) -> None:
    options = IPv6ExtHdrDestOpt(nh=NO_NEXT)
    assert world.from_pod(world.pod_a, IPv6(src=A6, dst=B6) / options / payload()).action == "LOCAL"
    options = IPv6ExtHdrDestOpt(nh=ESP)
    assert world.from_pod(world.pod_a, IPv6(src=A6, dst=B6) / options / payload(20)).action == "LOCAL"
    assert sorted(int(key["protocol"]) for key, _ in world.flows()) == [ESP, NO_NEXT]


TOO_MUCH: dict[str, tuple[Packet, int]] = {
    "nine headers": (CHAINS["as many as are walked"] / IPv6ExtHdrDestOpt() / UDP(), 156),
    "more than 256 bytes": (CHAINS["long options"] / CHAINS["long options"] / UDP(), 156),
    "two fragment headers": (IPv6ExtHdrFragment() / IPv6ExtHdrFragment() / UDP(), 156),
    "cut off": (IPv6ExtHdrDestOpt(nh=60) / payload(3), 135),
    "pointing beyond": (IPv6ExtHdrDestOpt(nh=17, len=2) / payload(8), 135),
}


@pytest.mark.parametrize(("chain", "reason"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_chains_that_are_refused(world: World, chain: Packet, reason: int) -> None:
    assert world.from_pod(world.pod_a, IPv6(src=A6, dst=B6) / chain).reason == reason


def test_pieces_whose_first_hides_its_protocol(world: World) -> None:
    """Destination options behind the fragment header: only the first piece tells what follows them."""
    options = IPv6ExtHdrFragment(id=9, m=1, nh=60) / IPv6ExtHdrDestOpt()
    first = IPv6(src=A6, dst=B6) / options / UDP(sport=1000, dport=53, len=32) / payload(8)
    later = IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(id=9, offset=3, nh=60) / payload(8)
    assert world.from_pod(world.pod_a, later).reason == 175
    for packet in (first, later):
        assert world.from_pod(world.pod_a, packet).action == "LOCAL"
    key, value = world.only_flow()
    assert (int(key["protocol"]), int(value["packets"][0])) == (17, 2)


def test_a_first_piece_holds_the_whole_chain(world: World) -> None:
    """RFC 7112: what follows the piece's end is not what its receiver puts there."""
    first = IPv6(src=A6, dst=B6, plen=16) / IPv6ExtHdrFragment(m=1, nh=60) / IPv6ExtHdrDestOpt(nh=17)
    assert world.from_pod(world.pod_a, first / UDP(sport=1, dport=2)).reason == 135


def test_the_gateway_answers_behind_options(world: World) -> None:
    question = IPv6(src=A6, dst=ROUTER6, hlim=255) / IPv6ExtHdrDestOpt() / ICMPv6ND_NS(tgt=ROUTER6)
    assert world.from_pod(world.pod_a, question).action == "ANSWERED"


HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS, MOBILITY = 0, 43, 44, 60, 135
LENGTH_UNITS = {HOP_BY_HOP: 8, ROUTING: 8, OPTIONS: 8, MOBILITY: 8, AUTHENTICATION: 4, FRAGMENT: 0}


class Header(NamedTuple):
    """One extension header, as it is written and as it should be understood."""

    kind: int
    length: int
    """What it says of its length, in its own units."""
    third: int
    fourth: int

    @property
    def size(self) -> int:
        if self.kind == FRAGMENT:
            return 8
        return (self.length + (2 if self.kind == AUTHENTICATION else 1)) * LENGTH_UNITS[self.kind]

    def written(self, follows: int) -> bytes:
        head = bytes((follows, self.length, self.third, self.fourth))
        return head.ljust(self.size, b"\0")


def random_chain(rng: random.Random) -> list[Header]:
    chain = []
    for _ in range(rng.choice([0, 1, 2, 2, 3, 4, 8, 9])):
        kind = rng.choice([OPTIONS, OPTIONS, *LENGTH_UNITS])
        length = 0 if kind == FRAGMENT else rng.choice([1, 1, 2, 3, 30])
        third, fourth = (0, 0) if kind == FRAGMENT else (rng.choice([0, 2, 4]), rng.choice([0, 0, 1]))
        chain.append(Header(kind, length, third, fourth))
    return chain


def understood(chain: list[Header]) -> bool:
    """RFC 8200, 4.1, and the bounds of the walk, said once more."""
    walked = 0
    for place, header in enumerate(chain):
        walked += header.size
        if place >= 8 or walked > 256:
            return False
        if header.kind == HOP_BY_HOP and place:
            return False
        if header.kind == ROUTING and (header.third == 0 or header.fourth):
            return False
        if header.kind == FRAGMENT and any(earlier.kind == FRAGMENT for earlier in chain[:place]):
            return False
    return True


def test_random_chains_are_understood_as_the_standards_say(world: World) -> None:
    rng = random.Random(6)
    seen = {True: 0, False: 0}
    for number in range(600):
        world.forget_flows()
        chain = random_chain(rng)
        kinds = [header.kind for header in chain] + [17]
        headers = b"".join(header.written(kinds[at + 1]) for at, header in enumerate(chain))
        datagram = bytes(UDP(sport=1000 + number, dport=53, len=16, chksum=1) / payload(8))
        done = world.from_pod(world.pod_a, IPv6(src=A6, dst=B6, nh=kinds[0]) / Raw(headers + datagram))
        expected = understood(chain)
        seen[expected] += 1
        assert done.reason == (0 if expected else 156), chain
        if expected:
            key, _ = world.only_flow()
            assert (int(key["low_port"]), int(key["protocol"])) == (1000 + number, 17), chain
    assert min(seen.values()) > 100
