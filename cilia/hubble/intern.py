"""Numbers to meanings, once per distinct value.

A batch has many rows and few distinct keys. A direct-mapped cache answers all rows in one vector step; what
it misses is reduced to distinct keys, and only those are resolved in Python. Keys are compared in full, so a
collision costs time, never a wrong name; the hash is keyed at random, so that nobody can aim at it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

from cilia.hubble.columns import Refs, Words

T = TypeVar("T", bound=Hashable)

REMEMBERED_KEYS = 1 << 16


class Interner(Generic[T]):
    """Maps keys of `width` 64-bit words to indexes into `values`; equal values share an index.

    `resolve` gets the words of one key. Meanings may change with time: `forget()` makes the next batch
    resolve again, while rows stored before keep the value they got.
    """

    def __init__(self, width: int, resolve: Callable[[Sequence[int]], T], *, bits: int = 13) -> None:
        self.values: list[T] = []
        self.generation = 0
        """Grows when indexes are given out anew, see `compact`."""
        self._resolve = resolve
        self._width = width
        self._shift = np.uint64(64 - bits)
        self._factors = [np.uint64(secrets.randbits(64) | 1) for _ in range(width)]
        self._slots = [np.zeros(1 << bits, np.uint64) for _ in range(width)]
        self._slot_refs = np.full(1 << bits, -1, np.int64)
        self._keys: dict[bytes, int] = {}
        self._by_value: dict[T, int] = {}

    def refs(self, columns: Sequence[Words]) -> Refs:
        """Indexes of the values of all rows: shape (n,), one array per word of the key as input."""
        slot = self._slot(columns)
        found = self._slot_refs[slot]
        hit = found >= 0
        for stored, column in zip(self._slots, columns, strict=True):
            hit &= stored[slot] == column
        if not hit.all():
            missing = np.flatnonzero(~hit)
            found[missing] = self._learn([column[missing] for column in columns], slot[missing])
        return found.astype(np.uint32)

    def forget(self) -> None:
        """Resolve every key anew from now on."""
        self._slot_refs.fill(-1)
        self._keys.clear()

    def compact(self, used: Refs) -> Refs:
        """Drop all values but those at `used` (sorted, distinct); gives the old-to-new table.

        Indexes not in `used` map to 0 and must not be looked up any more.
        """
        table = np.zeros(len(self.values), np.uint32)
        table[used] = np.arange(len(used), dtype=np.uint32)
        self.values = [self.values[index] for index in used]
        self._by_value = {value: index for index, value in enumerate(self.values)}
        self.generation += 1
        self.forget()
        return table

    def _slot(self, columns: Sequence[Words]) -> Words:
        mixed = columns[0] * self._factors[0]
        for column, factor in zip(columns[1:], self._factors[1:], strict=True):
            mixed ^= mixed >> np.uint64(29)
            mixed += column * factor
        mixed ^= mixed >> np.uint64(32)
        mixed *= self._factors[0]
        return mixed >> self._shift

    def _learn(self, columns: Sequence[Words], slot: Words) -> Words:
        rows = np.ascontiguousarray(np.column_stack(columns), np.uint64)
        keys = rows.view(np.dtype((np.void, 8 * self._width))).ravel()
        distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        refs = np.array([self._ref(key.tobytes()) for key in distinct], np.int64)
        target = slot[first]
        for stored, column in zip(self._slots, columns, strict=True):
            stored[target] = column[first]
        self._slot_refs[target] = refs
        # Two keys of this batch may share a slot; each word was written in the same order, so the slot
        # holds one whole key.
        return refs[inverse].astype(np.uint64)

    def _ref(self, key: bytes) -> int:
        known = self._keys.get(key)
        if known is not None:
            return known
        value = self._resolve([int(word) for word in np.frombuffer(key, np.uint64)])
        ref = self._by_value.setdefault(value, len(self.values))
        if ref == len(self.values):
            self.values.append(value)
        if len(self._keys) >= REMEMBERED_KEYS:
            self._keys.clear()
        self._keys[key] = ref
        return ref
