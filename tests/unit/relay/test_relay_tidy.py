"""Memory that connections leave behind is given back: once enough have ended, and not too often."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cilia.relay.pool import Pool, PoolSettings
from cilia.relay.tidy import ENOUGH, Tidy, give_back

PAUSE = 0.02


async def acts(*rounds: int) -> list[int]:
    """How often memory was given back after each round, in each of which so many connections end."""
    pool, given = Pool(PoolSettings(), lambda _name: None), [0]

    def give() -> None:
        given[0] += 1

    tidy = Tidy(pool, give, PAUSE)
    found = []
    for ended in rounds:
        for _ in range(ended):
            pool.ended += 1
            tidy.changed()
        await asyncio.sleep(2 * PAUSE)
        found.append(given[0])
    tidy.close()
    return found


def test_memory_is_given_back_once_for_many_that_ended_together() -> None:
    assert asyncio.run(acts(10 * ENOUGH)) == [1]


def test_a_few_that_ended_are_not_worth_it_until_they_are_many() -> None:
    assert asyncio.run(acts(ENOUGH - 1, 1, 1, ENOUGH)) == [0, 1, 1, 2]


def test_after_the_end_nothing_is_given_back() -> None:
    async def close() -> list[bool]:
        pool, given = Pool(PoolSettings(), lambda _name: None), list[bool]()
        tidy = Tidy(pool, lambda: given.append(True), PAUSE)
        pool.ended = ENOUGH
        tidy.changed()
        tidy.close()
        await asyncio.sleep(2 * PAUSE)
        return given

    assert asyncio.run(close()) == []


def resident() -> int:
    """Pages of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def test_free_pages_between_used_ones_leave_memory() -> None:
    made = [bytes([1]) * (64 << 10) for _ in range(1000)]
    kept = made[::10]
    del made
    before = resident()
    give_back()
    assert before - resident() > 40 * 256, "of 56 MiB"
    assert len(kept) == 100
