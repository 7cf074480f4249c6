"""How many flows a relay merges, and what a thousand peers cost it.

    python -m bench.hubble_relay [--flows N] [--json]

Ten nodes in a process of their own serve flows made beforehand, interleaved in time; one client in another
process reads the merged stream and parses nothing. Counted is the CPU time of the relay alone. Medians of
five rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

from bench import limits
from cilia.apps.relay import RelayOptions, relaying
from cilia.hubble.client import Client
from cilia.hubble.health import Health
from cilia.hubble.peer import Peer
from cilia.hubble.rpc.server import Server, Sink
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.relay.access import AccessSettings
from cilia.relay.answer import AnswerSettings
from cilia.relay.pool import PoolSettings

PEERS = 10
FLOWS = 20_000
ROUNDS = 5
REACH = 100_000
"""Flows a second of one core."""
MANY = 1000
PEER_KIB = 256
"""What a connected peer may cost the relay."""
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
            server = Server({**self._methods(node), **Health(["observer.Observer"]).methods()})
            self._servers.append(server)
            await server.listen_unix(self._directory / f"{node}.sock")
        (self._directory / "ready").touch()
        await asyncio.Event().wait()

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
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    uvloop.run(Nodes(directory, count, flows).run())


@contextlib.asynccontextmanager
async def relay(directory: Path, count: int, flows: int) -> AsyncIterator[str]:
    """A relay in this process over nodes in another; its target once all are connected."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve_nodes, args=(directory, count, flows), daemon=True)
    process.start()
    try:
        while not (directory / "ready").exists():
            if not process.is_alive():
                raise RuntimeError("the nodes' process died: its output says why")
            await asyncio.sleep(0.05)
        peers = [
            Peer(f"default/worker-{node}", f"unix://{directory / str(node)}.sock") for node in range(count)
        ]
        path = directory / "relay.sock"
        async with relaying(options(f"unix://{path}", peers)):
            target = f"unix://{path}"
            await asyncio.to_thread(wait_for, target, count)
            yield target
    finally:
        process.terminate()
        process.join()


def options(listen: str, peers: list[Peer]) -> RelayOptions:
    """A relay in plain text, with the settings it has by default."""
    return RelayOptions(
        cluster_name="default",
        listen_address=listen,
        health_listen_address="",
        metrics_listen_address="",
        peers=peers,
        peer_service="",
        peer_service_tls_server_name="",
        client_tls=None,
        server_tls=None,
        pool=PoolSettings(),
        answer=AnswerSettings(),
        reviews=None,
        access=AccessSettings(),
    )


def wait_for(target: str, count: int) -> None:
    """Wait until a relay is connected to so many nodes."""
    while connected(target) < count:
        time.sleep(0.2)


def connected(target: str) -> int:
    """Nodes a relay is connected to."""
    with Client(target) as client:
        answer = client.unary("/observer.Observer/ServerStatus", b"")
    return observer_pb2.ServerStatusResponse.FromString(answer).num_connected_nodes.value


async def merged(flows: int, rounds: int) -> list[float]:
    """Flows merged per second of the relay's CPU time, round by round."""
    rates = []
    with tempfile.TemporaryDirectory() as name:
        async with relay(Path(name), PEERS, flows) as target:
            for _ in range(rounds):
                used = time.process_time()
                client = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "bench.hubble_relay", "--read", target,
                    stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
                output, _ = await client.communicate()
                used = time.process_time() - used
                if int(output) != PEERS * flows:
                    raise RuntimeError(f"{int(output)} of {PEERS * flows} flows arrived")
                rates.append(PEERS * flows / used)
    return rates


def read_all(target: str) -> None:
    """Read all answers without parsing them; print how many flows there were."""
    with Client(target) as client:
        print(sum(answer[:1] == b"\n" for answer in client.stream("/observer.Observer/GetFlows", b"")))


def resident_kib() -> int:
    """Memory of this process."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


async def peers_cost(count: int) -> tuple[float, float]:
    """KiB per connected peer, and per peer of an answer that its client does not read."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    with tempfile.TemporaryDirectory() as name:
        before = resident_kib()
        async with relay(Path(name), count, 200) as target:
            idle = resident_kib()
            client = await asyncio.to_thread(Client, target)
            try:
                await asyncio.to_thread(next, client.stream("/observer.Observer/GetFlows", b""))
                await asyncio.sleep(3)
                asked = resident_kib()
            finally:
                client.close()
    return (idle - before) / count, (asked - idle) / count


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows for `python -m bench`: times and memory as their limits."""
    rates = uvloop.run(merged(FLOWS // 4 if quick else FLOWS, 3 if quick else ROUNDS))
    idle, asked = uvloop.run(peers_cost(MANY // 10 if quick else MANY))
    microseconds = [1e6 / rate for rate in rates]
    return [
        limits.row(
            "hubble-relay", f"{PEERS} peers merged, per flow", "µs CPU", 1e6 / REACH, microseconds,
            statistics.median, flows_per_second=round(statistics.median(rates)),
        ),
        limits.row("hubble-relay", "connected peer", "KiB", PEER_KIB, [idle], statistics.median),
        limits.row("hubble-relay", "peer of an unread answer", "KiB", PEER_KIB, [asked], statistics.median),
    ]  # fmt: skip


def main() -> None:
    """Print the numbers, as text or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows", type=int, default=FLOWS)
    parser.add_argument("--peers", type=int, default=MANY)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", metavar="TARGET", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        read_all(given.read)
        return
    rates = uvloop.run(merged(given.flows, ROUNDS))
    idle, asked = uvloop.run(peers_cost(given.peers)) if given.peers else (0.0, 0.0)
    results = {
        "merged_flows_per_core_second": statistics.median(rates),
        "kib_per_connected_peer": idle,
        "kib_per_peer_of_an_unread_answer": asked,
    }
    if given.json:
        print(json.dumps(results))
        return
    for key, value in results.items():
        print(f"{key.replace('_', ' '):34} {value:14,.1f}")


if __name__ == "__main__":
    main()
