"""The data path against plain kernel networking: ratios of one run, medians of interleaved rounds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench import netbench, topologies
from bench.netbench import CONNECTIONS, ROUND_TRIPS, STREAM, UDP_PACKETS, UDP_ROUND_TRIPS, Comparison, Test

BUILDS = 5
"""How often the two nodes are built anew."""

REACH = {
    ("same node", ROUND_TRIPS.name): 1.0,
    ("same node", CONNECTIONS.name): 0.97,
    ("same node", UDP_PACKETS.name): 1.0,
    ("same node", STREAM.name): 1.0,
    ("across nodes", ROUND_TRIPS.name): 0.98,
    ("across nodes", CONNECTIONS.name): 0.94,
    ("events on", CONNECTIONS.name): 0.93,
    ("events on", UDP_ROUND_TRIPS.name): 0.97,
    ("events on", UDP_PACKETS.name): 0.95,
}
"""What the design asks for; a ratio, more is better."""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure everything; one row per ratio."""
    rows: list[dict[str, Any]] = []
    rows += same_node(quick)
    rows += across_nodes(quick)
    rows += events_on(quick)
    return rows


def same_node(quick: bool) -> list[dict[str, Any]]:
    """Two pods of one node against two namespaces behind a router, and against a bare veth pair."""
    with ExitStack() as stack:
        base = stack.enter_context(topologies.routed())
        bare = stack.enter_context(topologies.bare())
        ours, _ = stack.enter_context(topologies.same_node("cilia", "p", events=False))
        tests = (ROUND_TRIPS, CONNECTIONS, UDP_PACKETS, STREAM)
        return _rows("same node", [base, ours, bare], tests, quick)


def across_nodes(quick: bool) -> list[dict[str, Any]]:
    """A pod on each of two nodes against the kernel's own VXLAN with kernel routes.

    Two builds of the same networks differ more (where the kernel puts them in memory) than rounds within
    one do, so several are measured.
    """
    tests = (ROUND_TRIPS, CONNECTIONS)
    found = [Comparison(test, ["plain VXLAN", "cilia"]) for test in tests]
    for _ in range(1 if quick else BUILDS):
        with ExitStack() as stack:
            base = stack.enter_context(topologies.plain_vxlan())
            ours = stack.enter_context(topologies.across_nodes("cilia", events=False))
            for comparison in found:
                netbench.compare(
                    [base, ours], comparison, rounds=3 if quick else 4, seconds=1.0 if quick else 1.5
                )
    return [_row("across nodes", comparison, "cilia") for comparison in found]


def events_on(quick: bool) -> list[dict[str, Any]]:
    """Events of the default aggregation, drained into the store, against events off; the same with one
    client that follows all flows; and every packet reported (aggregation none)."""
    with ExitStack() as stack:
        off, _ = stack.enter_context(topologies.same_node("events off", "o", events=False))
        on, node = stack.enter_context(topologies.same_node("events on", "e", events=True))
        rows = _rows("events on", [off, on], (CONNECTIONS, UDP_ROUND_TRIPS, UDP_PACKETS), quick)
    _tell_losses(rows, node)
    with ExitStack() as stack:
        off, _ = stack.enter_context(topologies.same_node("events off", "o", events=False))
        on, node = stack.enter_context(topologies.same_node("followed", "e", events=True, followed=True))
        followed = _rows("one follower", [off, on], (CONNECTIONS, UDP_ROUND_TRIPS, UDP_PACKETS), quick)
    _tell_losses(followed, node)
    with ExitStack() as stack:
        off, _ = stack.enter_context(topologies.same_node("events off", "o", events=False))
        on, node = stack.enter_context(
            topologies.same_node("every packet", "e", events=True, aggregation="none")
        )
        every = _rows("aggregation none", [off, on], (ROUND_TRIPS,), quick)
    _tell_losses(every, node)
    return rows + followed + every


def _tell_losses(rows: list[dict[str, Any]], node: topologies.CiliaNode) -> None:
    """How many events the measured node made and lost, over all tests of the group."""
    for row in rows:
        row["events"] = node.received
        row["lost"] = node.reader_lost
        row["lost_by_follower"] = node.follower_lost


def _rows(
    group: str, paths: Sequence[netbench.Way], tests: Sequence[Test], quick: bool
) -> list[dict[str, Any]]:
    rows = []
    for test in tests:
        two_cpus = test.client_cpu != test.server_cpu
        rounds = 3 if quick else (11 if two_cpus else 7)
        found = Comparison(test, [path.name for path in paths])
        netbench.compare(paths, found, rounds=rounds, seconds=1.0 if quick else 1.5)
        rows += [_row(group, found, path.name) for path in paths[1:]]
    return rows


def _row(group: str, found: Comparison, name: str) -> dict[str, Any]:
    reach = REACH.get((group, found.test.name)) if name.startswith(("cilia", "events")) else None
    return netbench.row(group, found, name, reach)
