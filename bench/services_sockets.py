"""Pods that ask for a service, against pods that ask each other; and the same with kube-proxy's rules.

All of one node. The asked service has one backend, the other pod; nobody asks those beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench import kube_proxy, netbench, services, topologies
from bench.netbench import CONNECTIONS, PORT, ROUND_TRIP, Comparison, Test, Way

OURS = (1, 1_000, 10_000)
THEIRS = (1, 1_000, 5_000)
REACH = 0.97
ROUNDS, SECONDS = 7, 0.6
SERVER = "10.75.1.3"


def sockets(quick: bool) -> list[dict[str, Any]]:
    """Pod to ClusterIP against pod to pod of a node without services.

    The node is one and the same, with the services switched off for the baseline, since two builds of the
    same networks differ more than what is to be seen here.
    """
    rows = []
    with ExitStack() as stack:
        group = stack.enter_context(services.control_group("sockets"))
        direct, node = stack.enter_context(
            topologies.same_node("pod to pod", "k", events=False, cgroup=group)
        )
        switch = services.Switch(node)
        base = _way(direct, "pod to pod", switch.off)
        beside = _way(direct, "pod to pod, services there", switch.on, cgroup=group)
        asked = _way(direct, "ClusterIP", switch.on, cgroup=group, address=services.ASKED)
        node.desired.service_entries.put(services.entry(services.ASKED, PORT, (SERVER, PORT)))
        for count in OURS:
            services.fill(node, count)
            ways = [base, asked, beside] if count == OURS[-1] else [base, asked]
            for test in (ROUND_TRIP, CONNECTIONS):
                rows += _rows("services-sockets", count, ways, test, quick)
    return rows


def against_kube_proxy(quick: bool) -> list[dict[str, Any]]:
    """Connections to a service by three ways, against two namespaces behind a router that has no rules."""
    rows = []
    modes = kube_proxy.usable()
    with ExitStack() as stack:
        base = stack.enter_context(topologies.routed())
        group = stack.enter_context(services.control_group("proxy"))
        direct, node = stack.enter_context(topologies.same_node("cilia", "k", events=False, cgroup=group))
        ways = [base, _way(direct, "cilia", netbench.as_it_is, cgroup=group, address=services.ASKED)]
        for mode in modes:
            routed = stack.enter_context(topologies.routed(f"kube-proxy, {mode}", mode))
            ways.append(_way(routed, routed.name, netbench.as_it_is, address=services.ASKED))
        node.desired.service_entries.put(services.entry(services.ASKED, PORT, (SERVER, PORT)))
        for count in THEIRS:
            cluster = kube_proxy.cluster(count, (base.address, PORT))
            for mode in modes:
                kube_proxy.MODES[mode][1](topologies.router_of(mode), cluster)
            services.fill(node, count, kube_proxy.ENDPOINTS)
            rows += _rows("services-kube-proxy", count, ways, CONNECTIONS, quick)
    return rows


def _way(way: Way, name: str, before: Any, *, cgroup: Any = None, address: str = "") -> Way:
    return Way(name, way.client, way.server, address or way.address, cgroup=cgroup, before=before)


def _rows(group: str, count: int, ways: Sequence[Way], test: Test, quick: bool) -> list[dict[str, Any]]:
    found = Comparison(test, [way.name for way in ways])
    netbench.compare(ways, found, rounds=3 if quick else ROUNDS, seconds=0.5 if quick else SECONDS)
    ours = ("ClusterIP", "cilia", "pod to pod, services there")
    noun = "service" if count == 1 else "services"
    return [
        netbench.row(group, found, way.name, REACH if way.name in ours else None, f", {count:,} {noun}")
        for way in ways[1:]
    ]
