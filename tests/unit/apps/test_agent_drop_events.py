"""Drops as Events in the store: one for the same words, few calls, and a server that is away."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from cilia.apps.agent import drop_events
from cilia.apps.agent.drop_events import DropEventSettings, DropEventWriter
from cilia.cluster import store as cluster
from cilia.hubble.cursor import Cursor
from cilia.kit.clock import ManualClock
from cilia.schema import Inputs, PodRow
from tests.support.hubble import DROP, WALL, events, store
from tests.support.memory_store import MemoryStore


class Away(MemoryStore):
    """A store that can't be reached while it is told so."""

    away = False
    calls = 0

    async def create(self, resource: cluster.Resource, body: bytes, *, namespace: str | None = None) -> bytes:
        self.calls += 1
        if self.away:
            raise cluster.Unavailable("the API server is away")
        return await super().create(resource, body, namespace=namespace)


class Story:
    """Flows of a node, and the Events in the store."""

    def __init__(self) -> None:
        self.store = Away()
        self.flows = store(capacity=16_384)
        self.clock = ManualClock()
        inputs = Inputs()
        inputs.pods.put(PodRow(namespace="demo", name="server-0", uid="uid-1"))
        settings = DropEventSettings(enabled=True, interval=60.0)
        self.writer = DropEventWriter(settings, self.flows, inputs, self.clock, node="n1")
        self.cursor = Cursor(self.flows)

    async def happen(self, *rows: dict[str, Any], seconds: float = 0.0) -> None:
        self.flows.append([events(*rows)], offset=WALL)
        self.clock.advance(seconds)
        await self.writer.look(self.cursor)

    async def written(self) -> list[dict[str, Any]]:
        listing = await self.store.list(cluster.EVENTS)
        return [msgspec.json.decode(item) for item in listing.items]


def test_drops_are_an_event_of_the_pod() -> None:
    async def story(world: Story) -> None:
        await world.happen(DROP, DROP)
        await world.writer.tell(world.store)
        (event,) = await world.written()
        assert event["involvedObject"] == {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": "demo",
            "name": "server-0",
            "uid": "uid-1",
        }
        assert (event["type"], event["reason"], event["count"]) == ("Warning", "PacketDrop", 2)
        assert "policy_denied" in event["message"]
        assert event["metadata"]["name"].startswith("server-0.")

    asyncio.run(story(Story()))


def test_the_same_drops_later_are_the_same_event() -> None:
    async def story(world: Story) -> None:
        await world.happen(DROP)
        await world.writer.tell(world.store)
        await world.happen({**DROP, "time": 70_000_000_000}, seconds=61.0)
        await world.writer.tell(world.store)
        (event,) = await world.written()
        assert event["count"] == 2
        assert event["lastTimestamp"] > event["firstTimestamp"]

    asyncio.run(story(Story()))


def test_an_event_that_has_ended_is_begun_anew() -> None:
    async def story(world: Story) -> None:
        await world.happen(DROP)
        await world.writer.tell(world.store)
        (name,) = [event["metadata"]["name"] for event in await world.written()]
        await world.store.delete(cluster.EVENTS, name, namespace="demo")
        await world.happen({**DROP, "time": 70_000_000_000}, seconds=61.0)
        await world.writer.tell(world.store)
        (event,) = await world.written()
        assert event["count"] == 1

    asyncio.run(story(Story()))


def test_nothing_is_lost_while_the_store_is_away_for_a_while() -> None:
    async def story(world: Story) -> None:
        world.store.away = True
        await world.happen(DROP, {**DROP, "destination_port": 81})
        with pytest.raises(cluster.Unavailable):
            await world.writer.tell(world.store)
        world.store.away = False
        await world.writer.tell(world.store)
        assert len(await world.written()) == 2
        assert world.writer.lost == 0

    asyncio.run(story(Story()))


@pytest.mark.parametrize(("rate", "written"), [(2, [2, 4, 5]), (0, [5, 5, 5])])
def test_writes_have_a_limit(rate: int, written: list[int]) -> None:
    async def story(world: Story) -> None:
        settings = DropEventSettings(enabled=True, interval=60.0, rate_limit=rate)
        world.writer = DropEventWriter(settings, world.flows, Inputs(), world.clock, node="n1")
        await world.happen(*[{**DROP, "destination_port": 80 + number} for number in range(5)])
        told = []
        for _ in written:
            await world.writer.tell(world.store)
            told.append(len(await world.written()))
        assert told == written

    asyncio.run(story(Story()))


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drop_events, "WAITING", 3)

    async def story(world: Story) -> None:
        world.store.away = True
        await world.happen(*[{**DROP, "destination_port": 80 + number} for number in range(5)])
        assert world.writer.lost == 2
        world.store.away = False
        await world.writer.tell(world.store)
        ports = sorted(event["message"].split("TCP/")[1][:2] for event in await world.written())
        assert ports == ["82", "83", "84"]

    asyncio.run(story(Story()))


def test_a_storm_of_drops_is_a_few_calls() -> None:
    async def story(world: Story) -> None:
        await world.happen(*[{**DROP, "destination_port": number} for number in range(5000)])
        for _ in range(10):
            await world.writer.tell(world.store)
        assert world.store.calls == 8
        assert world.writer.numbers() == {"told": 8, "lost": 0, "suppressed": 4992}

    asyncio.run(story(Story()))


def test_the_writer_waits_before_it_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drop_events, "LOOK_SECONDS", 0.0)

    async def story(world: Story) -> None:
        world.store.away = True
        task = asyncio.ensure_future(world.writer.run(world.store))
        await asyncio.sleep(0)
        world.flows.append([events(DROP)], offset=WALL)
        for _ in range(50):
            await asyncio.sleep(0)
        assert world.store.calls == 1
        world.store.away = False
        world.clock.advance(2.0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(await world.written()) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story(Story()))
