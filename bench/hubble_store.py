"""How fast events become stored flows, and stored flows answers.

    python bench/hubble_store.py [--events N] [--json]

Batches of 4,096 synthetic events (64 pods, random ports, a few rules), as a reader takes them from the rings
every few milliseconds, go into the store; then one client on the same machine reads all flows of a full
store through GetFlows, over a unix socket. Medians of five rounds. "Converted" is one core turning rows into
messages; "served" counts the server's CPU time, while the client parses nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cilia.abi import layout
from cilia.hubble.client import Client
from cilia.hubble.columns import Events
from cilia.hubble.convert import Converter, NodeFacts
from cilia.hubble.directory import MemoryDirectory, Pod
from cilia.hubble.filters import FlowMatcher
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.predicates import Context
from cilia.hubble.rpc.server import Server
from cilia.hubble.store import FlowStore
from cilia.kit.clock import SystemClock
from cilia.model.ids import Cookie
from cilia.model.policy import CookieRow, RuleRef
from cilia.proto.flow import flow_pb2

ROUNDS = 5
BATCH = 4096
PODS = 64


def cluster() -> MemoryDirectory:
    """64 pods in four namespaces, eight rules."""
    known = MemoryDirectory()
    for number in range(PODS):
        namespace = f"team-{number % 4}"
        known.pods[f"10.0.1.{number + 1}"] = Pod(
            id=number + 1,
            identity=1000 + number,
            cluster="default",
            namespace=namespace,
            name=f"pod-{number}",
        )
        known.identity_labels[1000 + number] = (
            f"k8s:app=app-{number}",
            "k8s:io.cilium.k8s.policy.cluster=default",
            "k8s:io.cilium.k8s.policy.serviceaccount=default",
            f"k8s:io.kubernetes.pod.namespace={namespace}",
        )
    for number in range(1, 9):
        reference = RuleRef("CiliumNetworkPolicy", "team-0", f"policy-{number}", "1", "spec.ingress[0]")
        known.cookies[number] = CookieRow(Cookie(number), (reference,))
    return known


def traffic(count: int) -> Events:
    """Events as the data path would report connections among the pods."""
    random = np.random.default_rng(7)
    events = np.zeros(count, layout().dtype("event"))
    events["time"] = np.arange(count) * 10_000
    pod = np.zeros(count, np.int64)
    for side in ("source", "destination"):
        pod = random.integers(0, PODS, count)
        events[side]["lo"] = 0xFFFF_0A00_0101 + pod
        events[f"{side}_identity"] = 1000 + pod
        events[f"{side}_endpoint"] = pod + 1
    events["source_port"] = random.integers(32768, 60999, count)
    events["destination_port"] = random.choice([80, 443, 5432, 8080], count)
    events["protocol"] = 6
    events["tcp_flags"] = random.choice([2, 18, 16, 17], count)
    events["kind"] = random.choice([2, 2, 2, 3], count)
    events["point"] = 101
    events["verdict"] = 1
    events["state"] = 1
    events["direction"] = 1
    events["ingress_cookie"] = 1 + pod % 8
    events["ifindex"] = 2 + pod
    return events


def rate(work: Callable[[], int]) -> float:
    """Median of how many per second of CPU time."""
    rates = []
    for _ in range(ROUNDS):
        start = time.process_time()
        done = work()
        rates.append(done / (time.process_time() - start))
    return statistics.median(rates)


def measure_store(count: int) -> tuple[float, FlowStore]:
    """Events per second into a store, and the store."""
    events = traffic(count)
    store = FlowStore(events.dtype, cluster())

    def fill() -> int:
        for start in range(0, count, BATCH):
            store.append([events[start : start + BATCH]], offset=10**18)
        return count

    return rate(fill), store


def measure_filter(store: FlowStore) -> float:
    """Rows per second through a filter on pod, port and verdict."""
    node = NodeFacts(name="bench")
    context = Context(store, node)
    matcher = FlowMatcher(
        context,
        [flow_pb2.FlowFilter(source_pod=["team-1/"], destination_port=["80"], verdict=[flow_pb2.FORWARDED])],
    )

    def scan() -> int:
        for rows in store.spans(0, store.head):
            matcher.mask(rows)
        return len(store)

    return rate(scan)


def measure_convert(store: FlowStore) -> float:
    """Rows per second into messages."""
    converter = Converter(store, NodeFacts(name="bench"))

    def convert() -> int:
        for start in range(store.oldest, store.head, 512):
            converter.responses(store.take(np.arange(start, start + 512)))
        return len(store)

    return rate(convert)


async def measure_served(store: FlowStore, directory: Path) -> tuple[float, float]:
    """Flows per second to one client of GetFlows: by its clock, and per second of the server's CPU."""
    path = directory / "hubble.sock"
    observer = Observer(store, NodeFacts(name="bench"), ObserverSettings(version="bench"), SystemClock())
    server = Server(observer.methods())
    await server.listen_unix(path)
    walls, cores = [], []
    try:
        for _ in range(ROUNDS):
            used = time.thread_time()
            client = await asyncio.create_subprocess_exec(
                sys.executable, __file__, "--read", f"unix://{path}", stdout=asyncio.subprocess.PIPE
            )
            output, _ = await client.communicate()
            count, seconds = output.split()
            walls.append(int(count) / float(seconds))
            cores.append(int(count) / (time.thread_time() - used))
    finally:
        await server.close()
    return statistics.median(walls), statistics.median(cores)


def read_all(target: str) -> None:
    """Read all flows without parsing them; print how many in how many seconds."""
    with Client(target) as client:
        start = time.perf_counter()
        count = sum(1 for _ in client.stream("/observer.Observer/GetFlows", b""))
        print(count, time.perf_counter() - start)


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1 << 20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", metavar="TARGET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_all(options.read)
        return
    stored, store = measure_store(options.events)
    filtered, converted = measure_filter(store), measure_convert(store)
    with tempfile.TemporaryDirectory() as directory:
        wall, core = asyncio.run(measure_served(store, Path(directory)))
    results = {
        "store_events_per_second": stored,
        "filter_rows_per_second": filtered,
        "convert_flows_per_second": converted,
        "served_flows_per_second": wall,
        "served_flows_per_core_second": core,
    }
    if options.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name.replace('_', ' '):34} {value:14,.0f}")


if __name__ == "__main__":
    main()
