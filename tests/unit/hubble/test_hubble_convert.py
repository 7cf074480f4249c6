"""Rows become exactly the messages the protobuf library would make of the same facts."""

from __future__ import annotations

import ipaddress
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.hubble import convert, encode
from cilia.hubble.convert import Converter, NodeFacts, file_names
from cilia.hubble.directory import Service
from cilia.hubble.store import FlowStore, Loss
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.hubble import (
    ALLOW_WEB,
    CLIENT,
    CLIENT6,
    DEFAULT_DENY,
    DENY_DB,
    OPEN,
    OTHER,
    SERVER,
    SERVER6,
    WALL,
    directory,
    events,
    store,
)

NODE = NodeFacts(
    name="default/worker-1", labels=("zone=a",), files=file_names({"FILE_UNKNOWN": 0, "FILE_PARSE": 5})
)


def responses(flows: FlowStore, converter: Converter | None = None) -> list[observer_pb2.GetFlowsResponse]:
    converter = converter or Converter(flows, NODE)
    return [
        observer_pb2.GetFlowsResponse.FromString(data)
        for rows in flows.spans(0, flows.head)
        for data in converter.responses(rows)
    ]


def one(**fields: Any) -> flow_pb2.Flow:
    flows = store()
    flows.append([events(fields)], offset=WALL)
    return responses(flows)[0].flow


def test_a_forwarded_syn_in_every_field() -> None:
    flow = one(
        time=1_234_567, ifindex=7, source_mac="0a:00:00:00:00:01", destination_mac="0a:00:00:00:00:02",
        ingress_cookie=ALLOW_WEB,
    )  # fmt: skip
    assert uuid.UUID(flow.uuid).version == 4
    flow.ClearField("uuid")
    cnp = "k8s:io.cilium.k8s.policy."
    expected = flow_pb2.Flow(
        verdict=flow_pb2.FORWARDED,
        ethernet=flow_pb2.Ethernet(source="0a:00:00:00:00:01", destination="0a:00:00:00:00:02"),
        IP=flow_pb2.IP(source=CLIENT, destination=SERVER, ipVersion=flow_pb2.IPv4),
        l4=flow_pb2.Layer4(
            TCP=flow_pb2.TCP(source_port=41234, destination_port=8080, flags=flow_pb2.TCPFlags(SYN=True))
        ),
        source=flow_pb2.Endpoint(
            ID=101,
            identity=4321,
            cluster_name="default",
            namespace="demo",
            labels=["k8s:app=client", "k8s:io.kubernetes.pod.namespace=demo"],
            pod_name="client-5f",
            workloads=[flow_pb2.Workload(name="client", kind="Deployment")],
        ),
        destination=flow_pb2.Endpoint(
            ID=102,
            identity=1234,
            cluster_name="default",
            namespace="demo",
            labels=["k8s:app=server", "k8s:io.kubernetes.pod.namespace=demo", "k8s:tier=web"],
            pod_name="server-0",
        ),
        Type=flow_pb2.L3_L4,
        node_name="default/worker-1",
        node_labels=["zone=a"],
        event_type=flow_pb2.CiliumEventType(type=4),
        traffic_direction=flow_pb2.INGRESS,
        trace_observation_point=flow_pb2.TO_ENDPOINT,
        trace_reason=flow_pb2.NEW,
        is_reply={"value": False},  # type: ignore[arg-type]
        interface=flow_pb2.NetworkInterface(index=7, name="lxc1234"),
        Summary="TCP Flags: SYN",
        ingress_allowed_by=[
            flow_pb2.Policy(
                name="allow-web",
                namespace="demo",
                kind="CiliumNetworkPolicy",
                labels=[
                    f"{cnp}derived-from=CiliumNetworkPolicy",
                    f"{cnp}name=allow-web",
                    f"{cnp}namespace=demo",
                    "cilia:rule=spec.ingress[0]",
                    "cilia:resource-version=7",
                ],
            )
        ],
        policy_log=["web traffic"],
    )
    expected.time.FromNanoseconds(WALL + 1_234_567)
    assert flow == expected


def test_a_default_deny_names_the_policies_that_isolate() -> None:
    flow = one(kind=1, point=0, verdict=2, reason=133, ingress_cookie=DEFAULT_DENY, file=5, line=42, state=0)
    assert flow.verdict == flow_pb2.DROPPED
    assert (flow.drop_reason, flow.drop_reason_desc) == (133, flow_pb2.POLICY_DENIED)
    assert (flow.event_type.type, flow.event_type.sub_type) == (1, 133)
    assert (flow.file.name, flow.file.line) == ("parse", 42)
    assert [policy.name for policy in flow.ingress_denied_by] == ["allow-web", "isolate"]
    assert not flow.ingress_allowed_by
    assert not flow.HasField("is_reply")


def test_a_drop_on_one_side_keeps_what_the_other_side_allowed() -> None:
    flow = one(kind=3, verdict=2, reason=181, direction=2, egress_cookie=DENY_DB, ingress_cookie=ALLOW_WEB)
    assert [policy.name for policy in flow.egress_denied_by] == ["no-db"]
    assert [policy.name for policy in flow.ingress_allowed_by] == ["allow-web"]
    assert "cilia:rule=spec.egressDeny[1].toEndpoints[0]" in flow.egress_denied_by[0].labels


def test_an_allow_by_default_names_nobody() -> None:
    flow = one(kind=3, egress_cookie=OPEN, ingress_cookie=OPEN)
    assert not flow.egress_allowed_by
    assert not flow.ingress_allowed_by


def test_a_verdict_carries_the_match_of_the_side_that_judged() -> None:
    ingress = one(kind=3, direction=1, ingress_match=2, egress_match=4)
    egress = one(kind=3, direction=2, ingress_match=2, egress_match=4)
    assert (ingress.event_type.type, ingress.policy_match_type, egress.policy_match_type) == (5, 2, 4)


def test_translation_shows_both_addresses() -> None:
    flow = one(source="192.0.2.1", original_source=CLIENT, source_port=50000, original_source_port=41234)
    assert (flow.IP.source, flow.IP.source_xlated) == (CLIENT, "192.0.2.1")
    assert flow.l4.TCP.source_port == 41234


def test_an_overlay_packet_names_its_tunnel() -> None:
    flow = one(destination=OTHER, destination_endpoint=0, destination_identity=5000, point=4,
               tunnel="192.0.2.2", vni=4321)  # fmt: skip
    assert flow.tunnel.protocol == flow_pb2.Tunnel.VXLAN
    assert (flow.tunnel.IP.destination, flow.tunnel.vni) == ("192.0.2.2", 4321)
    assert flow.destination.pod_name == "db-0"


VIP = "10.96.0.7"
SOCKET = {"kind": 4, "service": 9, "state": 0, "tcp_flags": 0, "socket_cookie": 99, "cgroup": 77}
WEB = flow_pb2.Service(namespace="demo", name="web")


def test_a_socket_before_and_after_it_is_translated() -> None:
    before = one(**SOCKET, point=1, verdict=6, destination=VIP, destination_port=80)
    assert (before.Type, before.verdict) == (flow_pb2.SOCK, flow_pb2.TRACED)
    assert before.sock_xlate_point == flow_pb2.SOCK_XLATE_POINT_PRE_DIRECTION_FWD
    assert (before.IP.destination, before.destination_service) == (VIP, WEB)
    assert (before.event_type.type, before.event_type.sub_type, before.Summary) == (7, 1, "TCP")
    after = one(**SOCKET, point=2, verdict=7, original_destination=VIP, original_destination_port=80)
    assert after.verdict == flow_pb2.TRANSLATED
    assert (after.IP.destination, after.destination_service) == (SERVER, WEB)
    assert after.Summary == "TCP, via 10.96.0.7:80"
    assert (after.socket_cookie, after.cgroup_id) == (99, 77)


def test_what_a_socket_gets_back_has_both_addresses() -> None:
    flow = one(
        **SOCKET, point=4, verdict=7, source=VIP, source_port=80, original_source=SERVER,
        original_source_port=8080,
    )  # fmt: skip
    assert flow.sock_xlate_point == flow_pb2.SOCK_XLATE_POINT_POST_DIRECTION_REV
    assert (flow.IP.source, flow.IP.source_xlated, flow.source_service) == (SERVER, VIP, WEB)
    assert not flow.HasField("destination_service")


def test_a_refused_socket_says_why() -> None:
    flow = one(**SOCKET, point=1, verdict=2, reason=158, destination=VIP, destination_port=80)
    assert (flow.verdict, flow.drop_reason_desc) == (flow_pb2.DROPPED, flow_pb2.SERVICE_BACKEND_NOT_FOUND)


def test_flows_name_the_service_on_the_side_that_answers() -> None:
    asked = one(service=9, original_destination=VIP, original_destination_port=80)
    assert (asked.destination_service, asked.IP.destination) == (WEB, SERVER)
    assert asked.Summary == "TCP Flags: SYN, via 10.96.0.7:80"
    assert not asked.HasField("source_service")
    answer = one(service=9, flags=1, source=SERVER, destination=CLIENT, tcp_flags=0x12)
    assert answer.source_service == WEB and not answer.HasField("destination_service")
    assert not one(service=77).HasField("destination_service")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"destination": VIP, "destination_port": 80, "reason": 158}, True),
        ({"destination": VIP, "destination_port": 80, "reason": 133}, True),
        ({"destination": VIP, "destination_port": 81, "reason": 158}, False),
        ({"destination": VIP, "destination_port": 80, "protocol": 17, "reason": 158}, False),
        ({"destination": "172.18.0.3", "destination_port": 30080, "reason": 158}, True),
        ({"destination": "172.18.0.3", "destination_port": 30080, "reason": 133}, False),
    ],
)
def test_packets_that_ended_before_translation_are_named_by_address(
    fields: dict[str, Any], named: bool
) -> None:
    assert one(kind=1, verdict=2, **fields).HasField("destination_service") == named
    assert not one(**fields).HasField("destination_service")


def test_a_number_may_come_to_mean_another_service() -> None:
    known = directory()
    flows = store(known=known)
    flows.append([events({"service": 9})], offset=WALL)
    known.services[9] = Service("shop", "new")
    known.touch()
    flows.append([events({"service": 9})], offset=WALL)
    assert [r.flow.destination_service.name for r in responses(flows)] == ["web", "new"]


def test_what_is_no_ip_has_no_addresses() -> None:
    flows = store()
    flows.append(
        [events({"source": "::", "destination": "::", "protocol": 0, "source_mac": "0a:00:00:00:00:01"}, {})],
        offset=WALL,
    )
    strange, usual = (response.flow for response in responses(flows))
    assert not strange.HasField("IP") and strange.ethernet.source == "0a:00:00:00:00:01"
    assert usual.HasField("IP")


@pytest.mark.parametrize(
    ("fields", "summary"),
    [
        ({"protocol": 17}, "UDP"),
        ({"protocol": 132}, "SCTP"),
        ({"protocol": 6, "tcp_flags": 0x12}, "TCP Flags: SYN, ACK"),
        ({"protocol": 6, "tcp_flags": 0x11}, "TCP Flags: ACK, FIN"),
        ({"protocol": 6, "tcp_flags": 0xFF}, "TCP Flags: SYN, ACK, RST, FIN, PSH, URG, ECE, CWR"),
        ({"protocol": 1, "icmp_type": 8}, "ICMPv4 EchoRequest"),
        ({"protocol": 1, "icmp_type": 3, "icmp_code": 1}, "ICMPv4 DestinationUnreachable(Host)"),
        ({"protocol": 58, "icmp_type": 129, "flags": 2}, "ICMPv6 EchoReply"),
        ({"protocol": 47}, "IP protocol 47"),
    ],
)
def test_summaries(fields: dict[str, Any], summary: str) -> None:
    assert one(**fields).Summary == summary


def test_names_learned_from_dns_and_labels_of_the_world() -> None:
    flow = one(destination="192.0.2.80", destination_identity=2, destination_endpoint=0)
    assert list(flow.destination_names) == ["www.example.com"]
    assert list(flow.destination.labels) == ["reserved:world"]


def test_audit_names_what_would_have_denied() -> None:
    flow = one(kind=3, verdict=4, ingress_cookie=DEFAULT_DENY, egress_cookie=ALLOW_WEB)
    assert flow.verdict == flow_pb2.AUDIT
    assert [rule.name for rule in flow.ingress_denied_by] == ["allow-web", "isolate"]
    assert [rule.name for rule in flow.egress_allowed_by] == ["allow-web"]
    assert not flow.ingress_allowed_by


def test_rules_tell_the_revision_of_the_policies() -> None:
    flows = store()
    flows.append([events({"ingress_cookie": ALLOW_WEB})], offset=WALL)
    ref = flows.spans(0, 1)[0].ingress[0]
    flows.rules.values[ref] = flows.rules.values[ref]._replace(revision=12)
    assert [rule.revision for rule in responses(flows)[0].flow.ingress_allowed_by] == [12]


def test_a_uuid_finds_its_row_and_only_of_this_store() -> None:
    flows = store()
    flows.append([events({}, {}, {})], offset=WALL)
    converter = Converter(flows, NODE)
    found = [flows.row_of(response.flow.uuid) for response in responses(flows, converter)]
    assert found == [0, 1, 2]
    assert store().row_of(responses(flows, converter)[0].flow.uuid) is None
    assert flows.row_of("not-a-uuid") is None


def test_a_gap_becomes_lost_events() -> None:
    flows = store()
    flows.append([events({})], [Loss(count=3, cpu=0, first=1, last=5)], offset=WALL)
    response = observer_pb2.GetFlowsResponse.FromString(Converter(flows, NODE).lost(flows.losses[0]))
    lost = response.lost_events
    assert (lost.num_events_lost, lost.HasField("cpu"), lost.cpu.value) == (3, True, 0)
    assert lost.first.ToNanoseconds() == WALL + 1
    assert lost.last.ToNanoseconds() == response.time.ToNanoseconds() == WALL + 5


SIX = st.integers(1, 2**128 - 1).map(ipaddress.IPv6Address).filter(lambda a: a.ipv4_mapped is None)
ADDRESS = st.one_of(
    st.sampled_from([CLIENT, SERVER, OTHER, CLIENT6, SERVER6]), st.ip_addresses(v=4).map(str), SIX.map(str)
)
BYTE, WORD = st.integers(0, 255), st.integers(0, 65535)
ROW = st.fixed_dictionaries(
    {
        "time": st.integers(0, 10**15),
        **dict.fromkeys(("source", "destination"), ADDRESS),
        **dict.fromkeys(("source_port", "destination_port", "line", "proxy_port"), WORD),
        **dict.fromkeys(("tcp_flags", "icmp_type", "icmp_code", "point", "reason", "flags", "file"), BYTE),
        "protocol": st.sampled_from([1, 6, 17, 58, 132, 47]),
        "kind": st.integers(0, 5),
        "verdict": st.integers(0, 7),
        "direction": st.integers(0, 2),
        "state": st.integers(0, 4),
        "egress_cookie": st.sampled_from([0, ALLOW_WEB, DENY_DB, 999]),
        "ingress_cookie": st.sampled_from([0, OPEN, DEFAULT_DENY]),
        "source_identity": st.integers(0, 2**32 - 1),
        "ifindex": st.sampled_from([0, 7, 8]),
        "socket_cookie": st.sampled_from([0, 2**64 - 1]),
        "vni": st.integers(0, 2**24 - 1),
        "service": st.sampled_from([0, 9, 10, 11]),
        "original_destination": st.sampled_from(["10.96.0.7", CLIENT6]),
        "tunnel": st.sampled_from(["192.0.2.2", "2001:db8::2"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=20))
def test_any_row_reads_back_as_itself(rows: list[dict[str, Any]]) -> None:
    """And the fragments of one row never end up in another."""
    flows = store()
    rows.sort(key=lambda row: int(row["time"]))
    flows.append([events(*rows)], offset=WALL)
    for row, response in zip(rows, responses(flows), strict=True):
        flow = response.flow
        assert flow.time.ToNanoseconds() == response.time.ToNanoseconds() == WALL + row["time"]
        assert ipaddress.ip_address(flow.IP.source) == ipaddress.ip_address(row["source"])
        assert ipaddress.ip_address(flow.IP.destination) == ipaddress.ip_address(row["destination"])
        if row["protocol"] in (6, 17):
            header = flow.l4.TCP if row["protocol"] == 6 else flow.l4.UDP
            assert (header.source_port, header.destination_port) == (
                row["source_port"],
                row["destination_port"],
            )
        if row["protocol"] == 1:
            assert (flow.l4.ICMPv4.type, flow.l4.ICMPv4.code) == (row["icmp_type"], row["icmp_code"])
        assert flow.verdict == row["verdict"]
        assert flow.traffic_direction == row["direction"]
        assert flow.proxy_port == row["proxy_port"]
        assert flow.source.identity in (row["source_identity"], 4321, 1234, 5000)
        assert flow.interface.index == row["ifindex"]
        # The bytes are a whole message: the library finds nothing it does not know.
        assert observer_pb2.GetFlowsResponse.FromString(response.SerializeToString()) == response


@given(st.integers(0, 2**64 - 1))
def test_varints_are_those_of_the_library(value: int) -> None:
    message = observer_pb2.ServerStatusResponse(num_flows=value)
    assert encode.number(1, value) == message.SerializeToString()


def test_fragments_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "REMEMBERED_FRAGMENTS", 2)
    flows = store()
    converter = Converter(flows, NODE)
    for port in range(6):
        flows.append([events({"source_port": port, "time": port})], offset=WALL)
        assert [r.flow.l4.TCP.source_port for r in responses(flows, converter)] == list(range(port + 1))


@pytest.mark.parametrize(("field", "kind"), [("source_identity", "parties"), ("ifindex", "devices")])
def test_fragments_are_those_of_now_when_the_store_has_forgotten_others(field: str, kind: str) -> None:
    flows = store(capacity=64)
    converter = Converter(flows, NODE)
    # Who is in every flow keeps the first number, so that the others' come again with another meaning.
    flows.append([events({"source": SERVER, "source_identity": 1234, "source_endpoint": 102})], offset=WALL)
    rows = events(*({"time": number} for number in range(32)))
    start = 1
    while getattr(flows, kind).generation < 2:
        responses(flows, converter)
        rows[field] = start + np.arange(32)
        flows.append([rows], offset=WALL)
        start += 32
    assert responses(flows, converter) == responses(flows)
