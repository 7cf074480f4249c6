"""What is large is read and compiled beside the loop: one at a time, with pauses, and without much memory."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from itertools import pairwise
from time import monotonic, sleep

import numpy as np

from cilia.hubble.beside import Beside
from cilia.hubble.filter_values import COMPARED, Ports
from cilia.hubble.turns import PAUSE, unhurried


def test_one_thread_at_a_time_though_who_waits_for_it_has_left() -> None:
    running, most = 0, 0

    def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        sleep(0.02)
        running -= 1

    async def story() -> None:
        beside = Beside("test")
        first = asyncio.create_task(beside.run(work))  # noqa: TID251
        await asyncio.sleep(0.005)
        first.cancel()
        await asyncio.gather(*(beside.run(work) for _ in range(3)))

    asyncio.run(story())
    assert most == 1 and running == 0


def test_what_fails_beside_the_loop_lets_the_next_begin() -> None:
    async def story() -> int:
        beside = Beside("test")
        failed, found = await asyncio.gather(
            beside.run(int, "no number"), beside.run(int, "7"), return_exceptions=True
        )
        assert isinstance(failed, ValueError) and isinstance(found, int)
        return found

    assert asyncio.run(story()) == 7


def test_only_beside_the_loop_there_are_pauses() -> None:
    def longest_step() -> float:
        times = []
        for _ in unhurried(range(20)):
            times.append(monotonic())
            end = monotonic() + PAUSE / 2
            while monotonic() < end:
                pass
        return sum(later - sooner for sooner, later in pairwise(times))

    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(longest_step()))
    thread.start()
    thread.join()
    assert found[0] >= 20 * PAUSE
    assert list(unhurried([1, 2])) == [1, 2]


def test_a_thousand_filters_by_port_take_little_memory() -> None:
    tracemalloc.start()
    try:
        filters = [Ports([str(number)]) for number in range(1000)]
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(filters) == 1000


def test_few_ranges_of_ports_and_many_mean_the_same() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    few = ["0", "80-90", "85-100", "65535"]
    many = few + [str(number) for number in range(101, 101 + COMPARED)]
    for values in (few, many):
        wanted = np.zeros(1 << 16, np.bool_)
        for first, _, last in (value.partition("-") for value in values):
            wanted[int(first) : int(last or first) + 1] = True
        assert (Ports(values).hold(every) == wanted).all()
