"""What it costs to watch: all of Hubble at 10,000 events a second, and all of it at rest.

    python -m bench --only hubble-watching

Busy: another process has a pod's program fill the kernel's ring at that rate; the reader takes its records
as in an agent, and in place of each comes one of the usual traffic of 64 pods. The store and the metrics of
Cilium's guides are always on; a follower in another process, an exporter of whole flows and history come on
top, each alone and all at once. CPU is that of the process, its threads included. Then a timer of one
millisecond says how long the loop was held: where another process had the core, as much of it as this one
used (`by_clock` has all of it).

At rest: a real agent with twelve pods, with all parts on and with none of them, in seconds of CPU.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench import limits, rings
from bench.agent import cpu_seconds
from bench.hubble_export import neighbours
from bench.hubble_store import cluster, traffic
from bench.node import running
from bench.topologies import CiliaNode
from cilia.apps.agent.flows import FlowPump
from cilia.dataplane.ringbuf import Batch
from cilia.hubble.columns import Events
from cilia.hubble.convert import Converter, NodeFacts
from cilia.hubble.export.exporter import Exporter
from cilia.hubble.export.settings import ExportSettings
from cilia.hubble.history.keeper import History
from cilia.hubble.history.settings import HistorySettings
from cilia.hubble.metrics.options import parse
from cilia.hubble.metrics.processor import FlowMetrics
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.rpc.server import Server
from cilia.hubble.store import FlowStore
from cilia.kit import startup
from cilia.kit.clock import SystemClock
from cilia.kit.tasks import TaskGroup
from cilia.proto.observer import observer_pb2

GROUP = "hubble-watching"
RATE = 10_000
"""Events a second."""
PACE = 0.02
"""Seconds between two runs of the pod's program."""
METRICS = "dns drop tcp flow icmp port-distribution"
"""As Cilium's guides turn on."""
NODE = NodeFacts(name="bench/node", version="1")
EXTRAS: dict[str, tuple[str, ...]] = {
    "ring, store and metrics": (),
    "and one that follows": ("follow",),
    "and an exporter of whole flows": ("export",),
    "and history": ("history",),
    "and all of them": ("follow", "export", "history"),
}


class Found(NamedTuple):
    """What one round found out."""

    events: int
    used: float
    """Percent of a core."""
    held: float
    """Milliseconds."""
    by_clock: float


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows of the table."""
    rows = []
    for name, extras in EXTRAS.items():
        rounds = [busy(extras, 3.0 if quick else 10.0) for _ in range(1 if quick else 3)]
        used, held = [each.used for each in rounds], [each.held for each in rounds]
        test = f"10,000 events/s: {name}"
        more = {"events": rounds[-1].events, "by_clock": [round(each.by_clock, 1) for each in rounds]}
        rows.append(limits.row(GROUP, test, "% of a core", 5.0, used, statistics.median, **more))
        rows.append(limits.row(GROUP, f"the loop held: {name}", "ms", 20.0, held, max, **more))
    return [*rows, at_rest(quick)]


# -- busy ---------------------------------------------------------------------------------------------------


def busy(extras: tuple[str, ...], seconds: float) -> Found:
    """One round in a process of its own: pyarrow and what the last round remembered weigh on the next."""
    program = [sys.executable, "-m", "bench.hubble_watching", "busy", json.dumps([extras, seconds])]
    output = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    return Found(*json.loads(output))


def one_round(extras: tuple[str, ...], seconds: float) -> Found:
    """Watch a node that reports."""
    startup.switch_often()
    with rings.reporting_node() as node, reported(node) as begin:
        return asyncio.run(watch(node, begin, extras, seconds))


@contextmanager
def reported(node: CiliaNode, rate: int = RATE) -> Iterator[Callable[[], None]]:
    """Another process that has events reported, once told to."""
    processes = multiprocessing.get_context("fork")
    begin = processes.Event()

    def report() -> None:
        begin.wait()
        rings.keep_filling(node, rate, PACE)

    process = processes.Process(target=report)
    process.start()
    try:
        yield begin.set
    finally:
        process.terminate()
        process.join()


class Usual:
    """Puts usual traffic in the place of what the ring gave."""

    def __init__(self, store: FlowStore) -> None:
        self._events = usual_traffic()
        self._place = 0
        self._pump = FlowPump(store)

    def take(self, batch: Batch) -> None:
        """As `FlowPump.take`."""
        count = len(batch.events)
        if self._place + count > len(self._events):
            self._place = 0
        events = self._events[self._place : self._place + count]
        self._place += count
        events["time"] = batch.events["time"][: len(events)]
        self._pump.take(msgspec.structs.replace(batch, events=events))


def usual_traffic() -> Events:
    """A minute's worth of flows among 64 pods with four peers each."""
    return neighbours(traffic(1 << 17))


async def watch(node: CiliaNode, begin: Callable[[], None], extras: tuple[str, ...], seconds: float) -> Found:
    """Have everything read along; the CPU it takes, and how long the loop was held at most."""
    store = FlowStore(usual_traffic().dtype, cluster())
    reader = node.kernel.reader(Usual(store).take)
    with tempfile.TemporaryDirectory() as directory:
        async with watchers(store, Path(directory), extras):
            reader.start()
            begin()
            await asyncio.sleep(3.0)
            first, used, began = reader.received, time.process_time(), time.perf_counter()
            await asyncio.sleep(seconds)
            share = 100 * (time.process_time() - used) / (time.perf_counter() - began)
            events = reader.received - first
            held, by_clock = await longest_hold(seconds)
            reader.stop()
    assert not reader.lost, "the ring overflowed"
    return Found(events, share * RATE * seconds / events, 1e3 * held, 1e3 * by_clock)


@asynccontextmanager
async def watchers(store: FlowStore, directory: Path, extras: tuple[str, ...]) -> AsyncIterator[None]:
    """Metrics, a follower in another process, and what else is wanted."""
    clock = SystemClock()
    metrics = FlowMetrics(store, NODE, clock)
    metrics.configure(parse(METRICS))
    observer = Observer(store, NODE, ObserverSettings(version="1"), clock)
    server = Server(observer.methods())
    path = directory / "hubble.sock"
    await server.listen_unix(path)
    async with TaskGroup() as tasks:
        running = [tasks.spawn("count flows", metrics.run())]
        history = None
        if "history" in extras:
            history = History(store, NODE.name, HistorySettings(directory=directory / "history"), clock)
            await history.open()
            history.start(tasks)
        if "export" in extras:
            settings = ExportSettings(path=str(directory / "events.log"))
            exporter = Exporter(settings, store, NODE, Converter(store, NODE), clock)
            running.append(tasks.spawn("export flows", exporter.run()))
        follower = None
        if "follow" in extras:
            program = [sys.executable, "-m", "bench.hubble_watching", "follow", f"unix://{path}"]
            follower = await asyncio.create_subprocess_exec(*program)
        try:
            yield
        finally:
            if follower is not None:
                follower.terminate()
                await follower.wait()
            for task in running:
                task.cancel()
            if history is not None:
                await history.close()
    await server.close()


def follow(target: str) -> None:
    """Take what comes, unparsed."""
    from cilia.hubble.client import Client

    request = observer_pb2.GetFlowsRequest(follow=True).SerializeToString()
    with Client(target) as client:
        for _ in client.stream("/observer.Observer/GetFlows", request):
            pass


async def longest_hold(seconds: float) -> tuple[float, float]:
    """How long a timer was late at most: CPU seconds of this process meanwhile, and by the clock."""
    held = by_clock = 0.0
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        used = time.process_time()
        await asyncio.sleep(0.001)
        late = time.perf_counter() - began - 0.001
        held = max(held, min(late, time.process_time() - used))
        by_clock = max(by_clock, late)
    return held, by_clock


# -- at rest ------------------------------------------------------------------------------------------------


def at_rest(quick: bool) -> dict[str, Any]:
    """What all of Hubble adds to an agent that has nothing to do."""
    seconds = 10.0 if quick else 25.0
    with tempfile.TemporaryDirectory() as directory:
        flags = (
            "--hubble-metrics=" + METRICS.replace(" ", ","),
            "--hubble-metrics-server=127.0.0.1:9965",
            f"--hubble-export-file-path={directory}/events.log",
            f"--hubble-history-dir={directory}/history",
            "--hubble-drop-events",
        )
        idle = [asyncio.run(resting(flags, True, seconds))]
        without = [asyncio.run(resting((), False, seconds))]
    added = [max(0.0, on - off) for on, off in zip(idle, without, strict=True)]
    test = "an agent at rest, all of Hubble on, above one without"
    return limits.row(
        GROUP, test, "% of a core", 0.2, added, statistics.median, agent_with=idle, agent_without=without
    )


async def resting(flags: tuple[str, ...], events: bool, seconds: float) -> float:
    """Percent of a core that an agent with twelve pods uses."""
    async with running(12, flags=flags, events=events) as node:
        await asyncio.sleep(6.0)
        used, began = cpu_seconds(node.agent_pid), time.monotonic()
        await asyncio.sleep(seconds)
        return 100 * (cpu_seconds(node.agent_pid) - used) / (time.monotonic() - began)


if __name__ == "__main__":
    if sys.argv[1] == "follow":
        follow(sys.argv[2])
    elif sys.argv[1] == "busy":
        which, length = json.loads(sys.argv[2])
        print(json.dumps(one_round(tuple(which), length)))
    elif sys.argv[1] == "rest":
        print(at_rest(quick=True))
