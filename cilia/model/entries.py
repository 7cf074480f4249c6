"""All entries of a subject, in layers: for each direction and peer, what stands at which prefix of ports.

Peers that the same rules are about share one layer, so that ten thousand of them cost ten thousand
references; a changed copy shares all that did not change, so that one peer more or less costs microseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from cilia.model.ids import IdentityId
from cilia.model.policy import Entry, EntryKey

Prefix = tuple[int, int, int]
"""Protocol, port and how many of their 24 bits count, as in EntryKey."""

Layer = Mapping[Prefix, Entry]
"""The entries of one peer in one direction; never changed once it is in use."""

Place = tuple[int, int]
"""Direction and peer."""

BUCKETS = 64
"""How many parts a copy shares or copies as a whole."""

Bucket = dict[int, Layer]
"""Some of the peers of one direction, with their layers."""


_EMPTY: Bucket = {}
"""The part of all in which nothing stands; never changed."""


class Layered(Hashable, Protocol):
    """Whoever holds a layer, for many peers."""

    @property
    def layer(self) -> Layer:
        """Not empty."""


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
        self._buckets: list[Bucket] = [_EMPTY] * BUCKETS
        self._size = 0
        for (direction, peer), layer in layers:
            if layer:
                self._own(_bucket(direction, peer))[peer] = layer
                self._size += len(layer)

    def _own(self, number: int) -> Bucket:
        """A part to write into; only for who is being made."""
        if self._buckets[number] is _EMPTY:
            self._buckets[number] = {}
        return self._buckets[number]

    @classmethod
    def of(cls, entries: Mapping[EntryKey, Entry]) -> Entries:
        """The same entries, sorted into layers."""
        layers: dict[Place, dict[Prefix, Entry]] = {}
        for key, entry in entries.items():
            layer = layers.setdefault((key.direction, key.peer), {})
            layer[key.protocol, key.port, key.bits] = entry
        return cls(layers.items())

    def with_side(self, direction: int, peers: Mapping[IdentityId, Layered]) -> Entries:
        """A copy in which a direction has just these peers, each with the layer of its holder, none empty."""
        copy = Entries.__new__(Entries)
        copy._buckets = list(self._buckets)
        before = (len(layer) for part in self._buckets[direction & 1 :: 2] for layer in part.values())
        counted = Counter(peers.values())
        now = sum(count * len(holder.layer) for holder, count in counted.items())
        copy._size = self._size - sum(before) + now
        copy._buckets[direction & 1 :: 2] = [_EMPTY] * _PEERS
        if len(peers) < _PEERS:
            for peer, holder in peers.items():
                copy._own(_bucket(direction, peer))[peer] = holder.layer
        else:
            parts: list[Bucket] = [{} for _ in range(_PEERS)]
            for peer, holder in peers.items():
                parts[peer % _PEERS][peer] = holder.layer
            copy._buckets[direction & 1 :: 2] = parts
        return copy

    def relaid(self, direction: int, layers: Sequence[tuple[Sequence[IdentityId], Layer]]) -> Entries:
        """A copy in which some peers of a direction have other layers; an empty one removes them."""
        if not layers:
            return self
        copy = Entries.__new__(Entries)
        buckets = copy._buckets = list(self._buckets)
        size = self._size
        side = direction & 1
        own: set[int] = set()
        for peers, layer in layers:
            for peer in peers:
                number = peer % _PEERS << 1 | side
                if number not in own:
                    own.add(number)
                    buckets[number] = dict(buckets[number])
                bucket = buckets[number]
                if peer in bucket:
                    size -= len(bucket[peer])
                bucket[peer] = layer
            if not layer:
                for peer in peers:
                    del buckets[_bucket(direction, peer)][peer]
            size += len(peers) * len(layer)
        copy._size = size
        return copy

    def replaced(self, layers: Mapping[Place, Layer | None]) -> Entries:
        """A copy with other layers at some places; None or an empty layer removes what stands there."""
        copy = Entries.__new__(Entries)
        copy._buckets = list(self._buckets)
        copy._size = self._size
        for number in {_bucket(*place) for place in layers}:
            copy._buckets[number] = dict(self._buckets[number])
        for (direction, peer), layer in layers.items():
            bucket = copy._buckets[_bucket(direction, peer)]
            copy._size -= len(bucket.pop(peer, ()))
            if layer:
                bucket[peer] = layer
                copy._size += len(layer)
        return copy

    def layer(self, direction: int, peer: int) -> Layer:
        """What stands at one place; empty when nothing does."""
        return self._buckets[_bucket(direction, peer)].get(peer, {})

    def layers(self) -> Iterator[tuple[Place, Layer]]:
        """Every place with its layer; alike ones are the same object."""
        for direction, part in self.parts():
            for peer, layer in part.items():
                yield (direction, peer), layer

    def parts(self) -> Iterator[tuple[int, Mapping[int, Layer]]]:
        """All layers by peer, in parts of one direction each: for who takes thousands at once."""
        for number, bucket in enumerate(self._buckets):
            if bucket:
                yield _direction(number), bucket

    def beside(self, known: Entries) -> Iterator[tuple[Place, Layer]]:
        """What stands here about peers of whom `known` says nothing in either direction; not what stands
        about peer 0, which is any."""
        egress, ingress = known._buckets[::2], known._buckets[1::2]
        for number, bucket in enumerate(self._buckets):
            if not bucket:
                continue
            for peer in bucket.keys() - egress[number >> 1].keys() - ingress[number >> 1].keys():
                if peer:
                    yield (_direction(number), peer), bucket[peer]

    def since(self, before: Entries) -> Difference:
        """What is new, other or gone compared with `before`; what both share is not looked at."""
        difference = Difference({}, {}, [])
        for number, (mine, other) in enumerate(zip(self._buckets, before._buckets, strict=True)):
            if mine is not other:
                _compare(_direction(number), mine, other, difference)
        return difference

    def __getitem__(self, key: EntryKey) -> Entry:
        layer = self._buckets[_bucket(key.direction, key.peer)].get(key.peer)
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


_PEERS = BUCKETS // 2


def _bucket(direction: int, peer: int) -> int:
    """Where the layers of a peer in a direction are."""
    return peer % _PEERS << 1 | direction & 1


def _direction(bucket: int) -> int:
    """Ingress is 1, egress 2 (`Direction`)."""
    return 1 if bucket & 1 else 2


def _compare(direction: int, mine: Bucket, other: Bucket, found: Difference) -> None:
    for peer, layer in mine.items():
        before = other.get(peer, {})
        if layer is before:
            continue
        for prefix, entry in layer.items():
            old = before.get(prefix)
            if old is None:
                found.added[EntryKey(direction, peer, *prefix)] = entry
            elif old is not entry and old != entry:
                found.changed[EntryKey(direction, peer, *prefix)] = entry
        if before:
            found.removed.extend(EntryKey(direction, peer, *p) for p in before if p not in layer)
    for peer in other.keys() - mine.keys():
        found.removed.extend(EntryKey(direction, peer, *prefix) for prefix in other[peer])
