"""Services of the small node of `datapath_world`: maps filled by verbs, packets by the names of both ends."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.support.datapath_world import (
    FAR_NODE4,
    NODE4,
    NODE6,
    POD_FAR4,
    POD_FAR6,
    ROUTER4,
    ROUTER6,
    WORLD4,
    WORLD6,
    Outcome,
    World,
)

POD4, POD6 = "10.0.0.11", "fd00::11"
BALANCER4, BALANCER6 = "198.51.100.80", "2001:db8:80::80"
NODE_PORT = 30080
EMPTIED = ("services", "service_flows", "source_ranges", "affinity", "snat")
KIND = {"tcp": TCP, "udp": UDP}
DIRECT = ("OUTSIDE", "DSR")
NUMBER = {"tcp": 6, "udp": 17, "sctp": 132}


class Frontend(msgspec.Struct):
    """A service in the maps."""

    id: int
    address: str
    port: int
    backends: list[int]


class Balancer:
    """Services of a world, by verbs."""

    def __init__(self, world: World) -> None:
        self.world = world
        maps = world.dataplane.maps
        self.memory = {name: maps[name].memory() for name in ("slots", "backends", "frontends")}
        self._next = 1

    def number(self) -> int:
        self._next += 1
        return self._next

    def add_backend(self, address: str, port: int, protocol: str = "tcp") -> int:
        number = self.number()
        made = self.world.row("backend", address=address, protocol=NUMBER[protocol], flags=1)
        made["port"] = port
        self.memory["backends"][number] = made[0]
        return number

    def kill(self, number: int) -> None:
        self.memory["backends"][number]["flags"] = 0

    def add(
        self,
        address: str,
        port: int,
        *backends: tuple[str, int],
        protocol: str = "tcp",
        flags: tuple[str, ...] = ("OUTSIDE",),
    ) -> Frontend:
        """A frontend; outside and inside clients have the same backends."""
        numbers = [self.add_backend(*backend, protocol) for backend in backends]
        made = Frontend(self.number(), address, port, numbers)
        frontend = self.world.row("frontend", address=address, protocol=NUMBER[protocol])
        frontend["port"] = port
        self.memory["frontends"][made.id] = frontend[0]
        self.put(made, protocol, flags)
        return made

    def put(self, made: Frontend, protocol: str = "tcp", flags: tuple[str, ...] = ("OUTSIDE",)) -> None:
        first = self.number() * 16
        self.memory["slots"][first : first + len(made.backends)] = made.backends
        key = self.world.row("service_key", address=made.address, protocol=NUMBER[protocol])
        key["port"] = made.port
        value = self.world.row("service", id=made.id, revision=1)
        value["flags"] = sum(self.world.layout.value(f"SERVICE_{flag}") for flag in flags)
        value["range"] = (first, len(made.backends))
        self.world.put("services", key, value)

    def add_source_range(self, made: Frontend, prefix: str) -> None:
        network = ipaddress.ip_network(prefix)
        bits = network.prefixlen + (96 if network.version == 4 else 0)
        key = self.world.row(
            "source_range_key", prefixlen=32 + bits, service=made.id, address=str(network.network_address)
        )
        self.world.put("source_ranges", key, np.array([1], np.uint32))

    def clear(self) -> None:
        for name in EMPTIED:
            found = self.world.dataplane.maps[name]
            for key in found.dump()[0]:
                found.delete(key)
        for memory in self.memory.values():
            memory[:4096] = np.zeros(1, memory.dtype)


def ip(source: str, destination: str, **fields: Any) -> Packet:
    kind: type[Packet] = IPv6 if ":" in source else IP
    return kind(src=source, dst=destination, **fields)


def verified(done: Outcome) -> Packet:
    """What left, with all checksums right."""
    return whole(done.packet.payload)


def ends(packet: Packet) -> tuple[str, int, str, int]:
    return (packet.src, packet.sport, packet.dst, packet.dport)


FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "udp"])


class Addresses(msgspec.Struct, frozen=True):
    """One family's."""

    world: str
    node: str
    router: str
    pod: str
    far: str
    balancer: str


OF = {
    4: Addresses(WORLD4, NODE4, ROUTER4, POD4, POD_FAR4, BALANCER4),
    6: Addresses(WORLD6, NODE6, ROUTER6, POD6, POD_FAR6, BALANCER6),
}


def request(protocol: str, sport: int, dport: int, flags: str = "S") -> Packet:
    return TCP(sport=sport, dport=dport, flags=flags) if protocol == "tcp" else UDP(sport=sport, dport=dport)


def answer(protocol: str, sport: int, dport: int) -> Packet:
    return request(protocol, sport, dport, "SA")


def from_tunnel(world: World, packet: Packet, vni: int = 1003, node: str = FAR_NODE4) -> Outcome:
    frame = Ether(src="0e:00:00:00:00:ff", dst="0e:00:00:00:00:fe") / packet
    cb = (vni, int(ipaddress.IPv4Address(node)), 1, int(ipaddress.IPv4Address(NODE4)))
    return world.run("door", frame, ifindex=world.devices["tunnel"], cb=cb)


@contextmanager
def balancing(world: World) -> Iterator[Balancer]:
    """A world with services, and without them afterwards."""
    made = Balancer(world)
    world.settings["flags"][0] |= world.layout.value("NODE_SERVICES")
    world.settings["node_port_first"][0] = 30000
    world.settings["node_port_last"][0] = 32767
    try:
        yield made
    finally:
        made.clear()


def told(packet: Packet) -> tuple[str, int]:
    """The frontend a packet tells of."""
    if packet.version == 4:
        raw = bytes(packet)[20:28]
        assert raw[:2] == b"\x9a\x08"
        return str(ipaddress.IPv4Address(raw[4:])), int.from_bytes(raw[2:4], "big")
    raw = bytes(packet)[40:64]
    assert (packet.nh, raw[1:4]) == (60, b"\x02\x1b\x14")
    return str(ipaddress.IPv6Address(raw[4:20])), int.from_bytes(raw[20:22], "big")


def telling(packet: Packet, frontend: str, port: int) -> Packet:
    """The packet, as a node makes it."""
    packet = packet.copy()
    if packet.version == 4:
        value = struct.pack(">H", port) + ipaddress.IPv4Address(frontend).packed
        packet.options = [IPOption(b"\x9a\x08" + value)]
        return packet
    value = ipaddress.IPv6Address(frontend).packed + struct.pack(">HH", port, 0)
    body = packet.payload
    header = IPv6ExtHdrDestOpt(bytes((6 if TCP in body else 17, 2, 0x1B, 20)) + value)
    packet.remove_payload()
    packet.nh = 60
    return packet / header / body


def whole(packet: Packet) -> Packet:
    """The packet, after comparing it with itself with all checksums made anew."""
    copy = packet.copy()
    for kind in (IP, TCP, UDP):
        if kind in copy and copy[kind].chksum:
            del copy[kind].chksum
    assert bytes(copy) == bytes(packet)
    return packet
