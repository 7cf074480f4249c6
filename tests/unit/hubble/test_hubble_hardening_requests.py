"""Requests nobody in their right mind would send are answered or refused, never fail in the server."""

from __future__ import annotations

import grpc
import pytest

from cilia.hubble.cel import Condition
from cilia.hubble.filter_values import FilterError
from cilia.proto.flow import flow_pb2
from tests.support.grpc_client import get_flows
from tests.support.hubble import DROP, Beside, flow

ARITHMETIC = [
    "1/0 == 1",
    "1 % 0 == 1",
    "_flow.l4.TCP.source_port / (_flow.l4.TCP.destination_port - 8080) == 1",
    "9223372036854775807 + _flow.l4.TCP.source_port == 0",
    "0u - 1u == 0u",
    "uint(-1) == 1u",
    "int(1e300) == 1",
    "timestamp('9999-12-31T23:59:59Z') + duration('9999h') > _flow.time",
    "[0, 1].all(x, 1 / x == 1)",
]


@pytest.mark.parametrize("expression", ARITHMETIC)
def test_arithmetic_that_fails_is_no_match(expression: str) -> None:
    ported = flow_pb2.Flow(l4=flow_pb2.Layer4(TCP=flow_pb2.TCP(source_port=1, destination_port=8080)))
    condition = Condition(expression)
    assert not condition.matches(ported)
    assert not condition.matches(flow_pb2.Flow())


@pytest.mark.parametrize("expression", ["1/0 == 1", ARITHMETIC[2]])
def test_an_answer_goes_on_past_flows_that_arithmetic_fails_on(
    running: Beside, channel: grpc.Channel, expression: str
) -> None:
    running.append(flow(0), flow(1, **DROP))
    odd = flow_pb2.FlowFilter()
    odd.experimental.cel_expression.append(expression)
    dropped = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])
    (answer,) = get_flows(channel, number=10, whitelist=[odd, dropped])
    assert answer.flow.verdict == flow_pb2.DROPPED


@pytest.mark.parametrize("expression", ["(" * 1900, "\ud7ff" * 1900, "'" + "é" * 1900 + "' == 1 +"])
def test_what_is_told_of_an_expression_is_short_enough_for_any_client(expression: str) -> None:
    with pytest.raises(FilterError) as caught:
        Condition(expression)
    assert len(str(caught.value)) < 1000
