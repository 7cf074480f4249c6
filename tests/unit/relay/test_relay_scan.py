"""The scan reads what the protobuf library would."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.proto.observer import observer_pb2
from cilia.relay.scan import ScanError, Scanner, is_flow
from tests.support.relay import Response

moments = st.one_of(
    st.integers(0, 1 << 62), st.integers(1_700_000_000_000_000_000, 1_900_000_000_000_000_000)
)


def made(moment: int, kind: str, node: str) -> bytes:
    response = Response(node_name=node)
    response.time.seconds, response.time.nanos = divmod(moment, 1_000_000_000)
    if kind == "flow":
        response.flow.uuid = "\x3e" * 40
    elif kind == "lost":
        response.lost_events.num_events_lost = 7
    else:
        response.node_status.message = "x"
    return response.SerializeToString()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(moments, st.sampled_from(["flow", "lost", "state"]), st.text(max_size=9)), max_size=40)
)
def test_times_are_those_of_the_library(drawn: list[tuple[int, str, str]]) -> None:
    messages = [made(*one) for one in drawn]
    assert Scanner().times(messages) == [moment for moment, _, _ in drawn]
    assert [is_flow(message) for message in messages] == [kind == "flow" for _, kind, _ in drawn]


def test_fields_may_come_in_any_order() -> None:
    response = Response(node_name="n")
    response.time.FromNanoseconds(1_795_408_000_000_000_005)
    flow = Response()
    flow.flow.uuid = "u"
    message = response.SerializeToString() + flow.SerializeToString()
    assert Scanner().times([message]) == [1_795_408_000_000_000_005]
    assert is_flow(message)


@pytest.mark.parametrize("count", [1, 20])
def test_without_a_time_the_last_one_holds(count: int) -> None:
    plain = observer_pb2.GetFlowsResponse(node_name="a node without a time").SerializeToString()
    scanner = Scanner()
    assert scanner.times([made(5_000_000_007, "flow", ""), *[plain] * count]) == [5_000_000_007] * (count + 1)
    assert scanner.times([plain]) == [5_000_000_007]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=30))
def test_garbage_is_told_or_passes_but_never_crashes(messages: list[bytes]) -> None:
    try:
        times = Scanner().times(messages)
    except ScanError:
        return
    assert len(times) == len(messages)


@pytest.mark.parametrize("message", [b"\x0a\x05abc", b"\xca", b"\x0b\x00", b"\x00\x01", b"\xff" * 12])
def test_what_is_no_message_is_said(message: bytes) -> None:
    with pytest.raises(ScanError):
        Scanner().times([message])
