"""observer.Observer of a whole cluster: what one node answers, asked of all and put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
import structlog
from google.protobuf import field_mask_pb2
from google.protobuf.message import DecodeError, Message

from cilia.hubble.rpc.messages import Code, RpcError
from cilia.hubble.rpc.server import Call, Methods, Sink
from cilia.hubble.status import completeness_of, together
from cilia.kit.clock import Clock
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2
from cilia.relay.access import Access, Viewer
from cilia.relay.answer import READERS, Answer, AnswerSettings
from cilia.relay.numbers import Numbers
from cilia.relay.pool import Link, Pool
from cilia.relay.turns import Turns
from cilia.relay.view import View

log = structlog.get_logger(__name__)

SERVER_STATUS = "/observer.Observer/ServerStatus"
GET_NAMESPACES = "/observer.Observer/GetNamespaces"
NAMED_UNAVAILABLE = 10
"""Unavailable nodes that ServerStatus names; the rest is only counted."""
LARGEST = 2**64 - 1
"""What a counter holds at most: sums stay there, whatever a node claims."""


M = TypeVar("M", bound=Message)
T = TypeVar("T")


class RelaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay says of itself, and its bounds."""

    version: str
    node_name: str
    """Stands for the relay in what it says itself: `cluster/host`."""
    answer: AnswerSettings = AnswerSettings()
    call_timeout: float = 5.0
    """Seconds a node may take for anything but flows."""
    answers: int = 48
    """GetFlows calls answered at a time: nodes take 64 calls on a connection."""


class RelayObserver:
    """The handlers of the service; `methods()` is for the server."""

    def __init__(
        self,
        pool: Pool,
        settings: RelaySettings,
        clock: Clock,
        numbers: Numbers,
        access: Access | None = None,
    ) -> None:
        """`access`: None: everybody who can connect sees everything."""
        self._numbers = numbers
        self._access = access
        self._pool = pool
        self._settings = settings
        self._clock = clock

    def methods(self) -> Methods:
        """By path, for `rpc.server.Server`."""
        return {
            "/observer.Observer/GetFlows": self.get_flows,
            "/observer.Observer/ServerStatus": self.server_status,
            "/observer.Observer/GetNodes": self.get_nodes,
            "/observer.Observer/GetNamespaces": self.get_namespaces,
            "/observer.Observer/GetAgentEvents": self.get_agent_events,
            "/observer.Observer/GetDebugEvents": self.get_debug_events,
        }

    async def get_flows(self, data: bytes, call: Call) -> None:
        """Stream flows of all nodes by time, gaps, and what becomes of nodes."""
        viewer = await self._viewer(call, "GetFlows")
        request = parse(observer_pb2.GetFlowsRequest(), data)
        if request.first and request.follow:
            raise RpcError(Code.INVALID_ARGUMENT, "first and follow exclude each other: leave one out")
        numbers, settings = self._numbers, self._settings
        if numbers.clients >= settings.answers:
            numbers.refused[Code.RESOURCE_EXHAUSTED.name] += 1
            sentence = f"{numbers.clients} clients are reading flows already: try again later"
            raise RpcError(Code.RESOURCE_EXHAUSTED, sentence)
        numbers.clients += 1
        try:
            view = self._view(viewer, request)
            answer = Answer(
                self._pool, request, settings.answer, settings.node_name, self._clock, numbers, view
            )
            if viewer is None:
                await answer.send(call)
            else:
                await self._guarded(answer.send(call), viewer, call)
        finally:
            numbers.clients -= 1

    async def server_status(self, data: bytes, call: Call) -> None:
        """Counters of all nodes together; how complete they are, if all that are connected say so."""
        await self._viewer(call, "ServerStatus")
        parse(observer_pb2.ServerStatusRequest(), data)
        links = self._pool.links()
        statuses = await in_turns(self._pool.turns, self._status, links)
        total = observer_pb2.ServerStatusResponse(version=self._settings.version)
        missing = []
        for link, status in zip(links, statuses, strict=True):
            if status is None:
                missing.append(link.name)
                continue
            for field in ("num_flows", "max_flows", "seen_flows"):
                setattr(total, field, min(LARGEST, getattr(total, field) + getattr(status, field)))
            total.flows_rate += status.flows_rate
            total.uptime_ns = max(total.uptime_ns, status.uptime_ns)
        total.num_connected_nodes.value = len(links) - len(missing)
        total.num_unavailable_nodes.value = len(missing)
        total.unavailable_nodes.extend(missing[:NAMED_UNAVAILABLE])
        told = [completeness_of(status) for status in statuses if status is not None]
        known = [each for each in told if each is not None]
        extension = together(known).extension() if known and len(known) == len(told) else b""
        await call.send([total.SerializeToString() + extension])

    async def get_nodes(self, data: bytes, call: Call) -> None:
        """All nodes, by name, with their states."""
        await self._viewer(call, "GetNodes")
        parse(observer_pb2.GetNodesRequest(), data)
        nodes = await in_turns(self._pool.turns, self._node, self._pool.links())
        await call.send([observer_pb2.GetNodesResponse(nodes=nodes).SerializeToString()])

    async def get_namespaces(self, data: bytes, call: Call) -> None:
        """Namespaces any node has seen in the last hour, sorted."""
        viewer = await self._viewer(call, "GetNamespaces")
        allowed = viewer.namespaces if viewer else None
        parse(observer_pb2.GetNamespacesRequest(), data)
        answers = await in_turns(self._pool.turns, self._namespaces, self._pool.links())
        seen = {pair for answer in answers for pair in answer}
        found = sorted(pair for pair in seen if allowed is None or pair[1] in allowed)
        names = [observer_pb2.Namespace(cluster=cluster, namespace=name) for cluster, name in found]
        await call.send([observer_pb2.GetNamespacesResponse(namespaces=names).SerializeToString()])

    async def get_agent_events(self, _data: bytes, _sink: Sink) -> None:
        """Not merged."""
        raise RpcError(Code.UNIMPLEMENTED, "the relay does not merge agent events: ask the node itself")

    async def get_debug_events(self, _data: bytes, _sink: Sink) -> None:
        """Not merged."""
        raise RpcError(Code.UNIMPLEMENTED, "the relay does not merge debug events: ask the node itself")

    # -- viewers ------------------------------------------------------------------------------------------

    async def _viewer(self, call: Call, method: str) -> Viewer | None:
        """Who asks; None: nobody checks. Raises RpcError."""
        if self._access is None:
            return None
        try:
            viewer = await self._access.viewer(call.headers)
        except RpcError as error:
            self._numbers.refused[error.code.name] += 1
            log.warning("refused", method=method, client=call.peer, reason=error.sentence)
            raise
        seen = "all" if viewer.namespaces is None else ",".join(sorted(viewer.namespaces))
        log.info("access", user=viewer.user, method=method, client=call.peer, namespaces=seen)
        return viewer

    def _view(self, viewer: Viewer | None, request: observer_pb2.GetFlowsRequest) -> View | None:
        if viewer is None or viewer.namespaces is None or self._access is None:
            return None
        mask = request.field_mask if request.HasField("field_mask") else None
        kept = None
        if mask is not None:
            kept = field_mask_pb2.FieldMask(paths=mask.paths)
            if not kept.IsValidForDescriptor(flow_pb2.Flow.DESCRIPTOR):
                raise RpcError(Code.INVALID_ARGUMENT, "the field mask names a field that no flow has")
        return View(viewer.namespaces, kept, mask_addresses=self._access.settings.mask_addresses)

    async def _guarded(self, work: Coroutine[Any, Any, None], viewer: Viewer, call: Call) -> None:
        """Work for as long as the viewer may see what it sees."""
        working = asyncio.ensure_future(work)
        guarding = asyncio.ensure_future(self._guard(viewer, call))
        try:
            await asyncio.wait({working, guarding}, return_when=asyncio.FIRST_COMPLETED)
            await (working if working.done() else guarding)
        finally:
            for task in (working, guarding):
                task.cancel()
            await asyncio.gather(working, guarding, return_exceptions=True)

    async def _guard(self, viewer: Viewer, call: Call) -> None:
        """Raises RpcError once the viewer may no longer see the same."""
        assert self._access is not None
        while True:
            await asyncio.sleep(self._access.settings.remember + 0.1)
            if await self._access.viewer(call.headers) != viewer:
                log.info("access ends", user=viewer.user, client=call.peer)
                raise RpcError(Code.PERMISSION_DENIED, "what you may see has changed: ask again")

    # -- one node -----------------------------------------------------------------------------------------

    async def _ask(self, link: Link, method: str) -> bytes | None:
        """The answer of a node to an empty request; None without one."""
        if link.channel is None:
            return None
        try:
            return await link.channel.unary(method, b"", timeout=self._settings.call_timeout)
        except RpcError as error:
            log.warning("a peer did not answer", peer=link.name, method=method, reason=error.sentence)
            return None

    async def _status(self, link: Link) -> observer_pb2.ServerStatusResponse | None:
        answer = await self._ask(link, SERVER_STATUS)
        return None if answer is None else read(observer_pb2.ServerStatusResponse(), answer, link)

    async def _node(self, link: Link) -> observer_pb2.Node:
        node = observer_pb2.Node(name=link.name, address=link.peer.address)
        node.tls.enabled, node.tls.server_name = link.secured, link.peer.tls_name
        if link.channel is None:
            node.state = relay_pb2.NODE_UNAVAILABLE
            return node
        status = await self._status(link)
        if status is None:
            node.state = relay_pb2.NODE_ERROR
            return node
        node.state = relay_pb2.NODE_CONNECTED
        node.version, node.uptime_ns = status.version, status.uptime_ns
        node.num_flows, node.max_flows = status.num_flows, status.max_flows
        node.seen_flows = status.seen_flows
        return node

    async def _namespaces(self, link: Link) -> list[tuple[str, str]]:
        answer = await self._ask(link, GET_NAMESPACES)
        found = None if answer is None else read(observer_pb2.GetNamespacesResponse(), answer, link)
        return [(each.cluster, each.namespace) for each in found.namespaces] if found else []


async def in_turns(
    turns: Turns, ask: Callable[[Link], Coroutine[Any, Any, T]], links: Sequence[Link]
) -> list[T]:
    """What each peer answers; each is asked when it is its turn."""

    async def in_turn(link: Link) -> T:
        async with turns.turn():
            return await ask(link)

    asking: list[asyncio.Future[T]] = []
    try:
        for number, link in enumerate(links, 1):
            asking.append(asyncio.ensure_future(in_turn(link)))
            if number % READERS == 0:
                await asyncio.sleep(0)
        return await asyncio.gather(*asking)
    finally:
        for each in asking:
            each.cancel()


def parse(message: M, data: bytes) -> M:
    """Read a client's request into `message`; a malformed one ends the call."""
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise RpcError(Code.INVALID_ARGUMENT, "the request is not a valid message of its type") from None
    return message


def read(message: M, data: bytes, link: Link) -> M | None:
    """Read a node's answer into `message`; None when it is none."""
    try:
        message.ParseFromString(data)
    except DecodeError:
        log.warning("a peer sends garbage", peer=link.name)
        return None
    return message
