"""Services, packet by packet: what a pod sends to a frontend reaches a backend, and what comes back is the
frontend's again."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPerror6, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet

from tests.support.datapath_ears import Ears
from tests.support.datapath_world import (
    DENY_ALL,
    FAR_NODE4,
    FAR_NODE6,
    NODE4,
    NODE6,
    POD_FAR4,
    POD_FAR6,
    TCX_REDIRECT,
    WORLD4,
    Frontend,
    Rule,
    World,
    payload,
)
from tests.support.datapath_world import TCP as TCP_NUMBER
from tests.support.datapath_world import UDP as UDP_NUMBER

pytestmark = pytest.mark.root

A4, A6, B4, B6 = "10.0.0.11", "fd00::11", "10.0.0.12", "fd00::12"
VIP4, VIP6 = "10.96.0.10", "fd00:96::10"
LOOPBACK4, LOOPBACK6 = "169.254.42.1", "100::a9fe:2a01"
SCTP_NUMBER = 132
RATE = 100
NEW, ESTABLISHED, REPLY, RELATED = 1, 2, 3, 4
WEB, DNS, WEB6 = Frontend(1, VIP4, 80), Frontend(2, VIP4, 53, UDP_NUMBER), Frontend(3, VIP6, 80)


def ip_of(packet: Packet) -> Packet:
    """The IP part of what a program gave back, after comparing its checksums with scapy's own."""
    layer = packet.payload if isinstance(packet, Ether) else packet
    anew = layer.copy()
    part = anew
    while part and part.name != "NoPayload":
        for name in ("chksum", "cksum"):
            if part.fields.get(name) and "in ICMP" not in str(part.name):
                delattr(part, name)
        part = part.payload
    fragment = isinstance(layer, IP) and (layer.frag or layer.flags.MF)
    if not fragment:
        assert bytes(anew) == bytes(layer)
    return layer


def ask(flags: str = "S", sport: int = 40000, dport: int = 80, to: str = VIP4) -> Packet:
    return IP(src=A4, dst=to) / TCP(sport=sport, dport=dport, flags=flags)


def answer(flags: str = "SA", sport: int = 8080, dport: int = 40000, source: str = B4) -> Packet:
    return IP(src=source, dst=A4) / TCP(sport=sport, dport=dport, flags=flags)


def life_left(row: np.void) -> int:
    return int(row["expires"]) - int(time.clock_gettime(time.CLOCK_MONOTONIC))


def ends(packet: Packet) -> tuple[str, int, str, int]:
    layer = ip_of(packet)
    return layer.src, layer.payload.sport, layer.dst, layer.payload.dport


@pytest.fixture
def web(world: World) -> World:
    world.add_service(WEB, [(B4, 8080)])
    return world


REQUESTS: dict[str, tuple[Frontend, tuple[str, int], Packet]] = {
    "TCP": (WEB, (B4, 8080), IP(src=A4, dst=VIP4) / TCP(sport=4000, dport=80, flags="S")),
    "UDP": (DNS, (B4, 5353), IP(src=A4, dst=VIP4) / UDP(sport=4000, dport=53) / payload(9)),
    "UDP without a checksum": (
        DNS,
        (B4, 5353),
        IP(src=A4, dst=VIP4) / UDP(sport=4000, dport=53, chksum=0) / payload(9),
    ),
    "SCTP": (
        Frontend(4, VIP4, 3868, SCTP_NUMBER),
        (B4, 3868),
        IP(src=A4, dst=VIP4) / SCTP(sport=4000, dport=3868) / SCTPChunkInit(init_tag=7),
    ),
    "TCP over IPv6": (WEB6, (B6, 8080), IPv6(src=A6, dst=VIP6) / TCP(sport=4000, dport=80, flags="S")),
    "UDP over IPv6": (
        Frontend(5, VIP6, 53, UDP_NUMBER),
        (B6, 5353),
        IPv6(src=A6, dst=VIP6) / UDP(sport=4000, dport=53) / payload(9),
    ),
}


def turned(packet: Packet) -> Packet:
    """What answers a packet that arrived."""
    back = packet.copy()
    back.src, back.dst = packet.dst, packet.src
    ports = back.payload
    ports.sport, ports.dport = ports.dport, ports.sport
    for layer in (back, ports):
        if "chksum" in layer.fields and layer.chksum:
            del layer.chksum
    if isinstance(ports, TCP):
        ports.flags = "SA"
    if isinstance(ports, SCTP):
        ports.payload[SCTPChunkInit].type = 2
    return back


@pytest.mark.parametrize(("frontend", "backend", "packet"), REQUESTS.values(), ids=REQUESTS.keys())
def test_there_and_back(world: World, frontend: Frontend, backend: tuple[str, int], packet: Packet) -> None:
    world.add_service(frontend, [backend])
    done = world.from_pod(world.pod_a, packet)
    assert (done.action, done.state, done.ifindex) == ("LOCAL", NEW, world.pod_b.ifindex)
    arrived = done.packet.payload
    if not isinstance(packet.payload, SCTP):
        arrived = ip_of(done.packet)
    assert (arrived.dst, arrived.payload.dport) == backend
    assert (arrived.src, arrived.payload.sport) == (packet.src, 4000)
    _, entry = world.only_flow()
    assert int(entry["service"]) == frontend.id
    assert int(entry["flags"]) & world.layout.value("CT_TRANSLATED")

    back = world.from_pod(world.pod_b, turned(arrived))
    assert (back.action, back.state, back.ifindex) == ("LOCAL", REPLY, world.pod_a.ifindex)
    returned = back.packet.payload
    assert (returned.src, returned.payload.sport) == (frontend.address, frontend.port)
    assert (returned.dst, returned.payload.dport) == (packet.src, 4000)
    if not isinstance(packet.payload, SCTP):
        ip_of(back.packet)
    ((key, flow),) = world.service_flows()
    assert int(key["zone"]) == world.layout.value("CT_ZONE_SERVICE")
    assert (int(flow["service"]), int(flow["owner"])) == (frontend.id, 101)


def test_other_protocols_and_ports_are_left_alone(web: World) -> None:
    udp = web.from_pod(web.pod_a, IP(src=A4, dst=VIP4) / UDP(sport=4000, dport=80) / payload())
    assert (udp.action, ip_of(udp.packet).dst) == ("NETWORK", VIP4)
    assert ip_of(web.from_pod(web.pod_a, ask(dport=81)).packet).dst == VIP4
    assert ip_of(web.from_pod(web.pod_a, IP(src=A4, dst=VIP4) / ICMP(id=5)).packet).dst == VIP4


def test_without_the_switch_nobody_looks(web: World) -> None:
    web.settings["flags"][0] ^= web.layout.value("NODE_SERVICES")
    assert ip_of(web.from_pod(web.pod_a, ask()).packet).dst == VIP4


def test_a_backend_of_another_node_is_reached_through_the_tunnel(world: World) -> None:
    world.add_service(WEB, [(POD_FAR4, 8080)])
    done = world.from_pod(world.pod_a, ask())
    assert (done.action, done.tunnel, done.vni) == ("TUNNEL", FAR_NODE4, 1001)
    assert ends(done.packet) == (A4, 40000, POD_FAR4, 8080)
    world.add_service(WEB6, [(POD_FAR6, 8080)])
    packet = IPv6(src=A6, dst=VIP6) / TCP(sport=4000, dport=80, flags="S")
    assert ends(world.from_pod(world.pod_a, packet).packet) == (A6, 4000, POD_FAR6, 8080)


def test_a_backend_of_the_world_and_of_the_node(world: World) -> None:
    world.add_service(WEB, [(WORLD4, 8080)])
    done = world.from_pod(world.pod_a, ask())
    assert (done.action, ends(done.packet)) == ("NETWORK", (A4, 40000, WORLD4, 8080))
    world.add_service(WEB, [(NODE4, 6443)])
    done = world.from_pod(world.pod_a, ask(sport=40001))
    assert (done.action, ends(done.packet)) == ("HOST", (A4, 40001, NODE4, 6443))
    back = world.from_host(IP(src=NODE4, dst=A4) / TCP(sport=6443, dport=40001, flags="SA"))
    assert (back.action, ends(back.packet)) == ("LOCAL", (VIP4, 80, A4, 40001))


def test_what_the_stack_routes_straight_to_the_pod(world: World) -> None:
    world.add_service(WEB, [(NODE4, 6443)])
    world.from_pod(world.pod_a, ask())
    back = Ether() / IP(src=NODE4, dst=A4) / TCP(sport=6443, dport=40000, flags="SA")
    done = world.run("to_container", back, ifindex=world.pod_a.ifindex)
    assert (done.action, done.state, ends(done.packet)) == ("STACK", REPLY, (VIP4, 80, A4, 40000))


def test_an_answer_too_large_for_the_way_out_is_the_stacks_as_it_is(world: World) -> None:
    """The stack tells the pod how much fits; of the frontend it knows nothing."""
    world.add_service(WEB, [(WORLD4, 8080)])
    packet = IP(src=A4, dst=VIP4, flags="DF") / TCP(sport=40000, dport=80, flags="A") / payload(1600)
    done = world.from_pod(world.pod_a, packet)
    assert (done.action, ends(done.packet)) == ("STACK", (A4, 40000, WORLD4, 8080))
    error = (
        IP(src=NODE4, dst=A4) / ICMP(type=3, code=4, nexthopmtu=1500) / IPerror(bytes(done.packet[IP])[:68])
    )
    told = ip_of(world.from_host(error).packet)
    assert (told[IPerror].dst, told.payload.payload.payload.dport) == (VIP4, 80)


def test_the_policy_sees_the_backend(web: World) -> None:
    web.set_policy(
        1, (Rule(2, 0, precedence=1, flags=4), Rule(2, 1, peer=1002, protocol=6, bits=24, port=8080))
    )
    assert web.from_pod(web.pod_a, ask()).action == "LOCAL"
    web.add_service(WEB, [(POD_FAR4, 8080)])
    assert web.from_pod(web.pod_a, ask(sport=40001)).reason == 133


def test_what_is_denied_is_not_remembered(web: World) -> None:
    web.set_policy(2, DENY_ALL)
    assert web.from_pod(web.pod_a, ask()).reason == 133
    assert web.service_flows() == [] and web.flows() == []


def test_a_flow_keeps_its_backend_while_it_is_there(world: World) -> None:
    world.add_service(WEB, [(B4, 8080), (POD_FAR4, 8080)])
    first = ends(world.from_pod(world.pod_a, ask()).packet)[2]
    for _ in range(20):
        assert ends(world.from_pod(world.pod_a, ask("A")).packet)[2] == first
    world.end_backend(WEB, 0 if first == B4 else 1)
    (other,) = {B4, POD_FAR4} - {first}
    assert ends(world.from_pod(world.pod_a, ask("A")).packet)[2] == other


def test_new_flows_are_spread(world: World) -> None:
    world.add_service(WEB, [(B4, 8080), (POD_FAR4, 8080)])
    given = [ends(world.from_pod(world.pod_a, ask(sport=41000 + i)).packet)[2] for i in range(40)]
    assert 5 <= given.count(B4) <= 35


def test_a_draining_service_serves_who_it_has(web: World) -> None:
    web.from_pod(web.pod_a, ask())
    web.add_service(WEB, [])
    web.dataplane.maps["backends"].memory()["flags"][100 + 16] = web.layout.value("BACKEND_LIVE")
    assert web.from_pod(web.pod_a, ask("A")).action == "LOCAL"
    assert web.from_pod(web.pod_a, ask(sport=40001)).reason == 158


def test_a_client_stays_with_its_backend(world: World) -> None:
    world.add_service(WEB, [(B4, 8080), (POD_FAR4, 8080)], "SERVICE_AFFINITY", affinity=60)
    given = {ends(world.from_pod(world.pod_a, ask(sport=41000 + i)).packet)[2] for i in range(20)}
    assert len(given) == 1


def test_maglev_gives_the_same_flow_the_same_backend(world: World) -> None:
    world.add_service(WEB, [(B4, 8080), (POD_FAR4, 8080)], "SERVICE_MAGLEV")
    given = []
    for sport in range(1000, 60000, 2999):
        given.append(ends(world.from_pod(world.pod_a, ask(sport=sport)).packet)[2])
    assert len(set(given)) == 2
    world.forget_flows()
    again = [ends(world.from_pod(world.pod_a, ask(sport=s)).packet)[2] for s in range(1000, 60000, 2999)]
    assert again == given


@pytest.mark.parametrize("to", [VIP4, VIP6])
def test_nobody_serves(world: World, to: str) -> None:
    frontend = Frontend(6, to, 80)
    ipv6 = ":" in to
    packet = IPv6(src=A6, dst=to) if ipv6 else IP(src=A4, dst=to)
    packet = packet / TCP(sport=4000, dport=80, flags="S")
    world.add_service(frontend, [])
    done = world.from_pod(world.pod_a, packet)
    assert (done.action, done.reason) == ("DROP", 158)
    world.add_service(frontend, [], "SERVICE_REJECT")
    done = world.from_pod(world.pod_a, packet)
    assert (done.value, done.reason) == (TCX_REDIRECT, 158)
    told = ip_of(done.packet).payload
    quoted = told.payload
    if ipv6:
        assert isinstance(told, ICMPv6DestUnreach) and told.code == 4
        assert isinstance(quoted, IPerror6) and (quoted.src, quoted.dst) == (A6, to)
    else:
        assert (told.type, told.code) == (3, 3)
        assert isinstance(quoted, IPerror) and (quoted.src, quoted.dst) == (A4, to)
    world.add_service(frontend, [], "SERVICE_LOOSE")
    assert ip_of(world.from_pod(world.pod_a, packet).packet).dst == to


@pytest.mark.parametrize("to", [VIP4, VIP6])
def test_a_connection_whose_last_backend_has_gone_is_reset(world: World, to: str) -> None:
    world.add_service(Frontend(6, to, 80), [], "SERVICE_REJECT")
    packet = IPv6(src=A6, dst=to) if ":" in to else IP(src=A4, dst=to, options=[b"\x94\x04\0\0"])
    packet = packet / TCP(sport=4000, dport=80, flags="PA", seq=5, ack=77) / payload(600)
    done = world.from_pod(world.pod_a, packet)
    assert (done.value, done.reason) == (TCX_REDIRECT, 158)
    assert (done.packet.src, done.packet.dst) == (world.pod_a.host_mac, world.pod_a.mac)
    assert ends(done.packet) == (to, 80, A6 if ":" in to else A4, 4000)
    told = done.packet[TCP]
    assert (told.flags, told.seq, len(bytes(told))) == ("R", 77, 20)
    packet[TCP].flags = "RA"
    answer = ip_of(world.from_pod(world.pod_a, packet).packet)
    assert TCP not in answer


def test_rejections_are_limited_as_denials_are(world: World) -> None:
    world.add_service(WEB, [], "SERVICE_REJECT")
    packet = bytes(Ether(src=world.pod_a.mac, dst=world.pod_a.host_mac) / ask())
    told = [world.from_pod(world.pod_a, packet).value for _ in range(4 * RATE)]
    assert told[:RATE] == [TCX_REDIRECT] * RATE
    assert told.count(TCX_REDIRECT) < 2 * RATE


def test_a_tuple_serves_one_frontend(web: World) -> None:
    """The backend is asked by its own address, then by one service and by another, from one port."""
    other = Frontend(7, "10.96.0.11", 80)
    web.add_service(other, [(B4, 8080)])
    assert web.from_pod(web.pod_a, ask()).action == "LOCAL"
    assert web.from_pod(web.pod_a, ask(to="10.96.0.11")).reason == 173
    assert web.from_pod(web.pod_a, ask(to=B4, dport=8080)).reason == 173
    assert len(web.flows()) == len(web.service_flows()) == 1
    web.from_pod(web.pod_b, answer("R"))
    assert ends(web.from_pod(web.pod_a, ask(to="10.96.0.11")).packet)[2:] == (B4, 8080)
    assert ends(web.from_pod(web.pod_b, answer()).packet)[:2] == ("10.96.0.11", 80)


def test_a_direct_flow_is_not_given_another_source(web: World) -> None:
    assert web.from_pod(web.pod_a, ask(to=B4, dport=8080)).action == "LOCAL"
    assert web.from_pod(web.pod_a, ask()).reason == 173
    assert ends(web.from_pod(web.pod_b, answer()).packet)[:2] == (B4, 8080)


def test_lifetimes_follow_the_tracked_flow(web: World) -> None:
    web.from_pod(web.pod_a, ask())
    assert 57 <= life_left(web.service_flows()[0][1]) <= 60
    web.from_pod(web.pod_b, answer())
    web.from_pod(web.pod_a, ask("A"))
    assert 7990 <= life_left(web.service_flows()[0][1]) <= 8000
    web.from_pod(web.pod_b, answer("FA"))
    web.from_pod(web.pod_a, ask("FA"))
    flow = web.service_flows()[0][1]
    assert life_left(flow) <= 10
    assert int(flow["flags"]) & web.layout.value("SERVICE_FLOW_CLOSED")


def test_a_reply_that_ends_the_flow_ends_the_service_flow(world: World) -> None:
    world.add_service(WEB, [(B4, 8080)])
    world.from_pod(world.pod_a, ask())
    world.from_pod(world.pod_b, answer("RA"))
    flow = world.service_flows()[0][1]
    assert life_left(flow) <= 10
    assert int(flow["flags"]) & world.layout.value("SERVICE_FLOW_CLOSED")
    world.add_service(WEB, [(POD_FAR4, 8080)])
    assert ends(world.from_pod(world.pod_a, ask()).packet)[2] == POD_FAR4


def test_a_full_table_refuses_new_flows_only(web: World) -> None:
    web.from_pod(web.pod_a, ask())
    value = web.service_flows()[0][1]
    keys = np.zeros(63, web.layout.dtype("ct_key"))
    keys["low_port"] = np.arange(1, 64)
    web.dataplane.maps["service_flows"].put(keys, np.repeat(value, 63))
    assert web.from_pod(web.pod_a, ask("A")).action == "LOCAL"
    assert web.from_pod(web.pod_a, ask(sport=40001)).reason == 155


def test_a_pod_reaches_itself(world: World) -> None:
    world.set_policy(1, DENY_ALL)
    for frontend, own, loopback, base in (
        (WEB, A4, LOOPBACK4, IP),
        (WEB6, A6, LOOPBACK6, IPv6),
    ):
        world.add_service(frontend, [(own, 8080)])
        request = base(src=own, dst=frontend.address) / TCP(sport=4000, dport=80, flags="S")
        done = world.from_pod(world.pod_a, request)
        assert (done.action, done.ifindex) == ("LOCAL", world.pod_a.ifindex)
        assert ends(done.packet) == (loopback, 4000, own, 8080)
        reply = base(src=own, dst=loopback) / TCP(sport=8080, dport=4000, flags="SA")
        back = world.from_pod(world.pod_a, reply)
        assert (back.action, back.state, back.ifindex) == ("LOCAL", REPLY, world.pod_a.ifindex)
        assert ends(back.packet) == (frontend.address, 80, own, 4000)
        more = base(src=own, dst=frontend.address) / TCP(sport=4000, dport=80, flags="A")
        assert world.from_pod(world.pod_a, more).state == ESTABLISHED
    assert world.quota(101) == 2


def test_the_loopback_address_is_nobody_else(web: World) -> None:
    stray = IP(src=A4, dst=LOOPBACK4) / TCP(sport=8080, dport=4000, flags="SA")
    assert web.from_pod(web.pod_a, stray).reason == 150
    assert web.flows() == []


def test_pieces_go_where_their_first_goes(world: World) -> None:
    world.add_service(DNS, [(B4, 5353)])
    first = IP(src=A4, dst=VIP4, id=9, flags="MF") / UDP(sport=4000, dport=53, len=40) / payload(16)
    later = IP(src=A4, dst=VIP4, id=9, frag=3, proto=17) / payload(16)
    done = world.from_pod(world.pod_a, first)
    assert (done.action, done.packet[IP].dst, done.packet[UDP].dport) == ("LOCAL", B4, 5353)
    done = world.from_pod(world.pod_a, later)
    assert (done.action, done.packet[IP].dst) == ("LOCAL", B4)
    assert bytes(done.packet[IP].payload) == bytes(payload(16))
    back = IP(src=B4, dst=A4, id=5, flags="MF") / UDP(sport=5353, dport=4000, len=40) / payload(16)
    assert world.from_pod(world.pod_b, back).packet[IP].src == VIP4
    back = IP(src=B4, dst=A4, id=5, frag=3, proto=17) / payload(16)
    assert world.from_pod(world.pod_b, back).packet[IP].src == VIP4


def test_pieces_over_ipv6(world: World) -> None:
    frontend = Frontend(5, VIP6, 53, UDP_NUMBER)
    world.add_service(frontend, [(B6, 5353)])
    head = IPv6(src=A6, dst=VIP6) / IPv6ExtHdrFragment(id=9, m=1, nh=17)
    done = world.from_pod(world.pod_a, head / UDP(sport=4000, dport=53, len=40) / payload(16))
    assert (done.packet[IPv6].dst, done.packet[UDP].dport) == (B6, 5353)
    tail = IPv6(src=A6, dst=VIP6) / IPv6ExtHdrFragment(id=9, offset=3, nh=17)
    done = world.from_pod(world.pod_a, tail / payload(16))
    assert (done.action, done.packet[IPv6].dst) == ("LOCAL", B6)


def test_a_later_piece_without_its_first(world: World) -> None:
    world.add_service(DNS, [(B4, 5353)])
    later = IP(src=A4, dst=VIP4, id=77, frag=3, proto=17) / payload(16)
    assert world.from_pod(world.pod_a, later).reason == 175


def test_backend_says_port_unreachable(world: World) -> None:
    world.add_service(DNS, [(B4, 5353)])
    asked = world.from_pod(world.pod_a, IP(src=A4, dst=VIP4) / UDP(sport=4000, dport=53) / payload())
    error = IP(src=B4, dst=A4) / ICMP(type=3, code=3) / IPerror(bytes(ip_of(asked.packet)))
    done = world.from_pod(world.pod_b, error)
    assert (done.action, done.state) == ("LOCAL", RELATED)
    told = ip_of(done.packet)
    assert (told.src, told.dst) == (VIP4, A4)
    assert (told[IPerror].src, told[IPerror].dst) == (A4, VIP4)
    assert (told[UDPerror].sport, told[UDPerror].dport) == (4000, 53)
    quoted = IP(bytes(told[IPerror]))
    del quoted.chksum
    assert bytes(IP(bytes(quoted)))[:20] == bytes(told[IPerror])[:20]


def test_too_big_from_a_router_on_the_way(world: World) -> None:
    frontend = Frontend(5, VIP6, 53, UDP_NUMBER)
    world.add_service(frontend, [(B6, 5353)])
    request = IPv6(src=A6, dst=VIP6) / UDP(sport=4000, dport=53) / payload()
    asked = ip_of(world.from_pod(world.pod_a, request).packet)
    error = IPv6(src=NODE6, dst=A6) / ICMPv6PacketTooBig(mtu=1300) / IPerror6(bytes(asked))
    done = world.from_host(error)
    assert done.action == "LOCAL"
    told = ip_of(done.packet)
    assert (told.src, told[ICMPv6PacketTooBig].mtu) == (NODE6, 1300)
    assert (told[IPerror6].dst, told[UDPerror].dport) == (VIP6, 53)


def test_client_refuses_what_a_frontend_sent(world: World) -> None:
    """Its error is about the frontend's packet; the backend gets one about its own."""
    world.add_service(DNS, [(B4, 5353)])
    world.from_pod(world.pod_a, IP(src=A4, dst=VIP4) / UDP(sport=4000, dport=53) / payload())
    back = world.from_pod(world.pod_b, IP(src=B4, dst=A4) / UDP(sport=5353, dport=4000) / payload())
    error = IP(src=A4, dst=VIP4) / ICMP(type=3, code=3) / IPerror(bytes(ip_of(back.packet)))
    done = world.from_pod(world.pod_a, error)
    assert (done.action, done.state, done.ifindex) == ("LOCAL", RELATED, world.pod_b.ifindex)
    told = ip_of(done.packet)
    assert (told.src, told.dst) == (A4, B4)
    assert (told[IPerror].src, told[UDPerror].sport, told[IPerror].dst) == (B4, 5353, A4)


def test_errors_of_a_pod_that_talks_to_itself(world: World) -> None:
    world.add_service(DNS, [(A4, 5353)])
    asked = world.from_pod(world.pod_a, IP(src=A4, dst=VIP4) / UDP(sport=4000, dport=53) / payload())
    error = IP(src=A4, dst=LOOPBACK4) / ICMP(type=3, code=3) / IPerror(bytes(ip_of(asked.packet)))
    done = world.from_pod(world.pod_a, error)
    assert (done.action, done.ifindex) == ("LOCAL", world.pod_a.ifindex)
    told = ip_of(done.packet)
    assert (told.src, told.dst, told[IPerror].src, told[IPerror].dst) == (VIP4, A4, A4, VIP4)
    assert (told[UDPerror].sport, told[UDPerror].dport) == (4000, 53)


def test_an_error_about_nothing_known_goes_its_way(web: World) -> None:
    quoted = IP(src=VIP4, dst=A4) / UDP(sport=53, dport=4000)
    error = IP(src=A4, dst=VIP4) / ICMP(type=3, code=3) / IPerror(bytes(quoted))
    assert web.from_pod(web.pod_a, error).reason == 144


def test_node_port_at_any_node(world: World) -> None:
    world.add_service(Frontend(8, "0.0.0.0", 30080), [(B4, 8080)], "SERVICE_NODE_PORT")
    done = world.from_pod(world.pod_a, ask(dport=30080, to=FAR_NODE4))
    assert ends(done.packet) == (A4, 40000, B4, 8080)
    back = world.from_pod(world.pod_b, answer())
    assert ends(back.packet) == (FAR_NODE4, 30080, A4, 40000)
    assert ends(world.from_pod(world.pod_a, ask(dport=30080, to=WORLD4)).packet)[2] == WORLD4


def test_node_port_at_any_node_over_ipv6(world: World) -> None:
    world.add_service(Frontend(8, "::", 30080), [(B6, 8080)], "SERVICE_NODE_PORT")
    packet = IPv6(src=A6, dst=FAR_NODE6) / TCP(sport=4000, dport=30080, flags="S")
    assert ends(world.from_pod(world.pod_a, packet).packet) == (A6, 4000, B6, 8080)
    back = IPv6(src=B6, dst=A6) / TCP(sport=8080, dport=4000, flags="SA")
    assert ends(world.from_pod(world.pod_b, back).packet) == (FAR_NODE6, 30080, A6, 4000)


@pytest.mark.parametrize("flag", ["SERVICE_EXTERNAL_IP", "SERVICE_HOST_PORT"])
def test_nobody_usurps_an_address_of_the_world(world: World, flag: str) -> None:
    world.add_service(Frontend(9, WORLD4, 443), [(B4, 8080)], flag)
    assert ends(world.from_pod(world.pod_a, ask(dport=443, to=WORLD4)).packet)[2] == WORLD4
    world.add_service(Frontend(10, NODE4, 443), [(B4, 8080)], flag)
    done = world.from_pod(world.pod_a, ask(sport=40001, dport=443, to=NODE4))
    assert ends(done.packet)[2] == B4


def test_the_zero_address_asks_for_nothing(world: World) -> None:
    """Though node ports of all nodes are kept under it."""
    world.add_service(Frontend(2, "0.0.0.0", 30080), ((B4, 8080),))
    assert world.from_pod(world.pod_a, ask(to="0.0.0.0", dport=30080)).action == "DROP"


def test_a_redirect_leaves_some_pods_alone(world: World) -> None:
    world.add_service(WEB, [(B4, 8080)], "SERVICE_REDIRECT")
    skipped = world.row("skip_redirect_key", address=VIP4, port=80, endpoint=101, protocol=TCP_NUMBER)
    world.put("skip_redirect", skipped, np.ones(1, np.uint32))
    assert ip_of(world.from_pod(world.pod_a, ask()).packet).dst == VIP4
    packet = IP(src=B4, dst=VIP4) / TCP(sport=40000, dport=80, flags="S")
    assert world.from_pod(world.pod_b, packet).packet[IP].src == LOOPBACK4


def test_sctp_keeps_its_port(world: World) -> None:
    world.add_service(Frontend(4, VIP4, 3868, SCTP_NUMBER), [(B4, 3869)])
    packet = IP(src=A4, dst=VIP4) / SCTP(sport=4000, dport=3868) / SCTPChunkInit(init_tag=7)
    assert world.from_pod(world.pod_a, packet).reason == 142


def test_events_know_both_tuples(web: World) -> None:
    ears = Ears(web)
    web.from_pod(web.pod_a, ask())
    (event,) = ears.traces()
    assert event["original_destination"].tobytes() == web.address(VIP4).tobytes()
    assert event["destination"].tobytes() == web.address(B4).tobytes()
    ports = int(event["original_destination_port"]), int(event["destination_port"])
    assert (ports, int(event["service"])) == ((80, 8080), 1)
    web.from_pod(web.pod_b, answer())
    (event,) = ears.traces()
    assert event["source"].tobytes() == web.address(VIP4).tobytes()
    assert event["original_source"].tobytes() == web.address(B4).tobytes()
    assert (int(event["source_port"]), int(event["original_source_port"])) == (80, 8080)
    assert int(event["service"]) == 1
