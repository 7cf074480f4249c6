"""Protobuf messages read in columns: one vector step reads the next field of all messages.

Messages of one kind have a few dozen fields at most, so thousands of them take a few dozen steps. Source: the
encoding page of the Protocol Buffers documentation.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
Values = npt.NDArray[np.uint64]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
PADDING = 16
"""Bytes after the last message that may be looked at."""

HIGHEST = 0xFFFF
"""Fields from this number on are left out: their numbers sort slowly, and nobody asks for them."""

HIGH = np.uint64(0x8080808080808080)
LOW = np.uint64(0x7F7F7F7F7F7F7F7F)
ONE = np.uint64(1)


class Malformed(ValueError):
    """Bytes that are no messages."""


class Occurrences(NamedTuple):
    """Every time a field stands in some messages; those of one message in their order."""

    rows: Places
    """Which message."""
    values: Values
    """Of numbers; of the others their length."""
    starts: Places
    """Where the content begins, for what has a length."""
    ends: Places


class Buffer:
    """Messages one after the other, readable in steps."""

    def __init__(self, data: bytes) -> None:
        """`data` without the padding."""
        self.data = data + bytes(PADDING)
        self._bytes = np.frombuffer(self.data, np.uint8)
        self._words = np.ndarray((len(data) + 8,), "<u8", self.data, strides=(1,))

    def varints(self, places: Places) -> tuple[Values, Places]:
        """Numbers that begin at some places, and where each ends."""
        words = self._words[places]
        stops = ~words & HIGH
        low = stops & (~stops + ONE)
        kept = words & (low | (low - ONE)) & LOW
        # Seven bits of each byte move together: pairs of bytes, then of fours, then of eights.
        kept = (kept & np.uint64(0x007F007F007F007F)) | ((kept & np.uint64(0x7F007F007F007F00)) >> ONE)
        kept = (kept & np.uint64(0x00003FFF00003FFF)) | (
            (kept & np.uint64(0x3FFF00003FFF0000)) >> np.uint64(2)
        )
        kept = (kept & np.uint64(0x000000000FFFFFFF)) | (
            (kept & np.uint64(0x0FFFFFFF00000000)) >> np.uint64(4)
        )
        ends = places + np.frexp(low.astype(np.float64))[1] // 8
        if not stops.all():
            self._finish(np.flatnonzero(stops == 0), places, kept, ends)
        return kept, ends

    def _finish(self, long: Places, places: Places, values: Values, ends: Places) -> None:
        """The last bits of numbers of nine and ten bytes."""
        ninth = self._bytes[places[long] + 8].astype(np.uint64)
        tenth = self._bytes[places[long] + 9].astype(np.uint64)
        longer = ninth >= 0x80
        if (tenth[longer] >= 0x80).any():
            raise Malformed("a number has more than ten bytes")
        values[long] |= (ninth & np.uint64(0x7F)) << np.uint64(56)
        values[long] |= np.where(longer, tenth << np.uint64(63), np.uint64(0))
        ends[long] = places[long] + 9 + longer

    def fields(self, starts: Places, ends: Places) -> dict[int, Occurrences]:
        """All fields of the messages at [start, end), by number. Raises Malformed."""
        steps = []
        rows, places, limits = np.arange(len(starts)), starts, ends
        going = places < limits
        while going.any():
            rows, places, limits = rows[going], places[going], limits[going]
            step, places = self._step(rows, places, limits)
            steps.append(step)
            going = places < limits
        return by_number(steps)

    def _step(self, rows: Places, places: Places, limits: Places) -> tuple[Any, Places]:
        """The next field of each message."""
        keys, begins = self.varints(places)
        wires = (keys & np.uint64(7)).astype(np.int8)
        values, starts = self.varints(begins)
        long = wires == LENGTH
        ends = np.where(long, starts + np.minimum(values, np.uint64(1 << 40)).astype(np.int64), starts)
        other = np.flatnonzero((wires != VARINT) & ~long)
        if len(other):
            widths = np.array([0, 8, 0, 0, 0, 4, 0, 0])[wires[other]]
            if not widths.all():
                raise Malformed("a field has a wire type that is not in use")
            ends[other] = begins[other] + widths
            starts[other] = begins[other]
        if (ends > limits).any():
            raise Malformed("a field ends after its message")
        return ((keys >> np.uint64(3)).astype(np.int64), rows, values, starts, ends), ends


def by_number(steps: list[Any]) -> dict[int, Occurrences]:
    """What the steps found, by field."""
    if not steps:
        return {}
    numbers, *columns = (np.concatenate(column) for column in zip(*steps, strict=True))
    short = np.minimum(numbers, HIGHEST).astype(np.uint16)
    order = np.argsort(short, kind="stable")
    short = short[order]
    edges = [0, *(np.flatnonzero(np.diff(short)) + 1).tolist(), len(short)]
    return {
        int(short[first]): Occurrences(*(column[order[first:last]] for column in columns))
        for first, last in itertools.pairwise(edges)
        if short[first] < HIGHEST
    }
