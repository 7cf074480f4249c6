"""Drops and audits outlive the traces and allowed connections around them, and what is gone is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.hubble.cursor import Cursor
from cilia.hubble.store import FlowStore
from tests.support.hubble import DTYPE, WALL, directory, events, flow, store

DROP = {"kind": 1, "verdict": 2, "reason": 133}
AUDIT = {"kind": 3, "verdict": 4, "reason": 133}


def numbers(flows: FlowStore, first: int = 0, last: int = 1 << 40) -> list[int]:
    return [number for rows in flows.spans(first, last) for number in rows.numbers.tolist()]


def test_drops_survive_a_flood_of_traces() -> None:
    flows = store(capacity=16)
    flows.append([events(flow(0), flow(1, **DROP), flow(2, kind=3), flow(3, **AUDIT))], offset=WALL)
    for start in range(4, 100, 8):
        flows.append([events(*(flow(number) for number in range(start, start + 8)))], offset=WALL)
    assert numbers(flows) == [1, 3, *range(84, 100)]
    assert (flows.first, flows.oldest, flows.head, len(flows), flows.kept) == (1, 84, 100, 16, 2)
    assert flows.missing(0, 100) == 82
    assert flows.missing(0, 100, important_only=True) == 0
    assert flows.missing(2, 90) == 81
    rows = flows.take(np.array([1, 3, 84, 99]))
    assert (rows.events["source_port"] - 10_000).tolist() == [1, 3, 84, 99]
    assert rows.wall.tolist() == [WALL + 1_000_000 * number for number in (1, 3, 84, 99)]
    assert flows.present(np.array([0, 1, 2, 3, 83, 84])).tolist() == [False, True, False, True, False, True]


def test_drops_of_a_batch_larger_than_the_ring_survive() -> None:
    flows = store(capacity=8)
    flows.append([events(flow(0, **DROP), flow(1))])
    flows.append([events(*(flow(n, **(DROP if n % 10 == 5 else {})) for n in range(2, 30)))])
    assert numbers(flows) == [5, 15, *range(22, 30)]
    assert flows.missing(0, 30, important_only=True) == 1


def test_a_flood_of_drops_pushes_out_drops() -> None:
    flows = store(capacity=8)
    for start in range(0, 40, 4):
        flows.append([events(*(flow(number, **DROP) for number in range(start, start + 4)))])
    assert numbers(flows) == list(range(30, 40))
    assert flows.missing(0, 40, important_only=True) == 30


def test_names_of_kept_rows_survive_compaction() -> None:
    flows = FlowStore(DTYPE, directory(), capacity=4)
    flows.append([events({"source_identity": 77, **DROP})])
    for number in range(0, 3000, 4):
        flows.append([events(*({"source_identity": 300 + number + n} for n in range(4)))])
    assert flows.parties.generation > 0
    (kept, *_) = flows.spans(0, flows.head)
    assert flows.parties.values[kept.source[0]].identity == 77


def test_a_cursor_waits_until_time_is_over_or_enough_is_there() -> None:
    flows = store()

    async def body() -> None:
        with Cursor(flows) as cursor:
            gathering = asyncio.ensure_future(cursor.gather(60.0, 3))
            for count in range(3):
                await asyncio.sleep(0.01)
                assert not gathering.done(), f"{count} were enough"
                flows.append([events(flow(count))], offset=WALL)
            await asyncio.wait_for(gathering, 10.0)
            await asyncio.wait_for(cursor.gather(60.0, 3), 10.0)
            assert cursor.step(2).end == 2
            await cursor.gather(0.01, 3)
            assert await cursor.wait() and cursor.step(9).end == 3
            waiting = asyncio.ensure_future(cursor.wait(60.0))
            await asyncio.sleep(0)
            flows.append([events(flow(4))], offset=WALL)
            assert await asyncio.wait_for(waiting, 10.0), "one is enough again"

    asyncio.run(body())


def test_a_cursor_lets_gather_no_more_than_a_part_of_a_small_ring() -> None:
    flows = store(capacity=16)

    async def body() -> None:
        with Cursor(flows) as cursor:
            gathering = asyncio.ensure_future(cursor.gather(60.0, 4096))
            await asyncio.sleep(0)
            flows.append([events(*map(flow, range(4)))], offset=WALL)
            await asyncio.wait_for(gathering, 10.0)
            assert cursor.step(99).overwritten == 0

    asyncio.run(body())


def test_a_cursor_reads_what_was_kept_and_counts_the_rest() -> None:
    flows = store(capacity=8)
    cursor = Cursor(flows, 0)
    flows.append([events(*(flow(number, **(DROP if number < 2 else {})) for number in range(40)))])
    arrived = cursor.step(1)
    assert (arrived.first, arrived.end, arrived.overwritten) == (0, 1, 0)
    arrived = cursor.step(5)
    assert (arrived.first, arrived.end, arrived.overwritten) == (1, 36, 30)
    assert numbers(flows, arrived.first, arrived.end) == [1, 32, 33, 34, 35]
    assert cursor.step(99).end == 40 and cursor.waiting


def test_moments_find_their_rows_to_a_second() -> None:
    flows = store(capacity=8)
    assert (flows.number_at(WALL), flows.time_of(0)) == (0, 0)
    for second in range(5):
        flows.append([events({"time": second * 10**9}, {"time": second * 10**9 + 5 * 10**8})], offset=WALL)
    assert flows.number_at(WALL + 3 * 10**9) == 6
    assert flows.number_at(WALL + 3 * 10**9 - 1) == 4
    assert flows.number_at(WALL - 1) == 0
    assert flows.time_of(7) == WALL + 3 * 10**9


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=20), max_size=10), st.integers(1, 9))
def test_any_sequence_adds_up(batches: list[list[bool]], limit: int) -> None:
    """Every row is read by a late cursor or counted, and no drop is lost while there is room."""
    flows, cursor = store(capacity=8), None
    dropped: list[int] = []
    made = 0
    for batch in batches:
        rows: list[dict[str, Any]] = []
        for drop in batch:
            rows.append(flow(made, **(DROP if drop else {})))
            dropped += [made] * drop
            made += 1
        if rows:
            flows.append([events(*rows)])
    cursor = Cursor(flows, 0)
    seen, lost = 0, 0
    while not cursor.waiting:
        arrived = cursor.step(limit)
        here = len(numbers(flows, arrived.first, arrived.end))
        assert here <= limit
        seen, lost = seen + here, lost + arrived.overwritten
    assert seen + lost == made
    expected = sorted({*[n for n in dropped if n < flows.oldest][-2:], *range(flows.oldest, made)})
    assert numbers(flows) == expected
    assert flows.take(np.array(expected, np.int64)).numbers.tolist() == expected


def test_the_columns_of_65536_flows_leave_room_in_32_mebibytes() -> None:
    assert FlowStore(DTYPE, directory()).nbytes < 24 << 20
