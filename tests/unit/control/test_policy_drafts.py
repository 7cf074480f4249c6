"""Sections read once: what rules alike share, and that nothing is remembered of sections that are gone."""

from __future__ import annotations

import gc

import msgspec

from cilia.control.policy.entries import drafts
from cilia.control.policy.entries.drafts import reading
from cilia.control.policy.ports import PortPrefix
from cilia.control.policy.rules import (
    TCP,
    Action,
    Peer,
    PortName,
    PortRange,
    Ports,
    Rule,
    Section,
    Selector,
    equals,
)
from cilia.model.endpoint import NamedPort
from cilia.model.policy import Direction, RuleRef

IN, OUT = Direction.INGRESS, Direction.EGRESS
WEB = Selector((equals("k8s", "app", "web"),))
TCP_80 = PortPrefix(TCP, 80, 24)


def section(name: str, direction: Direction, peer: Peer, *ports: Ports) -> Section:
    ref = RuleRef("NetworkPolicy", "n", name, "1", "spec")
    rule = Rule(direction, peer, ports, Action.ALLOW, ref)
    return Section(subject=Selector(), ref=ref, isolates=(direction,), rules=(rule,))


def test_a_section_is_read_once() -> None:
    one = section("p", IN, WEB, PortRange(TCP, 80, 80))
    assert reading(one) is reading(one)
    assert reading(one).digest == reading(msgspec.structs.replace(one)).digest


def test_rules_that_say_the_same_share_a_matter() -> None:
    one, other = (section(name, IN, WEB, PortRange(TCP, 80, 80)) for name in "pq")
    assert reading(one).drafts[IN][0].term.matter is reading(other).drafts[IN][0].term.matter
    assert reading(one).digest != reading(other).digest


def test_nothing_is_remembered_of_sections_that_are_gone() -> None:
    gc.collect()
    sections, matters = len(drafts._readings), len(drafts._matters)
    held = [section("p", IN, WEB, PortRange(TCP, port, port)) for port in range(1, 50)]
    assert [reading(each).names for each in held] == [frozenset()] * 49
    assert len(drafts._readings) == sections + 49
    held.clear()
    gc.collect()
    assert len(drafts._readings) <= sections
    assert len(drafts._matters) <= matters


def test_names_of_own_ports_become_numbers_later() -> None:
    (draft,) = reading(section("p", IN, None, PortName(TCP, "http"), PortRange(TCP, 1, 1))).drafts[IN]
    assert draft.own == (PortName(TCP, "http"),)
    assert draft.settled((NamedPort("http", 80),)).matter.prefixes == (PortPrefix(TCP, 1, 24), TCP_80)
    assert draft.settled(()).matter.prefixes == (PortPrefix(TCP, 1, 24),)


def test_names_of_peers_ports_stand_apart_from_ranges() -> None:
    ranges, named = reading(section("p", OUT, WEB, PortName(TCP, "http"), PortRange(TCP, 80, 80))).drafts[OUT]
    assert (ranges.term.matter.prefixes, ranges.term.matter.name) == ((TCP_80,), None)
    assert (named.term.matter.prefixes, named.term.matter.name) == ((), PortName(TCP, "http"))
