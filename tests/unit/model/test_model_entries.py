"""Versions of entries equal plain dictionaries, share what they have in common, and tell their difference."""

from __future__ import annotations

import random

from cilia.model.entries import BUCKETS, Entries, Layer, Place
from cilia.model.ids import Cookie
from cilia.model.policy import Entry, EntryKey, MatchKind

WHOLE = (0, 0, 0)


def row(number: int) -> Entry:
    return Entry(1, True, Cookie(number), MatchKind.L3_ONLY)


def flat(layers: dict[Place, Layer]) -> dict[EntryKey, Entry]:
    return {EntryKey(*place, *at): entry for place, layer in layers.items() for at, entry in layer.items()}


def test_versions_equal_dictionaries() -> None:
    rng = random.Random(1)
    plain: dict[Place, Layer] = {}
    version = Entries()
    history: list[tuple[Entries, dict[EntryKey, Entry]]] = [(version, {})]
    for _ in range(200):
        change: dict[Place, Layer | None] = {}
        for _ in range(rng.randrange(20)):
            ports = {(6, rng.randrange(3), 24): row(rng.randrange(3)) for _ in range(rng.randrange(3))}
            change[rng.randrange(1, 3), rng.randrange(600)] = ports or None
        plain = {place: layer for place, layer in (plain | change).items() if layer}
        version = version.replaced(change)
        history.append((version, flat(plain)))
    for kept, expected in history:
        assert kept == expected
        assert len(kept) == len(expected)
        assert all(kept[key] is entry for key, entry in expected.items())
    for _ in range(100):
        (one, old), (two, new) = rng.choice(history), rng.choice(history)
        added, changed, removed = two.since(one)
        assert added == {key: entry for key, entry in new.items() if key not in old}
        assert changed == {key: new[key] for key in new.keys() & old.keys() if new[key] != old[key]}
        assert set(removed) == old.keys() - new.keys()
        assert (one == two) == (old == new)
        known = {key.peer for key in old} | {0}
        found = {
            EntryKey(*place, *at): entry for place, layer in two.beside(one) for at, entry in layer.items()
        }
        assert found == {key: entry for key, entry in new.items() if key.peer not in known}


def test_a_version_shares_what_it_does_not_change() -> None:
    first = Entries(((1, peer), {WHOLE: row(1)}) for peer in range(10 * BUCKETS))
    second = first.replaced({(1, 7): None, (2, 7): {WHOLE: row(7)}})
    kept = sum(one is two for one, two in zip(first._buckets, second._buckets, strict=True))
    assert kept == BUCKETS - 2
    assert EntryKey(1, 7) in first
    assert EntryKey(1, 7) not in second


def test_plain_entries_are_sorted_into_layers() -> None:
    plain = {EntryKey(1, 1): row(1), EntryKey(1, 1, 6, 80, 24): row(2), EntryKey(2, 0): row(3)}
    assert Entries.of(plain) == plain
    assert Entries.of(plain).layer(1, 1) == {WHOLE: row(1), (6, 80, 24): row(2)}
    assert Entries.of(plain).layer(2, 9) == {}
