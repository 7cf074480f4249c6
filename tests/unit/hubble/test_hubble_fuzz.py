"""Whatever is sent, the server answers or hangs up, and serves the next one; nothing fails inside of it."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.hubble.agent_events import EndpointChanged, EventLog, EventStream
from cilia.hubble.client import Client
from cilia.hubble.health import Health
from cilia.hubble.peer import Peer, Peers
from cilia.hubble.rpc.limits import ServerLimits
from cilia.hubble.rpc.messages import RpcError, frame
from cilia.hubble.rpc.reflection import METHODS, Reflection
from cilia.hubble.rpc.server import Server
from cilia.kit.tls import ServerTls
from cilia.proto.flow.flow_pb2 import EventTypeFilter, FlowFilter
from cilia.proto.observer.observer_pb2 import DESCRIPTOR, GetFlowsRequest
from tests.support.hubble import WALL, Beside, beside, flow
from tests.support.hubble_raw import GET_FLOWS, STATUS, path
from tests.support.hubble_tls import Authority
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
AGENT = "/observer.Observer/GetAgentEvents"
UNARY = ("ServerStatus", "GetNodes", "GetNamespaces")


class Target:
    """A server with everything an agent serves."""

    def __init__(self, running: Beside, path: Path) -> None:
        self.running = running
        self.path = path
        log = EventLog()
        log.append(EndpointChanged(id=1), WALL)
        observer = running.observer.methods()
        methods = {
            **observer,
            **EventStream(AGENT, log, "n", running.clock).methods(),
            **Peers([Peer("a", "b")]).methods(),
            **Health([]).methods(),
            **Reflection([DESCRIPTOR]).methods(),
        }
        self.server = Server(methods, ServerLimits(patience=2.0))
        running.run(self.server.listen_unix(path))

    def alive(self) -> None:
        with Client(str(self.path)) as client:
            assert client.server_status().num_flows == 50

    def throw(self, data: bytes) -> None:
        """Send bytes, hang up, and see that others are served."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.path))
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
            except ConnectionError:
                pass
        self.alive()

    def ask(self, method: str, data: bytes) -> None:
        """Call a method; it must end, and not by a failure inside of the server."""
        with Client(str(self.path)) as client:
            try:
                for _ in client.stream(method, data, timeout=0.05):
                    pass
            except RpcError as error:
                assert "its log says why" not in error.sentence
        self.alive()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("fuzz")
    with beside(directory / "hubble.sock") as running:
        running.append(*(flow(number) for number in range(50)))
        target = Target(running, directory / "target.sock")
        yield target
        assert not running.call(lambda: target.server.calls)
        running.run(target.server.close())


frames = st.builds(
    lambda kind, flags, stream, payload: (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    ),
    st.integers(0, 10),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 7, (1 << 31) - 1, (1 << 32) - 1]),
    st.one_of(st.binary(max_size=64), st.sampled_from([b"", b"\0" * 4, b"\0\0\0\1", b"\x7f\xff\xff\xff"])),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(frames, max_size=12))
def test_any_frames(target: Target, sent: list[bytes]) -> None:
    target.throw(PREFACE + SETTINGS + b"".join(sent))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_decent_conversation_with_bytes_changed(target: Target, data: st.DataObject) -> None:
    """Bytes that a client really sends, damaged at some places."""
    sent = bytearray(recorded())
    for _ in range(data.draw(st.integers(1, 8))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    target.throw(bytes(sent[: data.draw(st.integers(0, len(sent)))]))


def recorded() -> bytes:
    """What a client sends for three calls."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    wanted = GetFlowsRequest(number=3).SerializeToString()
    for method, request in ((GET_FLOWS, wanted), (STATUS, b""), (METHODS[0], b"\x3a\x01*")):
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, path(method))
        client.send_data(stream, frame([request]), end_stream=True)
    sent: bytes = client.data_to_send()
    return sent


texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["demo/", "10.0.0.0/8", "::/0", "*", "**", "a.b.*", "k8s:app in (a,b)", "!x", "8080", "tcp"]
    ),
)
times = st.builds(
    lambda seconds, nanos: Timestamp(seconds=seconds, nanos=nanos),
    st.sampled_from([0, -1, 1 << 40, -(1 << 40), (1 << 63) - 1, -(1 << 63), 253402300799, WALL // 10**9]),
    st.integers(-(1 << 31), (1 << 31) - 1),
)
WINDOW: dict[str, Any] = {
    "number": st.integers(0, (1 << 64) - 1),
    "first": st.booleans(),
    "follow": st.booleans(),
    "since": st.none() | times,
    "until": st.none() | times,
}
"""Fields that requests for flows and for events have in common."""


@st.composite
def filters(draw: st.DrawFn) -> FlowFilter:
    """A filter with some fields set to something."""
    made = FlowFilter()
    fields = draw(st.lists(st.sampled_from(list(FlowFilter.DESCRIPTOR.fields)), max_size=4))
    for field in fields:
        if field.name == "event_type":
            kind, sub = draw(st.integers(-(1 << 31), (1 << 31) - 1)), draw(st.integers(-5, 300))
            made.event_type.append(
                EventTypeFilter(type=kind, match_sub_type=draw(st.booleans()), sub_type=sub)
            )
        elif field.type == field.TYPE_STRING:
            getattr(made, field.name).extend(draw(st.lists(texts, max_size=3)))
        elif field.type == field.TYPE_ENUM:
            numbers = st.integers(-(1 << 31), (1 << 31) - 1)
            getattr(made, field.name).extend(draw(st.lists(numbers, max_size=3)))
        elif field.type == field.TYPE_BOOL:
            getattr(made, field.name).extend(draw(st.lists(st.booleans(), max_size=3)))
        elif field.name == "experimental":
            made.experimental.cel_expression.extend(draw(st.lists(texts, max_size=2)))
    return made


@settings(max_examples=80, deadline=None)
@given(
    st.builds(
        GetFlowsRequest,
        whitelist=st.lists(filters(), max_size=3),
        blacklist=st.lists(filters(), max_size=3),
        **WINDOW,
    )
)
def test_any_request_for_flows(target: Target, request: GetFlowsRequest) -> None:
    target.ask("/observer.Observer/GetFlows", request.SerializeToString())


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        [*(f"/observer.Observer/{name}" for name in UNARY), AGENT, "/peer.Peer/Notify", *METHODS,
         "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/observer.Observer/GetFlows"]
    ),
    st.binary(max_size=60),
)  # fmt: skip
def test_any_bytes_to_any_method(target: Target, method: str, data: bytes) -> None:
    target.ask(method, data)


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        GetFlowsRequest,
        **WINDOW,
    )
)
def test_any_request_for_agent_events(target: Target, request: GetFlowsRequest) -> None:
    wanted = request.SerializeToString()
    # `follow` is field 3 there and field 2 here.
    target.ask(AGENT, wanted.replace(b"\x18\x01", b"\x10\x01"))


def test_any_bytes_instead_of_a_handshake(target: Target, tmp_path: Path) -> None:
    authority = Authority()
    tls = ServerTls(authority.write(tmp_path, authority.server()))
    server = Server(dict(target.running.observer.methods()), ServerLimits(patience=0.3))
    port = target.running.run(server.listen_tcp("127.0.0.1", 0, tls))
    rng = random.Random(7)
    try:
        for _ in range(60):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.settimeout(30)
                head = rng.choice([b"", b"\x16\x03\x01\x02\x00\x01", b"\x17\x03\x03\x00\x20"])
                try:
                    connection.sendall(head + rng.randbytes(rng.randrange(600)))
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass
                except ConnectionError:
                    pass
        until(lambda: server.refused_handshakes == 60, "every refusal to be counted")
        assert server.clients == 0
    finally:
        target.running.run(server.close())
