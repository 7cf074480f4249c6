"""Random and mutated packets through every program: each ends with a reason or a way to go, and is counted;
the kernel has nothing to complain of."""

from __future__ import annotations

import ipaddress
import os
import random
from collections import Counter
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    in6_chksum,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.utils import checksum

from tests.support.datapath_world import (
    DENY_ALL,
    FAR_NODE4,
    NODE4,
    NODE6,
    POD_FAR4,
    ROUTER4,
    ROUTER6,
    TCX_DROP,
    TCX_NEXT,
    TCX_REDIRECT,
    WORLD4,
    WORLD6,
    Frontend,
    World,
    payload,
)

pytestmark = pytest.mark.root

A, A6 = "10.0.0.11", "fd00::11"
VIP, VIP6 = "10.96.0.10", "fd00:96::10"
ETHER = Ether(src="0a:00:00:00:00:0a", dst="0e:00:00:00:00:0a")
QUOTED = IP(src="10.0.0.12", dst=A) / UDP(sport=1, dport=2) / payload()
SEEDS = [
    bytes(ETHER / layers)
    for layers in (
        IP(src=A, dst="10.0.0.12") / TCP(sport=4, dport=80, flags="S") / payload(40),
        IP(src=A, dst="10.0.0.12", flags="MF") / UDP(sport=4, dport=53, len=64) / payload(16),
        IP(src=A, dst="10.0.0.12", frag=3, proto=17) / payload(16),
        IP(src=A, dst=WORLD4, options=[b"\x94\x04\0\0"]) / UDP(sport=4, dport=53) / payload(),
        IP(src=A, dst=WORLD4) / ICMP(type=8, id=5) / payload(),
        IP(src=A, dst="10.0.0.12") / ICMP(type=3, code=3) / QUOTED,
        IP(src=ROUTER4, dst=A) / TCP(sport=80, dport=4, flags="SA"),
        IP(src=WORLD4, dst=NODE4) / UDP(sport=53, dport=33000) / payload(),
        IP(src=WORLD4, dst=NODE4) / ICMP(type=11) / IP(src=NODE4, dst=WORLD4) / UDP(sport=33000, dport=53),
        IP(src=POD_FAR4, dst=A) / TCP(sport=4, dport=80, flags="S"),
        IP(src=A, dst=POD_FAR4) / TCP(sport=4, dport=80, flags="A"),
        IPv6(src=A6, dst="fd00::12") / TCP(sport=4, dport=80, flags="S"),
        IPv6(src=A6, dst=WORLD6) / IPv6ExtHdrFragment(id=3, m=1) / UDP(sport=4, dport=53) / payload(),
        IPv6(src=A6, dst=WORLD6) / ICMPv6EchoRequest(id=5) / payload(),
        IPv6(src=WORLD6, dst=NODE6) / ICMPv6DestUnreach() / IPv6(src=NODE6, dst=WORLD6) / UDP(sport=33000),
        IPv6(src=A6, dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt=ROUTER6) / ICMPv6NDOptSrcLLAddr(),
        IP(src=A, dst="10.0.0.12") / SCTP(sport=4, dport=80) / SCTPChunkInit(),
        IP(src=A, dst=WORLD4) / SCTP(sport=4, dport=80) / SCTPChunkInit(),
        IP(src=A, dst="10.0.0.12", proto=47) / payload(30),
        IPv6(src=A6, dst="fd00::12") / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(sport=4, dport=53),
        IPv6(src=A6, dst=WORLD6) / IPv6ExtHdrRouting(type=4, segleft=0) / TCP(sport=4, dport=80, flags="S"),
        IPv6(src=A6, dst="fd00::12") / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt() / UDP() / payload(),
        IPv6(src=A6, dst="fd00::12")
        / ICMPv6DestUnreach()
        / IPv6(src="fd00::12", dst=A6)
        / IPv6ExtHdrDestOpt()
        / UDP(sport=4),
        IP(src=A, dst=VIP) / TCP(sport=4, dport=80, flags="S") / payload(40),
        IP(src=A, dst=VIP, flags="MF") / UDP(sport=4, dport=53, len=64) / payload(16),
        IP(src=A, dst=VIP, frag=3, proto=17) / payload(16),
        IP(src=A, dst=VIP) / ICMP(type=3, code=3) / IP(src=VIP, dst=A) / UDP(sport=53, dport=4) / payload(),
        IP(src=A, dst=VIP) / SCTP(sport=4, dport=80) / SCTPChunkInit(),
        IP(src=A, dst=VIP) / TCP(sport=4, dport=81, flags="S"),
        IP(src=A, dst="169.254.42.1") / TCP(sport=81, dport=4, flags="SA"),
        IP(src=A, dst="169.254.42.1")
        / ICMP(type=3, code=3)
        / IP(src="169.254.42.1", dst=A)
        / UDP(sport=4, dport=53),
        IPv6(src=A6, dst=VIP6) / IPv6ExtHdrDestOpt() / TCP(sport=4, dport=80, flags="S"),
        IPv6(src=A6, dst=VIP6)
        / ICMPv6DestUnreach()
        / IPv6(src=VIP6, dst=A6)
        / IPv6ExtHdrDestOpt()
        / UDP(sport=53, dport=4),
        ARP(op=1, hwsrc="0a:00:00:00:00:0a", psrc=A, pdst=ROUTER4),
        Dot1Q(vlan=4) / IP(src=A, dst="10.0.0.12") / UDP(),
    )
]
RUNS = 4000
TUNNEL = (1003, int(ipaddress.IPv4Address(FAR_NODE4)), 1)
WHERE = {
    "from_container": "pod_a",
    "to_container": "pod_a",
    "from_host": "net",
    "to_host": "host",
    "from_overlay": "tunnel",
    "door": "tunnel",
    "from_netdev": "eth",
    "to_netdev": "eth",
}
COUNTS_ALL = {"from_container", "from_host", "to_host", "from_overlay", "door"}


def mutated(rng: random.Random) -> bytes:
    """A seed with a few bytes changed, cut or grown; or noise behind a plausible ethertype."""
    if rng.random() < 0.1:
        kind = rng.choice([b"\x08\x00", b"\x86\xdd", b"\x08\x06", rng.randbytes(2)])
        return rng.randbytes(12) + kind + rng.randbytes(rng.randrange(0, 120))
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice([0, 1, 1, 2, 3, 8])):
        data[rng.randrange(12, len(data))] = rng.choice([0, 1, 255, rng.randrange(256)])
    if rng.random() < 0.2:
        del data[rng.randrange(14, len(data) + 1) :]
    if rng.random() < 0.1:
        data += rng.randbytes(rng.randrange(1, 64))
    return bytes(data)


def runnable(packet: bytes) -> bool:
    """The kernel's test run refuses frames that end before the IP header does."""
    least = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(packet[12:14], 15)
    return len(packet) >= least


@pytest.fixture
def kernel_log() -> int:
    """The kernel's log from here on."""
    handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(handle, 0, os.SEEK_END)
    return handle


def complaints(handle: int) -> list[str]:
    found = []
    try:
        while True:
            line = os.read(handle, 8192).decode(errors="replace")
            if any(word in line for word in ("WARNING:", "BUG:", "Oops", "KASAN", "stall")):
                found.append(line)
    except BlockingIOError:
        return found


def add_services(world: World) -> None:
    """One for each protocol and family, and one that leads a pod to itself."""
    number = 0
    for vip, backend in ((VIP, "10.0.0.12"), (VIP6, "fd00::12")):
        for port, protocol in ((80, 6), (53, 17), (80, 132)):
            number += 1
            world.add_service(Frontend(number, vip, port, protocol), [(backend, port)])
    world.add_service(Frontend(number + 1, VIP, 81), [(A, 81)])


@pytest.mark.parametrize("program", WHERE)
def test_any_packet(door: World, kernel_log: int, program: str) -> None:
    world = door
    add_services(world)
    rng = random.Random(program)
    ifindex = world.devices[WHERE[program]]
    reasons = set(world.layout.enum("drop_reason"))
    seen: Counter[str] = Counter()
    before, runs = world.all_counted(), 0
    for number in range(RUNS):
        if number % 50 == 0:
            world.forget_flows()
        packet = mutated(rng)
        if not runnable(packet):
            continue
        done = world.run(program, packet, ifindex=ifindex, cb=TUNNEL)
        runs += 1
        seen[done.action] += 1
        if done.action == "DROP":
            assert (done.value, done.reason in reasons) == (TCX_DROP, True), packet.hex()
        else:
            assert done.value in (TCX_NEXT, TCX_REDIRECT), packet.hex()
            assert done.reason == 0
            assert done.action != "NONE", packet.hex()
    counted = world.all_counted() - before
    if program in COUNTS_ALL:
        assert counted == runs
    else:
        assert counted >= seen["DROP"] + seen["LOCAL"]
    assert complaints(kernel_log) == []
    os.close(kernel_log)


def is_whole_denial(answer: bytes, packet: bytes) -> bool:
    """Whether a frame is the ICMP error about a packet that it should be, checksums included."""
    pseudo_sum: Any = in6_chksum
    if answer[12:14] == b"\x08\x00":
        whole = checksum(answer[14:34]) == 0 and checksum(answer[34:]) == 0
        return whole and answer[34:36] == b"\x03\x0d" and packet[14:].startswith(answer[42:])
    ip = IPv6(answer[14:54])
    whole = pseudo_sum(58, IPv6(src=ip.src, dst=ip.dst), answer[54:]) == 0
    return whole and answer[54:56] == b"\x01\x01" and packet[14:].startswith(answer[62:])


def test_any_denied_packet_is_answered_whole_or_not_at_all(world: World, kernel_log: int) -> None:
    rng = random.Random("denied")
    world.settings["flags"][0] |= world.layout.value("NODE_DENY_RESPONSE")
    world.set_policy(1, DENY_ALL)
    answered = 0
    for number in range(RUNS):
        if number % 50 == 0:
            world.forget_flows()
        packet = mutated(rng)
        if not runnable(packet):
            continue
        done = world.run("from_container", packet, ifindex=world.devices["pod_a"])
        if done.action == "DROP" and done.value == TCX_REDIRECT:
            assert done.reason == 133
            assert is_whole_denial(done.data, packet), (packet.hex(), done.data.hex())
            answered += 1
    assert answered > RUNS // 20
    assert complaints(kernel_log) == []
    os.close(kernel_log)
