"""The kernel of this node as the agent holds it: programs, links, maps, rings."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import structlog

from cilia.apps.agent.attach import Gateways, PodInterface
from cilia.apps.agent.metrics import KernelNumbers
from cilia.apps.agent.settings import AgentSettings
from cilia.dataplane import loader, namespaces, requirements, sockets, xdp
from cilia.dataplane.bpf import BpfError
from cilia.dataplane.links import Device, Links, PodLink, Routes, random_mac
from cilia.dataplane.maps import counters, packing
from cilia.dataplane.maps.services import ServiceOptions
from cilia.dataplane.order import KernelState
from cilia.dataplane.ringbuf import Batch, RingReader
from cilia.model.endpoint import Attachment
from cilia.model.ids import EndpointId
from cilia.model.node import NodeSettings
from cilia.model.service import Backend, Frontend, Protocol
from cilia.schema import Desired
from cilia.tables.table import Table

log = structlog.get_logger(__name__)

VXLAN_OVERHEAD = 50
"""Bytes of Ethernet, IPv4, UDP and VXLAN headers around a packet (RFC 7348)."""
VXLAN_OVERHEAD_IPV6 = 70
SERVICES_STEP = 0.02
"""Seconds that bringing services into the kernel may hold up all else."""
SHORTEST_PAUSE = 0.25
"""Seconds between two rounds of collection, however full the maps are."""
QUOTA_SHARE = 4
"""A pod may have this part of all flows unless told otherwise: plenty for one, and no single one starves
the others."""


class NodeKernel:
    """Loads, links and reads; what should be in the maps is the tables' business."""

    def __init__(self, settings: AgentSettings) -> None:
        """Raises BpfError when this machine can't, or another agent does."""
        requirements.check()
        self._settings = settings
        self._lock = loader.own_node()
        try:
            self._dataplane = loader.load(
                settings.bpf_prefix,
                _constants(settings),
                _sizes(settings),
            )
        except BaseException:
            os.close(self._lock)
            raise
        self._held_back = counters.HeldBack(self._dataplane.maps["suppressed"], self._dataplane.layout)
        self._links = Links()
        self._state: KernelState | None = None
        self._gateways = Gateways("", "")
        self._hosts: list[str] = []
        self._native = self._find_native()
        self.addresses = self._underlay_addresses()
        self.mtu = self._native.mtu - self._overhead()

    @property
    def event_dtype(self) -> np.dtype[np.void]:
        """Of struct event."""
        return self._dataplane.layout.dtype("event")

    @property
    def source_files(self) -> dict[str, int]:
        """Numbers of the data path's source files by name (enum source_file)."""
        members = self._dataplane.layout.enum("source_file").__members__
        return {name: int(member) for name, member in members.items()}

    def close(self) -> None:
        """Let go; what is pinned and linked works on."""
        self._links.close()
        self._dataplane.close()
        os.close(self._lock)

    def prepare_node(self, gateways: Gateways) -> None:
        """The node's own devices, sysctls and hooks. Raises BpfError."""
        self._gateways = gateways
        routers = [address for address in (gateways.ipv4, gateways.ipv6) if address]
        try:
            # The tunnel first: a port that is taken is found before anything else is made.
            self._tunnel = (
                self._links.ensure_vxlan(self._settings.tunnel_port, self.mtu)
                if self._settings.is_tunneled
                else 0
            )
            self._links.configure_node()
            self._links.reserve_ports(NodeSettings().nat_first_port, NodeSettings().nat_last_port)
            if self._settings.kube_proxy_replacement:
                self._links.reserve_ports(*self._settings.node_ports)
            self._pair = self._links.ensure_host_pair(routers, self.mtu)
            self._links.attach_node(self._dataplane, self._pair, self._tunnel, [self._native])
        except OSError as error:
            raise BpfError(f"the node's devices can't be set up: {error.strerror or error}") from error
        self._attach_sockets()
        self._attach_driver()

    def _attach_driver(self) -> None:
        """Carry known flows of Services on in the native device's driver, or not. Raises BpfError."""
        settings = self._settings
        wanted = xdp.Acceleration(settings.bpf_lb_acceleration)
        if not settings.kube_proxy_replacement:
            wanted = xdp.Acceleration.DISABLED
        for sentence in xdp.attach(self._dataplane, [self._native.ifindex], wanted).values():
            log.warning("services are not accelerated", reason=sentence)

    def _attach_sockets(self) -> None:
        """Translate Services where sockets connect, or not. Raises BpfError."""
        settings = self._settings
        if settings.bpf_lb_sock and settings.cgroup_root is None:
            log.warning("sockets are not translated: mount control groups of version 2 for it")
        if settings.kube_proxy_replacement and settings.bpf_lb_sock and settings.cgroup_root is not None:
            sockets.attach(self._dataplane, settings.cgroup_root)
        else:
            sockets.detach(self._dataplane)

    def follow(self, desired: Desired, now: float) -> KernelState:
        """The reconcilers of the desired tables, and the node's settings in force. `now`: monotonic
        seconds; new counters count from then."""
        seed = hash_seed(self._settings.bpf_lb_maglev_hash_seed)
        options = ServiceOptions(
            maglev_size=self._settings.bpf_lb_maglev_table_size, seed=seed, step=SERVICES_STEP
        )
        state = KernelState(self._dataplane, desired, Routes(self._links), options)
        state.account(int(now))
        self._hosts = self._host_addresses()
        state.set_node(self._node_settings(), self._hosts)
        self._state = state
        self._links.filter_pods(
            [device.ifindex for device in self._links.pods().values()],
            self._dataplane.programs["from_container"],
        )
        return state

    def update_settings(self, settings: AgentSettings) -> None:
        """Put changed settings in force, as far as the programs read them while they run."""
        assert self._state is not None
        self._settings = settings
        self._state.settings.write(self._node_settings())

    def restored_subjects(self) -> Iterator[tuple[int, int]]:
        """(endpoint, subject) of every endpoint a predecessor left in the kernel."""
        for _, values in self._dataplane.maps["endpoints"].batches():
            for value in values:
                yield int(value["id"]), int(value["subject"])

    # pods

    def create(
        self, identifier: EndpointId, netns: str, interface: str, ipv4: str, ipv6: str, mtu: int
    ) -> PodInterface:
        """Make a pod's interface. Raises OSError."""
        link = PodLink(
            endpoint=identifier,
            netns=netns,
            interface=interface,
            host_interface=f"lxc{identifier:x}",
            mac=random_mac(),
            host_mac=random_mac(),
            mtu=mtu,
            ipv4=ipv4,
            ipv6=ipv6,
            gateway_ipv4=self._gateways.ipv4,
            gateway_ipv6=self._gateways.ipv6,
        )
        index = self._links.add_pod(link, self._dataplane.programs["from_container"])
        return PodInterface(link.host_interface, index, link.mac, link.host_mac)

    def remove(self, host_interface: str) -> None:
        """Remove a pod's interface; the absent is no error."""
        self._links.delete_link(host_interface)

    def exists(self, host_interface: str, ifindex: int) -> bool:
        """Whether the interface is still the one that was made."""
        found = self._links.find(host_interface)
        return found is not None and found.ifindex == ifindex

    def prune_links(self, attachments: Table[EndpointId, Attachment]) -> int:
        """Remove pod interfaces nobody knows: what an ADD that was killed left behind."""
        known = {row.host_interface for row in attachments}
        stray = [device.name for device in self._links.pods().values() if device.name not in known]
        for name in stray:
            self._links.delete_link(name)
        return len(stray)

    # what it tells

    def device_name(self, index: int) -> str:
        """Name of an interface, or an empty string."""
        return _interface_name(index)

    def end_sockets(
        self,
        networks: Iterable[str],
        backends: Iterable[Backend],
        left: Iterable[tuple[Frontend, Backend]] = (),
    ) -> int:
        """End the sockets in these network namespaces that a service gave one of these backends, or, of
        `left`, this frontend gave this backend; how many. Takes a while: run it in a thread.
        Raises OSError."""
        number_of = self._state.service_maps.number_of if self._state is not None else lambda frontend: 0
        known = [(number, backend) for asked, backend in left if (number := number_of(asked))]
        return sockets.destroy(self._dataplane.maps["socket_services"], networks, backends, known)

    def given_backends(self) -> list[Backend]:
        """The backends that services gave to sockets, those that are gone by now, too. Raises OSError."""
        rows: set[bytes] = set()
        remembered = self._dataplane.maps["socket_services"]
        for keys, _ in remembered.batches():
            anonymous = keys.copy()
            anonymous["cookie"] = 0
            rows.update(packing.raw_rows(anonymous))
        found = np.frombuffer(b"".join(rows), remembered.key)
        addresses = packing.raw_rows(found["address"].copy())
        return [
            Backend(packing.address_text(address), int(port), Protocol(protocol))
            for address, port, protocol in zip(
                addresses, found["port"].tolist(), found["protocol"].tolist(), strict=True
            )
        ]

    def local_addresses(self) -> list[str]:
        """Every address at which the node itself answers others."""
        return self._links.local_addresses()

    def numbers(self) -> KernelNumbers:
        """Counters and map pressure for one scrape."""
        pressure = {
            use.name: use.pressure
            for use in (self._state.map_uses() if self._state is not None else [])
            if use.pressure is not None
        }
        rows = [
            (count.reason, count.direction, count.packets, count.bytes)
            for count in counters.counts(self._dataplane.maps["counters"])
        ]
        return KernelNumbers(counters=rows, pressure=pressure, held_back=self._held_back.read())

    def reader(self, deliver: Callable[[Batch], None]) -> RingReader:
        """What drains the event rings on the running loop, once started."""
        assert self._state is not None
        rings = [self._dataplane.maps[name] for name in ("events_priority", "events")]
        taken = partial(counters.events_taken, self._dataplane.maps["event_state"])
        return RingReader(rings, self._state.settings, self._dataplane.layout, deliver, taken)

    async def collect(self, interval: float) -> None:
        """Forget expired flows and translations, a chunk at a time, and see which addresses the node has, for
        ever."""
        assert self._state is not None
        clock = asyncio.get_running_loop().time
        while True:
            await self._pause(interval)
            self._look_for_addresses()
            for _ in self._state.collect(clock):
                await asyncio.sleep(0)

    async def _pause(self, interval: float) -> None:
        """Wait for the next sweep; endpoints that went and maps that are nearly full bring it forward."""
        assert self._state is not None
        await asyncio.sleep(min(SHORTEST_PAUSE, interval))
        left = interval - SHORTEST_PAUSE
        while left > 0 and not self._state.conntrack.flush_pending and not self._state.sweeps.pressed:
            step = min(1.0, left)
            await asyncio.sleep(step)
            left -= step

    # the rest

    def _node_settings(self) -> NodeSettings:
        settings, value = self._settings, self._dataplane.layout.value
        flags = 0
        if settings.is_tunneled:
            flags |= value("NODE_TUNNEL")
        if settings.masquerade:
            flags |= value("NODE_MASQUERADE_IPV4") | value("NODE_MASQUERADE_IPV6")
        if settings.policy_deny_response == "icmp":
            flags |= value("NODE_DENY_RESPONSE")
        if settings.trace_sock:
            flags |= value("NODE_TRACE_SOCKETS")
        if not settings.bpf_events_drop_enabled:
            flags |= value("NODE_MUTE_DROPS")
        if not settings.bpf_events_trace_enabled:
            flags |= value("NODE_MUTE_TRACES")
        if not settings.bpf_events_policy_verdict_enabled:
            flags |= value("NODE_MUTE_VERDICTS")
        first_port, last_port = settings.node_ports
        return NodeSettings(
            ipv4=_of_family(self.addresses, 4),
            ipv6=_of_family(self.addresses, 6),
            router_ipv4=self._gateways.ipv4,
            router_ipv6=self._gateways.ipv6,
            flags=flags,
            host_ifindex=self._pair.host_ifindex,
            net_ifindex=self._pair.net_ifindex,
            tunnel_ifindex=self._tunnel,
            native_ifindex=self._native.ifindex,
            mtu=self.mtu,
            host_mac=self._pair.host_mac,
            aggregation=value(f"AGGREGATION_{settings.aggregation.upper()}"),
            report_interval=settings.report_interval,
            report_tcp_flags=settings.report_tcp_flags,
            event_rate=settings.bpf_events_default_rate_limit,
            event_burst=settings.bpf_events_default_burst_limit or settings.bpf_events_default_rate_limit,
            tunnel_port=settings.tunnel_port,
            ct_quota=settings.conntrack_quota or settings.conntrack_entries // QUOTA_SHARE,
            node_port_first=first_port,
            node_port_last=last_port,
            hash_seed=hash_seed(settings.bpf_lb_maglev_hash_seed),
            netns=namespaces.cookie(),
        )

    def _host_addresses(self) -> list[str]:
        """What is the host to pods: a rule about the world or a prefix does not speak of these."""
        routers = [address for address in (self._gateways.ipv4, self._gateways.ipv6) if address]
        return sorted({*self.addresses, *routers, *self._links.local_addresses()})

    def _look_for_addresses(self) -> None:
        """Addresses come and go while the agent runs."""
        assert self._state is not None
        try:
            found = self._host_addresses()
            if found != self._hosts:
                self._state.set_hosts(found)
                self._hosts = found
        except OSError as error:
            log.warning("the node's addresses are not up to date", reason=error.strerror or str(error))

    def _find_native(self) -> Device:
        wanted = self._settings.native_device
        if wanted:
            found = self._links.find(wanted)
            if found is None:
                raise BpfError(f"there is no device {wanted}: choose another --native-device")
            return found
        devices = self._links.native_devices()
        if not devices:
            raise BpfError("no device has a default route: name one with --native-device")
        return devices[0]

    def _underlay_addresses(self) -> tuple[str, ...]:
        """Global addresses of the native device, IPv4 first."""
        found = [ipaddress.ip_address(address) for address in self._links.addresses_of(self._native.ifindex)]
        usable = sorted((a for a in found if not a.is_link_local), key=lambda a: (a.version, int(a)))
        if not usable:
            raise BpfError(f"device {self._native.name} has no address: give it one")
        return tuple(str(address) for address in usable)

    def _overhead(self) -> int:
        if not self._settings.is_tunneled:
            return 0
        return VXLAN_OVERHEAD if ":" not in self.addresses[0] else VXLAN_OVERHEAD_IPV6


def hash_seed(text: str) -> int:
    """The 32-bit seed of Maglev that a text stands for; of none the one that all agents know."""
    if not text:
        return NodeSettings().hash_seed
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _constants(settings: AgentSettings) -> dict[str, Any]:
    """Load-time constants of bpf/config."""
    loopback = int(ipaddress.IPv6Address(settings.ipv6_service_loopback_address))
    return {
        "events_enabled": settings.events,
        "tunnel_enabled": settings.is_tunneled,
        "host_firewall_enabled": settings.host_firewall,
        "services_enabled": settings.kube_proxy_replacement,
        "pod_sockets_enabled": not settings.bpf_lb_sock_hostns_only,
        "external_ip_mitigation": not settings.disable_external_ip_mitigation,
        "dsr_ipip": settings.bpf_lb_dsr_dispatch == "ipip",
        "service_loopback_ipv4": int(ipaddress.IPv4Address(settings.ipv4_service_loopback_address)),
        "service_loopback_ipv6_high": loopback >> 64,
        "service_loopback_ipv6_low": loopback & (1 << 64) - 1,
    }


def _sizes(settings: AgentSettings) -> dict[str, int]:
    """Sizes of maps that are not there yet; the others are as built."""
    wanted = {
        "conntrack": settings.conntrack_entries,
        "services": settings.service_map_max,
        "frontends": settings.service_map_max,
        "backends": settings.service_backend_map_max,
        "slots": settings.service_slot_map_max,
        "affinity": settings.service_affinity_map_max,
        "source_ranges": settings.service_source_range_map_max,
        "service_flows": settings.service_flow_map_max,
        "snat": settings.nat_map_max,
    }
    return {name: size for name, size in wanted.items() if size}


def _of_family(addresses: Iterable[str], version: int) -> str:
    return next((a for a in addresses if (":" in a) == (version == 6)), "")


def _interface_name(index: int) -> str:
    """The kernel takes any bytes for a name; what is no text in them is replaced."""
    try:
        return os.fsencode(socket.if_indextoname(index)).decode(errors="replace") if index else ""
    except OSError:
        return ""
