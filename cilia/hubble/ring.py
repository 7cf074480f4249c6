"""Rows in a ring of columns, and the numbers they go by.

`FlowStore` has two: all rows of late, and the drops and audits that left it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cilia.hubble.columns import Events, Mask, Refs, Times, blobs

AnyColumn: TypeAlias = "npt.NDArray[Any]"


class Rows(NamedTuple):
    """Some rows of the store, as columns of equal length."""

    numbers: Times
    events: Events
    wall: Times
    source: Refs
    destination: Refs
    egress: Refs
    """Index of the rules the egress cookie stands for."""
    ingress: Refs
    device: Refs
    service: Refs
    """Index of the service that the initiator asked for."""

    def where(self, mask: Mask | Times | slice) -> Rows:
        """The rows that a mask or places select (copies), or a slice (views)."""
        events = blobs(self.events)[mask].view(self.events.dtype)
        refs = (column[mask] for column in self[3:])
        return Rows(self.numbers[mask], events, self.wall[mask], *refs)


REFERENCES = Rows._fields[3:]


class Ring:
    """The last `capacity` rows written, oldest first; views into it hold until the next write."""

    def __init__(self, dtype: np.dtype[np.void], capacity: int) -> None:
        """`capacity`: a power of two."""
        self.capacity = capacity
        self.written = 0
        """Rows that were ever written."""
        refs = (np.zeros(capacity, np.uint32) for _ in REFERENCES)
        self._columns = Rows(
            np.zeros(capacity, np.int64), np.zeros(capacity, dtype), np.zeros(capacity, np.int64), *refs
        )
        self._blobs = blobs(self._columns.events)

    def __len__(self) -> int:
        return min(self.written, self.capacity)

    @property
    def gone(self) -> int:
        """Rows that others have overwritten."""
        return self.written - len(self)

    def write(self, rows: Rows) -> None:
        """Put rows, in the order of their numbers, over the oldest ones."""
        count = len(rows.numbers)
        if count > self.capacity:
            self.written += count - self.capacity
            rows = rows.where(slice(count - self.capacity, None))
            count = self.capacity
        start = self.written & (self.capacity - 1)
        room = min(self.capacity - start, count)
        for target, values in zip(self._targets(), [blobs(rows.events), *plain(rows)], strict=True):
            target[start : start + room] = values[:room]
            if room < count:
                target[: count - room] = values[room:]
        self.written += count

    def oldest(self, count: int) -> list[Rows]:
        """Views of the `count` oldest rows: those the next writes replace once the ring is full."""
        return self.between(self.gone, self.gone + min(count, len(self)))

    def between(self, first: int, last: int) -> list[Rows]:
        """One or two views of the rows [first, last) as counted by `written`, clipped to what is here."""
        first, last = max(first, self.gone), min(last, self.written)
        views = []
        while first < last:
            start = first & (self.capacity - 1)
            count = min(self.capacity - start, last - first)
            views.append(self._columns.where(slice(start, start + count)))
            first += count
        return views

    def numbers(self) -> Times:
        """Numbers of all rows here, ascending."""
        return np.concatenate(
            [np.zeros(0, np.int64), *(view.numbers for view in self.between(0, self.written))]
        )

    def at(self, places: Times) -> Rows:
        """A copy of the rows at some places, as counted by `written`."""
        slots = places & (self.capacity - 1)
        return self._columns.where(slots)

    def references(self, names: Sequence[str]) -> list[Refs]:
        """Views of the columns of that name, as far as they are filled."""
        return [getattr(self._columns, name)[: len(self)] for name in names]

    @property
    def wall(self) -> Times:
        """The times of all rows, in no order."""
        return self._columns.wall[: len(self)]

    @property
    def nbytes(self) -> int:
        """Memory of a full ring."""
        return sum(column.nbytes for column in self._columns)

    def _targets(self) -> list[AnyColumn]:
        return [self._blobs, *plain(self._columns)]


def plain(rows: Rows) -> list[AnyColumn]:
    """All columns but the records."""
    return [rows.numbers, *rows[2:]]


def together(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other, copied; at least one part."""
    if len(parts) == 1:
        return parts[0]
    dtype = parts[0].events.dtype
    events = np.concatenate([blobs(part.events) for part in parts]).view(dtype)
    numbers, *rest = (np.concatenate(columns) for columns in zip(*map(plain, parts), strict=True))
    return Rows(numbers, events, *rest)
