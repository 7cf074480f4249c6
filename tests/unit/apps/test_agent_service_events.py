"""Problems of services as Events: which are told, once, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cilia.apps.agent.service_events import ServiceEvents
from cilia.apps.agent.statuses import WARNING_SECONDS
from cilia.cluster import store as cluster
from cilia.kit.clock import ManualClock
from cilia.model.service import ServiceState
from cilia.schema import Desired
from tests.support.memory_store import MemoryStore

WEB = ("Service", "shop", "web")


class Story:
    """A store with a Service, and its problems."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.desired = Desired()
        self.clock = ManualClock()
        self.events = ServiceEvents(self.store, self.desired, self.clock, node="n1")

    async def make(self, name: str = "web") -> None:
        body = msgspec.json.encode({"metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}"}})
        await self.store.create(cluster.SERVICES, body, namespace="shop")

    def say(self, *problems: str, name: str = "web", kind: str = "Service") -> None:
        state = ServiceState(kind=kind, namespace="shop", name=name, problems=problems)
        self.desired.service_states.put(state)

    async def pass_by(self, seconds: float) -> list[str]:
        """Let time go by; the messages of all Events."""
        self.events.look()
        self.clock.advance(seconds)
        await self.events.tell()
        listing = await self.store.list(cluster.EVENTS)
        found: list[dict[str, Any]] = [msgspec.json.decode(item) for item in listing.items]
        return sorted(item["message"] for item in found)


def play(story: Callable[[Story], Awaitable[None]]) -> None:
    asyncio.run(story(Story()))  # type: ignore[arg-type]


def test_a_problem_is_told_once_it_has_stood_and_only_once() -> None:
    async def story(world: Story) -> None:
        await world.make()
        world.say("spec.ports: a")
        assert await world.pass_by(WARNING_SECONDS - 1) == []
        assert await world.pass_by(1) == ["spec.ports: a"]
        world.say("spec.ports: a", "spec.ports: b")
        assert await world.pass_by(WARNING_SECONDS) == ["spec.ports: a", "spec.ports: b"]

    play(story)


def test_what_goes_in_time_is_not_told() -> None:
    async def story(world: Story) -> None:
        await world.make()
        world.say("spec.ports: a")
        await world.pass_by(1)
        world.say()
        assert await world.pass_by(WARNING_SECONDS) == []
        world.say("x")
        world.events.look()
        world.desired.service_states.delete(WEB)
        assert await world.pass_by(WARNING_SECONDS) == []

    play(story)


def test_objects_that_are_gone_and_kinds_of_this_node_write_nothing() -> None:
    async def story(world: Story) -> None:
        world.say("a", name="gone")
        world.say("b", name="192.0.2.1:80/TCP", kind="Standalone")
        assert await world.pass_by(WARNING_SECONDS) == []

    play(story)


def test_the_store_may_be_away() -> None:
    async def story(world: Story) -> None:
        await world.make()
        world.say("a")
        world.events.look()
        world.clock.advance(WARNING_SECONDS)
        world.store.down = cluster.Unavailable("away")
        try:
            await world.events.tell()
        except cluster.Unavailable:
            world.store.down = None
        assert await world.pass_by(0) == ["a"]

    play(story)
