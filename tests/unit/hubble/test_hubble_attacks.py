"""What a hostile client sends to hold up the agent or to read its log, and what becomes of it."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hpack
import pytest
import structlog
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame

from cilia.hubble import cel, observer
from cilia.hubble.convert import Converter
from cilia.hubble.filter_values import Wildcard
from cilia.hubble.filters import FlowMatcher
from cilia.hubble.predicates import Context
from cilia.hubble.rpc.calls import Call
from cilia.hubble.rpc.connection import Connection
from cilia.hubble.rpc.rounds import Gate
from cilia.hubble.rpc.server import Server
from cilia.hubble.turns import Turn, TurnOver
from cilia.kit.clock import ManualClock
from cilia.kit.tasks import TaskGroup
from cilia.proto.flow import flow_pb2
from cilia.proto.observer.observer_pb2 import GetFlowsRequest, GetFlowsResponse
from tests.support.hubble import NODE, WALL, MessageSink, events, store
from tests.support.hubble_raw import path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
READ = 256 << 10
"""Bytes that event loops take from a socket at once."""


class Wire:
    """A transport to nobody."""

    family = socket.AF_UNIX

    def __init__(self) -> None:
        self.paused = False
        self.closed = False
        self.sent = 0

    def write(self, data: bytes, /) -> None:
        self.sent += len(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def get_extra_info(self, _name: str, _default: Any = None) -> Any:
        return self

    def getsockopt(self, *_: int) -> bytes:
        """Credentials of root."""
        return struct.pack("3i", 1, 0, 0)


async def answer(_data: bytes, call: Call) -> None:
    await call.send([b"x"])


def opened(*more: tuple[str, str]) -> HeadersFrame:
    """The headers of a call."""
    frame = HeadersFrame(1, hpack.Encoder().encode([*path("/a/b"), *more]))
    frame.flags.add("END_HEADERS")
    return frame


FLOODS = {
    "pings": [PingFrame(0, b"12345678")],
    "settings": [SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 65_535})],
    "windows": [WindowUpdateFrame(0, window_increment=1)],
    "data without data": [opened(), DataFrame(1, b"")],
}


@pytest.mark.parametrize("frames", FLOODS.values(), ids=FLOODS)
def test_a_flood_of_small_frames_takes_turns_with_others(frames: Sequence[Frame]) -> None:
    *before, flooding = frames
    data = b"".join(frame.serialize() for frame in before) + flooding.serialize() * (READ // 9)

    async def attack() -> int:
        server = Server({"/a/b": answer})
        connection, wire = Connection(server), Wire()
        connection.connection_made(wire)
        connection.data_received(PREFACE)
        connection.data_received(data[:READ])
        assert wire.paused, "the flood was worked off in one go"
        turns = 0
        while wire.paused:
            turns += 1
            await asyncio.sleep(0)
        assert not wire.closed
        await server.close()
        return turns

    assert asyncio.run(attack()) > 10


def test_what_waits_for_its_turn_is_dropped_with_its_client() -> None:
    async def attack() -> None:
        server = Server({"/a/b": answer})
        connection, wire = Connection(server), Wire()
        connection.connection_made(wire)
        connection.data_received(PREFACE + PingFrame(0, b"12345678").serialize() * 10_000)
        assert wire.paused
        wire.closed = True
        connection.connection_lost(None)
        sent = wire.sent
        for _ in range(3):
            await asyncio.sleep(0)
        assert wire.sent == sent
        await server.close()

    asyncio.run(attack())


def test_what_nobody_expected_ends_one_connection_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Connection, _event: object) -> None:
        raise KeyError("nobody expected this")

    async def attack() -> list[object]:
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what["exception"]))
        server = Server({"/a/b": answer})
        broken, whole = (Connection(server), Wire()), (Connection(server), Wire())
        for connection, wire in (broken, whole):
            connection.connection_made(wire)
        await asyncio.sleep(0.01)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "_handle", fail)
            broken[0].data_received(PREFACE)
            await asyncio.sleep(0.01)
        sent = whole[1].sent
        whole[0].data_received(PREFACE)
        await asyncio.sleep(0.01)
        assert broken[1].closed and not whole[1].closed and whole[1].sent > sent
        await server.close()
        return told

    (error,) = asyncio.run(attack())
    assert isinstance(error, KeyError)


def test_a_token_in_a_bad_header_stays_out_of_the_log() -> None:
    async def attack() -> None:
        server = Server({"/a/b": answer})
        connection, wire = Connection(server), Wire()
        connection.connection_made(wire)
        connection.data_received(PREFACE + opened(("authorization", "Bearer s3cret ")).serialize())
        await asyncio.sleep(0.01)
        assert wire.closed
        await server.close()

    with structlog.testing.capture_logs() as lines:
        asyncio.run(attack())
    (line,) = lines
    assert line["error"] == "Received header value surrounded by whitespace"
    assert "s3cret" not in str(lines)


# -- filters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("", "", True),
        ("*", "", True),
        ("a", "a", True),
        ("a", "ab", False),
        ("a*", "ab", True),
        ("*b", "ab", True),
        ("ab*ba", "aba", False),
        ("a*b*a", "aba", True),
        ("a**c", "abc", True),
        ("*a*b*", "xbxa", False),
        ("[a]*", "[a].", True),
        ("*a" * 500 + "*b", "a" * 253, False),
        ("*a" * 200 + "*", "a" * 253, True),
    ],
)
def test_wildcards_take_no_longer_the_more_there_are(pattern: str, text: str, expected: bool) -> None:
    assert Wildcard(pattern).matches(text) is expected


class Ticking:
    """Seconds that go by with each look."""

    seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


def test_a_filter_over_many_pods_goes_on_where_its_turn_ended() -> None:
    flows = store()
    flows.append([events(*({"source_identity": 1000 + number} for number in range(50)))], offset=WALL)
    (rows,) = flows.spans(0, flows.head)
    turn = Turn(Ticking(), 10.0)
    wanted = [flow_pb2.FlowFilter(source_identity=[1007], source_label=["!nothing"])]
    matcher = FlowMatcher(Context(flows, NODE, turn), wanted)
    turn.begin()
    over = 0
    while True:
        try:
            mask = matcher.mask(rows)
        except TurnOver:
            over += 1
            turn.begin()
            continue
        break
    assert rows.numbers[mask].tolist() == [7]
    assert over >= 4


def test_large_filters_are_compiled_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_in: list[str] = []

    class Noting(FlowMatcher):
        def __init__(self, *arguments: Any) -> None:
            compiled_in.append(threading.current_thread().name)
            super().__init__(*arguments)

    monkeypatch.setattr(observer, "FlowMatcher", Noting)
    patterns = ["".join(f"{chr(97 + (n + i) % 26)}[a-z]*" for i in range(100)) for n in range(100)]
    answering = observer.Observer(
        store(), NODE, observer.ObserverSettings(version="1"), ManualClock(wall=WALL / 1e9)
    )

    def ask(**fields: Any) -> None:
        request = GetFlowsRequest(whitelist=[flow_pb2.FlowFilter(**fields)])
        asyncio.run(answering.get_flows(request.SerializeToString(), MessageSink()))

    ask(dns_query=patterns[:1])
    ask(dns_query=patterns)
    assert compiled_in == ["MainThread", "filters"]


def test_however_many_ask_one_of_them_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    flows = store(4096)
    flows.append([events(*({"source_port": number} for number in range(3000)))], offset=WALL)
    rounds = 0
    worked: list[int] = []
    whole = Converter.block

    def block(self: Converter, *arguments: Any) -> bytes:
        worked.append(rounds)
        return whole(self, *arguments)

    monkeypatch.setattr(Converter, "block", block)
    answering = observer.Observer(
        flows, NODE, observer.ObserverSettings(version="1"), ManualClock(wall=WALL / 1e9)
    )

    class Reader(MessageSink):
        got = 0

        async def send(self, messages: Sequence[bytes]) -> None:
            self.got += len(messages)

    async def count_rounds() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    async def attack() -> list[int]:
        readers = [Reader() for _ in range(20)]
        request = GetFlowsRequest().SerializeToString()
        async with TaskGroup() as tasks:
            tasks.spawn("count", count_rounds())
            await asyncio.gather(*(answering.get_flows(request, reader) for reader in readers))
        return [reader.got for reader in readers]

    assert asyncio.run(attack()) == [3000] * 20
    assert len(worked) > 100
    assert len(set(worked)) == len(worked), "two answers were made in one round of the loop"


def test_the_library_of_expressions_is_loaded_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded_in: list[str] = []
    whole = cel.compiled

    def compiled(text: str) -> Any:
        loaded_in.append(threading.current_thread().name)
        return whole(text)

    monkeypatch.setattr(cel, "compiled", compiled)
    answering = observer.Observer(
        store(), NODE, observer.ObserverSettings(version="1"), ManualClock(wall=WALL / 1e9)
    )
    wanted = flow_pb2.FlowFilter()
    wanted.experimental.cel_expression.append("_flow.is_reply == true")
    request = GetFlowsRequest(whitelist=[wanted]).SerializeToString()

    asyncio.run(answering.get_flows(request, MessageSink()))
    assert loaded_in == ["filters"]


def test_what_is_overwritten_while_it_is_looked_for_is_counted() -> None:
    flows = store(1024)
    flows.append([events(*({"source_port": number} for number in range(1024)))], offset=WALL)

    class Overrun(Gate):
        """Others store while an answer waits for its turn."""

        async def turn(self) -> None:
            if flows.head == 1024:
                flows.append([events(*({"source_port": number} for number in range(600)))], offset=WALL)

    answering = observer.Observer(
        flows, NODE, observer.ObserverSettings(version="1"), ManualClock(wall=WALL / 1e9)
    )
    answering._gate = Overrun()

    class Reader(MessageSink):
        found = 0
        lost = 0

        async def send(self, messages: Sequence[bytes]) -> None:
            for message in map(GetFlowsResponse.FromString, messages):
                self.found += message.HasField("flow")
                self.lost += message.lost_events.num_events_lost

    reader = Reader()
    asyncio.run(answering.get_flows(GetFlowsRequest(number=1000).SerializeToString(), reader))
    assert (reader.found, reader.lost) == (424, 600)


def test_many_filters_go_on_where_their_turn_ended() -> None:
    flows = store()
    flows.append([events(*({"source_port": number} for number in range(50)))], offset=WALL)
    (rows,) = flows.spans(0, flows.head)
    turn = Turn(Ticking(), 10.0)
    wanted = [flow_pb2.FlowFilter(source_port=[str(number)]) for number in range(40)]
    refused = [flow_pb2.FlowFilter(source_port=[str(number)]) for number in range(10, 60)]
    matcher = FlowMatcher(Context(flows, NODE, turn), wanted, refused)
    turns = 1
    turn.begin()
    while True:
        try:
            mask = matcher.mask(rows)
        except TurnOver:
            turns += 1
            turn.begin()
            continue
        break
    assert rows.numbers[mask].tolist() == list(range(10))
    assert 9 <= turns <= 12, "each turn has room for ten filters, and none is asked twice"


def test_what_some_filters_said_of_rows_is_not_said_of_those_in_their_place() -> None:
    flows = store(16)
    flows.append([events(*({"source_port": number} for number in range(16)))], offset=WALL)
    turn = Turn(Ticking(), 2.0)
    wanted = [flow_pb2.FlowFilter(source_port=[str(number)]) for number in range(16)]
    matcher = FlowMatcher(Context(flows, NODE, turn), wanted)
    turn.begin()
    with pytest.raises(TurnOver):
        matcher.mask(flows.spans(0, flows.head)[0])
    flows.append([events(*({"source_port": 0} for _ in range(16)))], offset=WALL)
    (rows,) = flows.spans(16, 32)
    for _ in range(20):
        turn.begin()
        with suppress(TurnOver):
            assert matcher.mask(rows).all()
            return
    pytest.fail("twenty turns were not enough for sixteen filters")
