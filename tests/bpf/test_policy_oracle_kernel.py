"""The kernel judges as the oracle: policies are compiled, written by the agent's own writer and asked about
in batches, under random policies and rules and after random changes.

Twenty thousand cases run always, a million with CILIA_LONG=1 in the environment (some ten minutes).
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cilia.control.policy.entries.cookies import CookieBook
from cilia.control.policy.entries.resolve import Group, decide
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.reasons import oracle
from cilia.dataplane import bpf, loader
from cilia.dataplane.maps.policy import Policies
from cilia.dataplane.pool import PolicyPool
from cilia.model.ids import Revision, SubjectId
from cilia.model.policy import EntryFlags, PolicyMode, SubjectKey, SubjectPolicy
from tests.support.policy_cases import PODS, World, cases, change, random_policy, scenario
from tests.support.policy_random import Question, compiled, questions, setting

LONG = os.environ.get("CILIA_LONG") == "1"
SCENARIOS, CASES = (400, 500) if LONG else (12, 500)
SETTINGS, QUESTIONS = (2000, 100) if LONG else (35, 100)
"""Per setting four subjects or more are asked about."""
pytestmark = [pytest.mark.root, pytest.mark.timeout(3600 if LONG else 120)]
ALLOWED, DEFAULT_DENIED, DENIED = 0, 133, 181

Asked = tuple[SubjectId, int, int, int, int]
"""Subject, peer, direction, protocol, port."""


class Kernel:
    """The policy maps of a loaded data path and the program that answers in batches."""

    def __init__(self, dataplane: loader.Dataplane) -> None:
        maps = dataplane.maps
        self._pool = PolicyPool(maps["policies"], dataplane.layout, ())
        dataplane.on_close.append(self._pool.close)
        self._policies = Policies(
            maps["policy_active"], maps[loader.REVISION_MAP], self._pool, dataplane.layout
        )
        self._cases = maps["policy_cases"].memory()
        self._program = dataplane.programs["judge_policies"]

    def enforce(self, rows: list[SubjectPolicy]) -> None:
        """Put subjects in force, and no others."""
        self._policies.prune(rows)
        assert self._policies.update(rows) == {}
        self._policies.finish()

    def judge(self, asked: list[Asked]) -> np.ndarray[Any, Any]:
        """The answers, as struct policy_case."""
        questions = np.zeros(len(asked), self._cases.dtype)
        for place, field in enumerate(("subject", "peer", "direction", "protocol", "port")):
            questions[field] = [case[place] for case in asked]
        self._cases[: len(asked)] = questions
        bpf.test_run(self._program, context=struct.pack("<II", 0, len(asked)))
        return self._cases[: len(asked)].copy()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    if os.geteuid() != 0:
        pytest.skip("needs root: loads eBPF programs")
    prefix = Path(f"/sys/fs/bpf/cilia-test-policy-{os.getpid()}")
    dataplane = loader.load(prefix, sizes={"conntrack": 64, "snat": 64, "ipcache": 64, "ipcache_hosts": 64})
    try:
        yield Kernel(dataplane)
    finally:
        dataplane.close()
        loader.remove(prefix)


def agrees(answer: Any, verdict: oracle.Verdict, named: frozenset[Any]) -> bool:
    """Whether the kernel's answer has the oracle's verdict, reason and rules. What is only noted is a
    denial to the kernel's look-up; that it passes is in the flags of the entry."""
    passes = verdict.allow and not verdict.audited
    reason = ALLOWED if passes else DEFAULT_DENIED if verdict.default else DENIED
    same = answer["reason"] == reason and answer["verdict"] == passes
    return same and (named == verdict.rules if verdict.default else bool(named) and named <= verdict.rules)


def check(kernel: Kernel, world: World, seed: int, count: int = CASES) -> None:
    """Every verdict, its reason and its rules are the oracle's."""
    asked = list(cases(world, seed, count))
    answers = kernel.judge(
        [
            (row.subject, peer.id if peer else 0, way, number, port)
            for row, peer, way, number, port, _ in asked
        ]
    )
    for case, answer in zip(asked, answers, strict=True):
        row = world.desired.cookies.get(answer["cookie"].item())
        assert agrees(answer, case[-1], frozenset(row.rules) if row else frozenset()), (seed, case)


def test_random_policies(kernel: Kernel) -> None:
    for seed in range(SCENARIOS):
        world = scenario(seed)
        kernel.enforce(list(world.desired.subjects))
        check(kernel, world, seed)


@pytest.mark.parametrize("part", range(5))
def test_random_rules(kernel: Kernel, part: int) -> None:
    for seed in range(part, SETTINGS, 5):
        facts, parties = setting(seed)
        cookies = CookieBook()
        groups = [compiled(facts, party, cookies) for party in parties]
        kernel.enforce([_row(n, p, g) for n, (p, g) in enumerate(zip(parties, groups, strict=True), 1)])
        for number, (party, group) in enumerate(zip(parties, groups, strict=True), 1):
            asked = list(questions(facts, 4 * seed + number, QUESTIONS))
            answers = kernel.judge(
                [
                    (SubjectId(number), who.identity if who else 0, way, protocol, port)
                    for who, way, protocol, port in asked
                ]
            )
            for question, answer in zip(asked, answers, strict=True):
                _compare(facts, party, group, cookies, question, answer)


def _row(number: int, party: Party, group: Group) -> SubjectPolicy:
    return SubjectPolicy(
        subject=SubjectId(number),
        key=SubjectKey(party.identity, party.named_ports, party.audit),
        labels=party.labels,
        rules=group.rules + str(number),
        revision=Revision(1),
        entries=group.entries,
        ingress_enforced=group.ingress_enforced,
        egress_enforced=group.egress_enforced,
    )


def _compare(
    facts: Facts, party: Party, group: Group, cookies: CookieBook, question: Question, answer: Any
) -> None:
    """Oracle, entries and kernel say the same."""
    who, direction, protocol, port = question
    verdict = oracle.judge(facts, party, who, direction, protocol, port)
    hit = decide(group.entries, who.identity if who else 0, direction, protocol, port)
    assert hit is not None
    entry = hit[1]
    assert (answer["cookie"], answer["precedence"]) == (entry.cookie, entry.precedence), question
    assert verdict.audited == (not entry.allow and bool(entry.flags & EntryFlags.AUDIT)), question
    named = frozenset(cookies.row(entry.cookie).rules) if entry.cookie else frozenset()
    assert agrees(answer, verdict, named), question


def test_random_changes(kernel: Kernel) -> None:
    rng = random.Random(1)
    world = scenario(1)
    for seed in range(40):
        for _ in range(rng.randint(1, 3)):
            change(world, rng)
        kernel.enforce(list(world.step().desired.subjects))
        check(kernel, world, seed, 100)


@pytest.mark.parametrize("mode", list(PolicyMode))
def test_every_mode(kernel: Kernel, mode: PolicyMode) -> None:
    world = scenario(2)
    world.policies.mode = mode
    kernel.enforce(list(world.step().desired.subjects))
    check(kernel, world, 2)


def test_a_peer_nobody_knows_meets_only_rules_about_everybody(kernel: Kernel) -> None:
    world = World()
    world.inputs.cluster_identities.replace(PODS)
    world.desired.endpoints.replace(scenario(0).desired.endpoints)
    world.inputs.policies.put(random_policy(random.Random(3), "p"))
    kernel.enforce(list(world.step().desired.subjects))
    asked = [case for case in cases(world, 3, CASES) if case[1] is None]
    answers = kernel.judge([(case[0].subject, 0, *case[2:5]) for case in asked])
    assert [bool(answer["verdict"]) for answer in answers] == [
        case[-1].allow and not case[-1].audited for case in asked
    ]
