"""The compiled entries answer as the oracle does, and an incremental computation equals one from scratch."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.control.policy.entries.resolve import decide
from cilia.model.policy import CookieRow, EntryFlags, PolicyMode
from tests.support.policy_cases import Case, World, cases, change, scenario


def answer(world: World, case: Case) -> tuple[bool, CookieRow | None, bool, bool]:
    """What the entries say: whether it passes, the cookie's row, whether by default, whether only noted."""
    subject, peer, direction, protocol, port, _ = case
    hit = decide(subject.entries, peer.id if peer else 0, direction, protocol, port)
    assert hit is not None
    _, entry = hit
    row = world.desired.cookies.get(entry.cookie)
    noted = not entry.allow and bool(entry.flags & EntryFlags.AUDIT)
    return entry.allow or noted, row, bool(entry.flags & EntryFlags.DEFAULT), noted


def check(world: World, seed: int, count: int) -> None:
    """Entries and oracle agree, and the cookie names rules that the oracle found too."""
    for case in cases(world, seed, count):
        verdict = case[-1]
        allow, row, default, noted = answer(world, case)
        assert (allow, default, noted) == (verdict.allow, verdict.default, verdict.audited), case
        named = frozenset(row.rules) if row else frozenset()
        assert named == verdict.rules if default else named and named <= verdict.rules


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_the_entries_answer_as_the_oracle(seed: int) -> None:
    world = scenario(seed)
    assert all(state.valid for state in world.desired.policy_states)
    check(world, seed, 100)


@pytest.mark.parametrize("mode", list(PolicyMode))
def test_the_entries_answer_as_the_oracle_in_every_mode(mode: PolicyMode) -> None:
    world = scenario(1)
    world.policies.mode = mode
    check(world.step(), 1, 500)


def content(world: World) -> object:
    """The desired tables, but for what may depend on the past: numbers of subjects, revisions."""
    subjects = {
        row.key: (row.labels, row.rules, row.entries, row.ingress_enforced, row.egress_enforced)
        for row in world.desired.subjects
    }
    used = {entry.cookie for row in world.desired.subjects for entry in row.entries.values()} - {0}
    return (
        subjects,
        {cookie: world.desired.cookies.get(cookie) for cookie in used},
        set(world.desired.policy_states),
        set(world.desired.identities),
        set(world.identities.cidrs),
    )


def from_scratch(world: World) -> World:
    """A world that sees the present inputs of another for the first time."""
    fresh = World()
    for source, target in zip(world.inputs.tables(), fresh.inputs.tables(), strict=True):
        target.replace(source)
    return same_here(world, fresh).step()


def same_here(world: World, fresh: World) -> World:
    """Give a world the endpoints and switches of another."""
    fresh.desired.endpoints.replace(world.desired.endpoints)
    fresh.policies.mode, fresh.policies.audit = world.policies.mode, world.policies.audit
    return fresh


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_incremental_equals_from_scratch(seed: int, rhythm: list[int]) -> None:
    rng = random.Random(seed)
    world = scenario(seed)
    for events in rhythm:
        for _ in range(events):
            change(world, rng)
        world.step()
        assert content(world) == content(from_scratch(world))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_order_and_flush_rhythm_do_not_matter(seed: int, each: bool) -> None:
    forward, backward = World(), World()
    final = scenario(seed)
    rows = [(table.name, row) for table in final.inputs.tables() for row in table]
    for world, order in ((forward, rows), (backward, rows[::-1])):
        same_here(final, world)
        for table, row in order:
            getattr(world.inputs, table).put(row)
            if each:
                world.step()
        world.step()
    assert content(forward) == content(backward) == content(final)


def test_after_everything_left_nothing_remains() -> None:
    world = scenario(5)
    for table in (*world.inputs.tables(), world.desired.endpoints):
        table.replace([])
    world.step()
    fresh = World()
    assert content(world) == content(same_here(world, fresh).step())
    assert not list(world.desired.subjects)
    assert not list(world.identities.cidrs)
    assert world.policies.peers() == {}
