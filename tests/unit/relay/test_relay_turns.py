"""Turns: how many peers owe an answer at a time, and who waits for whom."""

from __future__ import annotations

import asyncio

from cilia.relay.turns import Turns
from tests.support.waiting import until_async


def test_only_so_many_go_on_at_a_time_in_the_order_they_came() -> None:
    async def story() -> tuple[list[int], int]:
        turns, order, running, most = Turns(at_once=2, patience=60), [], 0, 0

        async def peer(number: int) -> None:
            nonlocal running, most
            async with turns.turn():
                order.append(number)
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.001)
                running -= 1

        await asyncio.gather(*map(peer, range(20)))
        return order, most

    assert asyncio.run(story()) == (list(range(20)), 2)


def test_who_does_not_answer_holds_up_the_next_only_so_long() -> None:
    async def story() -> None:
        turns = Turns(at_once=1, patience=0.01)
        async with turns.turn(), asyncio.timeout(30), turns.turn():
            pass
        async with turns.turn():
            pass

    asyncio.run(story())


def test_a_turn_is_given_back_once_also_when_its_task_is_cancelled() -> None:
    async def story() -> list[int]:
        turns, inside = Turns(at_once=1, patience=60), []

        async def peer(number: int) -> None:
            async with turns.turn():
                inside.append(number)
                await asyncio.Event().wait()

        tasks = [asyncio.ensure_future(peer(number)) for number in range(3)]
        await until_async(lambda: inside == [0], "the first to go on")
        tasks[1].cancel()
        tasks[0].cancel()
        await until_async(lambda: inside == [0, 2], "the third to go on")
        tasks.append(asyncio.ensure_future(peer(3)))
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return inside

    assert asyncio.run(story()) == [0, 2], "the third waits for the second's end, and the fourth for its"
