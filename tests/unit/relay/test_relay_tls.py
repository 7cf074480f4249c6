"""Mutual TLS on both sides of a relay, and certificates that change or end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from cilia.apps.relay.command import app
from cilia.apps.relay.doors import server_tls
from cilia.hubble.peer import Peer
from cilia.hubble.rpc.server import Server
from cilia.kit.tls import ClientTls, ServerTls, TlsFiles
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2
from tests.support.grpc_client import get_flows, unary
from tests.support.hubble_tls import SERVER_NAME, Authority
from tests.support.relay import (
    Cluster,
    Node,
    channel_to,
    cluster,
    moments,
    options_for,
    ready,
    response,
)
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)


class Stage:
    """A node behind TLS and a relay that speaks TLS to it."""

    def __init__(self, running: Cluster) -> None:
        self.running = running
        self.authority = Authority()
        self.port = 0
        self.node = Node("node", [response("node", 1)])
        self.directory = running.directory

    def serve(self, authority: Authority, ago: float = 0, days: float = 30) -> None:
        """Start the node with a certificate of an authority, on the port it had."""
        files = authority.write(self.directory / "server", authority.server(ago=ago, days=days))
        clients = TlsFiles(files.certificate, files.key, self.directory / "clients.crt")
        (self.directory / "clients.crt").write_bytes(self.authority.issued.certificate)

        async def start() -> None:
            server = self.running.servers["node"] = Server(self.node.methods())
            self.port = await server.listen_tcp("127.0.0.1", self.port, ServerTls(clients))

        self.running.run(start())

    def relay(self, ago: float = 0, days: float = 30) -> str:
        """A relay with a certificate of its own that began so long ago; its target."""
        issued = self.authority.client(ago=ago, days=days)
        tls = ClientTls(self.authority.write(self.directory / "relay", issued))
        return self.running.relay([Peer("node", f"127.0.0.1:{self.port}", SERVER_NAME)], client_tls=tls)

    def nodes(self, target: str) -> observer_pb2.Node:
        with channel_to(target) as channel:
            answer = unary(channel, "GetNodes", observer_pb2.GetNodesRequest(), observer_pb2.GetNodesResponse)
        (node,) = answer.nodes
        return node  # type: ignore[no-any-return]

    def wait_for(self, target: str, state: relay_pb2.NodeState.ValueType) -> observer_pb2.Node:
        until(lambda: self.nodes(target).state == state, f"the node to be {state}")
        return self.nodes(target)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with cluster(tmp_path) as running:
        yield Stage(running)


def test_nodes_are_reached_by_mutual_tls(stage: Stage) -> None:
    stage.serve(stage.authority)
    target = stage.relay()
    node = stage.wait_for(target, relay_pb2.NODE_CONNECTED)
    assert (node.tls.enabled, node.tls.server_name) == (True, SERVER_NAME)
    with channel_to(target) as channel:
        assert moments(list(get_flows(channel))) == [1]


def test_a_node_that_returns_with_a_new_certificate_is_taken_back(stage: Stage) -> None:
    stage.serve(stage.authority)
    target = stage.relay()
    stage.wait_for(target, relay_pb2.NODE_CONNECTED)
    stage.running.stop("node")
    stage.wait_for(target, relay_pb2.NODE_UNAVAILABLE)
    stage.serve(stage.authority, days=10)
    stage.wait_for(target, relay_pb2.NODE_CONNECTED)


@pytest.mark.parametrize("why", ["expired", "stranger"])
def test_a_node_with_a_bad_certificate_is_unavailable_until_it_has_a_good_one(stage: Stage, why: str) -> None:
    if why == "expired":
        stage.serve(stage.authority, ago=20, days=10)
    else:
        stage.serve(Authority("Other CA"))
    target = stage.relay()
    time.sleep(0.5)
    assert stage.nodes(target).state == relay_pb2.NODE_UNAVAILABLE
    stage.running.stop("node")
    stage.serve(stage.authority)
    stage.wait_for(target, relay_pb2.NODE_CONNECTED)


def test_an_expired_certificate_of_its_own_is_named_and_a_new_one_is_taken(stage: Stage) -> None:
    stage.serve(stage.authority)
    target = stage.relay(ago=20, days=10)
    with channel_to(target) as channel:

        def refused() -> list[str]:
            notes = [each.node_status for each in get_flows(channel) if each.HasField("node_status")]
            return [note.message for note in notes if "certificate" in note.message]

        until(refused, "the reason")
        expired = "it refused this side's certificate, which has expired: renew it"
        assert refused() == [f"node: the connection to the node broke: {expired}"]
        assert stage.nodes(target).state == relay_pb2.NODE_UNAVAILABLE
        stage.authority.write(stage.directory / "relay", stage.authority.client())
        stage.wait_for(target, relay_pb2.NODE_CONNECTED)
        assert moments(get_flows(channel)) == [1]


def test_new_connections_to_nodes_show_the_renewed_certificate(stage: Stage) -> None:
    """The node comes back trusting a new authority only: the relay's old certificate would not do."""
    stage.serve(stage.authority)
    target = stage.relay()
    stage.wait_for(target, relay_pb2.NODE_CONNECTED)
    stage.running.stop("node")
    stage.authority = Authority("New CA")
    stage.serve(stage.authority)
    time.sleep(1)
    assert stage.nodes(target).state == relay_pb2.NODE_UNAVAILABLE
    stage.authority.write(stage.directory / "relay", stage.authority.client())
    stage.wait_for(target, relay_pb2.NODE_CONNECTED)


def test_new_clients_see_the_renewed_certificate_and_old_ones_stay(stage: Stage) -> None:
    """The new one is of another authority, which the old client does not know."""
    files = stage.authority.write(stage.directory / "door", stage.authority.server())
    clients = TlsFiles(files.certificate, files.key, stage.directory / "clients.crt")
    (stage.directory / "clients.crt").write_bytes(stage.authority.issued.certificate)
    client, renewed = stage.authority.client(), Authority("New CA")
    peer = stage.running.start(stage.node)
    port = stage.running.enter(options_for("127.0.0.1:0", [peer], server_tls=ServerTls(clients)))
    override = [("grpc.ssl_target_name_override", SERVER_NAME)]

    def door(authority: Authority) -> grpc.Channel:
        shown = grpc.ssl_channel_credentials(authority.issued.certificate, client.key, client.certificate)
        return grpc.secure_channel(f"127.0.0.1:{port}", shown, override)

    with door(stage.authority) as old, door(renewed) as new:
        follower = get_flows(old, follow=True, number=1)
        assert moments([next(follower), next(follower)]) == [1]
        with pytest.raises(grpc.RpcError):
            list(get_flows(new))
        renewed.write(stage.directory / "door", renewed.server())

        def served() -> bool:
            try:
                with door(renewed) as fresh:
                    return moments(get_flows(fresh)) == [1]
            except grpc.RpcError:
                return False

        until(served, "the new certificate to be shown")
        stage.running.add(stage.node, response("node", 2))
        assert moments([next(follower)]) == [2]
        follower.cancel()
        with door(stage.authority) as late, pytest.raises(grpc.RpcError):
            list(get_flows(late))


def test_clients_are_served_by_tls_and_need_a_certificate(stage: Stage) -> None:
    files = stage.authority.write(stage.directory / "door", stage.authority.server())
    client = stage.authority.client()
    peer = stage.running.start(stage.node)
    options = options_for("127.0.0.1:0", [peer], server_tls=ServerTls(files))
    port = stage.running.enter(options)
    override = [("grpc.ssl_target_name_override", SERVER_NAME)]
    good = grpc.ssl_channel_credentials(stage.authority.issued.certificate, client.key, client.certificate)
    bare = grpc.ssl_channel_credentials(stage.authority.issued.certificate)
    with grpc.secure_channel(f"127.0.0.1:{port}", good, override) as channel:
        list(get_flows(channel))
    with grpc.secure_channel(f"127.0.0.1:{port}", bare, override) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(get_flows(channel))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--peers", "a=192.0.2.1:4244"], "nodes are reached by TLS"),
        (["--peers", "a"], "is not NAME=ADDRESS"),
        (["--peers", "a=unix:///x.sock"], "clients are served by TLS"),
        (["--disable-client-tls", "--disable-server-tls", "--require-tokens"], "must not travel in plain"),
        (["--tls-hubble-client-cert-file", "/none", "--disable-client-tls"], "exclude each other"),
        (["--listen-address", " ,", "--disable-client-tls"], "--listen-address is empty"),
        (["--listen-address", "unix:///x,:4245", "--disable-client-tls"], "clients are served by TLS"),
    ],
)
def test_wrong_settings_are_refused_with_a_sentence(flags: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["serve", *flags])
    assert done.exit_code == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sort-buffer-drain-timeout", "soon"], "'soon' is no length of time"),
        (["--dial-timeout", "0s"], "must be a duration such as 60s"),
        (["--sort-buffer-len-max", "0"], "0 is not in the range"),
        (["--log-level", "loud"], "'loud' is not one of"),
    ],
)
def test_a_wrong_value_is_refused_with_its_flag(flags: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["serve", "--disable-client-tls", "--disable-server-tls", *flags])
    last = done.stderr.splitlines()[-1]
    assert (done.exit_code, flags[0] in last, words in last) == (2, True, True)


def test_where_tokens_are_asked_for_clients_need_no_certificate(stage: Stage) -> None:
    files = stage.authority.write(stage.directory / "door", stage.authority.server())
    tls = server_tls(TlsFiles(files.certificate, files.key), disabled=False, local=False, tokens=True)
    port = stage.running.enter(options_for("127.0.0.1:0", [], peer_service="unix:///none", server_tls=tls))
    bare = grpc.ssl_channel_credentials(stage.authority.issued.certificate)
    override = [("grpc.ssl_target_name_override", SERVER_NAME)]
    with grpc.secure_channel(f"127.0.0.1:{port}", bare, override) as channel:
        assert list(get_flows(channel)) == []


def test_a_relay_with_two_doors_answers_at_both(stage: Stage) -> None:
    files = stage.authority.write(stage.directory / "door", stage.authority.server())
    client, socket = stage.authority.client(), stage.directory / "door.sock"
    peer = stage.running.start(stage.node)
    options = options_for(f"unix://{socket}, 127.0.0.1:0", [peer], server_tls=ServerTls(files))
    port = stage.running.enter(options)
    override = [("grpc.ssl_target_name_override", SERVER_NAME)]
    good = grpc.ssl_channel_credentials(stage.authority.issued.certificate, client.key, client.certificate)
    ready(f"unix:{socket}", 1)
    with grpc.secure_channel(f"127.0.0.1:{port}", good, override) as channel:
        assert moments(get_flows(channel)) == [1]
    with channel_to(f"unix:{socket}") as channel:
        assert moments(get_flows(channel)) == [1]
