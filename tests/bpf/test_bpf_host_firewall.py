"""The host as an endpoint: its policy on native devices, towards pods and through tunnels."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLQuery2,
    ICMPv6MLReport2,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from tests.bpf.test_bpf_fuzz import runnable
from tests.support.datapath_ears import Ears
from tests.support.datapath_world import (
    DENY,
    DENY_ALL,
    EGRESS,
    FAR_NODE4,
    FAR_NODE6,
    FAR_ROUTER4,
    INGRESS,
    NODE4,
    NODE6,
    POD_FAR4,
    ROUTER4,
    ROUTER6,
    TCX_DROP,
    TCX_NEXT,
    WORLD4,
    WORLD6,
    Outcome,
    Rule,
    World,
    address_bytes,
    load_world,
    payload,
)

pytestmark = pytest.mark.root

HOST, HOST_SUBJECT, HOST_NUMBER = 1, 9, 65_535
TCP_NUMBER, ICMP_NUMBER = 6, 1
NODE_OF_ITS_OWN = (2 << 24) + 5
ISOLATED = DENY_ALL
OPEN = (Rule(INGRESS, precedence=1, cookie=21, flags=4), Rule(EGRESS, precedence=1, cookie=22, flags=4))
SSH = Rule(INGRESS, protocol=TCP_NUMBER, port=22, bits=24, cookie=31)
TO_API = Rule(EGRESS, protocol=TCP_NUMBER, port=6443, bits=24, cookie=32)
WORLD_SYN = IP(src=WORLD4, dst=NODE4) / TCP(sport=40000, dport=22, flags="S")


class Host:
    """A world whose host has a policy."""

    def __init__(self, world: World) -> None:
        self.world = world
        flags = world.layout.value("ENDPOINT_HOST")
        for address in (NODE4, NODE6, ROUTER4, ROUTER6):
            world.add_endpoint(address, identity=HOST, id=HOST_NUMBER, subject=HOST_SUBJECT, flags=flags)
        self.judged(True)
        self.rules(*ISOLATED)

    def judged(self, on: bool) -> None:
        flag = self.world.layout.value("NODE_HOST_POLICY")
        flags = self.world.settings["flags"]
        flags[0] = flags[0] | flag if on else flags[0] & (0xFFFFFFFF ^ flag)

    def rules(self, *rules: Rule) -> None:
        self.world.set_policy(HOST_SUBJECT, rules)


@pytest.fixture
def host(world: World) -> Host:
    return Host(world)


@contextmanager
def listener(address: str, port: int) -> Iterator[socket.socket]:
    """A socket of the node that waits for connections."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen()
        yield made


def passed(done: Outcome) -> bool:
    """Whether the packet went on its way to or from the node; nothing else may have happened to it."""
    assert (done.value, done.action) in ((TCX_NEXT, "STACK"), (TCX_DROP, "DROP")), done
    return done.value == TCX_NEXT


def pieces(packet: Packet) -> list[Packet]:
    """The packet as several."""
    found: list[Packet] = fragment(packet, 600)  # type: ignore[no-untyped-call]
    return found


# without a policy


def test_a_host_nobody_judges_is_left_alone(host: Host) -> None:
    host.judged(False)
    world = host.world
    assert passed(world.from_wire(WORLD_SYN))
    assert passed(world.to_wire(IP(src=NODE4, dst=WORLD4) / TCP(dport=443)))
    assert world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=NODE4) / TCP(dport=22)).action == "HOST"
    assert world.from_host(IP(src=NODE4, dst="10.0.0.11") / TCP(dport=80)).action == "LOCAL"
    assert len(world.flows()) == 2


def test_a_node_without_the_firewall_does_not_know_the_flag() -> None:
    with load_world("no-firewall", host_firewall_enabled=False) as world:
        Host(world)
        assert passed(world.from_wire(WORLD_SYN))
        assert passed(world.to_wire(IP(src=NODE4, dst=WORLD4) / TCP(dport=443)))
        assert world.from_host(IP(src=NODE4, dst="10.0.0.11") / TCP(dport=80)).action == "LOCAL"
        assert world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=NODE4) / TCP(dport=22)).action == "HOST"


# ingress of the host


@pytest.mark.parametrize(
    ("source", "node"), [(WORLD4, NODE4), (WORLD6, NODE6), (FAR_NODE4, NODE4)], ids=["ipv4", "ipv6", "node"]
)
def test_what_nothing_allows_does_not_enter(host: Host, source: str, node: str) -> None:
    layer = IPv6 if ":" in source else IP
    done = host.world.from_wire(layer(src=source, dst=node) / TCP(sport=40000, dport=22, flags="S"))
    assert (done.value, done.reason, done.ingress_cookie) == (TCX_DROP, 133, 3)
    assert (done.destination_identity, host.world.flows()) == (HOST, [])


def test_an_allowed_flow_passes_with_its_answers(host: Host) -> None:
    host.rules(*ISOLATED, SSH)
    world = host.world
    before = world.counted(0)
    done = world.from_wire(WORLD_SYN)
    assert passed(done)
    assert (done.ingress_cookie, done.egress_cookie, done.state) == (31, 0, 1)
    answer = IP(src=NODE4, dst=WORLD4) / TCP(sport=22, dport=40000, flags="SA")
    done = world.to_wire(answer)
    assert passed(done)
    assert done.state == 3
    assert world.counted(0) == before + 2
    host.rules(*ISOLATED)
    assert world.to_wire(answer).reason == 133
    assert world.from_wire(IP(src=WORLD4, dst=NODE4) / TCP(sport=40000, dport=22, flags="A")).reason == 133


def test_the_peer_counts(host: Host) -> None:
    world = host.world
    host.rules(*ISOLATED, Rule(INGRESS, peer=6, cookie=33))
    assert passed(world.from_wire(IP(src=FAR_NODE4, dst=NODE4) / UDP(sport=1, dport=2)))
    assert not passed(world.from_wire(IP(src=WORLD4, dst=NODE4) / UDP(sport=1, dport=2)))
    world.add_prefix(FAR_NODE4, NODE_OF_ITS_OWN, flags=6)
    done = world.from_wire(IP(src=FAR_NODE4, dst=NODE4) / UDP(sport=1, dport=2))
    assert (done.reason, done.source_identity) == (133, NODE_OF_ITS_OWN)


def test_explicit_denials_name_their_rule(host: Host) -> None:
    host.rules(*OPEN, Rule(INGRESS, DENY, protocol=TCP_NUMBER, port=22, bits=24, cookie=41))
    done = host.world.from_wire(WORLD_SYN)
    assert (done.reason, done.ingress_cookie) == (181, 41)
    assert passed(host.world.from_wire(IP(src=WORLD4, dst=NODE4) / TCP(dport=80, flags="S")))


@pytest.mark.parametrize("source", [NODE4, "10.0.0.11"])
def test_local_pods_are_peers_of_the_host(host: Host, source: str) -> None:
    world = host.world
    knock = IP(src="10.0.0.11", dst=source if source == NODE4 else ROUTER4) / TCP(
        sport=4000, dport=22, flags="S"
    )
    done = world.from_pod(world.pod_a, knock)
    assert (done.value, done.reason, done.ingress_cookie, done.egress_cookie) == (TCX_DROP, 133, 3, 2)
    host.rules(*ISOLATED, Rule(INGRESS, peer=1001, cookie=34))
    done = world.from_pod(world.pod_a, knock)
    assert (done.action, done.ingress_cookie, done.egress_cookie) == ("HOST", 34, 2)
    back = IP(src=knock.dst, dst="10.0.0.11") / TCP(sport=22, dport=4000, flags="SA")
    assert (done := world.from_host(back)).action == "LOCAL"
    assert done.state == 3
    assert world.from_pod(world.pod_b, IP(src="10.0.0.12", dst=knock.dst) / TCP(dport=22)).reason == 133


def test_a_subnets_broadcast_address_is_the_host_too(host: Host) -> None:
    assert host.world.from_wire(IP(src=WORLD4, dst="192.0.2.255") / UDP(dport=137)).reason == 133
    host.rules(*ISOLATED, Rule(INGRESS, protocol=17, port=137, bits=24))
    assert passed(host.world.from_wire(IP(src=WORLD4, dst="192.0.2.255") / UDP(dport=137)))


def test_a_pod_that_knocks_at_the_broadcast_address_meets_the_host(host: Host) -> None:
    world = host.world
    knock = IP(src="10.0.0.11", dst="192.0.2.255") / UDP(dport=137)
    assert (done := world.from_pod(world.pod_a, knock)).reason == 133
    assert (done.ingress_cookie, done.egress_cookie) == (3, 2)
    host.rules(*ISOLATED, Rule(INGRESS, peer=1001))
    assert world.from_pod(world.pod_a, knock).action == "STACK"


def test_what_the_node_only_forwards_is_not_the_hosts(host: Host) -> None:
    assert passed(host.world.from_wire(IP(src=WORLD4, dst="198.51.100.7") / UDP(dport=53)))
    assert passed(host.world.to_wire(IP(src="198.51.100.7", dst=WORLD4) / UDP(dport=53)))
    assert not host.world.flows()


@pytest.mark.parametrize("destination", ["224.0.0.18", "255.255.255.255"])
def test_multicast_and_broadcast_are_judged(host: Host, destination: str) -> None:
    advert = IP(src=FAR_NODE4, dst=destination, proto=112) / payload(20)
    assert host.world.from_wire(advert).reason == 133
    host.rules(*ISOLATED, Rule(INGRESS, peer=6, protocol=112, bits=8), Rule(EGRESS, protocol=112, bits=8))
    assert passed(host.world.from_wire(advert))
    assert passed(host.world.to_wire(IP(src=NODE4, dst="224.0.0.18", proto=112) / payload(20)))


NEIGHBOURLY: dict[str, Packet] = {
    "arp": ARP(op=1, psrc="192.0.2.254", pdst=NODE4),
    "neighbour solicitation": IPv6(src="fe80::1", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=NODE6),
    "neighbour solicitation to the address": IPv6(src="fe80::1", dst=NODE6, hlim=255)
    / ICMPv6ND_NS(tgt=NODE6),
    "listener query": IPv6(src="fe80::1", dst="ff02::1", hlim=1)
    / IPv6ExtHdrHopByHop(options=[RouterAlert()])
    / ICMPv6MLQuery2(),
    "listener report": IPv6(src="fe80::1", dst="ff02::16", hlim=1)
    / IPv6ExtHdrHopByHop(options=[RouterAlert()])
    / ICMPv6MLReport2(),
}


@pytest.mark.parametrize("packet", NEIGHBOURLY.values(), ids=list(NEIGHBOURLY))
def test_neighbours_are_always_heard(host: Host, packet: Packet) -> None:
    assert passed(host.world.from_wire(packet))
    assert passed(host.world.to_wire(packet))


def test_pings_are_judged_by_their_type(host: Host) -> None:
    host.rules(*ISOLATED, Rule(INGRESS, protocol=ICMP_NUMBER, port=8, bits=24, cookie=35))
    world = host.world
    assert passed(world.from_wire(IP(src=WORLD4, dst=NODE4) / ICMP(type=8, id=7)))
    assert passed(world.to_wire(IP(src=NODE4, dst=WORLD4) / ICMP(type=0, id=7)))
    assert world.from_wire(IPv6(src=WORLD6, dst=NODE6) / ICMPv6EchoRequest(id=7)).reason == 133
    assert world.to_wire(IP(src=NODE4, dst=WORLD4) / ICMP(type=8, id=7)).reason == 133


def test_headers_that_lie_do_not_enter(host: Host) -> None:
    host.rules(*OPEN)
    assert host.world.from_wire(IP(src=WORLD4, dst=NODE4, proto=6) / payload(8)).reason == 135
    host.judged(False)
    assert passed(host.world.from_wire(IP(src=WORLD4, dst=NODE4, proto=6) / payload(8)))


def test_tagged_frames_belong_to_another_device(host: Host) -> None:
    tagged = Ether() / Dot1Q(vlan=7) / IP(src=WORLD4, dst=NODE4) / TCP(dport=22)
    assert passed(host.world.run("from_netdev", tagged, ifindex=host.world.devices["eth"]))


# egress of the host


def test_the_host_is_held_to_its_egress_rules(host: Host) -> None:
    host.rules(*ISOLATED, TO_API)
    world = host.world
    assert (done := world.to_wire(IP(src=NODE4, dst=WORLD4) / TCP(dport=443, flags="S"))).reason == 133
    assert (done.egress_cookie, done.source_identity, done.destination_identity) == (4, HOST, 9)
    ask = IP(src=NODE4, dst=WORLD4) / TCP(sport=40000, dport=6443, flags="S")
    assert passed(done := world.to_wire(ask))
    assert done.egress_cookie == 32
    assert passed(world.from_wire(IP(src=WORLD4, dst=NODE4) / TCP(sport=6443, dport=40000, flags="SA")))
    assert world.from_wire(IP(src=WORLD4, dst=NODE4) / TCP(sport=6443, dport=40001, flags="SA")).reason == 133


def test_link_local_senders_are_the_host_unless_they_came_by(host: Host) -> None:
    hello = IPv6(src="fe80::1", dst="ff02::5", nh=89) / payload(20)
    assert host.world.to_wire(hello).reason == 133


def test_masqueraded_pods_are_not_the_host(host: Host) -> None:
    world = host.world
    ask = IP(src="10.0.0.11", dst=WORLD4) / UDP(sport=33000, dport=53)
    assert world.from_pod(world.pod_a, ask).action == "NETWORK"
    sent = world.to_wire(ask)
    assert (sent.value, sent.action) == (TCX_NEXT, "NETWORK")
    outside = sent.packet[UDP].sport
    assert world.from_wire(IP(src=WORLD4, dst=NODE4) / UDP(sport=53, dport=outside)).action == "LOCAL"
    assert world.from_wire(IP(src=WORLD4, dst=NODE4) / UDP(sport=53, dport=outside + 1)).reason == 133


def test_the_hosts_way_to_its_pods_has_two_sides(host: Host) -> None:
    world = host.world
    probe = IP(src=ROUTER4, dst="10.0.0.11") / TCP(sport=5000, dport=80, flags="S")
    done = world.from_host(probe)
    assert (done.reason, done.egress_cookie, done.ingress_cookie) == (133, 4, 0)
    host.rules(*ISOLATED, Rule(EGRESS, peer=1001, cookie=36))
    done = world.from_host(probe)
    assert (done.action, done.egress_cookie, done.ingress_cookie) == ("LOCAL", 36, 1)
    world.set_policy(1, DENY_ALL)
    done = world.from_host(probe)
    assert (done.reason, done.ingress_cookie) == (133, 3)


def test_a_mark_speaks_for_others_than_the_host(host: Host) -> None:
    mark = 1003 << 16 | 0x0F00
    done = host.world.from_host(IP(src=NODE4, dst="10.0.0.11") / TCP(dport=80, flags="S"), mark=mark)
    assert (done.action, done.source_identity) == ("LOCAL", 1003)


# tunnels


def test_the_hosts_way_to_remote_pods_is_judged(host: Host) -> None:
    world = host.world
    ask = IP(src=ROUTER4, dst=POD_FAR4) / TCP(sport=5000, dport=80, flags="S")
    assert (done := world.from_host(ask)).reason == 133
    assert done.destination_identity == 1003
    host.rules(*ISOLATED, Rule(EGRESS, peer=1003, cookie=37))
    done = world.from_host(ask)
    assert (done.action, done.vni, done.egress_cookie) == ("TUNNEL", 6, 37)


def test_remote_pods_and_nodes_are_judged_behind_the_tunnel(host: Host, door: World) -> None:
    def arrive(packet: Packet, vni: int) -> Outcome:
        frame = Ether(src="0e:00:00:00:00:ff", dst="0e:00:00:00:00:fe") / packet
        cb = (vni, int(ipaddress.IPv4Address(FAR_NODE4)), 1, int(ipaddress.IPv4Address(NODE4)))
        return door.run("door", frame, ifindex=door.devices["tunnel"], cb=cb)

    from_pod = IP(src=POD_FAR4, dst=ROUTER4) / TCP(sport=1, dport=22, flags="S")
    from_node = IP(src=FAR_ROUTER4, dst=ROUTER4) / TCP(sport=1, dport=22, flags="S")
    assert arrive(from_pod, 1003).reason == 133
    assert arrive(from_node, 6).reason == 133
    host.rules(*ISOLATED, Rule(INGRESS, peer=1003, cookie=38), Rule(INGRESS, peer=NODE_OF_ITS_OWN, cookie=39))
    assert arrive(from_pod, 1003).action == "HOST"
    door.add_prefix(FAR_ROUTER4, NODE_OF_ITS_OWN, tunnel=FAR_NODE4, flags=3)
    done = arrive(from_node, 6)
    assert (done.action, done.source_identity, done.ingress_cookie) == ("HOST", NODE_OF_ITS_OWN, 39)
    back = IP(src=ROUTER4, dst=FAR_ROUTER4) / TCP(sport=22, dport=1, flags="SA")
    assert (done := door.from_host(back)).action == "TUNNEL"
    assert (done.state, done.vni) == (3, 6)


def test_tunnels_between_nodes_are_not_the_hosts_traffic(host: Host) -> None:
    world = host.world
    inner = Ether() / IP(src=POD_FAR4, dst="10.0.0.11") / UDP()
    there = UDP(sport=50000, dport=8472) / VXLAN(vni=6) / inner
    assert passed(world.from_wire(IP(src=FAR_NODE4, dst=NODE4) / there))
    assert passed(world.to_wire(IP(src=NODE4, dst=FAR_NODE4) / there))
    assert world.from_wire(IP(src=WORLD4, dst=NODE4) / there).reason == 133
    assert world.to_wire(IP(src=NODE4, dst=WORLD4) / there).reason == 133


def test_tunnels_in_pieces_and_over_ipv6_are_not_the_hosts_either(host: Host) -> None:
    world = host.world
    big = UDP(sport=50000, dport=8472) / VXLAN(vni=6) / payload(1400)
    for piece in pieces(IP(src=FAR_NODE4, dst=NODE4, id=7) / big):
        assert passed(world.from_wire(piece))
    for piece in pieces(IP(src=NODE4, dst=FAR_NODE4, id=8) / big):
        assert passed(world.to_wire(piece))
    assert passed(world.from_wire(IPv6(src=FAR_NODE6, dst=NODE6) / big))
    assert passed(world.to_wire(IPv6(src=NODE6, dst=FAR_NODE6) / big))
    assert world.to_wire(IPv6(src=NODE6, dst=WORLD6) / big).reason == 133
    assert not passed(world.from_wire(pieces(IP(src=WORLD4, dst=NODE4, id=9) / big)[1]))


def test_errors_about_tunnels_are_heard(host: Host) -> None:
    def error(about: str) -> Packet:
        quoted = IPerror(src=NODE4, dst=about) / UDPerror(sport=50000, dport=8472) / payload(8)
        return IP(src="192.0.2.254", dst=NODE4) / ICMP(type=3, code=4, nexthopmtu=1400) / quoted

    assert passed(host.world.from_wire(error(FAR_NODE4)))
    assert not passed(host.world.from_wire(error(WORLD4)))


# in the middle of a flow


def test_a_servers_word_does_not_make_it_the_client(host: Host) -> None:
    """A connection older than the policy: what counts is who opened it, not who speaks first."""
    world = host.world
    word = IP(src=NODE4, dst=WORLD4) / TCP(sport=22, dport=40000, flags="PA")
    host.rules(*ISOLATED, SSH)
    assert world.to_wire(word).reason == 133
    with listener(NODE4, 22):
        assert passed(done := world.to_wire(word))
        assert (done.state, done.ingress_cookie, done.egress_cookie) == (3, 31, 0)
        assert passed(world.from_wire(IP(src=WORLD4, dst=NODE4) / TCP(sport=40000, dport=22, flags="A")))
        _, entry = world.only_flow()
        assert entry["packets"].tolist() == [1, 1]
        host.rules(*OPEN, Rule(INGRESS, DENY, protocol=TCP_NUMBER, port=22, bits=24, cookie=42))
        world.forget_flows()
        assert (done := world.to_wire(word)).reason == 181
        assert done.ingress_cookie == 42


def test_a_servers_word_to_a_client_of_ours_is_an_answer(host: Host) -> None:
    """Both ends are the node's here, since the test has no other; what counts is that the socket is there."""
    world = host.world
    host.rules(*ISOLATED, Rule(EGRESS, protocol=TCP_NUMBER, port=7443, bits=24, cookie=43))
    with (
        listener(ROUTER4, 7443) as server,
        socket.create_connection((ROUTER4, 7443), source_address=(NODE4, 0)) as ours,
    ):
        port = ours.getsockname()[1]
        word = IP(src=ROUTER4, dst=NODE4) / TCP(sport=7443, dport=port, flags="A")
        for address in (ROUTER4, ROUTER6):
            world.dataplane.maps["endpoints"].delete(world.address(address)[0])
        assert passed(done := world.from_wire(word))
        assert (done.state, done.egress_cookie, done.ingress_cookie) == (3, 43, 0)
        other = IP(src=ROUTER4, dst=NODE4) / TCP(sport=7443, dport=port - 1, flags="A")
        assert world.from_wire(other).reason == 133
        server.accept()[0].close()


def test_answers_that_nobody_asked_for_open_nothing(host: Host) -> None:
    host.rules(*ISOLATED, TO_API)
    answer = IP(src=WORLD4, dst=NODE4) / TCP(sport=6443, dport=22, flags="SA")
    assert host.world.from_wire(answer).reason == 133
    with listener(NODE4, 22):
        assert host.world.from_wire(answer).reason == 133


# what is told


def test_events_name_host_and_rule(host: Host) -> None:
    world = host.world
    ears = Ears(world)
    host.rules(*ISOLATED, SSH)
    world.from_wire(WORLD_SYN)
    world.from_wire(IP(src=WORLD4, dst=NODE4) / TCP(sport=40000, dport=23, flags="S"))
    world.to_wire(IP(src=NODE4, dst=WORLD4) / TCP(sport=40000, dport=23, flags="S"))
    drops, (verdict, trace) = ears.read()
    assert (verdict["kind"], verdict["verdict"], verdict["direction"]) == (3, 1, INGRESS)
    assert (verdict["destination_endpoint"], verdict["ingress_cookie"]) == (HOST_NUMBER, 31)
    assert (trace["destination_endpoint"], trace["destination_identity"]) == (HOST_NUMBER, HOST)
    assert (trace["direction"], trace["ingress_cookie"], trace["point"]) == (INGRESS, 31, 2)
    inward, outward = drops
    assert (inward["direction"], inward["destination_endpoint"], inward["ingress_cookie"]) == (
        INGRESS,
        HOST_NUMBER,
        3,
    )
    assert (outward["direction"], outward["source_endpoint"], outward["egress_cookie"]) == (
        EGRESS,
        HOST_NUMBER,
        4,
    )


def test_audit_lets_pass_and_tells(host: Host) -> None:
    world = host.world
    ears = Ears(world)
    audit = [Rule(way, DENY, precedence=1, cookie=44, flags=5) for way in (INGRESS, EGRESS)]
    host.rules(*audit)
    assert passed(done := world.from_wire(WORLD_SYN))
    assert done.ingress_cookie == 44
    (verdict,) = ears.drops()
    assert (verdict["verdict"], verdict["ingress_cookie"]) == (4, 44)
    host.rules(*ISOLATED)
    assert world.from_wire(IP(src=WORLD4, dst=NODE4) / TCP(sport=40000, dport=22, flags="A")).reason == 133


# identities of nodes


TRAVELLING: dict[int, int] = {1: 6, 7: 6, (2 << 24) + 5: 6, 6: 6, 1003: 1003, (1 << 24) + 5: 9}


@pytest.mark.parametrize(("identity", "vni"), TRAVELLING.items())
def test_numbers_of_this_node_do_not_leave_it(world: World, identity: int, vni: int) -> None:
    """Whoever speaks through the host's stack towards another node's pod."""
    world.add_prefix("198.51.100.9", identity)
    done = world.from_host(IP(src="198.51.100.9", dst=POD_FAR4) / UDP(dport=53))
    assert (done.action, done.vni, done.source_identity) == ("TUNNEL", vni, identity)


@pytest.mark.parametrize("known", [6, 7, (2 << 24) + 5])
@pytest.mark.parametrize("claimed", [1, 6, 7, (2 << 24) + 5, 1003])
def test_nodes_claim_to_be_nodes_and_the_receiver_knows_which(door: World, known: int, claimed: int) -> None:
    world = door
    world.add_prefix(FAR_ROUTER4, known, tunnel=FAR_NODE4, flags=3)
    frame = Ether() / IP(src=FAR_ROUTER4, dst="10.0.0.12") / UDP(dport=53)
    cb = (claimed & 0xFFFFFF, int(ipaddress.IPv4Address(FAR_NODE4)), 1, int(ipaddress.IPv4Address(NODE4)))
    done = world.run("door", frame, ifindex=world.devices["tunnel"], cb=cb)
    if claimed == 6:
        assert (done.action, done.source_identity) == ("LOCAL", known)
    else:
        assert (done.value, done.action) == (TCX_DROP, "DROP")


@pytest.mark.parametrize("known", [6, 7, (2 << 24) + 5])
def test_a_pod_can_not_claim_to_be_a_node(door: World, known: int) -> None:
    frame = Ether() / IP(src=POD_FAR4, dst="10.0.0.12") / UDP(dport=53)
    cb = (known & 0xFFFFFF, int(ipaddress.IPv4Address(FAR_NODE4)), 1, int(ipaddress.IPv4Address(NODE4)))
    assert door.run("door", frame, ifindex=door.devices["tunnel"], cb=cb).action == "DROP"


@pytest.mark.parametrize("identity", [6, 7, (2 << 24) + 5])
def test_pods_reach_nodes_with_the_nodes_address(world: World, identity: int) -> None:
    """Nodes are no pods, whatever their number: what pods send them is masqueraded."""
    world.add_prefix(FAR_NODE4, identity, flags=6)
    ask = IP(src="10.0.0.11", dst=FAR_NODE4) / UDP(sport=33000, dport=53)
    assert (done := world.from_pod(world.pod_a, ask)).action == "NETWORK"
    assert done.destination_identity == identity
    assert world.to_wire(ask).packet[IP].src == NODE4


# anything at all

CONTROL = {*range(130, 138), 143}
EXTENSIONS = {0, 43, 44, 51, 60, 135, 139, 140}
KNOCKS = [
    bytes(Ether(src="02:00:00:00:00:fe", dst="02:00:00:00:00:11") / layers)
    for layers in (
        WORLD_SYN,
        IP(src=WORLD4, dst=NODE4, options=[b"\x94\x04\0\0"]) / UDP(sport=53, dport=53) / payload(),
        IP(src=WORLD4, dst=NODE4, flags="MF") / UDP(sport=4, dport=53, len=64) / payload(16),
        IP(src=WORLD4, dst=NODE4, frag=3, proto=17) / payload(16),
        IP(src=FAR_NODE4, dst=ROUTER4) / ICMP(type=8, id=5) / payload(),
        IP(src=WORLD4, dst=NODE4) / ICMP(type=11) / IPerror(src=NODE4, dst=WORLD4) / UDPerror(sport=3),
        IP(src=WORLD4, dst=NODE4, proto=112) / payload(20),
        IPv6(src=WORLD6, dst=NODE6) / TCP(sport=4, dport=22, flags="A") / payload(4),
        IPv6(src=WORLD6, dst=NODE6) / IPv6ExtHdrFragment(id=3, m=1) / UDP(sport=4, dport=53) / payload(),
        IPv6(src=WORLD6, dst=ROUTER6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(dport=53),
        IPv6(src=WORLD6, dst=NODE6) / ICMPv6EchoRequest(id=5) / payload(),
        IPv6(src=WORLD6, dst=NODE6, nh=59) / payload(),
    )
]


def is_stray(frame: bytes, hosts: set[bytes]) -> bool:
    """Whether a frame holds an IP packet that the stack would take for the host's, other than such as pass
    whatever a policy says."""
    kind, data = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        header, total = (data[0] & 15) * 4, int.from_bytes(data[2:4], "big")
        whole = data[0] >> 4 == 4 and 20 <= header <= total <= len(data)
        return whole and b"\0" * 10 + b"\xff\xff" + data[16:20] in hosts
    if kind != b"\x86\xdd" or data[0] >> 4 != 6 or data[24:40] not in hosts:
        return False
    if data[8:20] == b"\0" * 10 + b"\xff\xff" or int.from_bytes(data[4:6], "big") + 40 > len(data):
        return False
    at, protocol = 40, data[6]
    while protocol in EXTENSIONS and at + 2 <= len(data):
        fixed = protocol == 44
        protocol, at = data[at], at + (8 if fixed else (data[at + 1] + 1) * 8)
    return not (protocol == 58 and at < len(data) and data[at] in CONTROL)


def test_nothing_gets_into_a_closed_host(host: Host) -> None:
    world = host.world
    hosts = {address_bytes(address) for address in (NODE4, NODE6, ROUTER4, ROUTER6)}
    rng = random.Random("closed")
    strays = 0
    for _ in range(3000):
        frame = bytearray(rng.choice(KNOCKS))
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            frame[rng.randrange(12, len(frame))] = rng.choice([0, 1, 6, 58, 255, rng.randrange(256)])
        if rng.random() < 0.2:
            del frame[rng.randrange(14, len(frame) + 1) :]
        if not runnable(bytes(frame)):
            continue
        done = world.run("from_netdev", bytes(frame), ifindex=world.devices["eth"])
        if is_stray(bytes(frame), hosts):
            strays += 1
            assert done.value == TCX_DROP, (bytes(frame).hex(), done)
    assert strays > 1500
    assert not world.flows()
