"""The sorted merge, told as stories in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.relay.merge import SLICE, Merge, MergeSettings

SETTINGS = MergeSettings(patience=1.0, limit=5)


def put(merge: Merge, lane: str, times: list[int], now: float) -> None:
    merge.put(merge.open(lane, now), times, [b"%s%d" % (lane.encode(), time) for time in times], now)


def times(merge: Merge, now: float) -> list[int]:
    return [time for time, _ in merge.take(now)]


def test_a_history_waits_for_the_slowest() -> None:
    merge = Merge(SETTINGS, follow=False)
    b = merge.open("b", 0)
    put(merge, "a", [1, 3, 5], 0)
    assert times(merge, 0) == []
    put(merge, "b", [2, 4], 0.1)
    assert times(merge, 0.1) == [1, 2, 3, 4]
    merge.end(b)
    merge.end(merge.open("a", 0.1))
    assert times(merge, 0.1) == [5]
    assert not len(merge)


def test_a_history_goes_on_without_a_node_that_hangs() -> None:
    merge = Merge(SETTINGS, follow=False)
    merge.open("hangs", 0)
    put(merge, "a", [1, 2], 0.5)
    assert times(merge, 0.9) == []
    assert merge.wake_at(0.9) == 1.0
    assert times(merge, 1.0) == [1, 2]


def test_followers_get_a_message_after_their_patience_whoever_is_silent() -> None:
    merge = Merge(SETTINGS, follow=True)
    merge.open("idle", 0)
    put(merge, "a", [7], 3.0)
    assert times(merge, 3.9) == []
    assert merge.wake_at(3.9) == 4.0
    assert times(merge, 4.0) == [7]


def test_a_clock_ten_minutes_ahead_holds_up_nobody() -> None:
    merge = Merge(SETTINGS, follow=True)
    put(merge, "ahead", [600_001], 0)
    put(merge, "right", [1], 0)
    assert times(merge, 0) == [1]
    put(merge, "right", [2], 0.5)
    assert times(merge, 0.5) == [2]
    put(merge, "right", [3], 1.0)
    assert times(merge, 1.0) == [3, 600_001]


def test_a_clock_ten_minutes_behind_holds_up_nobody() -> None:
    merge = Merge(SETTINGS, follow=True)
    put(merge, "behind", [1], 0)
    put(merge, "right", [600_001], 0)
    assert times(merge, 0) == [1]
    assert times(merge, 1.0) == [600_001]


def test_the_oldest_go_when_too_many_wait() -> None:
    merge = Merge(SETTINGS, follow=True)
    merge.open("idle", 0)
    put(merge, "a", [1, 3, 5, 7], 0)
    put(merge, "b", [2, 4, 6, 8], 0)
    assert times(merge, 0) == [1, 2, 3]
    assert len(merge) == 5


def test_a_node_that_sends_out_of_order_is_sorted_as_far_as_it_can_be() -> None:
    merge = Merge(SETTINGS, follow=False)
    put(merge, "a", [3, 1, 2], 0)
    put(merge, "a", [2], 0)
    merge.end(merge.open("a", 0))
    assert times(merge, 0) == [1, 2, 2, 3]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 50), min_size=1, max_size=6)), max_size=30
    ),
    st.booleans(),
)
def test_nothing_is_lost_and_complete_histories_are_in_order(
    batches: list[tuple[str, list[int]]], follow: bool
) -> None:
    merge = Merge(SETTINGS, follow=follow)
    lanes = {name: merge.open(name, 0) for name in "abc"}
    highest = dict.fromkeys("abc", 0)
    sent, taken = [], []
    for number, (name, steps) in enumerate(batches):
        # Each node's clock only goes forward.
        moments = [highest[name] + step for step in sorted(steps)]
        highest[name] = moments[-1]
        sent += moments
        now = number * 0.001
        merge.put(lanes[name], moments, [b"x"] * len(moments), now)
        taken += times(merge, now)
    for lane in lanes.values():
        merge.end(lane)
    taken += times(merge, 0.1)
    assert sorted(taken) == sorted(sent)
    if not follow:
        assert taken == sorted(sent)


@pytest.mark.parametrize("follow", [False, True])
def test_many_full_lanes_go_out_in_slices_that_keep_the_order(follow: bool) -> None:
    merge = Merge(SETTINGS, follow=follow)
    for lane in range(200):
        put(merge, f"node-{lane}", [lane + 200 * step for step in range(100)], 0)
    if follow:
        merge.open("idle", 0)
    else:
        for lane in range(200):
            merge.end(merge.open(f"node-{lane}", 0))
    slices = []
    while taken := times(merge, 0):
        slices.append(taken)
    held = SETTINGS.limit if follow else 0
    assert [time for taken in slices for time in taken] == list(range(200 * 100 - held))
    assert max(map(len, slices)) <= 2 * SLICE
    assert len(slices) > 2
