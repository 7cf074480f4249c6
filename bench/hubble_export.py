"""What writing flows to files costs, and how fast it goes.

Flows come at 10,000 a second among 64 pods that have four peers each, with random ports of clients and four
of servers, and go whole into a file, or as counts of pairs of pods. Measured is the CPU time of the process,
its threads included, above that of the same seconds without an exporter, in percent of a core; the longest
step, which is how long others wait; and the lines per second of CPU when nothing else is to be done: once of
that traffic, once of strangers who never come twice.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import limits
from bench.hubble_metrics import usual
from bench.hubble_store import cluster, traffic
from cilia.hubble.columns import Events
from cilia.hubble.convert import Converter, NodeFacts
from cilia.hubble.export.exporter import Exporter
from cilia.hubble.export.lines import LineMaker
from cilia.hubble.export.settings import ExportSettings
from cilia.hubble.store import FlowStore
from cilia.kit.clock import SystemClock

RATE = 10_000
"""Flows a second."""
PIECES = 50
"""In which they come."""
PAIRS = ("source.pod_name", "source.namespace", "destination.pod_name", "destination.namespace", "verdict")
NODE = NodeFacts(name="bench/node")
GROUP = "hubble-export"
STEP = 512


def neighbours(events: Events) -> Events:
    """Each pod has four peers."""
    changed = usual(events)
    pod = changed["destination_endpoint"] - 1
    changed["time"] += np.random.default_rng(6).integers(1, 1000, len(changed)).astype(np.uint64)
    changed["ingress_cookie"], changed["ifindex"] = 1 + pod % 8, 2 + pod
    return changed


def strangers(events: Events) -> Events:
    """Each flow comes from another address outside."""
    changed = neighbours(events)
    changed["source"]["lo"] = 0xFFFF_C612_0000 + np.arange(len(events))
    changed["source_identity"], changed["source_endpoint"] = 2, 0
    return changed


class Exporting:
    """A store and an exporter that follows it."""

    def __init__(self, events: Events, path: Path, settings: dict[str, Any]) -> None:
        self._events = events
        self._store = FlowStore(events.dtype, cluster())
        self._exporter = Exporter(
            ExportSettings(path=str(path), **settings),
            self._store,
            NODE,
            Converter(self._store, NODE),
            SystemClock(),
        )

    async def seconds(self, count: int) -> list[float]:
        """Export so many seconds' flows: CPU seconds above a second's without an exporter."""
        without = statistics.median([await self._second(number) for number in range(3)])
        running = asyncio.ensure_future(self._exporter.run())
        await self._second(3)
        found = [await self._second(number) - without for number in range(4, count + 4)]
        await self._end(running)
        return found

    async def steps(self) -> list[float]:
        """CPU seconds between two turns of others, while a second's flows that came at once are exported."""
        running = asyncio.ensure_future(self._exporter.run())
        await asyncio.sleep(0)
        self._store.append([self._events[:RATE]], offset=10**18)
        found = []
        while self._exporter.status().waiting:
            before = time.thread_time()
            await asyncio.sleep(0)
            found.append(time.thread_time() - before)
        await self._end(running)
        return found

    async def _end(self, running: asyncio.Future[None]) -> None:
        running.cancel()
        await asyncio.wait({running})
        await self._exporter.finish()

    async def _second(self, number: int) -> float:
        """CPU seconds of a second in which flows come."""
        began = time.process_time()
        first = number * RATE % (len(self._events) - RATE)
        for piece in range(PIECES):
            start = first + piece * RATE // PIECES
            self._store.append([self._events[start : start + RATE // PIECES]], offset=10**18)
            await asyncio.sleep(1 / PIECES)
        return time.process_time() - began


def lines_per_second(events: Events) -> float:
    """Of CPU, with all that there is to learn."""
    store = FlowStore(events.dtype, cluster(), capacity=len(events))
    store.append([events], offset=10**18)
    maker = LineMaker(store, NODE, Converter(store, NODE))
    began = time.thread_time()
    for start in range(0, store.head, STEP):
        for rows in store.spans(start, start + STEP):
            maker.block(rows)
    return len(events) / (time.thread_time() - began)


def run(work: Callable[[Path], Awaitable[Any]]) -> Any:
    """Do something with a directory that is gone afterwards."""

    async def inside() -> Any:
        with tempfile.TemporaryDirectory() as directory:
            return await work(Path(directory))

    return asyncio.run(inside())


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows of the table."""
    seconds, rounds = (3, 3) if quick else (20, 7)
    events = traffic(1 << 17)
    near = neighbours(events)
    rows = []
    for name, settings in (
        ("whole", {}),
        ("counts of pairs of pods", {"aggregate": PAIRS, "interval": 1.0}),
    ):

        async def export(directory: Path, settings: Any = settings) -> list[float]:
            return await Exporting(near, directory / "events.log", settings).seconds(seconds)

        async def step(directory: Path, settings: Any = settings) -> list[float]:
            return await Exporting(near, directory / "events.log", settings).steps()

        used = [100 * cpu for cpu in run(export)]
        rows.append(limits.row(GROUP, f"10,000 flows/s, {name}", "% of a core", 5.0, used, statistics.median))
        longest = [1000 * max(run(step)) for _ in range(rounds)]
        rows.append(limits.row(GROUP, f"longest step, {name}", "ms", 20.0, longest, statistics.median))
    for name, what, least in (
        ("pods that know each other", near, 200_000),
        ("strangers who never come twice", strangers(events), 10_000),
    ):
        spent = [1e6 / lines_per_second(what[: 1 << 16]) for _ in range(rounds)]
        row = limits.row(GROUP, f"a line, {name}", "µs of CPU", 1e6 / least, spent, statistics.median)
        rows.append({**row, "lines_per_second": round(1e6 / statistics.median(spent))})
    return rows


if __name__ == "__main__":
    for row in measure(quick=True):
        print(row["test"], row["measured"], "limit", row["baseline"], row.get("lines_per_second", ""))
