"""Nodes that die, hang, lie about the time or send garbage; clients that do not read; the peer service."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from cilia.apps.relay.running import serve
from cilia.hubble.client import Client
from cilia.hubble.peer import Peer, Peers
from cilia.hubble.rpc.channel import Channel
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.hubble.rpc.server import Server
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2
from cilia.relay.answer import AnswerSettings
from cilia.relay.merge import MergeSettings
from cilia.relay.peers import PeerListError, PeerService, parse_peers
from tests.support.grpc_client import get_flows, unary
from tests.support.relay import (
    IMPATIENT,
    QUICK,
    Cluster,
    Node,
    Response,
    channel_to,
    moments,
    options_for,
    ready,
    response,
)
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)


def notes(responses: list[Response]) -> Sequence[tuple[int, list[str], str]]:
    found = [each.node_status for each in responses if each.HasField("node_status")]
    return [(note.state_change, list(note.node_names), note.message) for note in found][1:]


def test_a_node_that_hangs_in_the_middle_is_left_behind_and_named(running: Cluster) -> None:
    good = Node("good", [response("good", moment) for moment in range(0, 20, 2)])
    hangs = Node("hangs", [response("hangs", 1)])
    hangs.hang = True
    answer = AnswerSettings(silence=3.0)
    target = running.relay([running.start(good), running.start(hangs)], answer=answer)
    ready(target, 2)
    with channel_to(target) as channel:
        responses = list(get_flows(channel))
    assert moments(responses) == [0, 1, *range(2, 20, 2)]
    sentence = "the node was silent for 3 s in the middle of its answer"
    assert notes(responses) == [(relay_pb2.NODE_ERROR, ["hangs"], sentence)]


def test_a_node_that_dies_in_the_middle_is_named_and_the_rest_arrives(running: Cluster) -> None:
    good = Node("good", [response("good", moment) for moment in range(0, 20, 2)])
    dies = Node("dies", [response("dies", 1)])
    dies.hang = True
    target = running.relay([running.start(good), running.start(dies)])
    ready(target, 2)
    with channel_to(target) as channel:
        call = get_flows(channel)
        responses = [next(call)]
        until(lambda: dies.serving, "the node to be asked")
        running.stop("dies")
        responses += call
    assert moments(responses) == [0, 1, *range(2, 20, 2)]
    (state, names, _), *_ = notes(responses)
    assert names == ["dies"]
    assert state in (relay_pb2.NODE_UNAVAILABLE, relay_pb2.NODE_ERROR)


def test_garbage_of_one_node_is_told_and_costs_the_others_nothing(running: Cluster) -> None:
    good = Node("good", [response("good", 0)])
    garbage = Node("garbage", [b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"])
    target = running.relay([running.start(good), running.start(garbage)])
    ready(target, 2)
    with channel_to(target) as channel:
        responses = list(get_flows(channel))
    assert moments(responses) == [0]
    ((state, names, message),) = notes(responses)
    assert (state, names) == (relay_pb2.NODE_UNAVAILABLE, ["garbage"])
    assert message.startswith("the node sends garbage: ")


def test_a_stranger_that_speaks_no_grpc_is_unavailable(running: Cluster) -> None:
    good = Node("good", [response("good", 0)])

    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)
        writer.close()

    path = running.directory / "stranger.sock"
    server = running.run(asyncio.start_unix_server(babble, path))
    target = running.relay([running.start(good), Peer("stranger", f"unix://{path}")])
    ready(target, 1)
    with channel_to(target) as channel:
        assert moments(list(get_flows(channel))) == [0]
        status = unary(
            channel, "ServerStatus", observer_pb2.ServerStatusRequest(), observer_pb2.ServerStatusResponse
        )
    assert list(status.unavailable_nodes) == ["stranger"]
    running.loop.call_soon_threadsafe(server.close)


@pytest.mark.parametrize("offset", [-600_000, 600_000])
def test_a_clock_ten_minutes_off_delays_followers_by_no_more_than_the_patience(
    running: Cluster, offset: int
) -> None:
    right, wrong = Node("right"), Node("wrong")
    target = running.relay([running.start(right), running.start(wrong)], answer=QUICK)
    ready(target, 2)
    with channel_to(target) as channel:
        call = get_flows(channel, follow=True)
        next(call)
        until(lambda: right.serving and wrong.serving, "both to be asked")
        running.add(wrong, response("wrong", offset))
        running.add(right, response("right", 1))
        assert {next(call).flow.node_name for _ in range(2)} == {"right", "wrong"}
        call.cancel()


def test_a_request_that_is_to_blame_is_refused_as_a_node_refuses_it(running: Cluster) -> None:
    nodes = [Node("a"), Node("b")]
    for node in nodes:
        node.refusal = RpcError(Code.INVALID_ARGUMENT, "an empty label selector selects nothing useful")
    target = running.relay([running.start(node) for node in nodes])
    ready(target, 2)
    for follow in (False, True):
        responses: list[Response] = []
        with channel_to(target) as channel, pytest.raises(grpc.RpcError) as caught:
            call = get_flows(channel, follow=follow, whitelist=[flow_pb2.FlowFilter(source_label=[""])])
            for each in call:
                responses.append(each)
        assert responses == [], "nobody receives flows of a request that all refuse"
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "an empty label selector selects nothing useful"


def test_a_node_that_is_busy_for_a_moment_is_asked_again_by_a_follower(running: Cluster) -> None:
    busy, other = Node("busy", [response("busy", 1)]), Node("other", [response("other", 2)])
    busy.refusal = RpcError(Code.RESOURCE_EXHAUSTED, "256 calls run here already: try again later")
    target = running.relay([running.start(busy), running.start(other)], answer=QUICK)
    ready(target, 2)
    with channel_to(target) as channel:
        call = get_flows(channel, follow=True, number=1)
        found: list[Response] = []
        while not any(each.HasField("flow") for each in found):
            found.append(next(call))
        assert [each.flow.uuid for each in found if each.HasField("flow")] == ["other-2"]
        busy.refusal = None
        while not found[-1].flow.uuid.startswith("busy"):
            found.append(next(call))
        call.cancel()
    assert (relay_pb2.NODE_ERROR, ["busy"], "256 calls run here already: try again later") in notes(found)
    assert found[-1].flow.uuid == "busy-1"
    assert busy.requests[-1].number == 1


def test_a_relay_whose_part_fails_ends(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_service: PeerService) -> None:
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr(PeerService, "run", fails)
    options = options_for(f"unix://{running.directory}/failing.sock", [])
    with pytest.raises(RuntimeError, match="nobody expects this"):
        asyncio.run(asyncio.wait_for(serve(options), 30))


def test_a_client_that_does_not_read_holds_one_window_of_each_node(running: Cluster) -> None:
    flows = [response("big", moment, Summary="x" * 4000) for moment in range(8_000)]
    big = Node("big", flows)
    answer = AnswerSettings(merge=MergeSettings(patience=0.3), memory=256 << 10, largest_window=64 << 10)
    target = running.relay([running.start(big)], answer=answer)
    ready(target, 1)
    with Client(target) as slow:
        stream = slow.stream("/observer.Observer/GetFlows", b"")
        next(stream)
        sent = -1
        while sent != big.sent:
            sent = big.sent
            time.sleep(0.5)
        assert sent < 4000, "the node was not held back"
        # Neither are others: what one client leaves unread takes nothing from a connection's window.
        with channel_to(target) as channel:
            assert len(moments(list(get_flows(channel, number=10)))) == 10
        assert sum(1 for message in stream if message[:1] == b"\n") == len(flows)


def test_a_follower_gets_what_came_while_the_connection_was_away(running: Cluster) -> None:
    node = Node("node", [])
    target = running.relay([running.start(node)])
    ready(target, 1)
    with channel_to(target) as channel:
        call = get_flows(channel, follow=True)
        next(call)
        until(lambda: node.serving, "the node to be asked")
        running.add(node, response("node", 1))
        assert next(call).flow.uuid == "node-1"
        running.stop("node")
        node.flows.append(response("node", 2))
        assert next(call).node_status.state_change == relay_pb2.NODE_UNAVAILABLE
        running.start(node)
        assert next(call).node_status.state_change == relay_pb2.NODE_CONNECTED
        assert next(call).flow.uuid == "node-2"
        call.cancel()


def test_a_node_that_only_listens_is_never_taken_for_connected(running: Cluster) -> None:
    path = running.directory / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        deaf.settimeout(30)
        target = running.relay([Peer("deaf", f"unix://{path}")], pool=IMPATIENT)
        first, _ = deaf.accept()
        with channel_to(target) as channel:
            nodes = unary(
                channel, "GetNodes", observer_pb2.GetNodesRequest(), observer_pb2.GetNodesResponse
            ).nodes
        assert nodes[0].state == relay_pb2.NODE_UNAVAILABLE
        second, _ = deaf.accept()
        assert first.recv(1 << 16), "it was asked for a sign of life"
        first.close()
        second.close()


def test_a_node_that_begins_to_hang_is_noticed_without_a_call(running: Cluster) -> None:
    node = Node("node")
    target = running.relay([running.start(node)], pool=IMPATIENT)
    ready(target, 1)
    node.deaf = True
    ready(target, 0)
    node.deaf = False
    ready(target, 1)


def test_peers_come_move_and_go_as_the_peer_service_tells(running: Cluster) -> None:
    peers = Peers([running.start(Node("a", [response("a", 1)]))])

    async def start() -> Server:
        server = Server(peers.methods())
        await server.listen_unix(running.directory / "peers.sock")
        return server

    running.servers["peers"] = running.run(start())
    target = running.relay([], peer_service=f"unix://{running.directory / 'peers.sock'}", answer=QUICK)
    ready(target, 1)
    second = running.start(Node("b", [response("b", 2)]))
    with channel_to(target) as channel:
        call = get_flows(channel, follow=True, number=5)
        heard: list[Any] = [next(call), next(call)]
        running.loop.call_soon_threadsafe(peers.update, [Peer("a", running.address("a")), second])
        heard += [next(call), next(call)]
        running.loop.call_soon_threadsafe(peers.update, [second])
        heard.append(next(call))
        call.cancel()
    told = [(each.node_status.state_change, list(each.node_status.node_names)) for each in heard]
    assert told[0] == (relay_pb2.NODE_CONNECTED, ["a"])
    assert told[2] == (relay_pb2.NODE_CONNECTED, ["b"])
    assert told[4] == (relay_pb2.NODE_GONE, ["a"])
    assert [heard[1].flow.uuid, heard[3].flow.uuid] == ["a-1", "b-2"]


def test_messages_larger_than_a_window_come_through(running: Cluster) -> None:
    large = response("large", 1, Summary="x" * 1_000_000)
    node = Node("large", [large, large])
    running.start(node)

    async def read() -> list[bytes]:
        channel = await Channel.open(running.address("large"))
        call = channel.call("/observer.Observer/GetFlows", b"")
        found: list[bytes] = []
        while batch := await call.read():
            found += batch
        channel.close()
        return found

    assert running.run(read()) == [large, large]


def test_the_server_gone_is_said_in_a_sentence(running: Cluster) -> None:
    with pytest.raises(RpcError, match=r"can't be reached"):
        running.run(Channel.open(running.address("nobody")))


@pytest.mark.parametrize("text", ["worker-1", "=x", "a=", "a=x:1,a=y:1"])
def test_wrong_lists_of_peers_are_refused(text: str) -> None:
    with pytest.raises(PeerListError):
        parse_peers(text)


def test_a_list_of_peers() -> None:
    assert parse_peers("a=192.0.2.1:4244, b=unix:///run/b.sock,") == [
        Peer("a", "192.0.2.1:4244"),
        Peer("b", "unix:///run/b.sock"),
    ]
