"""Attacks with real traffic: from inside a pod, from another node, from outside. Nothing gets through, each
refusal has its reason, and the nodes live on."""

from __future__ import annotations

import itertools
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from scapy.config import conf
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_NA,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, GRE, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from cilia.abi import object_path
from tests.support.attacker import SETTLE, Place, Siege, siege
from tests.support.waiting import until

NAME = f"ta{os.getpid() % 1000000}"
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: red, labels: {{app: {app}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers: [{{name: c, image: cilia.io/lab/server}}]
"""
INNER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
PODS = [
    ("mallory", "mallory", "node-1"),
    ("alice", "alice", "node-1"),
    ("vera", "vera", "node-1"),
    ("boxed", "boxed", "node-1"),
    ("far", "vera", "node-2"),
]
POLICIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: guard, namespace: red}
spec:
  endpointSelector: {matchLabels: {app: vera}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: alice}}]
    toPorts: [{ports: [{port: "8080"}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: world-only, namespace: red}
spec:
  endpointSelector: {matchLabels: {app: boxed}}
  egress:
  - toCIDR: ["0.0.0.0/0", "::/0"]
  - toEntities: [world]
"""
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: red}\n"
MANIFESTS = "---".join([NAMESPACE, *(POD.format(name=n, app=a, node=o) for n, a, o in PODS), POLICIES])

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
    pytest.mark.skipif(not object_path().exists(), reason="needs the eBPF object: run make bpf"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Siege]:
    conf.verb = 0
    with siege(NAME, MANIFESTS) as found:
        yield found


@pytest.fixture(autouse=True)
def quiet(lab: Siege) -> None:
    lab.quiet()


def between(source: str, destination: str) -> Packet:
    """An IP header of the addresses' family."""
    return (IPv6 if ":" in destination else IP)(src=source, dst=destination)


def tunnelled(identity: int) -> Packet:
    """The header of a tunnel; its flags say that there is a key and nothing else (RFC 7348)."""
    return VXLAN(vni=identity, flags=8)


def own(place: Place, other: Place, family: int) -> tuple[str, str]:
    return (place.ipv4, other.ipv4) if family == 4 else (place.ipv6, other.ipv6)


# what a pod may put on its wire


def forgeries(lab: Siege) -> dict[str, tuple[Packet, str]]:
    """Frames of mallory's that must end at the wire, and the reasons for it."""
    mallory, alice, vera, node = (lab[name] for name in ("mallory", "alice", "vera", "node-1"))
    udp = UDP(sport=1024, dport=8080)
    to_vera4, to_vera6 = IP(src=mallory.ipv4, dst=vera.ipv4), IPv6(src=mallory.ipv6, dst=vera.ipv6)
    router4 = node.ip("-j", "-4", "address", "show", "dev", "cilia_host")[0]["addr_info"][0]["local"]
    router6 = node.ip("-j", "-6", "address", "show", "dev", "cilia_host")[0]["addr_info"][0]["local"]
    spoofed, malformed, nodes = "INVALID_SOURCE_IP", "INVALID_PACKET_DROPPED", "FORBIDDEN_ICMPV6_MESSAGE"
    tunnel = "ENCAPSULATION_TRAFFIC_IS_PROHIBITED"
    extension = "INVALID_IPV6_EXTENSION_HEADER"
    tagged = Ether(src=mallory.mac, dst=mallory.gateway_mac)
    found: dict[str, tuple[Packet, str]] = {
        "alice's address": (IP(src=alice.ipv4, dst=vera.ipv4) / udp, spoofed),
        "alice's IPv6 address": (IPv6(src=alice.ipv6, dst=vera.ipv6) / udp, spoofed),
        "alice's address and MAC": (
            Ether(src=alice.mac, dst=vera.mac) / IP(src=alice.ipv4, dst=vera.ipv4) / udp,
            spoofed,
        ),
        "the node's address": (IP(src=node.ipv4, dst=vera.ipv4) / udp, spoofed),
        "the gateway's address": (IP(src=router4, dst=vera.ipv4) / udp, spoofed),
        "a world address": (IP(src="198.51.100.9", dst=vera.ipv4) / udp, spoofed),
        "vera's own address": (IP(src=vera.ipv4, dst=vera.ipv4) / udp, spoofed),
        "link-local address": (IPv6(src=mallory.link_local, dst=vera.ipv6) / udp, spoofed),
        "v4-mapped source": (IPv6(src=f"::ffff:{alice.ipv4}", dst=vera.ipv6) / udp, malformed),
        "v4-mapped destination": (IPv6(src=mallory.ipv6, dst=f"::ffff:{vera.ipv4}") / udp, malformed),
        "router advertisement": (
            IPv6(src=mallory.link_local, dst="ff02::1", hlim=255) / ICMPv6ND_RA(),
            nodes,
        ),
        "redirect": (
            IPv6(src=mallory.link_local, dst=vera.ipv6, hlim=255) / ICMPv6ND_Redirect(dst=alice.ipv6),
            nodes,
        ),
        "the gateway's neighbour entry": (
            IPv6(src=mallory.ipv6, dst="ff02::1", hlim=255)
            / ICMPv6ND_NA(tgt=router6, R=1, O=1)
            / ICMPv6NDOptDstLLAddr(lladdr=mallory.mac),
            nodes,
        ),
        "the gateway in ARP": (
            Ether(src=mallory.mac, dst="ff:ff:ff:ff:ff:ff")
            / ARP(op=2, hwsrc=mallory.mac, psrc=router4, pdst=vera.ipv4),
            malformed,
        ),
        "ICMP redirect": (
            to_vera4 / ICMP(type=5, code=1, gw=mallory.ipv4) / IP(dst=alice.ipv4) / udp,
            "UNKNOWN_ICMPV4_TYPE",
        ),
        "DHCP server": (
            to_vera4 / UDP(sport=67, dport=68) / BOOTP(op=2) / DHCP(options=[("message-type", "offer")]),
            malformed,
        ),
        "VLAN tag": (tagged / Dot1Q(vlan=7) / to_vera4 / udp, "VLAN_FILTERED"),
        "QinQ": (tagged / Dot1Q(vlan=7, type=0x8100) / Dot1Q(vlan=8) / to_vera4 / udp, "VLAN_FILTERED"),
        "unknown ethertype": (
            Ether(src=mallory.mac, dst=vera.mac, type=0x88CC) / Raw(bytes(50)),
            "UNSUPPORTED_L3_PROTOCOL",
        ),
        "hop-by-hop options": (to_vera6 / IPv6ExtHdrHopByHop() / udp, "POLICY_DENIED"),
        "destination options": (to_vera6 / IPv6ExtHdrDestOpt() / udp, "POLICY_DENIED"),
        "hop-by-hop options, late": (to_vera6 / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / udp, extension),
        "routing header": (to_vera6 / IPv6ExtHdrRouting(addresses=[alice.ipv6]) / udp, extension),
        "length beyond the packet": (
            IP(src=mallory.ipv4, dst=vera.ipv4, len=2000) / udp,
            "CT_TRUNCATED_OR_INVALID_HEADER",
        ),
        "SCTP": (IP(src=mallory.ipv4, dst=vera.ipv4, proto=132) / Raw(bytes(20)), "POLICY_DENIED"),
        "ICMPv6 in IPv4": (
            IP(src=mallory.ipv4, dst=vera.ipv4, proto=58) / Raw(bytes(20)),
            "UNKNOWN_L4_PROTOCOL",
        ),
        "source route": (
            IP(src=mallory.ipv4, dst=vera.ipv4, options=[IPOption_LSRR(routers=[alice.ipv4])]) / udp,
            "POLICY_DENIED",
        ),
        "the last hop": (IP(src=mallory.ipv4, dst=alice.ipv4, ttl=1) / udp, "TTL_EXCEEDED"),
        "the last hop, IPv6": (IPv6(src=mallory.ipv6, dst=alice.ipv6, hlim=1) / udp, "TTL_EXCEEDED"),
        "echo reply nobody asked for": (
            IP(src=mallory.ipv4, dst=alice.ipv4) / ICMP(type=0, id=7),
            "UNKNOWN_CONNECTION_TRACKING_STATE",
        ),
    }
    far_node = lab["node-2"]
    for place in (node, far_node):
        here4, here6 = IP(src=mallory.ipv4, dst=place.ipv4), IPv6(src=mallory.ipv6, dst=place.ipv6)
        inner = IP(src=alice.ipv4, dst=vera.ipv4) / udp
        found |= {
            f"IPIP to {place.name}": (here4 / inner, tunnel),
            f"GRE to {place.name}": (here4 / GRE() / inner, tunnel),
            f"6in4 to {place.name}": (here4 / IPv6(src=alice.ipv6, dst=vera.ipv6) / udp, tunnel),
            f"4in6 to {place.name}": (here6 / inner, tunnel),
            f"Geneve to {place.name}": (here4 / UDP(dport=6081) / Raw(bytes(8)), tunnel),
            f"WireGuard to {place.name}": (here6 / UDP(dport=51871) / Raw(bytes(8)), tunnel),
        }
    return found


def drops_since(lab: Siege, before: Mapping[str, int]) -> Counter[str]:
    """Packets that node-1 has dropped meanwhile, by reason."""
    return Counter(lab.dropped()) - Counter(before)


def test_what_a_pod_may_not_say(lab: Siege) -> None:
    before = lab.dropped()
    expected = Counter[str]()
    names: dict[bytes, str] = {}
    for name, (frame, reason) in forgeries(lab).items():
        mark = lab.mark()
        names[mark] = name
        lab["mallory"].send(frame if frame.haslayer(ARP) else frame / Raw(mark))
        expected[reason] += 1
    assert {names[mark]: places for mark, places in lab.marks_heard().items()} == {}
    # A pod's own kernel may say what it may not, too, whenever it likes.
    until(lambda: drops_since(lab, before) >= expected, "every frame to be counted")
    until(lambda: lab.reasons_seen("mallory") >= expected.keys(), "flows with all reasons")
    forged = lab.drops("node-1", "--drop-reason-desc", "INVALID_SOURCE_IP")
    assert {flow["source"].get("pod_name") for flow in forged} == {"mallory"}


# identities in tunnels


def second_address(lab: Siege) -> str:
    """An address of node-2 that its agent has not told anybody of."""
    address = "172.18.0.99"
    node = lab["node-2"]
    if address not in node.ip("address"):
        node.ip("address", "add", f"{address}/32", "dev", "eth0")
    return address


def test_no_address_of_a_node_takes_a_pods_tunnel(lab: Siege) -> None:
    """Masquerade would make the sender a node, and the receiver believe that alice speaks."""
    mallory, alice, far = lab["mallory"], lab["alice"], lab["far"]
    second = second_address(lab)
    key = lab.identity("alice")
    before = lab.dropped().get("ENCAPSULATION_TRAFFIC_IS_PROHIBITED", 0)
    targets = [lab[n].ipv4 for n in ("node-1", "node-2")] + [lab[n].ipv6 for n in ("node-1", "node-2")]
    for target in (*targets, second, "172.18.0.255"):
        mark = lab.mark()
        inner = INNER / IP(src=alice.ipv4, dst=far.ipv4) / UDP(sport=1, dport=8080) / Raw(mark)
        tunnel = between(mallory.ipv4 if "." in target else mallory.ipv6, target) / UDP(dport=8472)
        mallory.send(tunnel / tunnelled(key) / inner)
        assert lab.heard(mark, 0.1) == set(), target
    until(
        lambda: lab.dropped()["ENCAPSULATION_TRAFFIC_IS_PROHIBITED"] == before + 6,
        "every packet to be counted",
    )


def test_pieces_of_a_tunnel_packet_do_not_pass_either(lab: Siege) -> None:
    """A later piece holds no port."""
    mallory, node = lab["mallory"], lab["node-2"]
    mark = lab.mark()
    whole = IP(src=mallory.ipv4, dst=node.ipv4, id=77) / UDP(dport=8472) / tunnelled(300) / Raw(mark * 20)
    payload = bytes(whole)[20:]
    for start, piece in ((0, payload[:16]), (2, payload[16:])):
        flags = 0 if start else 1
        header = IP(src=mallory.ipv4, dst=node.ipv4, id=77, proto=17, frag=start, flags=flags)
        mallory.send(header / Raw(piece))
    assert lab.heard(mark) == set()


def test_only_the_sender_of_a_tunnel_packet_is_believed(lab: Siege) -> None:
    """Another node, taken over, sends what it likes: only true claims pass."""
    alice, vera, far, near = lab["alice"], lab["vera"], lab["far"], lab["node-1"]
    key = lab.identity("alice")
    there = lab["node-2"].ipv4
    claims = {
        "true": (key, alice.ipv4, there),
        "no identity": (0, alice.ipv4, there),
        "host": (1, alice.ipv4, there),
        "remote node": (6, alice.ipv4, there),
        "another pod's identity": (key, vera.ipv4, there),
        "another cluster": (7 << 16 | 300, alice.ipv4, there),
        "beyond 24 bits of meaning": (0xFFFFFF, alice.ipv4, there),
        "a pod of the receiver": (lab.identity("far"), far.ipv4, there),
        "the receiver itself": (6, there, there),
        "the world": (9, "198.51.100.9", there),
        "second address": (key, alice.ipv4, second_address(lab)),
    }
    sender = near.bound(socket.SOCK_DGRAM, near.ipv4, 45000)
    arrived = {}
    with sender:
        for name, (vni, source, target) in claims.items():
            mark = lab.mark()
            inner = INNER / IP(src=source, dst=far.ipv4) / UDP(sport=9, dport=8080) / Raw(mark)
            sender.sendto(bytes(tunnelled(vni) / inner), (target, 8472))
            arrived[name] = lab.comes_out(mark, "far", name == "true")
    assert arrived == {name: name == "true" for name in claims}


def test_who_is_no_node_has_no_tunnel(lab: Siege) -> None:
    outside, alice, far = lab["outside"], lab["alice"], lab["far"]
    mark = lab.mark()
    inner = INNER / IP(src=alice.ipv4, dst=far.ipv4) / UDP(sport=9, dport=8080) / Raw(mark)
    with outside.bound(socket.SOCK_DGRAM, outside.ipv4, 45000) as sender:
        sender.sendto(bytes(tunnelled(lab.identity("alice")) / inner), (lab["node-2"].ipv4, 8472))
    assert "far" not in lab.heard(mark)


def test_pods_addresses_do_not_come_from_outside(lab: Siege) -> None:
    """By the watched device and by one that nobody watches."""
    fabric, far, vera = lab["fabric"], lab["far"], lab["vera"]
    node = lab["node-1"]
    node.ip("link", "add", "side0", "up", "type", "veth", "peer", "name", "side1", "netns", fabric.netns)
    try:
        fabric.ip("link", "set", "side1", "up")
        side = Place("side", fabric.netns, ("", ""), "side1")
        entry = node.ip("-j", "link", "show", "dev", "side0")[0]["address"]
        for place, mac in ((fabric, node.mac), (side, entry)):
            mark = lab.mark()
            packet = IP(src=far.ipv4, dst=vera.ipv4) / UDP(sport=8080, dport=8080) / Raw(mark)
            place.send(Ether(src=place.mac, dst=mac) / packet)
            assert "vera" not in lab.heard(mark), place.name
        side.close()
    finally:
        node.ip("link", "delete", "side0")


# getting past a policy


@pytest.mark.parametrize("family", [4, 6])
def test_no_flags_pass_a_closed_port(lab: Siege, family: int) -> None:
    mallory, vera = lab["mallory"], lab["vera"]
    source, target = own(mallory, vera, family)
    for port, flags in enumerate(("S", "A", "F", "R", "SA", "SF", "FPU", "", "SFRPAU"), 3000):
        mark = lab.mark()
        mallory.send(between(source, target) / TCP(sport=port, dport=8080, flags=flags) / Raw(mark))
        assert lab.heard(mark, 0.05) == set(), flags


def test_a_denial_names_its_policy(lab: Siege) -> None:
    mallory, vera = lab["mallory"], lab["vera"]
    mallory.send(IP(src=mallory.ipv4, dst=vera.ipv4) / TCP(sport=2999, dport=22, flags="S"))

    def drops() -> list[dict[str, Any]]:
        found = lab.drops("node-1", "--to-port", "22")
        return [flow for flow in found if flow["l4"]["TCP"]["source_port"] == 2999]

    until(drops, "the drop to be seen")
    (flow,) = drops()
    assert flow["drop_reason_desc"] == "POLICY_DENIED"
    assert "guard" in str(flow)


@pytest.mark.parametrize("family", [4, 6])
def test_replies_open_nothing(lab: Siege, family: int) -> None:
    """vera calls mallory, who may answer, but not call back along the same tuple."""
    mallory, vera = lab["mallory"], lab["vera"]
    source, target = own(mallory, vera, family)
    caller = 34560 + family
    with vera.connected(source, 8080, source_port=caller):
        lab.quiet()
        for flags, port, passes in (("A", 8080, True), ("S", 8080, False), ("A", 8081, False)):
            mark = lab.mark()
            back = TCP(sport=port, dport=caller, flags=flags, seq=1, ack=1)
            mallory.send(between(source, target) / back / Raw(mark))
            assert lab.comes_out(mark, "vera", passes) is passes, (flags, port)


def test_famous_source_ports_open_nothing(lab: Siege) -> None:
    mallory, vera = lab["mallory"], lab["vera"]
    for source in (53, 123, 443, 8080):
        mark = lab.mark()
        mallory.send(IP(src=mallory.ipv4, dst=vera.ipv4) / UDP(sport=source, dport=34568) / Raw(mark))
        assert lab.heard(mark, 0.05) == set(), source


def test_ports_of_a_datagram_are_those_of_its_first_piece(lab: Siege) -> None:
    """Pieces of a denied datagram under the number of an allowed one never make a whole."""
    alice, vera = lab["alice"], lab["vera"]
    evil, good = lab.mark(), lab.mark()

    def piece(port: int, offset: int, flags: int, body: bytes) -> Packet:
        header = IP(src=alice.ipv4, dst=vera.ipv4, id=99, proto=17, flags=flags, frag=offset)
        return header / Raw(bytes(UDP(sport=5, dport=port, len=40, chksum=0)) + body if not offset else body)

    with vera.bound(socket.SOCK_DGRAM, vera.ipv4, 9999) as closed:
        alice.send(piece(8080, 0, 1, good[:14] + b"  "))
        alice.send(piece(9999, 0, 1, evil[:14] + b"  "))
        alice.send(piece(9999, 3, 0, bytes(16)))
        closed.settimeout(2 * SETTLE)
        with pytest.raises(TimeoutError):
            closed.recv(100)
    assert lab.heard(evil) == set()


def test_flags_of_a_segment_are_those_of_its_first_piece(lab: Siege) -> None:
    """Eight bytes of TCP show the ports and nothing else; the rest could be a SYN."""
    alice, vera = lab["alice"], lab["vera"]
    tcp = bytes(TCP(sport=5566, dport=8080, flags="S"))
    before = lab.dropped()
    for header in (
        IP(src=alice.ipv4, dst=vera.ipv4, id=5, proto=6, flags=1) / Raw(tcp[:8]),
        IP(src=alice.ipv4, dst=vera.ipv4, id=5, proto=6, frag=1) / Raw(tcp[8:]),
        IPv6(src=alice.ipv6, dst=vera.ipv6) / IPv6ExtHdrFragment(nh=6, id=5, m=1) / Raw(tcp[:8]),
        IPv6(src=alice.ipv6, dst=vera.ipv6) / IPv6ExtHdrFragment(nh=6, id=5, offset=1) / Raw(tcp[8:]),
    ):
        alice.send(header)
    expected = Counter(
        CT_TRUNCATED_OR_INVALID_HEADER=2,
        INVALID_PACKET_DROPPED=1,
        FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND=1,
    )
    until(lambda: drops_since(lab, before) >= expected, "every piece to be dropped")


@pytest.mark.parametrize("family", [4, 6])
def test_pods_report_only_about_what_they_were_sent(lab: Siege, family: int) -> None:
    mallory, alice, vera = lab["mallory"], lab["alice"], lab["vera"]
    source, target = own(alice, vera, family)
    tell: dict[int, Packet] = {4: ICMP(type=3, code=4, nexthopmtu=68), 6: ICMPv6PacketTooBig(mtu=1280)}
    with alice.connected(target, 8080, source_port=34570 + family):
        lab.quiet()
        quoted = between(target, source) / TCP(sport=8080, dport=34570 + family)
        for sender, passes in ((mallory, False), (alice, True)):
            mark = lab.mark()
            liar = own(sender, vera, family)[0]
            sender.send(between(liar, target) / tell[family] / quoted / Raw(mark))
            assert lab.comes_out(mark, "vera", passes) is passes, sender.name
    nothing = between(target, source) / TCP(sport=1, dport=2)
    mark = lab.mark()
    unreachable = ICMP(type=3) if family == 4 else ICMPv6DestUnreach()
    alice.send(between(source, target) / unreachable / nothing / Raw(mark))
    assert lab.heard(mark) == set()


def test_a_relabelled_pod_keeps_no_flow(lab: Siege) -> None:
    """alice talks to vera; then she is nobody vera knows, and her open connection ends with her name."""
    alice, vera = lab["alice"], lab["vera"]

    def gets_through() -> bool:
        mark = lab.mark()
        alice.send(IP(src=alice.ipv4, dst=vera.ipv4) / TCP(sport=34580, dport=8080, flags="A") / Raw(mark))
        return "vera" in lab.heard(mark, 0.1)

    with alice.connected(vera.ipv4, 8080, source_port=34580):
        until(gets_through, "alice to get through")
        lab.kubectl("label", "pod", "-n", "red", "alice", "--overwrite", "app=impostor")
        try:
            until(lambda: not gets_through(), "the flow to end")
        finally:
            lab.kubectl("label", "pod", "-n", "red", "alice", "--overwrite", "app=alice")
        until(gets_through, "alice to be alice again")


# the nodes themselves


def test_leave_for_the_world_is_none_for_nodes(lab: Siege) -> None:
    """Neither a CIDR that holds everything nor the world means a node, by whichever address."""
    boxed, near, far_node, outside = (lab[name] for name in ("boxed", "node-1", "node-2", "outside"))
    near.ip("address", "add", "192.168.77.1/32", "dev", "lo")
    try:
        targets = [near.ipv4, far_node.ipv4, near.ipv6, far_node.ipv6, near.link_local]
        targets += ["192.168.77.1", "172.18.0.255", "127.0.0.1", "::1"]
        with (
            near.bound(socket.SOCK_DGRAM, "::", 7777) as here,
            far_node.bound(socket.SOCK_DGRAM, "::", 7777) as there,
        ):
            for target in targets:
                source = boxed.ipv6 if ":" in target else boxed.ipv4
                boxed.send(between(source, target) / UDP(sport=7, dport=7777) / Raw(target.encode()))
            for listener in (here, there):
                listener.settimeout(2 * SETTLE)
                with pytest.raises(TimeoutError):
                    listener.recv(100)
    finally:
        near.ip("address", "delete", "192.168.77.1/32", "dev", "lo")
    mark = lab.mark()
    boxed.send(IP(src=boxed.ipv4, dst=outside.ipv4) / UDP(sport=7, dport=7777) / Raw(mark))
    assert lab.comes_out(mark, "outside", True)


def test_a_pod_gets_no_answer_that_was_meant_for_its_node(lab: Siege) -> None:
    """The pod chooses the very port that a socket of the node has towards the same host."""
    near, mallory, outside = lab["node-1"], lab["mallory"], lab["outside"]
    with (
        outside.bound(socket.SOCK_DGRAM, outside.ipv4, 9999) as server,
        near.bound(socket.SOCK_DGRAM, near.ipv4, 0) as client,
    ):
        port = client.getsockname()[1]
        client.sendto(b"from the node", (outside.ipv4, 9999))
        asked = server.recvfrom(100)[1]
        mallory.send(
            IP(src=mallory.ipv4, dst=outside.ipv4) / UDP(sport=port, dport=9999) / Raw(b"from a pod")
        )
        other = server.recvfrom(100)[1]
        assert (asked, other[0]) == ((near.ipv4, port), near.ipv4)
        assert other[1] != port
        server.sendto(b"to the node", asked)
        assert client.recv(100) == b"to the node"


# what reports say


def test_one_pods_flood_hides_nobody_elses_drop(lab: Siege) -> None:
    mallory, alice, vera = lab["mallory"], lab["alice"], lab["vera"]
    before = lab.dropped().get("INVALID_SOURCE_IP", 0)
    frame = bytes(
        Ether(src=mallory.mac, dst=mallory.gateway_mac) / IP(src="198.51.100.1", dst=vera.ipv4) / UDP()
    )
    for _ in range(3000):
        mallory.send(frame)
    alice.send(IP(src="198.51.100.77", dst=vera.ipv4) / UDP(sport=1, dport=2))
    until(lambda: lab.dropped()["INVALID_SOURCE_IP"] >= before + 3001, "every frame to be counted")
    until(lambda: len(lab.drops("node-1", "--from-ip", "198.51.100.77")) == 1, "the other's drop to be seen")
    assert len(lab.drops("node-1", "--from-ip", "198.51.100.1")) < 1000


def test_one_pods_flows_leave_room_for_others(lab: Siege) -> None:
    """A quarter of the table is the most a pod may have; what it opens beyond that is refused.

    Its flows are answered: those that are not are given up before they fill the quota.
    """
    mallory, alice, boxed = lab["mallory"], lab["alice"], lab["boxed"]
    asked = UDP(sport=1, dport=8080, chksum=0) / Raw(b"x")
    answered = UDP(sport=8080, dport=1, chksum=0) / Raw(b"x")
    frame = bytearray(
        bytes(Ether(src=mallory.mac, dst=mallory.gateway_mac) / IP(src=mallory.ipv4, dst=boxed.ipv4) / asked)
    )
    answer = bytearray(
        bytes(Ether(src=boxed.mac, dst=boxed.gateway_mac) / IP(src=boxed.ipv4, dst=mallory.ipv4) / answered)
    )
    source, destination = 14 + 20, 14 + 20 + 2
    numbers = itertools.count()

    def limited() -> bool:
        before = lab.dropped().get("DROP_RATE_LIMITED", 0)
        for number in itertools.islice(numbers, 4000):
            port = (number % (1 << 16)).to_bytes(2, "big")
            frame[source : source + 2] = answer[destination : destination + 2] = port
            mallory.send(bytes(frame))
            boxed.send(bytes(answer))
        return lab.dropped().get("DROP_RATE_LIMITED", 0) - before > 3600

    def refused() -> bool:
        # On a slow machine the first flows expire meanwhile, and a sweep may just have made room.
        until(limited, "the pod to have all it may")
        try:
            mallory.connected(boxed.ipv4, 8080, timeout=SETTLE).close()
        except TimeoutError:
            return True
        return False

    until(refused, "the pod to get no more")
    alice.connected(boxed.ipv4, 8080).close()


def test_after_all_that_the_allowed_still_talk(lab: Siege) -> None:
    alice, vera, far, mallory = (lab[name] for name in ("alice", "vera", "far", "mallory"))
    for target in (vera, far):
        for address in (target.ipv4, target.ipv6):
            alice.connected(address, 8080).close()
            with pytest.raises(TimeoutError):
                mallory.connected(address, 8080, timeout=2 * SETTLE)
