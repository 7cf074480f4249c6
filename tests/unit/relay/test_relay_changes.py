"""What changes around a relay while it runs: peers that move or are away, clients that go, odd requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from cilia.hubble.peer import Peer, Peers
from cilia.hubble.rpc.server import Server
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2
from cilia.relay.answer import AnswerSettings
from cilia.relay.merge import MergeSettings
from tests.support.grpc_client import get_flows
from tests.support.machine import is_served
from tests.support.relay import START, Cluster, Node, Response, channel_to, moments, ready, response
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(90)

SECOND = 1000
"""Milliseconds."""


def peer_service(running: Cluster, *peers: Peer) -> Peers:
    """A peer service on a socket of its own, started."""
    service = Peers(peers)

    async def start() -> Server:
        server = Server(service.methods())
        await server.listen_unix(running.directory / "peers.sock")
        return server

    running.servers["peers"] = running.run(start())
    return service


def at_peer_service(running: Cluster, **choices: Any) -> str:
    """A relay that finds its peers there; its target."""
    return running.relay([], peer_service=f"unix://{running.directory / 'peers.sock'}", **choices)


def moved(running: Cluster, node: Node) -> Peer:
    """The same node behind another address, started; the old one listens on."""

    async def start() -> None:
        server = running.servers["moved"] = Server(node.methods())
        await server.listen_unix(running.directory / "moved.sock")

    running.run(start())
    return Peer(node.name, running.address("moved"))


def told(responses: list[Response]) -> list[tuple[int, list[str], str]]:
    found = [each.node_status for each in responses if each.HasField("node_status")]
    return [(note.state_change, list(note.node_names), note.message) for note in found]


def test_a_peer_that_moves_is_followed_there_and_nothing_comes_twice(running: Cluster) -> None:
    node = Node("node")
    service = peer_service(running, running.start(node))
    target = at_peer_service(running)
    ready(target, 1)
    with channel_to(target) as channel:
        call = get_flows(channel, follow=True)
        next(call)
        until(lambda: node.serving, "the node to be asked")
        running.add(node, response("node", 1))
        assert next(call).flow.uuid == "node-1"
        new = moved(running, node)
        running.loop.call_soon_threadsafe(service.update, [new])
        back = next(call).node_status
        assert (back.state_change, list(back.node_names)) == (relay_pb2.NODE_CONNECTED, ["node"])
        until(lambda: node.serving == 1 and len(node.requests) == 2, "the old address to be left")
        running.add(node, response("node", 2))
        assert next(call).flow.uuid == "node-2"
        running.stop("node")
        running.add(node, response("node", 3))
        assert next(call).flow.uuid == "node-3"
        call.cancel()


def test_a_peer_that_moves_in_the_middle_of_a_history_is_named(running: Cluster) -> None:
    good, leaves = Node("good", [response("good", 0)]), Node("leaves", [response("leaves", 1)])
    leaves.hang = True
    stays = running.start(good)
    service = peer_service(running, stays, running.start(leaves))
    target = at_peer_service(running)
    ready(target, 2)
    with channel_to(target) as channel:
        call = get_flows(channel)
        responses = [next(call)]
        until(lambda: leaves.serving, "the node to be asked")
        running.loop.call_soon_threadsafe(service.update, [stays])
        responses += call
    assert moments(responses) == [0, 1]
    assert told(responses)[1:] == [(relay_pb2.NODE_GONE, ["leaves"], "the peer is gone")]


def test_a_peer_service_that_is_away_at_the_start_is_followed_when_it_comes(running: Cluster) -> None:
    target = at_peer_service(running)
    with channel_to(target) as channel:
        assert list(get_flows(channel)) == [], "no node is known: an empty answer, and no error"
    peer_service(running, running.start(Node("node", [response("node", 1)])))
    ready(target, 1)
    with channel_to(target) as channel:
        assert moments(list(get_flows(channel))) == [1]


def test_half_the_peers_away_is_half_an_answer_that_says_so(running: Cluster) -> None:
    here = [running.start(Node(f"here-{n}", [response(f"here-{n}", n)])) for n in range(10)]
    away = [Peer(f"away-{n}", running.address(f"away-{n}")) for n in range(10)]
    target = running.relay([*here, *away])
    ready(target, 10)
    with channel_to(target) as channel:
        responses = list(get_flows(channel))
    assert moments(responses) == list(range(10))
    connected, unavailable = told(responses)
    assert connected == (relay_pb2.NODE_CONNECTED, [peer.name for peer in here], "")
    state, names, why = unavailable
    assert (state, names) == (relay_pb2.NODE_UNAVAILABLE, [peer.name for peer in away])
    assert why.startswith("away-0: unix:///")
    assert why.count("can't be reached") == 3 and why.endswith("; and 7 more")


def test_two_relays_over_the_same_nodes_both_have_everything(running: Cluster) -> None:
    peers = [
        running.start(Node(f"n{n}", [response(f"n{n}", n + 3 * i) for i in range(100)])) for n in range(3)
    ]
    targets = [running.relay(peers) for _ in range(2)]
    for target in targets:
        ready(target, 3)
    with channel_to(targets[0]) as first, channel_to(targets[1]) as second:
        calls = [get_flows(first), get_flows(second), get_flows(first, number=50)]
        answers = [moments(list(call)) for call in calls]
    assert answers == [list(range(300)), list(range(300)), list(range(250, 300))]


def test_a_clock_ten_minutes_off_keeps_histories_whole_and_by_time(running: Cluster) -> None:
    right = Node("right", [response("right", moment) for moment in range(100)])
    late = Node("late", [response("late", moment - 600 * SECOND) for moment in range(100)])
    early = Node("early", [response("early", moment + 600 * SECOND) for moment in range(100)])
    target = running.relay([running.start(node) for node in (right, late, early)])
    ready(target, 3)
    with channel_to(target) as channel:
        whole, last = moments(list(get_flows(channel))), moments(list(get_flows(channel, number=150)))
    expected = [moment + shift * SECOND for shift in (-600, 0, 600) for moment in range(100)]
    assert (whole, last) == (expected, expected[-150:])


def test_a_client_that_goes_in_the_middle_ends_what_was_done_for_it(running: Cluster) -> None:
    node = Node("node", [response("node", moment, Summary="x" * 1000) for moment in range(20_000)])
    target = running.relay([running.start(node)])
    ready(target, 1)
    for follow in (False, True):
        with channel_to(target) as channel:
            call = get_flows(channel, follow=follow, number=20_000 if follow else 0)
            next(call), next(call)
            assert node.serving == 1
        until(lambda: not node.serving, "the node's call to end with the client's")
    with channel_to(target) as channel:
        assert len(moments(list(get_flows(channel, first=True, number=20_000)))) == 20_000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"number": 0}, 5),
        ({"number": 2**64 - 1}, 5),
        ({"number": 2**64 - 1, "first": True}, 5),
        ({"number": 2**63}, 5),
        ({"since": START + 10**18}, 0),
        ({"since": START + 4_000_000, "number": 2**64 - 1}, 5),
        ({"since": 2_000_000_000, "until": 1_000_000_000}, 5),
    ],
)
def test_odd_numbers_and_times_are_passed_on_and_end(
    running: Cluster, fields: dict[str, Any], expected: int
) -> None:
    """What times mean is the node's to say; the one of this test has none in the future."""
    node = Node("node", [response("node", moment) for moment in range(5)])
    target = running.relay([running.start(node)])
    ready(target, 1)
    request = observer_pb2.GetFlowsRequest(
        **{key: fields[key] for key in ("number", "first") if key in fields}
    )
    for key in ("since", "until"):
        if key in fields:
            getattr(request, key).FromNanoseconds(fields[key])
    if fields.get("since", 0) > START + 10**17:
        node.flows.clear()
    with channel_to(target) as channel:
        call = channel.unary_stream(
            "/observer.Observer/GetFlows",
            request_serializer=observer_pb2.GetFlowsRequest.SerializeToString,
            response_deserializer=Response.FromString,
        )
        assert len(moments(list(call(request, timeout=60)))) == expected
    assert node.requests == [request]


def test_last_flows_that_take_too_much_memory_are_refused(running: Cluster) -> None:
    node = Node("node", [response("node", moment, Summary="x" * 100_000) for moment in range(20)])
    answer = AnswerSettings(merge=MergeSettings(patience=0.3), tail_memory=1_050_000)
    target = running.relay([running.start(node)], answer=answer)
    ready(target, 1)
    with channel_to(target) as channel:
        assert moments(list(get_flows(channel, number=9))) == list(range(11, 20))
        with pytest.raises(grpc.RpcError) as caught:
            list(get_flows(channel, number=12))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "the last 12 flows take more than 1,050,000 bytes: ask for fewer"


def test_minus_one_is_the_largest_number_and_what_is_none_is_refused(running: Cluster) -> None:
    """As a varint, -1 is 2^64 - 1 in ten bytes; one bit more is no number."""
    target = running.relay([running.start(Node("node", [response("node", 1)]))])
    ready(target, 1)
    with channel_to(target) as channel:
        call = channel.unary_stream("/observer.Observer/GetFlows")
        flows = [
            message for message in call(b"\x08" + b"\xff" * 9 + b"\x01", timeout=60) if message[:1] == b"\n"
        ]
        assert len(flows) == 1
        with pytest.raises(grpc.RpcError) as caught:
            list(call(b"\x08" + b"\xff" * 10 + b"\x01", timeout=60))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "the request is not a valid message of its type"


def test_a_relay_that_is_told_to_end_tells_its_clients(running: Cluster) -> None:
    path = running.directory / "outer.sock"
    peer = running.start(Node("node", [response("node", 1)]))
    command = [
        str(Path(sys.executable).with_name("hubble-relay")),
        "serve",
        "--peers",
        f"node={peer.address}",
    ]
    command += ["--listen-address", f"unix://{path}", "--health-listen-address", ""]
    relay = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})
    try:
        until(lambda: is_served(path), "the relay to listen")
        ready(f"unix:{path}", 1)
        with channel_to(f"unix:{path}") as channel:
            call = get_flows(channel, follow=True, number=1)
            assert [next(call).WhichOneof("response_types") for _ in range(2)] == ["node_status", "flow"]
            relay.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert relay.wait(60) == 0
        assert not path.exists(), "the socket is left behind"
        assert relay.stderr is not None
        assert "Traceback" not in relay.stderr.read()
    finally:
        relay.kill()
        relay.wait()
        if relay.stderr:
            relay.stderr.close()
