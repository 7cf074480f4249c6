"""grpcio asks a relay in front of several nodes."""

from __future__ import annotations

import pytest

from cilia.hubble.peer import Peer
from cilia.proto.health.health_pb2 import HealthCheckRequest, HealthCheckResponse
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2
from tests.support.grpc_client import get_flows, unary
from tests.support.relay import (
    QUICK,
    Cluster,
    Node,
    Response,
    channel_to,
    moments,
    ready,
    response,
)
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)


def nodes_of(count: int, flows: int) -> list[Node]:
    """Nodes whose flows take turns, millisecond by millisecond."""
    return [
        Node(f"node-{number}", [response(f"node-{number}", count * step + number) for step in range(flows)])
        for number in range(count)
    ]


def states(responses: list[Response], state: relay_pb2.NodeState.ValueType) -> list[str]:
    return [
        name
        for each in responses
        if each.HasField("node_status") and each.node_status.state_change == state
        for name in each.node_status.node_names
    ]


def test_flows_of_all_nodes_come_by_time(running: Cluster) -> None:
    target = running.relay([running.start(node) for node in nodes_of(3, 100)])
    ready(target, 3)
    with channel_to(target) as channel:
        responses = list(get_flows(channel))
    assert moments(responses) == list(range(300))
    assert states(responses, relay_pb2.NODE_CONNECTED) == ["node-0", "node-1", "node-2"]
    flows = [each for each in responses if each.HasField("flow")]
    assert [each.node_name for each in flows[:4]] == ["node-0", "node-1", "node-2", "node-0"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"number": 5}, list(range(295, 300))),
        ({"number": 5, "first": True}, list(range(5))),
        ({"number": 1000}, list(range(300))),
    ],
)
def test_number_is_kept_to_over_all_nodes(
    running: Cluster, fields: dict[str, int], expected: list[int]
) -> None:
    target = running.relay([running.start(node) for node in nodes_of(3, 100)])
    ready(target, 3)
    with channel_to(target) as channel:
        assert moments(list(get_flows(channel, **fields))) == expected


def test_a_node_that_is_away_is_named_and_the_others_answer(running: Cluster) -> None:
    nodes = nodes_of(2, 3)
    peers = [running.start(node) for node in nodes]
    target = running.relay([*peers, Peer("node-away", running.address("node-away"))])
    ready(target, 2)
    with channel_to(target) as channel:
        responses = list(get_flows(channel))
        status = unary(
            channel, "ServerStatus", observer_pb2.ServerStatusRequest(), observer_pb2.ServerStatusResponse
        )
        listed = unary(channel, "GetNodes", observer_pb2.GetNodesRequest(), observer_pb2.GetNodesResponse)
        names = unary(
            channel, "GetNamespaces", observer_pb2.GetNamespacesRequest(), observer_pb2.GetNamespacesResponse
        )
    assert moments(responses) == list(range(6))
    assert states(responses, relay_pb2.NODE_UNAVAILABLE) == ["node-away"]
    assert status.num_connected_nodes.value == 2
    assert status.num_unavailable_nodes.value == 1
    assert list(status.unavailable_nodes) == ["node-away"]
    assert (status.num_flows, status.max_flows, status.seen_flows) == (6, 200, 2000)
    assert (status.uptime_ns, status.flows_rate) == (5, 3.0)
    assert [(node.name, node.state) for node in listed.nodes] == [
        ("node-0", relay_pb2.NODE_CONNECTED),
        ("node-1", relay_pb2.NODE_CONNECTED),
        ("node-away", relay_pb2.NODE_UNAVAILABLE),
    ]
    assert [name.namespace for name in names.namespaces] == ["node-0", "node-1", "shop"]


def test_followers_hear_of_flows_and_of_nodes(running: Cluster) -> None:
    first, second = Node("node-0"), Node("node-1")
    peers = [running.start(first), Peer("node-1", running.address("node-1"))]
    target = running.relay(peers, answer=QUICK)
    ready(target, 1)
    with channel_to(target) as channel:
        call = get_flows(channel, follow=True, timeout=60)
        assert next(call).node_status.state_change == relay_pb2.NODE_CONNECTED
        assert next(call).node_status.state_change == relay_pb2.NODE_UNAVAILABLE
        until(lambda: first.requests, "the first to be asked")
        running.add(first, response("node-0", 1))
        assert next(call).flow.uuid == "node-0-1"
        running.start(second)
        back = next(call).node_status
        assert (back.state_change, list(back.node_names)) == (relay_pb2.NODE_CONNECTED, ["node-1"])
        until(lambda: second.requests, "the second to be asked")
        running.add(second, response("node-1", 2))
        assert next(call).flow.uuid == "node-1-2"
        running.stop("node-0")
        lost = next(call).node_status
        assert (lost.state_change, list(lost.node_names)) == (relay_pb2.NODE_UNAVAILABLE, ["node-0"])
        assert "the connection to the node broke" in lost.message or "shutting down" in lost.message
        running.start(first)
        assert next(call).node_status.state_change == relay_pb2.NODE_CONNECTED
        running.add(first, response("node-0", 3))
        assert next(call).flow.uuid == "node-0-3"
        call.cancel()


def test_health_is_that_of_having_a_node(running: Cluster) -> None:
    node = Node("node-0")
    target = running.relay([Peer("node-0", running.address("node-0"))])
    with channel_to(target) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        assert check(HealthCheckRequest(), timeout=20).status == HealthCheckResponse.NOT_SERVING
        running.start(node)
        until(lambda: check(HealthCheckRequest(), timeout=20).status == HealthCheckResponse.SERVING, "health")
