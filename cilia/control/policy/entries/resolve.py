"""Rules into entries: what the kernel's two look-ups must find so that their answer is the policy's.

A `Group` holds the entries of all subjects that the same sections select. It reads its sections into terms,
and each direction is a `Side`, which asks whom the terms mean and gives identities meant by the same ones
one layer. An identity more or less costs one look at the terms and one reference in the entries, a section
more or less what it says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import msgspec

from cilia.control.policy.entries.cookies import CookieBook
from cilia.control.policy.entries.drafts import Reading, reading
from cilia.control.policy.entries.layers import HIGHEST_PRIORITY, Isolation, Matter, Term, order
from cilia.control.policy.entries.sides import Side, World
from cilia.control.policy.facts import LOCALHOST
from cilia.control.policy.ports import PortPrefix, whole
from cilia.control.policy.rules import Action, Section, Tier, reserved
from cilia.model.endpoint import NamedPort
from cilia.model.entries import Entries
from cilia.model.ids import Cookie, IdentityId
from cilia.model.policy import Direction, Entry, EntryKey, PolicyMode, RuleRef

ROOM = 65
"""Rules of one priority of a tier that leave the precedence of other priorities' rules alone: 1,001
priorities times as many are what the number can order."""


class Heard(NamedTuple):
    """Sections in the order they are heard; the normal tier has none."""

    tiers: Mapping[Tier, Sequence[Reading]]
    normal: Sequence[Section]
    """Those of the normal tier, and of these"""
    enforced: Sequence[Section]
    """those that are not in audit."""


class Group:
    """The entries of all subjects that the same sections select, and that name their ports alike."""

    def __init__(
        self,
        sections: Sequence[Section],
        mode: PolicyMode,
        *,
        audit: bool = False,
        named_ports: tuple[NamedPort, ...] = (),
        allow_localhost: bool = True,
    ) -> None:
        """`sections` with all references followed; `audit`: no denial is enforced, in any direction."""
        self.entries = Entries()
        read = [reading(section) for section in sections]
        names = frozenset[str]().union(*[each.names for each in read if each.names])
        own = tuple(sorted(port for port in named_ports if port.name in names))
        self.rules = fingerprint([each.digest for each in read], mode, audit, own, allow_localhost)
        heard = _in_order([] if mode is PolicyMode.NEVER else read)
        self.sides = [_side(direction, heard, mode, audit, own, allow_localhost) for direction in Direction]
        self.peers = tuple(dict.fromkeys(peer for side in self.sides for peer in side.peers))
        self.names = tuple(dict.fromkeys(name for side in self.sides for name in side.names))
        """Port names in egress rules: their numbers depend on the peer."""
        self._used: tuple[frozenset[Cookie], frozenset[Cookie], frozenset[Cookie]] | None = None
        """The cookies of both sides and of the group, once asked for."""

    @property
    def ingress_enforced(self) -> bool:
        """Whether ingress is isolated, be it in audit only."""
        return self.sides[0].isolation.isolated

    @property
    def egress_enforced(self) -> bool:
        """Whether egress is isolated, be it in audit only."""
        return self.sides[1].isolation.isolated

    def build(self, world: World, cookies: CookieBook, before: Group | None = None) -> None:
        """Compute all entries, once. `before`: a group with other sections, current in the same world and
        with the same book; what both have in common is taken over from it."""
        if before is not None and len(set(self.peers) & set(before.peers)) * 2 < len(self.peers):
            before = None
        self.entries = before.entries if before is not None else Entries()
        for place, side in enumerate(self.sides):
            relaid = None
            if before is not None:
                relaid = side.derive(before.sides[place], world, cookies)
            else:
                side.build(world, cookies)
            direction = int(side.direction)
            if relaid is None:
                self.entries = self.entries.with_side(direction, side.holders)
                relaid = []
            if self.entries.layer(direction, 0) is not side.anybody:
                relaid.append(([IdentityId(0)], side.anybody))
            self.entries = self.entries.relaid(direction, relaid)

    def patch(self, identities: Set[IdentityId], world: World, cookies: CookieBook) -> None:
        """Recompute the entries about some identities: those that came or went, are meant by others of
        `peers`, or give other numbers to `names`. Rows handed out before keep theirs.

        `cookies` is the book of `build`."""
        for side in self.sides:
            self.entries = self.entries.relaid(int(side.direction), side.patch(identities, world))

    def cookies(self) -> frozenset[Cookie]:
        """Every cookie in the entries, and those that other identities may bring; the same object while
        nothing changes."""
        ingress, egress = (side.cookies() for side in self.sides)
        if self._used is None or self._used[0] is not ingress or self._used[1] is not egress:
            self._used = (ingress, egress, (ingress | egress) - {Cookie(0)})
        return self._used[2]


def _side(
    direction: Direction,
    heard: Heard,
    mode: PolicyMode,
    audit: bool,
    own_ports: tuple[NamedPort, ...],
    allow_localhost: bool,
) -> Side:
    full = enforced = _isolation(direction, heard.normal, mode)
    if audit:
        enforced = Isolation()
    elif len(heard.enforced) < len(heard.normal):
        enforced = _isolation(direction, heard.enforced, mode)
    terms = _terms(direction, heard, audit, own_ports)
    if full.isolated and allow_localhost and direction is Direction.INGRESS:
        noted = audit or not enforced.isolated
        matter = Matter(reserved("host"), (PortPrefix(),), None, Action.ALLOW)
        terms.append(Term(matter, order(Tier.NORMAL), noted, frozenset({LOCALHOST})))
    return Side(direction, terms, full, enforced, audit=audit)


def _isolation(direction: Direction, normal: Iterable[Section], mode: PolicyMode) -> Isolation:
    by = frozenset([section.ref for section in normal if direction in section.isolates])
    return Isolation(mode is PolicyMode.ALWAYS or bool(by), by)


def _terms(direction: Direction, heard: Heard, audit: bool, own_ports: tuple[NamedPort, ...]) -> list[Term]:
    """The rules of one direction, those alike together."""
    spoken: list[Term] = []
    for tier, sections in heard.tiers.items():
        drafts = [draft for each in sections for draft in each.drafts[direction]]
        terms = [draft.settled(own_ports) if draft.own else draft.term for draft in drafts]
        if tier is not Tier.NORMAL:
            places = _places(sections, direction)
            terms = [term._replace(order=order(tier, n)) for term, n in zip(terms, places, strict=True)]
        spoken += terms
    if audit:
        spoken = [term._replace(audit=True) for term in spoken]
    return _together(spoken)


def _together(spoken: Iterable[Term]) -> list[Term]:
    """Terms alike put together; those that are about no port at all are left out."""
    found: dict[tuple[Matter, int, bool], Term] = {}
    alike: dict[tuple[Matter, int, bool], list[Term]] = {}
    for term in spoken:
        matter, place, audit, _ = term
        key = (matter, place, audit)
        first = found.setdefault(key, term)
        if first is not term:
            alike.setdefault(key, [first]).append(term)
    for key, terms in alike.items():
        found[key] = Term(*key, frozenset[RuleRef]().union(*[term.refs for term in terms]))
    return [term for term in found.values() if term.matter.prefixes or term.matter.name]


def _places(sections: Sequence[Reading], direction: Direction) -> Sequence[int]:
    """How many rules of a tier with an order are counted before each one.

    Each priority has room for `ROOM` rules, so that a section more or less leaves the precedence of others
    alone; where the room does not do, the rules are counted without gaps.
    """
    ends: dict[int, int] = {}
    places: list[int] = []
    for each in sections:
        first = ends.get(each.section.priority, each.section.priority * ROOM)
        end = ends[each.section.priority] = first + len(each.drafts[direction])
        places += range(first, end)
    if all(end <= min((priority + 1) * ROOM, HIGHEST_PRIORITY) for priority, end in ends.items()):
        return places
    return range(len(places))


def _in_order(sections: Sequence[Reading]) -> Heard:
    tiers: dict[Tier, list[Reading]] = {tier: [] for tier in Tier}
    for each in sections:
        tiers[each.section.tier].append(each)
    for tier in (Tier.ADMIN, Tier.BASELINE):
        tiers[tier].sort(key=lambda each: (each.section.priority, each.section.ref.name, each.section.ref))
    normal = [each.section for each in tiers[Tier.NORMAL]]
    return Heard(tiers, normal, [section for section in normal if not section.audit])


def fingerprint(
    digests: Iterable[bytes],
    mode: PolicyMode,
    audit: bool,
    named_ports: tuple[NamedPort, ...],
    allow_localhost: bool,
) -> str:
    """A name for everything that decides about entries but the identities."""
    content = msgspec.msgpack.encode((sorted(digests), mode, audit, named_ports, allow_localhost))
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def decide(
    entries: Mapping[EntryKey, Entry], peer: int, direction: int, protocol: int, port: int
) -> tuple[EntryKey, Entry] | None:
    """The kernel's decision: the entry that wins and its key; None (which denies) when nothing matches.

    `port` is the destination port, or the ICMP type. Both look-ups are by longest prefix; of their answers
    the higher precedence wins, and a tie denies.
    """
    found = [
        hit
        for hit in (_longest(entries, who, direction, protocol, port) for who in dict.fromkeys((peer, 0)))
        if hit is not None
    ]
    return max(found, key=lambda hit: (hit[1].precedence, not hit[1].allow), default=None)


def _longest(
    entries: Mapping[EntryKey, Entry], peer: int, direction: int, protocol: int, port: int
) -> tuple[EntryKey, Entry] | None:
    exact = whole(protocol, port)
    for prefix in (exact, *exact.parents()):
        key = EntryKey(direction, peer, *prefix)
        entry = entries.get(key)
        if entry is not None:
            return key, entry
    return None
