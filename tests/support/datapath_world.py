"""A small node for packets to run through: the real programs and maps, devices in a network namespace of
its own, and a few neighbours with names.

    pod_a, pod_b    pods of this node, identities 1001 and 1002
    pod_far         a pod behind FAR_NODE, identity 1003
    host            this node: NODE on the underlay, ROUTER towards pods
    WORLD           an address nobody knows
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pyroute2 import IPRoute
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from cilia import abi
from cilia.dataplane import bpf, loader
from cilia.dataplane.bpf import Map, MapType

CLONE_NEWNET = 0x40000000
SKB_CONTEXT = 192
SKB_MARK, SKB_IFINDEX, SKB_CB = 8, 40, 48
TCX_NEXT, TCX_DROP, TCX_REDIRECT = -1, 2, 7

ALLOW, DENY = 1, 0
INGRESS, EGRESS = 1, 2
TCP, UDP, ICMP = 6, 17, 1

HOST_MAC = "02:00:00:00:00:01"
GATEWAY_MAC = "02:00:00:00:00:fe"
NODE4, NODE6 = "192.0.2.1", "2001:db8:f::1"
ROUTER4, ROUTER6 = "10.0.0.1", "fd00::1"
FAR_NODE4, FAR_NODE6 = "192.0.2.2", "2001:db8:f::2"
FAR_ROUTER4 = "10.0.1.1"
WORLD4, WORLD6 = "203.0.113.9", "2001:db8:9::9"


class Pod(msgspec.Struct, frozen=True):
    """A pod of this node."""

    name: str
    id: int
    identity: int
    subject: int
    ipv4: str
    ipv6: str
    mac: str
    host_mac: str
    ifindex: int = 0


POD_A = Pod("pod_a", 101, 1001, 1, "10.0.0.11", "fd00::11", "0a:00:00:00:00:0a", "0e:00:00:00:00:0a")
POD_B = Pod("pod_b", 102, 1002, 2, "10.0.0.12", "fd00::12", "0a:00:00:00:00:0b", "0e:00:00:00:00:0b")
POD_FAR4, POD_FAR6, FAR_IDENTITY = "10.0.1.13", "fd00:1::13", 1003
HOST_ID = 1
FIRST_SLOT, SLOTS_EACH = 100, 16
FLOW_MAPS = (
    "conntrack",
    "service_flows",
    "snat",
    "fragments",
    "drop_buckets",
    "suppressed",
    "policy_counters",
)
SERVICE_MAPS = ("services", "socket_services", "affinity", "skip_redirect", "source_ranges")


class Frontend(msgspec.Struct, frozen=True):
    """An address that stands for others, under its number."""

    id: int
    address: str
    port: int
    protocol: int = TCP


class Rule(msgspec.Struct, frozen=True):
    """One entry of an inner map. `bits`: how much of protocol and port counts (0, 8, 24)."""

    direction: int
    verdict: int = ALLOW
    peer: int = 0
    protocol: int = 0
    port: int = 0
    bits: int = 0
    precedence: int = 100
    cookie: int = 7
    flags: int = 0
    match: int = 4


class Outcome(msgspec.Struct, frozen=True):
    """What a program did with a packet."""

    value: int
    """What it told the kernel."""
    action: str
    reason: int
    ifindex: int
    vni: int
    tunnel: str
    source_identity: int
    destination_identity: int
    egress_cookie: int
    ingress_cookie: int
    state: int
    line: int
    data: bytes

    @property
    def packet(self) -> Ether:
        return Ether(self.data)


ALLOW_ALL = (
    Rule(INGRESS, precedence=1, cookie=1, flags=4),
    Rule(EGRESS, precedence=1, cookie=2, flags=4),
)
DENY_ALL = (
    Rule(INGRESS, DENY, precedence=1, cookie=3, flags=4),
    Rule(EGRESS, DENY, precedence=1, cookie=4, flags=4),
)


def address_bytes(text: str) -> bytes:
    """128 bits, IPv4 as v4-mapped; empty: all zero."""
    if not text:
        return bytes(16)
    address = ipaddress.ip_address(text)
    return b"\0" * 10 + b"\xff\xff" + address.packed if address.version == 4 else address.packed


def address_text(raw: bytes) -> str:
    if raw == bytes(16):
        return ""
    found = ipaddress.IPv6Address(raw)
    return str(found.ipv4_mapped or found)


def mac_bytes(text: str) -> list[int]:
    return list(bytes.fromhex(text.replace(":", "")))


@contextmanager
def private_network() -> Iterator[None]:
    """Runs in a new network namespace; it is gone afterwards, with all its devices."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


class World:
    """Maps by name, programs by name, and verbs to furnish both."""

    def __init__(self, dataplane: loader.Dataplane, devices: dict[str, int]) -> None:
        self.dataplane = dataplane
        self.layout = dataplane.layout
        self.devices = devices
        self.settings = dataplane.maps["node"].memory()
        self.active = dataplane.maps["policy_active"].memory()
        self.actions = {int(member): member.name for member in self.layout.enum("decision_action")}
        self.pod_a = msgspec.structs.replace(POD_A, ifindex=devices["pod_a"])
        self.pod_b = msgspec.structs.replace(POD_B, ifindex=devices["pod_b"])
        self._slots: dict[int, Map] = {}
        self._revision = 0

    # rows

    def row(self, struct_name: str, **fields: Any) -> np.ndarray[Any, Any]:
        """One value of a struct of the layout; addresses and MACs are given as text."""
        made = np.zeros(1, self.layout.dtype(struct_name))
        for name, value in fields.items():
            target = made[name]
            if target.dtype.names == ("hi", "lo"):
                made[name] = np.frombuffer(address_bytes(value), target.dtype)
            elif isinstance(value, str):
                made[name] = mac_bytes(value)
            elif isinstance(value, np.ndarray):
                made[name] = value
            else:
                made[name] = value
        return made

    def put(self, map_name: str, key: np.ndarray[Any, Any], value: np.ndarray[Any, Any]) -> None:
        self.dataplane.maps[map_name].update(key, value)

    def address(self, text: str) -> np.ndarray[Any, Any]:
        return np.frombuffer(address_bytes(text), self.layout.dtype("address"))

    def add_endpoint(self, address: str, **fields: Any) -> None:
        self.put("endpoints", self.address(address), self.row("endpoint", **fields))

    def add_pod(self, pod: Pod, flags: int = 0) -> None:
        fields = {
            "ifindex": pod.ifindex,
            "identity": pod.identity,
            "id": pod.id,
            "subject": pod.subject,
            "flags": flags,
            "mac": pod.mac,
            "host_mac": pod.host_mac,
        }
        for address in filter(None, (pod.ipv4, pod.ipv6)):
            self.add_endpoint(address, **fields)
        endpoint = self.row("endpoint", **fields)
        iface = self.row("iface", endpoint=endpoint, ipv4=pod.ipv4, ipv6=pod.ipv6)
        self.put("ifaces", np.array([pod.ifindex], np.uint32), iface)

    def add_prefix(self, prefix: str, identity: int, tunnel: str = "", flags: int | None = None) -> None:
        network = ipaddress.ip_network(prefix)
        bits = network.prefixlen + (96 if network.version == 4 else 0)
        key = self.row(
            "ipcache_key", prefixlen=32 + bits, family=network.version, address=str(network.network_address)
        )
        if flags is None:
            flags = self.layout.value("IPCACHE_TUNNEL") if tunnel else 0
        entry = self.row("ipcache_entry", identity=identity, flags=flags, tunnel_endpoint=tunnel)
        self.put("ipcache_hosts" if bits == 128 else "ipcache", key, entry)

    def add_node(self, address: str) -> None:
        self.put("nodes", self.address(address), self.row("node_entry", mtu=1450))

    def set_policy(self, subject: int, rules: tuple[Rule, ...]) -> int:
        """Puts the rules into the subject's own slot, as a new revision, which is returned."""
        inner = self._inner(subject)
        for key in inner.dump()[0]:
            inner.delete(key)
        for rule in rules:
            inner.update(*self.policy_entry(rule))
        return self.switch(subject)

    def switch(self, subject: int) -> int:
        """A new revision of the same rules."""
        self._revision += 1
        self.active[subject] = (subject, self._revision)
        return self._revision

    def policy_entry(self, rule: Rule) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        key = self.row(
            "policy_key",
            prefixlen=40 + rule.bits,
            peer=rule.peer,
            direction=rule.direction,
            protocol=rule.protocol,
            port=rule.port,
        )
        value = self.row(
            "policy_entry",
            precedence=rule.precedence,
            cookie=rule.cookie,
            verdict=rule.verdict,
            match=rule.match,
            prefix=rule.bits,
            flags=rule.flags,
        )
        return key, value

    def _inner(self, slot: int) -> Map:
        if slot not in self._slots:
            key, value = self.layout.dtype("policy_key"), self.layout.dtype("policy_entry")
            made = bpf.create_map(MapType.LPM_TRIE, key, value, 16384, flags=bpf.NO_PREALLOC)
            self.put("policies", np.array([slot], np.uint32), np.array([made.fd], np.uint32))
            self._slots[slot] = made
        return self._slots[slot]

    # runs

    def run(
        self,
        program: str,
        packet: Packet | bytes,
        *,
        ifindex: int = 0,
        mark: int = 0,
        cb: tuple[int, ...] = (),
    ) -> Outcome:
        """One packet through one program; ifindex: the device it is on."""
        context = bytearray(SKB_CONTEXT)
        struct.pack_into("<I", context, SKB_MARK, mark)
        struct.pack_into("<I", context, SKB_IFINDEX, ifindex)
        struct.pack_into(f"<{len(cb)}I", context, SKB_CB, *cb)
        raw = packet if isinstance(packet, bytes) else bytes(packet)
        cpu = pinned_cpu()
        result = bpf.test_run(self.dataplane.programs[program], raw, context=bytes(context))
        found = self.dataplane.maps["decision"].lookup(np.uint32(0))
        assert found is not None
        record = found[cpu]
        return Outcome(
            value=result.value,
            action=self.actions[int(record["action"])].removeprefix("DECISION_"),
            reason=int(record["reason"]),
            ifindex=int(record["ifindex"]),
            vni=int(record["vni"]),
            tunnel=address_text(record["tunnel"].tobytes()),
            source_identity=int(record["source_identity"]),
            destination_identity=int(record["destination_identity"]),
            egress_cookie=int(record["egress_cookie"]),
            ingress_cookie=int(record["ingress_cookie"]),
            state=int(record["state"]),
            line=int(record["line"]),
            data=result.data,
        )

    def from_pod(self, pod: Pod, packet: Packet | bytes) -> Outcome:
        """A packet leaves a pod; bare layers are framed as the pod's stack would."""
        if isinstance(packet, Packet) and not isinstance(packet, Ether):
            packet = Ether(src=pod.mac, dst=pod.host_mac) / packet
        return self.run("from_container", packet, ifindex=pod.ifindex)

    def from_host(self, packet: Packet, mark: int = 0) -> Outcome:
        frame = Ether(src=HOST_MAC, dst="02:00:00:00:00:00") / packet
        return self.run("from_host", frame, ifindex=self.devices["net"], mark=mark)

    def from_wire(self, packet: Packet) -> Outcome:
        frame = Ether(src=GATEWAY_MAC, dst="02:00:00:00:00:11") / packet
        return self.run("from_netdev", frame, ifindex=self.devices["eth"])

    def to_wire(self, packet: Packet) -> Outcome:
        frame = Ether(dst=GATEWAY_MAC, src="02:00:00:00:00:11") / packet
        return self.run("to_netdev", frame, ifindex=self.devices["eth"])

    # readings

    def flows(self) -> list[tuple[np.void, np.void]]:
        keys, values = self.dataplane.maps["conntrack"].dump()
        return list(zip(keys, values, strict=True))

    def only_flow(self) -> tuple[np.void, np.void]:
        (flow,) = self.flows()
        return flow

    def store_flow(self, key: np.void, value: np.void) -> None:
        self.dataplane.maps["conntrack"].update(key, value)

    def counted(self, reason: int, direction: int | None = None) -> int:
        """Packets counted under a reason, in one direction or all."""
        total = 0
        for index in range(4) if direction is None else (direction,):
            found = self.dataplane.maps["counters"].lookup(np.uint32(reason * 4 + index))
            assert found is not None
            total += int(found["packets"].sum())
        return total

    def all_counted(self) -> int:
        return int(self.dataplane.maps["counters"].dump()[1]["packets"].sum())

    def quota(self, endpoint: int) -> int:
        found = self.dataplane.maps["ct_quota"].lookup(np.uint32(endpoint))
        assert found is not None
        return int(found["opened"]) - int(found["closed"])

    def entry_counts(self) -> dict[tuple[int, ...], tuple[int, int]]:
        """What policy_counters holds: {(subject, direction, peer, protocol, port, bits, cookie): (packets,
        bytes)}, summed over all CPUs."""
        counted = self.dataplane.maps["policy_counters"]
        found = {}
        for key in counted.dump()[0]:
            values = counted.lookup(key)
            assert values is not None
            names = ("subject", "direction", "peer", "protocol", "port", "bits", "cookie")
            row = tuple(int(key[name]) for name in names)
            found[row] = (int(values["packets"].sum()), int(values["bytes"].sum()))
        return found

    # services

    def add_service(
        self, frontend: Frontend, backends: Sequence[tuple[str, int]], *flags: str, affinity: int = 0
    ) -> None:
        """A frontend and who serves it, inside and outside; flags: names of enum service_flags."""
        first = FIRST_SLOT + frontend.id * SLOTS_EACH
        memory = {name: self.dataplane.maps[name].memory() for name in ("frontends", "backends", "slots")}
        memory["frontends"][frontend.id] = self.row(
            "frontend", address=frontend.address, port=frontend.port, protocol=frontend.protocol
        )[0]
        for offset, (address, port) in enumerate(backends):
            live = self.layout.value("BACKEND_LIVE")
            memory["backends"][first + offset] = self.row(
                "backend", address=address, port=port, protocol=frontend.protocol, flags=live
            )[0]
            memory["slots"][first + offset] = first + offset
        reach = np.zeros((1, 2), self.layout.dtype("service_range"))
        reach["first"], reach["count"] = first, len(backends)
        value = self.row(
            "service", range=reach, id=frontend.id, flags=self.flags(*flags), affinity=affinity, revision=1
        )
        self.put("services", self.service_key(frontend), value)
        self.settings["flags"][0] |= self.layout.value("NODE_SERVICES")

    def service_key(self, frontend: Frontend) -> np.ndarray[Any, Any]:
        return self.row(
            "service_key", address=frontend.address, port=frontend.port, protocol=frontend.protocol
        )

    def end_backend(self, frontend: Frontend, index: int) -> None:
        """A backend is gone."""
        number = FIRST_SLOT + frontend.id * SLOTS_EACH + index
        self.dataplane.maps["backends"].memory()["flags"][number] = 0

    def flags(self, *names: str) -> int:
        return sum(self.layout.value(name) for name in names)

    def service_flows(self) -> list[tuple[np.void, np.void]]:
        keys, values = self.dataplane.maps["service_flows"].dump()
        return list(zip(keys, values, strict=True))

    def forget_services(self) -> None:
        for name in SERVICE_MAPS:
            for key in self.dataplane.maps[name].dump()[0]:
                self.dataplane.maps[name].delete(key)

    def forget_flows(self) -> None:
        for name in FLOW_MAPS:
            keys, _ = self.dataplane.maps[name].dump()
            for key in keys:
                self.dataplane.maps[name].delete(key)
        keys, values = np.arange(512, dtype=np.uint32), np.zeros(512, self.layout.dtype("ct_quota"))
        self.dataplane.maps["ct_quota"].put(keys, values)

    def furnish(self) -> None:
        """The neighbours named above, everybody allowed, medium aggregation; no flows."""
        for name in ("endpoints", "ifaces", "ipcache", "ipcache_hosts", "nodes"):
            for key in self.dataplane.maps[name].dump()[0]:
                self.dataplane.maps[name].delete(key)
        self.forget_flows()
        self.forget_services()
        self.settings[0] = self._default_settings()[0]
        self.add_pod(self.pod_a)
        self.add_pod(self.pod_b)
        for address in (NODE4, NODE6, ROUTER4, ROUTER6):
            self.add_endpoint(address, identity=HOST_ID, flags=self.layout.value("ENDPOINT_HOST"))
        for address in (FAR_NODE4, FAR_NODE6):
            self.add_node(address)
        underlay = self.layout.value("IPCACHE_UNDERLAY") | self.layout.value("IPCACHE_HOST_ADDRESS")
        self.add_prefix(FAR_NODE4, 6, flags=underlay)
        self.add_prefix(FAR_NODE6, 6, flags=underlay)
        host_address = self.layout.value("IPCACHE_HOST_ADDRESS") | self.layout.value("IPCACHE_TUNNEL")
        self.add_prefix(FAR_ROUTER4, 6, tunnel=FAR_NODE4, flags=host_address)
        self.add_prefix(POD_FAR4, FAR_IDENTITY, tunnel=FAR_NODE4)
        self.add_prefix(POD_FAR6, FAR_IDENTITY, tunnel=FAR_NODE4)
        for pod in (self.pod_a, self.pod_b):
            self.set_policy(pod.subject, ALLOW_ALL)

    def _default_settings(self) -> np.ndarray[Any, Any]:
        value = self.layout.value
        return self.row(
            "node_settings",
            ipv4=NODE4,
            ipv6=NODE6,
            router_ipv4=ROUTER4,
            router_ipv6=ROUTER6,
            flags=value("NODE_TUNNEL") | value("NODE_MASQUERADE_IPV4") | value("NODE_MASQUERADE_IPV6"),
            host_ifindex=self.devices["host"],
            net_ifindex=self.devices["net"],
            tunnel_ifindex=self.devices["tunnel"],
            native_ifindex=self.devices["eth"],
            mtu=1450,
            host_mac=HOST_MAC,
            aggregation=value("AGGREGATION_MEDIUM"),
            report_interval=5,
            report_tcp_flags=0x07,
            nat_first_port=32768,
            nat_last_port=33279,
            tunnel_port=8472,
            node_port_first=30000,
            node_port_last=32767,
        )


def pinned_cpu() -> int:
    """The one CPU this process runs on from now on: decisions are per CPU. Processes side by side spread."""
    cpus = sorted(os.sched_getaffinity(0))
    cpu = cpus[os.getpid() % len(cpus)]
    os.sched_setaffinity(0, {cpu})
    return cpu


def make_devices() -> dict[str, int]:
    """Devices of the node, named for what the programs know them as."""
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        for name in ("pod_a", "pod_b", "tunnel", "eth"):
            ip.link("add", ifname=name, kind="veth", peer=f"{name}_far")
        ip.link("add", ifname="host", kind="veth", peer="net")
        for link in ip.get_links():
            ip.link("set", index=link["index"], state="up")
        names = ("pod_a", "pod_b", "tunnel", "eth", "host", "net")
        found = {name: ip.link_lookup(ifname=name)[0] for name in names}
        for pod in (POD_A, POD_B):
            ip.link("set", index=found[pod.name], address=pod.host_mac)
        ip.addr("add", index=found["eth"], address=NODE4, prefixlen=24)
        ip.addr("add", index=found["eth"], address=NODE6, prefixlen=64, flags=0x02)
        ip.addr("add", index=found["host"], address=ROUTER4, prefixlen=32)
        ip.route("add", dst="10.0.0.0/16", oif=found["host"])
        ip.route("add", dst="default", gateway="192.0.2.254")
        ip.route("add", dst="default", gateway="2001:db8:f::fe", family=10)
    for family in ("ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", family).write_text("1")
    return found


@contextmanager
def load_world(name: str, **constants: Any) -> Iterator[World]:
    """The programs, loaded with their constants under a prefix of bpffs that goes with the world."""
    prefix = Path("/sys/fs/bpf", f"cilia-test-{name}-{os.getpid()}")
    affinity = os.sched_getaffinity(0)
    with private_network():
        devices = make_devices()
        sizes = {"conntrack": 64, "policies": 64, "snat": 4096, "ipcache": 1024, "ipcache_hosts": 1024}
        sizes |= {"service_flows": 64, "socket_services": 1024}
        constants = {"record_decisions": True, **constants}
        try:
            dataplane = loader.load(prefix, constants, sizes)
            try:
                world = World(dataplane, devices)
                world.furnish()
                yield world
            finally:
                dataplane.close()
        finally:
            loader.remove(prefix)
            os.sched_setaffinity(0, affinity)


def payload(size: int = 8) -> Raw:
    return Raw(b"x" * size)


def layout() -> abi.Layout:
    return abi.layout()
