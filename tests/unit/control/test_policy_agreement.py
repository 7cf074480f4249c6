"""Compiled entries answer as the oracle does, whatever rules say and however they were brought up to date.

Twenty thousand cases run always, a million with CILIA_LONG=1 in the environment (some ten minutes).
"""

from __future__ import annotations

import os
import random
from typing import Any

import msgspec
import pytest

from cilia.control.policy.entries.cookies import CookieBook
from cilia.control.policy.entries.layers import PEER_BIT
from cilia.control.policy.entries.resolve import Group, decide
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.reasons import oracle
from cilia.control.policy.rules import ALL_PORTS, Action, Peer, Rule, Section, Selector, Tier
from cilia.model.ids import IdentityId
from cilia.model.policy import Direction, EntryFlags, PolicyMode, RuleRef
from tests.support.policy_random import (
    FactWorld,
    Question,
    compiled,
    everybody,
    group,
    questions,
    setting,
)

LONG = os.environ.get("CILIA_LONG") == "1"
SETTINGS, QUESTIONS = (6500, 40) if LONG else (130, 40)
"""Per setting four subjects are asked about, so the cases are four times the product."""


LIMIT = pytest.mark.timeout(3600 if LONG else 60)


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


@LIMIT
@pytest.mark.parametrize("part", range(13))
def test_entries_answer_as_the_oracle(part: int) -> None:
    for seed in range(part, SETTINGS, 13):
        facts, subjects = setting(seed)
        cookies = CookieBook()
        for place, subject in enumerate(subjects):
            made = compiled(facts, subject, cookies)
            for question in questions(facts, seed * 4 + place, QUESTIONS):
                assert agrees(facts, subject, made, cookies, question), (seed, place, question)


@LIMIT
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


@LIMIT
@pytest.mark.parametrize("part", range(4))
def test_derived_entries_equal_those_from_scratch(part: int) -> None:
    for seed in range(part, SETTINGS, 8):
        facts, subjects = setting(seed)
        rng = random.Random(seed)
        cookies = CookieBook()
        more = [*facts.sections, *setting(seed + 1)[0].sections, *setting(seed + 2)[0].sections]
        # No two sections stand at one place: what has the same reference would have no order.
        pool = list({section.ref: section for section in more}.values())
        identities = list(facts.identities)
        present = set(rng.sample(identities, rng.randint(0, len(identities))))
        known = with_sections(facts, pool)
        before = group(known, subjects[0])
        before.build(FactWorld(known, present), cookies)
        for _ in range(3):
            present ^= set(rng.sample(identities, rng.randint(0, 3)))
            before.patch(set(identities), FactWorld(known, present), cookies)
            gone = set(map(id, rng.sample(pool, rng.randint(0, min(3, len(pool))))))
            known = with_sections(facts, [section for section in pool if id(section) not in gone])
            world = FactWorld(known, present)
            derived, fresh = group(known, subjects[0], shuffle=rng), group(known, subjects[0])
            kept = before.entries
            contents = dict(kept)
            derived.build(world, cookies, before)
            fresh.build(world, cookies)
            assert derived.entries == fresh.entries
            assert len(derived.entries) == len(dict(derived.entries))
            assert derived.cookies() == fresh.cookies()
            assert dict(kept) == contents
            assert before.entries is kept
            before = derived


def with_sections(facts: Facts, sections: list[Section]) -> Facts:
    """The facts with other sections in force."""
    given = {name: getattr(facts, name) for name in Facts.__struct_fields__}
    return Facts(**given | {"sections": tuple(sections)})


@LIMIT
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


@LIMIT
def test_only_layers_of_peers_carry_the_bit_that_breaks_ties() -> None:
    for seed in range(SETTINGS):
        facts, subjects = setting(seed)
        for key, entry in compiled(facts, subjects[0], CookieBook()).entries.items():
            assert bool(entry.precedence & PEER_BIT) == bool(key.peer)


def judged_alike(sections: list[Section], subject: Party, *questions: Question, **facts: Any) -> list[bool]:
    """Whether each packet passes, on which entries and oracle must agree."""
    known = Facts(sections=tuple(sections), identities=everybody(), **facts)
    cookies = CookieBook()
    made = compiled(known, subject, cookies)
    assert all(agrees(known, subject, made, cookies, question) for question in questions)
    return [oracle.judge(known, subject, *question).allow for question in questions]


def named(name: str, *rules: tuple[Peer, Action], tier: Tier = Tier.NORMAL, **more: Any) -> Section:
    """A section about ingress."""
    ref = RuleRef("CiliumNetworkPolicy", "", name, "1", "spec")
    made = tuple(Rule(Direction.INGRESS, peer, ALL_PORTS, action, ref) for peer, action in rules)
    more.setdefault("isolates", ())
    return Section(subject=Selector(), ref=ref, rules=made, tier=tier, **more)


WEB = Party(identity=IdentityId(300), labels=everybody()[IdentityId(300)])
HOST = Party(identity=IdentityId(1), labels=everybody()[IdentityId(1)])
IN = Direction.INGRESS


class TestCases:
    """Cases that random rules meet seldom, by name."""

    def test_isolation_that_is_only_heard_does_not_let_the_host_past_the_baseline(self) -> None:
        sections = [
            named("heard", isolates=(IN,), audit=True),
            named("base", (None, Action.DENY), tier=Tier.BASELINE),
        ]
        assert judged_alike(sections, WEB, (HOST, IN, 6, 80)) == [False]

    def test_mode_always_is_in_audit_with_its_subject(self) -> None:
        quiet = msgspec.structs.replace(WEB, audit=True)
        always = {"mode": PolicyMode.ALWAYS}
        assert judged_alike([], quiet, (HOST, IN, 6, 80), (WEB, IN, 6, 80), **always) == [True, True]
        assert judged_alike([], WEB, (HOST, IN, 6, 80), (WEB, IN, 6, 80), **always) == [True, False]

    def test_mode_always_is_not_in_audit_with_a_section(self) -> None:
        sections = [named("heard", (None, Action.ALLOW), audit=True)]
        assert judged_alike(sections, WEB, (WEB, IN, 6, 80), mode=PolicyMode.ALWAYS) == [False]

    def test_a_pass_to_nobody_allows_nothing(self) -> None:
        sections = [
            named("pass", (None, Action.PASS), tier=Tier.ADMIN),
            named("deny", (None, Action.DENY), tier=Tier.ADMIN, priority=1),
            named("iso", isolates=(IN,)),
        ]
        assert judged_alike(sections, WEB, (WEB, IN, 6, 80), (HOST, IN, 6, 80)) == [False, True]

    def test_equal_priorities_are_heard_by_name(self) -> None:
        allow, deny = (None, Action.ALLOW), (None, Action.DENY)
        first = [named("a", allow, tier=Tier.ADMIN), named("b", deny, tier=Tier.ADMIN)]
        other = [named("b", allow, tier=Tier.ADMIN), named("a", deny, tier=Tier.ADMIN)]
        assert judged_alike(first, WEB, (WEB, IN, 6, 80)) == [True]
        assert judged_alike(other, WEB, (WEB, IN, 6, 80)) == [False]


def test_identities_nobody_has_get_no_entries() -> None:
    facts, subjects = setting(3)
    made = group(facts, subjects[0])
    made.build(FactWorld(facts, set()), CookieBook())
    assert {key.peer for key in made.entries} == {0}
