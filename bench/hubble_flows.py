"""GetFlows and what feeds it, against the limits of the design.

Costs are CPU time of the thread that does the work, so other load on the machine changes them little; how
long an answer takes and how long the loop is held are by the clock. Traffic is that of `hubble_store`: 64
pods, ports of clients at random, a quarter of it policy verdicts.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from h2.settings import SettingCodes

from bench import hubble_loop, limits, rings
from bench.hubble_store import BATCH, cluster, traffic
from cilia.apps.agent.flows import FlowPump
from cilia.hubble.convert import NodeFacts
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.rpc.server import Server
from cilia.hubble.store import FlowStore
from cilia.kit.clock import SystemClock
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2

GROUP = "hubble-flows"
MILLION = 1 << 20
RATE = 10_000
"""Events a second on a node that is well used."""

BUSY_BATCHES = 50
"""A second of a reader that drains every 20 ms."""

CEL = "_flow.verdict == Verdict.FORWARDED && _flow.source.namespace == 'team-1' && _flow.l4.TCP.flags.SYN"


def measure(quick: bool) -> list[dict[str, Any]]:
    """All rows of the group."""
    rounds = 3 if quick else 7
    rows = [_stored(rounds), *_busy(rounds), _memory(), *asyncio.run(_served(rounds))]
    if not quick:
        rows.append(_idle())
    return [*rows, *hubble_loop.measure(quick)]


def _row(test: str, unit: str, limit: float, samples: Sequence[float], **extra: Any) -> dict[str, Any]:
    return limits.row(GROUP, test, unit, limit, samples, statistics.median, **extra)


def _store(count: int, capacity: int = 1 << 16) -> FlowStore:
    events = traffic(count)
    store = FlowStore(events.dtype, cluster(), capacity=capacity)
    for start in range(0, count, BATCH):
        store.append([events[start : start + BATCH]], offset=10**18)
    return store


def _stored(rounds: int) -> dict[str, Any]:
    """Events a reader hands over in batches of 4,096."""
    events = traffic(1 << 18)
    store = FlowStore(events.dtype, cluster())

    def fill() -> None:
        for start in range(0, len(events), BATCH):
            store.append([events[start : start + BATCH]], offset=10**18)

    fill()
    samples = [1e9 * _cost(fill) / len(events) for _ in range(rounds)]
    return _row("an event into the store", "ns", 500.0, samples)


def _cost(work: Callable[[], object]) -> float:
    """Seconds of CPU time."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def _busy(rounds: int) -> list[dict[str, Any]]:
    """A second of 10,000 events: real ones, that programs put into the kernel's ring, drained every 20 ms."""
    events = traffic(RATE)
    store = FlowStore(events.dtype, cluster())
    each = RATE // BUSY_BATCHES

    def second() -> None:
        for start in range(0, RATE, each):
            store.append([events[start : start + each]], offset=10**18)

    second()
    stored = [100 * _cost(second) for _ in range(rounds)]
    drained = []
    with rings.reporting_node() as node:
        reader = node.kernel.reader(FlowPump(node.store).take)
        rings.fill(node)
        reader.drain()
        for _ in range(rounds):
            rings.fill(node)
            before, spent = reader.received, _cost(reader.drain)
            drained.append(100 * RATE * spent / (reader.received - before))
    return [
        _row("10,000 events a second, stored every 20 ms", "% of a core", 5.0, stored),
        _row("10,000 events a second, out of a full ring", "% of a core", 5.0, drained),
    ]


def _memory() -> dict[str, Any]:
    """What a full store adds to a process, names of 64 pods and all."""
    output = subprocess.run(
        [sys.executable, "-m", "bench.hubble_flows", "memory"], capture_output=True, text=True, check=True
    )
    return _row("65,536 flows in memory", "MiB", 32.0, [float(output.stdout)])


def _resident() -> float:
    """MiB of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def fill_and_weigh() -> None:
    """Print how many MiB a full store takes, drops and audits beyond the ring included."""
    events = traffic(BATCH)
    warm = FlowStore(events.dtype, cluster(), capacity=BATCH)
    warm.append([events], offset=10**18)
    gc.collect()
    before = _resident()
    store = FlowStore(events.dtype, cluster())
    for number in range(64):
        events["time"] += np.uint64(BATCH * 10_000)
        events["source_port"] += np.uint16(number)
        store.append([events], offset=10**18)
    gc.collect()
    print(_resident() - before)


class Loop:
    """How long the event loop was held, by somebody who wants to run every millisecond."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Loop:
        self._task = asyncio.get_running_loop().create_task(self._watch())
        await asyncio.sleep(0.01)
        self.longest = 0.0
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - start - 0.001)


async def _served(rounds: int) -> list[dict[str, Any]]:
    """One client that reads as fast as it can, in another process; then questions over a million flows."""
    usual, large = _store(1 << 16), _store(MILLION, MILLION)
    one_percent = flow_pb2.FlowFilter(
        source_pod=["team-1/pod-1"], destination_pod=["team-2/"], source_port=["32768-45000"]
    )
    questions = {
        "1 % of a million flows": [one_percent],
        "1 % of a million flows, by CEL": [
            flow_pb2.FlowFilter(source_port=["32768-34000"], experimental={"cel_expression": [CEL]})  # type: ignore[arg-type]
        ],
    }
    walls, counted, cores, held = [], [], [], []
    for _ in range(rounds):
        _, seconds = await _ask(usual, observer_pb2.GetFlowsRequest(), "count")
        counted.append(1e6 * seconds / len(usual))
        used = time.thread_time()
        async with Loop() as loop:
            count, seconds = await _ask(usual, observer_pb2.GetFlowsRequest())
        walls.append(1e6 * seconds / count)
        cores.append(1e6 * (time.thread_time() - used) / count)
        held.append(1e3 * loop.longest)
    rows = [
        _row("a flow to a client that reads as fast as it can", "us of the server", 10.0, cores),
        _row("the same, until it has it", "us by the clock", 10.0, walls),
        _row("the same, until one has it who only counts bytes", "us by the clock", 10.0, counted),
        _row("the loop held by it at most", "ms", 20.0, held),
    ]
    for test, filters in questions.items():
        times, cores, held = [], [], []
        for _ in range(rounds):
            used = time.thread_time()
            async with Loop() as loop:
                count, seconds = await _ask(large, observer_pb2.GetFlowsRequest(whitelist=filters))
            times.append(1e3 * seconds)
            cores.append(1e3 * (time.thread_time() - used))
            held.append(1e3 * loop.longest)
        limit = 10_000.0 if "CEL" in test else 100.0
        rows.append(_row(test, "ms by the clock", limit, times, flows=count))
        rows.append(_row(test, "ms of the server", limit, cores))
        rows.append(_row(f"{test}: the loop held", "ms", 20.0, held))
    return rows


async def _ask(
    store: FlowStore, request: observer_pb2.GetFlowsRequest, how: str = "read"
) -> tuple[int, float]:
    """Flows (or bytes: `how` is then "count") a client in another process got, and in how many seconds."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "hubble.sock"
        observer = Observer(store, NodeFacts(name="bench"), ObserverSettings(version="bench"), SystemClock())
        server = Server(observer.methods())
        await server.listen_unix(path)
        try:
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bench.hubble_flows", how, f"unix://{path}",
                request.SerializeToString().hex(), stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            output, _ = await client.communicate()
        finally:
            await server.close()
    count, seconds = json.loads(output)
    return count, seconds


def read(target: str, request: bytes) -> None:
    """Take an answer without parsing it; print how many flows, and in how many seconds."""
    from cilia.hubble.client import Client

    with Client(target) as client:
        start = time.perf_counter()
        count = sum(1 for _ in client.stream("/observer.Observer/GetFlows", request))
        print(json.dumps([count, time.perf_counter() - start]))


def count(target: str, request: bytes) -> None:
    """Take an answer off the socket and look at no more than frames' heads; print how many bytes, and in how
    many seconds."""
    from tests.support.hubble_raw import GET_FLOWS, Raw

    with Raw(Path(target.removeprefix("unix://"))) as raw:
        most = (1 << 31) - 1
        raw.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: most, SettingCodes.MAX_FRAME_SIZE: 1 << 18})
        raw.h2.increment_flow_control_window(most - 65_535)
        start = time.perf_counter()
        raw.ask(GET_FLOWS, request)
        taken, ended, walk = 0, False, FrameWalk()
        while not ended:
            data = raw.socket.recv(1 << 20)
            taken += len(data)
            ended = walk.ends_in(data)
        print(json.dumps([taken, time.perf_counter() - start]))


class FrameWalk:
    """Finds the end of an answer by the heads of its frames (RFC 9113, 4.1)."""

    HEAD, HEADERS, END_STREAM = 9, 1, 1

    def __init__(self) -> None:
        self._skip = 0
        self._rest = b""

    def ends_in(self, data: bytes) -> bool:
        """Whether the trailers begin in what comes next."""
        data, at = self._rest + data, self._skip
        while at + self.HEAD <= len(data):
            if data[at + 3] == self.HEADERS and data[at + 4] & self.END_STREAM:
                return True
            at += self.HEAD + int.from_bytes(data[at : at + 3])
        self._skip, self._rest = max(0, at - len(data)), data[at:]
        return False


def _idle() -> dict[str, Any]:
    """A reader of rings nobody writes to, and a follower of a store nothing comes to; in a process that has
    nothing to give back of what was measured before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        share = fresh.submit(_at_rest).result()
    return _row("nothing happens, one client follows", "% of a core", 0.2, [share])


def _at_rest() -> float:
    """Percent of a core."""
    return asyncio.run(_rest())


async def _rest() -> float:
    with rings.reporting_node() as node:
        reader = node.kernel.reader(FlowPump(node.store).take)
        observer = Observer(node.store, NodeFacts(name="bench"), ObserverSettings(version="1"), SystemClock())
        reader.start()

        class Nobody:
            async def send(self, messages: Sequence[bytes]) -> None:
                """Takes everything."""

            async def send_block(self, block: bytes) -> None:
                """Takes everything."""

        request = observer_pb2.GetFlowsRequest(follow=True).SerializeToString()
        call = asyncio.get_running_loop().create_task(observer.get_flows(request, Nobody()))
        await asyncio.sleep(1)
        start, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(10)
        share = 100 * (time.process_time() - used) / (time.perf_counter() - start)
        call.cancel()
        reader.stop()
    return share


if __name__ == "__main__":
    if sys.argv[1] == "read":
        read(sys.argv[2], bytes.fromhex(sys.argv[3]))
    elif sys.argv[1] == "count":
        count(sys.argv[2], bytes.fromhex(sys.argv[3]))
    elif sys.argv[1] == "memory":
        fill_and_weigh()
