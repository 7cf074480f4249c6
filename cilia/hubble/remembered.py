"""What was made once and is used again, forgotten together when it is too much: too many, or too large.

Who owns a pod chooses its labels, and strangers choose their addresses, so neither number nor size is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np

from cilia.hubble.ring import Rows

Key = TypeVar("Key", bound=Hashable)
T = TypeVar("T")

MOST_BYTES = 16 << 20
"""Of what one memory remembers; one step more may come on top."""


class Remembered(Generic[Key, T]):
    """Fragments by key."""

    def __init__(self, most: int, size: Callable[[T], int], most_bytes: int = MOST_BYTES) -> None:
        """`most`: how many are remembered; `size`: bytes of one."""
        self._known: dict[Key, T] = {}
        self._most, self._most_bytes = most, most_bytes
        self._size = size
        self._bytes = 0

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()
        self._bytes = 0

    def find(self, keys: list[Key], rows: Rows, make: Callable[[Rows], list[T]]) -> list[T]:
        """The fragment of each key; `make` gets a row of each that is new."""
        known = self._known
        self._forget_too_much()
        try:
            return list(map(known.__getitem__, keys))
        except KeyError:
            new = {key: index for index, key in enumerate(keys) if key not in known}
            made = make(rows.where(np.array(list(new.values()))))
            self._bytes += sum(map(self._size, made))
            known |= zip(new, made, strict=True)
        return list(map(known.__getitem__, keys))

    def look_up(self, keys: list[Key], make: Callable[[Key, int], T]) -> list[T]:
        """The fragment of each key; `make` gets one that is new, and its index."""
        known = self._known
        self._forget_too_much()
        try:
            return list(map(known.__getitem__, keys))
        except KeyError:
            for index, key in enumerate(keys):
                if key not in known:
                    made = known[key] = make(key, index)
                    self._bytes += self._size(made)
        return list(map(known.__getitem__, keys))

    def _forget_too_much(self) -> None:
        if len(self._known) > self._most or self._bytes > self._most_bytes:
            self.clear()
