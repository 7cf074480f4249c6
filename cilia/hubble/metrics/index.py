"""Keys of two words to places in a list of values: the vector step that all counting stands on.

Like `hubble.intern`, for many distinct keys in each batch: the cache grows with them, and what it misses
costs one look into a dictionary. Keys are compared in full, and the hash is keyed at random.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cilia.hubble.columns import Words

Labels: TypeAlias = tuple[str, ...]
Indexes: TypeAlias = npt.NDArray[np.int64]

SMALLEST_BITS, LARGEST_BITS = 10, 15
REMEMBERED_KEYS = 1 << 15


class LabelIndex:
    """Finds the place of the labels a key stands for; equal labels share a place."""

    def __init__(self, resolve: Callable[[int, int], Labels]) -> None:
        """`resolve`: the two words of a key to its labels; asked once until `forget`."""
        self.values: list[Labels] = []
        self._resolve = resolve
        self._factors = [np.uint64(secrets.randbits(64) | 1) for _ in range(2)]
        self._places: dict[Labels, int] = {}
        self._keys: dict[tuple[int, int], int] = {}
        self._make_cache(SMALLEST_BITS)

    def find(self, high: Words, low: Words) -> Indexes:
        """Places of all keys: shape (n,)."""
        slot = self._slot(high, low)
        found = self._cached[slot]
        hit = (self._high[slot] == high) & (self._low[slot] == low) & (found >= 0)
        if not hit.all():
            missing = np.flatnonzero(~hit)
            found[missing] = self._learn(high[missing], low[missing], slot[missing])
        return found

    def place(self, labels: Labels) -> int:
        """Where labels stand in `values`."""
        return self._places[labels]

    def forget(self) -> None:
        """Ask anew what keys stand for; places stay."""
        self._keys.clear()
        self._cached.fill(-1)

    def keep(self, kept: Indexes) -> None:
        """Drop all values but those at `kept`, which move together; forgets all keys."""
        self.values = [self.values[place] for place in kept.tolist()]
        self._places = {labels: place for place, labels in enumerate(self.values)}
        self.forget()

    def _slot(self, high: Words, low: Words) -> Words:
        mixed = high * self._factors[0]
        mixed ^= mixed >> np.uint64(29)
        mixed += low * self._factors[1]
        mixed ^= mixed >> np.uint64(32)
        mixed *= self._factors[0]
        return mixed >> np.uint64(64 - self._bits)

    def _learn(self, high: Words, low: Words, slot: Words) -> Indexes:
        known, places = self._keys, []
        for key in zip(high.tolist(), low.tolist(), strict=True):
            place = known.get(key)
            places.append(self._place(key) if place is None else place)
        found = np.array(places, np.int64)
        # Of keys that share a slot the last is written, in all three columns.
        self._high[slot], self._low[slot], self._cached[slot] = high, low, found
        if len(known) > 1 << self._bits - 2 and self._bits < LARGEST_BITS:
            self._make_cache(self._bits + 1)
        return found

    def _place(self, key: tuple[int, int]) -> int:
        labels = self._resolve(*key)
        place = self._places.setdefault(labels, len(self.values))
        if place == len(self.values):
            self.values.append(labels)
        if len(self._keys) >= REMEMBERED_KEYS:
            self._keys.clear()
        self._keys[key] = place
        return place

    def _make_cache(self, bits: int) -> None:
        self._bits = bits
        self._high, self._low = np.zeros(1 << bits, np.uint64), np.zeros(1 << bits, np.uint64)
        self._cached = np.full(1 << bits, -1, np.int64)
