"""Filters over a file keep what they keep on a server."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.cli.flow_matching import Matcher
from cilia.hubble.convert import Converter
from cilia.hubble.filter_values import FilterError, UnsupportedFilter
from cilia.hubble.filters import FlowMatcher
from cilia.hubble.predicates import Context
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.hubble import CLIENT, NODE, OTHER, VARIED, WALL, events, store

STORE = store()
STORE.append([events(*VARIED)], offset=WALL)
(KEPT,) = STORE.spans(0, STORE.head)
RESPONSES = [
    observer_pb2.GetFlowsResponse.FromString(bytes(data)) for data in Converter(STORE, NODE).responses(KEPT)
]

VALUES: dict[str, list[Any]] = {
    "uuid": [RESPONSES[3].flow.uuid, "nonsense"],
    "source_ip": [CLIENT, "10.0.1.0/24", "::/0", "0.0.0.0/0", "192.0.2.1"],
    "destination_ip": [OTHER, "2001:db8::/32"],
    "source_ip_xlated": ["192.0.2.0/24", "::/0"],
    "source_pod": ["demo/", "/client", "other/db"],
    "destination_pod": ["demo/server", "other/", "/db", "server"],
    "destination_label": ["app=server", "reserved:world", "k8s:app in (db, other), !tier"],
    "source_workload": [{"name": "client"}, {"name": "client", "kind": "StatefulSet"}],
    "destination_identity": [2, 5000],
    "source_cluster_name": ["default", "west"],
    "destination_fqdn": ["*.example.com", "*.example.org"],
    "source_port": ["41000", "0", "41234"],
    "destination_port": ["80", "8000-9000"],
    "protocol": ["udp", "ICMP", "icmpv6", "icmpv4", "tcp", "http", "sctp"],
    "verdict": [1, 2, 7],
    "drop_reason_desc": [0, 133, 181],
    "event_type": [
        {"type": 1}, {"type": 5}, {"type": 129}, {"type": 4, "match_sub_type": True, "sub_type": 0},
        {"type": 1, "match_sub_type": True, "sub_type": 133},
        {"type": 7, "match_sub_type": True, "sub_type": 2}, {"type": 5, "match_sub_type": True},
    ],
    "traffic_direction": [1, 2],
    "reply": [True, False],
    "encrypted": [True, False],
    "ip_version": [0, 1, 2],
    "tcp_flags": [{"SYN": True, "ACK": True}, {"SYN": True}, {"NS": True}],
    "interface": [{"name": "lxc1234"}, {"index": 7}, {}],
    "node_name": ["worker-*", "default/", "east/worker-1"],
    "node_labels": ["zone=a", "zone=b"],
    "destination_service": ["demo/web", "demo/web-a", "demo/", "web"],
    "source_service": ["/web"],
    "ip_trace_id": [0, 7],
    "trace_id": ["abc"],
    "dns_query": ["example"],
    "http_status_code": ["404", "4+"],
    "http_method": ["GET"],
    "http_path": ["/page"],
    "http_url": ["http://.*"],
    "http_header": [{"key": "a", "value": "b"}],
}  # fmt: skip


def build(fields: dict[str, list[Any]]) -> flow_pb2.FlowFilter:
    return flow_pb2.FlowFilter(**fields)  # type: ignore[arg-type]


def on_server(allow: list[flow_pb2.FlowFilter], deny: list[flow_pb2.FlowFilter]) -> list[int]:
    mask = FlowMatcher(Context(STORE, NODE), allow, deny).mask(KEPT)
    return [int(number) for number in KEPT.numbers[mask]]


def in_file(allow: list[flow_pb2.FlowFilter], deny: list[flow_pb2.FlowFilter]) -> list[int]:
    matches = Matcher(allow, deny)
    return [number for number, response in enumerate(RESPONSES) if matches(response)]


SINGLE = [(name, value) for name, values in VALUES.items() for value in values]
TITLES = [f"{name}={'of a flow' if value == RESPONSES[3].flow.uuid else value}" for name, value in SINGLE]
"""The same in every process that collects these tests, as a uuid is not."""


@pytest.mark.parametrize(("name", "value"), SINGLE, ids=TITLES)
def test_each_value_of_each_field(name: str, value: Any) -> None:
    message = build({name: [value]})
    assert in_file([message], []) == on_server([message], [])
    assert in_file([], [message]) == on_server([], [message])


FILTERS = st.fixed_dictionaries(
    {}, optional={name: st.lists(st.sampled_from(values), min_size=1) for name, values in VALUES.items()
                  if not name.startswith(("http", "dns", "event"))}
).map(build)  # fmt: skip


@given(st.lists(FILTERS, max_size=3), st.lists(FILTERS, max_size=2))
@settings(max_examples=100, deadline=None)
def test_any_combination(allow: list[flow_pb2.FlowFilter], deny: list[flow_pb2.FlowFilter]) -> None:
    assert in_file(allow, deny) == on_server(allow, deny)


@pytest.mark.parametrize(
    "expression",
    [
        "_flow.verdict == Verdict.DROPPED",
        "_flow.l4.TCP.destination_port > 1000u && _flow.source.pod_name.startsWith('client')",
        "_flow.destination.labels.exists(l, l.startsWith('k8s:app='))",
    ],
)
def test_expressions(expression: str) -> None:
    message = flow_pb2.FlowFilter()
    message.experimental.cel_expression.append(expression)
    found = in_file([message], [])
    assert found and found == on_server([message], [])


def test_every_field_a_filter_has_is_answered() -> None:
    for field in flow_pb2.FlowFilter.DESCRIPTOR.fields:
        message = flow_pb2.FlowFilter()
        if field.name == "experimental":
            message.experimental.SetInParent()
        else:
            name = field.name.replace("destination_", "source_")
            values = VALUES.get(field.name) or VALUES.get(name) or VALUES[f"destination_{name[7:]}"]
            message = build({field.name: values[:1]})
        in_file([message], [])


def test_what_the_server_refuses_is_refused() -> None:
    for fields in ({"source_ip": ["10.0.0.300"]}, {"source_pod": [""]}, {"source_port": ["http"]},
                   {"protocol": ["quic"]}, {"http_path": ["["]}, {"http_status_code": ["6+"]},
                   {"node_labels": ["a=b=c"]}):  # fmt: skip
        with pytest.raises(FilterError):
            Matcher([build(fields)], [])
    with pytest.raises(UnsupportedFilter, match="1000"):
        Matcher([flow_pb2.FlowFilter.FromString(b"\xc0\x3e\x01")], [])


APPLICATION = """{"flow": {"l7": {"http": {"code": 404, "method": "GET", "url": "http://a.b/page/7?q=/x",
    "headers": [{"key": "X-Who", "value": "me"}]}}, "event_type": {"type": 129}}}"""


def test_application_records_of_other_servers() -> None:
    response = json_format.Parse(APPLICATION, observer_pb2.GetFlowsResponse())
    for fields, expected in (
        ({"http_status_code": ["4+"]}, True),
        ({"http_status_code": ["500"]}, False),
        ({"http_method": ["get"]}, True),
        ({"http_path": ["^/page/\\d+$"]}, True),
        ({"http_path": ["q="]}, False),
        ({"http_url": ["q="]}, True),
        ({"http_header": [{"key": "x-who", "value": "me"}]}, True),
        ({"http_header": [{"key": "x-who", "value": "you"}]}, False),
        ({"protocol": ["http"]}, True),
        ({"dns_query": [".*"]}, False),
    ):
        assert Matcher([build(fields)], [])(response) is expected, fields


def test_what_is_no_flow_passes() -> None:
    lost = observer_pb2.GetFlowsResponse()
    lost.lost_events.num_events_lost = 5
    assert Matcher([build({"verdict": [2]})], [])(lost)
