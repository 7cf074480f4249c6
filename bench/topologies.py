"""The networks that are compared: plain kernel routing, plain VXLAN, and Cilia's data path.

Cilia's are built from the agent's own parts, without an API server: programs, links, maps and rings are
those of the product; only the rows come from here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.netbench import Way
from cilia.apps.agent.attach import Gateways
from cilia.apps.agent.flows import FlowPump
from cilia.apps.agent.kernel import NodeKernel
from cilia.apps.agent.settings import AgentSettings
from cilia.dataplane import loader
from cilia.dataplane.namespaces import entered
from cilia.dataplane.order import KernelState
from cilia.hubble.convert import NodeFacts
from cilia.hubble.directory import MemoryDirectory
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.rpc.server import Server
from cilia.hubble.store import FlowStore, LossSource
from cilia.kit.clock import SystemClock
from cilia.model.endpoint import EndpointEntry
from cilia.model.ids import Cookie, EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.node import IpcacheEntry, NodeAddress
from cilia.model.policy import Direction, Entry, EntryFlags, EntryKey, MatchKind, SubjectKey, SubjectPolicy
from cilia.schema import Desired

PREFIX = "cilia-bench"
TCP = 6
WORLD = 9
"""Identity of who is outside, over IPv4."""


def ip(*words: str, namespace: str = "") -> None:
    """Run iproute2's ip. Raises CalledProcessError."""
    where = ["-n", namespace] if namespace else []
    subprocess.run(["ip", *where, *words], check=True, capture_output=True)


def sysctl(namespace: str, **values: str) -> None:
    """Set sysctls below net/ in a namespace; dots are written as double underscores."""
    with in_namespace(namespace):
        for name, value in values.items():
            Path("/proc/sys/net", *name.split("__")).write_text(value)


@contextmanager
def in_namespace(namespace: str) -> Iterator[None]:
    """This thread in a named network namespace."""
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        with entered(descriptor):
            yield
    finally:
        os.close(descriptor)


@contextmanager
def namespaces(*names: str) -> Iterator[None]:
    """Network namespaces with loopback up and room for a benchmark's ports; gone afterwards."""
    try:
        for name in names:
            ip("netns", "add", name)
            ip("link", "set", "lo", "up", namespace=name)
            sysctl(name, ipv4__ip_local_port_range="1024 65535", ipv4__tcp_tw_reuse="1")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def veth(one: str, one_name: str, two: str, two_name: str) -> None:
    """A veth pair between two namespaces, both ends up."""
    ip("link", "add", one_name, "type", "veth", "peer", "name", two_name, "netns", two, namespace=one)
    ip("link", "set", one_name, "up", namespace=one)
    ip("link", "set", two_name, "up", namespace=two)


@contextmanager
def routed(name: str = "routed", tag: str = "r") -> Iterator[Way]:
    """Two namespaces joined by one that routes (`router_of(tag)`): what same-node pods are compared with."""
    client, server, router = f"{PREFIX}-{tag}c", f"{PREFIX}-{tag}s", router_of(tag)
    with namespaces(client, server, router):
        for index, pod in ((1, client), (2, server)):
            veth(pod, "eth0", router, f"v{index}")
            ip("addr", "add", f"10.71.{index}.2/24", "dev", "eth0", namespace=pod)
            ip("addr", "add", f"10.71.{index}.1/24", "dev", f"v{index}", namespace=router)
            ip("route", "add", "default", "via", f"10.71.{index}.1", namespace=pod)
        sysctl(router, ipv4__ip_forward="1", ipv4__conf__all__rp_filter="0")
        yield Way(name, client, server, "10.71.2.2")


def router_of(tag: str) -> str:
    """The namespace that routes in `routed`."""
    return f"{PREFIX}-{tag}r"


@contextmanager
def bare() -> Iterator[Way]:
    """A veth pair and nothing else: the most the kernel gives."""
    client, server = f"{PREFIX}-bc", f"{PREFIX}-bs"
    with namespaces(client, server):
        veth(client, "eth0", server, "eth0")
        ip("addr", "add", "10.72.0.1/24", "dev", "eth0", namespace=client)
        ip("addr", "add", "10.72.0.2/24", "dev", "eth0", namespace=server)
        yield Way("bare veth", client, server, "10.72.0.2")


@contextmanager
def plain_vxlan() -> Iterator[Way]:
    """Two routers, each with a pod, joined by kernel VXLAN and kernel routes."""
    client, server = f"{PREFIX}-vc", f"{PREFIX}-vs"
    nodes = (f"{PREFIX}-v1", f"{PREFIX}-v2")
    with namespaces(client, server, *nodes):
        veth(nodes[0], "eth0", nodes[1], "eth0")
        for index, (node, pod) in enumerate(zip(nodes, (client, server), strict=True), start=1):
            other = 3 - index
            ip("addr", "add", f"172.30.71.{index}/24", "dev", "eth0", namespace=node)
            veth(pod, "eth0", node, "pod")
            ip("link", "set", "eth0", "mtu", "1450", namespace=pod)
            ip("addr", "add", f"10.73.{index}.2/24", "dev", "eth0", namespace=pod)
            ip("addr", "add", f"10.73.{index}.1/24", "dev", "pod", namespace=node)
            ip("route", "add", "default", "via", f"10.73.{index}.1", namespace=pod)
            words = f"link add vx type vxlan id 7 dstport 8472 dev eth0 remote 172.30.71.{other}"
            ip(*words.split(), namespace=node)
            ip("addr", "add", f"10.74.0.{index}/24", "dev", "vx", namespace=node)
            ip("link", "set", "vx", "up", namespace=node)
            ip("route", "add", f"10.73.{other}.0/24", "via", f"10.74.0.{other}", namespace=node)
            sysctl(node, ipv4__ip_forward="1", ipv4__conf__all__rp_filter="0")
        yield Way("plain VXLAN", client, server, "10.73.2.2")


@dataclass(frozen=True)
class Pod:
    """A pod of a benchmark: its namespace, address, identity."""

    namespace: str
    address: str
    identity: IdentityId
    number: int


class CiliaNode:
    """One node of Cilia's data path in a namespace of its own."""

    def __init__(
        self,
        namespace: str,
        cidr: str,
        *,
        events: bool,
        aggregation: str = "medium",
        followed: bool = False,
        drain: bool = True,
        cgroup: Path | None = None,
        **changes: Any,
    ) -> None:
        """`cgroup`: whose sockets are translated. `changes`: of the agent's settings.
        `followed`: one client (`cilia observe --follow`, another process) reads every flow.
        `drain`: events are read as they come; else the caller reads them."""
        self.namespace = namespace
        self.network = ipaddress.ip_network(cidr)
        self.desired = Desired()
        self.prefix = Path("/sys/fs/bpf", namespace)
        settings = AgentSettings(
            node_name=namespace,
            bpf_prefix=self.prefix,
            native_device="eth0",
            events=events,
            aggregation=aggregation,
            cgroup_root=cgroup,
            bpf_lb_sock=cgroup is not None,
            **changes,
        )
        with in_namespace(namespace):
            self.kernel = NodeKernel(settings)
            self.kernel.prepare_node(Gateways(str(self.network[1]), ""))
            self.state: KernelState = self.kernel.follow(self.desired, time.monotonic())
        self.store = FlowStore(self.kernel.event_dtype, MemoryDirectory())
        self.reader_lost = 0
        self.received = 0
        self.follower_lost = 0
        self._followed = followed
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        if events and drain:
            self._thread = threading.Thread(target=self._drain, daemon=True)
            self._thread.start()

    def add_pod(self, pod: Pod) -> None:
        """Wire a pod and tell the kernel about it."""
        with in_namespace(self.namespace):
            made = self.kernel.create(
                EndpointId(pod.number),
                f"/run/netns/{pod.namespace}",
                "eth0",
                pod.address,
                "",
                self.kernel.mtu,
            )
        subject = SubjectId(pod.number)
        self.desired.subjects.put(policy_of(subject, pod.identity))
        self.desired.ipcache.put(IpcacheEntry(prefix=f"{pod.address}/32", identity=pod.identity))
        self.desired.endpoint_entries.put(
            EndpointEntry(
                id=EndpointId(pod.number),
                ifindex=made.ifindex,
                identity=pod.identity,
                subject=subject,
                mac=made.mac,
                host_mac=made.host_mac,
                ipv4=pod.address,
            )
        )

    def know(self, other: CiliaNode, pod: Pod) -> None:
        """A pod of another node, and the node itself."""
        address = other.kernel.addresses[0]
        self.desired.node_addresses.put(
            NodeAddress(address=address, node=other.namespace, local=False, mtu=1500)
        )
        self.desired.ipcache.put(
            IpcacheEntry(prefix=f"{pod.address}/32", identity=pod.identity, tunnel_endpoint=address, flags=1)
        )

    def fill(self, entries: int) -> None:
        """As many more ipcache entries: hosts of other nodes."""
        base = int(ipaddress.ip_address("10.128.0.0"))
        for number in range(entries):
            prefix = f"{ipaddress.ip_address(base + number)}/32"
            self.desired.ipcache.put(IpcacheEntry(prefix=prefix, identity=1000 + number % 500))

    def apply(self) -> None:
        """Bring the rows into the kernel. Raises RuntimeError when one does not fit."""
        with in_namespace(self.namespace):
            self.state.apply(time.monotonic())
            while self.state.services.pending:
                self.state.apply(time.monotonic())
        errors = self.state.errors()
        if errors:
            raise RuntimeError(f"{errors[0].table}: {errors[0].error}")

    def close(self) -> None:
        """Stop draining and remove all pins."""
        if self._thread is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
        self.kernel.close()
        loader.remove(self.prefix)

    def _drain(self) -> None:
        asyncio.run(self._drain_until_stopped())

    async def _drain_until_stopped(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        reader = self.kernel.reader(FlowPump(self.store).take)
        reader.start()
        async with self._follower():
            await self._stopping.wait()
        reader.stop()
        self.received, self.reader_lost = reader.received, reader.lost
        self.follower_lost = self.store.metrics.lost.get(LossSource.HUBBLE_RING_BUFFER, 0)

    @asynccontextmanager
    async def _follower(self) -> AsyncIterator[None]:
        """Hubble's server and a client that follows all flows, if there shall be one."""
        if not self._followed:
            yield
            return
        observer = Observer(
            self.store, NodeFacts(name=self.namespace), ObserverSettings(version="bench"), SystemClock()
        )
        server = Server(observer.methods())
        with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
            socket = Path(directory, "hubble.sock")
            await server.listen_unix(socket)
            words = ["observe", "--follow", "--server", f"unix://{socket}", "--output", "json"]
            client = await asyncio.create_subprocess_exec(
                str(Path(sys.executable).with_name("cilia")), *words, stdout=asyncio.subprocess.DEVNULL
            )
            try:
                yield
            finally:
                client.kill()
                await client.wait()
                await server.close()


def policy_of(subject: SubjectId, identity: IdentityId, entries: int = 1000) -> SubjectPolicy:
    """A policy of `entries` entries that isolates both ways and allows the benchmark's peers and world."""
    held: dict[EntryKey, Entry] = {}
    deny = Entry(0, False, Cookie(1), MatchKind.NONE, EntryFlags.DEFAULT)
    allow = Entry(1 << 31 | 8, True, Cookie(2), MatchKind.L3_L4)
    for direction in (Direction.INGRESS, Direction.EGRESS):
        held[EntryKey(direction, 0)] = deny
        for peer in (WORLD, 501, 502):
            held[EntryKey(direction, peer, TCP, 0, 8)] = allow
            held[EntryKey(direction, peer, 17, 0, 8)] = allow
    number = 0
    while len(held) < entries:
        held[EntryKey(Direction.INGRESS, 1000 + number % 500, TCP, 2000 + number // 500, 24)] = allow
        number += 1
    return SubjectPolicy(
        subject=subject,
        key=SubjectKey(identity),
        labels=Labels(),
        rules="bench",
        revision=Revision(1),
        entries=held,
        ingress_enforced=True,
        egress_enforced=True,
    )


@contextmanager
def same_node(
    name: str,
    tag: str,
    *,
    events: bool,
    aggregation: str = "medium",
    followed: bool = False,
    cgroup: Path | None = None,
) -> Iterator[tuple[Way, CiliaNode]]:
    """Two pods of one Cilia node, with a 1,000-entry policy each and 10,000 ipcache entries."""
    node, client, server = (f"{PREFIX}-{tag}{part}" for part in "ncs")
    fabric = f"{PREFIX}-{tag}f"
    with namespaces(node, client, server, fabric), ExitStack() as stack:
        veth(node, "eth0", fabric, "eth0")
        ip("addr", "add", "172.30.72.1/24", "dev", "eth0", namespace=node)
        found = CiliaNode(
            node, "10.75.1.0/24", events=events, aggregation=aggregation, followed=followed, cgroup=cgroup
        )
        stack.callback(found.close)
        found.add_pod(Pod(client, "10.75.1.2", IdentityId(501), 1))
        found.add_pod(Pod(server, "10.75.1.3", IdentityId(502), 2))
        found.fill(10_000)
        found.apply()
        yield Way(name, client, server, "10.75.1.3"), found


@contextmanager
def across_nodes(name: str, *, events: bool) -> Iterator[Way]:
    """A pod on each of two Cilia nodes joined by VXLAN."""
    parts = [f"{PREFIX}-x{part}" for part in ("n1", "n2", "c", "s")]
    with namespaces(*parts), ExitStack() as stack:
        veth(parts[0], "eth0", parts[1], "eth0")
        nodes = []
        for index, namespace in enumerate(parts[:2], start=1):
            ip("addr", "add", f"172.30.73.{index}/24", "dev", "eth0", namespace=namespace)
            node = CiliaNode(namespace, f"10.76.{index}.0/24", events=events)
            stack.callback(node.close)
            nodes.append(node)
        pods = [
            Pod(parts[2], "10.76.1.2", IdentityId(501), 1),
            Pod(parts[3], "10.76.2.2", IdentityId(502), 1),
        ]
        for node, other, pod, peer in (
            (nodes[0], nodes[1], pods[0], pods[1]),
            (nodes[1], nodes[0], pods[1], pods[0]),
        ):
            node.add_pod(pod)
            node.know(other, peer)
            node.fill(10_000)
            node.apply()
        yield Way(name, parts[2], parts[3], "10.76.2.2")
