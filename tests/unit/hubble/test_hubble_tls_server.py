"""Hubble on TCP: whom it serves, whom it refuses, and certificates that change under it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from cilia.hubble.client import Client
from cilia.hubble.health import Health
from cilia.hubble.rpc.calls import Call
from cilia.hubble.rpc.limits import ServerLimits
from cilia.hubble.rpc.messages import RpcError
from cilia.hubble.rpc.server import Server
from cilia.kit.certificates import Issued
from cilia.kit.clock import ManualClock, SystemClock
from cilia.kit.tls import ClientTls, ServerTls, TlsFiles
from cilia.proto.observer import observer_pb2
from tests.support.grpc_client import get_flows
from tests.support.hubble import Beside, beside, flow
from tests.support.hubble_tls import CLIENT_NAME, SERVER_NAME, Authority
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

AUTHORITY = Authority()
OTHER = Authority("Other CA")


class World:
    """An observer with a door on TCP."""

    def __init__(self, beside: Beside, directory: Path, limits: ServerLimits) -> None:
        self.beside = beside
        self.directory = directory
        self.files = AUTHORITY.write(directory / "server", AUTHORITY.server())
        self.clock = ManualClock(wall=SystemClock().wall())
        self.tls = ServerTls(self.files, clock=self.clock)
        self.server = Server(
            {
                **beside.observer.methods(),
                **Health(["observer.Observer"]).methods(),
                "/test.Who/Asks": self._who,
            },
            limits,
        )
        self.port: int = beside.run(self.server.listen_tcp("127.0.0.1", 0, self.tls))

    async def _who(self, _data: bytes, call: Call) -> None:
        await call.send([f"{call.client} {call.peer.split(':')[0]} {call.headers['x-asks']}".encode()])

    def replace(self, authority: Authority, issued: Issued) -> None:
        """Put another certificate into the server's files, and let it look."""
        authority.write(self.directory / "server", issued)
        self.beside.call(lambda: self.clock.advance(5))

    def context(self, issued: Issued | None, authority: Authority = AUTHORITY) -> ssl.SSLContext:
        """A client's, for Python's ssl."""
        files = authority.write(self.directory / "client", issued or AUTHORITY.client())
        if issued is None:
            files = TlsFiles(None, None, files.authorities)
        return ClientTls(files, SERVER_NAME).context()

    def client(self, issued: Issued | None, authority: Authority = AUTHORITY) -> Client:
        return Client(
            f"tls://127.0.0.1:{self.port}", tls=self.context(issued, authority), server_name=SERVER_NAME
        )

    def refusal(self, issued: Issued | None, authority: Authority = AUTHORITY) -> str:
        """What the server's log says of a client that it refuses."""
        before = self.server.refused_handshakes
        with capture_logs() as logs:
            with pytest.raises(RpcError), self.client(issued, authority) as client:
                client.server_status()
            while self.server.refused_handshakes == before:
                pass
        (line,) = [line for line in logs if line["event"] == "a TLS client is refused"]
        assert line["client"].startswith("127.0.0.1:")
        return str(line["reason"])


@pytest.fixture
def limits() -> ServerLimits:
    return ServerLimits()


@pytest.fixture
def world(tmp_path: Path, limits: ServerLimits) -> Iterator[World]:
    with beside(tmp_path / "hubble.sock") as running:
        running.append(*(flow(number) for number in range(3)))
        world = World(running, tmp_path, limits)
        try:
            yield world
        finally:
            running.run(world.server.close())


def channel(world: World, issued: Issued | None, authority: Authority = AUTHORITY) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        authority.issued.certificate, issued.key if issued else None, issued.certificate if issued else None
    )
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    return grpc.secure_channel(f"127.0.0.1:{world.port}", credentials, options)


def flows(channel: grpc.Channel) -> list[Any]:
    return list(get_flows(channel, timeout=30))


def test_an_independent_client_with_a_certificate_is_served(world: World) -> None:
    with channel(world, AUTHORITY.client()) as relay:
        assert len(flows(relay)) == 3
        who = relay.unary_unary("/test.Who/Asks", bytes, bytes.decode)
        assert who(b"", timeout=30, metadata=[("x-asks", "me")]) == f"{CLIENT_NAME} 127.0.0.1 me"
    assert world.server.refused_handshakes == 0


def test_an_independent_client_without_certificate_gets_no_answer(world: World) -> None:
    for issued, authority in ((None, AUTHORITY), (OTHER.client(), AUTHORITY), (AUTHORITY.client(), OTHER)):
        with channel(world, issued, authority) as stranger, pytest.raises(grpc.RpcError) as error:
            flows(stranger)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert world.server.clients == 0


def test_the_log_says_who_is_refused_and_why(world: World) -> None:
    assert "shows no certificate" in world.refusal(None)


def test_the_log_says_that_a_client_has_expired(world: World) -> None:
    assert "certificate has expired" in world.refusal(AUTHORITY.client(ago=20, days=10))


def test_the_log_names_a_foreign_authority(world: World) -> None:
    assert "right authority" in world.refusal(OTHER.client())


def test_plain_text_is_refused_and_named(world: World) -> None:
    with pytest.raises(RpcError), Client(f"127.0.0.1:{world.port}") as client:
        client.server_status()
    until(lambda: world.server.refused_handshakes == 1, "the refusal to be counted")


def test_a_client_without_h2_is_refused(world: World) -> None:
    files = AUTHORITY.write(world.directory / "client", AUTHORITY.client())
    context = ClientTls(files, SERVER_NAME, protocols=("http/1.1",)).context()
    with socket.create_connection(("127.0.0.1", world.port)) as plain:
        plain.settimeout(30)
        with context.wrap_socket(plain, server_hostname=SERVER_NAME) as secured:
            assert secured.recv(100) == b""
    until(lambda: world.server.refused_handshakes == 1, "the refusal to be counted")


def test_certificates_are_replaced_under_running_calls(world: World) -> None:
    call = observer_pb2.GetFlowsRequest(follow=True, number=1)
    with world.client(AUTHORITY.client()) as old:
        stream = old.get_flows(call)
        next(stream)
        world.replace(OTHER, OTHER.server())
        # Who was let in stays; who comes now must know the new authority.
        with pytest.raises(RpcError):
            world.client(AUTHORITY.client())
        with world.client(OTHER.client(), OTHER) as new:
            assert new.server_status().num_flows == 3
        world.beside.append(flow(3))
        assert next(stream).HasField("flow")


def test_an_expired_server_is_refused_by_its_clients(world: World) -> None:
    with capture_logs() as logs:
        world.replace(AUTHORITY, AUTHORITY.server(ago=20, days=10))
        with pytest.raises(RpcError, match="certificate has expired"):
            world.client(AUTHORITY.client())
    (line,) = [line for line in logs if line["event"] == "this certificate must be renewed"]
    assert SERVER_NAME in line["certificate"] and "expired 10 days ago" in line["certificate"]


@pytest.mark.parametrize("limits", [ServerLimits(patience=2.0, handshakes=3)])
def test_who_does_not_shake_hands_is_cut_off(world: World) -> None:
    strangers = [socket.create_connection(("127.0.0.1", world.port)) for _ in range(4)]
    try:
        for stranger in strangers:
            stranger.settimeout(30)
            stranger.sendall(b"\x16")
        for stranger in strangers:
            try:
                assert stranger.recv(100) == b""
            except ConnectionResetError:
                pass
    finally:
        for stranger in strangers:
            stranger.close()
    assert world.server.refused_handshakes == 4
    with world.client(AUTHORITY.client()) as client:
        assert client.server_status().num_flows == 3


@pytest.mark.parametrize("limits", [ServerLimits(patience=30, handshakes=3)])
def test_more_handshakes_than_there_is_room_for_are_refused_at_once(world: World) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", world.port)))
            stranger.sendall(b"\x16")
        until(lambda: world.beside.call(lambda: len(world.server._handshakes)) == 3, "three handshakes")
        late = stack.enter_context(socket.create_connection(("127.0.0.1", world.port)))
        late.settimeout(25)
        try:
            assert late.recv(100) == b""
        except ConnectionResetError:
            pass
        assert world.server.refused_handshakes == 1
