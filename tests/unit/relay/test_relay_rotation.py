"""All certificates are replaced while two hundred streams run: files half written, then nodes that return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cilia.hubble.peer import Peer
from cilia.hubble.rpc.server import Server
from cilia.kit.tls import ClientTls, ServerTls
from tests.support.grpc_client import get_flows
from tests.support.hubble_tls import SERVER_NAME, Authority
from tests.support.relay import QUICK, Cluster, Node, Response, channel_to, ready, response
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(180)

NODES = 5
FOLLOWERS = 40


class Stage:
    """Nodes behind TLS."""

    def __init__(self, running: Cluster) -> None:
        self.running = running
        self.nodes = [Node(f"node-{number}") for number in range(NODES)]
        self.ports = {node.name: 0 for node in self.nodes}

    def serve(self, node: Node, authority: Authority) -> Peer:
        """Start a node with certificates of an authority, on the port it had."""
        tls = ServerTls(authority.write(self.running.directory / node.name, authority.server()))

        async def start() -> None:
            server = self.running.servers[node.name] = Server(node.methods())
            self.ports[node.name] = await server.listen_tcp("127.0.0.1", self.ports[node.name], tls)

        self.running.run(start())
        return Peer(node.name, f"127.0.0.1:{self.ports[node.name]}", SERVER_NAME)

    def serving(self) -> int:
        """Streams that nodes answer."""
        return sum(node.serving for node in self.nodes)


def flows_until(call: Iterator[Response], last: int) -> list[str]:
    """What a follower gets until it has a flow of that moment of each node."""
    found: list[str] = []
    while sum(uuid.endswith(f"-at-{last}") for uuid in found) < NODES:
        told = next(call)
        if told.HasField("flow"):
            found.append(told.flow.uuid)
    return found


def made(node: Node, moment: int) -> bytes:
    return response(node.name, moment, uuid=f"{node.name}-at-{moment}")


def test_two_hundred_streams_go_on_while_all_certificates_change(tmp_path: Path, running: Cluster) -> None:
    old, new = Authority("Old CA"), Authority("New CA")
    stage = Stage(running)
    peers = [stage.serve(node, old) for node in stage.nodes]
    files = old.write(tmp_path / "relay", old.client())
    target = running.relay(peers, client_tls=ClientTls(files), answer=QUICK)
    ready(target, NODES)
    with ExitStack() as stack:
        channels = [stack.enter_context(channel_to(target)) for _ in range(FOLLOWERS)]
        calls = [get_flows(channel, follow=True) for channel in channels]
        for call in calls:
            stack.callback(call.cancel)
            next(call)
        until(lambda: stage.serving() == NODES * FOLLOWERS, "all streams to run")

        files.paths()[0].write_bytes(new.client().certificate[:100])
        for node in stage.nodes:
            running.add(node, made(node, 1))
        expected = sorted(f"{node.name}-at-1" for node in stage.nodes)
        assert [sorted(flows_until(call, 1)) for call in calls] == [expected] * FOLLOWERS

        # Each returns with a certificate of the new authority, and is asked for what it saw meanwhile.
        for node in stage.nodes:
            running.stop(node.name)
            node.flows.append(made(node, 2))
        new.write(tmp_path / "relay", new.client())
        for node in stage.nodes:
            stage.serve(node, new)
        until(lambda: stage.serving() == NODES * FOLLOWERS, "all streams to run again")
        for node in stage.nodes:
            running.add(node, made(node, 3))
        expected = sorted(f"{node.name}-at-{moment}" for node in stage.nodes for moment in (2, 3))
        assert [sorted(flows_until(call, 3)) for call in calls] == [expected] * FOLLOWERS
    until(lambda: stage.serving() == 0, "all streams to end with their clients")
