"""What a client gets of a store that moves on, and how it learns what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cilia.hubble import answer
from cilia.hubble.answer import SCAN, Untold
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.status import completeness_of
from cilia.hubble.store import FlowStore, Loss, LossRow, LossSource
from cilia.kit.clock import ManualClock
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.hubble import NODE, WALL, MessageSink, events, flow, store
from tests.support.waiting import until_async

DROP = {"kind": 1, "verdict": 2, "reason": 133, "state": 0}
DROPPED = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])


class Reader(MessageSink):
    """A sink that remembers, and does something at each message."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.got: list[observer_pb2.GetFlowsResponse] = []
        self._then = then

    async def send(self, messages: Sequence[bytes]) -> None:
        self.got += map(observer_pb2.GetFlowsResponse.FromString, messages)
        self._then()

    @property
    def ports(self) -> list[int]:
        return [each.flow.l4.TCP.source_port - 10_000 for each in self.got if each.HasField("flow")]

    @property
    def lost(self) -> list[tuple[int, int]]:
        notes = [each.lost_events for each in self.got if each.HasField("lost_events")]
        return [(note.source, note.num_events_lost) for note in notes]

    def order(self) -> list[str]:
        return [str(each.WhichOneof("response_types")) for each in self.got]


def ask(flows: FlowStore, reader: Reader | None = None, **fields: Any) -> Reader:
    reader = reader or Reader()
    clock = ManualClock(wall=WALL / 1e9 + 100)
    observer = Observer(flows, NODE, ObserverSettings(version="1"), clock)
    request = observer_pb2.GetFlowsRequest(**fields)
    asyncio.run(observer.get_flows(request.SerializeToString(), reader))
    return reader


def second(number: int) -> dict[str, int]:
    return {"seconds": WALL // 10**9 + number}


def flood(flows: FlowStore, first: int, last: int, **fields: Any) -> None:
    rows = [flow(number, **{"time": 1_000_000_000 * number, **fields}) for number in range(first, last)]
    flows.append([events(*rows)], offset=WALL)


def test_counting_from_both_ends() -> None:
    flows = store()
    flood(flows, 0, 50)
    assert ask(flows).ports == list(range(50))
    assert ask(flows, number=3).ports == [47, 48, 49]
    assert ask(flows, number=3, first=True).ports == [0, 1, 2]
    assert ask(flows, number=3, since=second(10)).ports == [10, 11, 12]
    assert ask(flows, since=second(10), until=second(12)).ports == [10, 11, 12]
    assert ask(flows, number=2, until=second(12)).ports == [11, 12]
    assert ask(flows, number=99, blacklist=[flow_pb2.FlowFilter(source_port=["10000-10044"])]).ports == [
        45, 46, 47, 48, 49,
    ]  # fmt: skip


def test_a_long_way_back_is_gone_in_steps() -> None:
    flows = store(capacity=4 * SCAN)
    flows.append([events(flow(1, **DROP))], offset=WALL)
    row = events(flow(2))
    flows.append([row.repeat(3 * SCAN)], offset=WALL)
    assert ask(flows, number=1, whitelist=[DROPPED]).ports == [1]
    assert ask(flows, number=1, first=True, whitelist=[DROPPED]).ports == [1]


def test_drops_of_long_ago_are_answered_and_nothing_is_said_to_be_missing() -> None:
    flows = store(capacity=8)
    flood(flows, 0, 2, **DROP)
    flood(flows, 2, 40)
    for fields in ({}, {"number": 5}, {"since": second(0)}):
        reader = ask(flows, whitelist=[DROPPED], **fields)
        assert (reader.ports, reader.lost) == ([0, 1], []), fields


def test_flows_beyond_a_hole_come_with_one_note() -> None:
    flows = store(capacity=8)
    flood(flows, 0, 1)
    flood(flows, 1, 2, **DROP)
    flood(flows, 2, 40)
    reader = ask(flows)
    assert reader.ports == [1, *range(32, 40)]
    assert reader.lost == [(flow_pb2.HUBBLE_RING_BUFFER, 30)]
    assert flows.metrics.lost[LossSource.HUBBLE_RING_BUFFER] == 0
    assert ask(flows, number=4).lost == []


def test_since_a_time_that_is_no_longer_kept() -> None:
    flows = store(capacity=8)
    for number in range(40):
        flood(flows, number, number + 1)
    reader = ask(flows, since=second(20))
    assert reader.ports == list(range(32, 40))
    assert reader.lost == [(flow_pb2.HUBBLE_RING_BUFFER, 12)]
    note = next(each.lost_events for each in reader.got if each.HasField("lost_events"))
    assert (note.first.ToNanoseconds(), note.last.ToNanoseconds()) == (
        WALL + 20 * 10**9,
        WALL + 32 * 10**9,
    )
    assert ask(flows, since=second(35)).lost == []


def test_what_is_overwritten_while_a_client_reads_is_counted() -> None:
    flows = store(capacity=1024)
    flood(flows, 0, 1024)
    pushed = False

    def push() -> None:
        nonlocal pushed
        if not pushed:
            pushed = True
            flood(flows, 1024, 1900)

    reader = ask(flows, Reader(push))
    assert len(reader.ports) + sum(count for _, count in reader.lost) == 1024
    assert len(reader.lost) == 1
    assert flows.metrics.lost[LossSource.HUBBLE_RING_BUFFER] == reader.lost[0][1]


def test_many_gaps_are_one_note_at_the_place_of_the_last() -> None:
    flows = store()
    for number in range(20):
        flood(flows, number, number + 1)
        gap = Loss(count=2, cpu=number % 2, first=number * 10**9 + 1, last=number * 10**9 + 2)
        flows.append([], [gap] * (number < 10), offset=WALL)
    reader = ask(flows)
    assert reader.lost == [(flow_pb2.PERF_EVENT_RING_BUFFER, 20)]
    assert reader.order().index("lost_events") == 10
    note = reader.got[10].lost_events
    assert not note.HasField("cpu")
    assert note.first.ToNanoseconds() == WALL + 1
    assert note.last.ToNanoseconds() == WALL + 9 * 10**9 + 2


def test_gaps_without_a_flow() -> None:
    flows = store()
    flows.append([], [Loss(count=2, cpu=0, first=1, last=2)], offset=WALL)
    assert ask(flows).lost == [(flow_pb2.PERF_EVENT_RING_BUFFER, 2)]
    assert ask(flows, number=3).lost == [(flow_pb2.PERF_EVENT_RING_BUFFER, 2)]


def row(count: int, source: LossSource = LossSource.PERF_EVENT_RING_BUFFER) -> LossRow:
    return LossRow(serial=0, position=0, source=source, count=count, cpu=1, first=1, last=2)


def test_notes_are_at_most_one_in_an_interval_per_source() -> None:
    untold = Untold(1.0)
    assert untold.left(0.0) is None
    untold.add(row(1))
    assert [gap.count for gap in untold.due(5.0)] == [1]
    for _ in range(100):
        untold.add(row(2))
        assert untold.due(5.5) == []
    untold.add(row(7, LossSource.HUBBLE_RING_BUFFER))
    assert [gap.count for gap in untold.due(5.6)] == [7]
    assert untold.left(5.6) == pytest.approx(0.4)
    assert [(gap.count, gap.cpu) for gap in untold.due(6.0)] == [(200, 1)]
    untold.add(row(3))
    assert [gap.count for gap in untold.all()] == [3]
    assert untold.left(9.0) is None


def test_a_follower_gets_what_comes_alone_at_once_and_the_rest_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answer, "PACE", 3600.0)
    monkeypatch.setattr(answer, "ENOUGH", 20)
    flows = store()
    observer = Observer(flows, NODE, ObserverSettings(version="1"), ManualClock(wall=WALL / 1e9))

    async def story() -> None:
        reader = Reader()
        request = observer_pb2.GetFlowsRequest(follow=True)
        call = asyncio.ensure_future(observer.get_flows(request.SerializeToString(), reader))
        await asyncio.sleep(0)
        flows.append([events(flow(0))], offset=WALL)
        await until_async(lambda: reader.ports == [0])
        for number in range(1, 20):
            flows.append([events(flow(number))], offset=WALL)
            await asyncio.sleep(0.001)
        assert reader.ports == [0], "the next look is due in an hour"
        flows.append([events(flow(20))], offset=WALL)
        await until_async(lambda: reader.ports == list(range(21)))
        call.cancel()

    asyncio.run(story())


def test_a_slow_filter_makes_a_follower_no_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "PACE", 3600.0)
    flows = store()
    observer = Observer(flows, NODE, ObserverSettings(version="1"), ManualClock(wall=WALL / 1e9))
    cel = flow_pb2.FlowFilter(
        experimental=flow_pb2.FlowFilter.Experimental(cel_expression=["_flow.l4.TCP.source_port > 0"])
    )

    async def story() -> None:
        reader = Reader()
        request = observer_pb2.GetFlowsRequest(follow=True, whitelist=[cel])
        call = asyncio.ensure_future(observer.get_flows(request.SerializeToString(), reader))
        await until_async(lambda: flows.listeners, "the follower")
        flows.append([events(*map(flow, range(4 * answer.SLOW_SCAN)))], offset=WALL)
        await until_async(lambda: len(reader.ports) == 4 * answer.SLOW_SCAN)
        call.cancel()

    asyncio.run(story())


def test_a_follower_learns_of_a_flood_of_gaps_in_two_notes() -> None:
    flows = store()
    clock = ManualClock(wall=WALL / 1e9)
    observer = Observer(flows, NODE, ObserverSettings(version="1", lost_events_interval=0.2), clock)

    async def story() -> Reader:
        told = asyncio.Event()
        reader = Reader(lambda: told.set() if len(reader.lost) > 1 and len(reader.ports) >= 50 else None)
        request = observer_pb2.GetFlowsRequest(follow=True)
        call = asyncio.ensure_future(observer.get_flows(request.SerializeToString(), reader))
        await asyncio.sleep(0)
        for number in range(50):
            flows.append([events(flow(number))], [Loss(count=1, cpu=0, last=number)], offset=WALL)
            await asyncio.sleep(0.001)
        clock.advance(0.3)
        async with asyncio.timeout(60):
            await told.wait()
        call.cancel()
        return reader

    reader = asyncio.run(story())
    assert reader.ports == list(range(50))
    assert len(reader.lost) == 2
    assert sum(count for _, count in reader.lost) == 50


def test_the_status_says_how_complete_a_node_is() -> None:
    flows = store(capacity=8)
    flood(flows, 0, 30)
    flows.append([], [Loss(count=10, cpu=0, first=5, last=6)], offset=WALL)
    observer = Observer(flows, NODE, ObserverSettings(version="1"), ManualClock(wall=WALL / 1e9))
    got: list[bytes] = []

    class Sink:
        async def send(self, messages: Sequence[bytes]) -> None:
            got.extend(messages)

    asyncio.run(observer.server_status(b"", Sink()))
    response = observer_pb2.ServerStatusResponse.FromString(got[0])
    assert (response.num_flows, response.seen_flows) == (8, 30)
    told = completeness_of(response)
    assert told is not None
    assert (told.seen, told.lost, told.percent, told.lost_since) == (30, 10, 75.0, WALL + 5)
    assert told.sentence() == "75.0 % complete, missing <= 10 events"
    assert completeness_of(observer_pb2.ServerStatusResponse(num_flows=1)) is None
