"""What a pod may put on its wire: its own addresses, whole headers, questions about its gateway."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6Unknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.support.datapath_world import (
    FAR_NODE4,
    GATEWAY_MAC,
    HOST_MAC,
    NODE4,
    ROUTER4,
    ROUTER6,
    TCX_REDIRECT,
    WORLD4,
    World,
    payload,
)

pytestmark = pytest.mark.root

A4, B4, A6, B6 = "10.0.0.11", "10.0.0.12", "fd00::11", "fd00::12"
A_MAC, A_HOST_MAC = "0a:00:00:00:00:0a", "0e:00:00:00:00:0a"
LOCAL6 = "fe80::a"

DROPPED: dict[str, tuple[Packet | bytes, int]] = {
    "foreign IPv4 source": (IP(src=B4, dst=B4) / UDP(), 132),
    "foreign IPv6 source": (IPv6(src=B6, dst=B6) / UDP(), 132),
    "no source": (IP(src="0.0.0.0", dst=B4) / UDP(), 132),
    "link-local source": (IPv6(src=LOCAL6, dst=B6) / UDP(), 132),
    "v4-mapped destination": (IPv6(src=A6, dst="::ffff:10.0.0.12") / UDP(), 134),
    "v4-mapped source": (IPv6(src="::ffff:10.0.0.11", dst=B6) / UDP(), 134),
    "hop-by-hop options behind others": (
        IPv6(src=A6, dst=B6) / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / UDP(),
        156,
    ),
    "source route": (IPv6(src=A6, dst=B6) / IPv6ExtHdrRouting(type=0) / UDP(), 156),
    "route that goes on": (IPv6(src=A6, dst=B6) / IPv6ExtHdrRouting(type=4, segleft=1) / UDP(), 156),
    "extension headers without end": (IPv6(src=A6, dst=B6, nh=60) / Raw((b"\x3c" + bytes(7)) * 20), 156),
    "neighbour question in pieces": (
        IPv6(src=A6, dst=ROUTER6, hlim=255) / IPv6ExtHdrFragment(m=1) / ICMPv6ND_NS(tgt=ROUTER6),
        134,
    ),
    "two fragment headers": (
        IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment() / IPv6ExtHdrFragment() / UDP(),
        156,
    ),
    "ICMPv6 in IPv4": (IP(src=A4, dst=B4, proto=58) / payload(20), 142),
    "IPIP to a node": (IP(src=A4, dst=FAR_NODE4) / IP() / UDP(), 170),
    "GRE to this node": (IP(src=A4, dst=NODE4, proto=47) / payload(20), 170),
    "VXLAN to a node": (IP(src=A4, dst=FAR_NODE4) / UDP(dport=8472), 170),
    "Geneve to this node": (IP(src=A4, dst=NODE4) / UDP(dport=6081), 170),
    "WireGuard to a node": (IP(src=A4, dst=FAR_NODE4) / UDP(dport=51871), 170),
    "DHCP server": (IP(src=A4, dst=B4) / UDP(sport=67, dport=68), 134),
    "DHCPv6 server": (IPv6(src=A6, dst=B6) / UDP(sport=547, dport=546), 134),
    "router advertisement": (IPv6(src=LOCAL6, dst="ff02::1", hlim=255) / ICMPv6ND_RA(), 176),
    "redirect": (IPv6(src=LOCAL6, dst=B6, hlim=255) / ICMPv6ND_Redirect(), 176),
    "another's address advertised": (
        IPv6(src=A6, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=B6) / ICMPv6NDOptDstLLAddr(lladdr=A_MAC),
        176,
    ),
    "another's address asked for": (
        IPv6(src=A6, dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt=B6) / ICMPv6NDOptSrcLLAddr(lladdr=A_MAC),
        176,
    ),
    "the gateway's address claimed": (
        IPv6(src="::", dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt=ROUTER6),
        176,
    ),
    "neighbour question from afar": (IPv6(src=A6, dst=ROUTER6, hlim=64) / ICMPv6ND_NS(tgt=ROUTER6), 134),
    "neighbour question of another": (IPv6(src=B6, dst=ROUTER6, hlim=255) / ICMPv6ND_NS(tgt=ROUTER6), 132),
    "router solicitation": (IPv6(src=LOCAL6, dst="ff02::2", hlim=255) / ICMPv6ND_RS(), 150),
    "duplicate address detection": (IPv6(src="::", dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt=A6), 150),
    "listener report": (IPv6(src=LOCAL6, dst="ff02::16", hlim=1) / ICMPv6MLReport2() / payload(8), 150),
    "listener report with router alert": (
        IPv6(src=LOCAL6, dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop() / ICMPv6MLReport2() / payload(8),
        150,
    ),
    "strange ICMP": (IP(src=A4, dst=B4) / ICMP(type=5), 144),
    "strange ICMPv6": (IPv6(src=A6, dst=B6) / ICMPv6Unknown(type=200) / payload(8), 146),
    "ICMP error about nothing": (IP(src=A4, dst=B4) / ICMP(type=3) / IP(src=B4, dst=A4) / UDP(), 144),
    "echo reply to nothing": (IP(src=A4, dst=B4) / ICMP(type=0, id=5), 163),
    "tag": (Ether(src=A_MAC, dst=A_HOST_MAC) / Dot1Q(vlan=5) / IP(src=A4, dst=B4) / UDP(), 182),
    "foreign ethertype": (Ether(src=A_MAC, dst=A_HOST_MAC, type=0x88CC) / payload(50), 139),
    "wrong IP version": (Ether(src=A_MAC, dst=A_HOST_MAC, type=0x0800) / IPv6(src=A6, dst=B6) / UDP(), 134),
    "short header length": (IP(src=A4, dst=B4, ihl=4) / UDP(), 134),
    "options cut off": (IP(src=A4, dst=B4, ihl=15) / UDP(), 135),
    "length beyond the packet": (IP(src=A4, dst=B4, len=999) / UDP(), 135),
    "length within the header": (IP(src=A4, dst=B4, len=12) / UDP(), 135),
    "IPv6 length beyond the packet": (IPv6(src=A6, dst=B6, plen=999) / UDP(), 135),
    "UDP cut off": (IP(src=A4, dst=B4, proto=17) / Raw(b"abc"), 135),
    "TCP cut off": (IP(src=A4, dst=B4, proto=6) / Raw(b"x" * 19), 135),
    "SCTP cut off": (IP(src=A4, dst=B4, proto=132) / Raw(b"x" * 12), 135),
    "ICMP cut off": (IP(src=A4, dst=B4, proto=1) / Raw(b"x" * 7), 135),
    "ARP cut off": (Ether(src=A_MAC, dst=A_HOST_MAC, type=0x0806) / Raw(b"x" * 20), 134),
    "ARP of another": (
        Ether(src=A_MAC) / ARP(op=1, hwsrc=A_MAC, psrc=B4, pdst=ROUTER4),
        134,
    ),
    "ARP with another's MAC": (Ether(src=A_MAC) / ARP(op=1, hwsrc=HOST_MAC, psrc=A4, pdst=ROUTER4), 134),
    "ARP for another pod": (Ether(src=A_MAC) / ARP(op=1, hwsrc=A_MAC, psrc=A4, pdst=B4), 150),
    "gratuitous ARP": (Ether(src=A_MAC) / ARP(op=2, hwsrc=A_MAC, psrc=A4, pdst=A4), 150),
}


@pytest.mark.parametrize(("packet", "reason"), DROPPED.values(), ids=DROPPED.keys())
def test_dropped(world: World, packet: Packet | bytes, reason: int) -> None:
    before = world.counted(reason)
    done = world.from_pod(world.pod_a, packet)
    assert (done.action, done.reason) == ("DROP", reason)
    assert world.counted(reason) == before + 1
    assert done.line > 0
    assert world.flows() == []


def test_own_ipip_is_refused_before_the_world_sees_it(world: World) -> None:
    assert world.from_pod(world.pod_a, IP(src=A4, dst=WORLD4) / IP() / UDP()).reason == 142


def test_tunnel_port_of_this_cluster(world: World) -> None:
    world.settings["tunnel_port"][0] = 4789
    assert world.from_pod(world.pod_a, IP(src=A4, dst=FAR_NODE4) / UDP(dport=4789)).reason == 170
    assert world.from_pod(world.pod_a, IP(src=A4, dst=WORLD4) / UDP(dport=4789)).reason == 170
    assert world.from_pod(world.pod_a, IP(src=A4, dst=WORLD4) / UDP(dport=6081)).action == "NETWORK"


def test_foreign_source_where_it_is_allowed(world: World) -> None:
    world.add_pod(world.pod_a, flags=world.layout.value("ENDPOINT_NO_SOURCE_CHECK"))
    assert world.from_pod(world.pod_a, IP(src="10.7.7.7", dst=B4) / UDP()).action == "LOCAL"


def test_gateway_arp(world: World) -> None:
    done = world.from_pod(
        world.pod_a,
        Ether(src=A_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=A_MAC, psrc=A4, pdst=ROUTER4),
    )
    assert (done.value, done.action, done.ifindex) == (TCX_REDIRECT, "ANSWERED", world.pod_a.ifindex)
    expected = Ether(src=A_HOST_MAC, dst=A_MAC) / ARP(
        op=2, hwsrc=A_HOST_MAC, psrc=ROUTER4, hwdst=A_MAC, pdst=A4
    )
    assert done.data == bytes(expected)


@pytest.mark.parametrize("source", [A6, LOCAL6])
@pytest.mark.parametrize("option", [True, False])
def test_gateway_neighbour_discovery(world: World, source: str, option: bool) -> None:
    question = IPv6(src=source, dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=ROUTER6)
    if option:
        question /= ICMPv6NDOptSrcLLAddr(lladdr=A_MAC)
    done = world.from_pod(world.pod_a, question)
    assert (done.action, done.ifindex) == ("ANSWERED", world.pod_a.ifindex)
    expected = (
        Ether(src=A_HOST_MAC, dst=A_MAC)
        / IPv6(src=ROUTER6, dst=source, hlim=255)
        / ICMPv6ND_NA(tgt=ROUTER6, R=1, S=1, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=A_HOST_MAC)
    )
    assert done.data == bytes(expected)


def test_host_asks_for_pods(world: World) -> None:
    frame = Ether(src=HOST_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=HOST_MAC, psrc=ROUTER4, pdst=B4)
    done = world.run("from_host", frame, ifindex=world.devices["net"])
    assert done.action == "ANSWERED"
    assert (done.packet[ARP].op, done.packet[ARP].psrc, done.packet[ARP].pdst) == (2, B4, ROUTER4)
    assert done.packet[ARP].hwsrc != HOST_MAC
    done = world.from_host(IPv6(src=ROUTER6, dst="ff02::1:ff00:12", hlim=255) / ICMPv6ND_NS(tgt=B6))
    assert (done.action, done.packet[ICMPv6ND_NA].tgt) == ("ANSWERED", B6)


@pytest.mark.parametrize("length", range(34, 60))
def test_cut_anywhere(world: World, length: int) -> None:
    """However short: a reason or a forward, never a packet without either (the kernel's test run refuses
    frames that end before the IPv4 header does)."""
    whole = bytes(Ether(src=A_MAC, dst=GATEWAY_MAC) / IP(src=A4, dst=B4) / TCP(dport=80))
    before = world.all_counted()
    done = world.run("from_container", whole[:length], ifindex=world.pod_a.ifindex)
    assert done.reason == (135 if length < 54 else 0)
    assert world.all_counted() == before + 1


def test_ipv4_fragments_follow_the_first(world: World) -> None:
    first = IP(src=A4, dst=B4, id=7, flags="MF") / UDP(sport=1000, dport=53, len=24) / payload(8)
    later = IP(src=A4, dst=B4, id=7, frag=2, proto=17) / payload(8)
    assert world.from_pod(world.pod_a, later).reason == 175
    assert world.from_pod(world.pod_a, first).action == "LOCAL"
    assert world.from_pod(world.pod_a, later).action == "LOCAL"
    key, value = world.only_flow()
    assert int(value["packets"][0]) == 2
    assert sorted((int(key["low_port"]), int(key["high_port"]))) == [53, 1000]


def test_ipv6_fragments_follow_the_first(world: World) -> None:
    first = IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(id=9, m=1) / UDP(sport=1000, dport=53, len=24)
    first /= payload(8)
    later = IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(id=9, offset=2, nh=17) / payload(8)
    assert world.from_pod(world.pod_a, later).reason == 175
    assert world.from_pod(world.pod_a, first).action == "LOCAL"
    assert world.from_pod(world.pod_a, later).action == "LOCAL"


def test_fragments_of_two_pods_do_not_mix(world: World) -> None:
    world.add_pod(world.pod_b, flags=world.layout.value("ENDPOINT_NO_SOURCE_CHECK"))
    first = IP(src=A4, dst=B4, id=7, flags="MF") / UDP(sport=1000, dport=53, len=24) / payload(8)
    assert world.from_pod(world.pod_a, first).action == "LOCAL"
    assert world.from_pod(world.pod_b, IP(src=A4, dst=B4, id=7, frag=2, proto=17) / payload(8)).reason == 175


def test_fragments_of_an_icmp_error(world: World) -> None:
    error = IP(src=A4, dst=B4, flags="MF") / ICMP(type=3) / IP(src=B4, dst=A4) / UDP() / payload(8)
    assert world.from_pod(world.pod_a, error).reason == 157
    assert world.from_pod(world.pod_a, IP(src=A4, dst=B4, frag=4, proto=1) / payload(8)).reason == 175


def test_transport_headers_split_over_fragments(world: World) -> None:
    assert world.from_pod(world.pod_a, IP(src=A4, dst=B4, frag=1, proto=6) / payload(8)).reason == 134
    assert world.from_pod(world.pod_a, IP(src=A4, dst=B4, frag=1, proto=132) / payload(8)).reason == 134


def test_lone_fragment_header_is_harmless(world: World) -> None:
    packet = IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(id=9) / UDP(sport=1, dport=2)
    assert world.from_pod(world.pod_a, packet).action == "LOCAL"


def test_icmp_error_reaches_the_sender_only(world: World) -> None:
    asked = IP(src=A4, dst=B4) / UDP(sport=1000, dport=53)
    assert world.from_pod(world.pod_a, asked).action == "LOCAL"
    error = IP(src=B4, dst=A4) / ICMP(type=3, code=3) / asked
    done = world.from_pod(world.pod_b, error)
    assert (done.action, done.state) == ("LOCAL", 4)
    other = IP(src=B4, dst=A4) / ICMP(type=3, code=3) / (IP(src=A4, dst=B4) / UDP(sport=1001, dport=53))
    assert world.from_pod(world.pod_b, other).reason == 144
    elsewhere = IP(src=B4, dst=WORLD4) / ICMP(type=3, code=3) / asked
    assert world.from_pod(world.pod_b, elsewhere).reason == 144


def test_icmpv6_error_about_an_echo(world: World) -> None:
    asked = IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(id=5)
    assert world.from_pod(world.pod_a, asked).action == "LOCAL"
    error = IPv6(src=B6, dst=A6) / ICMPv6Unknown(type=1, code=4, msgbody=b"\0\0\0\0" + bytes(asked))
    done = world.from_pod(world.pod_b, error)
    assert (done.action, done.state) == ("LOCAL", 4)


def test_icmp_error_cut_off(world: World) -> None:
    assert world.from_pod(world.pod_a, IP(src=A4, dst=B4) / ICMP(type=3) / Raw(b"E\0\0")).reason == 144
