"""How much a poll takes from rings that are always full."""

from __future__ import annotations

import asyncio
from time import thread_time
from typing import Any

import numpy as np
import pytest

from cilia.dataplane import ringbuf
from cilia.dataplane.ringbuf import (
    FIRST_RUN,
    POLL_SECONDS,
    POLL_WORK_SECONDS,
    RUN,
    SHORTEST_RUN,
    SLOW_SECONDS,
    Batch,
    RingReader,
)

EVENT = np.dtype([("time", "<u8"), ("sequence", "<u8"), ("cpu", "<u2")])


class FullRing:
    """As many records as are asked for, in their order."""

    calm = RUN

    def __init__(self, *_: object) -> None:
        self._next = 0

    def read(self, limit: int | None = None) -> Any:
        assert limit is not None
        records = np.zeros(limit, EVENT)
        records["sequence"] = np.arange(self._next, self._next + limit)
        self._next += limit
        return records

    def close(self) -> None:
        return


class Settings:
    """Of a node whose reader never sleeps."""

    reader_asleep = False


class Layout:
    """Of the records above."""

    def dtype(self, _name: str) -> Any:
        return EVENT


def runs_of(monkeypatch: pytest.MonkeyPatch, costs: list[float]) -> list[int]:
    """Records of each of some polls; `costs`: seconds of work for a record, in each."""
    monkeypatch.setattr(ringbuf, "Ring", FullRing)
    runs: list[int] = []
    waiting: Any = None

    def deliver(batch: Batch) -> None:
        if len(runs) == len(costs):
            return
        end = thread_time() + len(batch.events) * costs[len(runs)]
        runs.append(len(batch.events))
        while thread_time() < end:
            pass
        if len(runs) == len(costs):
            waiting.set_result(None)

    async def read() -> None:
        nonlocal waiting
        waiting = asyncio.get_running_loop().create_future()
        rings: Any = [None]
        settings: Any = Settings()
        layout: Any = Layout()
        reader = RingReader(rings, settings, layout, deliver)
        reader.start()
        await waiting
        timer: Any = reader._timer
        timer.cancel()

    asyncio.run(read())
    return runs


def test_runs_are_shorter_while_each_record_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    dear = 2 * SLOW_SECONDS / FIRST_RUN
    runs = runs_of(monkeypatch, [dear] * 6 + [0.0] * 9)
    assert runs[0] == FIRST_RUN and max(runs[2:7]) <= FIRST_RUN // 2
    assert runs[-1] == max(runs) and sorted(runs[6:]) == runs[6:]


def test_runs_have_an_end_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    dear = 2 * SLOW_SECONDS / SHORTEST_RUN
    runs = runs_of(monkeypatch, [0.0] * 8 + [dear] * 2 + [0.0])
    assert min(runs) >= SHORTEST_RUN and max(runs) == RUN


def test_a_poll_ends_when_it_has_worked_for_some_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of records that take long it has a few runs, then others have the loop."""
    dear = SLOW_SECONDS / FIRST_RUN
    polls: list[int] = []
    monkeypatch.setattr(RingReader, "_look", lambda _self: False)
    whole = RingReader._poll

    def poll(self: RingReader) -> None:
        before = self.received
        whole(self)
        polls.append(self.received - before)

    monkeypatch.setattr(RingReader, "_poll", poll)
    runs = runs_of(monkeypatch, [dear] * 20)
    assert max(polls[:-1]) * dear < 3 * POLL_WORK_SECONDS
    assert len(polls) > 1 and sum(polls) >= sum(runs[:-1])


def test_what_takes_more_than_a_run_does_not_come_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though each run is a small part of the ring."""
    monkeypatch.setattr(FullRing, "calm", 2 * RUN)
    paces: list[float] = []
    monkeypatch.setattr(RingReader, "_look", lambda _self: False)
    whole = RingReader._poll

    def poll(self: RingReader) -> None:
        whole(self)
        paces.append(self.pace)

    monkeypatch.setattr(RingReader, "_poll", poll)
    runs_of(monkeypatch, [0.0] * 6)
    assert paces[0] == POLL_SECONDS
