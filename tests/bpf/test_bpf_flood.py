"""A flood of openings against full maps: who began before goes on, who comes next gets through, and a pod
pays for what is remembered of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP

from cilia.dataplane.maps.conntrack import Conntrack
from cilia.dataplane.maps.nodes import Settings
from cilia.dataplane.maps.services import Services
from cilia.dataplane.sweeps import RELIEVED, Sweeps
from tests.support.datapath_world import World, payload
from tests.support.service_world import OF, POD4, Balancer, balancing, ends, from_tunnel, ip, request

pytestmark = pytest.mark.root

AT = OF[4]
FULL, LIMITED = 155, 198
ATTACKERS = [f"203.0.113.{number}" for number in range(20, 250)]


@pytest.fixture
def balancer(world: World) -> Iterator[Balancer]:
    with balancing(world) as made:
        yield made


def collect(world: World, later: float) -> None:
    """A round of collection, so many seconds from now."""
    maps, layout = world.dataplane.maps, world.layout
    conntrack = Conntrack(maps["conntrack"], maps["ct_quota"], layout)
    sweeps = Sweeps(maps, layout, conntrack, Services(maps, layout), Settings(maps["node"], layout))
    for _ in sweeps.collect(lambda: time.clock_gettime(time.CLOCK_MONOTONIC) + later):
        pass


def shake_hands(world: World, port: int = 80, sport: int = 4000) -> None:
    """A client's connection to the pod behind the balancer's address."""
    assert world.from_wire(ip(AT.world, AT.balancer) / request("tcp", sport, port)).action == "LOCAL"
    back = world.from_pod(world.pod_a, ip(AT.pod, AT.world) / request("tcp", 8080, sport, "SA"))
    assert back.action == "NETWORK"
    assert world.from_wire(ip(AT.world, AT.balancer) / request("tcp", sport, port, "A")).action == "LOCAL"


def flood(world: World, *, answered: bool) -> int:
    """Openings of many, until no more are taken; how many were."""
    for taken, attacker in enumerate(ATTACKERS):
        done = world.from_wire(ip(attacker, AT.balancer) / request("tcp", 5000, 80))
        if done.action == "DROP":
            assert done.reason == FULL
            return taken
        if answered:
            world.from_pod(world.pod_a, ip(AT.pod, attacker) / request("tcp", 8080, 5000, "SA"))
    raise AssertionError("the maps took them all")


@pytest.mark.parametrize("answered", [False, True], ids=["unanswered", "answered"])
def test_a_flood_from_outside(balancer: Balancer, answered: bool) -> None:
    """Whether the pod answers forged openings or not, nobody takes them any further."""
    world = balancer.world
    balancer.add(AT.balancer, 80, (AT.pod, 8080))
    shake_hands(world)
    assert flood(world, answered=answered) > 50
    assert world.from_wire(ip(AT.world, AT.balancer) / request("tcp", 4001, 80)).reason == FULL
    collect(world, 2.0)
    assert len(world.service_flows()) <= 1 + RELIEVED * 64
    assert len(world.flows()) <= 1 + RELIEVED * 64
    shake_hands(world, sport=4002)
    old = world.from_wire(ip(AT.world, AT.balancer) / request("tcp", 4000, 80, "A"))
    assert (old.action, old.state) == ("LOCAL", 2)


def test_a_flood_at_one_pod(balancer: Balancer) -> None:
    """It fills the pod's quota long before the maps; another pod's flows, however young, are not asked."""
    world = balancer.world
    world.settings["ct_quota"][0] = 10
    balancer.add(AT.balancer, 80, (AT.pod, 8080))
    balancer.add(AT.balancer, 81, ("10.0.0.12", 8080))
    world.from_wire(ip(AT.world, AT.balancer) / request("tcp", 4000, 81))
    shake_hands(world)
    for attacker in ATTACKERS[:20]:
        done = world.from_wire(ip(attacker, AT.balancer) / request("tcp", 5000, 80))
    assert done.reason == LIMITED
    assert world.quota(world.pod_a.id) == 10
    collect(world, 2.0)
    assert world.quota(world.pod_a.id) <= 1 + RELIEVED * 10
    assert world.quota(world.pod_b.id) == 1
    shake_hands(world, sport=4001)


def test_ports_towards_one_backend_run_out(balancer: Balancer) -> None:
    world = balancer.world
    world.settings["nat_last_port"][0] = int(world.settings["nat_first_port"][0]) + 19
    balancer.add(AT.balancer, 80, (AT.far, 8080))
    done = [
        world.from_wire(ip(attacker, AT.balancer) / request("tcp", 5000, 80)) for attacker in ATTACKERS[:40]
    ]
    assert {outcome.reason for outcome in done} == {0, 167}
    collect(world, 4.0)
    assert len(world.dataplane.maps["snat"].dump()[0]) <= 2 * (1 + RELIEVED * 20)
    assert world.from_wire(ip(AT.world, AT.balancer) / request("tcp", 4000, 80)).action == "TUNNEL"


def test_the_youngest_are_left_alone(balancer: Balancer) -> None:
    """What began in this second may be a handshake under way."""
    world = balancer.world
    balancer.add(AT.balancer, 80, (AT.pod, 8080))
    flood(world, answered=False)
    before = len(world.flows())
    collect(world, -1.0)
    assert len(world.flows()) == before


def test_translations_go_with_their_flows(door: World, balancer: Balancer) -> None:
    """Of openings towards a backend of another node; the port of one that goes on stays its own."""
    world = balancer.world
    balancer.add(AT.balancer, 80, (AT.far, 8080))
    opened = world.from_wire(ip(AT.world, AT.balancer) / request("tcp", 4000, 80))
    port = ends(opened.packet.payload)[1]
    from_tunnel(world, ip(AT.far, AT.router) / request("tcp", 8080, port, "SA"))
    world.from_wire(ip(AT.world, AT.balancer) / request("tcp", 4000, 80, "A"))
    flood(world, answered=False)
    assert len(world.dataplane.maps["snat"].dump()[0]) > 100
    collect(world, 4.0)
    assert len(world.service_flows()) <= 1 + RELIEVED * 64
    again = world.from_wire(ip(AT.world, AT.balancer) / request("tcp", 4000, 80, "A") / payload())
    assert (again.action, ends(again.packet.payload)[1]) == ("TUNNEL", port)
    assert len(world.dataplane.maps["snat"].dump()[0]) <= 2 * (2 + RELIEVED * 64)


def test_a_pods_flows_that_go_on(world: World, balancer: Balancer) -> None:
    """Established, closing and one-way flows of pods outlive a flood; of datagrams that were alone only a few
    stay."""
    balancer.add("10.96.0.10", 80, ("10.0.0.12", 8080))
    client, server = world.pod_a, world.pod_b
    ask = IP(src=POD4, dst="10.96.0.10")
    world.from_pod(client, ask / request("tcp", 4000, 80))
    world.from_pod(server, IP(src="10.0.0.12", dst=POD4) / request("tcp", 8080, 4000, "SA"))
    world.from_pod(client, ask / request("tcp", 4000, 80, "A"))
    for _ in range(3):
        world.from_pod(client, IP(src=POD4, dst="10.0.0.12") / UDP(sport=9, dport=514))
    for sport in range(1, 62):
        world.from_pod(client, IP(src=POD4, dst="10.0.0.12") / UDP(sport=5000 + sport, dport=53))
    collect(world, 2.0)
    assert len(world.flows()) <= 2 + RELIEVED * 64
    kept = {int(key["low_port"]) for key, _ in world.flows()} | {
        int(k["high_port"]) for k, _ in world.flows()
    }
    assert {4000, 9} <= kept
    assert len(world.service_flows()) == 1


def test_a_pod_pays_for_flows_of_services(balancer: Balancer) -> None:
    """Asking one backend by many frontends, and resetting each time, opens one tracked flow at a time."""
    world = balancer.world
    world.settings["ct_quota"][0] = 5
    for number in range(8):
        balancer.add(f"10.96.0.{number + 1}", 80, ("10.0.0.12", 8080))
    reasons = []
    for number in range(8):
        ask = IP(src=POD4, dst=f"10.96.0.{number + 1}")
        reasons.append(world.from_pod(world.pod_a, ask / TCP(sport=4000, dport=80, flags="S")).reason)
        world.from_pod(world.pod_a, ask / TCP(sport=4000, dport=80, flags="R"))
    assert reasons[:5] == [0] * 5
    assert set(reasons[5:]) == {LIMITED}
    assert len(world.service_flows()) == 5
    other = IP(src="10.0.0.12", dst="10.96.0.8") / TCP(sport=4000, dport=80, flags="S")
    assert world.from_pod(world.pod_b, other).action == "LOCAL"
    collect(world, 30.0)
    assert len(world.service_flows()) == 1
    again = IP(src=POD4, dst="10.96.0.8") / TCP(sport=4001, dport=80, flags="S")
    assert world.from_pod(world.pod_a, again).action == "LOCAL"
