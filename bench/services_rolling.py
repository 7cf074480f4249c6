"""Ten backends of a Service replaced one after the other while clients open 2,000 connections a second.

As a Deployment is rolled with graceful termination: a new pod comes and gets ready; an old one is told to
end, is no longer chosen, serves what it has for a while, and goes. A connection that is refused, reset, or
stands still for two seconds has failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from bench import netbench
from bench.agent import SETTLE_SECONDS
from bench.limits import row
from bench.node import NAMESPACE, BenchError, Node, running
from cilia.cluster import store as cluster
from cilia.lab import cgroups
from cilia.lab.records import PodRecord

GROUP = "services-rolling"
BACKENDS, CLIENTS, RATE = 10, 4, 2_000
GRACE = 1.0
"""Seconds that a pod serves on once it is told to end."""
STEP_SECONDS = 2.5
"""At most, of one replacement."""


def roll(quick: bool) -> list[dict[str, Any]]:
    """All rows."""
    return asyncio.run(_roll(2 if quick else BACKENDS))


async def _roll(replaced: int) -> list[dict[str, Any]]:
    async with running() as node:
        client, *pods = await node.prepare(1 + BACKENDS, ["client"])
        _, addresses = await asyncio.to_thread(node.attach_all, [client, *pods])
        backends = [Backend(*pair) for pair in zip(pods, addresses[1:], strict=True)]
        try:
            deployment = Deployment(node, backends)
            address = await deployment.create()
            await asyncio.sleep(SETTLE_SECONDS)
            seconds = replaced * STEP_SECONDS
            clients = [_client(node, client, address, seconds) for _ in range(CLIENTS)]
            await asyncio.sleep(SETTLE_SECONDS)
            for _ in range(replaced):
                await deployment.replace_oldest()
            if clients[0].poll() is not None:
                raise BenchError("the clients ended before the last backend was replaced")
            found = [await asyncio.to_thread(_result, each, seconds) for each in clients]
        finally:
            for backend in backends:
                backend.stop()
    failed, opened = sum(each["fail"] for each in found), sum(each["ops"] for each in found)
    slowest = max(each["max_us"] for each in found) / 1e3
    rate = opened / seconds
    return [
        {
            "group": GROUP,
            "test": f"connections failed, {replaced} of {BACKENDS} backends replaced",
            "path": "cilia",
            "against": "limit",
            "ratio": round(opened / (opened + failed), 6),
            "spread": 0.0,
            "reach": 1.0,
            "baseline": 0,
            "measured": failed,
            "connections": opened,
            "load": round(os.getloadavg()[0], 1),
        },
        row(GROUP, "the same: the slowest connection", "ms", 1000.0, [slowest], max, rate=round(rate)),
    ]


class Backend:
    """A pod with servers in it."""

    def __init__(self, pod: PodRecord, address: str) -> None:
        self.pod = pod
        self.address = address
        self.ending = False
        words = ["nsenter", f"--net={pod.netns}", "--", str(netbench.BINARY), "-s", "-B", "-1"]
        self._servers = subprocess.Popen(words, start_new_session=True)

    def stop(self) -> None:
        """End the servers; again: nothing."""
        if self._servers.poll() is None:
            os.killpg(self._servers.pid, signal.SIGKILL)
            self._servers.wait()

    def endpoint(self) -> dict[str, Any]:
        """As the slice tells of it (EndpointConditions of discovery.k8s.io/v1)."""
        conditions = {"ready": not self.ending, "serving": True, "terminating": self.ending}
        return {"addresses": [self.address], "conditions": conditions}


class Deployment:
    """The Service, its slice, and the backends, which are those of the list given."""

    def __init__(self, node: Node, backends: list[Backend]) -> None:
        self._node = node
        self._backends = backends

    async def create(self) -> str:
        """Make the Service; its address."""
        port = {"name": "echo", "port": netbench.PORT, "protocol": "TCP"}
        body = cluster.encode(cluster.SERVICES, {"metadata": {"name": "rolled"}, "spec": {"ports": [port]}})
        made = await self._node.store.create(cluster.SERVICES, body, namespace=NAMESPACE)
        await self._node.store.create(cluster.ENDPOINT_SLICES, self._slice(), namespace=NAMESPACE)
        return str(msgspec.json.decode(made)["spec"]["clusterIP"])

    async def replace_oldest(self) -> None:
        """A new backend comes, then the oldest goes."""
        (pod,) = await self._node.prepare(1, ["rolled"])
        _, (address,) = await asyncio.to_thread(self._node.attach_all, [pod])
        self._backends.append(Backend(pod, address))
        await asyncio.sleep(netbench.SERVER_START)
        oldest = self._backends[0]
        oldest.ending = True
        await self._write()
        await asyncio.sleep(GRACE)
        oldest.stop()
        self._backends.remove(oldest)
        await self._write()
        await self._node.remove([oldest.pod])

    async def _write(self) -> None:
        await self._node.store.replace(
            cluster.ENDPOINT_SLICES, "rolled-abcde", self._slice(), namespace=NAMESPACE
        )

    def _slice(self) -> bytes:
        return cluster.encode(
            cluster.ENDPOINT_SLICES,
            {
                "metadata": {
                    "name": "rolled-abcde",
                    "labels": {"kubernetes.io/service-name": "rolled"},
                },
                "addressType": "IPv4",
                "endpoints": [backend.endpoint() for backend in self._backends],
                "ports": [{"name": "echo", "port": netbench.PORT, "protocol": "TCP"}],
            },
        )


def _client(node: Node, pod: PodRecord, address: str, seconds: float) -> subprocess.Popen[bytes]:
    """One of the clients, in the control group of its node's pods, so that its sockets are translated."""
    group = cgroups.create(cgroups.find_mount() / node.plan.cgroup_name / node.node.name / "clients")
    words = [*netbench.of_group(Path(group)), "nsenter", f"--net={pod.netns}", "--", str(netbench.BINARY)]
    words += ["-c", address, "-m", "TCP_CRR", "-A", "-1", "-r", str(RATE // CLIENTS), "-t", str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE)


def _result(client: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    text, _ = client.communicate(timeout=seconds + 30)
    if client.returncode:
        raise BenchError(f"a client ended with status {client.returncode}: {text.decode()}")
    found: dict[str, Any] = json.loads(text)
    return found
