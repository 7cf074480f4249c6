"""What history costs, and how fast it answers.

    python -m bench --only hubble-history

Synthetic events of 64 pods, as in `hubble_store`. Sealing and reading count the CPU time of the process, all
threads together. The loop is held as long as a timer of one millisecond was late while blocks were sealed and
a client in another process read all of them, less what the thread of the loop waited for a core: its work and
its wait for other threads (`by_clock` has all of it). Frames count the CPU time of the client.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench import limits
from bench.hubble_store import cluster, traffic
from cilia.hubble.client import Client
from cilia.hubble.convert import NodeFacts
from cilia.hubble.frames.frame import fetch
from cilia.hubble.history.keeper import History
from cilia.hubble.history.settings import HistorySettings
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.rpc.server import Server
from cilia.hubble.store import FlowStore
from cilia.kit import startup
from cilia.kit.clock import SystemClock
from cilia.kit.tasks import TaskGroup
from cilia.proto.observer import observer_pb2

GROUP = "hubble-history"
NODE = NodeFacts(name="bench")
BLOCK = 16_384
PORTION = 1_024
"""Rows that are stored at once: more than the reader finds in the ring at 10,000 events a second."""
FRAME = 100_000


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows of the table."""
    startup.switch_often()
    rounds, blocks = (2, 8) if quick else (5, 32)
    sealed, read, size, held, clock, frames = [], [], [], [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            found = asyncio.run(one_round(Path(directory), blocks))
        sealed.append(found["seal"] * 10_000 * 100)
        read.append(found["read"] * 1e6)
        size.append(found["bytes"])
        held.append(found["held"] * 1e3)
        clock.append(round(found["by_clock"] * 1e3, 1))
        frames.append(found["frame"])
    middle: Callable[[Any], float] = lambda samples: sorted(samples)[len(samples) // 2]  # noqa: E731
    return [
        limits.row(GROUP, "sealing 10,000 flows/s", "% of a core", 5.0, sealed, middle),
        limits.row(GROUP, "reading and filtering a sealed flow", "us", 5.0, read, middle),
        limits.row(GROUP, "size of a flow on disk", "bytes", 64.0, size, middle),
        limits.row(GROUP, "event loop held while sealing and reading", "ms", 20.0, held, max, by_clock=clock),
        limits.row(GROUP, "100,000 flows of a server as columns", "s of CPU", 2.0, frames, middle),
    ]


async def one_round(directory: Path, blocks: int) -> dict[str, float]:
    """Seal so many blocks, read them, and fetch a frame."""
    events = traffic(BLOCK)
    store = FlowStore(events.dtype, cluster())
    clock = SystemClock()
    history = History(store, NODE.name, HistorySettings(directory=directory / "history", block=BLOCK), clock)
    await history.open()
    observer = Observer(store, NODE, ObserverSettings(version="bench"), clock)
    observer.past = history
    server = Server(observer.methods())
    path = directory / "hubble.sock"
    await server.listen_unix(path)
    async with TaskGroup() as tasks:
        history.start(tasks)

        async def fill() -> None:
            for number in range(blocks):
                for part in np.split(events, BLOCK // PORTION):
                    store.append([part], offset=time.time_ns() - int(part["time"][-1]))
                    await asyncio.sleep(0)
                while history.reach < (number + 1) * BLOCK:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)

        seal, *sealing = await watched(fill())
        numbers = history.numbers()
        target = f"unix://{path}"
        read, *reading = await watched(elsewhere("scan", target))
        taken = await elsewhere("frame", target)
        await history.close()
    await server.close()
    return {
        "seal": seal / (blocks * BLOCK),
        "read": read / numbers.rows,
        "bytes": numbers.bytes / numbers.rows,
        "held": max(sealing[0], reading[0]),
        "by_clock": max(sealing[1], reading[1]),
        "frame": taken,
    }


def scan(target: str) -> None:
    """Have a filter look at every flow there is, and match none."""
    request = observer_pb2.GetFlowsRequest()
    request.whitelist.add(source_pod=["nowhere/"])
    with Client(target) as client:
        assert not list(client.get_flows(request))


def frame(target: str) -> None:
    """The newest flows as columns."""
    with Client(target) as client:
        assert len(fetch(client, observer_pb2.GetFlowsRequest(number=FRAME))) == FRAME


async def elsewhere(what: str, target: str) -> float:
    """Run `scan` or `frame` in a process of its own; gives its seconds of CPU."""
    program = [sys.executable, "-m", "bench.hubble_history", what, target]
    client = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    output, _ = await client.communicate()
    return float(output)


async def watched(work: Awaitable[Any]) -> tuple[float, float, float]:
    """CPU seconds of some work, how long the loop was held at most, and how late it was by the clock."""
    held = by_clock = 0.0

    async def probe() -> None:
        nonlocal held, by_clock
        while True:
            begin, waited = time.perf_counter(), waited_for_core()
            await asyncio.sleep(0.001)
            late = time.perf_counter() - begin - 0.001
            by_clock = max(by_clock, late)
            held = max(held, late - (waited_for_core() - waited))

    begin = cpu()
    async with asyncio.TaskGroup() as group:
        probing = group.create_task(probe())
        with suppress(asyncio.CancelledError):
            await work
        probing.cancel()
    return cpu() - begin, held, by_clock


def waited_for_core() -> float:
    """Seconds for which this thread could have run and had no core."""
    return int(Path("/proc/thread-self/schedstat").read_bytes().split()[1]) / 1e9


def cpu() -> float:
    """Seconds of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    start = time.process_time()
    {"scan": scan, "frame": frame}[sys.argv[1]](sys.argv[2])
    print(time.process_time() - start)
