"""Frames over a real device with the driver's program on it. from_netdev opens a flow, the driver carries on.

client ── gateway ══ eth (this node) ══ gateway or far node ── backend
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from cilia.dataplane import bpf, xdp
from cilia.dataplane.bpf import BpfError
from cilia.dataplane.xdp import Acceleration
from tests.support import service_maps
from tests.support.datapath_world import (
    FAR_IDENTITY,
    FAR_NODE4,
    GATEWAY_MAC,
    NODE4,
    NODE6,
    POD_FAR4,
    POD_FAR6,
    ROUTER4,
    ROUTER6,
    WORLD4,
    WORLD6,
    World,
)
from tests.support.service_maps import ServiceMaps

pytestmark = pytest.mark.root

FAR_MAC = "02:00:00:00:00:fa"
NATIVE4, NATIVE6 = "10.7.0.5", "fd07::5"
PORT, TARGET, SOURCE = 31000, 8080, 4000
TCP_ACK = "A"
OUTGOING = 4
FAMILIES = [(WORLD4, NODE4, NATIVE4), (WORLD6, NODE6, NATIVE6)]
TUNNELLED = [(WORLD4, NODE4, POD_FAR4), (WORLD6, NODE6, POD_FAR6)]
KINDS = (service_maps.TCP, service_maps.UDP)


class Wire:
    """The other end of the node's device."""

    def __init__(self, mac: str) -> None:
        self.mac = mac
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind(("eth_far", 0))

    def close(self) -> None:
        self._socket.close()

    def send(self, packet: Packet, source: str = GATEWAY_MAC) -> None:
        frame = packet if isinstance(packet, Ether) else Ether(src=source, dst=self.mac) / packet
        self._socket.send(bytes(frame))

    def receive(self, wanted: Callable[[Packet], bool], seconds: float = 30.0) -> Packet:
        """The next frame from the node that is wanted."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            data, origin = self._socket.recvfrom(4096)
            packet = Ether(data)
            if origin[2] != OUTGOING and wanted(packet):
                return packet
        raise TimeoutError("nothing came")


@pytest.fixture(scope="module", params=[Acceleration.GENERIC, Acceleration.NATIVE])
def accelerated(loaded_world: World, request: pytest.FixtureRequest) -> Iterator[World]:
    """The world with the program on eth, and its neighbours known. A veth's driver sends to another only
    if that has a program, too."""
    eth = loaded_world.devices["eth"]
    with IPRoute() as ip:
        far = ip.link_lookup(ifname="eth_far")
        ends = [eth, *far] if request.param is Acceleration.NATIVE else [eth]
        for address, mac in (
            ("192.0.2.254", GATEWAY_MAC),
            (FAR_NODE4, FAR_MAC),
            ("2001:db8:f::fe", GATEWAY_MAC),
        ):
            ip.neigh("replace", dst=address, lladdr=mac, ifindex=eth, state="permanent")
    xdp.attach(loaded_world.dataplane, ends, request.param)
    try:
        yield loaded_world
    finally:
        xdp.attach(loaded_world.dataplane, [], Acceleration.DISABLED)


@pytest.fixture
def services(accelerated: World, world: World) -> Iterator[ServiceMaps]:
    made = ServiceMaps(world.dataplane)
    made.enable()
    for address in (NATIVE4, NATIVE6):
        world.add_prefix(address, FAR_IDENTITY)
    try:
        yield made
    finally:
        made.clear()


@pytest.fixture
def wire(accelerated: World) -> Iterator[Wire]:
    with IPRoute() as ip:
        mac = ip.get_links(accelerated.devices["eth"])[0].get_attr("IFLA_ADDRESS")
    with closing(Wire(mac)) as made:
        yield made


def frame(source: str, destination: str, transport: Packet, ttl: int = 64) -> Packet:
    if ":" in source:
        return IPv6(src=source, dst=destination, hlim=ttl) / transport
    return IP(src=source, dst=destination, ttl=ttl) / transport


def segment(protocol: int, source: int, destination: int, flags: str = TCP_ACK, size: int = 20) -> Packet:
    if protocol == service_maps.TCP:
        return TCP(sport=source, dport=destination, flags=flags) / Raw(b"x" * size)
    return UDP(sport=source, dport=destination) / Raw(b"x" * size)


def ask(client: str, vip: str, protocol: int = service_maps.TCP, flags: str = TCP_ACK) -> Packet:
    return frame(client, vip, segment(protocol, SOURCE, PORT, flags))


def offer(
    services: ServiceMaps, vip: str, backend: str, protocol: int = service_maps.TCP, *flags: str
) -> None:
    services.add(
        (vip, PORT),
        (backend, TARGET),
        protocol=protocol,
        flags=("SERVICE_OUTSIDE", "SERVICE_NODE_PORT", *flags),
    )


def open_flow(world: World, wire: Wire, client: str, vip: str, protocol: int = service_maps.TCP) -> None:
    """By from_netdev, as the first packet of each flow."""
    packet = Ether(src=GATEWAY_MAC, dst=wire.mac) / ask(client, vip, protocol, "S")
    outcome = world.run("from_netdev", packet, ifindex=world.devices["eth"])
    assert outcome.action in ("NETWORK", "TUNNEL"), outcome


def transport(packet: Packet) -> Any:
    return packet[TCP] if TCP in packet else packet[UDP]


def network(packet: Packet) -> Any:
    return packet[IP] if IP in packet else packet[IPv6]


def is_tunnelled(packet: Packet) -> bool:
    return VXLAN in packet


def is_sound(packet: Packet) -> bool:
    """All checksums are what they would be had the packet been made so."""
    ip = network(packet)
    again = ip.__class__(bytes(ip))
    for layer, field in ((again, "chksum"), (transport(again), "chksum")):
        if field in layer.fields:
            del layer.fields[field]
    return bytes(again) == bytes(ip)


def carries(marker: str) -> Callable[[Packet], bool]:
    return lambda packet: bool(Raw in packet and network(packet).dst == marker)


@pytest.mark.parametrize("protocol", [service_maps.TCP, service_maps.UDP])
@pytest.mark.parametrize(("client", "vip", "backend"), FAMILIES)
def test_a_known_flow_goes_to_its_backend_and_its_answer_back(
    services: ServiceMaps, world: World, wire: Wire, client: str, vip: str, backend: str, protocol: int
) -> None:
    offer(services, vip, backend, protocol)
    open_flow(world, wire, client, vip, protocol)
    wire.send(ask(client, vip, protocol))
    sent = wire.receive(carries(backend))
    assert (sent.src, sent.dst) == (wire.mac, GATEWAY_MAC)
    assert network(sent).src == vip and transport(sent).dport == TARGET
    assert (network(sent).ttl if sent.haslayer(IP) else network(sent).hlim) == 63
    assert is_sound(sent)
    own_port = transport(sent).sport
    assert 32768 <= own_port <= 33279
    wire.send(frame(backend, vip, segment(protocol, TARGET, own_port)))
    answer = wire.receive(carries(client))
    assert network(answer).src == vip
    assert (transport(answer).sport, transport(answer).dport) == (PORT, SOURCE)
    assert is_sound(answer)


@pytest.mark.parametrize("protocol", [service_maps.TCP, service_maps.UDP])
@pytest.mark.parametrize(("client", "vip", "backend"), TUNNELLED)
def test_a_known_flow_goes_through_the_tunnel_and_its_answer_back(
    services: ServiceMaps, world: World, wire: Wire, client: str, vip: str, backend: str, protocol: int
) -> None:
    offer(services, vip, backend, protocol)
    open_flow(world, wire, client, vip, protocol)
    wire.send(ask(client, vip, protocol))
    outer = wire.receive(is_tunnelled)
    assert (outer.src, outer.dst) == (wire.mac, FAR_MAC)
    assert (outer[IP].src, outer[IP].dst, outer[UDP].dport) == (NODE4, FAR_NODE4, 8472)
    assert outer[IP].len == len(outer) - 14 and outer[UDP].len == outer[IP].len - 20
    assert outer[VXLAN].vni == world.layout.value(
        "IDENTITY_WORLD_IPV6" if ":" in client else "IDENTITY_WORLD_IPV4"
    )
    inner = outer[VXLAN].payload
    own = ROUTER6 if ":" in client else ROUTER4
    assert (network(inner).src, network(inner).dst) == (own, backend) and is_sound(inner)
    own_port = transport(inner).sport
    reply = Ether(src=FAR_MAC, dst=wire.mac) / frame(backend, own, segment(protocol, TARGET, own_port))
    wire.send(tunnel(reply), FAR_MAC)
    answer = wire.receive(carries(client))
    assert answer.dst == GATEWAY_MAC and not answer.haslayer(VXLAN)
    assert network(answer).src == vip
    assert (transport(answer).sport, transport(answer).dport) == (PORT, SOURCE)
    assert is_sound(answer)


@pytest.mark.parametrize(("client", "vip", "backend"), FAMILIES)
def test_a_backend_that_answers_itself_sees_the_client(
    services: ServiceMaps, world: World, wire: Wire, client: str, vip: str, backend: str
) -> None:
    offer(services, vip, backend, service_maps.TCP, "SERVICE_DSR")
    open_flow(world, wire, client, vip)
    wire.send(ask(client, vip, flags="S"))
    wire.send(ask(client, vip))
    sent = wire.receive(carries(backend))
    assert (network(sent).src, transport(sent).sport, transport(sent).dport) == (client, SOURCE, TARGET)
    assert transport(sent).flags == TCP_ACK, "a handshake has to tell the frontend"
    assert is_sound(sent)


def tunnel(inner: Packet, node: str = FAR_NODE4, identity: int = FAR_IDENTITY) -> Packet:
    return (
        IP(src=node, dst=NODE4)
        / UDP(sport=40000, dport=8472, chksum=0)
        / VXLAN(vni=identity, flags=8)
        / inner
    )


def unusual(client: str, vip: str) -> dict[str, Packet]:
    """Packets of a known flow that are not for the driver."""
    plain = segment(service_maps.TCP, SOURCE, PORT)
    partial = IP(bytes(IP(src=client, dst=vip) / plain))
    partial[TCP].chksum = pseudo_sum(partial)
    return {
        "option": IP(src=client, dst=vip, options=[("NOP")] * 4) / plain,
        "fragment": IP(src=client, dst=vip, flags="MF") / plain,
        "later fragment": IP(src=client, dst=vip, frag=100) / plain,
        "last hop": IP(src=client, dst=vip, ttl=1) / plain,
        "unfinished checksum": partial,
        "tag": Ether(src=GATEWAY_MAC, dst="ff:ff:ff:ff:ff:ff")
        / Dot1Q(vlan=5)
        / IP(src=client, dst=vip)
        / plain,
        "longer than it is": IP(src=client, dst=vip, len=200) / plain,
        "other port": IP(src=client, dst=vip) / segment(service_maps.TCP, SOURCE, PORT + 1),
        "other client": IP(src=client, dst=vip) / segment(service_maps.TCP, SOURCE + 1, PORT),
        "new connection": IP(src=client, dst=vip) / segment(service_maps.UDP, SOURCE, PORT),
    }


def pseudo_sum(packet: Packet) -> int:
    """What a stack leaves of the checksum to a device."""
    body = bytes(packet[TCP])
    words = packet.src.split(".") + packet.dst.split(".")
    raw = bytes(map(int, words)) + bytes([0, 6]) + len(body).to_bytes(2, "big")
    total = sum(int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("name", list(unusual(WORLD4, NODE4)))
def test_the_unusual_is_left_to_the_stack(services: ServiceMaps, world: World, wire: Wire, name: str) -> None:
    offer(services, NODE4, NATIVE4)
    open_flow(world, wire, WORLD4, NODE4)
    marker = frame(WORLD4, NODE4, TCP(sport=SOURCE, dport=PORT, flags="A") / Raw(b"marker"))
    wire.send(unusual(WORLD4, NODE4)[name])
    wire.send(marker)
    sent = wire.receive(carries(NATIVE4))
    assert bytes(sent[Raw]) == b"marker"


def test_ipv6_extensions_are_left_to_the_stack(services: ServiceMaps, world: World, wire: Wire) -> None:
    offer(services, NODE6, NATIVE6)
    open_flow(world, wire, WORLD6, NODE6)
    plain = segment(service_maps.TCP, SOURCE, PORT)
    wire.send(IPv6(src=WORLD6, dst=NODE6) / IPv6ExtHdrDestOpt() / plain)
    wire.send(frame(WORLD6, NODE6, TCP(sport=SOURCE, dport=PORT, flags="A") / Raw(b"marker")))
    assert bytes(wire.receive(carries(NATIVE6))[Raw]) == b"marker"


def test_a_datagram_without_checksum_stays_so(services: ServiceMaps, world: World, wire: Wire) -> None:
    offer(services, NODE4, NATIVE4, service_maps.UDP)
    open_flow(world, wire, WORLD4, NODE4, service_maps.UDP)
    wire.send(frame(WORLD4, NODE4, UDP(sport=SOURCE, dport=PORT, chksum=0) / Raw(b"x" * 20)))
    assert wire.receive(carries(NATIVE4))[UDP].chksum == 0


def check_silent(wire: Wire) -> None:
    with pytest.raises(TimeoutError):
        wire.receive(lambda packet: IP in packet and packet[IP].proto in KINDS and Raw in packet, 0.15)


def test_a_gone_backend_is_not_carried_on_to(services: ServiceMaps, world: World, wire: Wire) -> None:
    offer(services, NODE4, NATIVE4)
    open_flow(world, wire, WORLD4, NODE4)
    services.kill(NATIVE4, TARGET)
    wire.send(ask(WORLD4, NODE4))
    check_silent(wire)


def test_source_ranges_hold_for_known_flows(services: ServiceMaps, world: World, wire: Wire) -> None:
    offer(services, NODE4, NATIVE4)
    open_flow(world, wire, WORLD4, NODE4)
    key = services.key((NODE4, PORT))
    found = services.maps["services"].lookup(key)
    assert found is not None
    row = found.copy()
    row["flags"] |= services.flags("SERVICE_SOURCES_ALLOWED")
    services.maps["services"].update(key, row)
    wire.send(ask(WORLD4, NODE4))
    check_silent(wire)


def test_without_services_nothing_is_looked_at(services: ServiceMaps, world: World, wire: Wire) -> None:
    offer(services, NODE4, NATIVE4)
    open_flow(world, wire, WORLD4, NODE4)
    services.settings["flags"][0] ^= services.flags("NODE_SERVICES")
    wire.send(ask(WORLD4, NODE4))
    check_silent(wire)


@pytest.mark.parametrize("lie", ["node", "sender", "flags", "address"])
def test_only_the_backends_node_answers_through_the_tunnel(
    services: ServiceMaps, world: World, wire: Wire, lie: str
) -> None:
    offer(services, NODE4, POD_FAR4)
    open_flow(world, wire, WORLD4, NODE4)
    wire.send(ask(WORLD4, NODE4))
    own_port = transport(wire.receive(is_tunnelled)[VXLAN].payload).sport
    backend = NATIVE4 if lie == "sender" else POD_FAR4
    own = NODE4 if lie == "address" else ROUTER4
    inner = Ether(src=FAR_MAC, dst=wire.mac) / frame(
        backend, own, segment(service_maps.TCP, TARGET, own_port)
    )
    packet = tunnel(inner, "192.0.2.99" if lie == "node" else FAR_NODE4)
    if lie == "flags":
        packet[VXLAN].flags = 0
    wire.send(packet, FAR_MAC)
    check_silent(wire)


XDP_CONTEXT = struct.Struct("<6I")
XDP_PASS, XDP_TX = 2, 3


def in_driver(world: World, raw: bytes) -> tuple[int, bytes]:
    context = XDP_CONTEXT.pack(0, len(raw), 0, world.devices["eth"], 0, 0)
    result = bpf.test_run(world.dataplane.programs["from_driver"], raw, context=context)
    return result.value, result.data


def mutants(frames: list[bytes], count: int) -> Iterator[bytes]:
    """Frames with a few bytes changed, cut or added, most of them in the headers."""
    chance = random.Random(20_240)
    for _ in range(count):
        raw = bytearray(chance.choice(frames))
        for _ in range(chance.choice((0, 1, 1, 2))):
            raw[chance.randrange(14, min(len(raw), 94))] = chance.choice((0, 1, 0x45, 0x60, 0xFF))
        if chance.random() < 0.2:
            raw = raw[: chance.randrange(14, len(raw))]
        elif chance.random() < 0.2:
            raw += bytes(chance.randrange(1, 40))
        yield bytes(raw)


@pytest.mark.parametrize("accelerated", [Acceleration.NATIVE], indirect=True)
def test_the_driver_does_what_the_stack_would(services: ServiceMaps, world: World, wire: Wire) -> None:
    """Whatever goes on leaves as from_netdev sends it; whatever does not is untouched."""
    frames = []
    for protocol in KINDS:
        for client, vip, backend in FAMILIES:
            offer(services, vip, backend, protocol)
            open_flow(world, wire, client, vip, protocol)
            frames.append(bytes(Ether(src=GATEWAY_MAC, dst=wire.mac) / ask(client, vip, protocol)))
    went = 0
    for raw in mutants(frames, 1500):
        verdict, data = in_driver(world, raw)
        if verdict == XDP_PASS:
            assert data == raw
            continue
        assert verdict == XDP_TX
        went += 1
        outcome = world.run("from_netdev", raw, ifindex=world.devices["eth"])
        assert outcome.action == "NETWORK", (raw.hex(), outcome)
        assert outcome.data[14:] == data[14:], raw.hex()
    assert went > 300


def test_a_driver_that_cannot_says_so(world: World) -> None:
    loopback = 1
    with pytest.raises(BpfError, match=r"device 1 takes no XDP program .* choose best-effort or disabled"):
        xdp.attach(world.dataplane, [loopback], Acceleration.NATIVE)
    failures = xdp.attach(world.dataplane, [loopback], Acceleration.BEST_EFFORT)
    assert list(failures) == [loopback]
    assert xdp.attach(world.dataplane, [loopback], Acceleration.GENERIC) == {}
    assert "from_driver_1" in world.dataplane.attached()
    xdp.attach(world.dataplane, [], Acceleration.DISABLED)
    assert not [name for name in world.dataplane.attached() if name.startswith("from_driver")]
