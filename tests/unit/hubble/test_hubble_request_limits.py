"""Requests that ask too much are told what is too much."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from cilia.hubble import request_limits
from cilia.hubble.request_limits import check
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.proto.flow.flow_pb2 import EventTypeFilter, Flow, FlowFilter
from cilia.proto.observer.observer_pb2 import GetFlowsRequest


def cel(expressions: list[str]) -> FlowFilter.Experimental:
    return FlowFilter.Experimental(cel_expression=expressions)


def test_what_people_ask_passes() -> None:
    check(GetFlowsRequest())
    some = FlowFilter(source_pod=["default/web-"] * 100, source_label=["x" * 1024])
    check(
        GetFlowsRequest(
            whitelist=[some] * 9, blacklist=[some] * 9, field_mask=FieldMask(paths=["uuid"] * 500)
        )
    )
    check(GetFlowsRequest(whitelist=[FlowFilter(source_pod=["a/"] * 1000)]))
    check(GetFlowsRequest(whitelist=[FlowFilter(uuid=["a"])] * 1000, since=Timestamp(seconds=253402300799)))


@pytest.mark.parametrize(
    ("fields", "code", "word"),
    [
        ({"whitelist": [FlowFilter()] * 1001}, Code.RESOURCE_EXHAUSTED, "1001 allow filters"),
        ({"blacklist": [FlowFilter()] * 1001}, Code.RESOURCE_EXHAUSTED, "1001 deny filters"),
        ({"whitelist": [FlowFilter(uuid=["u"] * 1001)]}, Code.RESOURCE_EXHAUSTED, "values of uuid"),
        (
            {"whitelist": [FlowFilter(event_type=[EventTypeFilter(type=1)] * 1001)]},
            Code.RESOURCE_EXHAUSTED,
            "values of event_type",
        ),
        ({"whitelist": [FlowFilter(uuid=["u"] * 900)] * 30}, Code.RESOURCE_EXHAUSTED, "in all filters"),
        (
            {"whitelist": [FlowFilter(dns_query=["x" * 1000] * 140)]},
            Code.RESOURCE_EXHAUSTED,
            "bytes of filters",
        ),
        ({"blacklist": [FlowFilter(http_path=["x" * 1025])]}, Code.INVALID_ARGUMENT, "1025 characters"),
        (
            {"whitelist": [FlowFilter(experimental=cel(["x" * 2001]))]},
            Code.INVALID_ARGUMENT,
            "cel_expression",
        ),
        (
            {"whitelist": [FlowFilter(experimental=cel(["true"] * 17))]},
            Code.RESOURCE_EXHAUSTED,
            "CEL expressions",
        ),
        ({"field_mask": {"paths": ["uuid"] * 501}}, Code.RESOURCE_EXHAUSTED, "field mask"),
        ({"since": Timestamp(seconds=1 << 62)}, Code.INVALID_ARGUMENT, "`since`"),
        ({"until": Timestamp(nanos=-1)}, Code.INVALID_ARGUMENT, "`until`"),
    ],
)
def test_too_much_is_named(fields: dict[str, Any], code: Code, word: str) -> None:
    with pytest.raises(RpcError) as error:
        check(GetFlowsRequest(**fields))
    assert error.value.code == code
    assert word in error.value.sentence


def test_a_mask_of_all_fields_fits() -> None:
    def count(descriptor: Any, depth: int) -> int:
        inner = (count(field.message_type, depth - 1) for field in descriptor.fields if field.message_type)
        return len(descriptor.fields) + (sum(inner) if depth else 0)

    assert count(Flow.DESCRIPTOR, 1) < request_limits.MAX_PATHS


def test_a_request_that_is_too_large_is_not_read() -> None:
    request_limits.check_size(bytes(request_limits.MAX_BYTES))
    with pytest.raises(RpcError, match="bytes of a request") as refused:
        request_limits.check_size(bytes(request_limits.MAX_BYTES + 1))
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
