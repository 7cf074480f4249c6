"""Numbers and stretches: what is given out twice, and when."""

from __future__ import annotations

import random

import pytest

from cilia.dataplane.maps.backends import WEIGHTED_SLOTS, shares
from cilia.dataplane.maps.numbers import Numbers, Stretches


def test_fresh_numbers_come_first_and_0_never() -> None:
    numbers: Numbers[str] = Numbers(4)
    assert [numbers.take(name) for name in "abc"] == [1, 2, 3]
    assert numbers.take("b") == 2 and numbers.take("d") is None
    assert len(numbers) == 3


def test_a_number_rests_and_its_owner_gets_it_back() -> None:
    numbers: Numbers[str] = Numbers(3)
    numbers.take("a")
    numbers.take("b")
    numbers.release("a", now=10.0)
    assert numbers.take("c") is None and numbers.resting == 1
    assert numbers.take("a") == 1 and numbers.resting == 0
    numbers.release("a", now=20.0)
    assert numbers.reclaim(before=20.0) == []
    assert numbers.reclaim(before=21.0, busy=lambda number: number == 1) == []
    assert numbers.reclaim(before=21.0) == [1]
    assert numbers.get("a") is None and numbers.take("c") == 1


def test_the_longest_free_number_is_given_out_first() -> None:
    numbers: Numbers[int] = Numbers(5)
    for name in range(4):
        numbers.take(name)
    for name, now in ((2, 1.0), (0, 2.0), (3, 3.0)):
        numbers.release(name, now)
    numbers.reclaim(before=9.0)
    assert [numbers.take(name) for name in (10, 11, 12)] == [3, 1, 4]


def test_adopted_numbers_are_kept_and_gaps_are_free() -> None:
    numbers: Numbers[str] = Numbers(8)
    numbers.adopt({"a": 2, "b": 5}, {"b": 3, "c": 4}, now=1.0)
    assert (numbers.take("a"), numbers.take("c"), len(numbers)) == (2, 4, 3)
    assert sorted(numbers.take(name) or 0 for name in "xyzw") == [1, 3, 6, 7]
    assert numbers.take("q") is None


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 12])
def test_all_of_an_array_can_be_given_out_and_comes_back_whole(size: int) -> None:
    stretches = Stretches(size)
    assert stretches.free == size
    taken = {stretches.take(1) for _ in range(size)}
    assert taken == set(range(size)) and stretches.take(1) is None
    for first in taken:
        assert first is not None
        stretches.retire(first, 1, now=1.0)
    assert stretches.free == 0 and stretches.reclaim(before=1.0) == 0
    assert stretches.reclaim(before=2.0) == size and stretches.free == size
    assert stretches.take(1 << (size.bit_length() - 1)) is not None


def test_a_stretch_of_a_predecessor_is_reserved_once_and_only_where_it_fits() -> None:
    stretches = Stretches(64)
    assert stretches.reserve(32, 13)
    assert not stretches.reserve(32, 13) and not stretches.reserve(40, 3)
    assert not stretches.reserve(3, 4), "no stretch of ours begins there"
    assert not stretches.reserve(0, 0) and not stretches.reserve(64, 1)
    assert stretches.free == 48


def test_stretches_never_overlap() -> None:
    rng = random.Random(1)
    stretches = Stretches(1 << 10)
    used: dict[int, int] = {}
    for _ in range(3000):
        count = rng.choice((1, 2, 3, 5, 17, 100))
        first = stretches.take(count)
        if first is not None:
            mine = set(range(first, first + count))
            assert all(mine.isdisjoint(range(at, at + length)) for at, length in used.items())
            used[first] = count
        if used and (first is None or rng.random() < 0.5):
            gone = rng.choice(list(used))
            stretches.retire(gone, used.pop(gone), 0.0)
            stretches.reclaim(1.0)
    for first, count in used.items():
        stretches.retire(first, count, 0.0)
    stretches.reclaim(1.0)
    assert stretches.free == 1 << 10


@pytest.mark.parametrize(
    ("weights", "slots"),
    [
        ([1], [1]),
        ([5, 5], [1, 1]),
        ([20, 60], [1, 3]),
        ([2, 3, 4], [2, 3, 4]),
        ([1, 65535], [1, WEIGHTED_SLOTS]),
    ],
)
def test_shares_are_as_few_slots_as_it_takes(weights: list[int], slots: list[int]) -> None:
    assert shares(weights) == slots
