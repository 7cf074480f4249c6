"""The kernel judges as the oracle: policies are compiled, written by the agent's own writer and asked about
in batches, under random policies and after random changes."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cilia.dataplane import bpf, loader
from cilia.dataplane.maps.policy import Policies
from cilia.dataplane.pool import PolicyPool
from cilia.model.policy import PolicyMode
from tests.support.policy_cases import PODS, Case, World, cases, change, random_policy, scenario

pytestmark = pytest.mark.root

SCENARIOS, CASES = 40, 500
ALLOWED, DEFAULT_DENIED, DENIED = 0, 133, 181


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

    def enforce(self, world: World) -> None:
        """Put the world's subjects in force, and no others."""
        rows = list(world.desired.subjects)
        self._policies.prune(rows)
        assert self._policies.update(rows) == {}
        self._policies.finish()

    def judge(self, asked: list[Case]) -> np.ndarray[Any, Any]:
        """The answers, as struct policy_case."""
        questions = np.zeros(len(asked), self._cases.dtype)
        for field, values in {
            "subject": [case[0].subject for case in asked],
            "peer": [case[1].id if case[1] else 0 for case in asked],
            "direction": [case[2] for case in asked],
            "protocol": [case[3] for case in asked],
            "port": [case[4] for case in asked],
        }.items():
            questions[field] = values
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


def check(kernel: Kernel, world: World, seed: int, count: int = CASES) -> None:
    """Every verdict, its reason and its rules are the oracle's."""
    asked = list(cases(world, seed, count))
    for case, answer in zip(asked, kernel.judge(asked), strict=True):
        verdict = case[-1]
        denied = DEFAULT_DENIED if verdict.default else DENIED
        assert answer["reason"] == (ALLOWED if verdict.allow else denied), case
        assert answer["verdict"] == verdict.allow, case
        row = world.desired.cookies.get(answer["cookie"].item())
        named = frozenset(row.rules) if row else frozenset()
        assert named == verdict.rules if verdict.default else named and named <= verdict.rules


def test_random_policies(kernel: Kernel) -> None:
    for seed in range(SCENARIOS):
        world = scenario(seed)
        kernel.enforce(world)
        check(kernel, world, seed)


def test_random_changes(kernel: Kernel) -> None:
    rng = random.Random(1)
    world = scenario(1)
    for seed in range(40):
        for _ in range(rng.randint(1, 3)):
            change(world, rng)
        kernel.enforce(world.step())
        check(kernel, world, seed, 100)


@pytest.mark.parametrize("mode", list(PolicyMode))
def test_every_mode(kernel: Kernel, mode: PolicyMode) -> None:
    world = scenario(2)
    world.policies.mode = mode
    kernel.enforce(world.step())
    check(kernel, world, 2)


def test_a_peer_nobody_knows_meets_only_rules_about_everybody(kernel: Kernel) -> None:
    world = World()
    world.inputs.cluster_identities.replace(PODS)
    world.desired.endpoints.replace(scenario(0).desired.endpoints)
    world.inputs.policies.put(random_policy(random.Random(3), "p"))
    kernel.enforce(world.step())
    asked = [case for case in cases(world, 3, CASES) if case[1] is None]
    answers = kernel.judge(asked)
    assert [bool(answer["verdict"]) for answer in answers] == [case[-1].allow for case in asked]
