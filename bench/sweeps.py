"""How long one round of collection holds the event loop, with a million flows.

The maps are real ones of the kernel, filled as the programs fill them, and pinned nowhere: flows of 200 pods,
a quarter of them expired, half as many of services, and translations of half of them, both ways. A step is
what runs between two chances for others to run; all are timed, in a process of its own.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bench.limits import row
from cilia import abi
from cilia.dataplane.bpf import Array, Map, MapType, create_map
from cilia.dataplane.maps.conntrack import Conntrack
from cilia.dataplane.maps.nodes import Settings
from cilia.dataplane.maps.services import Services
from cilia.dataplane.sweeps import Sweeps

FLOWS = 1_000_000
STALL = 50.0
"""Milliseconds the event loop may be held."""
CHUNK = 1 << 16
NOW = 1000
PODS, PEERS, NODE = 0xFFFF_0A00_0000, 0xFFFF_C000_0200, 0xFFFF_AC00_0001
"""v4-mapped 10.0.0.0, 192.0.2.0 and 172.0.0.1."""
TCP, HTTPS = 6, 443
MAPS = {
    "conntrack": FLOWS,
    "service_flows": FLOWS,
    "snat": FLOWS,
    "ct_quota": 65536,
    "node": 1,
    "services": 1024,
    "frontends": 131072,
    "backends": 1024,
    "slots": 1024,
    "affinity": 1024,
    "source_ranges": 1024,
    "skip_redirect": 1024,
}


def stalls(quick: bool) -> list[dict[str, Any]]:
    """The longest step of each round."""
    flows = FLOWS // 10 if quick else FLOWS
    command = [sys.executable, "-m", "bench.sweeps", str(flows), "2" if quick else "5"]
    rounds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    longest = [found["longest"] for found in rounds]
    extra = {
        "flows": flows,
        "steps": rounds[-1]["steps"],
        "p99": statistics.median(found["p99"] for found in rounds),
        "cpu_seconds": statistics.median(found["cpu"] for found in rounds),
    }
    return [row("sweeps", f"longest step, {flows:,} flows", "ms", STALL, longest, statistics.median, **extra)]


def measure(flows: int, rounds: int) -> list[dict[str, float]]:
    """Longest step and 99th percentile (ms), steps and seconds of CPU of each round."""
    with _maps() as maps:
        layout = abi.layout()
        conntrack = Conntrack(maps["conntrack"], maps["ct_quota"], layout)
        sweeps = Sweeps(maps, layout, conntrack, Services(maps, layout), Settings(maps["node"], layout))
        found = []
        for _ in range(rounds):
            _fill(maps, flows)
            gc.collect()
            found.append(_round(sweeps))
        return found


def _round(sweeps: Sweeps) -> dict[str, float]:
    steps: list[float] = []
    cpu = time.process_time()
    before = time.perf_counter()
    for _ in sweeps.collect(lambda: float(NOW)):
        steps.append(time.perf_counter() - before)
        before = time.perf_counter()
    steps.append(time.perf_counter() - before)
    return {
        "longest": max(steps) * 1e3,
        "p99": sorted(steps)[len(steps) * 99 // 100] * 1e3,
        "steps": len(steps),
        "cpu": time.process_time() - cpu,
    }


def _fill(maps: dict[str, Map], flows: int) -> None:
    """Put in what an earlier round removed, too. A thousand elements of each map stay free."""
    room = min(flows, FLOWS - 1000)
    for at in range(0, room, CHUNK):
        numbers = np.arange(at, min(at + CHUNK, room))
        _put(maps["conntrack"], numbers, _flows)
        _put(maps["service_flows"], numbers[numbers < room // 2], _service_flows)
        _put(maps["snat"], numbers, _translations)


def _put(target: Map, numbers: Array, fill: Any) -> None:
    keys, values = target.keys(len(numbers)), target.values(len(numbers))
    fill(keys, values, numbers)
    if failures := target.put(keys, values):
        raise next(iter(failures.values()))


def _tuples(keys: Array, numbers: Array) -> None:
    keys["low"]["lo"], keys["high"]["lo"] = PODS + (numbers >> 8), PEERS + (numbers & 255)
    keys["low_port"], keys["high_port"] = numbers & 0xFFFF, HTTPS
    keys["protocol"] = TCP


def _flows(keys: Array, values: Array, numbers: Array) -> None:
    _tuples(keys, numbers)
    values["expires"] = np.where(numbers % 4, 10 * NOW, 1)
    values["owner"] = numbers % 200
    values["service"] = numbers % 1000


def _service_flows(keys: Array, values: Array, numbers: Array) -> None:
    _tuples(keys, numbers)
    keys["zone"] = 1
    values["expires"] = np.where(numbers % 4, 10 * NOW, 1)


def _translations(keys: Array, values: Array, numbers: Array) -> None:
    """Both ways of half as many flows."""
    flow, back = numbers // 2, numbers % 2 == 1
    pod, peer = PODS + (flow >> 8), PEERS + (flow & 255)
    keys["source"]["lo"] = np.where(back, peer, pod)
    keys["destination"]["lo"] = np.where(back, NODE + (flow >> 16), peer)
    keys["source_port"] = np.where(back, HTTPS, flow & 0xFFFF)
    keys["destination_port"] = np.where(back, flow & 0xFFFF, HTTPS)
    keys["protocol"], keys["way"] = TCP, np.where(back, 2, 1)
    values["address"]["lo"] = np.where(back, pod, NODE + (flow >> 16))
    values["port"] = flow & 0xFFFF
    values["seen"] = 1


@contextmanager
def _maps() -> Iterator[dict[str, Map]]:
    layout = abi.layout()
    maps: dict[str, Map] = {}
    try:
        for name, size in MAPS.items():
            spec = layout.maps[name]
            key, value = layout.dtype(spec.key), layout.dtype(spec.value)
            maps[name] = create_map(MapType(spec.type), key, value, size, flags=spec.flags, name=name)
        yield maps
    finally:
        for made in maps.values():
            made.close()


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
