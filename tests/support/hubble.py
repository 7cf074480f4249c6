"""Events by hand, a directory of a small cluster, and an observer running beside the test."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cilia.abi import layout
from cilia.hubble.blocks import split
from cilia.hubble.columns import Events
from cilia.hubble.convert import NodeFacts, file_names
from cilia.hubble.directory import MemoryDirectory, Pod, Service, Workload
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.rpc.server import Server
from cilia.hubble.store import FlowStore, joined
from cilia.kit.clock import ManualClock, SystemClock
from cilia.model.address import pack
from cilia.model.ids import Cookie
from cilia.model.policy import CookieRow, RuleRef

T = TypeVar("T")

WALL = 1_795_408_000_000_000_000
"""Nanoseconds: a moment in November 2026, where the tests' ktime starts."""

CLIENT, SERVER, OTHER = "10.0.1.5", "10.0.1.6", "10.0.2.7"
CLIENT6, SERVER6 = "fd00::1:5", "fd00::1:6"
ALLOW_WEB, DEFAULT_DENY, DENY_DB, OPEN = 11, 12, 13, 14

DTYPE = layout().dtype("event")

ADDRESSES = ("source", "destination", "original_source", "original_destination", "tunnel")
DEFAULTS: dict[str, Any] = {
    "source": CLIENT,
    "destination": SERVER,
    "source_identity": 4321,
    "destination_identity": 1234,
    "source_endpoint": 101,
    "destination_endpoint": 102,
    "source_port": 41234,
    "destination_port": 8080,
    "protocol": 6,
    "tcp_flags": 2,
    "kind": 2,
    "point": 101,
    "verdict": 1,
    "state": 1,
    "direction": 1,
}

VARIED: list[dict[str, Any]] = [
    {"service": 10},
    {"kind": 3, "ingress_match": 2, "destination_port": 80},
    {"kind": 1, "point": 0, "verdict": 2, "reason": 133, "state": 0},
    {"kind": 3, "verdict": 2, "reason": 181, "direction": 2, "egress_cookie": DENY_DB, "destination": OTHER,
     "destination_identity": 5000, "destination_endpoint": 0},
    {"source": CLIENT6, "destination": SERVER6, "flags": 2, "protocol": 17, "destination_port": 53},
    {"protocol": 1, "icmp_type": 8, "source_port": 0, "destination_port": 0, "flags": 1, "state": 3,
     "service": 9},
    {"protocol": 58, "icmp_type": 128, "source": CLIENT6, "destination": "2001:db8::1", "flags": 2,
     "destination_identity": 2, "destination_endpoint": 0, "source_port": 0, "destination_port": 0},
    {"source": "192.0.2.1", "original_source": CLIENT, "original_source_port": 41000, "source_port": 50000,
     "source_endpoint": 0,
     "destination": "192.0.2.80", "destination_identity": 2, "destination_endpoint": 0, "ifindex": 7},
    {"kind": 4, "tcp_flags": 0x12, "flags": 4, "verdict": 7, "point": 2, "service": 9},
]  # fmt: skip
"""Fields of events that differ in what filters ask for."""

DROP: dict[str, Any] = {
    "kind": 1,
    "verdict": 2,
    "reason": 133,
    "direction": 1,
    "ingress_cookie": DEFAULT_DENY,
}
"""Of a SYN that no policy of its receiver allows."""


def event(**fields: Any) -> Events:
    """One event: shape (1,); what is not given is a SYN from client to server that reached its endpoint."""
    row = np.zeros(1, DTYPE)
    for name, value in {**DEFAULTS, **fields}.items():
        if name in ADDRESSES:
            high, low = np.frombuffer(pack(ipaddress.ip_address(value)), ">u8")
            row[name]["hi"], row[name]["lo"] = high, low
        elif name.endswith("_mac"):
            row[name] = np.frombuffer(bytes.fromhex(value.replace(":", "")), np.uint8)
        else:
            row[name] = value
    return row


def events(*rows: dict[str, Any]) -> Events:
    """Several events, a millisecond apart unless they say when."""
    return joined([event(**{"time": 1_000_000 * number, **row}) for number, row in enumerate(rows)], DTYPE)


def flow(number: int, **fields: Any) -> dict[str, Any]:
    """Fields of an event that can be told from others by its source port."""
    return {"source_port": 10_000 + number, "time": 1_000_000 * number, **fields}


def rule(kind: str, namespace: str, name: str, path: str, log: str = "") -> RuleRef:
    """A rule of version 7 of its object."""
    return RuleRef(kind, namespace, name, "7", path, log)


def directory() -> MemoryDirectory:
    """Two pods in demo, one in other, and some rules."""
    known = MemoryDirectory()
    client = Pod(
        id=101, identity=4321, cluster="default", namespace="demo", name="client-5f",
        workloads=(Workload("Deployment", "client"),),
    )  # fmt: skip
    server = Pod(id=102, identity=1234, cluster="default", namespace="demo", name="server-0")
    known.pods = {CLIENT: client, CLIENT6: client, SERVER: server, SERVER6: server}
    known.pods[OTHER] = Pod(identity=5000, cluster="default", namespace="other", name="db-0")
    known.identity_labels = {
        4321: ("k8s:app=client", "k8s:io.kubernetes.pod.namespace=demo"),
        1234: ("k8s:app=server", "k8s:io.kubernetes.pod.namespace=demo", "k8s:tier=web"),
        5000: ("k8s:app=db", "k8s:io.kubernetes.pod.namespace=other"),
        2: ("reserved:world",),
    }
    known.dns = {"192.0.2.80": ("www.example.com",)}
    known.devices = {7: "lxc1234"}
    known.services = {9: Service("demo", "web"), 10: Service("demo", "web-admin")}
    known.frontends = {("10.96.0.7", 80, 6): Service("demo", "web"), ("", 30080, 6): Service("demo", "web")}
    cnp = "CiliumNetworkPolicy"
    known.cookies = {
        ALLOW_WEB: CookieRow(
            Cookie(ALLOW_WEB), (rule(cnp, "demo", "allow-web", "spec.ingress[0]", "web traffic"),)
        ),
        DEFAULT_DENY: CookieRow(
            Cookie(DEFAULT_DENY),
            (rule(cnp, "demo", "allow-web", "spec"), rule("NetworkPolicy", "demo", "isolate", "spec")),
            default=True,
        ),
        DENY_DB: CookieRow(
            Cookie(DENY_DB),
            (rule("CiliumClusterwideNetworkPolicy", "", "no-db", "spec.egressDeny[1].toEndpoints[0]"),),
        ),
        OPEN: CookieRow(Cookie(OPEN), (), default=True),
    }
    return known


def store(capacity: int = 1024, known: MemoryDirectory | None = None) -> FlowStore:
    """An empty store over `directory()`, or another one."""
    return FlowStore(DTYPE, known or directory(), capacity=capacity)


FILES = file_names(layout().enums["source_file"].__members__)
NODE = NodeFacts(name="default/worker-1", labels=("zone=a",), files=FILES)


class Beside:
    """An event loop in a thread, with an observer listening on a unix socket."""

    def __init__(
        self,
        path: Path,
        capacity: int = 1024,
        directory: MemoryDirectory | None = None,
        node: NodeFacts = NODE,
        *,
        real_time: bool = False,
    ) -> None:
        """`real_time`: notes of losses come by the clock on the wall; else `clock` says how late it is."""
        self.path = path
        self.target = f"unix:{path}"
        self.store = store(capacity, directory)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.clock = ManualClock(wall=WALL / 1e9 + 1)
        settings = ObserverSettings(version="cilia 0.1.0", address="192.0.2.1:4244")
        self.observer = Observer(self.store, node, settings, SystemClock() if real_time else self.clock)
        self.server = Server(dict(self.observer.methods()))
        self.run(self.server.listen_unix(path))

    def run(self, work: Awaitable[T]) -> T:
        """Await something on the observer's loop."""

        async def wait() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result(30)

    def call(self, work: Callable[[], T]) -> T:
        """Call something on the observer's loop."""

        async def later() -> T:
            return work()

        return self.run(later())

    def append(self, *rows: dict[str, Any]) -> None:
        """Store events."""
        self.call(lambda: self.store.append([events(*rows)], offset=WALL))

    def close(self) -> None:
        """Stop the server and the thread."""
        self.run(self.server.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def beside(path: Path, **choices: Any) -> Iterator[Beside]:
    """A running observer, stopped at the end; `choices` as of Beside."""
    running = Beside(path, **choices)
    try:
        yield running
    finally:
        running.close()


class MessageSink:
    """A sink that gets messages, however they are sent."""

    async def send(self, messages: Sequence[bytes]) -> None:
        raise AssertionError("nothing was to be sent")

    async def send_block(self, block: bytes) -> None:
        await self.send(split(block))
