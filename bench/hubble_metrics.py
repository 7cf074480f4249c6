"""What metrics cost, and how fast a full page of them is told.

Flows come at 10,000 a second among 64 pods that have four peers each, with random ports of clients and four
of servers, and all eight metrics that have records count them by pod on both sides. Then somebody scans all
ports, from each pod to each, which fills every budget. Measured is the CPU time of the thread, in percent of
a core; the longest step, which is how long others wait; and the time to write a page with all series.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import numpy as np

from bench import limits
from bench.hubble_store import PODS, cluster, traffic
from cilia.hubble.columns import Events
from cilia.hubble.convert import NodeFacts
from cilia.hubble.cursor import Cursor
from cilia.hubble.metrics.options import parse
from cilia.hubble.metrics.processor import FlowMetrics
from cilia.hubble.store import FlowStore
from cilia.kit.clock import SystemClock

RATE = 10_000
"""Flows a second."""
NAMES = ("flow", "drop", "tcp", "icmp", "port-distribution", "policy", "flows-to-world:any-drop;port", "dns")
BY_POD = "sourceContext=pod|reserved-identity;destinationContext=pod|reserved-identity"
TEXT = " ".join(f"{name}{';' if ':' in name else ':'}{BY_POD}" for name in NAMES)

GROUP = "hubble-metrics"


def usual(events: Events) -> Events:
    """The same traffic, each pod with four peers."""
    changed = events.copy()
    peer = np.random.default_rng(4).integers(1, 5, len(events))
    pod = (events["source_endpoint"] - 1 + peer) % PODS
    changed["destination"]["lo"] = 0xFFFF_0A00_0101 + pod
    changed["destination_identity"], changed["destination_endpoint"] = 1000 + pod, pod + 1
    return changed


def scan(events: Events) -> Events:
    """The same traffic from each pod to each, to any port."""
    changed = events.copy()
    changed["destination_port"] = np.random.default_rng(5).integers(1, 65_535, len(events))
    return changed


class Counting:
    """A store and the metrics that follow it."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.store = FlowStore(events.dtype, cluster())
        self.metrics = FlowMetrics(self.store, NodeFacts(name="bench"), SystemClock())
        self.metrics.configure(parse(TEXT))
        self.cursor = Cursor(self.store)

    def second(self) -> tuple[float, float]:
        """CPU seconds of a second's flows, and the longest step."""
        first = np.random.default_rng().integers(0, len(self._events) - RATE)
        self.store.append([self._events[first : first + RATE]], offset=10**18)
        return asyncio.run(self._count())

    async def _count(self) -> tuple[float, float]:
        longest, last = 0.0, time.perf_counter()
        stop = asyncio.Event()

        async def probe() -> None:
            nonlocal longest, last
            while not stop.is_set():
                last = time.perf_counter()
                await asyncio.sleep(0)
                longest = max(longest, time.perf_counter() - last)

        began = time.thread_time()
        probing = asyncio.ensure_future(probe())
        await self.metrics.catch_up(self.cursor)
        stop.set()
        await probing
        return time.thread_time() - began, longest

    def page(self) -> tuple[float, int]:
        """Seconds to write all series, and their number."""
        began = time.perf_counter()
        size = sum(piece.count(b"\n") for piece in self.metrics.text())
        return time.perf_counter() - began, size


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows of the table."""
    seconds = 5 if quick else 30
    events = traffic(1 << 17)
    rows = []
    for name, most, what in (("pods", 1.0, usual(events)), ("all ports scanned", 10.0, scan(events))):
        counting = Counting(what)
        counting.second()
        used, longest = zip(*(counting.second() for _ in range(seconds)), strict=True)
        rows.append(
            limits.row(
                GROUP, f"eight metrics at 10,000 flows/s, {name}", "% of a core", most,
                [100 * cpu for cpu in used], statistics.median,
            )
        )  # fmt: skip
        steps = [1000 * step for step in longest]
        rows.append(limits.row(GROUP, f"longest step, {name}", "ms", 20.0, steps, limits.p99))
    pages = [counting.page() for _ in range(3 if quick else 10)]
    rows.append(
        limits.row(
            GROUP, "a page of metrics", "ms", 500.0, [1000 * took for took, _ in pages], statistics.median,
            lines=pages[0][1],
        )
    )  # fmt: skip
    return rows
