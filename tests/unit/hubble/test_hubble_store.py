"""The ring keeps the newest rows with the meaning of their time, and counts what is gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.hubble.directory import Pod
from cilia.hubble.intern import Interner
from cilia.hubble.status import status
from cilia.hubble.store import FlowStore, Loss, LossSource
from tests.support.hubble import (
    ALLOW_WEB,
    CLIENT,
    DTYPE,
    OTHER,
    SERVER,
    WALL,
    directory,
    events,
    flow,
    store,
)


def ports(flows: FlowStore) -> list[int]:
    found: list[int] = []
    for rows in flows.spans(0, flows.head):
        found += (rows.events["source_port"] - 10_000).tolist()
    return found


def test_both_rings_are_merged_by_time() -> None:
    flows = store()
    priority = events(flow(1), flow(4))
    normal = events(flow(0), flow(2), flow(3))
    flows.append([priority, normal], offset=WALL)
    assert ports(flows) == [0, 1, 2, 3, 4]
    (rows,) = flows.spans(0, 5)
    assert rows.wall.tolist() == [WALL + 1_000_000 * number for number in range(5)]


def test_the_oldest_rows_make_room() -> None:
    flows = store(capacity=4)
    for number in range(6):
        flows.append([events(flow(number))], offset=WALL)
    assert (flows.oldest, flows.head, len(flows)) == (2, 6, 4)
    assert ports(flows) == [2, 3, 4, 5]
    assert [len(rows.wall) for rows in flows.spans(0, 99)] == [2, 2]
    assert (flows.take(np.array([3, 5])).events["source_port"] - 10_000).tolist() == [3, 5]


def test_a_batch_larger_than_the_ring_counts_what_it_left_out() -> None:
    flows = store(capacity=4)
    flows.append([events(*(flow(number) for number in range(10)))], offset=WALL)
    assert (flows.oldest, flows.head) == (6, 10)
    assert ports(flows) == [6, 7, 8, 9]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12))
def test_any_sequence_of_batches_ends_in_the_newest_rows(sizes: list[int]) -> None:
    flows = store(capacity=8)
    made = 0
    for size in sizes:
        flows.append([events(*(flow(number) for number in range(made, made + size)))] if size else [])
        made += size
    assert flows.head == made
    assert ports(flows) == list(range(max(0, made - 8), made))


def party_names(flows: FlowStore) -> list[str]:
    return [
        flows.parties.values[ref].pod for rows in flows.spans(0, flows.head) for ref in rows.source.tolist()
    ]


def test_rows_keep_the_name_of_their_time() -> None:
    known = directory()
    flows = FlowStore(DTYPE, known, capacity=16)
    flows.append([events({})])
    known.pods[CLIENT] = Pod(id=101, identity=4321, namespace="demo", name="renamed")
    flows.append([events({})])
    known.touch()
    flows.append([events({})])
    assert party_names(flows) == ["client-5f", "client-5f", "renamed"]


def test_rules_are_those_of_the_cookie() -> None:
    known = directory()
    known.policies = 4
    flows = FlowStore(DTYPE, known)
    flows.append([events({"ingress_cookie": ALLOW_WEB}, {"ingress_cookie": 999}, {})])
    known.policies = 5
    known.touch()
    flows.append([events({"ingress_cookie": ALLOW_WEB})])
    (rows,) = flows.spans(0, 4)
    found = [flows.rules.values[ref] for ref in rows.ingress.tolist()]
    assert [len(rules.row.rules) for rules in found] == [1, 0, 0, 1]
    assert [rules.row.cookie for rules in found] == [ALLOW_WEB, 999, 0, ALLOW_WEB]
    assert [rules.revision for rules in found] == [4, 0, 0, 5]


def test_meanings_nobody_points_at_are_forgotten() -> None:
    flows = FlowStore(DTYPE, directory(), capacity=4)
    for number in range(0, 3000, 4):
        flows.append([events(*({"source_identity": 300 + number + n} for n in range(4)))])
    assert len(flows.parties.values) < 1100
    assert flows.parties.generation > 0
    rows = flows.spans(0, flows.head)
    identities = [flows.parties.values[ref].identity for span in rows for ref in span.source.tolist()]
    assert identities == [3296, 3297, 3298, 3299]
    assert flows.namespaces(0) == {("default", "demo")}


def test_gaps_stand_where_they_happened_and_are_folded_when_there_are_too_many() -> None:
    flows = store()
    for number in range(1030):
        flows.append([], [Loss(count=2, cpu=number % 2, first=number + 1, last=number + 2)], offset=WALL)
    flows.append([events({})])
    assert len(flows.losses) == 1024
    assert sum(gap.count for gap in flows.losses) == 2060
    assert flows.losses[0].cpu is None
    assert flows.losses[0].first == WALL + 1
    assert flows.metrics.lost[LossSource.PERF_EVENT_RING_BUFFER] == 2060
    assert flows.losses[-1].position == 0


def test_a_gap_inside_a_batch_stands_before_the_event_that_revealed_it() -> None:
    flows = store()
    gap = Loss(count=2, cpu=0, first=1_000_000, last=2_000_000)
    flows.append([events(flow(0), flow(1))])
    flows.append([events(flow(2), flow(3))], [gap])
    later = Loss(count=1, cpu=1, first=4_500_000, last=5_000_000)
    sooner = Loss(count=1, cpu=0, first=4_000_000, last=4_900_000)
    flows.append([events(flow(4), flow(5), flow(6))], [later, sooner])
    assert [(row.position, row.cpu) for row in flows.losses] == [(2, 0), (5, 0), (5, 1)]


def test_counters_and_status() -> None:
    flows = store(capacity=16)
    flows.append([events({}, {}, {"kind": 1, "verdict": 2, "reason": 133, "suppressed": 7})], offset=WALL)
    assert flows.metrics.processed == {(2, 1): 2, (1, 2): 1}
    assert flows.metrics.drops == {133: 1}
    told = status(flows, WALL + 1_000_000_000)
    assert told.sentence() == "3/16 flows (18.8 %), 0.1 flows/s, none lost, 7 held back"


def test_namespaces_are_those_seen_lately() -> None:
    flows = store()
    flows.append([events({"source": OTHER, "source_identity": 5000, "source_endpoint": 0})], offset=WALL)
    flows.append([events({"time": 10**10, "source": SERVER, "source_endpoint": 102})], offset=WALL)
    assert flows.namespaces(WALL) == {("default", "demo"), ("default", "other")}
    assert flows.namespaces(WALL + 10**9) == {("default", "demo")}


def test_listeners_hear_of_rows_and_gaps() -> None:
    flows, heard = store(), []
    flows.listeners.add(lambda: heard.append(flows.head))
    flows.append([events({})])
    flows.append([])
    flows.append([], [Loss(count=1, cpu=0)])
    assert heard == [1, 1]


@pytest.mark.parametrize("capacity", [0, 3, 1000])
def test_a_capacity_that_is_no_power_of_two_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        store(capacity=capacity)


def test_a_foreign_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks sequence"):
        FlowStore(np.dtype([("time", "<u8")]), directory())
    native = np.concatenate([events({}), events({})])
    with pytest.raises(ValueError, match="another layout"):
        store().append([native])


WORD = st.integers(0, 3) | st.integers(0, 2**64 - 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=30), max_size=6))
def test_an_interner_never_mixes_up_keys(batches: list[list[tuple[int, int]]]) -> None:
    """Even with two slots for all keys."""
    interner: Interner[Any] = Interner(2, tuple, bits=1)
    for batch in batches:
        columns = [np.array([key[word] for key in batch], np.uint64) for word in (0, 1)]
        refs = interner.refs(columns)
        assert [interner.values[ref] for ref in refs] == batch


def test_equal_values_share_an_index_and_resolving_happens_once_per_key() -> None:
    asked: list[int] = []

    def resolve(words: Any) -> int:
        asked.append(words[0])
        return int(words[0]) % 2

    interner: Interner[int] = Interner(1, resolve)
    column = np.array([1, 2, 3, 1, 2, 3], np.uint64)
    assert interner.refs([column]).tolist() == [0, 1, 0, 0, 1, 0]
    interner.refs([column])
    assert sorted(asked) == [1, 2, 3]
    interner.forget()
    interner.refs([column])
    assert len(asked) == 6
