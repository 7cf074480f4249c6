"""Ten thousand Services with fifty thousand endpoints in a running agent: the cold start, then changes.

The API server, the operator and the agent are processes of their own (`bench.node`). What the agent has done
is read from the kernel's map `services`, where a frontend gets another revision with each change.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from bench import services
from bench.agent import cpu_seconds, resident
from bench.limits import p99, row
from bench.node import BenchError, Node, running
from cilia import abi
from cilia.cluster import store as cluster
from cilia.dataplane import bpf, loader
from cilia.dataplane.maps import packing
from cilia.model.service import Protocol

GROUP = "services-load"
NAMESPACE = "bench"
SERVICES = 10_000
AT_ONCE = 32
"""Requests on their way to the API server."""
CHANGES = 200
RATE, RATE_SECONDS = 1_000, 10
AT_A_TIME = 2
"""Endpoints that one written slice changes at full rate. Controllers of clusters gather changes, too, and one
embedded API server beside the agent on two CPUs takes hardly 1,000 writes a second."""
SEEN_EVERY = 25
"""Of so many slices at full rate one is followed into the kernel."""
PATIENCE = 60.0


def measure(quick: bool) -> list[dict[str, Any]]:
    """All rows."""
    return asyncio.run(_measure(SERVICES // 10 if quick else SERVICES, quick))


async def _measure(count: int, quick: bool) -> list[dict[str, Any]]:
    async with _loaded(count) as (node, addresses):
        starts, used, memory, peaks = [], [], [], []
        for _ in range(1 if quick else 3):
            await node.kill_agent()
            loader.remove(Path(node.node.bpf_prefix))
            start = time.perf_counter()
            ready = await node.start_agent()
            frontends = Frontends(Path(node.node.bpf_prefix))
            while frontends.count() < count:
                if time.perf_counter() - start > PATIENCE:
                    raise BenchError(f"only {frontends.count()} of {count} frontends reached the kernel")
                await asyncio.sleep(0.05)
            starts.append(time.perf_counter() - start)
            used.append(round(cpu_seconds(node.agent_pid), 2))
            await asyncio.sleep(2.0)
            memory.append(resident(node.agent_pid, "VmRSS"))
            peaks.append(resident(node.agent_pid, "VmHWM"))
        changes = Changes(node, frontends, addresses)
        single = [await changes.one() for _ in range(CHANGES // 10 if quick else CHANGES)]
        flood = await changes.flood(RATE_SECONDS if not quick else 3)
    size = f"{count:,} services, {count * services.BACKENDS:,} endpoints"
    return [
        row(
            GROUP,
            f"{size}: cold start",
            "s",
            10.0,
            starts,
            statistics.median,
            ready=round(ready, 2),
            cpu=used,
        ),
        row(GROUP, f"{size}: memory (VmRSS)", "MiB", 250.0, memory, max),
        row(GROUP, f"{size}: most memory (VmHWM)", "MiB", 250.0, peaks, max),
        row(GROUP, "one endpoint into the kernel, p50", "ms", 20.0, single, statistics.median),
        row(GROUP, "one endpoint into the kernel, p99", "ms", 100.0, single, p99),
        *flood,
    ]


class Frontends:
    """The kernel's map of services, as the agent has pinned it."""

    def __init__(self, prefix: Path) -> None:
        layout = abi.layout()
        spec = layout.maps["services"]
        descriptor = bpf.get(loader.root_of(prefix) / "maps" / "services")
        if descriptor is None:
            raise BenchError(f"no map services is pinned below {prefix}")
        self._map = bpf.Map(descriptor, layout.dtype(spec.key), layout.dtype(spec.value), "services")

    def count(self) -> int:
        """Frontends in force."""
        return sum(len(keys) for keys, _ in self._map.batches())

    def revision(self, address: str) -> int:
        """Of a frontend; 0: it is not there."""
        key = self._map.keys(1)
        key["address"] = packing.addresses([address], key.dtype["address"])
        key["port"], key["protocol"] = services.PORT, int(Protocol.TCP)
        found = self._map.lookup(key)
        return 0 if found is None else int(found["revision"].item())

    def await_change(self, address: str, former: int) -> float:
        """When another revision was seen (perf_counter). Raises BenchError."""
        deadline = time.perf_counter() + PATIENCE
        while self.revision(address) == former:
            if time.perf_counter() > deadline:
                raise BenchError(f"the frontend {address} did not change")
            time.sleep(0.0005)
        return time.perf_counter()


class Changes:
    """Endpoints that get ready, or are no longer, one per Service in turn."""

    def __init__(self, node: Node, frontends: Frontends, addresses: Sequence[str]) -> None:
        self._node = node
        self._frontends = frontends
        self._addresses = addresses
        self._turn = itertools.count()
        self._answered = 0.0
        """When the API server answered last."""

    async def one(self) -> float:
        """Milliseconds from the API server's answer until the kernel has it; negative if it was faster."""
        await asyncio.sleep(0.02)
        answered, seen = await self._followed(next(self._turn), 1)
        return (seen - answered) * 1e3

    async def flood(self, seconds: int) -> list[dict[str, Any]]:
        """As many changes as are wanted a second, each written at its time, or as the API server takes: rows.

        What is reached counts from the first time to the last answer. A writer that is late writes at once,
        so what was held up is made up for as long as the API server keeps up at all.
        """
        limit = asyncio.Semaphore(AT_ONCE)
        watched: list[asyncio.Task[tuple[float, float]]] = []
        writes = RATE // AT_A_TIME
        total = writes * seconds
        before, start = cpu_seconds(self._node.agent_pid), time.perf_counter()
        self._answered = start
        async with asyncio.TaskGroup() as tasks:
            for sent in range(total):
                pause = start + sent / writes - time.perf_counter()
                if pause > 0:
                    await asyncio.sleep(pause)
                await limit.acquire()
                turn = next(self._turn)
                work = self._followed if sent % SEEN_EVERY == 0 else self._change
                task = tasks.create_task(_then(work(turn, AT_A_TIME), limit.release))
                if sent % SEEN_EVERY == 0:
                    watched.append(task)
        taken = max(self._answered - start, seconds)
        used = cpu_seconds(self._node.agent_pid) - before
        lags = [(seen - answered) * 1e3 for answered, seen in (task.result() for task in watched)]
        reached, cpu = total * AT_A_TIME / taken, used / total * 1e3
        late = lags[len(lags) // 2 :]
        name = f"{reached:.0f} endpoint changes a second"
        return [
            row(GROUP, f"{total * AT_A_TIME:,} endpoint changes written", "s", seconds, [taken], max),
            row(GROUP, f"{name}: the agent's CPU for a slice", "ms", 1e3 / RATE, [cpu], max),
            row(GROUP, f"{name}: into the kernel, p50", "ms", 100.0, lags, statistics.median),
            row(GROUP, f"{name}: worst of the second half", "ms", 1000.0, late, max),
        ]

    async def _followed(self, turn: int, changed: int) -> tuple[float, float]:
        address = self._addresses[turn % len(self._addresses)]
        former = self._frontends.revision(address)
        watching = asyncio.get_running_loop().run_in_executor(
            None, self._frontends.await_change, address, former
        )
        answered = await self._change(turn, changed)
        return answered, await watching

    async def _change(self, turn: int, changed: int) -> float:
        """Write one slice with so many endpoints changed; when the API server had answered."""
        number, round_ = turn % len(self._addresses), turn // len(self._addresses)
        body = cluster.encode(cluster.ENDPOINT_SLICES, _slice(number, changed if round_ % 2 == 0 else 0))
        await self._node.store.replace(
            cluster.ENDPOINT_SLICES, f"app-{number}-abcde", body, namespace=NAMESPACE
        )
        self._answered = time.perf_counter()
        return self._answered


@asynccontextmanager
async def _loaded(count: int) -> AsyncIterator[tuple[Node, list[str]]]:
    """A node whose cluster has so many Services, and their addresses."""
    async with running() as node:
        limit = asyncio.Semaphore(AT_ONCE)

        async def create(number: int) -> str:
            async with limit:
                body = cluster.encode(cluster.SERVICES, _service(number))
                made = await node.store.create(cluster.SERVICES, body, namespace=NAMESPACE)
                body = cluster.encode(cluster.ENDPOINT_SLICES, _slice(number))
                await node.store.create(cluster.ENDPOINT_SLICES, body, namespace=NAMESPACE)
            return str(msgspec.json.decode(made)["spec"]["clusterIP"])

        await node.kill_agent()
        addresses = await asyncio.gather(*map(create, range(count)))
        await node.start_agent()
        yield node, addresses


def _service(number: int) -> dict[str, Any]:
    port = {"name": "http", "port": services.PORT, "targetPort": 8080, "protocol": "TCP"}
    return {"metadata": {"name": f"app-{number}"}, "spec": {"ports": [port]}}


def _slice(number: int, away: int = 0) -> dict[str, Any]:
    """`away`: so many of its endpoints are not ready."""
    endpoints = [
        {"addresses": [address], "conditions": {"ready": place >= away, "serving": place >= away}}
        for place, address in enumerate(services.backends(number))
    ]
    return {
        "metadata": {
            "name": f"app-{number}-abcde",
            "labels": {"kubernetes.io/service-name": f"app-{number}"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


async def _then(work: Coroutine[Any, Any, Any], done: Callable[[], None]) -> Any:
    try:
        return await work
    finally:
        done()
