"""How many flows a relay merges, and what a thousand peers cost it.

    python -m bench.hubble_relay [--flows N] [--json]

Ten nodes in a process of their own serve flows made beforehand, interleaved in time; one client in another
process reads the merged stream and parses nothing. Counted is the CPU time of the relay alone, and beside it
the time on the clock, in which the three share the machine. Medians of five rounds.

The thousand nodes are reached by TLS, in a process that has measured nothing else: what the merge leaves
behind would hide what they take. While they connect, all at once, a beat of a millisecond tells how long the
relay's event loop is held. Then they go at once, and come and go some more: the last number is what stays in
memory of each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import uvloop

from bench import limits
from cilia.apps.relay.running import Relay, RelayOptions, relaying
from cilia.hubble.client import Client
from cilia.hubble.health import Health
from cilia.hubble.peer import Peer
from cilia.hubble.rpc.limits import ServerLimits
from cilia.hubble.rpc.server import Server, Sink
from cilia.kit import certificates, startup
from cilia.kit import log as logs
from cilia.kit.clock import SystemClock
from cilia.kit.tls import ClientTls, ServerTls, TlsFiles, server_name
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.relay.access import AccessSettings
from cilia.relay.answer import AnswerSettings
from cilia.relay.pool import PoolSettings
from cilia.relay.tidy import give_back

PEERS = 10
FLOWS = 20_000
ROUNDS = 5
REACH = 100_000
"""Flows a second of one core."""
MANY = 1000
COMINGS = 4
"""Times that all of them come and go; the first leaves what any later one finds."""
PEER_KIB = 256
"""What a connected peer may cost the relay."""
LEFT_KIB = 1.0
"""What may stay in memory of one that is gone."""
HOLD = 20.0
"""Milliseconds: what may hold the event loop at a time."""
SERVER_NAME = server_name("worker-1", "default")
START = 1_795_408_000_000_000_000
SEND = 512


def flow(node: int, number: int) -> bytes:
    """A flow as an agent sends it: some 700 bytes, of them two endpoints with their labels."""
    moment = START + number * 10_000_000 + node * 1_000_003
    response = observer_pb2.GetFlowsResponse(node_name=f"default/worker-{node}")
    response.time.FromNanoseconds(moment)
    told = response.flow
    told.time.FromNanoseconds(moment)
    told.uuid = f"01234567-89ab-cdef-8000-{node:04x}{number:08x}"
    told.verdict = flow_pb2.FORWARDED
    told.node_name = response.node_name
    told.IP.source, told.IP.destination, told.IP.ipVersion = "10.0.1.7", "10.0.2.9", flow_pb2.IPv4
    told.l4.TCP.source_port, told.l4.TCP.destination_port = 32768 + number % 28000, 8080
    told.l4.TCP.flags.SYN = True
    for side, name in ((told.source, "client"), (told.destination, "server")):
        side.ID, side.identity, side.namespace = 101, 4321, "shop"
        side.cluster_name, side.pod_name = "default", f"{name}-7d9c5b4f6-x2x{node}"
        side.labels.extend(
            [
                f"k8s:app={name}",
                "k8s:io.cilium.k8s.policy.cluster=default",
                "k8s:io.cilium.k8s.policy.serviceaccount=default",
                "k8s:io.kubernetes.pod.namespace=shop",
            ]
        )
        side.workloads.add(name=name, kind="Deployment")
    told.event_type.type, told.event_type.sub_type = 4, 101
    told.traffic_direction = flow_pb2.EGRESS
    told.is_reply.value = False
    told.Summary = "TCP Flags: SYN"
    return response.SerializeToString()


class Nodes:
    """Nodes of one process, each on a unix socket."""

    def __init__(self, directory: Path, count: int, flows: int) -> None:
        self._directory = directory
        self._count = count
        self._flows = flows
        self._servers: list[Server] = []

    async def run(self) -> None:
        """Serve until the process ends."""
        for node in range(self._count):
            server = self._server(node)
            await server.listen_unix(self._directory / f"{node}.sock")
        (self._directory / "ready").touch()
        await asyncio.Event().wait()

    async def run_behind_tls(self) -> None:
        """Serve one node that stands for all until the process ends; its port is in a file."""
        port = await self._server(0).listen_tcp("127.0.0.1", 0, ServerTls(files(self._directory)))
        (self._directory / "ready.new").write_text(str(port))
        (self._directory / "ready.new").rename(self._directory / "ready")
        await asyncio.Event().wait()

    def _server(self, node: int) -> Server:
        methods = {**self._methods(node), **Health(["observer.Observer"]).methods()}
        self._servers.append(Server(methods, ServerLimits(connections=2 * MANY, handshakes=2 * MANY)))
        return self._servers[-1]

    def _methods(self, node: int) -> dict[str, Any]:
        flows = [flow(node, number) for number in range(self._flows)]

        async def get_flows(_data: bytes, sink: Sink) -> None:
            for start in range(0, len(flows), SEND):
                await sink.send(flows[start : start + SEND])

        async def status(_data: bytes, sink: Sink) -> None:
            await sink.send([observer_pb2.ServerStatusResponse(num_flows=len(flows)).SerializeToString()])

        service = "/observer.Observer/"
        return {f"{service}GetFlows": get_flows, f"{service}ServerStatus": status}


def serve_nodes(directory: Path, count: int, flows: int) -> None:
    """A process of nodes."""
    logs.configure("error", "text")
    uvloop.run(Nodes(directory, count, flows).run())


def serve_behind_tls(directory: Path, flows: int) -> None:
    """A process that is as many nodes as connect."""
    logs.configure("error", "text")
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    uvloop.run(Nodes(directory, 1, flows).run_behind_tls())


def files(directory: Path) -> TlsFiles:
    """Certificate, key and authority, for both sides."""
    return TlsFiles(directory / "tls.crt", directory / "tls.key", directory / "ca.crt")


def make_files(directory: Path) -> TlsFiles:
    """The same, made."""
    now = SystemClock().wall()
    authority = certificates.make_authority("Bench CA", now=now, days=1)
    issued = certificates.issue(authority, SERVER_NAME, now=now, days=1)
    made = files(directory)
    contents = issued.certificate, issued.key, authority.certificate
    for path, content in zip(made.paths(), contents, strict=True):
        path.write_bytes(content)
    return made


@contextlib.contextmanager
def beside(work: Callable[..., None], directory: Path, *arguments: int) -> Iterator[str]:
    """Work in a process of its own while the block runs; what its ready file says."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=work, args=(directory, *arguments), daemon=True)
    process.start()
    try:
        while not (directory / "ready").exists():
            if not process.is_alive():
                raise RuntimeError("the nodes' process died: its output says why")
            time.sleep(0.05)
        yield (directory / "ready").read_text()
    finally:
        process.terminate()
        process.join()


@contextlib.asynccontextmanager
async def relay(directory: Path, peers: list[Peer], tls: ClientTls | None = None) -> AsyncIterator[str]:
    """A relay in this process; its target once all peers are connected."""
    target = f"unix://{directory / 'relay.sock'}"
    with socket.create_server(("127.0.0.1", 0)) as door:
        metrics = f"127.0.0.1:{door.getsockname()[1]}"
    async with relaying(options(target, peers, tls, metrics)):
        await asyncio.to_thread(wait_for, metrics, len(peers))
        yield target


def options(listen: str, peers: list[Peer], tls: ClientTls | None, metrics: str) -> RelayOptions:
    """A relay with the settings it has by default."""
    return RelayOptions(
        cluster_name="default",
        listen_address=listen,
        health_listen_address="",
        metrics_listen_address=metrics,
        peers=peers,
        peer_service="",
        peer_service_tls_server_name="",
        client_tls=tls,
        server_tls=None,
        pool=PoolSettings(),
        answer=AnswerSettings(),
        reviews=None,
        access=AccessSettings(),
    )


def wait_for(metrics: str, count: int) -> None:
    """Wait until a relay is connected to so many nodes; its metrics cost it least."""
    ready = f'hubble_relay_pool_peer_connection_status{{status="READY"}} {count}.0\n'.encode()
    while True:
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=60) as answer:
            if ready in answer.read():
                return
        time.sleep(0.2)


async def merged(flows: int, rounds: int) -> list[tuple[float, float]]:
    """Flows merged per second of the relay's CPU time, and of the clock's, round by round."""
    rates = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with beside(serve_nodes, directory, PEERS, flows):
            peers = [
                Peer(f"default/worker-{node}", f"unix://{directory / str(node)}.sock")
                for node in range(PEERS)
            ]
            async with relay(directory, peers) as target:
                for _ in range(rounds):
                    used = time.process_time()
                    client = await asyncio.create_subprocess_exec(
                        sys.executable, "-m", "bench.hubble_relay", "--read", target,
                        stdout=asyncio.subprocess.PIPE,
                    )  # fmt: skip
                    output, _ = await client.communicate()
                    used = time.process_time() - used
                    count, seconds = output.split()
                    if int(count) != PEERS * flows:
                        raise RuntimeError(f"{int(count)} of {PEERS * flows} flows arrived")
                    rates.append((PEERS * flows / used, PEERS * flows / float(seconds)))
    return rates


def read_all(target: str) -> None:
    """Read all answers without parsing them; print how many flows there were, and in how many seconds."""
    with Client(target) as client:
        start = time.perf_counter()
        count = sum(answer[:1] == b"\n" for answer in client.stream("/observer.Observer/GetFlows", b""))
        print(count, time.perf_counter() - start)


def resident_kib() -> int:
    """Memory of this process."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


class Beat:
    """How long an event loop is held, while the block runs."""

    async def __aenter__(self) -> Self:
        self.used: list[float] = []
        """Milliseconds of CPU between two beats."""
        self.late: list[float] = []
        """Milliseconds a beat came late."""
        self._beating = asyncio.ensure_future(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._beating.cancel()

    async def _beat(self) -> None:
        while True:
            used, start = time.thread_time(), time.perf_counter()
            await asyncio.sleep(0.001)
            self.used.append((time.thread_time() - used) * 1000)
            self.late.append((time.perf_counter() - start - 0.001) * 1000)


async def peers_cost(count: int) -> dict[str, float]:
    """KiB per peer connected by TLS, and per peer of an answer that its client does not read; what the loop
    was held while they all connected."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    startup.started()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tls = ClientTls(make_files(directory))
        with beside(serve_behind_tls, directory, 200) as port:
            peers = [
                Peer(f"default/worker-{node}", f"127.0.0.1:{port}", SERVER_NAME) for node in range(count)
            ]
            async with relay(directory, peers[:10], tls):
                pass
            before = resident_kib()
            start = time.perf_counter()
            async with Beat() as beat, relay(directory, peers, tls) as target:
                seconds, idle = time.perf_counter() - start, resident_kib()
                held, late = max(beat.used), max(beat.late)
                async with Beat() as asking:
                    client = await asyncio.to_thread(Client, target)
                    try:
                        await asyncio.to_thread(next, client.stream("/observer.Observer/GetFlows", b""))
                        await asyncio.sleep(3)
                        asked = resident_kib()
                    finally:
                        client.close()
            held_leaving, left = await leaving(options("", [], tls, ""), peers)
    return {
        "connected_kib": (idle - before) / count,
        "unread_kib": (asked - idle) / count,
        "seconds": seconds,
        "held_ms": held,
        "late_ms": late,
        "asking_held_ms": max(asking.used),
        "leaving_held_ms": held_leaving,
        "left_kib": left / count,
    }


async def leaving(chosen: RelayOptions, peers: list[Peer]) -> tuple[float, float]:
    """Milliseconds the loop is held while all peers go at once, and KiB that each round leaves behind."""
    relay = Relay(chosen)
    changed = asyncio.Event()
    relay.pool.listeners.add(changed.set)
    held, resident = [], []
    for _ in range(COMINGS):
        relay.pool.set_peers(peers)
        while not all(link.channel for link in relay.pool.links()):
            changed.clear()
            await changed.wait()
        async with Beat() as beat:
            relay.pool.set_peers([])
            await asyncio.sleep(1)
        held.append(max(beat.used))
        gc.collect()
        give_back()
        resident.append(resident_kib())
    await relay.pool.close()
    relay.tally.close()
    relay.tidy.close()
    return max(held), (resident[-1] - resident[0]) / (COMINGS - 1)


def peers_cost_apart(count: int) -> dict[str, float]:
    """The same, of a process that has done nothing else."""
    command = [sys.executable, "-m", "bench.hubble_relay", "--cost", str(count)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows for `python -m bench`: times and memory as their limits."""
    rates = uvloop.run(merged(FLOWS // 4 if quick else FLOWS, 3 if quick else ROUNDS))
    cost = peers_cost_apart(MANY // 10 if quick else MANY)
    used, clock = ([1e6 / rate for rate in column] for column in zip(*rates, strict=True))
    rows = [
        (f"{PEERS} peers merged, per flow", "µs CPU", 1e6 / REACH, used),
        (f"{PEERS} peers merged, per flow", "µs by the clock", 1e6 / REACH, clock),
        ("connected peer", "KiB", PEER_KIB, [cost["connected_kib"]]),
        ("peer of an unread answer", "KiB", PEER_KIB, [cost["unread_kib"]]),
        ("loop held while all peers connect", "ms CPU", HOLD, [cost["held_ms"]]),
        ("loop held while all peers are asked", "ms CPU", HOLD, [cost["asking_held_ms"]]),
        ("loop held while all peers go", "ms CPU", HOLD, [cost["leaving_held_ms"]]),
        ("left by a peer that came and went", "KiB", LEFT_KIB, [cost["left_kib"]]),
    ]
    return [limits.row("hubble-relay", *row, statistics.median) for row in rows]


def main() -> None:
    """Print the numbers, as text or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows", type=int, default=FLOWS)
    parser.add_argument("--peers", type=int, default=MANY)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", metavar="TARGET", help=argparse.SUPPRESS)
    parser.add_argument("--cost", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    logs.configure("error", "text")
    if given.read:
        read_all(given.read)
        return
    if given.cost:
        print(json.dumps(uvloop.run(peers_cost(given.cost))))
        return
    rates = uvloop.run(merged(given.flows, ROUNDS))
    used, clock = zip(*rates, strict=True)
    results = {
        "merged_flows_per_core_second": statistics.median(used),
        "merged_flows_per_second": statistics.median(clock),
        **(peers_cost_apart(given.peers) if given.peers else {}),
    }
    if given.json:
        print(json.dumps(results))
        return
    for key, value in results.items():
        print(f"{key.replace('_', ' '):34} {value:14,.1f}")


if __name__ == "__main__":
    main()
