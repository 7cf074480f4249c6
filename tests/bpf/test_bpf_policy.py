"""Verdicts: which entry decides, and what becomes of it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from scapy.layers import inet

from cilia.dataplane import bpf
from tests.support.datapath_world import (
    ALLOW,
    ALLOW_ALL,
    DENY,
    DENY_ALL,
    EGRESS,
    ICMP,
    INGRESS,
    TCP,
    UDP,
    WORLD4,
    Rule,
    World,
)

pytestmark = pytest.mark.root

SYN = inet.IP(src="10.0.0.11", dst="10.0.0.12") / inet.TCP(sport=40000, dport=80, flags="S")
DEFAULT_DENY = Rule(INGRESS, DENY, precedence=1, cookie=3, flags=4)
AUDITED_DENY = Rule(INGRESS, DENY, precedence=1, cookie=3, flags=4 | 1)
DEFAULT_ALLOW = Rule(INGRESS, ALLOW, precedence=1, cookie=1, flags=4)


def judged(world: World, *rules: Rule, port: int = 80) -> tuple[int, int]:
    """(reason, cookie of the ingress side) of a SYN to pod_b under these ingress rules."""
    world.set_policy(2, rules)
    packet = inet.IP(src="10.0.0.11", dst="10.0.0.12") / inet.TCP(sport=40000, dport=port, flags="S")
    done = world.from_pod(world.pod_a, packet)
    return done.reason, done.ingress_cookie


def test_default_verdicts(world: World) -> None:
    assert judged(world, DEFAULT_ALLOW) == (0, 1)
    world.forget_flows()
    assert judged(world, DEFAULT_DENY) == (133, 3)


def test_a_rule_beats_the_default(world: World) -> None:
    rule = Rule(INGRESS, ALLOW, peer=1001, protocol=TCP, port=80, bits=24, cookie=9)
    assert judged(world, DEFAULT_DENY, rule) == (0, 9)
    world.forget_flows()
    assert judged(world, DEFAULT_DENY, rule, port=81) == (133, 3)


def test_a_deny_rule(world: World) -> None:
    assert judged(world, DEFAULT_ALLOW, Rule(INGRESS, DENY, peer=1001, cookie=8)) == (181, 8)


@pytest.mark.parametrize(
    ("of_peer", "of_any", "reason"),
    [
        ((ALLOW, 5), (DENY, 4), 0),
        ((ALLOW, 4), (DENY, 5), 181),
        ((DENY, 5), (ALLOW, 4), 181),
        ((DENY, 4), (ALLOW, 5), 0),
    ],
)
def test_higher_precedence_decides(
    world: World, of_peer: tuple[int, int], of_any: tuple[int, int], reason: int
) -> None:
    rules = (
        Rule(INGRESS, of_peer[0], peer=1001, precedence=of_peer[1], cookie=21),
        Rule(INGRESS, of_any[0], protocol=TCP, port=80, bits=24, precedence=of_any[1], cookie=22),
    )
    cookie = 21 if of_peer[1] > of_any[1] else 22
    assert judged(world, DEFAULT_DENY, *rules) == (reason, cookie)


@pytest.mark.parametrize(("of_peer", "of_any"), [(ALLOW, DENY), (DENY, ALLOW)])
def test_a_tie_denies(world: World, of_peer: int, of_any: int) -> None:
    rules = (
        Rule(INGRESS, of_peer, peer=1001, precedence=5),
        Rule(INGRESS, of_any, protocol=TCP, port=80, bits=24, precedence=5),
    )
    assert judged(world, DEFAULT_DENY, *rules)[0] == 181


def test_longest_prefix_of_one_peer(world: World) -> None:
    rules = (
        Rule(INGRESS, DENY, peer=1001, cookie=31),
        Rule(INGRESS, ALLOW, peer=1001, protocol=TCP, bits=8, cookie=32),
        Rule(INGRESS, DENY, peer=1001, protocol=TCP, port=80, bits=20, cookie=33),
    )
    assert judged(world, DEFAULT_DENY, *rules, port=80) == (181, 33)
    assert judged(world, DEFAULT_DENY, *rules, port=95) == (181, 33)
    assert judged(world, DEFAULT_DENY, *rules, port=96) == (0, 32)


def test_directions_are_apart(world: World) -> None:
    world.set_policy(1, (Rule(EGRESS, DENY, precedence=1, cookie=4, flags=4), DEFAULT_ALLOW))
    done = world.from_pod(world.pod_a, SYN)
    assert (done.reason, done.egress_cookie, done.ingress_cookie) == (133, 4, 0)


def test_icmp_is_judged_by_its_type(world: World) -> None:
    echo = Rule(INGRESS, ALLOW, protocol=ICMP, port=8, bits=24, cookie=41)
    world.set_policy(2, (DEFAULT_DENY, echo))
    ping = inet.IP(src="10.0.0.11", dst="10.0.0.12") / inet.ICMP(type=8, id=7)
    assert world.from_pod(world.pod_a, ping).ingress_cookie == 41
    pong = inet.IP(src="10.0.0.12", dst="10.0.0.11") / inet.ICMP(type=0, id=7)
    assert (world.from_pod(world.pod_b, pong).action, world.counted(163)) == ("LOCAL", world.counted(163))
    stamp = inet.IP(src="10.0.0.11", dst="10.0.0.12") / inet.ICMP(type=13, id=7)
    assert world.from_pod(world.pod_a, stamp).reason == 133


def test_no_revision_denies(world: World) -> None:
    world.active[2] = (2, 0)
    assert world.from_pod(world.pod_a, SYN).reason == 165
    world.active[2] = (63, 5)
    assert world.from_pod(world.pod_a, SYN).reason == 165


def test_an_empty_map_denies(world: World) -> None:
    assert judged(world)[0] == 165


def test_no_revision_denies_running_flows(world: World) -> None:
    assert world.from_pod(world.pod_a, SYN).action == "LOCAL"
    world.active[2] = (2, 0)
    assert world.from_pod(world.pod_a, SYN).reason == 165


def test_world_side_has_no_policy_here(world: World) -> None:
    world.set_policy(1, DENY_ALL)
    out = inet.IP(src="10.0.0.11", dst=WORLD4) / inet.UDP(sport=5, dport=53)
    assert (world.from_pod(world.pod_a, out).reason, world.flows()) == (133, [])
    world.set_policy(1, ALLOW_ALL)
    assert world.from_pod(world.pod_a, out).action == "NETWORK"


def test_audit_reports_but_forwards(world: World) -> None:
    assert judged(world, AUDITED_DENY) == (0, 3)
    _, value = world.only_flow()
    assert int(value["side"][1]["flags"]) & world.layout.value("POLICY_AUDIT")


def test_the_end_of_audit_ends_what_it_let_through(world: World) -> None:
    assert judged(world, AUDITED_DENY) == (0, 3)
    world.set_policy(2, (DEFAULT_DENY,))
    done = world.from_pod(world.pod_a, SYN)
    assert (done.reason, done.ingress_cookie) == (133, 3)
    world.set_policy(2, (AUDITED_DENY,))
    assert world.from_pod(world.pod_a, SYN).action == "LOCAL"


def test_an_audited_allow_is_an_allow(world: World) -> None:
    assert judged(world, Rule(INGRESS, ALLOW, cookie=5, flags=1)) == (0, 5)


def test_batch_program_agrees_with_packets(world: World) -> None:
    """Random rules: what packets meet is what the batch program answers."""
    random = np.random.default_rng(11)
    rules = tuple(
        Rule(
            INGRESS,
            int(random.integers(0, 2)),
            peer=int(random.choice([0, 1001, 1002])),
            protocol=TCP,
            port=int(random.integers(0, 8)) << 4,
            bits=int(random.choice([8, 20, 24])),
            precedence=int(random.integers(2, 6)),
            cookie=100 + number,
        )
        for number in range(40)
    )
    world.set_policy(2, (DEFAULT_DENY, *rules))
    cases = world.dataplane.maps["policy_cases"].memory()
    ports = random.integers(0, 140, 100)
    for index, port in enumerate(ports):
        cases[index] = np.zeros((), cases.dtype)
        cases[index]["subject"], cases[index]["peer"] = 2, 1001
        cases[index]["direction"], cases[index]["protocol"], cases[index]["port"] = INGRESS, TCP, port
    context = struct.pack("<II", 0, len(ports))
    bpf.test_run(world.dataplane.programs["judge_policies"], context=context)
    for index, port in enumerate(ports):
        world.forget_flows()
        packet = inet.IP(src="10.0.0.11", dst="10.0.0.12") / inet.TCP(sport=9, dport=int(port), flags="S")
        done = world.from_pod(world.pod_a, packet)
        assert (done.reason, done.ingress_cookie) == (
            int(cases[index]["reason"]),
            int(cases[index]["cookie"]),
        )


def test_batch_program_knows_missing_policies(world: World) -> None:
    cases = world.dataplane.maps["policy_cases"].memory()
    cases[0] = np.zeros((), cases.dtype)
    cases[0]["subject"], cases[0]["protocol"] = 999, UDP
    bpf.test_run(world.dataplane.programs["judge_policies"], context=struct.pack("<II", 0, 1))
    assert (int(cases[0]["reason"]), int(cases[0]["verdict"])) == (165, DENY)
