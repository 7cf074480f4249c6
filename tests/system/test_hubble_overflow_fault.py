"""The event ring overflows at five million events a second: what was made is what was stored and what was
lost, to the last event, and followers are told the same sums in a few notes.

Two seconds always, a minute with CILIA_LONG=1 in the environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from cilia.apps.agent.flows import FlowPump
from cilia.dataplane import libbpf
from cilia.dataplane.loader import Dataplane
from cilia.dataplane.maps import counters
from cilia.dataplane.maps.nodes import Settings
from cilia.dataplane.ringbuf import Batch, RingReader
from cilia.hubble.client import Client
from cilia.hubble.convert import NodeFacts
from cilia.hubble.directory import MemoryDirectory
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.rpc.server import Server
from cilia.hubble.store import FlowStore, LossSource
from cilia.kit.clock import SystemClock
from cilia.model.node import NodeSettings
from tests.support.dataplane import dataplane, loaded_once, needs_kernel
from tests.support.machine import resident

__all__ = ["dataplane", "loaded_once"]
pytestmark = [*needs_kernel, pytest.mark.timeout(300)]

SECONDS = 60 if os.environ.get("CILIA_LONG") == "1" else 2
RATE = 5_000_000
"""Events a second, of all processors together."""
TRACES, DROPS = 25_000, 10
"""Made in turns."""
PRIORITY, NORMAL = 0, 1
KERNEL, SLOW = LossSource.PERF_EVENT_RING_BUFFER, LossSource.HUBBLE_RING_BUFFER
INTERVAL = 1.0
"""Seconds between two notes about one source."""
MEMORY = 8 << 20
"""Bytes by which the agent may grow in the second half, when the store is full."""

WRITE = """
import json, os, sys, time
from cilia.dataplane import bpf

cpu, traces, drops, seconds, rate, many, few = map(int, sys.argv[1:])
os.sched_setaffinity(0, {cpu})
made = 0
start = time.monotonic()
while (past := time.monotonic() - start) < seconds:
    if made > past * rate:
        time.sleep(0.0005)
        continue
    bpf.test_run(traces, bytes(64), repeat=many)
    bpf.test_run(drops, bytes(64), repeat=few)
    made += many + few
past = time.monotonic() - start
for _ in range(5):
    # What was lost at the end shows by what comes after it.
    time.sleep(0.2)
    bpf.test_run(traces, bytes(64))
    bpf.test_run(drops, bytes(64))
print(json.dumps({"made": made + 10, "seconds": past}))
"""
FOLLOW = """
import json, sys, threading, time
from collections import Counter
import grpc
from google.protobuf import json_format
from cilia.proto.observer import observer_pb2

lost, notes, flows = Counter(), Counter(), 0

def tell():
    while True:
        print(json.dumps({"flows": flows, "lost": lost, "notes": notes}), flush=True)
        time.sleep(0.2)

threading.Thread(target=tell, daemon=True).start()
request = json_format.Parse(sys.argv[2], observer_pb2.GetFlowsRequest())
with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.unary_stream("/observer.Observer/GetFlows")
    for message in call(request.SerializeToString()):
        if message[:1] == b"\\n":
            flows += 1
            continue
        told = observer_pb2.GetFlowsResponse.FromString(message).lost_events
        lost[told.source] += told.num_events_lost
        notes[told.source] += 1
"""


@pytest.fixture(scope="module")
def flood(loaded_once: Dataplane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Programs that report to the rings of the loaded data path."""
    clang = os.environ.get("CLANG", "clang")
    if shutil.which(clang) is None:
        pytest.skip("needs clang, which also builds the data path")
    made = tmp_path_factory.mktemp("flood") / "flood.o"
    source = Path(__file__).with_name("event_flood.bpf.c")
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    options = ["-target", "bpf", "-O2", "-g", "-mcpu=v3", "-idirafter", include]
    subprocess.run([clang, *options, "-c", str(source), "-o", str(made)], check=True)
    with libbpf.BpfObject(made) as opened:
        for name, handle in opened.maps():
            if name in loaded_once.maps:
                opened.reuse(handle, loaded_once.maps[name].fd)
        loaded = opened.load()
    try:
        yield loaded.programs
    finally:
        for descriptor in (*loaded.programs.values(), *loaded.maps.values()):
            os.close(descriptor)


class Agent:
    """What of an agent takes part: reader, store, server, and a loop that tells how long it was held."""

    def __init__(self, dataplane: Dataplane, path: Path) -> None:
        self.path = path
        self.store = FlowStore(dataplane.layout.dtype("event"), MemoryDirectory())
        self._pump = FlowPump(self.store)
        self.received: Counter[tuple[int, int]] = Counter()
        """By processor and ring."""
        self.lost: Counter[tuple[int, int]] = Counter()
        self.late: list[float] = []
        """Seconds by which a beat was late."""
        self.held: list[float] = []
        """Seconds of CPU that the loop used between two beats."""
        self.memory: list[int] = []
        """Bytes, once a second."""
        self.seconds = 0.0
        """From the first beat to the last."""
        rings = [dataplane.maps[name] for name in ("events_priority", "events")]
        settings = Settings(dataplane.maps["node"], dataplane.layout)
        settings.write(NodeSettings(drop_rate=0))
        taken = partial(counters.events_taken, dataplane.maps["event_state"])
        self.reader = RingReader(rings, settings, dataplane.layout, self._take, taken)
        observed = ObserverSettings(version="test", lost_events_interval=INTERVAL)
        observer = Observer(self.store, NodeFacts(name="default/node"), observed, SystemClock())
        self._server = Server(dict(observer.methods()))

    def _take(self, batch: Batch) -> None:
        places = batch.events["cpu"].astype(np.int64) * 2 + batch.events["ring"]
        for place, count in enumerate(np.bincount(places).tolist()):
            self.received[place // 2, place % 2] += count
        for gap in batch.lost:
            self.lost[gap.cpu, gap.ring] += gap.count
        self._pump.take(batch)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read and serve."""
        await self._server.listen_unix(self.path)
        self.reader.start()
        beating = asyncio.ensure_future(self._beat())
        try:
            yield
        finally:
            beating.cancel()
            self.reader.stop()
            await self._server.close()

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        start = clock()
        while True:
            before, used = clock(), time.thread_time()
            await asyncio.sleep(0.005)
            now = clock()
            self.late.append(now - before - 0.005)
            self.held.append(time.thread_time() - used)
            self.seconds = now - start
            if len(self.memory) < self.seconds:
                self.memory.append(resident())

    def status(self) -> int:
        """Flows seen, as a client is told now."""
        with Client(f"unix://{self.path}") as client:
            return client.server_status().seen_flows


class Follower:
    """A client in a process of its own, and what it last said it had got."""

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        command = [sys.executable, "-c", FOLLOW, f"unix:{path}", json.dumps(request)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.flows = 0
        self.lost: dict[LossSource, int] = {}
        self.notes: dict[LossSource, int] = {}
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._rest = b""

    def hear(self) -> None:
        """Take what it has said."""
        assert self.process.stdout is not None
        with suppress(BlockingIOError):
            self._rest += os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._rest = self._rest.split(b"\n")
        if lines:
            told = json.loads(lines[-1])
            self.flows = told["flows"]
            for name in ("lost", "notes"):
                setattr(self, name, {LossSource(int(key)): count for key, count in told[name].items()})

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def spread(seconds: list[float]) -> str:
    """Median, 99 % and worst, in milliseconds."""
    ordered = sorted(seconds)
    return (
        " / ".join(f"{1000 * ordered[len(ordered) * share // 1000]:.1f}" for share in (500, 990, 999)) + " ms"
    )


def begun(dataplane: Dataplane) -> Counter[tuple[int, int]]:
    """Events that were ever begun, by processor and ring."""
    rings = counters.events_taken(dataplane.maps["event_state"])
    return Counter({(cpu, ring): count for ring, cpus in enumerate(rings) for cpu, count in cpus.items()})


async def write(programs: dict[str, int]) -> list[dict[str, float]]:
    """Have every processor make its share of events; what each made."""
    cpus = sorted(os.sched_getaffinity(0))
    descriptors = programs["flood_traces"], programs["flood_drops"]
    writers = []
    for cpu in cpus:
        numbers = cpu, *descriptors, SECONDS, RATE // len(cpus), TRACES, DROPS
        writers.append(
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", WRITE, *map(str, numbers), stdout=subprocess.PIPE, pass_fds=descriptors
            )
        )
    outputs = await asyncio.gather(*(writer.communicate() for writer in writers))
    return [json.loads(output) for output, _ in outputs]


async def until(holds: Callable[[], object], what: str) -> None:
    """Wait for something to come true. Raises TimeoutError."""
    for _ in range(1200):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"waited in vain for {what}")


def accounted(agent: Agent, followers: list[Follower]) -> bool:
    """Whether the followers have got, or were told of, all there is."""
    for follower in followers:
        follower.hear()
    everyone, drops = followers
    known = everyone.flows + everyone.lost.get(SLOW, 0)
    told = all(follower.lost.get(KERNEL, 0) >= agent.reader.lost for follower in followers)
    return told and known >= agent.store.head and drops.flows >= dropped(agent)


def dropped(agent: Agent) -> int:
    return sum(count for (_, ring), count in agent.received.items() if ring == PRIORITY)


async def overflow(
    dataplane: Dataplane, programs: dict[str, int], path: Path
) -> tuple[Agent, list[Follower], list[dict[str, float]]]:
    """The whole story; the followers have ended."""
    agent = Agent(dataplane, path)
    followers: list[Follower] = []
    async with agent.running():
        try:
            for request in ({"follow": True}, {"follow": True, "whitelist": [{"verdict": ["DROPPED"]}]}):
                followers.append(Follower(path, request))
            await until(lambda: len(agent.store.listeners) == len(followers), "the followers to follow")
            agent.late.clear()
            agent.held.clear()
            writing = asyncio.ensure_future(write(programs))
            await until(lambda: agent.store.head, "the first event")
            assert await asyncio.to_thread(agent.status) > 0, "an answer in the midst of it"
            made = await writing
            with suppress(TimeoutError):
                await until(lambda: accounted(agent, followers), "the followers to account for everything")
        finally:
            for follower in followers:
                follower.close()
    return agent, followers, made


def test_a_ring_that_overflows_is_accounted_for_to_the_last_event(
    dataplane: Dataplane, flood: dict[str, int], tmp_path: Path
) -> None:
    before = begun(dataplane)
    agent, (everyone, drops), made = uvloop.run(overflow(dataplane, flood, tmp_path / "hubble.sock"))
    produced = begun(dataplane) - before
    print(
        f"\n{sum(produced.values()):,} events in {max(each['seconds'] for each in made):.1f} s, "
        f"{agent.store.head:,} stored, {agent.reader.lost:,} lost; one follower got {everyone.flows:,} flows "
        f"and {sum(everyone.notes.values())} notes, the other {drops.flows:,} of {dropped(agent):,} drops "
        f"and {sum(drops.notes.values())} notes; "
        f"loop late by {spread(agent.late)}, held by work for {spread(agent.held)}; "
        f"memory {[each >> 20 for each in agent.memory]} MiB"
    )

    assert sum(each["made"] for each in made) == sum(produced.values()), "an event was not begun"
    assert agent.received + agent.lost == produced, (
        "by processor and ring: stored and lost are not what was made"
    )
    assert agent.reader.lost > 0, "the ring did not overflow"
    assert agent.store.head == agent.reader.received == sum(agent.received.values())
    assert agent.store.metrics.lost[KERNEL] == agent.reader.lost == sum(agent.lost.values())

    assert not any(count for (_, ring), count in agent.lost.items() if ring == PRIORITY), "a drop was lost"
    # Who is slow even for drops is told of at least as many as it missed.
    assert drops.flows + drops.lost.get(SLOW, 0) >= dropped(agent)
    assert drops.flows == dropped(agent) or drops.notes[SLOW]
    assert drops.lost[KERNEL] == agent.reader.lost

    assert everyone.flows + everyone.lost.get(SLOW, 0) == agent.store.head
    assert everyone.lost[KERNEL] == agent.reader.lost
    intervals = agent.seconds / INTERVAL + 1
    assert all(count <= intervals for count in (*everyone.notes.values(), *drops.notes.values()))

    assert agent.memory[-1] - agent.memory[len(agent.memory) // 2] < MEMORY, "the agent's memory grows"
