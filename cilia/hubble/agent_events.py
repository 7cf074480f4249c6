"""What the agent did, for GetAgentEvents: a bounded log of it, and who reads it.

    agent's tables ─► (apps) ─► EventLog ─► EventStream ─► rpc.server

An event stays a small record until a client asks; only then it becomes protobuf. Addresses change by the
thousand where policies change by one, so they have a share of the log of their own and push nothing else out.
GetDebugEvents has the same reader and an empty log: the data path reports drops, verdicts and traces, which
are flows, and no steps in between.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import msgspec
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from cilia.hubble import encode
from cilia.hubble.request_limits import check_times
from cilia.hubble.rpc.calls import Methods, Sink
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.kit.clock import Clock
from cilia.proto.flow import flow_pb2
from cilia.proto.flow.flow_pb2 import AgentEvent
from cilia.proto.observer.observer_pb2 import GetAgentEventsRequest

CAPACITY = 4096
"""Events kept of each share."""
CHUNK = 256
"""Events encoded before others get their turn."""
NODE_NAME, TIME = 1000, 1001
"""Fields of GetAgentEventsResponse and GetDebugEventsResponse."""
EVENT = 1
"""In both: agent_event, debug_event."""


class Note(Protocol):
    """Something that happened."""

    def message(self) -> AgentEvent:
        """As clients get it."""
        ...


class Started(msgspec.Struct, frozen=True):
    """The agent has started."""

    wall: int
    """Nanoseconds since the Unix epoch."""

    def message(self) -> AgentEvent:
        notification = flow_pb2.TimeNotification(time=_timestamp(self.wall))
        return AgentEvent(type=flow_pb2.AGENT_STARTED, agent_start=notification)


class PolicyChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A policy came, changed or went."""

    labels: tuple[str, ...]
    revision: int
    """Of the node's policies, with this change."""
    rules: int
    """In that object; 0 when it is gone."""
    deleted: bool = False

    def message(self) -> AgentEvent:
        notification = flow_pb2.PolicyUpdateNotification(
            labels=self.labels, revision=self.revision, rule_count=self.rules
        )
        kind = flow_pb2.POLICY_DELETED if self.deleted else flow_pb2.POLICY_UPDATED
        return AgentEvent(type=kind, policy_update=notification)


class EndpointChanged(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint came or went."""

    id: int
    labels: tuple[str, ...] = ()
    namespace: str = ""
    pod: str = ""
    deleted: bool = False

    def message(self) -> AgentEvent:
        notification = flow_pb2.EndpointUpdateNotification(
            id=self.id, labels=self.labels, namespace=self.namespace, pod_name=self.pod
        )
        kind = flow_pb2.ENDPOINT_DELETED if self.deleted else flow_pb2.ENDPOINT_CREATED
        return AgentEvent(type=kind, endpoint_update=notification)


class EndpointRegenerated(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel enforces what is now meant for an endpoint, or can't."""

    id: int
    labels: tuple[str, ...] = ()
    error: str = ""

    def message(self) -> AgentEvent:
        notification = flow_pb2.EndpointRegenNotification(id=self.id, labels=self.labels, error=self.error)
        kind = flow_pb2.ENDPOINT_REGENERATE_FAILURE if self.error else flow_pb2.ENDPOINT_REGENERATE_SUCCESS
        return AgentEvent(type=kind, endpoint_regenerate=notification)


class AddressChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A prefix got an identity, another one, or none."""

    prefix: str
    identity: int
    old_identity: int | None = None
    host: str = ""
    """Underlay address of its node; empty: this node, or none."""
    old_host: str = ""
    namespace: str = ""
    pod: str = ""
    deleted: bool = False

    def message(self) -> AgentEvent:
        notification = flow_pb2.IPCacheNotification(
            cidr=self.prefix,
            identity=self.identity,
            host_ip=self.host,
            old_host_ip=self.old_host,
            namespace=self.namespace,
            pod_name=self.pod,
        )
        if self.old_identity is not None:
            notification.old_identity.value = self.old_identity
        kind = flow_pb2.IPCACHE_DELETED if self.deleted else flow_pb2.IPCACHE_UPSERTED
        return AgentEvent(type=kind, ipcache_update=notification)


class Entry(NamedTuple):
    """An event in the log."""

    number: int
    """Counts all events since the start."""
    wall: int
    """Nanoseconds since the Unix epoch."""
    note: Note


class EventLog:
    """The newest events, in order."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._events: deque[Entry] = deque(maxlen=capacity)
        self._addresses: deque[Entry] = deque(maxlen=capacity)
        self.head = 0
        """Number of the next event."""
        self.listeners: set[asyncio.Event] = set()

    def append(self, note: Note, wall: int) -> None:
        """Note what happened at `wall`, nanoseconds since the Unix epoch."""
        share = self._addresses if isinstance(note, AddressChanged) else self._events
        share.append(Entry(self.head, wall, note))
        self.head += 1
        for listener in self.listeners:
            listener.set()

    def since(self, number: int) -> list[Entry]:
        """Events from a number on that are still here, oldest first."""
        newest_first = heapq.merge(
            _newest(self._events, number), _newest(self._addresses, number), reverse=True, key=_number
        )
        return list(newest_first)[::-1]


class EventStream:
    """A method that streams a log."""

    def __init__(self, method: str, log: EventLog, node: str, clock: Clock) -> None:
        """`method`: path, with a request like GetAgentEventsRequest; `node`: `cluster/name`."""
        self._method = method
        self._log = log
        self._node = encode.text(NODE_NAME, node)
        self._clock = clock

    def methods(self) -> Methods:
        """By path, for `rpc.server.Server`."""
        return {self._method: self.stream}

    async def stream(self, data: bytes, sink: Sink) -> None:
        """Events that are there, then, if asked to follow, those that come."""
        request = _read(data)
        position = self._log.head
        chosen = [entry for entry in self._past(request) if _in_time(request, entry.wall)]
        if request.number and request.number < len(chosen):
            # As for flows: with `since` or `first` the count runs forward, else back from the newest.
            forward = (request.first or request.HasField("since")) and not request.follow
            chosen = chosen[: request.number] if forward else chosen[-request.number :]
        await self._send(sink, chosen)
        if request.follow:
            await self._follow(request, position, sink)

    def _past(self, request: GetAgentEventsRequest) -> list[Entry]:
        if request.follow and not request.number and not request.HasField("since"):
            return []
        return self._log.since(0)

    async def _follow(self, request: GetAgentEventsRequest, position: int, sink: Sink) -> None:
        """Until the client goes away or `until` has passed."""
        bell = asyncio.Event()
        self._log.listeners.add(bell)
        try:
            async with asyncio.timeout(self._left(request)):
                while True:
                    arrived, head = self._log.since(position), self._log.head
                    gone = head - position - len(arrived)
                    if gone:
                        await sink.send([self._response(self._now(), _lost(gone))])
                    await self._send(sink, [entry for entry in arrived if _in_time(request, entry.wall)])
                    position = head
                    if position == self._log.head:
                        bell.clear()
                        await bell.wait()
        except TimeoutError:
            return
        finally:
            self._log.listeners.discard(bell)

    def _left(self, request: GetAgentEventsRequest) -> float | None:
        """Seconds until `until`; None: for ever."""
        if not request.HasField("until"):
            return None
        return max(0.0, request.until.ToNanoseconds() / 1e9 - self._clock.wall())

    async def _send(self, sink: Sink, entries: list[Entry]) -> None:
        for start in range(0, len(entries), CHUNK):
            chunk = entries[start : start + CHUNK]
            await sink.send([self._response(entry.wall, entry.note.message()) for entry in chunk])
            await asyncio.sleep(0)

    def _response(self, wall: int, event: AgentEvent) -> bytes:
        time = encode.block(TIME, encode.timestamp(wall))
        return encode.block(EVENT, event.SerializeToString()) + self._node + time

    def _now(self) -> int:
        return int(self._clock.wall() * 1e9)


def _read(data: bytes) -> GetAgentEventsRequest:
    """The request of either method: both have the same fields. Raises RpcError."""
    try:
        request = GetAgentEventsRequest.FromString(data)
    except DecodeError:
        raise RpcError(Code.INVALID_ARGUMENT, "the request is not a valid message of its type") from None
    check_times(request)
    if request.first and request.follow:
        raise RpcError(Code.INVALID_ARGUMENT, "first and follow exclude each other: leave one out")
    return request


def _in_time(request: GetAgentEventsRequest, wall: int) -> bool:
    return (not request.HasField("since") or wall >= request.since.ToNanoseconds()) and (
        not request.HasField("until") or wall <= request.until.ToNanoseconds()
    )


def _newest(entries: deque[Entry], number: int) -> Iterator[Entry]:
    """Newest first, down to a number."""
    for entry in reversed(entries):
        if entry.number < number:
            return
        yield entry


def _number(entry: Entry) -> int:
    return entry.number


def _lost(count: int) -> AgentEvent:
    """What stands where a slow client missed events: the API has no other word for it."""
    sentence = f"{count} events were overwritten before this client read them"
    unknown = flow_pb2.AgentEventUnknown(type="lost", notification=sentence)
    return AgentEvent(type=flow_pb2.AGENT_EVENT_UNKNOWN, unknown=unknown)


def _timestamp(wall: int) -> Timestamp:
    return Timestamp(seconds=wall // encode.NANOSECONDS, nanos=wall % encode.NANOSECONDS)
