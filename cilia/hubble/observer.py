"""observer.Observer: what clients ask of this node's flows.

A request becomes the numbers of the rows that answer it; rows are converted chunk by chunk as the client
takes them. A follower keeps the number of the next row it has not seen. What the ring has overwritten in
the meantime is told as a gap, so a slow client costs no memory and knows what it missed.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
import numpy as np
from google.protobuf import field_mask_pb2, timestamp_pb2
from google.protobuf.message import DecodeError, Message

from cilia.hubble import encode
from cilia.hubble.columns import Times
from cilia.hubble.convert import Converter, NodeFacts
from cilia.hubble.cursor import Cursor
from cilia.hubble.filter_values import FilterError, UnsupportedFilter
from cilia.hubble.filters import FlowMatcher
from cilia.hubble.predicates import Context
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.hubble.rpc.server import Methods, Sink
from cilia.hubble.store import FlowStore, LossRow, LossSource
from cilia.kit.clock import Clock
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2

CHUNK = 512
"""Rows converted before other tasks of the agent get their turn: some 3 ms."""

FOLLOW_CHUNK = 16 * CHUNK

NAMESPACE_WINDOW = 3600 * encode.NANOSECONDS

M = TypeVar("M", bound=Message)


class ObserverSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the observer tells about its node."""

    version: str
    address: str = ""
    """Where other nodes reach this observer; empty when they can't."""
    tls_name: str = ""
    """Server name in its certificate; empty without TLS."""


class Observer:
    """The handlers of the service; `methods()` is for the server."""

    def __init__(self, store: FlowStore, node: NodeFacts, settings: ObserverSettings, clock: Clock) -> None:
        self._store = store
        self._node = node
        self._settings = settings
        self._clock = clock
        self._started = clock.monotonic()
        self._converter = Converter(store, node)

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

    # -- flows --------------------------------------------------------------------------------------------

    async def get_flows(self, data: bytes, sink: Sink) -> None:
        """Stream flows and gaps."""
        request = parse(observer_pb2.GetFlowsRequest(), data)
        if request.first and request.follow:
            raise RpcError(Code.INVALID_ARGUMENT, "first and follow exclude each other: leave one out")
        answer = Answer(self, request)
        await answer.send_history(sink)
        if request.follow:
            await answer.follow(sink)

    async def server_status(self, data: bytes, sink: Sink) -> None:
        """Counters of this node."""
        parse(observer_pb2.ServerStatusRequest(), data)
        status = observer_pb2.ServerStatusResponse(
            num_flows=len(self._store),
            max_flows=self._store.capacity,
            seen_flows=self._store.head,
            uptime_ns=self._uptime(),
            version=self._settings.version,
            flows_rate=self._store.rate(self.now()),
        )
        status.num_connected_nodes.value = 1
        status.num_unavailable_nodes.value = 0
        await sink.send([status.SerializeToString()])

    async def get_nodes(self, data: bytes, sink: Sink) -> None:
        """This node; a relay puts many together."""
        parse(observer_pb2.GetNodesRequest(), data)
        tls = observer_pb2.TLS(enabled=bool(self._settings.tls_name), server_name=self._settings.tls_name)
        node = observer_pb2.Node(
            name=self._node.name,
            version=self._settings.version,
            address=self._settings.address,
            state=relay_pb2.NODE_CONNECTED,
            tls=tls,
            uptime_ns=self._uptime(),
            num_flows=len(self._store),
            max_flows=self._store.capacity,
            seen_flows=self._store.head,
        )
        await sink.send([observer_pb2.GetNodesResponse(nodes=[node]).SerializeToString()])

    async def get_namespaces(self, data: bytes, sink: Sink) -> None:
        """Namespaces seen in the last hour, sorted."""
        parse(observer_pb2.GetNamespacesRequest(), data)
        seen = sorted(self._store.namespaces(self.now() - NAMESPACE_WINDOW))
        names = [observer_pb2.Namespace(cluster=cluster, namespace=name) for cluster, name in seen]
        await sink.send([observer_pb2.GetNamespacesResponse(namespaces=names).SerializeToString()])

    async def get_agent_events(self, _data: bytes, _sink: Sink) -> None:
        """Not recorded."""
        raise RpcError(Code.UNIMPLEMENTED, "agent events are not recorded: read the agent's log instead")

    async def get_debug_events(self, _data: bytes, _sink: Sink) -> None:
        """Not recorded."""
        raise RpcError(Code.UNIMPLEMENTED, "the data path has no debug events: follow flows instead")

    def now(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return int(self._clock.wall() * 1e9)

    def _uptime(self) -> int:
        return int((self._clock.monotonic() - self._started) * 1e9)

    def matcher(self, request: observer_pb2.GetFlowsRequest) -> FlowMatcher:
        """Compile the request's filters; a filter that can't be ends the call with its sentence."""
        context = Context(self._store, self._node)
        try:
            return FlowMatcher(context, request.whitelist, request.blacklist)
        except FilterError as error:
            raise RpcError(Code.INVALID_ARGUMENT, str(error)) from None
        except UnsupportedFilter as error:
            raise RpcError(Code.UNIMPLEMENTED, str(error)) from None

    @property
    def store(self) -> FlowStore:
        """The rows."""
        return self._store

    @property
    def converter(self) -> Converter:
        """Rows to messages; its fragments serve all clients."""
        return self._converter


class Answer:
    """One GetFlows call."""

    def __init__(self, observer: Observer, request: observer_pb2.GetFlowsRequest) -> None:
        self._observer = observer
        self._store = observer.store
        self._converter = observer.converter
        self._request = request
        self._matcher = observer.matcher(request)
        self._since = nanoseconds(request.since) if request.HasField("since") else None
        self._until = nanoseconds(request.until) if request.HasField("until") else None
        self._mask = FlowMask(request.field_mask) if request.HasField("field_mask") else None
        self._cursor = Cursor(self._store)
        """Where history ends and following begins."""

    async def send_history(self, sink: Sink) -> None:
        """Send what the store has when the call begins."""
        request = self._request
        if request.follow and not request.number and self._since is None:
            return
        first, last = self._store.oldest, self._cursor.position
        numbers = self._select(first, last)
        if request.number and request.number < len(numbers):
            # As clients expect: with `since` or `first` the count runs forward, else back from the end.
            if (request.first or self._since is not None) and not request.follow:
                numbers = numbers[: request.number]
                last = int(numbers[-1])
            else:
                numbers = numbers[-request.number :]
                first = int(numbers[0])
        gaps = [g for g in self._store.losses if g.serial < self._cursor.gap and first <= g.position <= last]
        await self._send(sink, numbers, gaps)

    async def follow(self, sink: Sink) -> None:
        """Send what comes until the client goes away or `until` has passed."""
        with self._cursor as cursor:
            while await cursor.wait(self._left()):
                arrived = cursor.step(FOLLOW_CHUNK)
                if arrived.overwritten:
                    await self._send_overwritten(sink, arrived.overwritten, arrived.first)
                await self._send(sink, self._select(arrived.first, arrived.end), arrived.gaps)

    def _left(self) -> float | None:
        """Seconds until `until`; None: for ever."""
        return None if self._until is None else (self._until - self._observer.now()) / 1e9

    async def _send_overwritten(self, sink: Sink, count: int, position: int) -> None:
        """Say how many rows went by while the client was not reading."""
        self._store.metrics.lost[LossSource.HUBBLE_RING_BUFFER] += count
        now = self._observer.now()
        gap = LossRow(
            serial=0,
            position=position,
            source=LossSource.HUBBLE_RING_BUFFER,
            count=count,
            cpu=None,
            first=now,
            last=now,
        )
        await sink.send([self._converter.lost(gap)])

    def _select(self, first: int, last: int) -> Times:
        """Numbers of the rows of [first, last) that answer the request."""
        found = [np.zeros(0, np.int64)]
        for rows in self._store.spans(first, last):
            mask = self._matcher.mask(rows)
            if self._since is not None:
                mask &= rows.wall >= self._since
            if self._until is not None:
                mask &= rows.wall <= self._until
            found.append(rows.numbers[mask])
        return np.concatenate(found)

    async def _send(self, sink: Sink, numbers: Times, gaps: list[LossRow]) -> None:
        """Send rows chunk by chunk, with the gaps at their places."""
        gaps = [gap for gap in gaps if self._in_time(gap)]
        start = 0
        for gap in gaps:
            end = int(np.searchsorted(numbers, gap.position))
            await self._send_rows(sink, numbers[start:end])
            await sink.send([self._converter.lost(gap)])
            start = end
        await self._send_rows(sink, numbers[start:])

    async def _send_rows(self, sink: Sink, numbers: Times) -> None:
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            here = chunk[chunk >= self._store.oldest]
            responses = self._converter.responses(self._store.take(here))
            if len(here) < len(chunk):
                await self._send_overwritten(sink, len(chunk) - len(here), int(chunk[0]))
            await sink.send(self._mask.apply(responses) if self._mask else responses)
            await asyncio.sleep(0)

    def _in_time(self, gap: LossRow) -> bool:
        return (self._since is None or gap.last >= self._since) and (
            self._until is None or gap.first <= self._until
        )


class FlowMask:
    """Keeps only the fields of a flow that a client wants."""

    def __init__(self, mask: field_mask_pb2.FieldMask) -> None:
        """Raises RpcError for a path that is none."""
        for path in mask.paths:
            if not field_mask_pb2.FieldMask(paths=[path]).IsValidForDescriptor(flow_pb2.Flow.DESCRIPTOR):
                raise RpcError(Code.INVALID_ARGUMENT, f"the field mask names {path!r}, which no flow has")
        self._mask = mask

    def apply(self, responses: list[bytes]) -> list[bytes]:
        """The responses with their flows cut down."""
        return [self._cut(response) for response in responses]

    def _cut(self, data: bytes) -> bytes:
        response = observer_pb2.GetFlowsResponse.FromString(data)
        flow = flow_pb2.Flow()
        self._mask.MergeMessage(response.flow, flow)
        response.flow.CopyFrom(flow)
        return response.SerializeToString()


def parse(message: M, data: bytes) -> M:
    """Read a request into `message`; a malformed one ends the call."""
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise RpcError(Code.INVALID_ARGUMENT, "the request is not a valid message of its type") from None
    return message


def nanoseconds(moment: timestamp_pb2.Timestamp) -> int:
    """Since the Unix epoch."""
    return moment.seconds * encode.NANOSECONDS + moment.nanos
