"""Numbers to meanings, once per distinct value.

A batch has many rows and few distinct keys. A direct-mapped cache answers all rows in one vector step; what
it misses is looked up in a dictionary, and only what is new is resolved. Keys are compared in full, so a
collision costs time, never a wrong name; the hash is keyed at random, so that nobody can aim at it.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

from cilia.hubble.columns import Refs, Words, void

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
        self._words = struct.Struct(f"={width}Q")
        self._shift = np.uint64(64 - bits)
        self._factors = np.array([secrets.randbits(64) | 1 for _ in range(width)], np.uint64)
        self._slots = np.zeros((1 << bits, width), np.uint64)
        self._slot_refs = np.full(1 << bits, -1, np.int64)
        self._keys: dict[bytes, int] = {}
        self._by_value: dict[T, int] = {}

    def refs(self, columns: Sequence[Words]) -> Refs:
        """Indexes of the values of all rows: shape (n,), one array per word of the key as input."""
        keys = np.empty((len(columns[0]), self._width), np.uint64)
        for place, column in enumerate(columns):
            keys[:, place] = column
        return self.find(keys)

    def find(self, keys: Words) -> Refs:
        """The same for keys in one array, of shape (n, width) and contiguous."""
        slot = (keys @ self._factors) >> self._shift
        found = self._slot_refs[slot]
        hit = found >= 0
        same = self._slots[slot] == keys
        for place in range(self._width):
            hit &= same[:, place]
        if not hit.all():
            missing = np.flatnonzero(~hit)
            found[missing] = self._learn(keys[missing], slot[missing])
        refs: Refs = found.astype(np.uint32)
        return refs

    def ref(self, words: Sequence[int]) -> int:
        """The index of one key's value."""
        return self._ref(np.array(words, np.uint64).tobytes())

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

    def _learn(self, keys: Words, slot: Words) -> Words:
        raw = void(keys.view(np.uint8))
        known = {key: self._ref(key) for key in dict.fromkeys(raw)}
        refs = np.fromiter(map(known.__getitem__, raw), np.int64, len(raw))
        # Two keys of this batch may share a slot; refs are written in the order of the keys, so the slot
        # holds what belongs together.
        self._slots[slot] = keys
        self._slot_refs[slot] = refs
        return refs.astype(np.uint64)

    def _ref(self, key: bytes) -> int:
        known = self._keys.get(key)
        if known is not None:
            return known
        value = self._resolve(self._words.unpack(key))
        ref = self._by_value.setdefault(value, len(self.values))
        if ref == len(self.values):
            self.values.append(value)
        if len(self._keys) >= REMEMBERED_KEYS:
            self._keys.clear()
        self._keys[key] = ref
        return ref
