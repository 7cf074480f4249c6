"""An independent client (grpcio) asks our server: what Hubble's own tools would see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from cilia.hubble.store import Loss
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.grpc_client import get_flows, unary
from tests.support.hubble import ALLOW_WEB, DEFAULT_DENY, DENY_DB, WALL, Beside, flow

pytestmark = pytest.mark.timeout(60)

Ask = Callable[..., list[observer_pb2.GetFlowsResponse]]


def ports(responses: Any) -> list[int]:
    return [response.flow.l4.TCP.source_port - 10_000 for response in responses]


def test_last_flows_come_in_order_of_time(running: Beside, channel: grpc.Channel) -> None:
    running.append(*(flow(number) for number in range(10)))
    responses = list(get_flows(channel, number=3))
    assert ports(responses) == [7, 8, 9]
    first = responses[0]
    assert first.node_name == "default/worker-1"
    assert first.time.ToNanoseconds() == WALL + 7_000_000
    assert first.flow.source.pod_name == "client-5f"
    assert first.flow.verdict == flow_pb2.FORWARDED


def test_a_client_sees_the_rules_behind_each_verdict(running: Beside, channel: grpc.Channel) -> None:
    running.append(
        flow(0, kind=1, verdict=2, reason=133, ingress_cookie=DEFAULT_DENY),
        flow(1, kind=3, verdict=4, reason=0, ingress_cookie=DENY_DB, egress_cookie=ALLOW_WEB),
        flow(2, ingress_cookie=ALLOW_WEB),
    )
    dropped, audited, allowed = (response.flow for response in get_flows(channel))
    assert [(rule.kind, rule.name) for rule in dropped.ingress_denied_by] == [
        ("CiliumNetworkPolicy", "allow-web"),
        ("NetworkPolicy", "isolate"),
    ]
    assert audited.verdict == flow_pb2.AUDIT
    assert [rule.name for rule in audited.ingress_denied_by] == ["no-db"]
    assert [rule.name for rule in audited.egress_allowed_by] == ["allow-web"]
    assert [rule.name for rule in allowed.ingress_allowed_by] == ["allow-web"]
    assert list(allowed.policy_log) == ["web traffic"]


def test_many_flows_cross_flow_control_windows(running: Beside, channel: grpc.Channel) -> None:
    running.append(*(flow(number) for number in range(1000)))
    assert ports(get_flows(channel)) == list(range(1000))


def test_a_follower_gets_what_comes_and_its_cancel_is_noticed(running: Beside, channel: grpc.Channel) -> None:
    running.append(flow(0), flow(1))
    stream = get_flows(channel, number=1, follow=True)
    assert ports([next(stream)]) == [1]
    running.append(flow(2))
    running.append(flow(3))
    assert ports([next(stream), next(stream)]) == [2, 3]
    stream.cancel()
    with pytest.raises(grpc.RpcError):
        next(stream)
    for _ in range(100):
        if not running.call(lambda: len(running.store.listeners)):
            break
        running.append(flow(4))
    assert not running.call(lambda: len(running.store.listeners))


def test_a_gap_stands_between_the_flows_around_it(running: Beside, channel: grpc.Channel) -> None:
    running.append(flow(0))
    gap = Loss(count=5, cpu=1, first=500_000, last=900_000)
    running.call(lambda: running.store.append([], [gap], offset=WALL))
    running.append(flow(1))
    before, lost, after = get_flows(channel, number=20)
    assert ports([before, after]) == [0, 1]
    assert lost.lost_events.num_events_lost == 5
    assert lost.lost_events.cpu.value == 1
    assert lost.lost_events.source == flow_pb2.PERF_EVENT_RING_BUFFER
    assert lost.lost_events.first.ToNanoseconds() == WALL + 500_000


def test_errors_carry_code_and_sentence(running: Beside, channel: grpc.Channel) -> None:
    cases: list[tuple[dict[str, Any], grpc.StatusCode]] = [
        ({"first": True, "follow": True}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"whitelist": [flow_pb2.FlowFilter(source_ip=["10.0.0.999"])]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"whitelist": [flow_pb2.FlowFilter(http_path=["("])]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"field_mask": {"paths": ["no_such_field"]}}, grpc.StatusCode.INVALID_ARGUMENT),
    ]
    for fields, code in cases:
        with pytest.raises(grpc.RpcError) as error:
            list(get_flows(channel, **fields))
        assert error.value.code() == code
        assert len(error.value.details()) > 20


def test_a_deadline_ends_a_follower(running: Beside, channel: grpc.Channel) -> None:
    call = channel.unary_stream(
        "/observer.Observer/GetFlows", observer_pb2.GetFlowsRequest.SerializeToString, bytes
    )
    with pytest.raises(grpc.RpcError) as error:
        list(call(observer_pb2.GetFlowsRequest(follow=True), timeout=0.2))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_field_mask_keeps_only_what_it_names(running: Beside, channel: grpc.Channel) -> None:
    running.append(flow(0))
    (response,) = get_flows(channel, field_mask={"paths": ["verdict", "source.pod_name"]})
    assert response.flow == flow_pb2.Flow(
        verdict=flow_pb2.FORWARDED, source=flow_pb2.Endpoint(pod_name="client-5f")
    )


def test_status_nodes_and_namespaces(running: Beside, channel: grpc.Channel) -> None:
    running.append(*(flow(number) for number in range(4)))
    status = unary(
        channel, "ServerStatus", observer_pb2.ServerStatusRequest(), observer_pb2.ServerStatusResponse
    )
    assert (status.num_flows, status.max_flows, status.seen_flows) == (4, 1024, 4)
    assert status.version == "cilia 0.1.0"
    nodes = unary(channel, "GetNodes", observer_pb2.GetNodesRequest(), observer_pb2.GetNodesResponse)
    assert [node.name for node in nodes.nodes] == ["default/worker-1"]
    spaces = unary(
        channel, "GetNamespaces", observer_pb2.GetNamespacesRequest(), observer_pb2.GetNamespacesResponse
    )
    assert [(space.cluster, space.namespace) for space in spaces.namespaces] == [("default", "demo")]
