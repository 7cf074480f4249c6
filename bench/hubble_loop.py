"""How long clients that ask much, or mean ill, hold the agent's event loop.

Part of `python -m bench --only hubble-flows`; one case by hand: `python -m bench.hubble_loop busy strangers`.

Each case runs in a process of its own, on the agent's kind of loop, with its clients in others. A timer of
one millisecond says how late it was at most: where another process had the core, as much of it as this one
worked meanwhile, threads included (`by_clock` has all of it).
"""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count, cycle
from pathlib import Path
from typing import Any, NamedTuple

import hpack
import msgspec
import numpy as np
import uvloop
from google.protobuf import field_mask_pb2
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame

from bench import limits, rings
from bench.hubble_store import BATCH, cluster, traffic
from bench.hubble_watching import longest_hold, reported
from cilia.apps.agent.flows import FlowPump
from cilia.dataplane.ringbuf import Batch
from cilia.hubble.client import Client
from cilia.hubble.columns import Events
from cilia.hubble.convert import NodeFacts
from cilia.hubble.health import Health
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.rpc.messages import frame
from cilia.hubble.rpc.reflection import Reflection
from cilia.hubble.rpc.server import Server
from cilia.hubble.store import FlowStore
from cilia.kit import startup
from cilia.kit.clock import SystemClock
from cilia.kit.tasks import TaskGroup
from cilia.kit.tls import ServerTls
from cilia.proto.flow import flow_pb2
from cilia.proto.health import health_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.reflection import reflection_pb2
from tests.support.hubble_raw import GET_FLOWS, path
from tests.support.hubble_tls import Authority

GROUP = "hubble-flows"
ROWS = 1 << 16
SECONDS, QUICK_SECONDS = 6.0, 2.0
"""Of watching a case."""
CHECK = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
AT_ONCE = 60
"""Calls of one connection; the server allows 64."""
NODE = NodeFacts(name="bench/node", version="1")
KINDS: tuple[tuple[str, Callable[[int], Any]], ...] = (
    ("source_ip", lambda n: f"10.0.{n % 4}.{n % 64 * 4}/30"),
    ("destination_port", lambda n: str(1000 + 7 * n)),
    ("source_label", lambda n: f"app in (app-{n}, other-{n})"),
    ("destination_pod", lambda n: f"team-{n % 4}/pod-{n}"),
    ("source_identity", lambda n: 1000 + n),
    ("source_fqdn", lambda n: f"*.{n}.example.*"),
    ("tcp_flags", lambda n: flow_pb2.TCPFlags(SYN=bool(n % 2), ACK=bool(n % 3), FIN=bool(n % 5))),
    ("event_type", lambda n: flow_pb2.EventTypeFilter(type=4, match_sub_type=True, sub_type=n)),
)
"""Fields of filters, and the n-th value of each."""
MOST_MESSAGES = 400
"""Values that are messages: what is in them counts, too."""


# -- what clients send --------------------------------------------------------------------------------------


class Batched(NamedTuple):
    """Calls of one connection at a time."""

    data: bytes
    ends: int
    """Calls that end before the next batch."""


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MOST = (1 << 31) - 1
LARGEST = 16 << 10
"""Bytes of a frame, where the server has not said more (RFC 9113, 6.5.2)."""


def greeting() -> bytes:
    """A client that takes whatever comes."""
    frames = [
        SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: MOST}),
        WindowUpdateFrame(0, window_increment=MOST - 65_535),
    ]
    return PREFACE + b"".join(each.serialize() for each in frames)


def batches(calls: Sequence[Sequence[tuple[str, bytes]]]) -> list[Batched]:
    """Batches of calls (a method, and framed messages), one connection's."""
    encoder, stream, found = hpack.Encoder(), 1, []
    for batch in calls:
        frames: list[Frame] = []
        for method, messages in batch:
            head = HeadersFrame(stream, encoder.encode(path(method)))
            head.flags.add("END_HEADERS")
            frames += head, *body(stream, messages)
            stream += 2
        found.append(Batched(b"".join(each.serialize() for each in frames), len(batch)))
    return found


def body(stream: int, messages: bytes) -> list[DataFrame]:
    """What one call sends, in frames that any server takes."""
    frames = [DataFrame(stream, messages[at : at + LARGEST]) for at in range(0, len(messages), LARGEST)]
    frames[-1].flags.add("END_STREAM")
    return frames


def asking(*requests: observer_pb2.GetFlowsRequest) -> list[list[Batched]]:
    """Connections that ask for flows, one request each."""
    return [batches([[(GET_FLOWS, frame([request.SerializeToString()]))]]) for request in requests]


def filters() -> list[list[Batched]]:
    """Of 40 values in one field, each with another beginning."""
    found = []
    for number in range(100):
        field, value = KINDS[number % len(KINDS)]
        fields: dict[str, Any] = {field: [value(number % 7 + each) for each in range(40)]}
        found.append(observer_pb2.GetFlowsRequest(whitelist=[flow_pb2.FlowFilter(**fields)], number=1000))
    return asking(*found)


def large_filters() -> list[list[Batched]]:
    """A thousand filters, and filters of a thousand values: as much as a request may have."""
    many = [
        flow_pb2.FlowFilter(source_port=[str(n)], destination_label=[f"app=app-{n}"]) for n in range(1000)
    ]
    found = [observer_pb2.GetFlowsRequest(whitelist=many)]
    for field, value in KINDS:
        most = 1000 if isinstance(value(0), str | int) else MOST_MESSAGES
        fields: dict[str, Any] = {field: [value(each) for each in range(most)]}
        found.append(observer_pb2.GetFlowsRequest(whitelist=[flow_pb2.FlowFilter(**fields)]))
    return asking(*found)


def masks() -> list[list[Batched]]:
    """127 fields of flows: most of what there is, by the deepest names."""
    names = list(leaves(flow_pb2.Flow.DESCRIPTOR, "", 3))[:127]
    mask = field_mask_pb2.FieldMask(paths=names)
    return asking(*(observer_pb2.GetFlowsRequest(field_mask=mask) for _ in range(10)))


def leaves(message: Any, prefix: str, depth: int) -> Iterator[str]:
    """Names of fields inside of a message."""
    for field in message.fields:
        name = prefix + field.name
        if field.message_type is not None and not field.is_repeated and depth > 1:
            yield from leaves(field.message_type, name + ".", depth - 1)
        else:
            yield name


def whole_flows() -> list[list[Batched]]:
    """No filter, no mask."""
    return asking(*(observer_pb2.GetFlowsRequest() for _ in range(10)))


def followers() -> list[list[Batched]]:
    """500 calls over eight connections, for what never comes."""
    never = flow_pb2.FlowFilter(source_pod=["nowhere/"])
    request = observer_pb2.GetFlowsRequest(follow=True, whitelist=[never]).SerializeToString()
    return [batches([[(GET_FLOWS, frame([request]))] * AT_ONCE]) for _ in range(8)]


def checks() -> list[list[Batched]]:
    """Probes, as many as go."""
    request = frame([health_pb2.HealthCheckRequest().SerializeToString()])
    return [batches([[(CHECK, request)] * AT_ONCE] * 10)] * 50


def one_check() -> list[list[Batched]]:
    """A probe for each connection."""
    return [batches([[(CHECK, frame([b""]))]])] * 50


def questions() -> list[list[Batched]]:
    """Reflection, asked for the largest file again and again."""
    question = reflection_pb2.ServerReflectionRequest(file_containing_symbol="observer.Observer")
    request = frame([question.SerializeToString()] * 16)
    return [batches([[(REFLECT, request)] * AT_ONCE] * 4)] * 50


def pings() -> list[list[Batched]]:
    """Small frames without an end: 64 KiB at a time, then a call that ends."""
    flood = PingFrame(0, b"12345678").serialize() * (65_536 // 17)
    (ended,) = batches([[(CHECK, frame([b""]))]])
    return [[Batched(flood + ended.data, 1)]] * 200


def nothing() -> list[list[Batched]]:
    """No client at all."""
    return []


class Attack:
    """Connections that send their batches one after the other, then begin anew."""

    def __init__(self, address: Path, ways: list[list[Batched]]) -> None:
        self._address = str(address)
        self._ways = ways
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """For ever."""
        for way in self._ways:
            self._connect(way)
        while True:
            for key, _ in self._selector.select():
                self._read(key.fileobj, key.data)

    def _connect(self, way: list[Batched]) -> None:
        line = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            line.connect(self._address)
            line.sendall(greeting())
        walk = Ends(way)
        self._send(line, walk)
        self._selector.register(line, selectors.EVENT_READ, walk)

    def _send(self, line: socket.socket, walk: Ends) -> None:
        with suppress(OSError):
            line.sendall(walk.next())

    def _read(self, line: Any, walk: Ends) -> None:
        try:
            data = line.recv(1 << 20)
        except OSError:
            data = b""
        if data and not walk.over(data):
            return
        if data and walk.more:
            self._send(line, walk)
            return
        self._selector.unregister(line)
        line.close()
        self._connect(walk.way)


class Ends:
    """Counts calls that end by the heads of frames (RFC 9113, 4.1), and knows what is to be sent next."""

    HEAD, HEADERS, END_STREAM = 9, 1, 1

    def __init__(self, way: list[Batched]) -> None:
        self.way = way
        self._sent = 0
        self._open = 0
        self._skip = 0
        self._rest = b""

    @property
    def more(self) -> bool:
        """Whether something is to be sent yet."""
        return self._sent < len(self.way)

    def next(self) -> bytes:
        """The next batch."""
        batch = self.way[self._sent]
        self._sent += 1
        self._open += batch.ends
        return batch.data

    def over(self, data: bytes) -> bool:
        """Whether what came ends the last call that is open."""
        data, at = self._rest + data, self._skip
        while at + self.HEAD <= len(data):
            self._open -= data[at + 3] == self.HEADERS and data[at + 4] & self.END_STREAM
            at += self.HEAD + int.from_bytes(data[at : at + 3])
        self._skip, self._rest = max(0, at - len(data)), data[at:]
        return self._open <= 0


def attack_handshakes(address: str) -> None:
    """Say the first words of TLS on 60 connections, hear the answer, and leave."""
    host, _, port = address.rpartition(":")
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    hello = outgoing.read()
    while True:
        lines = [socket.create_connection((host, int(port))) for _ in range(AT_ONCE)]
        for line in lines:
            line.sendall(hello)
        for line in lines:
            with suppress(OSError):
                line.recv(1 << 16)
            line.close()


def attack_largest(address: Path) -> None:
    """Requests of a mebibyte that mean nothing."""
    pieces = [b"\x1a\x00", b"\x1a\x02\x0a\x00", b"\xfa\x7f\x00", b"\x52\x03\x0a\x01a"]
    for piece in cycle(pieces):
        request = piece * ((1 << 20) // len(piece) - 10)
        with Client(f"unix://{address}") as client, suppress(Exception):
            for _ in client.stream(GET_FLOWS, request):
                pass


# -- cases --------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Something clients do, and what happens beside it."""

    test: str
    ways: Callable[[], list[list[Batched]]]
    labels: int = 0
    """Bytes of labels of each pod, more than usual."""
    events: bool = False
    """Whether 10,000 events come each second."""
    flood: bool = False
    """Whether the kernel's ring is full of flows from strangers all the time."""
    tls: bool = False


CASES = {
    "filters": Case("100 clients, filters of 40 values", filters),
    "large": Case("filters as large as may be", large_filters),
    "largest": Case("requests of 1 MiB that mean nothing", nothing),
    "masks": Case("masks of 127 fields, 64 KiB of labels", masks, labels=1 << 16),
    "labels": Case("whole flows with 64 KiB of labels", whole_flows, labels=1 << 16),
    "strangers": Case("a flood of strangers", whole_flows, flood=True),
    "followers": Case("480 followers, 10,000 events/s", followers, events=True),
    "whole": Case("10 clients that want all", whole_flows),
    "checks": Case("50 connections of probes", checks),
    "comers": Case("50 connections that come and go", one_check),
    "questions": Case("50 connections of reflection", questions),
    "pings": Case("200 connections of pings", pings),
    "handshakes": Case("60 TLS handshakes at a time", nothing, tls=True),
}


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows of the table: the longest hold of each of some rounds."""
    rows = []
    for name, case in CASES.items():
        rounds = [busy(name, QUICK_SECONDS if quick else SECONDS) for _ in range(1 if quick else 3)]
        held = [held for held, _ in rounds]
        clock = [round(by_clock, 1) for _, by_clock in rounds]
        rows.append(limits.row(GROUP, f"the loop held: {case.test}", "ms", 20.0, held, max, by_clock=clock))
    return rows


def busy(name: str, seconds: float) -> tuple[float, float]:
    """One round in a process of its own: milliseconds held, and those by the clock."""
    program = [sys.executable, "-m", "bench.hubble_loop", "busy", name, str(seconds)]
    output = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    held, by_clock = json.loads(output.splitlines()[-1])  # After what the server logs.
    return held, by_clock


async def one_round(name: str, seconds: float) -> tuple[float, float]:
    """Serve the clients of a case, and watch the loop."""
    case = CASES[name]
    known = cluster()
    if case.labels:
        more = tuple(f"k8s:label-{n}={'x' * 50}" for n in range(case.labels // 64))
        known.identity_labels = {number: (*own, *more) for number, own in known.identity_labels.items()}
    store = FlowStore(traffic(1).dtype, known)
    fill(store, traffic(ROWS))
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = await stack.enter_async_context(serving(store, directory, tls=case.tls))
        tasks = await stack.enter_async_context(TaskGroup())
        if case.flood:
            node = stack.enter_context(rings.reporting_node())
            begin = stack.enter_context(reported(node, FLOOD))
            reader = node.kernel.reader(Strangers(store).take)
            stack.callback(reader.stop)
        program = [sys.executable, "-m", "bench.hubble_loop", "attack", name, address]
        clients = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
        stack.push_async_callback(clients.wait)
        stack.callback(clients.kill)
        assert clients.stdout is not None
        await clients.stdout.readline()
        if case.events:
            tasks.spawn("events", coming(store))
        startup.started()
        await asyncio.sleep(0.5)
        if case.flood:
            begin()
            await asyncio.sleep(0.2)
            reader.start()
        return await longest_hold(seconds)


FLOOD = 300_000
"""Events a second: more than a reader takes of strangers."""


class Strangers:
    """Puts flows of addresses never seen before in the place of what the ring gave."""

    def __init__(self, store: FlowStore) -> None:
        self._events = traffic(1 << 16)
        self._pump = FlowPump(store)
        self._next = 0

    def take(self, batch: Batch) -> None:
        """As `FlowPump.take`."""
        size = len(batch.events)
        events = self._events[:size].copy()
        events["time"] = batch.events["time"]
        events["source"]["lo"] = 0xFFFF_0B00_0000 + self._next + np.arange(size)
        events["source_identity"], events["source_endpoint"] = 2, 0
        self._next += size
        self._pump.take(msgspec.structs.replace(batch, events=events))


async def coming(store: FlowStore) -> None:
    """10,000 events a second."""
    events = traffic(ROWS)
    for number in count():
        first = number * 200 % (ROWS - 200)
        store.append([events[first : first + 200]], offset=10**18)
        await asyncio.sleep(0.02)


def fill(store: FlowStore, events: Events) -> None:
    """Store them in batches."""
    for start in range(0, len(events), BATCH):
        store.append([events[start : start + BATCH]], offset=10**18)


@asynccontextmanager
async def serving(store: FlowStore, directory: Path, *, tls: bool) -> AsyncIterator[str]:
    """A server as the agent's; where."""
    observer = Observer(store, NODE, ObserverSettings(version="bench"), SystemClock())
    reflection = Reflection([observer_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR])
    health = Health(["observer.Observer"])
    server = Server({**observer.methods(), **health.methods(), **reflection.methods()})
    try:
        if tls:
            authority = Authority()
            files = authority.write(directory / "server", authority.server())
            yield f"127.0.0.1:{await server.listen_tcp('127.0.0.1', 0, ServerTls(files))}"
        else:
            await server.listen_unix(directory / "hubble.sock")
            yield str(directory / "hubble.sock")
    finally:
        await server.close()


def attack(name: str, address: str) -> None:
    """Be the clients of a case until killed."""
    print("ready", flush=True)
    if name == "handshakes":
        attack_handshakes(address)
    elif name == "largest":
        attack_largest(Path(address))
    else:
        Attack(Path(address), CASES[name].ways()).run()


if __name__ == "__main__":
    if sys.argv[1] == "attack":
        attack(*sys.argv[2:])
    else:
        startup.switch_often()
        found = uvloop.run(one_round(sys.argv[2], float(sys.argv[3])))
        print(json.dumps([round(1e3 * each, 2) for each in found]))
