"""Verdicts that share the record of a trace say what they would have said alone: told by the same packets,
once with a limit of events nobody reaches, which gives each event a record of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from tests.bpf.test_bpf_host_firewall import OPEN, SSH, WORLD_SYN, Host
from tests.support.datapath_ears import SPOOFED, Ears, ahead, back
from tests.support.datapath_world import (
    DENY,
    EGRESS,
    INGRESS,
    NODE4,
    POD_FAR4,
    POD_FAR6,
    WORLD4,
    Frontend,
    Rule,
    World,
)

pytestmark = pytest.mark.root

PLENTY = 1_000_000
VIP4, VIP6 = "10.96.0.10", "fd00:96::10"
OWN = ("time", "sequence")
"""What no two events share."""
AUDIT = 1
VERDICT = 3


def talk(world: World) -> None:
    for flags in ("S", "A", "FA"):
        world.from_pod(world.pod_a, ahead(flags))
        world.from_pod(world.pod_b, back("SA" if flags == "S" else flags))


def answer_first(world: World) -> None:
    """The node sees an answer before it sees what was asked."""
    world.from_pod(world.pod_b, back("SA"))
    world.from_pod(world.pod_a, ahead("A"))


def ipv6(world: World) -> None:
    world.from_pod(world.pod_a, IPv6(src="fd00::11", dst="fd00::12") / UDP(sport=5, dport=53))
    world.from_pod(world.pod_b, IPv6(src="fd00::12", dst="fd00::11") / UDP(sport=53, dport=5))


def far(world: World) -> None:
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=POD_FAR4) / UDP(sport=5, dport=53))
    world.from_pod(world.pod_a, IPv6(src="fd00::11", dst=POD_FAR6) / UDP(sport=5, dport=53))
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=WORLD4) / ICMP(type=8, id=7))


def services(world: World) -> None:
    world.add_service(Frontend(1, VIP4, 80), [("10.0.0.12", 8080)])
    world.add_service(Frontend(2, VIP6, 80), [("fd00::12", 8080)])
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=VIP4) / TCP(sport=40000, dport=80, flags="S"))
    world.from_pod(
        world.pod_b, IP(src="10.0.0.12", dst="10.0.0.11") / TCP(sport=8080, dport=40000, flags="SA")
    )
    world.from_pod(world.pod_a, IPv6(src="fd00::11", dst=VIP6) / TCP(sport=40000, dport=80, flags="S"))


def of_the_host(world: World) -> None:
    host = Host(world)
    host.rules(SSH, *OPEN)
    world.from_wire(WORLD_SYN)
    world.to_wire(IP(src=NODE4, dst=WORLD4) / TCP(sport=22, dport=40000, flags="SA"))
    world.from_host(IP(src=NODE4, dst="10.0.0.11") / TCP(sport=7, dport=80, flags="S"))
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=NODE4) / TCP(sport=9, dport=22, flags="S"))


def one_side(world: World) -> None:
    world.set_policy(1, (Rule(EGRESS, cookie=0, flags=4), Rule(INGRESS, cookie=0, flags=4)))
    talk(world)


def in_audit(world: World) -> None:
    world.set_policy(2, (Rule(INGRESS, DENY, cookie=3, flags=4 | AUDIT),))
    talk(world)
    world.set_policy(1, (Rule(EGRESS, DENY, cookie=5, flags=AUDIT),))
    ipv6(world)


def after_an_audit(world: World) -> None:
    """What was judged before must not stick to what comes after."""
    in_audit(world)
    world.set_policy(1, (Rule(EGRESS, cookie=8), Rule(INGRESS, cookie=9)))
    world.set_policy(2, (Rule(EGRESS, cookie=6), Rule(INGRESS, cookie=7)))
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst="10.0.0.12") / UDP(sport=6, dport=53))
    world.from_pod(world.pod_a, ahead("A"))


def denied_and_spoofed(world: World) -> None:
    world.from_pod(world.pod_a, SPOOFED)
    world.set_policy(2, (Rule(INGRESS, DENY, cookie=3),))
    talk(world)


SCENES = (
    talk,
    answer_first,
    ipv6,
    far,
    services,
    of_the_host,
    one_side,
    in_audit,
    after_an_audit,
    denied_and_spoofed,
)


def told(
    world: World, scene: Callable[[World], None], muted: str, level: str, rate: int
) -> tuple[list[list[tuple[bytes, ...]]], int]:
    """Of both rings, each event's fields; how many of them are verdicts."""
    world.furnish()
    world.settings["event_rate"][0] = world.settings["event_burst"][0] = rate
    world.settings["aggregation"][0] = world.layout.value(f"AGGREGATION_{level}")
    world.settings["drop_rate"][0] = 0
    if muted:
        world.settings["flags"][0] |= world.layout.value(f"NODE_MUTE_{muted}")
    ears = Ears(world)
    scene(world)
    rings = ears.read()
    for ring in rings:
        numbers = [int(event["sequence"]) for event in ring]
        assert not ring or numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    verdicts = sum(int(event["kind"]) == VERDICT for ring in rings for event in ring)
    return [[fields(event) for event in ring] for ring in rings], verdicts


def fields(event: np.void) -> tuple[bytes, ...]:
    names = event.dtype.names or ()
    return tuple(name.encode() + b" " + event[name].tobytes() for name in names if name not in OWN)


@pytest.mark.parametrize("level", ["MEDIUM", "NONE"])
@pytest.mark.parametrize("muted", ["", "TRACES", "VERDICTS", "DROPS"])
@pytest.mark.parametrize("scene", SCENES)
def test_events_are_the_same_in_records_of_their_own(
    world: World, scene: Callable[[World], None], muted: str, level: str
) -> None:
    apart, _ = told(world, scene, muted, level, PLENTY)
    together, verdicts = told(world, scene, muted, level, 0)
    assert together == apart
    assert (verdicts == 0) == (muted == "VERDICTS" or scene is denied_and_spoofed)
