"""Records of a ring to events: that of a new flow's trace may stand for the verdicts that let it begin, too.

    record   egress verdict + ingress verdict + trace, sequence 7
    events   egress verdict 7, ingress verdict 8, trace 9

`struct event` (bpf/abi/event.h) says how. The kernel takes as many sequence numbers as there are events, so a
lost record is a gap of as many, and nobody behind the reader knows that they came together. They are a
nanosecond apart: who sorts by time keeps their order.
"""

from __future__ import annotations

import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array


class Records:
    """Takes records apart."""

    def __init__(self, layout: abi.Layout) -> None:
        self._sides = [
            (
                np.uint8(layout.value(f"EVENT_WITH_{side}_VERDICT")),
                np.uint8(layout.value(f"DIRECTION_{side}")),
            )
            for side in ("EGRESS", "INGRESS")
        ]
        self._enclosed = np.bitwise_or.reduce([flag for flag, _ in self._sides])
        self._verdict = np.uint8(layout.value("EVENT_VERDICT"))

    def counts(self, records: Array) -> Array:
        """How many events each record stands for."""
        flags = records["flags"]
        counts = np.ones(len(records), np.int64)
        if (flags & self._enclosed).any():
            for flag, _ in self._sides:
                counts += (flags & flag) != 0
        return counts

    def events(self, records: Array, counts: Array) -> Array:
        """The events, in the order of their numbers; `counts`: as counts() told, or 0 for what is to be left
        out."""
        if (counts == 1).all():
            return records
        # By bytes: numpy would turn fields of the wire's order into native ones.
        raw = records.view(f"V{records.dtype.itemsize}")
        events = np.repeat(raw, counts).view(records.dtype)
        first = np.cumsum(counts) - counts
        place = (np.arange(len(events)) - np.repeat(first, counts)).astype(np.uint64)
        events["sequence"] += place
        events["time"] += place
        events["flags"] &= ~self._enclosed
        at = first
        for flag, direction in self._sides:
            has = (records["flags"] & flag != 0) & (counts > 0)
            events["kind"][at[has]] = self._verdict
            events["direction"][at[has]] = direction
            at = at + has
        return events
