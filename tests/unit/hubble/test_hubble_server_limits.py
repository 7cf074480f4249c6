"""What clients may take of a server, and what it costs the others when one takes too much: nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import h2.events
import h2.settings
import pytest

from cilia.hubble.client import Client
from cilia.hubble.rpc.limits import ServerLimits
from cilia.hubble.rpc.messages import frame
from cilia.hubble.rpc.reflection import METHODS, Reflection
from cilia.hubble.rpc.rounds import Gate
from cilia.hubble.rpc.server import Server
from cilia.proto.observer import observer_pb2
from cilia.proto.observer.observer_pb2 import GetFlowsRequest, GetFlowsResponse
from tests.support.hubble import Beside, beside, flow
from tests.support.hubble_raw import GET_FLOWS, STATUS, Raw
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

EXHAUSTED, INVALID, DEADLINE, UNIMPLEMENTED = "8", "3", "4", "12"
FOLLOW = GetFlowsRequest(follow=True).SerializeToString()

Serve = Callable[..., Path]


class Served:
    """An observer with 1,000 flows behind a server with bounds of its own."""

    def __init__(self, running: Beside, path: Path) -> None:
        self.running = running
        self.path = path
        self.servers: list[Server] = []

    def __call__(self, **limits: float) -> Server:
        methods = {
            **self.running.observer.methods(),
            **Reflection([observer_pb2.DESCRIPTOR]).methods(),
        }
        server = Server(methods, ServerLimits(**limits))  # type: ignore[arg-type]
        self.running.run(server.listen_unix(self.path))
        self.servers.append(server)
        return server

    def raw(self, **choices: int) -> Raw:
        return Raw(self.path, **choices)  # type: ignore[arg-type]

    def alive(self) -> None:
        """Somebody decent is served."""
        with Client(str(self.path)) as client:
            assert client.server_status().num_flows == 1000


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Served]:
    with beside(tmp_path / "hubble.sock") as running:
        running.append(*(flow(number) for number in range(1000)))
        served = Served(running, tmp_path / "limited.sock")
        try:
            yield served
        finally:
            for server in served.servers:
                running.run(server.close())


def test_an_idle_client_gives_way_to_a_new_one(serve: Served) -> None:
    serve(connections=2)
    with serve.raw() as idle, serve.raw() as busy:
        assert idle.status(idle.ask(STATUS))[0] == "0"
        busy.ask(GET_FLOWS, FOLLOW)
        until(lambda: serve.running.call(lambda: len(serve.running.store.listeners)), "a follower")
        serve.alive()
        goodbye = idle.until(h2.events.ConnectionTerminated)
        assert b"others need the place" in goodbye.additional_data


def test_when_all_are_busy_a_new_client_is_told_so(serve: Served) -> None:
    server = serve(connections=2)
    with serve.raw() as one, serve.raw() as two:
        for busy in (one, two):
            busy.ask(GET_FLOWS, FOLLOW)
        until(lambda: serve.running.call(lambda: server.calls) == 2, "two calls")
        with serve.raw() as three:
            three.ask(STATUS)
            goodbye = three.until(h2.events.ConnectionTerminated)
            assert b"2 clients are connected" in goodbye.additional_data
            while not three.closed:
                three.read()
        assert server.clients == 2
    until(lambda: serve.running.call(lambda: server.clients) == 0, "their leaving")
    serve.alive()


def test_calls_are_bounded_over_all_connections(serve: Served) -> None:
    server = serve(calls=3)
    with serve.raw() as one, serve.raw() as two:
        for client in (one, one, two):
            client.ask(GET_FLOWS, FOLLOW)
        until(lambda: serve.running.call(lambda: server.calls) == 3, "three calls")
        code, sentence = two.status(two.ask(STATUS))
        assert code == EXHAUSTED and "3 calls run here already" in sentence
    until(lambda: serve.running.call(lambda: server.calls) == 0, "their end")
    serve.alive()


def keep_busy(gate: Gate, turns: int) -> None:
    """Let so many wait before all who come later."""
    for _ in range(turns):
        gate.add(lambda: True)


def test_calls_of_clients_who_left_count_until_they_have_ended(serve: Served) -> None:
    server = serve()
    followers = serve.running.store.listeners
    with serve.raw() as client:
        for _ in range(3):
            client.ask(GET_FLOWS, FOLLOW)
        until(lambda: serve.running.call(lambda: len(followers)) == 3, "three followers")
        serve.running.call(lambda: keep_busy(server.gate, 30_000))
    counts: list[tuple[int, int]] = []

    def left() -> bool:
        counts.append(serve.running.call(lambda: (server.calls, len(followers))))
        return serve.running.call(lambda: server.clients) == 0

    until(left, "its leaving")
    until(lambda: left() and counts[-1] == (0, 0), "the end of its calls")
    assert all(calls >= following for calls, following in counts), counts


def test_a_large_request_is_refused(serve: Served) -> None:
    serve(request=10_000)
    with grpc.insecure_channel(f"unix:{serve.path}") as channel:
        call = channel.unary_unary(STATUS, bytes, bytes)
        with pytest.raises(grpc.RpcError) as error:
            call(b"x" * 10_001, timeout=20)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than 10000" in error.value.details()
        assert call(b"", timeout=20)


def test_large_headers_are_refused(serve: Served) -> None:
    serve(headers=4096)
    with grpc.insecure_channel(f"unix:{serve.path}") as channel:
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(STATUS, bytes, bytes)(b"", timeout=20, metadata=[("x", "y" * 5000)])
        assert error.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    serve.alive()


def test_compressed_requests_are_refused_with_a_reason(serve: Served) -> None:
    serve()
    with grpc.insecure_channel(f"unix:{serve.path}", compression=grpc.Compression.Gzip) as channel:
        call = channel.unary_stream(GET_FLOWS, GetFlowsRequest.SerializeToString, bytes)
        with pytest.raises(grpc.RpcError) as error:
            list(call(GetFlowsRequest(field_mask={"paths": ["verdict"] * 200}), timeout=20))  # type: ignore[arg-type]
        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_request_that_does_not_come_is_given_up(serve: Served) -> None:
    server = serve(patience=0.2)
    with serve.raw() as client:
        nothing = client.begin(STATUS)
        half = client.begin(STATUS)
        client.h2.send_data(half, frame([b"x" * 100])[:50])
        client.flush()
        for stream in (nothing, half):
            code, sentence = client.status(stream)
            assert code == DEADLINE and "within 0.2 s" in sentence
        assert client.status(client.ask(STATUS))[0] == "0"
    until(lambda: serve.running.call(lambda: server.calls) == 0, "the calls to end")


def test_a_client_that_says_nothing_is_closed(serve: Served) -> None:
    serve(patience=0.2)
    with serve.raw(greet=False) as silent:
        assert silent.socket.recv(1000)
        while silent.socket.recv(1000):
            pass
    with serve.raw(greet=False) as slow:
        slow.socket.sendall(b"PRI * HTTP/2.0\r\n")
        while slow.socket.recv(1000):
            pass
    serve.alive()


def test_unfinished_requests_are_bounded_together(serve: Served) -> None:
    serve(unfinished=50_000)
    with serve.raw() as client:
        streams = [client.begin(STATUS) for _ in range(4)]
        for stream in streams:
            client.h2.send_data(stream, (frame([b"x" * 30_000]))[:16_000])
            client.flush()
        code, sentence = client.status(streams[-1])
        assert code == EXHAUSTED and "finish them first" in sentence
        for stream in streams[:-1]:
            client.h2.end_stream(stream)
        client.flush()
        assert [client.status(stream)[0] for stream in streams[:-1]] == ["13"] * 3
        assert client.status(client.ask(STATUS))[0] == "0"


def test_two_messages_in_a_call_that_takes_one(serve: Served) -> None:
    serve()
    with serve.raw() as client:
        stream = client.begin(STATUS)
        client.h2.send_data(stream, frame([b"", b""]))
        client.flush()
        assert client.status(stream) == ("13", "a call takes exactly one message")


def test_a_senseless_deadline_is_refused_and_a_long_one_is_not(serve: Served) -> None:
    serve()
    with serve.raw() as client:
        code, sentence = client.status(client.begin(STATUS, [("grpc-timeout", "soon")]))
        assert code == INVALID and "grpc-timeout" in sentence
        long = client.begin(STATUS, [("grpc-timeout", "99999999H")])
        client.h2.send_data(long, frame([b""]), end_stream=True)
        client.flush()
        assert client.status(long)[0] == "0"


def test_other_content_is_refused(serve: Served) -> None:
    serve()
    with serve.raw() as client:
        stream = client.h2.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", STATUS)]
        client.h2.send_headers(stream, [*headers, ("content-type", "application/grpc-web")], end_stream=True)
        client.flush()
        response = client.until(h2.events.ResponseReceived)
        assert dict(response.headers)[":status"] == "415"


def test_a_few_cancelled_calls_a_second_are_no_flood(serve: Served) -> None:
    serve(cancels=5, forgiven=1000.0)
    with serve.raw() as client:
        for _ in range(50):
            client.h2.reset_stream(client.ask(GET_FLOWS, FOLLOW))
            client.flush()
            client.status(client.ask(STATUS))
        assert not client.closed


def test_more_questions_than_answers_are_read(serve: Served) -> None:
    server = serve(waiting=4)
    with serve.raw() as client:
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        stream = client.begin(METHODS[0])
        client.h2.send_data(stream, frame([b""] * 10))
        client.flush()
        code, sentence = client.status(stream)
        assert code == EXHAUSTED and "read answers" in sentence
    until(lambda: serve.running.call(lambda: server.calls) == 0, "the call to end")


# -- windows ------------------------------------------------------------


def numbers(messages: list[bytes]) -> list[int]:
    flows = (GetFlowsResponse.FromString(message).flow for message in messages)
    return [flow.l4.TCP.source_port - 10_000 for flow in flows]


def test_a_window_of_nothing_then_of_some_bytes(serve: Served) -> None:
    serve()
    with serve.raw() as client:
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        stream = client.ask(GET_FLOWS, GetFlowsRequest(number=20).SerializeToString())
        client.until(h2.events.ResponseReceived, stream)
        assert client.messages(stream) == []
        for size in (1, 1, 2, 3, 5, 8, 1000):
            client.h2.increment_flow_control_window(size, stream)
            client.flush()
            client.read()

        def got() -> int:
            datas = [event.data for event in client.seen if isinstance(event, h2.events.DataReceived)]
            return sum(len(data or b"") for data in datas)

        while got() < 1020:
            client.read()
        assert got() == 1020
        client.h2.increment_flow_control_window(1 << 20, stream)
        client.flush()
        assert client.status(stream)[0] == "0"
        assert numbers(client.messages(stream)) == list(range(980, 1000))


def test_a_window_that_shrinks_below_what_was_sent(serve: Served) -> None:
    serve()
    with serve.raw() as client:
        stream = client.ask(GET_FLOWS, GetFlowsRequest().SerializeToString())
        client.until(h2.events.DataReceived, stream)
        # Less than what is on its way: the server's view of the window becomes negative.
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
        client.flush()
        client.until(h2.events.SettingsAcknowledged)
        client.h2.increment_flow_control_window(1 << 22)
        client.h2.increment_flow_control_window(1 << 22, stream)
        client.flush()
        assert client.status(stream)[0] == "0"
        assert numbers(client.messages(stream)) == list(range(1000))


def test_two_streams_share_the_window_of_their_connection(serve: Served) -> None:
    serve()
    with serve.raw() as client:
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 22})
        streams = [client.ask(GET_FLOWS, GetFlowsRequest().SerializeToString()) for _ in range(2)]
        # What is more than the connection's first window is an error of the client's h2.
        while sum(map(size_of, client.seen)) < 65_535:
            assert client.read()
        client.h2.increment_flow_control_window(1 << 22)
        client.flush()
        for stream in streams:
            assert client.status(stream)[0] == "0"
            assert numbers(client.messages(stream)) == list(range(1000))


def test_a_stream_has_a_window_of_its_own(serve: Served) -> None:
    serve()
    with serve.raw() as client:
        client.h2.increment_flow_control_window(1 << 22)
        stream = client.ask(GET_FLOWS, GetFlowsRequest().SerializeToString())
        while sum(map(size_of, client.seen)) < 65_535:
            assert client.read()
        client.h2.increment_flow_control_window(1 << 22, stream)
        client.flush()
        assert client.status(stream)[0] == "0"
        assert numbers(client.messages(stream)) == list(range(1000))


def size_of(event: h2.events.Event) -> int:
    """Bytes of a DATA frame."""
    return len(event.data or b"") if isinstance(event, h2.events.DataReceived) else 0


@pytest.mark.parametrize("size", [16_384, 100_000, (1 << 24) - 1])
def test_frames_of_any_size_that_a_client_takes(serve: Served, size: int) -> None:
    serve()
    with serve.raw() as client:
        client.h2.update_settings(
            {
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 22,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: size,
            }
        )
        client.h2.max_inbound_frame_size = size
        client.h2.increment_flow_control_window(1 << 22)
        stream = client.ask(GET_FLOWS, GetFlowsRequest().SerializeToString())
        assert client.status(stream)[0] == "0"
        assert numbers(client.messages(stream)) == list(range(1000))
        largest = max(
            len(event.data or b"") for event in client.seen if isinstance(event, h2.events.DataReceived)
        )
        assert largest <= size


def test_keepalive_pings_are_answered(serve: Served) -> None:
    serve()
    with serve.raw() as client:
        client.ask(GET_FLOWS, FOLLOW)
        for number in range(50):
            client.h2.ping(number.to_bytes(8, "big"))
            client.flush()
            answer = client.until(h2.events.PingAckReceived)
            client.seen.clear()
            assert answer.ping_data == number.to_bytes(8, "big")


def test_pings_without_reading_end_that_connection(serve: Served) -> None:
    server = serve(unread=10_000)
    with serve.raw(receive_buffer=4096) as client:
        client.socket.settimeout(0.5)
        client.flush()
        ping = b"\0\0\x08\x06\0\0\0\0\0" + b"x" * 8
        with pytest.raises(OSError):
            for _ in range(100_000):
                client.socket.sendall(ping * 100)
    until(lambda: serve.running.call(lambda: server.clients) == 0, "its end")
    serve.alive()


# -- the unix socket's group ------------------------------------------------------------

ASK = """
import os, sys
sys.path.insert(0, sys.argv[4])
from cilia.hubble.client import Client
group = int(sys.argv[2])
os.setgroups([group] if sys.argv[3] == "more" else [])
os.setgid(group if sys.argv[3] == "first" else 65534)
os.setuid(65534)
with Client(sys.argv[1]) as client:
    print(client.server_status().num_flows)
"""
GROUP = 54_321


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_members_of_the_group_are_served_and_nobody_else(serve: Served, tmp_path: Path) -> None:
    with ExitStack() as stack:
        directory = Path(f"/run/cilia-hubble-test-{os.getpid()}")
        directory.mkdir(mode=0o755)
        stack.callback(directory.rmdir)
        path = directory / "hubble.sock"
        server = Server(dict(serve.running.observer.methods()))
        serve.running.run(server.listen_unix(path, group=GROUP))
        stack.callback(lambda: serve.running.run(server.close()))
        assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o660, GROUP)

        def ask(group: int, how: str) -> str:
            command = [sys.executable, "-c", ASK, str(path), str(group), how, str(Path.cwd())]
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

        assert ask(GROUP, "more") == "1000"
        assert ask(GROUP, "first") == "1000"
        assert ask(GROUP + 1, "more") == ""
        # Even with the file's permission, only members are served.
        path.chmod(0o666)
        assert ask(GROUP + 1, "first") == ""


def test_a_socket_without_group_is_its_owners(serve: Served) -> None:
    serve()
    assert serve.path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(serve.path))
