"""The server and client among themselves, and a server among strangers."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.hubble.client import Client
from cilia.hubble.health import Health
from cilia.hubble.peer import Peer, Peers
from cilia.hubble.rpc import messages
from cilia.hubble.rpc.channel import Channel
from cilia.hubble.rpc.limits import ServerLimits
from cilia.hubble.rpc.messages import Code, FramingError, RpcError, Unframer
from cilia.hubble.rpc.server import Server, Sink
from cilia.hubble.rpc.targets import host_and_port, is_local, socket_path
from cilia.hubble.store import LossSource
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.peer import peer_pb2
from tests.support.hubble import Beside, beside, events, flow
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(1, 20))
def test_messages_survive_any_cut(sent: list[bytes], size: int) -> None:
    unframer, received = Unframer(), []
    data = messages.frame(sent)
    for start in range(0, len(data), size):
        received += unframer.feed(data[start : start + size])
    assert received == sent
    assert not unframer.pending


@pytest.mark.parametrize("data", [b"\1\0\0\0\0", b"\0\xff\xff\xff\xff"])
def test_compressed_and_huge_messages_are_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        Unframer().feed(data)


def test_timeouts() -> None:
    assert messages.parse_timeout("250m") == 0.25
    assert messages.parse_timeout("2H") == 7200
    assert messages.parse_timeout(messages.format_timeout(1.5)) == 1.5
    with pytest.raises(FramingError):
        messages.parse_timeout("soon")


def test_a_sentence_survives_the_trailers() -> None:
    sentence = "100 % of ünïcode\nand lines"
    error = messages.status_of(dict(messages.trailers(Code.NOT_FOUND, sentence)))
    assert error is not None
    assert (error.code, error.sentence) == (Code.NOT_FOUND, sentence)


def test_targets() -> None:
    assert host_and_port("relay:80") == ("relay", 80)
    assert host_and_port("relay") == ("relay", 4244)
    assert host_and_port("[fd00::1]:80") == ("fd00::1", 80)
    assert host_and_port("[fd00::1]") == host_and_port("fd00::1") == ("fd00::1", 4244)
    for wrong in ("relay:http", "relay:65536", "relay:-1"):
        with pytest.raises(ValueError, match="not a port"):
            host_and_port(wrong)
    assert [socket_path(text) for text in ("unix:///a/b", "unix:/a/b", "/a/b")] == ["/a/b"] * 3
    assert is_local("unix:///a") and not is_local("relay:80")


def test_our_client_asks_our_server(running: Beside) -> None:
    running.append(*(flow(number) for number in range(1000)))
    with Client(f"unix://{running.path}") as client:
        found = list(client.get_flows(observer_pb2.GetFlowsRequest()))
        assert [response.flow.l4.TCP.source_port - 10_000 for response in found] == list(range(1000))
        assert client.server_status().seen_flows == 1000
        assert client.get_nodes().nodes[0].name == "default/worker-1"
        assert client.get_namespaces().namespaces[0].namespace == "demo"
        with pytest.raises(RpcError) as error:
            client.unary("/observer.Observer/GetDebugEvents", b"")
        assert error.value.code == Code.UNIMPLEMENTED
        with pytest.raises(RpcError) as error:
            client.unary("/no.Such/Method", b"")
        assert "/no.Such/Method" in error.value.sentence
        with pytest.raises(RpcError) as error:
            client.unary("/observer.Observer/GetFlows", b"\xff\xff")
        assert error.value.code == Code.INVALID_ARGUMENT


def test_requests_larger_than_a_window_come_through(tmp_path: Path) -> None:
    async def measure(data: bytes, call: Sink) -> None:
        await call.send([str(len(data)).encode()])

    async def ask() -> tuple[list[bytes], dict[int, bytes]]:
        server = Server({"/test/Measure": measure})
        await server.listen_unix(tmp_path / "sock")
        channel = await Channel.open(f"unix:{tmp_path / 'sock'}")
        try:
            sizes = (0, 20_000, 300_000, 900_000)
            asked = [channel.unary("/test/Measure", bytes(size), timeout=10) for size in sizes]
            return list(await asyncio.gather(*asked)), channel._unsent
        finally:
            channel.close()
            await server.close()

    assert asyncio.run(ask()) == ([b"0", b"20000", b"300000", b"900000"], {})


def test_a_request_that_is_refused_leaves_no_call_behind(tmp_path: Path) -> None:
    async def ask() -> tuple[Code, str, int]:
        server = Server({}, ServerLimits(request=1000, streams=2))
        await server.listen_unix(tmp_path / "sock")
        channel = await Channel.open(f"unix:{tmp_path / 'sock'}")
        try:
            for _ in range(10):
                with pytest.raises(RpcError) as refused:
                    await channel.unary("/test/Nothing", bytes(200_000), timeout=10)
            return refused.value.code, refused.value.sentence, len(channel._unsent)
        finally:
            channel.close()
            await server.close()

    assert asyncio.run(ask()) == (Code.UNIMPLEMENTED, "there is no method /test/Nothing here", 0)


def test_nobody_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RpcError, match="is the agent running"):
        Client(str(tmp_path / "none.sock"))


def test_a_slow_follower_is_told_what_it_missed(tmp_path: Path) -> None:
    """It holds no more than a chunk on the server, and every flow is either seen or counted."""
    path = tmp_path / "real.sock"
    with beside(path, real_time=True) as running, Client(f"unix://{path}") as client:
        stream = client.get_flows(observer_pb2.GetFlowsRequest(follow=True))
        seen: list[observer_pb2.GetFlowsResponse] = []

        def first() -> None:
            seen.append(next(stream))

        reader = threading.Thread(target=first)
        reader.start()
        while not running.call(lambda: len(running.store.listeners)):
            pass
        batch, total = events(*(flow(0) for _ in range(500))), 30_000
        for _ in range(0, total, 500):
            running.call(lambda: running.store.append([batch]))
        reader.join(60)
        counted = 1
        while counted < total:
            response = next(stream)
            counted += response.lost_events.num_events_lost if response.HasField("lost_events") else 1
            seen.append(response)
        assert counted == total
        gaps = [response for response in seen if response.HasField("lost_events")]
        assert gaps
        assert gaps[0].lost_events.source == flow_pb2.HUBBLE_RING_BUFFER
        lost = sum(gap.lost_events.num_events_lost for gap in gaps)
        assert running.call(lambda: running.store.metrics.lost[LossSource.HUBBLE_RING_BUFFER]) == lost


def connect(running: Beside) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(running.path))
    connection.settimeout(30)
    return connection


def drain(connection: socket.socket) -> bytes:
    """Everything until the server closes (or says nothing for a while)."""
    received = b""
    connection.settimeout(0.05)
    try:
        while data := connection.recv(65536):
            received += data
    except OSError:
        pass
    return received


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    with beside(tmp_path_factory.mktemp("hubble") / "hubble.sock") as running:
        running.append(flow(0))
        yield running


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_garbage_ends_that_connection_only(shared: Beside, garbage: bytes, preface: bool) -> None:
    with connect(shared) as connection:
        try:
            connection.sendall((PREFACE if preface else b"") + garbage)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        drain(connection)
    with Client(f"unix://{shared.path}") as client:
        assert client.server_status().num_flows == 1


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=60))
def test_garbage_requests_get_a_status(shared: Beside, garbage: bytes) -> None:
    with Client(f"unix://{shared.path}") as client:
        try:
            client.unary("/observer.Observer/GetFlows", garbage, timeout=0.2)
        except RpcError as error:
            assert error.code in (
                Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.INTERNAL, Code.DEADLINE_EXCEEDED
            )  # fmt: skip
            assert "its log says why" not in error.sentence


def raw_client() -> h2.connection.H2Connection:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    return connection


HEADERS = [
    (":method", "POST"), (":scheme", "http"), (":path", "/observer.Observer/ServerStatus"),
    (":authority", "x"), ("content-type", "application/grpc"), ("te", "trailers"),
]  # fmt: skip


def test_huge_headers_end_that_connection_only(shared: Beside) -> None:
    state = raw_client()
    state.send_headers(1, [*HEADERS, *((f"x-{number}", "y" * 4000) for number in range(40))])
    with connect(shared) as connection:
        try:
            connection.sendall(state.data_to_send())
        except OSError:
            pass
        drain(connection)
    with Client(f"unix://{shared.path}") as client:
        assert client.server_status().num_flows == 1


def test_a_flood_of_cancelled_calls_is_cut_off(shared: Beside) -> None:
    state = raw_client()
    with connect(shared) as connection, pytest.raises(OSError):
        for _ in range(5000):
            stream_id = state.get_next_available_stream_id()
            state.send_headers(stream_id, HEADERS)
            state.reset_stream(stream_id)
            connection.sendall(state.data_to_send())
        for _ in range(1000):
            connection.sendall(state.data_to_send() or PREFACE)
            if not connection.recv(65536):
                raise ConnectionResetError
    with Client(f"unix://{shared.path}") as client:
        assert client.server_status().num_flows == 1


def test_what_is_no_grpc_gets_an_http_status(shared: Beside) -> None:
    state = raw_client()
    state.send_headers(
        1, [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")], True
    )
    with connect(shared) as connection:
        connection.sendall(state.data_to_send())
        answers: list[h2.events.ResponseReceived] = []
        while not answers:
            found = state.receive_data(connection.recv(65536))
            answers += [event for event in found if isinstance(event, h2.events.ResponseReceived)]
    assert dict(answers[0].headers)[b":status"] == b"415"


def test_a_client_that_leaves_is_no_garbage(shared: Beside) -> None:
    """Collections come seldom: what waits for one stays for hours."""
    kept: list[weakref.ref[object]] = []

    def look() -> None:
        for connection in shared.server._connections:
            kept.extend((weakref.ref(connection), weakref.ref(connection._h2)))

    shared.call(gc.disable)
    try:
        with grpc.insecure_channel(shared.target) as channel:
            status = channel.unary_unary("/observer.Observer/ServerStatus", bytes, bytes)
            follow = channel.unary_stream("/observer.Observer/GetFlows", bytes, bytes)
            assert status(b"", timeout=30)
            request = observer_pb2.GetFlowsRequest(follow=True, number=1).SerializeToString()
            flows = follow(request, timeout=60)
            assert next(flows)
            shared.call(look)
        until(lambda: not shared.call(lambda: shared.server.clients or shared.server.calls), "the leaving")
        assert kept
        until(lambda: not any(each() for each in kept), "connections to go without a collection", patience=5)
    finally:
        shared.call(gc.enable)


def test_a_socket_nobody_serves_is_replaced_and_a_served_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "hubble.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()

    async def story() -> None:
        first, second = Server({}), Server({})
        await first.listen_unix(path)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(FileExistsError, match="serves"):
            await second.listen_unix(path)
        await first.close()
        assert not path.exists()
        path.write_text("not a socket")
        with pytest.raises(FileExistsError, match="no socket"):
            await second.listen_unix(path)

    asyncio.run(story())


def test_tcp_peers_and_health_for_an_independent_client(tmp_path: Path) -> None:
    with beside(tmp_path / "hubble.sock") as running:
        peers = Peers([Peer("default/a", "192.0.2.1:4244")])
        server = Server({**peers.methods(), **Health(["observer.Observer"]).methods()})
        port = running.run(server.listen_tcp("127.0.0.1", 0))
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
            assert check(b"", timeout=30) == b"\x08\x01"
            with pytest.raises(grpc.RpcError) as error:
                check(b"\x0a\x01x", timeout=30)
            assert error.value.code() == grpc.StatusCode.NOT_FOUND
            notify = channel.unary_stream("/peer.Peer/Notify", bytes, peer_pb2.ChangeNotification.FromString)
            stream = notify(b"", timeout=60)
            assert next(stream).type == peer_pb2.PEER_ADDED
            moved = Peer("default/a", "192.0.2.9:4244", "a.hubble")
            running.call(lambda: peers.update([moved, Peer("default/b", "192.0.2.2:4244")]))
            changed, added = next(stream), next(stream)
            assert (changed.type, changed.tls.server_name) == (peer_pb2.PEER_UPDATED, "a.hubble")
            assert (added.type, added.name) == (peer_pb2.PEER_ADDED, "default/b")
            running.call(lambda: peers.update([moved]))
            gone = next(stream)
            assert (gone.type, gone.name) == (peer_pb2.PEER_DELETED, "default/b")
            stream.cancel()
        running.run(server.close())
