"""Policies that change while pods talk, judged packet by packet; default deny until the last endpoint; a
policy as large as fits.

The changes run on a lab of two nodes with the traffic, the random policies and the judge of the tests.
Default deny is watched with datagrams: one pod sends to all others in turn, and what arrives tells who still
lets them in. The large policy is watched in the map that says which entries are in force.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from bench.agent import active_words, subjects_of_pods, wave
from bench.node import NAMESPACE, BenchError, Node, running
from cilia.cluster import store as cluster
from cilia.dataplane.pool import POLICY_ENTRIES
from cilia.lab import kernel
from cilia.lab.records import PodRecord
from tests.support import policy_load
from tests.support.policy_lab import PolicyLab, pod, policy_lab
from tests.support.policy_load import APPS, Changes, Report, Revision, Traffic, judge
from tests.support.policy_truth import Peer, Truth

GROUP = "policy-load"
PODS = 100
CHANGES = 1000
RATE = 4000
"""Packets a second between all pods."""
PORT = 7000
BEFORE, AFTER = 0.15, 0.35
"""Seconds of sending before the request and after the answer."""
LIMIT_MS = 50.0
LARGE_LIMIT_MS = 100.0
BUILT_IN = 3
"""Entries that every isolated subject has: a default for each direction, the node's own way in."""
SENDER = """
import array, socket, sys, time
port, seconds = int(sys.argv[1]), float(sys.argv[2])
targets = [(address, port) for address in sys.argv[3:]]
sender, times, number = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), array.array("d"), 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    for _ in range(10):
        times.append(time.monotonic())
        sender.sendto(number.to_bytes(4, "big"), targets[number % len(targets)])
        number += 1
    time.sleep(0.0004)
sys.stdout.buffer.write(times.tobytes())
"""
"""Sends to all targets in turn, some 20,000 packets a second; prints when it sent each."""


def measure(quick: bool) -> list[dict[str, Any]]:
    """Everything of this page."""
    return [*_changes(quick), *asyncio.run(_default_deny(quick)), *asyncio.run(_large(quick))]


# changes under load


def _changes(quick: bool) -> list[dict[str, Any]]:
    changes = 50 if quick else CHANGES
    with policy_lab(f"bpl{os.getpid() % 1000000}") as lab:
        peers = [Peer(policy_load.NAMESPACE, f"pod-{number}", _labels(number)) for number in range(PODS)]
        lab.start_pods(
            [pod(peer, _node(number), [("TCP", 8080)]) for number, peer in enumerate(peers)], 180.0
        )
        records = [lab.record(peer) for peer in peers]
        peers = [
            Peer(peer.namespace, peer.name, peer.labels, record.ips)
            for peer, record in zip(peers, records, strict=True)
        ]
        with Traffic(peers, [record.netns for record in records], RATE, seed=2) as traffic:
            revisions = _change(lab, changes)
    report = judge(traffic, revisions, Truth({policy_load.NAMESPACE: {}}))
    return _load_rows(report, revisions)


def _labels(number: int) -> dict[str, str]:
    return {"app": APPS[number % len(APPS)]}


def _node(number: int) -> str:
    """Each app has pods on both nodes."""
    return f"node-{number // len(APPS) % 2 + 1}"


def _change(lab: PolicyLab, count: int) -> list[Revision]:
    time.sleep(1.0)
    revisions, changes = [Revision()], Changes(seed=1)
    for _ in range(count):
        verb, document, policies = changes.next()
        written = time.monotonic()
        (lab.apply if verb == "apply" else lab.delete)(document)
        lab.settle()
        revisions.append(Revision(policies=policies, written=written, enforced=time.monotonic()))
        time.sleep(0.01)
    return revisions


def _load_rows(report: Report, revisions: Sequence[Revision]) -> list[dict[str, Any]]:
    times = [(one.enforced - one.written) * 1e3 for one in revisions[1:]]
    about = f"{len(times)} changes, {PODS} pods"
    counted = {"packets": report.packets, "arrived": report.arrived, "crossing": report.crossing}
    return [
        _count_row(f"{about}: allowed though old and new deny", report.passed, counted),
        _count_row(f"{about}: dropped though old and new allow", report.lost, counted),
        _row(f"{about}: request until both nodes enforce, p50", 100.0, times),
    ]


# default deny


async def _default_deny(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for name, labels in (("ten identities", 10), ("100 identities", PODS)):
        async with running() as node:
            pods = await node.prepare(PODS + 1, [f"own-{number}" for number in range(labels)])
            _, addresses = await asyncio.to_thread(node.attach_all, pods)
            await asyncio.sleep(1.0)
            on, off = await _switch(node, pods, addresses, 3 if quick else 20)
            await node.remove(pods)
        about = f"{PODS} endpoints, {name}, until the last"
        rows += [_row(f"default deny on, {about}", LIMIT_MS, on)]
        rows += [_row(f"default deny off, {about}", LIMIT_MS, off)]
    return rows


async def _switch(
    node: Node, pods: Sequence[PodRecord], addresses: Sequence[str], rounds: int
) -> tuple[list[float], list[float]]:
    """Milliseconds from the API server's answer to the last endpoint: on, off."""
    policy = {"metadata": {"name": "deny-all"}, "spec": {"endpointSelector": {}, "ingress": [{}]}}
    body = cluster.encode(cluster.CILIUM_NETWORK_POLICIES, policy)
    on, off = [], []
    with _receivers(pods[1:], addresses[1:]) as receivers:
        for _ in range(rounds):
            create = node.store.create(cluster.CILIUM_NETWORK_POLICIES, body, namespace=NAMESPACE)
            on.append(await _watch(pods[0], addresses[1:], receivers, create, False))
            delete = node.store.delete(cluster.CILIUM_NETWORK_POLICIES, "deny-all", namespace=NAMESPACE)
            off.append(await _watch(pods[0], addresses[1:], receivers, delete, True))
    return on, off


@contextmanager
def _receivers(pods: Sequence[PodRecord], addresses: Sequence[str]) -> Iterator[list[socket.socket]]:
    opened = []
    try:
        for pod, address in zip(pods, addresses, strict=True):
            with kernel.inside_network(pod.netns):
                opened.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            opened[-1].setblocking(False)
            opened[-1].bind((address, PORT))
        yield opened
    finally:
        for one in opened:
            one.close()


async def _watch(
    source: PodRecord,
    addresses: Sequence[str],
    receivers: Sequence[socket.socket],
    request: Any,
    allowed: bool,
) -> float:
    """Send to all while a request is made; when the last endpoint followed it, from the answer, in ms."""
    command = ["nsenter", f"--net={source.netns}", "--", sys.executable, "-IS", "-c", SENDER]
    command += [str(PORT), str(BEFORE + AFTER), *addresses]
    sender = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    await asyncio.sleep(BEFORE)
    await request
    answered = time.monotonic()
    output, _ = await sender.communicate()
    times = array("d", output)
    arrived = {number for one in receivers for number in _drain(one)}
    moments = [_followed(times, arrived, index, len(addresses), allowed) for index in range(len(addresses))]
    return (max(moments) - answered) * 1e3


def _drain(opened: socket.socket) -> Iterator[int]:
    try:
        while data := opened.recv(16):
            yield struct.unpack("!I", data)[0]
    except BlockingIOError:
        return


def _followed(times: array[float], arrived: set[int], index: int, targets: int, allowed: bool) -> float:
    """When the first packet was sent to a target from which on all had the new fate."""
    numbers = range(index, len(times), targets)
    found = None
    for number in reversed(numbers):
        if (number in arrived) != allowed:
            break
        found = number
    if found is None:
        raise BenchError(f"endpoint {index} did not follow a policy within {AFTER} s")
    return times[found]


# a policy as large as fits


async def _large(quick: bool) -> list[dict[str, Any]]:
    """One policy, by how many rules it has, that changes all entries of a pod each time."""
    rounds = 3 if quick else 15
    rows = []
    async with running() as node:
        pods = await node.prepare(1, ["large"])
        await asyncio.to_thread(node.attach_all, pods)
        await asyncio.sleep(1.0)
        words, subjects = active_words(Path(node.node.bpf_prefix)), subjects_of_pods(node)
        for rules in (1000, 16_000):
            times = []
            for version in range(rounds + 1):
                await asyncio.sleep(1.0)
                times.append(await wave(words, subjects, _write(node, rules, version)))
            # The first time its networks get identities, too.
            del times[0]
            await wave(words, subjects, _delete(node))
            about = f"one policy of {rules} rules, {POLICY_ENTRIES} entries, until in force"
            rows.append(_row(about, LARGE_LIMIT_MS, times) | ({} if rules == 1000 else {"reach": None}))
        await node.remove(pods)
    return rows


async def _write(node: Node, rules: int, version: int) -> None:
    """Make a large policy, or put another version in its place."""
    kind, policy = cluster.CILIUM_NETWORK_POLICIES, _large_policy(rules, version)
    if version:
        await node.store.patch(kind, "large", msgspec.json.encode(policy), namespace=NAMESPACE)
    else:
        await node.store.create(kind, cluster.encode(kind, policy), namespace=NAMESPACE)


async def _delete(node: Node) -> None:
    await node.store.delete(cluster.CILIUM_NETWORK_POLICIES, "large", namespace=NAMESPACE)


def _large_policy(rules: int, version: int) -> dict[str, Any]:
    """Each rule allows a network of its own some ports, others in each version."""
    each, more = divmod(POLICY_ENTRIES - BUILT_IN, rules)
    ingress = [
        {
            "fromCIDR": [f"{20 + number // 65536}.{number // 256 % 256}.{number % 256}.0/24"],
            "toPorts": [{"ports": _some_ports(number + 97 * version, each + (number < more))}],
        }
        for number in range(rules)
    ]
    spec = {"endpointSelector": {"matchLabels": {"app": "large"}}, "ingress": ingress}
    return {"metadata": {"name": "large"}, "spec": spec}


def _some_ports(first: int, count: int) -> list[dict[str, str]]:
    return [{"port": str(1024 + (first + n) % 60_000), "protocol": "TCP"} for n in range(count)]


# what comes out


def _count_row(test: str, found: Sequence[str], counted: dict[str, int]) -> dict[str, Any]:
    """A row that wants none."""
    return (
        _base(test, 1.0 if not found else 0.0, 0, len(found), 0.0) | counted | {"examples": list(found[:3])}
    )


def _row(test: str, limit: float, samples: Sequence[float]) -> dict[str, Any]:
    """A row of milliseconds; the ratio says how many times better than the limit."""
    value = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4)
    ratio = round(limit / max(value, limit / 100), 2)
    row = _base(f"{test} (ms)", ratio, limit, round(value, 3), round((high - low) / 2 / limit, 2))
    return row | {"samples": len(samples), "most": round(max(samples), 3)}


def _base(test: str, ratio: float, limit: float, measured: float, spread: float) -> dict[str, Any]:
    return {
        "group": GROUP,
        "test": test,
        "path": "cilia",
        "against": "limit",
        "ratio": ratio,
        "spread": spread,
        "reach": 1.0,
        "baseline": limit,
        "measured": measured,
        "load": round(os.getloadavg()[0], 1),
    }
