"""A field mask leaves of each flow what the protobuf library would leave."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import field_mask_pb2

from cilia.hubble.convert import Converter
from cilia.hubble.cuts import FIELDS_OF, Cuts
from cilia.hubble.filter_values import FilterError
from cilia.hubble.masks import FlowMask
from cilia.hubble.store import FlowStore
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.hubble import ALLOW_WEB, DEFAULT_DENY, NODE, WALL, events, flow, store


def filled() -> FlowStore:
    flows = store()
    rows = [
        flow(0, ifindex=7, ingress_cookie=ALLOW_WEB),
        flow(1, kind=1, verdict=2, reason=133, state=0, ingress_cookie=DEFAULT_DENY, file=5, line=3),
        flow(2, protocol=1, icmp_type=8, service=9),
        flow(3, kind=4, socket_cookie=9, cgroup=8, service=9),
        flow(4, destination="192.0.2.80", source="192.0.2.1", original_source="10.0.1.5"),
        flow(5, destination="fd00::1:6", flags=2, tunnel="192.0.2.9", vni=5, protocol=17),
    ]
    flows.append([events(*rows)], offset=WALL)
    return flows


@pytest.mark.parametrize(
    "paths",
    [
        ["time"],
        ["uuid", "verdict"],
        ["source.labels", "destination.pod_name"],
        ["l4.TCP.destination_port"],
        ["l4.TCP.flags.SYN", "IP"],
        ["time.seconds", "IP.source"],
        ["source", "source.labels"],
        ["l7.http.code"],
        ["ingress_denied_by", "event_type.sub_type", "is_reply"],
        list(flow_pb2.Flow.DESCRIPTOR.fields_by_name),
    ],
)
def test_what_is_left(paths: list[str]) -> None:
    flows = filled()
    converter, cuts = Converter(flows, NODE), Cuts(FlowMask(paths))
    (rows,) = flows.spans(0, flows.head)
    whole = map(observer_pb2.GetFlowsResponse.FromString, converter.responses(rows))
    for full, data in zip(whole, converter.responses(rows, cuts), strict=True):
        response = observer_pb2.GetFlowsResponse.FromString(data)
        expected = flow_pb2.Flow()
        field_mask_pb2.FieldMask(paths=paths).MergeMessage(full.flow, expected)
        assert response.flow == expected
        assert (response.time, response.node_name) == (full.time, full.node_name)
        assert response.HasField("flow")


def leaves(message: Any, prefix: str = "", depth: int = 3) -> Iterator[str]:
    """Names of fields and of fields inside of them."""
    for field in message.fields:
        yield prefix + field.name
        if field.message_type is not None and not field.is_repeated and depth > 1:
            yield from leaves(field.message_type, f"{prefix}{field.name}.", depth - 1)


def test_random_masks_leave_what_the_library_leaves() -> None:
    flows = filled()
    (rows,) = flows.spans(0, flows.head)
    full = [
        observer_pb2.GetFlowsResponse.FromString(data).flow for data in Converter(flows, NODE).responses(rows)
    ]
    names = list(leaves(flow_pb2.Flow.DESCRIPTOR))
    chance = random.Random(4)
    for _ in range(300):
        paths = chance.sample(names, chance.randint(1, 40))
        mask = FlowMask(paths)
        for each in full:
            expected = flow_pb2.Flow()
            field_mask_pb2.FieldMask(paths=paths).MergeMessage(each, expected)
            assert flow_pb2.Flow.FromString(mask.cut(each.SerializeToString())) == expected, paths


def test_each_column_holds_its_fields_only() -> None:
    flows = filled()
    converter = Converter(flows, NODE)
    (rows,) = flows.spans(0, flows.head)
    for name, fields in FIELDS_OF.items():
        for fragment in converter.column(name, rows):
            found = {field.name for field, _ in flow_pb2.Flow.FromString(fragment).ListFields()}
            assert found <= fields, name
    columns = list(FIELDS_OF.values())
    assert sum(map(len, columns)) == len(frozenset.union(*columns))
    with pytest.raises(ValueError, match="column"):
        converter.column("nothing", rows)


def test_paths_that_are_none() -> None:
    with pytest.raises(FilterError, match="no_such"):
        FlowMask(["no_such"])
    with pytest.raises(FilterError, match="labels"):
        FlowMask(["source.labels.x"])
