"""Records that stand for several events, taken apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cilia import abi
from cilia.dataplane.records import Records

TRACE, VERDICT = 2, 3
INGRESS, EGRESS = 1, 2
FIRST, APART, WITH_EGRESS, WITH_INGRESS = 8, 32, 64, 128


@pytest.fixture(scope="module")
def layout() -> abi.Layout:
    return abi.layout()


def records_of(layout: abi.Layout, *flags: int) -> Any:
    """Traces of port 256 and up, each numbered behind the one before it."""
    made = np.zeros(len(flags), layout.dtype("event"))
    made["flags"], made["kind"], made["direction"] = flags, TRACE, INGRESS
    made["source_port"] = 256 + np.arange(len(flags))
    number = 100
    for record, flag in zip(made, flags, strict=True):
        record["sequence"], record["time"] = number, 10 * number
        number += 1 + bool(flag & WITH_EGRESS) + bool(flag & WITH_INGRESS)
    return made


def told(events: Any) -> list[tuple[int, ...]]:
    names = ("sequence", "source_port", "kind", "direction", "flags")
    return [tuple(int(event[name]) for name in names) for event in events]


def test_a_record_is_its_verdicts_and_its_trace(layout: abi.Layout) -> None:
    apart = FIRST | APART
    records = records_of(
        layout, 0, apart | WITH_EGRESS | WITH_INGRESS, 1, apart | WITH_INGRESS, apart | WITH_EGRESS
    )
    found = Records(layout)
    counts = found.counts(records)
    assert counts.tolist() == [1, 3, 1, 2, 2]
    events = found.events(records, counts)
    assert events.dtype == records.dtype
    assert told(events) == [
        (100, 256, TRACE, INGRESS, 0),
        (101, 257, VERDICT, EGRESS, apart),
        (102, 257, VERDICT, INGRESS, apart),
        (103, 257, TRACE, INGRESS, apart),
        (104, 258, TRACE, INGRESS, 1),
        (105, 259, VERDICT, INGRESS, apart),
        (106, 259, TRACE, INGRESS, apart),
        (107, 260, VERDICT, EGRESS, apart),
        (108, 260, TRACE, INGRESS, apart),
    ]
    assert (np.diff(events["time"].astype(np.int64)) > 0).all()


def test_what_is_left_out_stands_for_nothing(layout: abi.Layout) -> None:
    records = records_of(layout, WITH_EGRESS | WITH_INGRESS, WITH_EGRESS, 0, WITH_INGRESS)
    found = Records(layout)
    counts = found.counts(records)
    counts[[0, 2]] = 0
    assert told(found.events(records, counts)) == [
        (103, 257, VERDICT, EGRESS, 0),
        (104, 257, TRACE, INGRESS, 0),
        (106, 259, VERDICT, INGRESS, 0),
        (107, 259, TRACE, INGRESS, 0),
    ]


def test_plain_records_are_events_as_they_are(layout: abi.Layout) -> None:
    records = records_of(layout, 0, FIRST, 1)
    found = Records(layout)
    assert found.events(records, found.counts(records)) is records
    assert not len(found.events(records[:0], found.counts(records[:0])))
