"""What other nodes may bring through the tunnel."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tests.support.datapath_world import (
    FAR_NODE4,
    HOST_MAC,
    NODE4,
    POD_FAR4,
    POD_FAR6,
    ROUTER4,
    TCX_DROP,
    Outcome,
    Rule,
    World,
    payload,
)

pytestmark = pytest.mark.root

Arrive = Callable[..., Outcome]
SYN = TCP(sport=40000, dport=80, flags="S")
FROM_FAR = IP(src=POD_FAR4, dst="10.0.0.12") / SYN


@pytest.fixture
def arrive(door: World) -> Arrive:
    world = door

    def run(
        packet: Packet, vni: int = 1003, node: str = FAR_NODE4, to: str = NODE4, metadata: bool = True
    ) -> Outcome:
        if not isinstance(packet, Ether):
            packet = Ether(src="0e:00:00:00:00:ff", dst="0e:00:00:00:00:fe") / packet
        cb = (vni, int(ipaddress.IPv4Address(node)), int(metadata), int(ipaddress.IPv4Address(to)))
        return world.run("door", packet, ifindex=world.devices["tunnel"], cb=cb)

    return run


@pytest.mark.parametrize("source", [POD_FAR4, POD_FAR6])
def test_remote_pod_to_local_pod(world: World, arrive: Arrive, source: str) -> None:
    packet = FROM_FAR if source == POD_FAR4 else IPv6(src=POD_FAR6, dst="fd00::12") / SYN
    done = arrive(packet)
    assert (done.action, done.ifindex, done.source_identity) == ("LOCAL", world.pod_b.ifindex, 1003)
    assert (done.vni, done.tunnel, done.ingress_cookie) == (1003, FAR_NODE4, 1)
    assert (done.packet.src, done.packet.dst) == (world.pod_b.host_mac, world.pod_b.mac)
    inner = done.packet.payload
    assert (inner.ttl if IP in inner else inner.hlim) == 63


def test_ingress_policy_holds(world: World, arrive: Arrive) -> None:
    world.set_policy(2, (Rule(1, 0, cookie=3, flags=4), Rule(1, 1, peer=1001, precedence=200)))
    done = arrive(FROM_FAR)
    assert (done.value, done.reason, done.ingress_cookie) == (TCX_DROP, 133, 3)


REFUSED = {
    "no tunnel metadata": (FROM_FAR, {"metadata": False}, 147),
    "no identity": (FROM_FAR, {"vni": 0}, 183),
    "the host's identity": (FROM_FAR, {"vni": 1}, 171),
    "another identity than the pod's": (FROM_FAR, {"vni": 1001}, 171),
    "identity of a node from a pod": (FROM_FAR, {"vni": 6}, 171),
    "another cluster": (FROM_FAR, {"vni": 5 << 16 | 1003}, 192),
    "another address of this node": (FROM_FAR, {"to": "192.0.2.99"}, 170),
    "an unknown node": (FROM_FAR, {"node": "192.0.2.77"}, 171),
    "a node the pod is not on": (FROM_FAR, {"node": "192.0.2.3"}, 171),
    "an unknown source": (IP(src="10.0.1.99", dst="10.0.0.12") / SYN, {}, 171),
    "a world source": (IP(src="203.0.113.9", dst="10.0.0.12") / SYN, {"vni": 9}, 171),
    "a local pod's source": (IP(src="10.0.0.11", dst="10.0.0.12") / SYN, {"vni": 1001}, 171),
    "this node's source": (IP(src=NODE4, dst="10.0.0.12") / SYN, {"vni": 6}, 171),
    "a destination nobody has": (IP(src=POD_FAR4, dst="10.0.0.99") / SYN, {}, 150),
    "a destination in the world": (IP(src=POD_FAR4, dst="203.0.113.9") / SYN, {}, 150),
    "the last hop": (IP(src=POD_FAR4, dst="10.0.0.12", ttl=1) / SYN, {}, 196),
    "ICMP of the other family": (IP(src=POD_FAR4, dst="10.0.0.12", proto=58) / payload(20), {}, 142),
    "ARP": (Ether(src=HOST_MAC) / ARP(psrc=POD_FAR4, pdst="10.0.0.12"), {}, 139),
    "a router advertisement": (IPv6(src=POD_FAR6, dst="fd00::12") / ICMPv6ND_RA(), {}, 176),
    "a later fragment alone": (IP(src=POD_FAR4, dst="10.0.0.12", frag=3, proto=17) / payload(), {}, 175),
}


@pytest.mark.parametrize(("packet", "how", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(world: World, arrive: Arrive, packet: Packet, how: dict[str, object], reason: int) -> None:
    world.add_node("192.0.2.3")
    before = world.counted(reason, 1)
    done = arrive(packet, **how)
    assert (done.value, done.reason) == (TCX_DROP, reason)
    assert world.counted(reason, 1) == before + 1


def test_own_address_even_when_the_ipcache_names_a_node(world: World, arrive: Arrive) -> None:
    world.add_prefix("10.0.0.11", 1001, tunnel=FAR_NODE4)
    assert arrive(IP(src="10.0.0.11", dst="10.0.0.12") / SYN, vni=1001).reason == 171


def test_own_cluster_id(world: World, arrive: Arrive) -> None:
    world.settings["cluster"][0] = 5
    world.add_prefix(POD_FAR4, 5 << 16 | 1003, tunnel=FAR_NODE4)
    assert arrive(FROM_FAR, vni=5 << 16 | 1003).source_identity == 5 << 16 | 1003


@pytest.mark.parametrize("identity", [6, 7, 0x2000001])
def test_remote_node_to_pod(world: World, arrive: Arrive, identity: int) -> None:
    flags = world.layout.value("IPCACHE_HOST_ADDRESS") | world.layout.value("IPCACHE_TUNNEL")
    world.add_prefix("10.0.1.1", identity, tunnel=FAR_NODE4, flags=flags)
    done = arrive(IP(src="10.0.1.1", dst="10.0.0.12") / SYN, vni=6)
    assert (done.action, done.source_identity) == ("LOCAL", identity)


def test_remote_pod_to_this_node(world: World, arrive: Arrive) -> None:
    done = arrive(IP(src=POD_FAR4, dst=ROUTER4, ttl=1) / UDP(sport=1, dport=2))
    assert (done.action, done.ifindex) == ("HOST", world.devices["host"])
    assert done.packet.dst == HOST_MAC


def test_answer_over_the_tunnel_is_a_reply(world: World, arrive: Arrive) -> None:
    out = IP(src="10.0.0.12", dst=POD_FAR4) / TCP(sport=40000, dport=80, flags="S")
    assert world.from_pod(world.pod_b, out).action == "TUNNEL"
    world.set_policy(2, (Rule(1, 0, flags=4), Rule(2, 1, flags=4)))
    answer = IP(src=POD_FAR4, dst="10.0.0.12") / TCP(sport=80, dport=40000, flags="SA")
    assert (arrive(answer).action, arrive(answer).state) == ("LOCAL", 3)


def test_fragments_are_told_apart_by_vni(world: World, arrive: Arrive) -> None:
    first = IP(src=POD_FAR4, dst="10.0.0.12", id=7, flags="MF") / UDP(sport=1, dport=2, len=24) / payload(8)
    later = IP(src=POD_FAR4, dst="10.0.0.12", id=7, frag=2, proto=17) / payload(8)
    assert arrive(first).action == "LOCAL"
    assert arrive(later).action == "LOCAL"
