"""Which endpoints are candidates, against the rules of kube-proxy restated one by one."""

from __future__ import annotations

import random

import pytest

from cilia.control.services.choice import Asked, Bound, Readings, choose, gather
from cilia.control.services.standing import Standing
from cilia.model.service import Backend, Protocol
from cilia.schema import EndpointSliceRow
from cilia.schema.rows import ServicePort, SliceEndpoint, SlicePort

HERE = Standing(name="one", zone="a")
PORT = ServicePort("http", 80, Protocol.TCP)
ASKED = Asked(PORT, False, frozenset(), frozenset())


def random_endpoint(rng: random.Random, number: int) -> SliceEndpoint:
    zone, node = rng.choice("abc"), rng.choice(("one", "two", "three"))
    hinted = rng.random()
    return SliceEndpoint(
        addresses=(f"10.0.0.{number}",),
        ready=rng.random() < 0.6,
        serving=rng.random() < 0.7,
        terminating=rng.random() < 0.5,
        node=node,
        zone=zone,
        hint_zones=(zone,) if hinted < 0.9 else (),
        hint_nodes=(node,) if hinted < 0.5 else (),
    )


def addresses(backends: tuple[Backend, ...]) -> set[str]:
    return {backend.address for backend in backends}


def expected(endpoints: list[SliceEndpoint], here: Standing, *, local: bool) -> set[str]:
    """Step by step: the ready ones, narrowed by hints that all of them have; else those that serve still."""
    mine = [e for e in endpoints if e.node == here.name] if local else endpoints
    ready = [e for e in mine if e.ready]
    if not ready:
        return {e.addresses[0] for e in mine if e.serving and e.terminating}
    if local:
        return {e.addresses[0] for e in ready}
    for_node = [e for e in ready if here.name in e.hint_nodes]
    for_zone = [e for e in ready if here.zone in e.hint_zones]
    if for_node and all(e.hint_nodes for e in ready):
        return {e.addresses[0] for e in for_node}
    if for_zone and all(e.hint_zones for e in ready):
        return {e.addresses[0] for e in for_zone}
    return {e.addresses[0] for e in ready}


@pytest.mark.parametrize("seed", range(300))
def test_candidates_are_kube_proxys(seed: int) -> None:
    rng = random.Random(seed)
    endpoints = [random_endpoint(rng, number) for number in range(rng.randrange(1, 8))]
    if rng.random() < 0.5:
        endpoints = [e for e in endpoints if e.hint_zones]
    parts = rng.randrange(len(endpoints) + 1)
    slices = [
        EndpointSliceRow(
            namespace="shop",
            name=f"s{number}",
            service="web",
            endpoints=tuple(part),
            ports=(SlicePort("http", 8080, Protocol.TCP),),
        )
        for number, part in enumerate((endpoints[:parts], endpoints[parts:]))
    ]
    gathered = gather(slices, ASKED, {}, Bound(100, HERE.name), Readings())
    choice = choose(gathered.known, HERE, topology=True, distribution="")
    assert addresses(choice.cluster) == expected(endpoints, HERE, local=False)
    assert addresses(choice.local) == expected(endpoints, HERE, local=True)
    everybody = {endpoint.addresses[0] for endpoint in endpoints}
    assert addresses(choice.draining(choice.cluster, local=False)) == everybody - addresses(choice.cluster)
