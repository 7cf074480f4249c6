"""A watch stream means the same however it is cut."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.wire.watch_stream import MAX_FRAME, ProtocolError, WatchEvent, WatchFailure, WatchStream

STREAM = (
    b'{"type":"ADDED","object":{"metadata":{"name":"\xc3\xa9","resourceVersion":"1"}}}\n'
    b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}\r\n'
    b"\n"
    b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}\n'
)


def meaning(events: list[WatchEvent | WatchFailure]) -> list[object]:
    return [
        (event.type, msgspec.json.decode(event.object)) if isinstance(event, WatchEvent) else event
        for event in events
    ]


WHOLE = meaning(WatchStream().feed(STREAM))


def test_events_and_the_failure_come_out_in_order() -> None:
    assert [
        ("ADDED", {"metadata": {"name": "é", "resourceVersion": "1"}}),
        ("BOOKMARK", {"metadata": {"resourceVersion": "7"}}),
        WatchFailure(410, "Expired", "too old"),
    ] == WHOLE


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_cuts_do_not_matter(cuts: list[int]) -> None:
    stream = WatchStream()
    events: list[WatchEvent | WatchFailure] = []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(edges):
        events += stream.feed(STREAM[start:end])
    assert meaning(events) == WHOLE


@given(st.binary())
def test_garbage_is_a_protocol_error_or_nothing(data: bytes) -> None:
    try:
        WatchStream().feed(data + b"\n")
    except ProtocolError:
        pass


def test_an_endless_line_is_refused() -> None:
    stream = WatchStream()
    with pytest.raises(ProtocolError, match="longer than"):
        for _ in range(MAX_FRAME // (1 << 20) + 1):
            stream.feed(b"x" * (1 << 20))
