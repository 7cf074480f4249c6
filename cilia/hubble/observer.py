"""observer.Observer: what clients ask of this node's flows.

Requests are read and refused here, and what is small is answered; flows are the matter of `answer`.
"""

from __future__ import annotations

from time import thread_time
from typing import TypeVar

import msgspec
from google.protobuf.message import DecodeError, Message

from cilia.hubble import encode
from cilia.hubble.answer import Answer, Tools
from cilia.hubble.beside import Beside
from cilia.hubble.convert import Converter, NodeFacts
from cilia.hubble.cuts import Cuts
from cilia.hubble.filter_values import FilterError, UnsupportedFilter
from cilia.hubble.filters import FlowMatcher
from cilia.hubble.masks import FlowMask
from cilia.hubble.past import Meanings, Past
from cilia.hubble.predicates import Context
from cilia.hubble.request_limits import check, check_size
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.hubble.rpc.rounds import Gate
from cilia.hubble.rpc.server import BlockSink, Methods, Sink
from cilia.hubble.status import completeness
from cilia.hubble.store import FlowStore
from cilia.hubble.turns import Turn
from cilia.kit.clock import Clock
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2

NAMESPACE_WINDOW = 3600 * encode.NANOSECONDS
LARGE_REQUEST = 4096
"""Bytes from which on a request is read, and its filters compiled, beside the event loop: that of a thousand
filters takes many milliseconds."""

M = TypeVar("M", bound=Message)


class ObserverSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the observer tells about its node."""

    version: str
    address: str = ""
    """Where other nodes reach this observer; empty when they can't."""
    tls_name: str = ""
    """Server name in its certificate; empty without TLS."""
    lost_events_interval: float = 1.0
    """Seconds between two notes about lost events to one follower; what happens in between is added up."""


class Observer:
    """The handlers of the service; `methods()` is for the server."""

    def __init__(self, store: FlowStore, node: NodeFacts, settings: ObserverSettings, clock: Clock) -> None:
        self._store = store
        self._node = node
        self._settings = settings
        self._clock = clock
        self._started = clock.monotonic()
        self._converter = Converter(store, node)
        self._gate = Gate()
        self.beside = Beside("filters")
        """Reads and compiles what is large."""
        self.past: Past | None = None
        """Who keeps flows that are older than the ring; set before the first call."""

    def methods(self) -> Methods:
        """By path, for `rpc.server.Server`."""
        return {
            "/observer.Observer/GetFlows": self.get_flows,
            "/observer.Observer/ServerStatus": self.server_status,
            "/observer.Observer/GetNodes": self.get_nodes,
            "/observer.Observer/GetNamespaces": self.get_namespaces,
        }

    # -- flows --------------------------------------------------------------------------------------------

    async def get_flows(self, data: bytes, sink: BlockSink) -> None:
        """Stream flows and gaps."""
        check_size(data)
        request = read(data) if len(data) < LARGE_REQUEST else await self.beside.run(read, data)
        if request.first and request.follow:
            raise RpcError(Code.INVALID_ARGUMENT, "first and follow exclude each other: leave one out")
        tools = Tools(self._store, self.past, self._settings.lost_events_interval, self._gate)
        reading = Reading(self, request)
        await reading.prepare()
        await Answer(tools, self, reading, request, sink).send()

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
        await sink.send([status.SerializeToString() + completeness(self._store).extension()])

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

    def now(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return int(self._clock.wall() * 1e9)

    def _uptime(self) -> int:
        return int((self._clock.monotonic() - self._started) * 1e9)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return self._clock.monotonic()

    def spent(self) -> float:
        """Seconds this thread has worked."""
        return thread_time()

    @property
    def store(self) -> FlowStore:
        """The flows in memory."""
        return self._store

    @property
    def node(self) -> NodeFacts:
        """What every answer says about this node."""
        return self._node

    def converter(self, meanings: Meanings) -> Converter:
        """Rows to messages. The store's fragments serve all clients."""
        return self._converter if meanings is self._store else Converter(meanings, self._node)


class Reading:
    """A request as it is to be read: its filters and its field mask."""

    def __init__(self, observer: Observer, request: observer_pb2.GetFlowsRequest) -> None:
        """Raises RpcError for a mask that names what no flow has."""
        self._observer = observer
        self._request = request
        self._matcher: FlowMatcher | None = None
        self.turn = Turn(observer.monotonic)
        try:
            paths = request.field_mask.paths
            self.cuts = Cuts(FlowMask(paths)) if paths else None
        except FilterError as error:
            raise RpcError(Code.INVALID_ARGUMENT, str(error)) from None

    async def prepare(self) -> None:
        """Compile the filters for the store. Raises RpcError."""
        # The first expression loads its library.
        filters = (*self._request.whitelist, *self._request.blacklist)
        expressions = any(each.HasField("experimental") for each in filters)
        if self._request.ByteSize() < LARGE_REQUEST and not expressions:
            self._matcher = self._compile(self._observer.store, self.turn)
        else:
            self._matcher = await self._observer.beside.run(self._compile, self._observer.store, self.turn)

    def matcher(self, meanings: Meanings) -> FlowMatcher:
        """The filters over the store or a file."""
        if meanings is self._observer.store and self._matcher is not None:
            return self._matcher
        return self._compile(meanings, None)

    def _compile(self, meanings: Meanings, turn: Turn | None) -> FlowMatcher:
        """One that can't be compiled ends the call with its sentence."""
        context = Context(meanings, self._observer.node, turn)
        try:
            return FlowMatcher(context, self._request.whitelist, self._request.blacklist)
        except FilterError as error:
            raise RpcError(Code.INVALID_ARGUMENT, str(error)) from None
        except UnsupportedFilter as error:
            raise RpcError(Code.UNIMPLEMENTED, str(error)) from None

    def converter(self, meanings: Meanings) -> Converter:
        """Rows to messages."""
        return self._observer.converter(meanings)


def read(data: bytes) -> observer_pb2.GetFlowsRequest:
    """A request for flows. Raises RpcError for one that is malformed, or asks too much."""
    request = parse(observer_pb2.GetFlowsRequest(), data)
    check(request)
    return request


def parse(message: M, data: bytes) -> M:
    """Read a request into `message`; a malformed one ends the call."""
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise RpcError(Code.INVALID_ARGUMENT, "the request is not a valid message of its type") from None
    return message
