"""Flows of each kind as JSON, field by field, and printed, as clients and scripts of Hubble know them.

What is expected are the fields that Cilium's flow of the same packet has, under its names, with its numbers
and words. What this data path tells beyond that stands in `more`, and in docs/hubble.md under "What differs".
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format

from cilia.cli import flows
from cilia.cli.flow_json import Writer, to_json
from cilia.hubble.convert import Converter
from cilia.hubble.store import LossRow, LossSource
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2
from tests.support.hubble import (
    ALLOW_WEB,
    CLIENT,
    CLIENT6,
    DEFAULT_DENY,
    DENY_DB,
    FILES,
    NODE,
    OTHER,
    SERVER,
    SERVER6,
    WALL,
    events,
    store,
)

Json = dict[str, Any]

CLIENT_END: Json = {
    "ID": 101, "identity": 4321, "cluster_name": "default", "namespace": "demo", "pod_name": "client-5f",
    "labels": ["k8s:app=client", "k8s:io.kubernetes.pod.namespace=demo"],
    "workloads": [{"name": "client", "kind": "Deployment"}],
}  # fmt: skip
SERVER_END: Json = {
    "ID": 102, "identity": 1234, "cluster_name": "default", "namespace": "demo", "pod_name": "server-0",
    "labels": ["k8s:app=server", "k8s:io.kubernetes.pod.namespace=demo", "k8s:tier=web"],
}  # fmt: skip
WORLD_END: Json = {"identity": 2, "labels": ["reserved:world"]}
FAR_END: Json = {
    "identity": 5000, "cluster_name": "default", "namespace": "other", "pod_name": "db-0",
    "labels": ["k8s:app=db", "k8s:io.kubernetes.pod.namespace=other"],
}  # fmt: skip
ANY_FLOW: Json = {
    "time": "2026-11-23T04:26:40.001234567Z",
    "node_name": "default/worker-1",
    "node_labels": ["zone=a"],
    "source": CLIENT_END,
    "destination": SERVER_END,
    "Type": "L3_L4",
}
FORWARDED: Json = {
    "verdict": "FORWARDED",
    "IP": {"source": CLIENT, "destination": SERVER, "ipVersion": "IPv4"},
    "event_type": {"type": 4},
    "traffic_direction": "INGRESS",
    "trace_observation_point": "TO_ENDPOINT",
    "trace_reason": "NEW",
    "is_reply": False,
}
SYN: Json = {
    "l4": {"TCP": {"source_port": 41234, "destination_port": 8080, "flags": {"SYN": True}}},
    "Summary": "TCP Flags: SYN",
}
DROPPED: Json = {
    "verdict": "DROPPED",
    "IP": {"source": CLIENT, "destination": SERVER, "ipVersion": "IPv4"},
    "traffic_direction": "INGRESS",
    "file": {"name": "policy", "line": 120},
}
TO_WORLD: Json = {
    "destination": "192.0.2.80", "destination_identity": 2, "destination_endpoint": 0, "direction": 2,
    "point": 11,
}  # fmt: skip
POLICY_FILE = next(number for number, name in FILES.items() if name == "policy")


def policy(kind: str, name: str, path: str, namespace: str = "demo") -> Json:
    """A policy in a flow; its last two labels are our own."""
    start = "k8s:io.cilium.k8s.policy."
    labels = [f"{start}derived-from={kind}", f"{start}name={name}"]
    labels += [f"{start}namespace={namespace}"] if namespace else []
    told: Json = {
        "name": name,
        "labels": [*labels, f"cilia:rule={path}", "cilia:resource-version=7"],
        "kind": kind,
    }
    return told | ({"namespace": namespace} if namespace else {})


ALLOWED_BY = [policy("CiliumNetworkPolicy", "allow-web", "spec.ingress[0]")]
ISOLATED_BY = [policy("CiliumNetworkPolicy", "allow-web", "spec"), policy("NetworkPolicy", "isolate", "spec")]
DENIED_BY = [policy("CiliumClusterwideNetworkPolicy", "no-db", "spec.egressDeny[1].toEndpoints[0]", "")]

# Kind: fields of the event; what Cilium tells of it, and what we tell beyond that; the printed line.
KINDS: dict[str, tuple[Json, Json, Json, str]] = {
    "a forwarded SYN": (
        {},
        FORWARDED | SYN,
        {},
        "{client} -> {server} to-endpoint FORWARDED (TCP Flags: SYN)",
    ),
    "its answer": (
        {"source": SERVER, "destination": CLIENT, "source_identity": 1234, "destination_identity": 4321,
         "source_endpoint": 102, "destination_endpoint": 101, "source_port": 8080, "destination_port": 41234,
         "tcp_flags": 0x12, "flags": 1, "state": 3, "direction": 2},
        FORWARDED | {
            "IP": {"source": SERVER, "destination": CLIENT, "ipVersion": "IPv4"},
            "source": SERVER_END, "destination": CLIENT_END, "traffic_direction": "EGRESS",
            "l4": {"TCP": {"source_port": 8080, "destination_port": 41234,
                           "flags": {"SYN": True, "ACK": True}}},
            "trace_reason": "REPLY", "is_reply": True, "reply": True, "Summary": "TCP Flags: SYN, ACK",
        },
        {},
        "{client} <- {server} to-endpoint FORWARDED"
        " (TCP Flags: SYN, ACK)",
    ),
    "dropped by a rule": (
        {"kind": 1, "verdict": 2, "reason": 181, "point": 0, "state": 0, "direction": 2, "file": POLICY_FILE,
         "line": 120, "egress_cookie": DENY_DB},
        DROPPED | SYN | {
            "drop_reason": 181, "drop_reason_desc": "POLICY_DENY", "event_type": {"type": 1, "sub_type": 181},
            "traffic_direction": "EGRESS", "egress_denied_by": DENIED_BY,
        },
        {},
        "{client} <> {server} Policy denied by denylist DROPPED"
        " (TCP Flags: SYN)",
    ),
    "dropped by default": (
        {"kind": 1, "verdict": 2, "reason": 133, "point": 0, "state": 1, "file": POLICY_FILE, "line": 120,
         "ingress_cookie": DEFAULT_DENY},
        DROPPED | SYN | {
            "drop_reason": 133, "drop_reason_desc": "POLICY_DENIED",
            "event_type": {"type": 1, "sub_type": 133},
            "ingress_denied_by": ISOLATED_BY,
        },
        {"is_reply": False},
        "{client} -> {server} Policy denied DROPPED (TCP Flags: SYN)",
    ),
    "allowed by policy": (
        {"kind": 3, "point": 0, "ingress_match": 2, "ingress_cookie": ALLOW_WEB},
        SYN | {
            "verdict": "FORWARDED", "IP": FORWARDED["IP"], "event_type": {"type": 5},
            "traffic_direction": "INGRESS", "policy_match_type": 2, "is_reply": False,
            "ingress_allowed_by": ALLOWED_BY, "policy_log": ["web traffic"],
        },
        {},
        "{client} -> {server} policy-verdict:L3-L4 INGRESS ALLOWED"
        " (TCP Flags: SYN)",
    ),
    "let pass by audit": (
        {"kind": 3, "verdict": 4, "reason": 133, "direction": 2, "egress_cookie": DENY_DB},
        SYN | {
            "verdict": "AUDIT", "IP": FORWARDED["IP"], "event_type": {"type": 5},
            "traffic_direction": "EGRESS", "is_reply": False, "egress_denied_by": DENIED_BY,
        },
        {},
        "{client} -> {server} policy-verdict:none EGRESS AUDITED"
        " (TCP Flags: SYN)",
    ),
    "a ping": (
        {"protocol": 1, "icmp_type": 8, "source_port": 0, "destination_port": 0},
        FORWARDED | {"l4": {"ICMPv4": {"type": 8}}, "Summary": "ICMPv4 EchoRequest"},
        {},
        "demo/client-5f (ID:4321) -> demo/server-0 (ID:1234) to-endpoint FORWARDED (ICMPv4 EchoRequest)",
    ),
    "a ping over IPv6 that found no port": (
        {"protocol": 58, "icmp_type": 1, "icmp_code": 4, "source_port": 0, "destination_port": 0, "flags": 2,
         "source": CLIENT6, "destination": SERVER6, "state": 4},
        FORWARDED | {
            "IP": {"source": CLIENT6, "destination": SERVER6, "ipVersion": "IPv6"},
            "l4": {"ICMPv6": {"type": 1, "code": 4}}, "trace_reason": "RELATED",
            "Summary": "ICMPv6 DestinationUnreachable(PortUnreachable)",
        },
        {},
        "demo/client-5f (ID:4321) -> demo/server-0 (ID:1234) to-endpoint FORWARDED"
        " (ICMPv6 DestinationUnreachable(PortUnreachable))",
    ),
    "UDP to the world": (
        TO_WORLD | {"protocol": 17, "destination_port": 53, "ifindex": 7},
        FORWARDED | {
            "IP": {"source": CLIENT, "destination": "192.0.2.80", "ipVersion": "IPv4"},
            "destination": WORLD_END, "destination_names": ["www.example.com"],
            "l4": {"UDP": {"source_port": 41234, "destination_port": 53}},
            "event_type": {"type": 4, "sub_type": 11}, "trace_observation_point": "TO_NETWORK",
            "traffic_direction": "EGRESS", "interface": {"index": 7, "name": "lxc1234"}, "Summary": "UDP",
        },
        {},
        "{client} -> www.example.com:53 (world) to-network FORWARDED (UDP)",
    ),
    "SCTP to the world over IPv6": (
        TO_WORLD | {"protocol": 132, "flags": 2, "source": CLIENT6, "destination": "2001:db8::1"},
        FORWARDED | {
            "IP": {"source": CLIENT6, "destination": "2001:db8::1", "ipVersion": "IPv6"},
            "destination": WORLD_END, "l4": {"SCTP": {"source_port": 41234, "destination_port": 8080}},
            "event_type": {"type": 4, "sub_type": 11}, "trace_observation_point": "TO_NETWORK",
            "traffic_direction": "EGRESS", "Summary": "SCTP",
        },
        {},
        "{client} -> [2001:db8::1]:8080 (world) to-network FORWARDED (SCTP)",
    ),
    "into the tunnel": (
        {"destination": OTHER, "destination_identity": 5000, "destination_endpoint": 0, "direction": 2,
         "point": 4, "tunnel": "192.0.2.2", "vni": 4321},
        FORWARDED | SYN | {
            "IP": {"source": CLIENT, "destination": OTHER, "ipVersion": "IPv4"}, "destination": FAR_END,
            "event_type": {"type": 4, "sub_type": 4}, "trace_observation_point": "TO_OVERLAY",
            "traffic_direction": "EGRESS",
        },
        {"tunnel": {"protocol": "VXLAN", "vni": 4321,
                    "IP": {"destination": "192.0.2.2", "ipVersion": "IPv4"}}},
        "{client} -> other/db-0:8080 (ID:5000) to-overlay FORWARDED (TCP Flags: SYN)",
    ),
    "a socket's address after translation": (
        {"kind": 4, "verdict": 7, "point": 2, "state": 0, "direction": 0, "tcp_flags": 0, "source_port": 0,
         "socket_cookie": 1 << 60, "cgroup": 77},
        {
            "verdict": "TRANSLATED", "IP": FORWARDED["IP"], "l4": {"TCP": {"destination_port": 8080}},
            "Type": "SOCK", "event_type": {"type": 7, "sub_type": 2},
            "sock_xlate_point": "SOCK_XLATE_POINT_POST_DIRECTION_FWD",
            "socket_cookie": str(1 << 60), "cgroup_id": "77", "Summary": "TCP",
        },
        {},
        "demo/client-5f (ID:4321) <> {server} post-xlate-fwd TRANSLATED (TCP)",
    ),
    "a packet to a service": (
        {"service": 9, "original_destination": "10.96.0.7", "original_destination_port": 80},
        FORWARDED | SYN,
        {"destination_service": {"name": "web", "namespace": "demo"},
         "Summary": "TCP Flags: SYN, via 10.96.0.7:80"},
        "{client} -> demo/web (demo/server-0:8080) (ID:1234) to-endpoint FORWARDED"
        " (TCP Flags: SYN, via 10.96.0.7:80)",
    ),
    "a source that was translated": (
        TO_WORLD | {"source": "192.0.2.1", "original_source": CLIENT, "original_source_port": 41234,
                    "source_port": 50000},
        FORWARDED | SYN | {
            "IP": {"source": CLIENT, "source_xlated": "192.0.2.1", "destination": "192.0.2.80",
                   "ipVersion": "IPv4"},
            "destination": WORLD_END, "destination_names": ["www.example.com"],
            "event_type": {"type": 4, "sub_type": 11}, "trace_observation_point": "TO_NETWORK",
            "traffic_direction": "EGRESS",
        },
        {},
        "{client} -> www.example.com:8080 (world) to-network FORWARDED (TCP Flags: SYN)",
    ),
    "no IP at all": (
        {"kind": 1, "verdict": 2, "reason": 139, "point": 0, "state": 0, "direction": 2, "source": "::",
         "destination": "::", "source_identity": 0, "destination_identity": 0, "source_endpoint": 0,
         "destination_endpoint": 0, "protocol": 0, "source_port": 0, "destination_port": 0,
         "source_mac": "0a:00:00:00:00:01", "destination_mac": "ff:ff:ff:ff:ff:ff"},
        {
            "verdict": "DROPPED", "drop_reason": 139, "drop_reason_desc": "UNSUPPORTED_L3_PROTOCOL",
            "ethernet": {"source": "0a:00:00:00:00:01", "destination": "ff:ff:ff:ff:ff:ff"},
            "source": {"labels": ["reserved:unknown"]}, "destination": {"labels": ["reserved:unknown"]},
            "event_type": {"type": 1, "sub_type": 139},
            "traffic_direction": "EGRESS",
        },
        {},
        "0a:00:00:00:00:01 (unknown) <> ff:ff:ff:ff:ff:ff (unknown) Unsupported L3 protocol DROPPED ()",
    ),
}  # fmt: skip


def answer(fields: Json) -> observer_pb2.GetFlowsResponse:
    """What a client gets of one event."""
    held = store()
    held.append([events({"time": 1_234_567, **fields})], offset=WALL)
    (rows,) = held.spans(0, held.head)
    (data,) = Converter(held, NODE).responses(rows)
    return observer_pb2.GetFlowsResponse.FromString(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
def test_json_of_each_kind(kind: str) -> None:
    fields, known, more, _ = KINDS[kind]
    line = Writer()(answer(fields))
    told = json.loads(line)
    assert line.startswith('{"flow":{"time":"2026-')
    assert told.pop("node_name") == "default/worker-1"
    assert told.pop("time") == "2026-11-23T04:26:40.001234567Z"
    assert told["flow"].pop("uuid").count("-") == 4
    assert told == {"flow": ANY_FLOW | known | more}


@pytest.mark.parametrize("kind", KINDS)
def test_the_line_of_each_kind(kind: str) -> None:
    fields, _, _, line = KINDS[kind]
    line = line.format(client="demo/client-5f:41234 (ID:4321)", server="demo/server-0:8080 (ID:1234)")
    plain = flows.Style(rules=False)
    assert flows.compact(answer(fields), plain) == f"Nov 23 04:26:40.001: {line}"
    with_node = flows.compact(answer(fields), flows.Style(rules=False, node=True))
    assert with_node == f"Nov 23 04:26:40.001 [default/worker-1]: {line}"


def test_a_table_and_a_block() -> None:
    style = flows.Style(rules=False, node=True)
    response = answer({})
    titles, row = flows.aligned([flows.table_row(response, style)], style)
    assert titles.split() == ["TIMESTAMP", "NODE", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"]
    assert row == (
        "Nov 23 04:26:40.001   default/worker-1   demo/client-5f:41234   demo/server-0:8080   to-endpoint   "
        "FORWARDED   TCP Flags: SYN"
    )
    assert flows.block(response, style).splitlines()[:7] == [
        "  TIMESTAMP: Nov 23 04:26:40.001",
        "       NODE: default/worker-1",
        "     SOURCE: demo/client-5f:41234 (ID:4321)",
        "DESTINATION: demo/server-0:8080 (ID:1234)",
        "       TYPE: to-endpoint",
        "    VERDICT: FORWARDED",
        "    SUMMARY: TCP Flags: SYN",
    ]


def test_a_gap_in_both_forms() -> None:
    held = store()
    source, last = LossSource.PERF_EVENT_RING_BUFFER, WALL + 1_000_000_000
    loss = LossRow(serial=0, position=0, source=source, count=5, cpu=1, first=WALL, last=last)
    lost = observer_pb2.GetFlowsResponse.FromString(Converter(held, NODE).lost(loss))
    told = json.loads(Writer()(lost))
    assert told["lost_events"] == {
        "source": "PERF_EVENT_RING_BUFFER", "num_events_lost": "5", "cpu": 1,
        "first": "2026-11-23T04:26:40Z", "last": "2026-11-23T04:26:41Z",
    }  # fmt: skip
    assert flows.gap_text(lost, flows.Style()).endswith(": EVENTS LOST: PERF_EVENT_RING_BUFFER CPU(1) 5")


@pytest.mark.parametrize(
    ("state", "names", "message", "words"),
    [
        (relay_pb2.NODE_CONNECTED, ["a", "b"], "", "Receiving flows from 2 nodes: a, b"),
        (relay_pb2.NODE_UNAVAILABLE, ["a"], "", "1 nodes are unavailable: a"),
        (relay_pb2.NODE_GONE, ["a"], "", "1 nodes removed from cluster: a"),
        (relay_pb2.NODE_ERROR, ["a"], 'no "disk"', 'Error "no \\"disk\\"" on 1 nodes: a'),
        (
            relay_pb2.NODE_UNAVAILABLE,
            [f"default/worker-{number}" for number in range(5)],
            "",
            "5 nodes are unavailable: default/worker-0, default/worker-1 (and 3 more)",
        ),
    ],
)
def test_states_of_nodes(
    state: relay_pb2.NodeState.ValueType, names: list[str], message: str, words: str
) -> None:
    told = observer_pb2.GetFlowsResponse(node_name="relay")
    told.time.FromNanoseconds(WALL)
    told.node_status.state_change, told.node_status.message = state, message
    told.node_status.node_names.extend(names)
    assert flows.node_text(told, flows.Style()) == f"Nov 23 04:26:40.000 [relay]: {words}"
    assert json.loads(to_json(told))["node_status"]["state_change"] == relay_pb2.NodeState.Name(state)


def recorded(**fields: Any) -> flow_pb2.Flow:
    """A flow out of a file that another agent's flows were written to."""
    return json_format.ParseDict(fields, flow_pb2.Flow())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"event_type": {"type": 129}, "l7": {"type": "REQUEST", "dns": {"observation_source": "proxy"}}},
         "dns-request proxy"),
        ({"event_type": {"type": 129}, "l7": {"type": "RESPONSE", "http": {}}}, "http-response"),
        ({"event_type": {"type": 4}}, "to-endpoint"),
        ({"event_type": {"type": 4, "sub_type": 13}}, "to-crypto"),
        ({"event_type": {"type": 1, "sub_type": 206}}, "No device"),
        ({"event_type": {"type": 1, "sub_type": 99}}, "99"),
        ({"event_type": {"type": 3}, "debug_capture_point": "DBG_CAPTURE_DELIVERY"}, "DBG_CAPTURE_DELIVERY"),
        ({"event_type": {"type": 5}, "policy_match_type": 6, "traffic_direction": "INGRESS"},
         "policy-verdict:Proto-Only INGRESS"),
        ({}, "UNKNOWN"),
    ],
)  # fmt: skip
def test_kinds_that_only_other_agents_have(fields: Json, words: str) -> None:
    assert flows.what(recorded(**fields)) == words


def test_outcomes_and_summaries_that_only_other_agents_have() -> None:
    judged = {"event_type": {"type": 5}}
    told = [flows.outcome(recorded(verdict=word, **judged)) for word in ("REDIRECTED", "ERROR", "DROPPED")]
    assert told == ["ALLOWED", "DENIED", "DENIED"]
    assert flows.outcome(recorded(verdict="REDIRECTED", event_type={"type": 4})) == "REDIRECTED"
    proven = recorded(Summary="UDP", auth_type="SPIRE", ip_trace_id={"trace_id": "7"})
    assert flows.summary(proven) == "IP Trace ID: 7; UDP; SPIRE"
