"""What the backend of Hubble UI asks an observer, and what the browser needs of the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.grpc_client import get_flows, unary
from tests.support.hubble import OTHER, Beside, beside, directory, flow

pytestmark = pytest.mark.timeout(60)

BASE = {"event_type": [{"type": 1}, {"type": 4}, {"type": 129}, {"type": 5}], "reply": [False]}
NAMESPACE = [BASE | {"source_pod": ["demo/"]}, BASE | {"destination_pod": ["demo/"]}]
HIDDEN: list[dict[str, Any]] = [
    {"source_label": ["reserved:unknown", "reserved:host", "k8s:k8s-app=kube-dns", "reserved:remote-node"]},
    {"destination_label": ["reserved:unknown", "reserved:host", "reserved:remote-node"]},
    {"destination_label": ["k8s:k8s-app=kube-dns"], "destination_port": ["53"]},
    {"source_fqdn": ["*.cluster.local*"]},
    {"destination_fqdn": ["*.cluster.local*"]},
]
WORLD: dict[str, Any] = {
    "destination": "192.0.2.80", "destination_identity": 2, "destination_endpoint": 0, "direction": 2,
}  # fmt: skip


def filters(told: Iterable[dict[str, Any]]) -> list[flow_pb2.FlowFilter]:
    return [json_format.ParseDict(each, flow_pb2.FlowFilter()) for each in told]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Beside]:
    """An observer that knows the host, as agents do."""
    known = directory()
    known.identity_labels[1] = ("reserved:host",)
    with beside(tmp_path / "hubble.sock", directory=known) as running:
        yield running


def test_the_service_map_of_a_namespace(running: Beside, channel: grpc.Channel) -> None:
    stream = get_flows(
        channel, number=10_000, follow=True, whitelist=filters(NAMESPACE), blacklist=filters(HIDDEN)
    )
    running.append(
        flow(0),
        flow(1, flags=1, state=3),
        flow(2, kind=1, verdict=2, reason=132, state=0, point=0),
        flow(3, **WORLD),
        flow(4, source=OTHER, source_identity=5000, source_endpoint=0, destination=OTHER,
             destination_identity=5000, destination_endpoint=0),
        flow(5, kind=3, verdict=4, direction=2),
        flow(6, destination="10.0.0.1", destination_identity=1, destination_endpoint=0),
        flow(7, kind=4, point=1, verdict=6, state=0),
        flow(9, kind=1, verdict=2, reason=172, state=0, point=0, source="::", source_identity=0,
             source_endpoint=0),
        flow(8, kind=1, verdict=2, reason=133),
    )  # fmt: skip
    found = [next(stream).flow for _ in range(5)]
    assert [each.l4.TCP.source_port - 10_000 for each in found] == [0, 2, 3, 5, 8]
    for each in found:
        assert each.source.identity and each.source.labels and each.source.namespace == "demo"
        assert each.destination.labels and each.l4.TCP.destination_port and each.verdict
        assert each.traffic_direction and each.HasField("time") and each.uuid
    assert (found[2].destination.labels, found[2].destination_names) == (
        ["reserved:world"],
        ["www.example.com"],
    )
    stream.cancel()


def test_audited_flows_only(running: Beside, channel: grpc.Channel) -> None:
    running.append(flow(0), flow(1, kind=3, verdict=4, direction=2))
    asked = {"event_type": [{"type": 5}], "verdict": ["AUDIT"], "reply": [False]}
    (found,) = get_flows(channel, number=10_000, whitelist=filters([asked]))
    assert found.flow.verdict == flow_pb2.AUDIT


def test_the_bar_of_states(running: Beside, channel: grpc.Channel) -> None:
    running.append(flow(0))
    status = unary(
        channel, "ServerStatus", observer_pb2.ServerStatusRequest(), observer_pb2.ServerStatusResponse
    )
    assert (status.num_flows, status.max_flows, status.seen_flows) == (1, 1024, 1)
    assert (status.num_connected_nodes.value, status.num_unavailable_nodes.value) == (1, 0)
    assert status.version and not status.unavailable_nodes
    told = unary(channel, "GetNodes", observer_pb2.GetNodesRequest(), observer_pb2.GetNodesResponse)
    (node,) = json_format.MessageToDict(told, preserving_proto_field_name=True)["nodes"]
    assert node.keys() >= {
        "name",
        "version",
        "address",
        "state",
        "tls",
        "num_flows",
        "max_flows",
        "seen_flows",
    }
    assert (node["name"], node["state"]) == ("default/worker-1", "NODE_CONNECTED")
