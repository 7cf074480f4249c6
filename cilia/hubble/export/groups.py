"""Flows that agree in some fields, counted over an interval.

Only fragments that may have these fields are looked at, and what they say of them is remembered for each
distinct fragment; its equality makes the group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from cilia.hubble.columns import EGRESS, INGRESS
from cilia.hubble.convert import whole
from cilia.hubble.export.lines import LineMaker
from cilia.hubble.store import Rows

MOST_GROUPS = 1 << 14
"""When there are so many, they are told before their interval is over."""

CHUNK = 512
"""Groups told before others have their turn."""

COLUMNS = np.full(256, 2)
"""Direction of a flow to the column it is counted in: ingress, egress, unknown."""
COLUMNS[[INGRESS, EGRESS]] = 0, 1


class Groups:
    """The groups of one interval."""

    def __init__(self, maker: LineMaker) -> None:
        """`maker`: makes texts of the fields that make a group."""
        self._maker = maker
        self._groups: dict[bytes, int] = {}
        self._counts = np.zeros((0, 3), np.int64)
        self._first: list[int] = []

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, rows: Rows) -> None:
        """Count some rows."""
        groups, first = self._groups, self._first
        numbers = []
        for body, moment in zip(whole(self._maker.texts(rows)), rows.wall.tolist(), strict=True):
            number = groups.get(body)
            if number is None:
                number = groups[body] = len(groups)
                first.append(moment)
            numbers.append(number)
        missing = len(groups) - len(self._counts)
        self._counts = np.concatenate([self._counts, np.zeros((missing, 3), np.int64)])
        places = np.array(numbers, np.int64) * 3 + COLUMNS[rows.events["direction"]]
        self._counts += np.bincount(places, minlength=3 * len(groups)).reshape(-1, 3)

    def lines(self) -> Iterator[list[bytes]]:
        """A line for each group, in the order in which they were first seen, some at a time."""
        counts = self._counts.tolist()
        rows = zip(self._groups, self._first, counts, strict=True)
        while chunk := list(itertools.islice(rows, CHUNK)):
            yield [self._maker.counted(body, first, each) for body, first, each in chunk]

    def clear(self) -> None:
        """Begin to count anew."""
        self._groups.clear()
        self._first.clear()
        self._counts = np.zeros((0, 3), np.int64)
