"""Random events about services: computed step by step the tables are those computed from scratch.

A walk goes through random states of everything services depend on, few names and few ports so that many want
the same: Services of all kinds, slices with and without them, pods with host ports, redirects, services by
hand, and this node's zone and addresses. Each way is taken in single changes or at once, in any order, split,
back, with the empty state between.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from cilia.control.graph import GraphConfig
from cilia.control.services.settings import Mode, ServiceSettings
from cilia.model.node import Node
from cilia.model.service import Algorithm, Backend, Frontend, Protocol
from cilia.schema import (
    Desired,
    EndpointSliceRow,
    LocalRedirectRow,
    LocalServiceRow,
    PodRow,
    ServiceRow,
)
from cilia.schema.rows import HostPort, RedirectPort, ServicePort, SliceEndpoint, SlicePort
from cilia.tables.table import Table
from tests.support.flows import Brain, Rows, changes, walk

NAMES = ("web", "db", "api")
NODES = ("one", "two")
TCP, UDP = Protocol.TCP, Protocol.UDP

seeds = pytest.mark.parametrize("seed", range(25))


def some(rng: random.Random, rows: list[Any]) -> list[Any]:
    return [row for row in rows if rng.random() < 0.7]


def service(rng: random.Random, name: str) -> ServiceRow:
    notes = {
        "lb-algorithm": rng.choice(("random", "maglev", "odd")),
        "forwarding-mode": rng.choice(("dsr", "snat")),
        "type": rng.choice(("ClusterIP", "NodePort", "LoadBalancer", "odd")),
        "node-selector": rng.choice(("pool=a", "pool!=a", "(")),
        "src-ranges-policy": rng.choice(("allow", "deny")),
    }
    return ServiceRow(
        namespace="shop",
        name=name,
        created=rng.choice(("", "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z")),
        labels=rng.choice(({}, {}, {}, {"service.kubernetes.io/service-proxy-name": "other"})),
        annotations={f"service.cilium.io/{n}": v for n, v in notes.items() if rng.random() < 0.15},
        type=rng.choice(("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer")),
        headless=rng.random() < 0.1,
        cluster_ips=rng.choice(
            (("10.96.0.1",), ("10.96.0.2",), (f"10.96.0.{3 + NAMES.index(name)}", "fd96::1"))
        ),
        external_ips=tuple(some(rng, ["198.51.100.1", "10.96.0.1", "fd99::1"])),
        load_balancer_ips=tuple(some(rng, ["203.0.113.1", "172.18.0.2"])),
        ports=tuple(
            ServicePort(port, number, protocol, rng.choice((0, 30001, 30002)))
            for port, number, protocol in some(rng, [("a", 80, TCP), ("b", 30001, TCP), ("c", 80, UDP)])
        ),
        external_local=rng.random() < 0.3,
        internal_local=rng.random() < 0.3,
        affinity=rng.choice((0, 60)),
        source_ranges=rng.choice(((), (), ("10.0.0.0/8",), ("10.0.0.0/8", "x"), ("x",))),
        health_check_port=rng.choice((0, 32000, 32001)),
        traffic_distribution=rng.choice(("", "PreferClose", "PreferSameNode")),
    )


def endpoint(rng: random.Random, ipv6: bool) -> SliceEndpoint:
    node, zone = rng.choice(NODES), rng.choice("ab")
    number = rng.randrange(6)
    return SliceEndpoint(
        addresses=(f"fd00::{number}" if ipv6 else rng.choice((f"10.0.0.{number}", "10.96.0.1")),),
        ready=rng.random() < 0.6,
        serving=rng.random() < 0.7,
        terminating=rng.random() < 0.4,
        node=node,
        zone=zone,
        hint_zones=(zone,) if rng.random() < 0.8 else (),
        hint_nodes=(node,) if rng.random() < 0.3 else (),
    )


def slice_of(rng: random.Random, name: str) -> EndpointSliceRow:
    ipv6 = rng.random() < 0.3
    weight = {"service.cilium.io/weight": rng.choice(("0", "50", "100", "x"))}
    return EndpointSliceRow(
        namespace="shop",
        name=name,
        service=rng.choice((*NAMES, "nobody")),
        annotations=weight if rng.random() < 0.3 else {},
        ipv6=ipv6,
        endpoints=tuple(endpoint(rng, ipv6) for _ in range(rng.randrange(5))),
        ports=tuple(
            SlicePort(port, number, protocol)
            for port, number, protocol in some(rng, [("a", 8080, TCP), ("b", 9090, TCP), ("c", 8080, UDP)])
        ),
    )


def pod(rng: random.Random, name: str) -> PodRow:
    return PodRow(
        namespace="shop",
        name=name,
        node="one",
        labels={"app": rng.choice(NAMES)},
        host_network=rng.random() < 0.1,
        addresses=(f"10.0.0.{rng.randrange(6)}", "fd00::9")[: rng.randrange(3)],
        host_ports=tuple(
            HostPort(
                rng.choice((80, 8080, 30001)), 80, TCP, rng.choice(("", "172.18.0.2", "127.0.0.1", "fd18::2"))
            )
            for _ in range(rng.randrange(3))
        ),
        ready=rng.random() < 0.7,
        terminating=rng.random() < 0.2,
    )


def redirect(rng: random.Random, name: str) -> LocalRedirectRow:
    ports = [RedirectPort(80, TCP, "a"), RedirectPort(30001, TCP, "b")][: rng.randint(1, 2)]
    by_address = rng.random() < 0.5
    return LocalRedirectRow(
        namespace="shop",
        name=name,
        address=rng.choice(("169.254.169.254", "10.96.0.1")) if by_address else "",
        service="" if by_address else rng.choice(NAMES),
        frontend_ports=tuple(ports) if by_address or rng.random() < 0.5 else (),
        backend_labels={"app": rng.choice(NAMES)},
        backend_ports=tuple(RedirectPort(7000 + port.port, TCP, port.name) for port in ports),
        skip_from_backend=rng.random() < 0.5,
    )


def by_hand(rng: random.Random, address: str) -> LocalServiceRow:
    return LocalServiceRow(
        frontend=Frontend(address, 80, TCP),
        backends=tuple(Backend(f"10.0.0.{n}", 80, TCP, rng.randrange(3)) for n in range(rng.randrange(4))),
        algorithm=rng.choice(("", "maglev", "odd")),
        local_only=rng.random() < 0.5,
    )


def state(rng: random.Random) -> Rows:
    own = Node(
        name="one",
        addresses=rng.choice((("172.18.0.2",), ("172.18.0.2", "fd18::2"), ("172.18.0.9",))),
        labels={"pool": rng.choice("ab"), "topology.kubernetes.io/zone": rng.choice("ab")},
    )
    return {
        "nodes": some(rng, [own, Node(name="two", addresses=("172.18.0.3",))]),
        "services": some(rng, [service(rng, name) for name in NAMES]),
        "endpoint_slices": some(rng, [slice_of(rng, f"s{n}") for n in range(5)]),
        "pods": some(rng, [pod(rng, f"p{n}") for n in range(4)]),
        "redirects": some(rng, [redirect(rng, name) for name in ("r1", "r2")]),
        "local_services": some(rng, [by_hand(rng, a) for a in ("10.96.0.1", "192.0.2.1", "172.18.0.2")]),
    }


def config(seed: int) -> GraphConfig:
    rng = random.Random(seed)
    return GraphConfig(
        node="one",
        services=ServiceSettings(
            algorithm=rng.choice(list(Algorithm)),
            mode=rng.choice(list(Mode)),
            external_cluster_ip=rng.random() < 0.3,
            source_ranges_everywhere=rng.random() < 0.3,
            local_redirects=rng.random() < 0.8,
            health_checks_at_load_balancer=rng.random() < 0.5,
            max_backends=rng.choice((2, 100)),
        ),
    )


def begin(seed: int, *, synced: bool = True) -> Brain:
    brain = Brain(config(seed))
    for table in brain.inputs.tables():
        table.synced = synced
    return brain


def content(desired: Desired) -> dict[str, dict[Any, Any]]:
    tables: list[Table[Any, Any]] = [desired.service_entries, desired.service_states, desired.health_checks]
    return {table.name: {table._key(row): row for row in table} for table in tables}


def afresh(rows: Rows, seed: int) -> dict[str, dict[Any, Any]]:
    brain = begin(seed)
    walk(brain, changes({}, rows), "end")
    return content(brain.desired)


@seeds
def test_a_walk_ends_where_a_fresh_start_does(seed: int) -> None:
    rng = random.Random(seed)
    brain, last = begin(seed, synced=False), Rows()
    for turn in range(8):
        rows = {} if rng.random() < 0.15 else state(rng)
        path = changes(last, rows)
        rng.shuffle(path)
        walk(brain, path, rng.choice(("each", "twice", "end")))
        if turn == 0:
            for table in brain.inputs.tables():
                table.synced = True
            brain.step()
        assert content(brain.desired) == afresh(rows, seed)
        last = rows


@seeds
def test_there_and_back_leaves_no_trace(seed: int) -> None:
    rng = random.Random(1000 + seed)
    first, second = state(rng), state(rng)
    brain = begin(seed)
    walk(brain, changes({}, first), "end")
    for rhythm, backwards in itertools.product(("each", "end"), (False, True)):
        for before, after in ((first, second), (second, {}), ({}, first)):
            path = changes(before, after)
            walk(brain, reversed(path) if backwards else path, rhythm)
        assert content(brain.desired) == afresh(first, seed), (rhythm, backwards)


@seeds
def test_parts_of_a_change_in_any_split(seed: int) -> None:
    rng = random.Random(2000 + seed)
    first, second = state(rng), state(rng)
    brain = begin(seed)
    walk(brain, changes({}, first), "end")
    path = changes(first, second)
    while path:
        size = rng.randint(1, len(path))
        walk(brain, path[:size], "end")
        del path[:size]
    assert content(brain.desired) == afresh(second, seed)


@seeds
def test_what_holds_of_every_entry(seed: int) -> None:
    brain = begin(seed)
    walk(brain, changes({}, state(random.Random(3000 + seed))), "end")
    known = {row.key for row in brain.desired.service_states}
    for entry in brain.desired.service_entries:
        family = ":" in entry.frontend.address
        candidates = {*entry.internal, *entry.external}
        for backend in (*candidates, *entry.draining):
            assert (":" in backend.address) is family
            assert backend.protocol is entry.frontend.protocol
        assert all(backend.weight for backend in candidates)
        assert candidates.isdisjoint(entry.draining)
        for backends in (entry.internal, entry.external, entry.draining):
            assert list(backends) == sorted(set(backends), key=lambda one: (one.address, one.port))
        assert entry.outside or not entry.external
        assert any(key[1] == entry.namespace for key in known)
