"""Masks select exactly the flows a reader of the messages would."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.hubble import selectors
from cilia.hubble.columns import FLAG_IPV6, address_words
from cilia.hubble.convert import Converter, NodeFacts
from cilia.hubble.filter_values import COMPARED, FilterError, Prefixes, UnsupportedFilter
from cilia.hubble.filters import FlowMatcher, wants_important_only
from cilia.hubble.predicates import Context
from cilia.hubble.store import FlowStore
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.hubble import CLIENT, OTHER, VARIED, WALL, events, store

NODE = NodeFacts(name="west/worker-1", labels=("zone=a",))


def filled() -> FlowStore:
    flows = store()
    flows.append([events(*VARIED)], offset=WALL)
    return flows


def matching(
    white: list[dict[str, Any]], black: list[dict[str, Any]] | None = None, flows: FlowStore | None = None
) -> list[int]:
    flows = flows or filled()
    whitelist = [flow_pb2.FlowFilter(**fields) for fields in white]
    blacklist = [flow_pb2.FlowFilter(**fields) for fields in black or []]
    matcher = FlowMatcher(Context(flows, NODE), whitelist, blacklist)
    (rows,) = flows.spans(0, flows.head)
    return [int(number) for number in rows.numbers[matcher.mask(rows)]]


ALL = list(range(len(VARIED)))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ALL),
        ({"verdict": [flow_pb2.DROPPED]}, [2, 3]),
        ({"verdict": [flow_pb2.TRANSLATED]}, [8]),
        ({"drop_reason_desc": [flow_pb2.POLICY_DENIED]}, [2]),
        ({"source_ip": [CLIENT]}, [0, 1, 2, 3, 5, 7, 8]),
        ({"source_ip": ["10.0.1.0/24"]}, [0, 1, 2, 3, 5, 7, 8]),
        ({"source_ip": ["::/0"]}, [4, 6]),
        ({"source_ip": ["0.0.0.0/0"]}, [0, 1, 2, 3, 5, 7, 8]),
        ({"destination_ip": [OTHER, "2001:db8::/32"]}, [3, 6]),
        ({"source_ip_xlated": ["192.0.2.0/24"]}, [7]),
        ({"source_ip": ["192.0.2.1"]}, []),
        ({"destination_pod": ["demo/server"]}, [0, 1, 2, 4, 5, 8]),
        ({"destination_pod": ["other/"]}, [3]),
        ({"destination_pod": ["/db"]}, [3]),
        ({"destination_pod": ["server"]}, []),
        ({"destination_label": ["app=server"]}, [0, 1, 2, 4, 5, 8]),
        ({"destination_label": ["reserved:world"]}, [6, 7]),
        ({"destination_label": ["k8s:app in (db, other), !tier"]}, [3]),
        ({"source_workload": [flow_pb2.Workload(name="client")]}, ALL),
        ({"source_workload": [flow_pb2.Workload(name="client", kind="StatefulSet")]}, []),
        ({"destination_identity": [2]}, [6, 7]),
        ({"source_cluster_name": ["default"]}, ALL),
        ({"destination_fqdn": ["*.example.com"]}, [7]),
        ({"destination_port": ["80"]}, [1]),
        ({"destination_port": ["8000-9000"]}, [0, 2, 3, 7, 8]),
        ({"source_port": ["41000"]}, [7]),
        ({"source_port": ["0"]}, []),
        ({"protocol": ["udp"]}, [4]),
        ({"protocol": ["ICMP"]}, [5, 6]),
        ({"protocol": ["icmpv6"]}, [6]),
        ({"event_type": [flow_pb2.EventTypeFilter(type=1)]}, [2]),
        ({"event_type": [flow_pb2.EventTypeFilter(type=5)]}, [1, 2, 3]),
        ({"event_type": [flow_pb2.EventTypeFilter(type=5, match_sub_type=True)]}, [1, 3]),
        ({"event_type": [flow_pb2.EventTypeFilter(type=129)]}, []),
        ({"event_type": [flow_pb2.EventTypeFilter(type=4, match_sub_type=True, sub_type=4)]}, []),
        ({"event_type": [flow_pb2.EventTypeFilter(type=1, match_sub_type=True, sub_type=133)]}, [2]),
        ({"traffic_direction": [flow_pb2.EGRESS]}, [3]),
        ({"reply": [True]}, [5]),
        ({"reply": [False]}, [0, 1, 2, 3, 4, 6, 7, 8]),
        ({"encrypted": [True]}, [8]),
        ({"event_type": [flow_pb2.EventTypeFilter(type=7, match_sub_type=True, sub_type=2)]}, [8]),
        ({"destination_service": ["demo/web"]}, [0, 8]),
        ({"destination_service": ["demo/web-a"]}, [0]),
        ({"destination_service": ["demo/"]}, [0, 8]),
        ({"destination_service": ["web"]}, []),
        ({"source_service": ["/web"]}, [5]),
        ({"ip_version": [flow_pb2.IPv6]}, [4, 6]),
        ({"tcp_flags": [flow_pb2.TCPFlags(SYN=True, ACK=True)]}, [8]),
        ({"interface": [flow_pb2.NetworkInterface(name="lxc1234")]}, [7]),
        ({"node_name": ["worker-*"]}, ALL),
        ({"node_name": ["west/"]}, ALL),
        ({"node_name": ["east/worker-1"]}, []),
        ({"node_labels": ["zone=a"]}, ALL),
        ({"node_labels": ["zone=b"]}, []),
        ({"verdict": [flow_pb2.DROPPED], "destination_pod": ["other/"]}, [3]),
        ({"drop_reason_desc": [flow_pb2.DROP_REASON_UNKNOWN]}, [0, 1, 4, 5, 6, 7, 8]),
        ({"interface": [flow_pb2.NetworkInterface()]}, [7]),
        ({"tcp_flags": [flow_pb2.TCPFlags(NS=True)]}, []),
        ({"protocol": ["http"]}, []),
        ({"protocol": ["igmp", "udp"]}, [4]),
        ({"http_method": ["GET"]}, []),
        ({"http_status_code": ["404", "5+"], "event_type": [flow_pb2.EventTypeFilter(type=129)]}, []),
        ({"dns_query": ["^cilium.*"]}, []),
        ({"trace_id": ["1"]}, []),
        ({"ip_trace_id": [7]}, []),
        ({"experimental": {}}, ALL),
    ],
)
def test_each_field(fields: dict[str, Any], expected: list[int]) -> None:
    assert matching([fields]) == expected


def test_filters_of_a_list_are_joined_by_or_and_the_blacklist_takes_away() -> None:
    dropped, udp = {"verdict": [flow_pb2.DROPPED]}, {"protocol": ["udp"]}
    assert matching([dropped, udp]) == [2, 3, 4]
    assert matching([dropped, udp], [{"destination_pod": ["other/"]}]) == [2, 4]
    assert matching([], [dropped]) == [0, 1, 4, 5, 6, 7, 8]


def test_a_uuid_selects_its_flow() -> None:
    flows = filled()
    converter = Converter(flows, NODE)
    (rows,) = flows.spans(0, flows.head)
    third = observer_pb2.GetFlowsResponse.FromString(converter.responses(rows)[2]).flow.uuid
    matcher = FlowMatcher(Context(flows, NODE), [flow_pb2.FlowFilter(uuid=[third, "nonsense"])])
    assert rows.numbers[matcher.mask(rows)].tolist() == [2]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"source_ip": ["10.0.0.300"]}, FilterError),
        ({"source_pod": [""]}, FilterError),
        ({"source_pod": ["/"]}, FilterError),
        ({"source_label": ["a=b=c"]}, FilterError),
        ({"source_port": ["http"]}, FilterError),
        ({"source_port": ["70000"]}, FilterError),
        ({"protocol": ["quic"]}, FilterError),
        ({"source_service": [""]}, FilterError),
        ({"dns_query": ["("]}, FilterError),
        ({"http_path": ["["]}, FilterError),
        ({"http_status_code": ["200x"]}, FilterError),
        ({"http_status_code": ["6+"]}, FilterError),
        ({"http_method": ["GET"], "event_type": [flow_pb2.EventTypeFilter(type=1)]}, FilterError),
        ({"experimental": {"cel_expression": ["1 +"]}}, FilterError),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(
    fields: dict[str, Any], problem: type[Exception]
) -> None:
    with pytest.raises(problem) as refusal:
        matching([fields])
    assert len(str(refusal.value).split()) > 4


def test_fields_of_a_newer_client_are_refused() -> None:
    newer = flow_pb2.FlowFilter.FromString(b"\xc0\x3e\x01")
    nested = flow_pb2.FlowFilter(experimental={})  # type: ignore[arg-type]
    nested.experimental.MergeFromString(b"\x10\x01")
    for message, number in ((newer, "1000"), (nested, "2")):
        with pytest.raises(UnsupportedFilter, match=number):
            FlowMatcher(Context(filled(), NODE), [message])


def test_what_can_only_match_drops_and_verdicts_is_known() -> None:
    drop, trace = flow_pb2.EventTypeFilter(type=1), flow_pb2.EventTypeFilter(type=4)
    dropped = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED], source_pod=["demo/"])
    assert wants_important_only([dropped, flow_pb2.FlowFilter(event_type=[drop])])
    assert not wants_important_only([dropped, flow_pb2.FlowFilter(event_type=[drop, trace])])
    assert not wants_important_only([])
    verdict = flow_pb2.EventTypeFilter(type=5)
    assert not wants_important_only([flow_pb2.FlowFilter(event_type=[verdict])])
    audited = flow_pb2.FlowFilter(event_type=[verdict], verdict=[flow_pb2.DROPPED, flow_pb2.AUDIT])
    assert wants_important_only([audited])


def test_policy_verdicts_are_denials_too_but_leaving_them_out_leaves_drops() -> None:
    flows = store()
    reasons = (133, 181, 189, 132, 158)
    flows.append([events({}, {"kind": 3}, *({"kind": 1, "verdict": 2, "reason": each} for each in reasons))])
    asked = {"event_type": [flow_pb2.EventTypeFilter(type=5)]}
    assert matching([asked], flows=flows) == [1, 2, 3, 4]
    assert matching([{**asked, "verdict": [flow_pb2.FORWARDED]}], flows=flows) == [1]
    assert matching([], [asked], flows) == [0, 2, 3, 4, 5, 6]


def test_every_field_of_a_filter_is_either_answered_or_refused() -> None:
    for field in flow_pb2.FlowFilter.DESCRIPTOR.fields:
        message = flow_pb2.FlowFilter()
        if field.name == "experimental":
            message.experimental.SetInParent()
        elif field.message_type:
            getattr(message, field.name).add()
        else:
            values: list[Any] = ["1"] if field.type == field.TYPE_STRING else [1]
            getattr(message, field.name).extend(values)
        flows = filled()
        try:
            FlowMatcher(Context(flows, NODE), [message])
        except FilterError as refusal:
            assert "'1'" in str(refusal), field.name


def test_a_predicate_learns_of_parties_that_come_later() -> None:
    flows = filled()
    matcher = FlowMatcher(Context(flows, NODE), [flow_pb2.FlowFilter(source_identity=[77])])
    (rows,) = flows.spans(0, flows.head)
    assert not matcher.mask(rows).any()
    flows.append([events({"source_identity": 77})], offset=WALL)
    (rows,) = flows.spans(0, flows.head)
    assert rows.numbers[matcher.mask(rows)].tolist() == [len(VARIED)]


ADDRESS = st.integers(0, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n)))
SIX = st.integers(1, 2**128 - 1).map(ipaddress.IPv6Address).filter(lambda a: a.ipv4_mapped is None).map(str)


@settings(max_examples=80, deadline=None)
@given(st.lists(ADDRESS | SIX, min_size=1, max_size=10), st.data())
def test_cidrs_contain_what_the_library_says(addresses: list[str], data: st.DataObject) -> None:
    base = ipaddress.ip_address(data.draw(st.sampled_from(addresses)))
    prefix = data.draw(st.integers(0, base.max_prefixlen))
    network = ipaddress.ip_network((base, prefix), strict=False)
    flows = store()
    rows = [{"source": a, "flags": 2 if ":" in a else 0} for a in addresses]
    flows.append([events(*rows)], offset=WALL)
    expected = [
        number
        for number, address in enumerate(map(ipaddress.ip_address, addresses))
        if address.version == network.version and address in network
    ]
    assert matching([{"source_ip": [str(network)]}], flows=flows) == expected


LABELS = ("k8s:app=web", "k8s:tier=front", "reserved:host")


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("app=web", True),
        ("k8s:app==web", True),
        ("any:app=web", True),
        ("cidr:app=web", False),
        ("app!=web", False),
        ("missing!=web", True),
        ("app in (db, web)", True),
        ("app notin (db,cache)", True),
        ("app", True),
        ("!app", False),
        ("reserved:host", True),
        ("app=web,tier=back", False),
        ("app=web, tier in (front)", True),
    ],
)
def test_label_selectors(selector: str, selected: bool) -> None:
    assert selectors.parse(selector).matches(LABELS) is selected


@pytest.mark.parametrize("selector", ["", "a=b=c", "app in web", "a,,b", "=x"])
def test_unreadable_label_selectors(selector: str) -> None:
    with pytest.raises(selectors.SelectorError):
        selectors.parse(selector)


MAPPED = 0xFFFF << 32
NETWORKS = st.one_of(
    st.builds(
        lambda low, bits: str(ipaddress.ip_network((0x0A00_0000 + low, bits), strict=False)),
        st.integers(0, 1023), st.integers(20, 32),
    ),
    st.builds(
        lambda low, bits: str(ipaddress.ip_network((MAPPED + 0x0A00_0000 + low, bits), strict=False)),
        st.integers(0, 1023), st.integers(90, 128),
    ),
)  # fmt: skip


@given(st.lists(NETWORKS, min_size=1, max_size=40), st.integers(0, 1023))
@settings(max_examples=100, deadline=None)
def test_many_networks_say_what_each_of_them_would(networks: list[str], first: int) -> None:
    flows = store()
    rows = [
        (MAPPED + 0x0A00_0000 + (first + step * 7) % 1024, flags)
        for step in range(20)
        for flags in (0, FLAG_IPV6)
    ]
    made = events(*({"flags": flags} for _, flags in rows))
    raw = b"".join(address.to_bytes(16, "big") for address, _ in rows)
    made["source"] = np.frombuffer(raw, made["source"].dtype)
    flows.append([made], offset=WALL)
    (stored,) = flows.spans(0, flows.head)
    high, low = address_words(stored.events, "source")
    each = [Prefixes([network]).hold(stored, high, low) for network in networks]
    many = Prefixes(networks * (COMPARED + 1)).hold(stored, high, low)
    assert many.tolist() == np.logical_or.reduce(each).tolist()
