"""However many want something of the loop, each round has little of it."""

from __future__ import annotations

import asyncio
from time import monotonic

from cilia.hubble.rpc.rounds import Gate, Rounds


def test_steps_that_take_long_are_spread_over_rounds() -> None:
    async def story() -> tuple[int, list[int]]:
        rounds, done, given_up = Rounds(0.002), [], asyncio.Event()

        def step(number: int) -> None:
            end = monotonic() + 0.003
            while monotonic() < end:
                pass
            done.append(number)

        for number in range(4):
            rounds.add(lambda number=number: step(number), given_up.set)  # type: ignore[misc]
        turns = 0
        while len(done) < 4:
            turns += 1
            await asyncio.sleep(0)
        assert not given_up.is_set()
        return turns, done

    turns, done = asyncio.run(story())
    assert done == [0, 1, 2, 3] and turns >= 4


def test_a_gate_lets_one_through_in_a_round() -> None:
    async def story() -> list[int]:
        gate, numbers = Gate(), list[int]()

        async def enter() -> None:
            await gate.turn()
            numbers.append(gate.number)

        await asyncio.gather(*(enter() for _ in range(10)))
        return numbers

    numbers = asyncio.run(story())
    assert len(set(numbers)) == 10


def test_who_has_gone_takes_no_turn() -> None:
    async def story() -> int:
        gate = Gate()
        gone = [asyncio.ensure_future(gate.turn()) for _ in range(100)]
        await asyncio.sleep(0)
        for each in gone:
            each.cancel()
        before = gate.number
        await gate.turn()
        return gate.number - before

    assert asyncio.run(story()) < 10
