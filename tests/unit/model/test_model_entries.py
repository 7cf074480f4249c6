"""Versions of entries equal plain dictionaries, share what they have in common, and tell their difference."""

from __future__ import annotations

import random

from cilia.model.entries import BUCKET, Entries
from cilia.model.ids import Cookie
from cilia.model.policy import Entry, EntryKey, MatchKind


def row(number: int) -> Entry:
    return Entry(1, True, Cookie(number), MatchKind.L3_ONLY)


def test_versions_equal_dictionaries() -> None:
    rng = random.Random(1)
    plain: dict[EntryKey, Entry] = {}
    version = Entries()
    history = [(version, dict(plain))]
    for _ in range(300):
        gone = rng.sample(sorted(plain), min(len(plain), rng.randrange(4)))
        fresh = {EntryKey(1, rng.randrange(3000)): row(rng.randrange(3)) for _ in range(rng.randrange(40))}
        for key in gone:
            del plain[key]
        plain |= fresh
        version = version.changed(gone, fresh)
        history.append((version, dict(plain)))
    for kept, expected in history:
        assert kept == expected
        assert len(kept) == len(expected)
        assert all(kept[key] is entry for key, entry in expected.items())
    for _ in range(100):
        (one, old), (two, new) = rng.choice(history), rng.choice(history)
        put, left = two.difference(one)
        assert put == {key: entry for key, entry in new.items() if old.get(key) != entry}
        assert left == {key: entry for key, entry in old.items() if key not in new}
        assert (one == two) == (old == new)


def test_a_version_shares_what_it_does_not_change() -> None:
    first = Entries({EntryKey(1, peer): row(peer) for peer in range(100 * BUCKET)})
    second = first.changed([EntryKey(1, 7)], {EntryKey(2, 7): row(7)})
    kept = sum(one is two for one, two in zip(first._buckets, second._buckets, strict=True))
    assert kept == len(first._buckets) - 1
    assert second.changed((), {}) is second
    assert EntryKey(1, 7) in first
    assert EntryKey(1, 7) not in second


def test_a_difference_from_any_mapping() -> None:
    one, two = EntryKey(1, 1), EntryKey(1, 2)
    assert Entries({one: row(1)}).difference({two: row(2)}) == ({one: row(1)}, {two: row(2)})
