"""All entries of a subject, in layers: for each direction and peer, what stands at which prefix of ports.

Peers that the same rules are about share one layer, so that ten thousand of them cost ten thousand references;
a changed copy shares all that did not change, so that one peer more or less costs microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from cilia.model.policy import Entry, EntryKey

Prefix = tuple[int, int, int]
"""Protocol, port and how many of their 24 bits count, as in EntryKey."""

Layer = Mapping[Prefix, Entry]
"""The entries of one peer in one direction; never changed once it is in use."""

Place = tuple[int, int]
"""Direction and peer."""

BUCKETS = 256
"""How many parts a copy shares or copies as a whole."""


_EMPTY: dict[Place, Layer] = {}
"""The part of all copies in which nothing stands; never changed."""


class Difference(NamedTuple):
    """What became of entries between two states of them."""

    added: dict[EntryKey, Entry]
    changed: dict[EntryKey, Entry]
    """Keys of both states, with their new entries."""
    removed: list[EntryKey]


class Entries(Mapping[EntryKey, Entry]):
    """An immutable mapping from keys to entries; changed copies are cheap."""

    __slots__ = ("_buckets", "_size")

    def __init__(self, layers: Iterable[tuple[Place, Layer]] = ()) -> None:
        """Empty layers are left out."""
        # Most subjects have a handful of entries: making hundreds of empty parts would cost more than they.
        buckets = self._buckets = [_EMPTY] * BUCKETS
        self._size = 0
        for place, layer in layers:
            if layer:
                at = place[1] % BUCKETS
                if buckets[at] is _EMPTY:
                    buckets[at] = {}
                buckets[at][place] = layer
                self._size += len(layer)

    @classmethod
    def of(cls, entries: Mapping[EntryKey, Entry]) -> Entries:
        """The same entries, sorted into layers."""
        layers: dict[Place, dict[Prefix, Entry]] = {}
        for key, entry in entries.items():
            layer = layers.setdefault((key.direction, key.peer), {})
            layer[key.protocol, key.port, key.bits] = entry
        return cls(layers.items())

    def replaced(self, layers: Mapping[Place, Layer | None]) -> Entries:
        """A copy with other layers at some places; None or an empty layer removes what stands there."""
        copy = Entries.__new__(Entries)
        copy._buckets = list(self._buckets)
        copy._size = self._size
        touched = {place[1] % BUCKETS for place in layers}
        for number in touched:
            copy._buckets[number] = dict(self._buckets[number])
        for place, layer in layers.items():
            bucket = copy._buckets[place[1] % BUCKETS]
            copy._size -= len(bucket.pop(place, ()))
            if layer:
                bucket[place] = layer
                copy._size += len(layer)
        return copy

    def layer(self, direction: int, peer: int) -> Layer:
        """What stands at one place; empty when nothing does."""
        return self._buckets[peer % BUCKETS].get((direction, peer), {})

    def layers(self) -> Iterator[tuple[Place, Layer]]:
        """Every place with its layer; alike ones are the same object."""
        for bucket in self._buckets:
            if bucket:
                yield from bucket.items()

    def since(self, before: Entries) -> Difference:
        """What is new, other or gone compared with `before`; what both share is not looked at."""
        difference = Difference({}, {}, [])
        for mine, other in zip(self._buckets, before._buckets, strict=True):
            if mine is not other:
                _compare(mine, other, difference)
        return difference

    def __getitem__(self, key: EntryKey) -> Entry:
        layer = self._buckets[key.peer % BUCKETS].get((key.direction, key.peer))
        if layer is None:
            raise KeyError(key)
        try:
            return layer[key.protocol, key.port, key.bits]
        except KeyError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[EntryKey]:
        for (direction, peer), layer in self.layers():
            for protocol, port, bits in layer:
                yield EntryKey(direction, peer, protocol, port, bits)

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Entries):
            return self._size == other._size and self._buckets == other._buckets
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Entries({dict(self)!r})"


def _compare(mine: dict[Place, Layer], other: dict[Place, Layer], found: Difference) -> None:
    for place, layer in mine.items():
        before = other.get(place, {})
        if layer is before:
            continue
        for prefix, entry in layer.items():
            old = before.get(prefix)
            if old is None:
                found.added[EntryKey(*place, *prefix)] = entry
            elif old is not entry and old != entry:
                found.changed[EntryKey(*place, *prefix)] = entry
        found.removed.extend(EntryKey(*place, *prefix) for prefix in before if prefix not in layer)
    for place in other.keys() - mine.keys():
        found.removed.extend(EntryKey(*place, *prefix) for prefix in other[place])
