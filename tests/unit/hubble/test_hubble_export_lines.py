"""Lines of JSON say what the protobuf library's JSON of the same flows says."""

from __future__ import annotations

import ipaddress
import json
import os
from itertools import chain
from typing import Any

import numpy as np
import pytest
from google.protobuf import field_mask_pb2, json_format

from cilia.hubble.columns import Events
from cilia.hubble.convert import Converter, NodeFacts
from cilia.hubble.export import field_trees, messages
from cilia.hubble.export.groups import Groups
from cilia.hubble.export.lines import LineMaker
from cilia.hubble.export.whole import timestamp
from cilia.hubble.store import FlowStore, Loss
from cilia.model.address import pack
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.hubble import (
    ALLOW_WEB,
    CLIENT,
    CLIENT6,
    DEFAULT_DENY,
    DENY_DB,
    DTYPE,
    NODE,
    OPEN,
    OTHER,
    SERVER,
    SERVER6,
    WALL,
    event,
    events,
    flow,
    store,
)

RANDOM_FLOWS = int(os.environ.get("CILIA_TEST_RANDOM_FLOWS", "2000"))
"""A long run takes 100,000 and more."""


def random_events(count: int) -> Events:
    """Events of all kinds, with values a data path would hardly put together."""
    random = np.random.default_rng(11)
    rows = np.zeros(count, DTYPE)
    rows["time"] = np.cumsum(random.choice([1, 1000, 1_000_000, 999_999_999], count))
    wide = random.random(count) < 0.3
    for side in ("source", "destination", "original_source", "original_destination", "tunnel"):
        absent = side.startswith(("original", "tunnel")) & (random.random(count) < 0.7)
        for family, known in ((False, (CLIENT, SERVER, OTHER, "192.0.2.80")), (True, (CLIENT6, SERVER6))):
            places = np.flatnonzero((wide == family) & ~absent)
            words = np.array([np.frombuffer(pack(ipaddress.ip_address(each)), ">u8") for each in known])
            chosen = words[random.integers(0, len(known), len(places))]
            rows[side]["hi"][places], rows[side]["lo"][places] = chosen[:, 0], chosen[:, 1]
    rows["flags"] = random.integers(0, 8, count) & ~2 | wide.astype(np.uint8) << 1
    for name, values in {
        "source_identity": [4321, 1234, 5000, 2, 0],
        "destination_identity": [4321, 1234, 5000, 2, 0],
        "source_endpoint": [0, 101],
        "destination_endpoint": [0, 102],
        "source_port": [0, 80, 1024, 40_001, 40_002, 65_535],
        "destination_port": [0, 80, 8080, 40_001],
        "original_source_port": [0, 5353],
        "original_destination_port": [0, 443],
        "proxy_port": [0, 0, 15_001],
        "protocol": [0, 1, 2, 6, 6, 6, 17, 17, 58, 132],
        "tcp_flags": [0, 2, 16, 18, 255],
        "icmp_type": [0, 8, 128],
        "icmp_code": [0, 3],
        "kind": [1, 2, 2, 3, 4],
        "point": [0, 1, 3, 9, 10, 101],
        "verdict": [0, 1, 2, 4, 5],
        "reason": [0, 133, 158, 181],
        "file": [0, 5],
        "line": [0, 42],
        "direction": [0, 1, 2],
        "state": [0, 1, 2, 3],
        "egress_cookie": [0, OPEN, DENY_DB],
        "ingress_cookie": [0, OPEN, ALLOW_WEB, DEFAULT_DENY],
        "egress_match": [0, 3],
        "ingress_match": [0, 2],
        "auth": [0, 1],
        "ifindex": [0, 7, 9],
        "vni": [0, 7],
        "service": [0, 9, 10],
        "socket_cookie": [0, 0, 77, 1 << 60],
        "cgroup": [0, 0, 5],
    }.items():
        rows[name] = random.choice(np.array(values, np.uint64), count)
    rows["source_mac"][::3] = (10, 0, 0, 0, 0, 1)
    return rows


def parsed(lines: list[bytes]) -> list[Any]:
    assert all(line.endswith(b"}\n") and line.count(b"\n") == 1 for line in lines)
    return [json.loads(line) for line in lines]


def expected(converter: Converter, flows: FlowStore, mask: list[str] | None = None) -> list[Any]:
    found = []
    for rows in flows.spans(0, flows.head):
        for data in converter.responses(rows):
            answer = observer_pb2.GetFlowsResponse.FromString(data)
            if mask is not None:
                cut = flow_pb2.Flow()
                field_mask_pb2.FieldMask(paths=mask).MergeMessage(answer.flow, cut)
                answer.flow.CopyFrom(cut)
            found.append(json_format.MessageToDict(answer, preserving_proto_field_name=True))
    return found


def lines_of(maker: LineMaker, flows: FlowStore) -> list[bytes]:
    blocks = [maker.block(rows) for rows in flows.spans(0, flows.head)]
    return b"".join(blocks).splitlines(keepends=True)


def test_random_flows_read_as_the_protobuf_library_writes_them() -> None:
    flows = store(capacity=4096)
    rows = random_events(RANDOM_FLOWS)
    converter = Converter(flows, NODE)
    maker = LineMaker(flows, NODE, converter)
    for start in range(0, RANDOM_FLOWS, 1024):
        flows.append([rows[start : start + 1024]], offset=WALL)
        for chunk in flows.spans(max(0, flows.head - 1024), flows.head):
            for data, line in zip(converter.responses(chunk), maker.block(chunk).splitlines(), strict=True):
                answer = observer_pb2.GetFlowsResponse.FromString(data)
                text = json_format.MessageToJson(answer, preserving_proto_field_name=True)
                assert json.loads(line) == json.loads(text)


@pytest.mark.parametrize("mask", [None, ["l4", "verdict"]])
def test_ports_of_any_value_stand_in_any_header(mask: list[str] | None) -> None:
    flows = store()
    ports = [(0, 0), (7, 0), (0, 7), (65_535, 1)]
    flows.append(
        [
            events(
                *(
                    {"protocol": protocol, "tcp_flags": flags, "source_port": source, "destination_port": to}
                    for protocol in (6, 17, 132, 1, 112, 99)
                    for flags in (0, 18)
                    for source, to in ports
                )
            )
        ],
        offset=WALL,
    )
    converter = Converter(flows, NODE)
    maker = LineMaker(flows, NODE, converter, field_trees.parse(mask or []))
    assert parsed(lines_of(maker, flows)) == expected(converter, flows, mask)


def test_names_are_those_of_now_when_the_store_has_forgotten_others() -> None:
    flows = store(capacity=64)
    converter = Converter(flows, NODE)
    maker = LineMaker(flows, NODE, converter)
    rows = random_events(32)
    start = 0
    while flows.parties.generation < 2:
        lines_of(maker, flows)
        rows["source_identity"] = (1 << 24) + start + np.arange(32)
        flows.append([rows], offset=WALL)
        start += 32
    assert parsed(lines_of(maker, flows)) == expected(converter, flows)


@pytest.mark.parametrize(
    "mask",
    [
        ["time", "source", "destination", "verdict"],
        ["source.pod_name", "destination.namespace", "verdict"],
        ["l4.TCP.destination_port"],
        ["l4.TCP.source_port", "uuid"],
        ["l4.TCP.flags.SYN", "is_reply"],
        ["l4"],
        ["IP.source", "IP", "ingress_denied_by", "node_name"],
        ["l7"],
    ],
)
def test_a_field_mask_leaves_what_it_names(mask: list[str]) -> None:
    flows = store()
    flows.append([random_events(500)], offset=WALL)
    converter = Converter(flows, NODE)
    maker = LineMaker(flows, NODE, converter, field_trees.parse(mask))
    for line, want in zip(parsed(lines_of(maker, flows)), expected(converter, flows, mask), strict=True):
        want.setdefault("flow", {})
        assert without_empty(line) == without_empty(want)


def without_empty(value: Any) -> Any:
    """A mask may leave nothing of a message; the library shows it empty then, a line does not show it."""
    if not isinstance(value, dict):
        return value
    return {name: found for name, each in value.items() if (found := without_empty(each)) != {}}


def test_a_node_may_have_any_name() -> None:
    node = NodeFacts(name='default/50%d "quoted"\u2028')
    flows = store()
    flows.append([event()], offset=WALL)
    (line,) = parsed(lines_of(LineMaker(flows, node, Converter(flows, node)), flows))
    assert line["node_name"] == line["flow"]["node_name"] == node.name


def test_a_gap_is_a_line_with_its_bounds() -> None:
    flows = store()
    flows.append([event(time=50)], [Loss(cpu=1, count=7, first=10, last=50)], offset=WALL)
    line = LineMaker(flows, NODE, Converter(flows, NODE)).lost(flows.losses[0])
    assert json.loads(line) == {
        "lost_events": {
            "source": "PERF_EVENT_RING_BUFFER",
            "num_events_lost": "7",
            "cpu": 1,
            "first": timestamp(WALL + 10).decode(),
            "last": timestamp(WALL + 50).decode(),
        },
        "node_name": NODE.name,
        "time": timestamp(WALL + 50).decode(),
    }


@pytest.mark.parametrize(
    ("rest", "digits"), [(0, ""), (120_000_000, ".120"), (1_000, ".000001"), (999_999_999, ".999999999")]
)
def test_times_have_as_many_digits_as_they_need(rest: int, digits: str) -> None:
    assert timestamp(WALL + rest).decode() == f"2026-11-23T04:26:40{digits}Z"


def test_a_message_of_any_kind_reads_as_the_library_writes_it() -> None:
    message = observer_pb2.ServerStatusResponse(num_flows=1 << 63, version="1", flows_rate=float("inf"))
    message.num_connected_nodes.value = 3
    want = json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert json.loads(messages.text(message)) == want


def test_a_mask_names_fields_that_exist() -> None:
    for path in ("sauce", "source.podname", "source.labels.x", "verdict.x", "source..labels"):
        with pytest.raises(field_trees.MaskError, match="no flow has the field"):
            field_trees.parse([path])
    assert field_trees.parse(["source.pod_name", "source", "source.labels"]) == {"source": None}
    assert field_trees.parse([" "]) is None


def test_two_masks_have_in_common_what_both_name() -> None:
    one, other = (
        field_trees.parse(["source", "verdict", "IP.source"]),
        field_trees.parse(["source.pod_name", "IP.destination"]),
    )
    assert field_trees.both(one, other) == {"source": {"pod_name": None}}
    assert field_trees.both(None, other) == field_trees.both(other, None) == other


def groups_of(flows: FlowStore, fields: list[str]) -> Groups:
    return Groups(LineMaker(flows, NODE, Converter(flows, NODE), field_trees.parse(fields)))


def test_flows_that_agree_are_one_line() -> None:
    flows = store()
    groups = groups_of(flows, ["source.pod_name", "destination.pod_name", "verdict"])
    flows.append(
        [events(flow(1), flow(2, direction=2), flow(3, direction=0), flow(4, verdict=2, kind=1, reason=133))],
        offset=WALL,
    )
    for rows in flows.spans(0, 2) + flows.spans(2, 4):
        groups.add(rows)
    one, two = parsed(list(chain(*groups.lines())))
    assert one == {
        "flow": {
            "time": timestamp(WALL + 1_000_000).decode(),
            "source": {"pod_name": "client-5f"},
            "destination": {"pod_name": "server-0"},
            "verdict": "FORWARDED",
            "aggregate": {
                "ingress_flow_count": 1, "egress_flow_count": 1, "unknown_direction_flow_count": 1
            },
        },
        "node_name": NODE.name,
        "time": timestamp(WALL + 1_000_000).decode(),
    }  # fmt: skip
    assert two["flow"]["verdict"] == "DROPPED"
    assert two["flow"]["aggregate"] == {"ingress_flow_count": 1}
    groups.clear()
    assert not len(groups)
    assert list(groups.lines()) == []


@pytest.mark.parametrize(
    "fields", [["verdict"], ["l4.TCP.destination_port", "source"], ["Summary"], ["IP.source", "event_type"]]
)
def test_groups_count_every_flow_once(fields: list[str]) -> None:
    flows = store(capacity=4096)
    flows.append([random_events(3000)], offset=WALL)
    groups = groups_of(flows, fields)
    for start in range(0, 3000, 700):
        for rows in flows.spans(start, start + 700):
            groups.add(rows)
    want: dict[str, int] = {}
    for each in expected(Converter(flows, NODE), flows, fields):
        key = json.dumps(without_empty(each.get("flow", {})), sort_keys=True)
        want[key] = want.get(key, 0) + 1
    found: dict[str, int] = {}
    for line in parsed(list(chain(*groups.lines()))):
        counts = line["flow"].pop("aggregate")
        line["flow"].pop("time")
        key = json.dumps(without_empty(line["flow"]), sort_keys=True)
        found[key] = found.get(key, 0) + sum(counts.values())
    assert found == want
