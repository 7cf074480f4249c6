"""The services engine alone: Services and slices in, frontends out; and Maglev tables. No kernel.

Ten thousand Services with fifty thousand backends, from scratch in a process of its own, then one slice that
changes; tables for a hundred backends, and how many flows they move when one of them goes. The baseline is
the limit. All times are of the CPU: the median, and the `best`, since a core that others keep busy is slower.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.limits import p99, row
from cilia.control.services.node import ServicesNode
from cilia.kit import startup
from cilia.model.maglev import table
from cilia.model.node import Node
from cilia.model.service import Protocol
from cilia.schema import Desired, EndpointSliceRow, Inputs, ServiceRow
from cilia.schema.rows import ServicePort, SliceEndpoint, SlicePort

GROUP = "services-engine"
SERVICES, BACKENDS = 10_000, 5
CHANGES = 1000
NODES = tuple(f"node-{number}" for number in range(50))
ZONES = ("zone-a", "zone-b", "zone-c")
PORT = ServicePort("http", 80, Protocol.TCP)
OFFERED = (SlicePort("http", 8080, Protocol.TCP),)
NODE_PORTS = 500
"""So many of the Services have one."""

MAGLEV_BACKENDS, MAGLEV_SIZE, SEED = 100, 16_381, 0x4B3F_91C7
ROUNDS = 45


def engine(quick: bool) -> list[dict[str, Any]]:
    """All rows."""
    return _cluster(quick) + _maglev(5 if quick else ROUNDS)


# Services.


def _cluster(quick: bool) -> list[dict[str, Any]]:
    runs = [_child(CHANGES // 10 if quick else CHANGES) for _ in range(1 if quick else 3)]
    of = {key: [value for each in runs for value in each[key]] for key in runs[0]}
    size = f"{SERVICES} services, {SERVICES * BACKENDS} backends"
    frontends = {"frontends": int(of["frontends"][0])}
    return [
        row(GROUP, f"{size}: from scratch", "s", 3.0, of["scratch"], statistics.median, **frontends),
        row(GROUP, f"{size}: peak memory", "MiB", 120.0, of["memory"], max),
        row(GROUP, f"{size}: one slice, p50", "ms", 0.3, of["slice"], statistics.median),
        row(GROUP, f"{size}: one slice, p99", "ms", 1.0, of["slice"], p99),
    ]


def _child(changes: int) -> dict[str, list[float]]:
    """What a process of its own measures."""
    command = [sys.executable, "-m", "bench.services_engine", str(changes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def _measure(changes: int) -> dict[str, list[float]]:
    inputs, desired = Inputs(), Desired()
    for number in range(SERVICES):
        inputs.services.put(_service(number))
        inputs.endpoint_slices.put(_slice(number))
    for each in inputs.tables():
        each.synced = True
    own = Node(name=NODES[0], addresses=("172.18.0.2",))
    services = ServicesNode(inputs, desired, node=NODES[0], own=own)
    gc.collect()
    start = time.process_time()
    services.step()
    scratch = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    startup.started()
    return {
        "scratch": [scratch],
        "memory": [peak],
        "frontends": [float(len(desired.service_entries))],
        "slice": list(_slices(inputs, services, changes)),
    }


def _slices(inputs: Inputs, services: ServicesNode, changes: int) -> Iterator[float]:
    """Milliseconds for one endpoint of some Service that gets ready, or is no longer."""
    rng = random.Random(7)
    for number in rng.sample(range(SERVICES), changes):
        inputs.endpoint_slices.put(_slice(number, ready=False))
        start = time.process_time()
        services.step()
        yield (time.process_time() - start) * 1e3


def _service(number: int) -> ServiceRow:
    node_port = 30_000 + number if number < NODE_PORTS else 0
    return ServiceRow(
        namespace=f"team-{number % 100}",
        name=f"app-{number}",
        created="2025-01-01T00:00:00Z",
        selector={"app": f"app-{number}"},
        type="NodePort" if node_port else "ClusterIP",
        cluster_ips=(f"10.96.{number >> 8}.{number & 255}",),
        ports=(ServicePort(PORT.name, PORT.port, PORT.protocol, node_port),),
    )


def _slice(number: int, *, ready: bool = True) -> EndpointSliceRow:
    endpoints = tuple(
        SliceEndpoint(
            addresses=(f"10.{100 + place}.{number >> 8}.{number & 255}",),
            ready=ready or place > 0,
            node=NODES[(number + place) % len(NODES)],
            zone=ZONES[(number + place) % len(ZONES)],
        )
        for place in range(BACKENDS)
    )
    return EndpointSliceRow(
        namespace=f"team-{number % 100}",
        name=f"app-{number}-abcde",
        service=f"app-{number}",
        addresses=tuple(address for endpoint in endpoints for address in endpoint.addresses),
        endpoints=endpoints,
        ports=OFFERED,
    )


# Maglev.


def _maglev(rounds: int) -> list[dict[str, Any]]:
    names = [f"10.244.{number}.{number % 7}:8080" for number in range(MAGLEV_BACKENDS)]
    times, moved, spread = [], [], []
    for gone in range(rounds):
        start = time.process_time()
        before = _table(names, gone)
        times.append((time.process_time() - start) * 1e3)
        rest = _table(names[:gone] + names[gone + 1 :], gone)
        after = np.where(rest >= gone, rest + 1, rest)
        moved.append(float(((before != after) & (before != gone)).mean() * 100))
        counts = np.bincount(before)
        spread.append(float((counts.max() / counts.mean() - 1) * 100))
    size = f"Maglev, {MAGLEV_BACKENDS} backends in {MAGLEV_SIZE} slots"
    return [
        row(GROUP, f"{size}: one table", "ms", 5.0, times, statistics.median),
        row(GROUP, f"{size}: moved without need as one goes", "%", 1.0, moved, max),
        row(GROUP, f"{size}: most above its share", "%", 1.0, spread, max),
    ]


def _table(names: list[str], turn: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return table(names, [1] * len(names), MAGLEV_SIZE, SEED + turn)


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
