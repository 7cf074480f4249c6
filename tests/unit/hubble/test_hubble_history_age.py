"""Clocks that jump take no history with them; those that insist are believed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cilia.hubble.history.age import JUMP, PATIENCE, Doubt
from cilia.hubble.history.keeper import History
from cilia.hubble.history.settings import HistorySettings
from cilia.hubble.store import FlowStore
from cilia.kit.clock import ManualClock
from cilia.kit.tasks import TaskGroup
from tests.support.hubble import NODE, WALL, events, flow, store
from tests.support.waiting import until_async

NOON = 1_700_000_000.0
YEAR = 365 * 86_400.0


class Jumping(ManualClock):
    """A clock whose wall part somebody sets."""

    def set(self, wall: float) -> None:
        self._wall = wall


def test_a_jump_forward_counts_when_the_clock_insists() -> None:
    clock = Jumping(wall=NOON)
    doubt = Doubt(clock)
    clock.set(NOON + YEAR)
    assert doubt.now() == NOON
    clock.advance(PATIENCE - 1)
    assert doubt.now() == NOON + PATIENCE - 1
    clock.advance(1)
    assert doubt.now() == NOON + YEAR + PATIENCE


def test_a_clock_that_is_set_right_again_has_said_nothing() -> None:
    clock = Jumping(wall=NOON)
    doubt = Doubt(clock)
    clock.set(NOON + YEAR)
    doubt.now()
    clock.advance(PATIENCE / 2)
    clock.set(NOON + PATIENCE / 2)
    assert doubt.now() == NOON + PATIENCE / 2
    clock.set(NOON + YEAR)
    doubt.now()
    clock.advance(PATIENCE / 2)
    assert doubt.now() == NOON + PATIENCE, "it has to insist anew"


def test_small_corrections_and_steps_back_are_believed_at_once() -> None:
    clock = Jumping(wall=NOON)
    doubt = Doubt(clock)
    clock.set(NOON + JUMP / 2)
    assert doubt.now() == NOON + JUMP / 2
    clock.set(NOON - YEAR)
    assert doubt.now() == NOON - YEAR


def test_a_clock_that_was_set_before_the_start_is_doubted_too() -> None:
    clock = Jumping(wall=NOON + YEAR)
    doubt = Doubt(clock)
    doubt.known(NOON)
    assert doubt.now() == NOON
    clock.advance(PATIENCE)
    assert doubt.now() == NOON + YEAR + PATIENCE


def test_history_outlives_a_clock_that_is_set_to_next_year_and_back(tmp_path: Path) -> None:
    clock = Jumping(wall=WALL / 1e9 + 1)
    settings = HistorySettings(directory=tmp_path, block=16, interval=0.005, merged=16)

    async def sealed(flows: FlowStore, history: History, ahead: float) -> None:
        first = flows.head
        rows = (flow(number) for number in range(first, first + 16))
        flows.append([events(*rows)], offset=WALL + int(ahead * 1e9))
        await until_async(lambda: history.reach >= first + 16)

    async def run() -> list[int]:
        flows, found = store(64), []
        async with TaskGroup() as tasks:
            history = History(flows, NODE.name, settings, clock)
            await history.open()
            history.start(tasks)
            await sealed(flows, history, 0)
            clock.set(clock.wall() + YEAR)
            for _ in range(2):
                await sealed(flows, history, YEAR)
                found.append(history.numbers().files)
            clock.advance(PATIENCE)
            await sealed(flows, history, YEAR + PATIENCE)
            await until_async(lambda: history.numbers().files == 3)
            await history.close()
        return found

    assert asyncio.run(run()) == [2, 3]
