"""What is counted of each policy entry."""

from __future__ import annotations

import time

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet

from tests.support.datapath_world import (
    ALLOW,
    DENY,
    EGRESS,
    INGRESS,
    POD_FAR4,
    ROUTER4,
    Rule,
    World,
)

pytestmark = pytest.mark.root

TCP_NUMBER = 6
TICK = 0.02
"""Seconds that the programs' coarse clock may be behind."""
A, B = "10.0.0.11", "10.0.0.12"
OUT_OF_A = (1, EGRESS, 0, 0, 0, 0, 2)
"""pod_a's rule for all that it sends: subject, direction, peer, protocol, port, bits, cookie."""


def ahead(flags: str, port: int = 80) -> Packet:
    return IP(src=A, dst=B) / TCP(sport=40000, dport=port, flags=flags)


def back(flags: str, port: int = 80) -> Packet:
    return IP(src=B, dst=A) / TCP(sport=port, dport=40000, flags=flags)


def of_b(world: World) -> dict[tuple[int, ...], tuple[int, int]]:
    """The counts of pod_b's entries, without the subject."""
    return {key[1:]: value for key, value in world.entry_counts().items() if key[0] == 2}


def test_a_new_flow_is_counted_on_both_sides_and_no_more(world: World) -> None:
    world.from_pod(world.pod_a, ahead("S"))
    for _ in range(3):
        world.from_pod(world.pod_b, back("SA"))
        world.from_pod(world.pod_a, ahead("A"))
    assert world.entry_counts() == {OUT_OF_A: (1, 40), (2, INGRESS, 0, 0, 0, 0, 1): (1, 40)}


@pytest.mark.parametrize(
    ("peer", "bits", "protocol", "port", "named"),
    [
        (1001, 24, TCP_NUMBER, 80, 80),
        (0, 24, TCP_NUMBER, 80, 80),
        (1001, 20, TCP_NUMBER, 64, 64),
        (1001, 8, TCP_NUMBER, 0, 0),
        (1001, 0, 0, 0, 0),
    ],
)
def test_the_key_is_the_entrys(
    world: World, peer: int, bits: int, protocol: int, port: int, named: int
) -> None:
    rule = Rule(INGRESS, ALLOW, peer=peer, protocol=protocol, port=port, bits=bits, cookie=9)
    world.set_policy(2, (Rule(INGRESS, DENY, precedence=1, cookie=3, flags=4), rule))
    world.from_pod(world.pod_a, ahead("S", port=78 if bits == 20 else 80))
    assert of_b(world) == {(INGRESS, peer, protocol, named, bits, 9): (1, 40)}


def test_every_denied_packet_is_counted(world: World) -> None:
    rule = Rule(INGRESS, DENY, peer=1001, protocol=TCP_NUMBER, port=80, bits=24, cookie=8)
    world.set_policy(2, (rule, Rule(EGRESS, cookie=5)))
    for _ in range(3):
        assert world.from_pod(world.pod_a, ahead("S")).reason == 181
    assert of_b(world) == {(INGRESS, 1001, TCP_NUMBER, 80, 24, 8): (3, 120)}


@pytest.mark.parametrize("direction", ["request", "reply"])
def test_remembered_denials_are_counted(world: World, direction: str) -> None:
    """The packets of a flow that ended by a change, whichever way they travel."""
    world.from_pod(world.pod_a, ahead("S"))
    rule = Rule(INGRESS, DENY, peer=1001, protocol=TCP_NUMBER, port=80, bits=24, cookie=8)
    world.set_policy(2, (rule, Rule(EGRESS, cookie=5)))
    for _ in range(4):
        if direction == "request":
            assert world.from_pod(world.pod_a, ahead("A")).reason == 181
        else:
            assert world.from_pod(world.pod_b, back("A")).reason == 181
    assert of_b(world)[(INGRESS, 1001, TCP_NUMBER, 80, 24, 8)] == (4, 160)


def test_a_remembered_denial_of_the_initiators_side(world: World) -> None:
    world.from_pod(world.pod_a, ahead("S"))
    world.set_policy(1, (Rule(EGRESS, DENY, peer=1002, cookie=8), Rule(INGRESS, cookie=5)))
    for _ in range(2):
        assert world.from_pod(world.pod_a, ahead("A")).reason == 181
        assert world.from_pod(world.pod_b, back("A")).reason == 181
    assert world.entry_counts()[(1, EGRESS, 1002, 0, 0, 0, 8)] == (4, 160)


def test_a_flow_judged_again_is_counted_once_more(world: World) -> None:
    world.from_pod(world.pod_a, ahead("S"))
    world.switch(2)
    for _ in range(3):
        world.from_pod(world.pod_a, ahead("A"))
    assert of_b(world) == {(INGRESS, 0, 0, 0, 0, 1): (2, 80)}


def test_ends_elsewhere_have_no_entries_here(world: World) -> None:
    world.from_pod(world.pod_a, IP(src=A, dst=POD_FAR4) / UDP(sport=5, dport=53))
    world.from_host(IP(src=ROUTER4, dst=B) / UDP(sport=5, dport=53))
    assert set(world.entry_counts()) == {OUT_OF_A, (2, INGRESS, 0, 0, 0, 0, 1)}


def test_an_audited_denial_is_counted(world: World) -> None:
    world.set_policy(2, (Rule(INGRESS, DENY, cookie=8, flags=1), Rule(EGRESS, cookie=5)))
    world.from_pod(world.pod_a, ahead("S"))
    world.from_pod(world.pod_a, ahead("A"))
    assert of_b(world) == {(INGRESS, 0, 0, 0, 0, 8): (1, 40)}


def test_the_flow_remembers_which_entries_decided(world: World) -> None:
    rule = Rule(INGRESS, ALLOW, peer=1001, protocol=TCP_NUMBER, port=80, bits=24, cookie=9)
    world.set_policy(2, (rule, Rule(EGRESS, cookie=5)))
    world.from_pod(world.pod_a, ahead("S"))
    _, value = world.only_flow()
    assert value["prefix"].tolist() == [0, 24]
    assert value["any_peer"].tolist() == [1, 0]


def test_the_last_use_is_noted(world: World) -> None:
    earliest = int(time.clock_gettime(time.CLOCK_MONOTONIC) - TICK)
    world.from_pod(world.pod_a, ahead("S"))
    keys, values = world.dataplane.maps["policy_counters"].dump()
    latest = int(time.clock_gettime(time.CLOCK_MONOTONIC))
    assert len(keys) == 2
    assert all(earliest <= int(last) <= latest for last in values["last"][values["last"] > 0])
