"""Compiled entries answer as the oracle does, whatever rules say and however they were brought up to date.

Twenty thousand cases run always, a million with CILIA_LONG=1 in the environment (some ten minutes).
"""

from __future__ import annotations

import os
import random

import pytest

from cilia.control.policy import oracle
from cilia.control.policy.cookies import CookieBook
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.layers import PEER_BIT
from cilia.control.policy.resolve import Group, decide
from cilia.model.policy import EntryFlags
from tests.support.policy_random import FactWorld, Question, compiled, group, questions, setting

LONG = os.environ.get("CILIA_LONG") == "1"
SETTINGS, QUESTIONS = (6500, 40) if LONG else (130, 40)
"""Per setting four subjects are asked about, so the cases are four times the product."""


def agrees(facts: Facts, subject: Party, made: Group, cookies: CookieBook, question: Question) -> bool:
    """Whether entries and oracle give the same verdict and name the same rules for it."""
    peer, direction, protocol, port = question
    verdict = oracle.judge(facts, subject, peer, direction, protocol, port)
    hit = decide(made.entries, peer.identity if peer else 0, direction, protocol, port)
    assert hit is not None
    entry = hit[1]
    named = frozenset(cookies.row(entry.cookie).rules) if entry.cookie else frozenset()
    audited = not entry.allow and bool(entry.flags & EntryFlags.AUDIT)
    same = (
        (entry.allow or audited) == verdict.allow
        and audited == verdict.audited
        and bool(entry.flags & EntryFlags.DEFAULT) == verdict.default
    )
    return same and (named == verdict.rules if verdict.default else bool(named) and named <= verdict.rules)


@pytest.mark.parametrize("part", range(13))
def test_entries_answer_as_the_oracle(part: int) -> None:
    for seed in range(part, SETTINGS, 13):
        facts, subjects = setting(seed)
        cookies = CookieBook()
        for place, subject in enumerate(subjects):
            made = compiled(facts, subject, cookies)
            for question in questions(facts, seed * 4 + place, QUESTIONS):
                assert agrees(facts, subject, made, cookies, question), (seed, place, question)


@pytest.mark.parametrize("part", range(4))
def test_patched_entries_equal_those_from_scratch(part: int) -> None:
    for seed in range(part, SETTINGS, 4):
        facts, subjects = setting(seed)
        rng = random.Random(seed)
        cookies = CookieBook()
        identities = list(facts.identities)
        present = set(rng.sample(identities, rng.randint(0, len(identities))))
        patched = group(facts, subjects[0])
        patched.build(FactWorld(facts, present), cookies)
        for _ in range(3):
            changed = set(rng.sample(identities, rng.randint(1, 4)))
            present ^= changed
            patched.patch(changed, FactWorld(facts, present), cookies)
        fresh = group(facts, subjects[0], shuffle=rng)
        fresh.build(FactWorld(facts, present), cookies)
        assert patched.entries == fresh.entries
        assert patched.cookies() == fresh.cookies()
        assert patched.rules == fresh.rules


def test_a_patch_follows_numbers_of_port_names() -> None:
    for seed in range(SETTINGS):
        facts, subjects = setting(seed)
        other, _ = setting(seed + 1)
        moved = Facts(
            **{f: getattr(facts, f) for f in Facts.__struct_fields__} | {"port_names": other.port_names}
        )
        cookies = CookieBook()
        made = compiled(facts, subjects[0], cookies)
        made.patch(set(facts.identities), FactWorld(moved), cookies)
        assert made.entries == compiled(moved, subjects[0], cookies).entries


def test_only_layers_of_peers_carry_the_bit_that_breaks_ties() -> None:
    for seed in range(SETTINGS):
        facts, subjects = setting(seed)
        for key, entry in compiled(facts, subjects[0], CookieBook()).entries.items():
            assert bool(entry.precedence & PEER_BIT) == bool(key.peer)


def test_identities_nobody_has_get_no_entries() -> None:
    facts, subjects = setting(3)
    made = group(facts, subjects[0])
    made.build(FactWorld(facts, set()), CookieBook())
    assert {key.peer for key in made.entries} == {0}
