"""Maglev tables: the same everywhere, fair, and steady when backends come and go."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cilia.model.maglev import SIZES, table

SIZE = 16381
NAMES = [f"10.0.{n // 250}.{n % 250}:8080" for n in range(100)]
EVEN = [1] * len(NAMES)


def without(place: int, weights: list[int], seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The table without one backend, by the places of all."""
    rest = table(NAMES[:place] + NAMES[place + 1 :], weights[:place] + weights[place + 1 :], SIZE, seed)
    return np.where(rest >= place, rest + 1, rest).astype(np.int64)


def test_the_order_of_names_does_not_matter() -> None:
    rng = random.Random(1)
    weights = [rng.choice((0, 50, 100, 300)) for _ in NAMES]
    places = list(range(len(NAMES)))
    rng.shuffle(places)
    shuffled = table([NAMES[p] for p in places], [weights[p] for p in places], SIZE, 7)
    assert (np.array(places)[shuffled] == table(NAMES, weights, SIZE, 7)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("size", [SIZES[0], SIZE])
def test_equal_backends_have_equal_shares(count: int, size: int) -> None:
    shares = np.bincount(table(NAMES[:count], EVEN[:count], size, 7), minlength=count)
    assert shares.sum() == size
    assert shares.max() - shares.min() <= 1


def test_shares_follow_weights() -> None:
    weights = [0, 100, 100, 50, 250]
    shares = np.bincount(table(NAMES[:5], weights, SIZE, 7), minlength=5)
    assert shares[0] == 0
    assert np.abs(shares - np.array(weights) * SIZE / 500).max() < 1


@pytest.mark.parametrize("seed", range(4))
def test_few_flows_move_between_backends_that_stay(seed: int) -> None:
    before = table(NAMES, EVEN, SIZE, seed)
    for place in (0, 42, 99):
        after = without(place, EVEN, seed)
        moved = (before != after) & (before != place)
        assert moved.mean() <= 0.01


def test_few_flows_move_with_weights() -> None:
    rng = random.Random(5)
    weights = [rng.choice((50, 100, 200)) for _ in NAMES]
    before, after = table(NAMES, weights, SIZE, 3), without(42, weights, 3)
    assert ((before != after) & (before != 42)).mean() <= 0.015


def test_more_backends_than_slots() -> None:
    names = [str(number) for number in range(600)]
    found = table(names, [1] * 600, 251, 7)
    assert len(set(found.tolist())) == 251


def test_another_seed_gives_another_table() -> None:
    assert (table(NAMES, EVEN, SIZE, 1) != table(NAMES, EVEN, SIZE, 2)).mean() > 0.9


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="16000 is no size"):
        table(NAMES, EVEN, 16000, 7)
    with pytest.raises(ValueError, match="weight above 0"):
        table(NAMES[:2], [0, 0], SIZE, 7)
    with pytest.raises(ValueError, match="weight above 0"):
        table([], [], SIZE, 7)
