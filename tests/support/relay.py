"""A relay beside the test, and nodes that do what the test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc

from cilia.apps.relay.running import RelayOptions, relaying
from cilia.hubble.health import Health
from cilia.hubble.peer import Peer
from cilia.hubble.rpc.messages import RpcError
from cilia.hubble.rpc.server import Call, Server
from cilia.proto.observer import observer_pb2
from cilia.relay.access import AccessSettings
from cilia.relay.answer import AnswerSettings
from cilia.relay.merge import MergeSettings
from cilia.relay.pool import PoolSettings
from tests.support.grpc_client import unary
from tests.support.waiting import until

T = TypeVar("T")
Response = observer_pb2.GetFlowsResponse

START = 1_795_408_000_000_000_000
"""Nanoseconds: a moment in November 2026."""
MILLISECOND = 1_000_000

WHOLE = AnswerSettings(merge=MergeSettings(patience=20.0), gather=0.1)
"""Waits for all nodes before it says what came first, however busy the machine is."""
QUICK = AnswerSettings(merge=MergeSettings(patience=0.3), gather=0.1)
"""For followers of several nodes, which get what one says without waiting long for the others."""
PATIENT = PoolSettings(dial_timeout=30.0, retry_timeout=0.3)
"""Dials again soon; a node is not given up because the machine is busy."""
IMPATIENT = PoolSettings(dial_timeout=1.0, retry_timeout=0.3, check_interval=0.3, check_timeout=0.5)
"""Notices soon who does not answer."""


def response(node: str, moment: int, **fields: Any) -> bytes:
    """A flow of a node, so many milliseconds after START."""
    made = Response(node_name=node)
    made.time.FromNanoseconds(START + moment * MILLISECOND)
    made.flow.time.CopyFrom(made.time)
    made.flow.node_name = node
    made.flow.uuid = f"{node}-{moment}"
    for name, value in fields.items():
        setattr(made.flow, name, value)
    return made.SerializeToString()


def moments(responses: Sequence[Response]) -> list[int]:
    """Milliseconds after START of the flows among responses."""
    return [(each.time.ToNanoseconds() - START) // MILLISECOND for each in responses if each.HasField("flow")]


class Node:
    """A Hubble server that answers GetFlows from a list; methods are there to be replaced."""

    def __init__(self, name: str, flows: Sequence[bytes] = ()) -> None:
        self.name = name
        self.flows = list(flows)
        self.requests: list[observer_pb2.GetFlowsRequest] = []
        self.sent = 0
        self.serving = 0
        """GetFlows calls being answered."""
        self.changed = asyncio.Event()
        self.refusal: RpcError | None = None
        self.hang = False
        """Never end an answer."""
        self.deaf = False
        """Answer nothing but GetFlows."""
        self.told = b""
        """What ServerStatus has besides, serialised."""

    def methods(self) -> dict[str, Any]:
        """By path, for a server."""
        service = "/observer.Observer/"
        return {
            f"{service}GetFlows": self.get_flows,
            f"{service}ServerStatus": self.server_status,
            f"{service}GetNamespaces": self.get_namespaces,
            "/grpc.health.v1.Health/Check": self.check,
        }

    async def get_flows(self, data: bytes, sink: Call) -> None:
        """All flows; following, those that come, too."""
        request = observer_pb2.GetFlowsRequest.FromString(data)
        self.requests.append(request)
        if self.refusal:
            raise self.refusal
        self.serving += 1
        try:
            await self._answer(request, sink)
        finally:
            self.serving -= 1

    async def _answer(self, request: observer_pb2.GetFlowsRequest, sink: Call) -> None:
        flows = self.flows
        if request.number and (request.first or request.HasField("since")):
            flows = flows[: request.number]
        elif request.number:
            flows = flows[-request.number :]
        position = len(self.flows) if request.follow and not request.number else 0
        if request.follow and request.HasField("since"):
            since = request.since.ToNanoseconds()
            position = sum(Response.FromString(each).time.ToNanoseconds() < since for each in self.flows)
        if not request.follow:
            for start in range(0, len(flows), 512):
                await sink.send(flows[start : start + 512])
                self.sent += len(flows[start : start + 512])
            if self.hang:
                await asyncio.Event().wait()
            return
        while True:
            self.changed.clear()
            if position < len(self.flows):
                await sink.send(self.flows[position:])
                position = len(self.flows)
            await self.changed.wait()

    async def check(self, data: bytes, sink: Call) -> None:
        """A sign of life."""
        if self.deaf:
            await asyncio.Event().wait()
        await Health([]).check(data, sink)

    async def server_status(self, _data: bytes, sink: Call) -> None:
        """A few round numbers."""
        if self.deaf:
            await asyncio.Event().wait()
        status = observer_pb2.ServerStatusResponse(
            num_flows=len(self.flows), max_flows=100, seen_flows=1000, uptime_ns=5, flows_rate=1.5
        )
        await sink.send([status.SerializeToString() + self.told])

    async def get_namespaces(self, _data: bytes, sink: Call) -> None:
        """One that all have, one of its own."""
        names = [
            observer_pb2.Namespace(cluster="default", namespace="shop"),
            observer_pb2.Namespace(cluster="default", namespace=self.name),
        ]
        await sink.send([observer_pb2.GetNamespacesResponse(namespaces=names).SerializeToString()])


class Cluster:
    """Nodes on unix sockets, each with a server, on an event loop in a thread; a relay in front."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.servers: dict[str, Server] = {}
        self._relays: list[Any] = []

    def run(self, work: Awaitable[T]) -> T:
        """Await something on the loop."""

        async def wait() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result(30)

    def address(self, name: str) -> str:
        """Of a node."""
        return f"unix://{self.directory / name}.sock"

    def start(self, node: Node) -> Peer:
        """Have a node listen."""

        async def start() -> None:
            server = self.servers[node.name] = Server(node.methods())
            await server.listen_unix(self.directory / f"{node.name}.sock")

        self.run(start())
        return Peer(node.name, self.address(node.name))

    def stop(self, name: str) -> None:
        """End a node's server and its connections."""
        self.run(self.servers.pop(name).close())

    def add(self, node: Node, *flows: bytes) -> None:
        """New flows of a node, for its followers."""

        def add() -> None:
            node.flows += flows
            node.changed.set()

        self.loop.call_soon_threadsafe(add)

    def relay(self, peers: Sequence[Peer], **choices: Any) -> str:
        """Start a relay; its target for clients."""
        path = self.directory / f"relay-{len(self._relays)}.sock"
        self.enter(options_for(f"unix://{path}", peers, **choices))
        return f"unix:{path}"

    def enter(self, options: RelayOptions) -> int:
        """Start a relay; its port."""
        context = relaying(options)
        serving = self.run(context.__aenter__())
        self._relays.append(context)
        return serving.port

    def stop_relays(self) -> None:
        """End all relays."""
        relays, self._relays = self._relays, []
        for relay in relays:
            self.run(relay.__aexit__(None, None, None))

    def close(self) -> None:
        """Stop everything."""
        self.stop_relays()
        for name in list(self.servers):
            self.stop(name)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def options_for(listen: str, peers: Sequence[Peer], **choices: Any) -> RelayOptions:
    """Settings of a quick relay in plain text."""
    settings: dict[str, Any] = {
        "cluster_name": "default",
        "listen_address": listen,
        "health_listen_address": "",
        "metrics_listen_address": "",
        "peers": list(peers),
        "peer_service": "",
        "peer_service_tls_server_name": "",
        "client_tls": None,
        "server_tls": None,
        "pool": PATIENT,
        "answer": WHOLE,
        "reviews": None,
        "access": AccessSettings(),
        **choices,
    }
    return RelayOptions(**settings)


@contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """A loop for nodes and relays, stopped at the end."""
    running = Cluster(directory)
    try:
        yield running
    finally:
        running.close()


@contextmanager
def channel_to(target: str) -> Iterator[grpc.Channel]:
    """A grpcio channel in plain text."""
    with ExitStack() as stack:
        yield stack.enter_context(grpc.insecure_channel(target))


def server_status(channel: grpc.Channel) -> observer_pb2.ServerStatusResponse:
    """The counters a server tells."""
    answer: observer_pb2.ServerStatusResponse = unary(
        channel, "ServerStatus", observer_pb2.ServerStatusRequest(), observer_pb2.ServerStatusResponse
    )
    return answer


def ready(target: str, count: int) -> None:
    """Wait until a relay has so many nodes."""
    with channel_to(target) as channel:
        until(lambda: server_status(channel).num_connected_nodes.value == count, f"{count} nodes")
