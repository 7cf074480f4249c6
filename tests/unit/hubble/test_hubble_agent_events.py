"""What the agent did, as an independent client reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cilia.hubble.agent_events import (
    AddressChanged,
    EndpointChanged,
    EndpointRegenerated,
    EventLog,
    EventStream,
    PolicyChanged,
    Started,
)
from cilia.kit.clock import ManualClock
from cilia.proto.flow import flow_pb2
from cilia.proto.observer.observer_pb2 import (
    GetAgentEventsRequest,
    GetAgentEventsResponse,
    GetDebugEventsRequest,
    GetDebugEventsResponse,
)
from tests.support.grpc_client import served_over_tcp
from tests.support.hubble import WALL, Beside
from tests.support.waiting import until_async

pytestmark = pytest.mark.timeout(60)

SECOND = 1_000_000_000
AGENT, DEBUG = "/observer.Observer/GetAgentEvents", "/observer.Observer/GetDebugEvents"


class Served:
    """A log, and a channel to its server."""

    def __init__(self, beside: Beside, log: EventLog, channel: grpc.Channel) -> None:
        self.beside = beside
        self.log = log
        self.channel = channel

    def append(self, *numbers: int) -> None:
        """Endpoints that come, each a second later than the one before."""

        def note() -> None:
            for number in numbers:
                self.log.append(EndpointChanged(id=number), WALL + number * SECOND)

        self.beside.call(note)

    def ask(self, **fields: Any) -> Any:
        call = self.channel.unary_stream(
            AGENT, GetAgentEventsRequest.SerializeToString, GetAgentEventsResponse.FromString
        )
        return call(GetAgentEventsRequest(**fields), timeout=20)

    def numbers(self, **fields: Any) -> list[int]:
        return [response.agent_event.endpoint_update.id for response in self.ask(**fields)]


@pytest.fixture
def served(running: Beside) -> Iterator[Served]:
    log = EventLog(capacity=8)
    agent = EventStream(AGENT, log, "default/worker-1", running.clock)
    debug = EventStream(DEBUG, EventLog(), "default/worker-1", running.clock)
    with served_over_tcp(running, {**agent.methods(), **debug.methods()}) as (_, channel):
        yield Served(running, log, channel)


def at(number: int) -> Timestamp:
    return Timestamp(seconds=WALL // SECOND + number)


def test_what_is_asked_is_chosen_as_with_flows(served: Served) -> None:
    served.append(*range(6))
    assert served.numbers() == [0, 1, 2, 3, 4, 5]
    assert served.numbers(number=2) == [4, 5]
    assert served.numbers(number=2, first=True) == [0, 1]
    assert served.numbers(since=at(3)) == [3, 4, 5]
    assert served.numbers(since=at(1), until=at(3)) == [1, 2, 3]
    assert served.numbers(since=at(1), number=2) == [1, 2]
    assert served.numbers(until=at(-1)) == []


def test_an_answer_says_when_and_where(served: Served) -> None:
    served.append(1)
    (response,) = served.ask()
    assert response.node_name == "default/worker-1"
    assert response.time.ToNanoseconds() == WALL + SECOND


def test_followers_get_what_comes(served: Served) -> None:
    served.append(0, 1)
    stream, fresh = served.ask(number=1, follow=True), served.ask(follow=True)
    assert next(stream).agent_event.endpoint_update.id == 1
    while served.beside.call(lambda: len(served.log.listeners)) < 2:
        pass
    served.append(2, 3)
    assert [next(stream).agent_event.endpoint_update.id for _ in range(2)] == [2, 3]
    assert [next(fresh).agent_event.endpoint_update.id for _ in range(2)] == [2, 3]
    stream.cancel()
    fresh.cancel()
    while served.beside.call(lambda: len(served.log.listeners)):
        pass


def test_following_ends_with_until(served: Served) -> None:
    soon = Timestamp()
    soon.FromNanoseconds(int((served.beside.clock.wall() + 0.2) * 1e9))
    assert list(served.ask(follow=True, until=soon)) == []


@pytest.mark.parametrize(
    "fields",
    [{"first": True, "follow": True}, {"since": Timestamp(seconds=1 << 60)}, {"until": Timestamp(nanos=-5)}],
)
def test_senseless_requests_are_refused(served: Served, fields: dict[str, Any]) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(served.ask(**fields))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_debug_events_are_an_empty_stream_that_waits(served: Served) -> None:
    call = served.channel.unary_stream(
        DEBUG, GetDebugEventsRequest.SerializeToString, GetDebugEventsResponse.FromString
    )
    assert list(call(GetDebugEventsRequest(number=20), timeout=20)) == []
    with pytest.raises(grpc.RpcError) as error:
        list(call(GetDebugEventsRequest(follow=True), timeout=0.3))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_addresses_push_nothing_else_out() -> None:
    log = EventLog(capacity=8)
    log.append(Started(WALL), WALL)
    for number in range(1000):
        log.append(AddressChanged(prefix=f"10.0.0.{number}/32", identity=5), WALL)
    log.append(EndpointChanged(id=7), WALL)
    kept = log.since(0)
    assert [entry.number for entry in kept] == [0, *range(993, 1001), 1001]


class Slow:
    """A client that takes a message only when it is let."""

    def __init__(self) -> None:
        self.taken: list[GetAgentEventsResponse] = []
        self.let = asyncio.Semaphore(0)

    async def send(self, messages: Sequence[bytes]) -> None:
        self.taken += [GetAgentEventsResponse.FromString(message) for message in messages]
        await self.let.acquire()


def test_a_slow_follower_learns_how_many_it_missed() -> None:
    async def story() -> None:
        log, sink = EventLog(capacity=8), Slow()
        stream = EventStream(AGENT, log, "n", ManualClock())
        call = asyncio.ensure_future(
            stream.stream(GetAgentEventsRequest(follow=True).SerializeToString(), sink)
        )
        await asyncio.sleep(0)
        log.append(EndpointChanged(id=0), WALL)
        await until_async(lambda: sink.taken, "the first")
        for number in range(1, 21):
            log.append(EndpointChanged(id=number), WALL)
        for _ in range(5):
            sink.let.release()
        await until_async(lambda: sink.taken[-1].agent_event.endpoint_update.id == 20, "the last")
        call.cancel()
        first, lost, *rest = [response.agent_event for response in sink.taken]
        assert first.endpoint_update.id == 0
        assert lost.type == flow_pb2.AGENT_EVENT_UNKNOWN
        assert lost.unknown.notification.startswith("12 events were overwritten")
        assert [event.endpoint_update.id for event in rest] == list(range(13, 21))

    asyncio.run(story())


def test_each_kind_has_its_message() -> None:
    started = Started(WALL).message()
    assert started.type == flow_pb2.AGENT_STARTED
    assert started.agent_start.time.ToNanoseconds() == WALL
    updated = PolicyChanged(labels=("a",), revision=7, rules=2).message()
    assert (updated.type, updated.policy_update.revision, updated.policy_update.rule_count) == (
        flow_pb2.POLICY_UPDATED, 7, 2,
    )  # fmt: skip
    assert (
        PolicyChanged(labels=(), revision=8, rules=0, deleted=True).message().type == flow_pb2.POLICY_DELETED
    )
    came = EndpointChanged(id=9, labels=("k8s:a=b",), namespace="demo", pod="web-0").message()
    assert came.endpoint_update == flow_pb2.EndpointUpdateNotification(
        id=9, labels=["k8s:a=b"], namespace="demo", pod_name="web-0"
    )
    assert EndpointChanged(id=9, deleted=True).message().type == flow_pb2.ENDPOINT_DELETED
    assert EndpointRegenerated(id=9).message().type == flow_pb2.ENDPOINT_REGENERATE_SUCCESS
    failed = EndpointRegenerated(id=9, error="no room").message()
    assert failed.type == flow_pb2.ENDPOINT_REGENERATE_FAILURE
    assert failed.endpoint_regenerate.error == "no room"
    moved = AddressChanged(
        prefix="10.0.0.1/32", identity=5, old_identity=4, host="192.0.2.1", old_host="192.0.2.2"
    ).message()
    assert moved.type == flow_pb2.IPCACHE_UPSERTED
    assert moved.ipcache_update.old_identity.value == 4
    assert (moved.ipcache_update.host_ip, moved.ipcache_update.old_host_ip) == ("192.0.2.1", "192.0.2.2")
    gone = AddressChanged(prefix="10.0.0.1/32", identity=5, deleted=True).message()
    assert gone.type == flow_pb2.IPCACHE_DELETED
    assert not gone.ipcache_update.HasField("old_identity")
