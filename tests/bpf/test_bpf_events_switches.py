"""Kinds of events that are muted, and a node's limit for all: what is not said is counted."""

from __future__ import annotations

import numpy as np
import pytest

from cilia.dataplane.maps import counters
from tests.support.datapath_ears import SPOOFED, Ears, ahead
from tests.support.datapath_world import DENY, INGRESS, Rule, World

pytestmark = pytest.mark.root

DROP, TRACE, VERDICT = 1, 2, 3
AUDITED = (Rule(INGRESS, DENY, cookie=3, flags=4 | 1),)


@pytest.fixture
def ears(world: World) -> Ears:
    return Ears(world)


@pytest.mark.parametrize("muted", ["", "DROPS", "TRACES", "VERDICTS"])
def test_each_kind_is_muted_by_itself(world: World, ears: Ears, muted: str) -> None:
    world.set_policy(2, AUDITED)
    if muted:
        world.settings["flags"][0] |= world.layout.value(f"NODE_MUTE_{muted}")
    before = world.counted(0), world.counted(132)
    world.from_pod(world.pod_a, ahead("S"))
    world.from_pod(world.pod_a, SPOOFED)
    assert (world.counted(0), world.counted(132)) == (before[0] + 1, before[1] + 1)
    priority, normal = ears.read()
    told = [(int(event["verdict"]), int(event["kind"])) for event in normal + priority]
    expected = [(1, VERDICT), (1, TRACE), (4, VERDICT), (2, DROP)]
    words = {DROP: "DROPS", TRACE: "TRACES", VERDICT: "VERDICTS"}
    assert told == [each for each in expected if words[each[1]] != muted]
    apart = world.layout.value("EVENT_JUDGED_APART")
    for event in normal:
        assert bool(int(event["flags"]) & apart) == (muted != "VERDICTS")


def test_what_is_muted_is_heard_again_at_once(world: World, ears: Ears) -> None:
    world.settings["aggregation"][0] = world.layout.value("AGGREGATION_NONE")
    mute = np.uint32(world.layout.value("NODE_MUTE_TRACES"))
    for flip in (0, mute, mute):
        world.settings["flags"][0] ^= flip
        world.from_pod(world.pod_a, ahead("A"))
    first, second = ears.traces()
    assert int(second["sequence"]) == int(first["sequence"]) + 1, "what nobody asked for is no loss"


def test_muted_drops_take_no_tokens(world: World, ears: Ears) -> None:
    world.settings["drop_rate"][0] = world.settings["drop_burst"][0] = 1
    world.settings["flags"][0] |= world.layout.value("NODE_MUTE_DROPS")
    for _ in range(5):
        world.from_pod(world.pod_a, SPOOFED)
    assert not len(world.dataplane.maps["drop_buckets"].dump()[0])
    assert not len(world.dataplane.maps["suppressed"].dump()[0])


@pytest.fixture
def limited(world: World) -> World:
    """Three events of each ring at once, and one a second."""
    world.settings["event_rate"][0], world.settings["event_burst"][0] = 1, 3
    return world


def test_a_limit_holds_traces_back_and_lets_drops_through(limited: World) -> None:
    ears = Ears(limited)
    limited.settings["aggregation"][0] = limited.layout.value("AGGREGATION_NONE")
    for _ in range(10):
        limited.from_pod(limited.pod_a, ahead("A"))
    limited.from_pod(limited.pod_a, SPOOFED)
    drops, others = ears.read()
    assert (len(drops), len(others)) == (1, 3)


def test_a_limit_that_is_lifted_holds_nothing_back(limited: World) -> None:
    ears = Ears(limited)
    limited.settings["aggregation"][0] = limited.layout.value("AGGREGATION_NONE")
    limited.settings["flags"][0] |= limited.layout.value("NODE_MUTE_VERDICTS")
    for rate, expected in ((1, 3), (0, 10), (1, 0)):
        limited.settings["event_rate"][0] = rate
        for _ in range(10):
            limited.from_pod(limited.pod_a, ahead("A"))
        assert len(ears.traces()) == expected, rate


def test_what_a_limit_held_back_is_a_gap_and_counted_by_rule(limited: World) -> None:
    ears = Ears(limited)
    limited.settings["aggregation"][0] = limited.layout.value("AGGREGATION_NONE")
    limited.settings["flags"][0] |= limited.layout.value("NODE_MUTE_VERDICTS")
    for _ in range(10):
        limited.from_pod(limited.pod_a, ahead("A"))
    give_tokens(limited, all_events(limited), 1)
    limited.from_pod(limited.pod_a, ahead("A"))
    numbers = [int(event["sequence"]) for event in ears.traces()]
    assert [number - numbers[0] for number in numbers] == [0, 1, 2, 10]
    assert held_back(limited) == {(1, 0, all_events(limited) | TRACE): 7}
    told = counters.HeldBack(limited.dataplane.maps["suppressed"], limited.layout).read()
    assert told == {"drop_bucket": 0, "drop": 0, "trace": 7, "verdict": 0, "socket": 0}


def test_a_verdict_held_back_is_counted_for_the_rule_that_spoke(limited: World) -> None:
    Ears(limited)
    limited.from_pod(limited.pod_a, ahead("S"))
    for _ in range(2):
        limited.from_pod(limited.pod_a, ahead("R"))
        limited.from_pod(limited.pod_a, ahead("S"))
    found = {
        cookie: count for (cookie, _, reason), count in held_back(limited).items() if reason & 7 == VERDICT
    }
    assert found == {2: 2, 1: 2}, "egress and ingress of two flows that began anew"


def test_the_next_drop_says_also_what_a_drop_was_to_say_that_a_limit_held_back(limited: World) -> None:
    ears = Ears(limited)
    limited.settings["drop_rate"][0] = limited.settings["drop_burst"][0] = 1
    for _ in range(5):
        limited.from_pod(limited.pod_a, SPOOFED)
    give_tokens(limited, all_events(limited), 0)
    give_tokens(limited, 132, 1)
    limited.from_pod(limited.pod_a, SPOOFED)
    assert [int(event["suppressed"]) for event in ears.drops()] == [0]
    give_tokens(limited, all_events(limited), 1)
    give_tokens(limited, 132, 1)
    limited.from_pod(limited.pod_a, SPOOFED)
    assert [int(event["suppressed"]) for event in ears.drops()] == [4]
    assert held_back(limited) == {(0, 101, 132): 4, (0, 0, all_events(limited) | DROP): 1}
    told = counters.HeldBack(limited.dataplane.maps["suppressed"], limited.layout).read()
    assert (told["drop_bucket"], told["drop"]) == (4, 1)


def test_the_sum_of_what_was_held_back_never_falls(limited: World) -> None:
    rules = limited.dataplane.maps["suppressed"]
    rules.remove(rules.dump()[0])
    sums = counters.HeldBack(rules, limited.layout)
    trace = rules.keys(1)
    trace["cookie"], trace["reason"] = 7, all_events(limited) | TRACE
    for count, expected in ((5, 5), (8, 8), (None, 8), (3, 11), (1, 12)):
        if count is None:
            rules.delete(trace[0])
        else:
            rules.update(trace[0], np.uint64(count))
        assert sums.read()["trace"] == expected


def all_events(world: World) -> int:
    return world.layout.value("BUCKET_EVENTS")


def give_tokens(world: World, reason: int, tokens: int) -> None:
    """Fill the buckets of a reason, as of now."""
    buckets = world.dataplane.maps["drop_buckets"]
    for key, value in zip(*buckets.dump(), strict=True):
        if int(key["reason"]) == reason:
            filled = value.copy()
            filled["tokens"] = tokens
            buckets.update(key, filled)


def held_back(world: World) -> dict[tuple[int, int, int], int]:
    """By cookie, endpoint and reason."""
    return {
        (int(key["cookie"]), int(key["endpoint"]), int(key["reason"])): int(value)
        for key, value in zip(*world.dataplane.maps["suppressed"].dump(), strict=True)
    }
