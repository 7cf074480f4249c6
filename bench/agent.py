"""The agent's own numbers: attaching pods, changing policy, starting again, resting, draining events.

Times are of one node with the embedded API server, its operator and its agent as processes (`bench.node`).
There is no second system to compare with, so the baseline is the design's limit and the ratio says how many
times better than it the measurement is: at least 1 is wanted.
"""

from __future__ import annotations

import asyncio
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench import netbench
from bench.limits import p99, row
from bench.node import NAMESPACE, BenchError, Node, running
from cilia import abi
from cilia.api.client import AgentClient
from cilia.cluster import store as cluster
from cilia.dataplane import bpf, loader
from cilia.lab import kernel
from cilia.lab.records import PodRecord

PODS = 50
ISOLATED = 100
"""Endpoints that one policy isolates."""
GROUP = "agent"
PROBE_PORT = 5000
ACCEPT = """
import sys, _socket
server = _socket.socket()
server.bind(("", int(sys.argv[1])))
server.listen(1024)
while True:
    _socket.close(server._accept()[0])
"""
SETTLE_SECONDS = 1.0
WATCH_SECONDS = 20.0
"""How long an effect is waited for before the measurement is given up."""


def attach(quick: bool) -> list[dict[str, Any]]:
    """CNI ADD, from the plugin's exec to its exit; it answers when the kernel enforces the pod's policy."""
    return asyncio.run(_attach(quick))


def change(quick: bool) -> list[dict[str, Any]]:
    """Policy changes, from the API server's answer to the first probe or the last endpoint that obeys."""
    return asyncio.run(_change(quick))


def restart(quick: bool) -> list[dict[str, Any]]:
    """SIGKILL with 50 endpoints, until /v1/healthz says ready; a TCP connection lives through all of it."""
    return asyncio.run(_restart(quick))


def rest(quick: bool) -> list[dict[str, Any]]:
    """Memory with a dozen pods, and the CPU time of doing nothing."""
    return asyncio.run(_rest(quick))


# attaching pods


async def _attach(quick: bool) -> list[dict[str, Any]]:
    rows = []
    async with running() as node:
        bursts = []
        for _ in range(1 if quick else 5):
            pods = await node.prepare(PODS, [f"app-{number}" for number in range(10)])
            await asyncio.sleep(SETTLE_SECONDS)
            bursts.append((await asyncio.to_thread(node.attach_all, pods))[0])
            await node.remove(pods)
        for standing in (10, PODS):
            node.attach_all(await node.prepare(standing - len(node.pods), ["app-0", "app-1", "app-2"]))
            for kind, fresh in (("known labels", False), ("new identity", True)):
                times = await _adds(node, 10 if quick else 60, fresh)
                name = f"CNI ADD, {standing} pods, {kind}"
                rows.append(row(GROUP, f"{name}, p50", "ms", 30.0, times, statistics.median))
                rows.append(row(GROUP, f"{name}, p99", "ms", 80.0, times, p99))
    return [*rows, row(GROUP, f"{PODS} pods at once", "s", 3.0, bursts, statistics.median)]


async def _adds(node: Node, count: int, fresh: bool) -> list[float]:
    """Milliseconds of single ADDs, the pod known to the agent as it is when a kubelet calls."""
    times = []
    for _ in range(count):
        label = f"fresh-{time.monotonic_ns()}" if fresh else "app-0"
        pods = await node.prepare(1, [label])
        await asyncio.sleep(0.1)
        times.append((await asyncio.to_thread(node.call, "ADD", pods[0]))[0] * 1e3)
        await node.remove(pods)
    return times


# policy


async def _change(quick: bool) -> list[dict[str, Any]]:
    rounds = 5 if quick else 40
    async with running(PODS) as node:
        allowed, denied, whole = await _probe(node, rounds)
    waves = []
    different = [f"own-{number}" for number in range(ISOLATED)]
    for kind, labels, own in (
        ("alike", ["one"], False),
        ("all different", different, False),
        ("each with a policy of its own", different, True),
    ):
        async with running() as node:
            if own:
                await _allow_each(node, labels)
            on, off = await _deny_all(node, labels, 3 if quick else 20)
        for word, samples in (("on", on), ("off", off)):
            name = f"default deny {word} for {ISOLATED} endpoints, {kind}, until the last"
            waves.append(row(GROUP, f"{name}, p50", "ms", 50.0, samples, statistics.median))
            waves.append(row(GROUP, f"{name}, worst", "ms", 50.0, samples, max))
    return [
        row(
            GROUP,
            "policy change to enforcement, p50",
            "ms",
            7.0,
            allowed + denied,
            statistics.median,
            from_request=round(statistics.median(whole), 3),
        ),
        row(GROUP, "policy change that denies, p50", "ms", 7.0, denied, statistics.median),
        row(GROUP, "policy change that allows, p50", "ms", 7.0, allowed, statistics.median),
        *waves,
    ]


async def _probe(node: Node, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds until the first connection with the new outcome was begun, for changes that allow and
    that deny, and for all of them from the request instead of the answer.

    A probe opens one connection every 0.5 ms; what it sees is compared with when the API server answered.
    """
    netbench.build()
    pods = await node.prepare(2, ["probe-client", "probe-server"])
    _, addresses = await asyncio.to_thread(node.attach_all, pods)
    await asyncio.sleep(SETTLE_SECONDS)
    policy = _policy("deny-probe", {"matchLabels": {"app": "probe-server"}})
    with _server(pods[1]), _prober(pods[0], addresses[1]) as changes:
        denied, allowed, whole = [], [], []
        await changes.until(True, 0)
        for _ in range(rounds):
            await asyncio.sleep(0.25)
            from_answer, from_request = await _effect(changes, False, _create(node, policy))
            denied.append(from_answer)
            whole.append(from_request)
            await asyncio.sleep(0.25)
            from_answer, from_request = await _effect(changes, True, _delete(node, policy))
            allowed.append(from_answer)
            whole.append(from_request)
    await node.remove(pods)
    return allowed, denied, whole


async def _effect(changes: Changes, ok: bool, request: Coroutine[Any, Any, None]) -> tuple[float, float]:
    """Milliseconds from the API server's answer to the effect, negative when the agent was faster, and from
    the request.

    The server tells its watchers and answers at the same time.
    """
    before = time.time_ns()
    await request
    answered = time.time_ns()
    seen = await changes.until(ok, before)
    return (seen - answered) / 1e6, (seen - before) / 1e6


class Changes:
    """Lines of netbench's PROBE mode."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._lines = process.stdout

    async def until(self, ok: bool, after: int) -> int:
        """When the first attempt began whose outcome was `ok` (ns of the wall clock), not before `after`."""
        while True:
            line = await asyncio.wait_for(asyncio.to_thread(self._lines.readline), WATCH_SECONDS)
            if not line:
                raise BenchError("the probe ended early")
            found = msgspec.json.decode(line)
            if bool(found["ok"]) == ok and found["start_rt_ns"] >= after:
                return int(found["start_rt_ns"])


@contextmanager
def _server(pod: PodRecord) -> Iterator[None]:
    """What the probe connects to: a pod that hangs up at once.

    netbench's own server waits for a byte, and would wait for those whose connection a policy just cut.
    """
    process = subprocess.Popen([*_inside(pod), sys.executable, "-IS", "-c", ACCEPT, str(PROBE_PORT)])
    try:
        time.sleep(netbench.SERVER_START)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _prober(pod: PodRecord, address: str) -> Iterator[Changes]:
    command = [*_inside(pod), str(netbench.BINARY), "-c", address, "-m", "PROBE", "-A", "-1"]
    command += ["-i", "500", "-w", "150", "-t", "600"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield Changes(process)
    finally:
        process.kill()
        process.wait()


async def _deny_all(node: Node, labels: list[str], rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds from the API server's answer until the last endpoint is judged by the new policy: for
    default deny switched on, and off.

    The programs read the word of `policy_active` for each packet they judge, so a changed word is enforced;
    it is read here in the same shared memory, every 0.2 ms.
    """
    pods = await node.prepare(ISOLATED, labels)
    await asyncio.to_thread(node.attach_all, pods)
    await asyncio.sleep(SETTLE_SECONDS)
    words = active_words(Path(node.node.bpf_prefix))
    subjects = subjects_of_pods(node)
    if len(subjects) < len(labels):
        raise BenchError(f"only {len(subjects)} subjects are in force")
    policy = _policy("deny-all", {})
    on: list[float] = []
    off: list[float] = []
    for _ in range(rounds):
        for times, request in ((on, _create), (off, _delete)):
            await asyncio.sleep(0.3)
            times.append(await wave(words, subjects, request(node, policy)))
    await node.remove(pods)
    return on, off


async def _allow_each(node: Node, labels: list[str]) -> None:
    """Policies that add a rule to each set of pods and isolate none."""
    for number, label in enumerate(labels):
        peer = {"matchLabels": {"app": labels[number - 1]}}
        spec = {
            "endpointSelector": {"matchLabels": {"app": label}},
            "enableDefaultDeny": {"ingress": False, "egress": False},
            "ingress": [{"fromEndpoints": [peer]}],
        }
        await _create(node, {"metadata": {"name": f"allow-{label}"}, "spec": spec})


async def wave(words: Any, subjects: Any, request: Coroutine[Any, Any, None]) -> float:
    """Milliseconds from the answer until all the words have changed."""
    loop = asyncio.get_running_loop()
    before = words[subjects].copy()
    watching = loop.run_in_executor(None, _all_changed, words, subjects, before)
    await request
    answered = time.monotonic_ns()
    return (await watching - answered) / 1e6


def subjects_of_pods(node: Node) -> Any:
    """Numbers of the subjects that the node's pods have: the host has one, too, which policies of pods leave
    alone."""
    client = AgentClient(node.node.agent_socket)
    views = [view for view in client.endpoints() if view.status.external_identifiers.pod_name]
    return np.array(sorted({view.status.policy.realized.subject for view in views}))


def active_words(prefix: Path) -> np.ndarray[Any, np.dtype[Any]]:
    layout = abi.layout()
    descriptor = bpf.get(loader.root_of(prefix) / "maps" / "policy_active")
    if descriptor is None:
        raise BenchError(f"no map policy_active is pinned below {prefix}")
    spec = layout.maps["policy_active"]
    active = bpf.Map(descriptor, layout.dtype(spec.key), layout.dtype(spec.value), "policy_active")
    return active.memory().view("<u8")


def _all_changed(words: Any, subjects: Any, before: Any) -> int:
    """When the last of the words differed from `before`, by the monotonic clock in nanoseconds."""
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        if (words[subjects] != before).all():
            return time.monotonic_ns()
        time.sleep(0.0002)
    raise BenchError("not every endpoint changed its policy")


def _policy(name: str, selector: dict[str, Any]) -> dict[str, Any]:
    """A CiliumNetworkPolicy that lets nobody in."""
    return {"metadata": {"name": name}, "spec": {"endpointSelector": selector, "ingress": [{}]}}


async def _create(node: Node, policy: dict[str, Any]) -> None:
    body = cluster.encode(cluster.CILIUM_NETWORK_POLICIES, policy)
    await node.store.create(cluster.CILIUM_NETWORK_POLICIES, body, namespace=NAMESPACE)


async def _delete(node: Node, policy: dict[str, Any]) -> None:
    name = policy["metadata"]["name"]
    await node.store.delete(cluster.CILIUM_NETWORK_POLICIES, name, namespace=NAMESPACE)


# starting again


async def _restart(quick: bool) -> list[dict[str, Any]]:
    async with running(PODS - 2) as node:
        pods = await node.prepare(2, ["left", "right"])
        _, addresses = await asyncio.to_thread(node.attach_all, pods)
        times, lost = [], 0
        with _connection(pods[0], pods[1], addresses[1]) as (left, right):
            for _ in range(2 if quick else 7):
                await asyncio.sleep(SETTLE_SECONDS)
                await node.kill_agent()
                lost += not _alive(left, right)
                times.append(await node.start_agent())
                lost += not _alive(left, right)
    return [
        row(
            GROUP,
            f"restart with {PODS} endpoints, until ready",
            "s",
            2.0,
            times,
            statistics.median,
            lost=lost,
        )
    ]


@contextmanager
def _connection(
    client: PodRecord, server: PodRecord, address: str
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An established TCP connection between two pods: both ends."""
    with kernel.inside_network(server.netns):
        listener = socket.create_server((address, PROBE_PORT))
    with kernel.inside_network(client.netns):
        left = socket.create_connection((address, PROBE_PORT), timeout=WATCH_SECONDS)
    right, _ = listener.accept()
    right.settimeout(WATCH_SECONDS)
    with listener, left, right:
        yield left, right


def _alive(left: socket.socket, right: socket.socket) -> bool:
    """Whether bytes still come through, both ways."""
    try:
        left.sendall(b"ping")
        there = right.recv(4)
        right.sendall(b"pong")
        return (there, left.recv(4)) == (b"ping", b"pong")
    except OSError:
        return False


# at rest


async def _rest(quick: bool) -> list[dict[str, Any]]:
    seconds = 5.0 if quick else 25.0
    async with running(12) as node:
        await asyncio.sleep(5.0)
        memory, loads = [], []
        for _ in range(1 if quick else 3):
            used, start = cpu_seconds(node.agent_pid), time.monotonic()
            await asyncio.sleep(seconds)
            loads.append((cpu_seconds(node.agent_pid) - used) / (time.monotonic() - start) * 100)
            memory.append(resident(node.agent_pid))
    return [
        row(GROUP, "memory (VmRSS), 12 pods", "MiB", 110.0, memory, statistics.median),
        row(GROUP, "idle CPU, 12 pods", "% of a core", 0.5, loads, statistics.median),
    ]


def resident(pid: int, kind: str = "VmRSS") -> float:
    """MiB; VmHWM: the most it ever was."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads, to the nanosecond (proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _inside(pod: PodRecord) -> list[str]:
    return ["nsenter", f"--net={pod.netns}", "--"]
