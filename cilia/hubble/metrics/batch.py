"""Some rows, seen by all metrics one after the other: what one of them has worked out the next ones use."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from cilia.hubble.columns import FLAG_REPLY, KIND_DROP, KIND_TRACE, KIND_VERDICT, Mask, Words
from cilia.hubble.store import Rows


def table(*members: int) -> Mask:
    """Whether a byte is one of these: shape (256,)."""
    found = np.zeros(256, np.bool_)
    found[list(members)] = True
    return found


class Batch:
    """Rows and their columns; lives as long as the rows' views."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._columns: dict[str, npt.NDArray[np.generic]] = {}
        self.codes: dict[object, Words] = {}
        """Codes of sides, by whoever made them."""

    def __len__(self) -> int:
        return len(self.rows.wall)

    def column(self, name: str) -> npt.NDArray[np.generic]:
        """A field of the events, in one piece of memory."""
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = np.ascontiguousarray(self.rows.events[name])
        return found

    def one_of(self, name: str, members: Mask) -> Mask:
        """Where a column of bytes has a member of a `table`."""
        found: Mask = members[self.column(name)]
        return found

    def word(self, *fields: tuple[int, str]) -> Words:
        """Columns shifted into one word each row."""
        joined = np.zeros(len(self), np.uint64)
        for shift, name in fields:
            joined |= self.column(name).astype(np.uint64) << np.uint64(shift)
        return joined

    def flagged(self, flag: int) -> Mask:
        """Where a bit of `flags` is set."""
        return np.asarray((self.column("flags").astype(np.uint8) & flag) != 0)

    def equal(self, name: str, value: int) -> Mask:
        """Where a column has a value."""
        return np.asarray(self.column(name) == value, np.bool_)

    @cached_property
    def reply(self) -> Mask:
        """Where the packet goes back to who opened the flow."""
        return self.flagged(FLAG_REPLY)

    @cached_property
    def drop(self) -> Mask:
        """Events of drops."""
        return self.equal("kind", KIND_DROP)

    @cached_property
    def trace(self) -> Mask:
        """Events of packets that went on."""
        return self.equal("kind", KIND_TRACE)

    @cached_property
    def verdict(self) -> Mask:
        """Events of verdicts alone."""
        return self.equal("kind", KIND_VERDICT)
