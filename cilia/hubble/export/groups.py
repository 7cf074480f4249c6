"""Flows that agree in some fields, counted over an interval.

A step's rows are first reduced to those that differ in anything a flow's text depends on; only these are
turned into text, whose equality makes the group. So counting costs a sort of rows, not a line for each.
"""

from __future__ import annotations

import numpy as np

from cilia.hubble.columns import EGRESS, INGRESS, Bytes, blobs, octets
from cilia.hubble.export.lines import LineMaker
from cilia.hubble.export.masks import Tree, has
from cilia.hubble.store import Rows

MOST_GROUPS = 1 << 14
"""When there are so many, they are told before their interval is over."""

PORTS = ("source_port", "destination_port", "original_source_port", "tcp_flags", "icmp_type", "icmp_code")
"""What `l4` depends on."""
MEANINGLESS = ("time", "sequence", "cpu", "ring", "length", "suppressed")
"""Fields of a record that no flow shows beside its time and UUID."""

COLUMN_OF = {EGRESS: 1, INGRESS: 0}


class Groups:
    """The groups of one interval."""

    def __init__(self, maker: LineMaker, tree: Tree) -> None:
        """`maker`: makes texts of the fields of `tree`, which make the group."""
        self._maker = maker
        self._without = MEANINGLESS if has(tree, "l4") or has(tree, "Summary") else MEANINGLESS + PORTS
        self._groups: dict[bytes, int] = {}
        self._counts = np.zeros((0, 3), np.int64)
        self._first: list[int] = []

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, rows: Rows) -> None:
        """Count some rows."""
        if not len(rows.numbers):
            return
        keys = row_keys(rows, self._without)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        group = self._number(rows.where(first))[inverse]
        direction = np.full(len(group), 2, np.int64)
        for number, column in COLUMN_OF.items():
            direction[rows.events["direction"] == number] = column
        counts = np.bincount(group * 3 + direction, minlength=3 * len(self._groups))
        self._counts += counts.reshape(-1, 3)

    def take(self) -> list[bytes]:
        """A line for each group, in the order in which they were first seen; counting begins anew."""
        lines = [
            self._maker.counted(body, self._first[number], tuple(self._counts[number].tolist()))
            for body, number in self._groups.items()
        ]
        self._groups.clear()
        self._first.clear()
        self._counts = np.zeros((0, 3), np.int64)
        return lines

    def _number(self, rows: Rows) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The group of each row; groups that are new get the row's time."""
        found = []
        for body, moment in zip(
            map(b"".join, zip(*self._maker.texts(rows), strict=True)), rows.wall.tolist(), strict=True
        ):
            number = self._groups.setdefault(body, len(self._groups))
            if number == len(self._first):
                self._first.append(moment)
            found.append(number)
        missing = len(self._groups) - len(self._counts)
        self._counts = np.concatenate([self._counts, np.zeros((missing, 3), np.int64)])
        return np.array(found, np.int64)


def row_keys(rows: Rows, without: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """All that rows say but some fields of their records, as opaque values."""
    events = blobs(rows.events).copy().view(rows.events.dtype)
    for name in without:
        octets(events, name)[:] = 0
    columns: list[Bytes] = [events.view(np.uint8).reshape(len(events), events.dtype.itemsize)]
    for refs in rows[3:]:
        columns.append(np.ascontiguousarray(refs, np.uint32).view(np.uint8).reshape(len(refs), 4))
    joined = np.ascontiguousarray(np.concatenate(columns, axis=1))
    return joined.view(np.dtype((np.void, joined.shape[1]))).ravel()
