"""Loss accounting: gaps in sequence numbers, late records, several CPUs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cilia.dataplane.bpf import Array
from cilia.dataplane.ringbuf import LossCounter, LostEvents

EVENT = np.dtype([("time", "<u8"), ("sequence", "<u8"), ("cpu", "<u2")])


def events(sequences: Sequence[int], cpu: int = 0) -> Array:
    """Events whose time is ten times their number."""
    made = np.zeros(len(sequences), EVENT)
    made["sequence"], made["time"], made["cpu"] = sequences, np.array(sequences, np.uint64) * 10, cpu
    return made


NOTHING = events([])


def test_no_gap_no_loss() -> None:
    counter = LossCounter(1, {})
    assert counter.count(events([7, 8, 9])) == [] and counter.count(events([10])) == []


def test_a_gap_is_certain_at_the_next_drain() -> None:
    counter = LossCounter(1, {})
    assert counter.count(events([7, 8, 12])) == []
    assert counter.count(NOTHING) == [LostEvents(0, 1, 3, 80, 120)]
    assert counter.count(NOTHING) == []


def test_a_gap_between_two_drains_counts() -> None:
    counter = LossCounter(0, {})
    counter.count(events([1, 2]))
    counter.count(events([5]))
    assert counter.count(events([6])) == [LostEvents(0, 0, 2, 20, 50)]


def test_gaps_of_one_poll_are_told_with_the_time_of_all_of_them() -> None:
    counter = LossCounter(0, {})
    counter.count(events([1, 2]))
    for run in ([5, 6], [9, 10], [14]):
        counter.note(events(run))
    assert counter.look({0: 17}, now=990)
    counter.count(NOTHING)
    assert counter.count(NOTHING) == [LostEvents(0, 0, 9, 20, 990)]


def test_a_late_record_is_no_loss() -> None:
    counter = LossCounter(0, {})
    counter.count(events([1, 2, 4]))
    assert counter.count(events([3, 5])) == [] and counter.count(NOTHING) == []


def test_a_record_from_before_the_first_hides_no_loss() -> None:
    counter = LossCounter(0, {})
    counter.count(events([10, 12]))
    counter.count(events([9, 13]))
    assert sum(gap.count for gap in counter.count(NOTHING)) == 0
    assert counter._seen[0].reported == 1


def test_what_was_lost_before_a_processor_s_first_record_counts() -> None:
    counter = LossCounter(1, {0: 40, 1: 0})
    assert counter.count(events([43, 44])) == []
    assert counter.count(events([45])) == [LostEvents(0, 1, 3, 0, 430)]
    assert counter.count(NOTHING) == []


def test_what_another_reader_left_is_its_own_loss() -> None:
    counter = LossCounter(1, {0: 40})
    counter.count(events([35, 37, 41]))
    assert counter.count(NOTHING) == [LostEvents(0, 1, 4, 350, 410)]


def test_what_was_lost_after_the_last_record_counts_once_it_is_looked_for() -> None:
    counter = LossCounter(0, {0: 1, 1: 7})
    counter.count(events([1, 2]))
    assert counter.look({0: 6, 1: 7}, now=990)
    assert not counter.look({0: 6, 1: 7}, now=1000)
    assert counter.count(NOTHING) == []
    assert counter.count(NOTHING) == [LostEvents(0, 0, 3, 20, 990)]
    assert counter.count(events([6, 7])) == [] and counter.count(NOTHING) == []


def test_a_processor_that_lost_all_it_had_is_told_of() -> None:
    counter = LossCounter(0, {3: 40})
    assert counter.look({3: 42}, now=990)
    counter.count(NOTHING)
    assert counter.count(NOTHING) == [LostEvents(3, 0, 2, 0, 990)]


def test_a_record_that_comes_while_one_looks_is_no_loss() -> None:
    counter = LossCounter(0, {0: 1})
    counter.count(events([1, 2]))
    assert counter.look({0: 5}, now=990)
    assert counter.count(events([3, 4])) == [] and counter.count(NOTHING) == []


def test_cpus_are_counted_apart() -> None:
    counter = LossCounter(0, {})
    counter.count(np.concatenate([events([1, 3], 0), events([100, 101], 1)]))
    assert counter.count(NOTHING) == [LostEvents(0, 0, 1, 10, 30)]


@given(st.sets(st.integers(1, 300), min_size=1), st.lists(st.integers(0, 300), max_size=6))
def test_what_arrived_and_what_is_lost_is_all(arrived: set[int], cuts: list[int]) -> None:
    """Whatever is missing between the first and the last number is reported, however drains fall."""
    counter = LossCounter(0, {})
    ordered = sorted(arrived)
    edges = [0, *sorted(cut % (len(ordered) + 1) for cut in cuts), len(ordered)]
    lost = 0
    for start, end in itertools.pairwise(edges):
        lost += sum(gap.count for gap in counter.count(events(ordered[start:end])))
    lost += sum(gap.count for gap in counter.count(NOTHING))
    assert lost == ordered[-1] - ordered[0] + 1 - len(ordered)
