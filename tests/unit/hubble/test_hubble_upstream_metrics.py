"""The queries of Cilium's public dashboards and of usual alerts find their series here.

A query is told as what it needs: a metric, values that labels are compared with, and labels it groups by.
Names, labels and values are those of Cilium's four Hubble dashboards ("Hubble", "Network Overview
(Namespace)", "DNS Overview (Namespace)", "L7 HTTP Metrics by Workload") and
of its policy verdicts dashboard.
"""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from cilia.apps.agent.metrics import AgentCollector, HubbleNumbers, KernelNumbers, PolicyNumbers
from cilia.hubble.metrics.batch import Batch
from cilia.hubble.metrics.kinds import KINDS
from cilia.hubble.metrics.options import parse
from cilia.hubble.metrics.processor import FlowMetrics
from cilia.hubble.store import Loss
from cilia.kit.clock import ManualClock
from cilia.schema import Desired, Inputs
from tests.support.hubble import ALLOW_WEB, CLIENT, NODE, SERVER, WALL, events, store

CONTEXT = (
    "sourceContext=workload-name|reserved-identity;destinationContext=workload-name|reserved-identity;"
    "labelsContext=source_namespace,destination_namespace,source_workload,destination_workload,traffic_direction"
)
METRICS = f"""dns:query;{CONTEXT} drop:{CONTEXT} tcp:{CONTEXT} flow:{CONTEXT} icmp:{CONTEXT} port-distribution
    policy:{CONTEXT} flows-to-world:any-drop;port;{CONTEXT} httpV2:{CONTEXT}"""
"""What the pages of these dashboards ask to be switched on, by the words of --hubble-metrics."""

BETWEEN: dict[str, str] = {"source_namespace": "demo", "destination_namespace": "demo"}

Query = tuple[str, dict[str, str], tuple[str, ...]]

QUERIES: list[Query] = [
    ("hubble_flows_processed_total", {"type": "Trace"}, ("type", "subtype", "verdict", "protocol")),
    ("hubble_flows_processed_total", {"type": "Trace", "subtype": "to-endpoint"}, ()),
    ("hubble_flows_processed_total", {"type": "Trace", "subtype": "to-network"}, ("destination",)),
    ("hubble_flows_processed_total", {"type": "Drop", "verdict": "DROPPED"}, ("source", "destination")),
    ("hubble_flows_processed_total", {"type": "PolicyVerdict", "verdict": "AUDIT"}, ()),
    ("hubble_flows_processed_total", BETWEEN | {"verdict": "FORWARDED"}, ("source", "destination")),
    ("hubble_flows_processed_total", {"traffic_direction": "ingress"}, ("source_workload",)),
    ("hubble_drop_total", BETWEEN | {"reason": "POLICY_DENIED"}, ("source", "destination", "protocol")),
    ("hubble_tcp_flags_total", BETWEEN | {"flag": "SYN"}, ("source", "family")),
    ("hubble_tcp_flags_total", BETWEEN | {"flag": "SYN-ACK"}, ("destination",)),
    ("hubble_tcp_flags_total", {"flag": "FIN", "family": "IPv4"}, ()),
    ("hubble_tcp_flags_total", {"flag": "RST", "family": "IPv6"}, ()),
    ("hubble_icmp_total", BETWEEN | {"type": "EchoRequest"}, ("source", "family")),
    ("hubble_icmp_total", BETWEEN | {"type": "EchoReply"}, ("destination",)),
    ("hubble_icmp_total", {"type": "DestinationUnreachable(Port)"}, ()),
    ("hubble_port_distribution_total", {"port": "8080", "protocol": "TCP"}, ()),
    ("hubble_port_distribution_total", {"port": "0", "protocol": "ICMPv4"}, ()),
    (
        "hubble_policy_verdicts_total",
        {"direction": "ingress", "match": "l3-l4", "action": "forwarded"},
        ("source",),
    ),
    ("hubble_policy_verdicts_total", {"direction": "ingress", "action": "dropped"}, ("destination",)),
    ("hubble_policy_verdicts_total", {"direction": "egress", "action": "audit"}, ("source_namespace",)),
    ("hubble_flows_to_world_total", {"verdict": "FORWARDED", "port": "53"}, ("source", "protocol")),
    ("hubble_lost_events_total", {"source": "perf_event_ring_buffer"}, ()),
    ("hubble_lost_events_total", {"source": "hubble_ring_buffer"}, ()),
]

AGENT_QUERIES: list[Query] = [
    ("cilium_drop_count_total", {"reason": "Policy denied", "direction": "INGRESS"}, ()),
    ("cilium_drop_count_total", {"reason": "Policy denied by denylist", "direction": "EGRESS"}, ()),
    ("cilium_drop_bytes_total", {"reason": "Stale or unroutable IP", "direction": "EGRESS"}, ()),
    ("cilium_forward_count_total", {"direction": "EGRESS"}, ()),
    ("cilium_forward_bytes_total", {"direction": "INGRESS"}, ()),
    ("cilium_version", {}, ("version",)),
]

LATER: dict[str, set[str]] = {
    "hubble_dns_queries_total": {"query", "qtypes", "ips_returned", "rcode", "source_namespace", "source"},
    "hubble_dns_responses_total": {"rcode", "qtypes", "ips_returned", "destination_namespace", "destination"},
    "hubble_dns_response_types_total": {"type", "query"},
    "hubble_http_requests_total": {"method", "status", "reporter", "source_workload", "destination_workload"},
    "hubble_http_request_duration_seconds": {"method", "reporter", "source_namespace", "source_workload"},
}
"""Metrics whose records are not made yet: what is asked of their labels."""

ROWS: list[dict[str, Any]] = [
    {"ingress_cookie": ALLOW_WEB, "ingress_match": 2},
    {"source": SERVER, "destination": CLIENT, "source_identity": 1234, "destination_identity": 4321,
     "flags": 1, "state": 3, "tcp_flags": 0x12, "direction": 2, "source_endpoint": 102,
     "destination_endpoint": 101},
    {"tcp_flags": 0x11},
    {"tcp_flags": 0x04, "flags": 2},
    {"protocol": 1, "icmp_type": 8, "source_port": 0, "destination_port": 0},
    {"protocol": 1, "icmp_type": 0, "source_port": 0, "destination_port": 0, "flags": 1, "state": 3},
    {"protocol": 1, "icmp_type": 3, "icmp_code": 3, "source_port": 0, "destination_port": 0},
    {"kind": 1, "verdict": 2, "reason": 133, "point": 0},
    {"kind": 3, "verdict": 4, "reason": 133, "direction": 2},
    {"protocol": 17, "destination": "192.0.2.80", "destination_identity": 2, "destination_endpoint": 0,
     "destination_port": 53, "direction": 2, "point": 11},
]  # fmt: skip


@pytest.fixture(scope="module")
def scraped() -> dict[str, list[dict[str, str]]]:
    """What /metrics of Hubble tells: labels of each series by name."""
    flows = store()
    made = FlowMetrics(flows, NODE, ManualClock())
    made.configure(parse(" ".join(METRICS.split())))
    flows.append([events(*ROWS)], [Loss(count=5, cpu=1)], offset=WALL)
    for family in made.families:
        for rows in flows.spans(0, flows.head):
            family.take(Batch(rows), 0.0)
    return by_name(list(text_string_to_metric_families(b"".join(made.text()).decode())))


@pytest.fixture(scope="module")
def scraped_of_agent() -> dict[str, list[dict[str, str]]]:
    """The same of the agent."""
    counted = [(0, 1, 1, 1), (0, 2, 1, 1), (133, 1, 1, 1), (181, 2, 1, 1), (151, 2, 1, 1)]
    collector = AgentCollector(
        Inputs(), Desired(), lambda: KernelNumbers(counters=counted), HubbleNumbers, PolicyNumbers
    )
    return by_name(list(collector.collect()))


def by_name(families: list[Metric]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def finds(series: dict[str, list[dict[str, str]]], query: Query) -> bool:
    """Whether a series has these values, and all labels it is grouped by."""
    name, matched, grouped = query
    return any(
        matched.items() <= labels.items() and set(grouped) <= labels.keys() for labels in series.get(name, ())
    )


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_queries_of_flows_find_their_series(scraped: dict[str, list[dict[str, str]]], query: Query) -> None:
    assert finds(scraped, query), scraped.get(query[0])


@pytest.mark.parametrize("query", AGENT_QUERIES, ids=str)
def test_queries_of_the_agent_find_their_series(
    scraped_of_agent: dict[str, list[dict[str, str]]], query: Query
) -> None:
    assert finds(scraped_of_agent, query), scraped_of_agent.get(query[0])


def test_metrics_that_come_later_have_their_labels_now() -> None:
    flows = store()
    made = FlowMetrics(flows, NODE, ManualClock())
    made.configure(parse(" ".join(METRICS.split())))
    declared = {}
    for family in made.families:
        for series in family.kind.series:
            ending = "_total" if series.type == "counter" else ""
            declared[series.name + ending] = {*series.labels, *family.side_labels}
    for name, labels in LATER.items():
        assert labels <= declared[name], name


def test_every_metric_that_cilium_has_can_be_asked_for() -> None:
    assert {
        "dns", "drop", "flow", "flows-to-world", "http", "httpV2", "icmp", "kafka", "policy",
        "port-distribution", "tcp",
    } <= KINDS.keys()  # fmt: skip
