"""Layers: what must stand at which prefix of ports, for one peer or for any, so that the right rule is found.

The kernel looks up (peer, protocol, port) and (any, protocol, port), each by longest prefix, and takes the
higher precedence. The two never see each other's prefixes, so they are computed apart, as layers.

**Apart** (`Ranked`). Mostly the best rule is the one with the highest rank. Then a layer holds at each prefix
the best of its own rules that cover it, since a longer prefix hides the shorter ones; a wider rule that beats
those at a prefix makes the prefix needless: what the wider one stores is then found instead. The better of
two layers' answers is the answer.

**Complete** (`Weighed`). Where a rule may pass, or a section only is heard (audit), the best rule is not the
answer, and two answers can't be compared. Then each prefix of a peer's layer is judged over the rules about
the peer *and* those about everybody, so that the answer found there is final. It always wins: its precedence
is the highest rank of all rules it was judged over, those of the layer for any peer among them, with the
bit for certain peers, which that layer never has.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from cilia.control.policy.entries.cookies import CookieBook
from cilia.control.policy.ports import FULL_BITS, PROTOCOL_BITS, PortPrefix, whole
from cilia.control.policy.rules import Action, Peer, PortName, Tier
from cilia.model.entries import Prefix
from cilia.model.ids import Cookie
from cilia.model.policy import Entry, EntryFlags, MatchKind, RuleRef

ORDER_SHIFT = 8
DENY_BIT = 1 << 7
PEER_BIT = 1 << 6

HIGHEST_PRIORITY = 0xFFFF
"""The priority of the rule of a tier that is heard first; later ones count down."""

DEFAULT_DENY = Tier.NORMAL << 24
"""Precedence of a default deny: below every normal rule, above the baseline tier."""

DEFAULT_ALLOW = 0
"""Precedence of a default allow: it yields to every rule."""

KEPT = 12
"""Of so many parts what the first ones come to is kept while layers are made."""

_KINDS = {
    (False, False): MatchKind.ALL,
    (False, True): MatchKind.PROTOCOL_ONLY,
    (True, False): MatchKind.L3_ONLY,
    (True, True): MatchKind.L3_PROTOCOL,
}

_NO_FLAGS = EntryFlags.NONE
_TIERS = tuple(Tier)

Layer = dict[Prefix, Entry]

Name = TypeVar("Name", bound=Hashable)
"""What tells parts apart: equal names stand for equal parts."""

Piece = TypeVar("Piece")
Whole = TypeVar("Whole")


class Matter(msgspec.Struct, frozen=True, cache_hash=True, weakref=True):
    """What rules alike say, whatever policies they stand in: the same packets, the same action."""

    peer: Peer
    prefixes: tuple[PortPrefix, ...]
    name: PortName | None
    """Instead of `prefixes`: the ports that each peer itself gives this name."""
    action: Action


class Term(NamedTuple):
    """Rules alike: they say the same at the same place in the order."""

    matter: Matter
    order: int
    """The upper 24 bits of the precedence: tier and priority."""
    audit: bool
    refs: frozenset[RuleRef]


def order(tier: Tier, place: int = 0) -> int:
    """The order of the rule that is heard after `place` others of its tier (0 for all normal ones)."""
    return tier << 16 | (0 if tier is Tier.NORMAL else max(0, HIGHEST_PRIORITY - place))


def precedence(term_order: int, deny: bool, specific: bool, bits: int) -> int:
    """The precedence of a rule: 8 bits tier, 16 priority, 1 deny, 7 specificity.

    Deny beats allow. Among equals the more specific one is named: a rule about certain peers before one
    about everybody, then the longer prefix of protocol and port (`bits` of 24).
    """
    return term_order << ORDER_SHIFT | DENY_BIT * deny | PEER_BIT * specific | bits


def match_kind(specific: bool, bits: int) -> MatchKind:
    """What Hubble calls a match on a peer or none, and on so many bits of protocol and port."""
    if bits > PROTOCOL_BITS:
        return MatchKind.L3_L4 if specific else MatchKind.L4_ONLY
    return _KINDS[(specific, bits > 0)]


_MATCHES = [match_kind(bool(low & PEER_BIT), low & (PEER_BIT - 1)) for low in range(DENY_BIT)]
"""The kind of match by the low bits of the precedence."""


class Isolation(NamedTuple):
    """Whether a direction is isolated, and by which sections."""

    isolated: bool = False
    by: frozenset[RuleRef] = frozenset()

    @property
    def precedence(self) -> int:
        """Of the default verdict."""
        return DEFAULT_DENY if self.isolated else DEFAULT_ALLOW


class Namer:
    """Makes entries: knows the names of sets of rules and whether denials are only noted."""

    def __init__(self, cookies: CookieBook, audit: bool) -> None:
        self._cookies = cookies
        self._denial = EntryFlags.AUDIT if audit else EntryFlags.NONE

    def rule(self, rank: int, allow: bool, refs: frozenset[RuleRef]) -> Entry:
        """The entry of rules with a rank, which says what they match."""
        flags = _NO_FLAGS if allow else self._denial
        return Entry(rank, allow, self._cookies.name(refs), _MATCHES[rank & (DENY_BIT - 1)], flags)

    def better(self, one: Entry, other: Entry) -> Entry:
        """The better of two entries for one prefix; equals are named together."""
        rank = one.precedence
        if rank != other.precedence:
            return one if rank > other.precedence else other
        return Entry(rank, one.allow, self._cookies.together(one.cookie, other.cookie), one.match, one.flags)

    def default(self, isolation: Isolation) -> Entry:
        """The entry of the verdict when no rule matches."""
        if not isolation.isolated:
            return Entry(DEFAULT_ALLOW, True, Cookie(0), MatchKind.NONE, EntryFlags.DEFAULT)
        cookie = self._cookies.name(isolation.by, True)
        return Entry(DEFAULT_DENY, False, cookie, MatchKind.NONE, EntryFlags.DEFAULT | self._denial)


class Part(msgspec.Struct, frozen=True):
    """What some terms say of one peer, at each of their prefixes."""

    entries: Layer
    wide: bool
    """Some prefix is no single port."""


_NOTHING = Part({}, False)


class Beginnings(Generic[Name, Whole]):
    """What parts come to one after the other; of the first ones it is kept for others that begin alike, as
    prefixes within prefixes do."""

    def __init__(self, nothing: Whole) -> None:
        self._nothing = nothing
        self._known: dict[tuple[Name, ...], Whole] = {(): nothing}

    def forget(self) -> None:
        """Others come to something else from now on."""
        self._known = {(): self._nothing}

    def whole(
        self,
        names: tuple[Name, ...],
        part: Callable[[Name], Piece],
        both: Callable[[Whole, Piece], Whole],
    ) -> Whole:
        """What the parts of these names come to: `part` finds one, `both` adds it."""
        found = self._known.get(names)
        if found is not None:
            return found
        if len(names) > KEPT:
            found = self.whole(names[:KEPT], part, both)
            for name in names[KEPT:]:
                found = both(found, part(name))
            return found
        found = self._known[names] = both(self.whole(names[:-1], part, both), part(names[-1]))
        return found


def visible(layer: Layer) -> Layer:
    """Without the prefixes where a wider one is better: the look-up then falls through to that one."""
    wide = {prefix: entry.precedence for prefix, entry in layer.items() if prefix[2] < FULL_BITS}
    if not wide or max(wide.values()) <= min(entry.precedence for entry in layer.values()):
        return layer
    return {
        prefix: entry
        for prefix, entry in layer.items()
        if not any(wide.get(wider, 0) > entry.precedence for wider in PortPrefix(*prefix).parents())
    }


class Ranked(Generic[Name]):
    """Layers apart from each other: the highest rank wins."""

    def __init__(self, namer: Namer, isolation: Isolation) -> None:
        self._namer = namer
        self._isolation = isolation
        self._beginnings: Beginnings[Name, Part] = Beginnings(_NOTHING)

    def forget(self) -> None:
        """No more layers are made for now."""
        self._beginnings.forget()

    def of_anybody(self, everybody: Iterable[Term]) -> Layer:
        """The layer of any peer, with the default verdict."""
        default: Layer = {PortPrefix(): self._namer.default(self._isolation)}
        return default | visible(self.part(everybody, False).entries)

    def part(self, terms: Iterable[Term], specific: bool) -> Part:
        """The best of some terms at each of their prefixes."""
        rule, whole, wide = self._namer.rule, Layer(), False
        for matter, place, _, refs in terms:
            allow = matter.action is not Action.DENY
            least, last = precedence(place, not allow, specific, 0), 0
            for prefix in matter.prefixes:
                rank = least | prefix[2]
                if rank != last:
                    entry, last = rule(rank, allow, refs), rank
                    wide = wide or prefix[2] < FULL_BITS
                if prefix in whole:
                    whole[prefix] = self._namer.better(whole[prefix], entry)
                else:
                    whole[prefix] = entry
        return Part(whole, wide)

    def of_peer(self, names: tuple[Name, ...], part: Callable[[Name], Part]) -> Layer:
        """The layer of peers that all the parts of these names are about; `part` finds one."""
        whole = self._beginnings.whole(names, part, self._both)
        return visible(whole.entries) if whole.wide else whole.entries

    def _both(self, one: Part, other: Part) -> Part:
        """The better of two at each prefix."""
        if not one.entries:
            return other
        whole = one.entries | other.entries
        if len(whole) < len(one.entries) + len(other.entries):
            better = self._namer.better
            for prefix in one.entries.keys() & other.entries.keys():
                whole[prefix] = better(one.entries[prefix], other.entries[prefix])
        return Part(whole, one.wide or other.wide)


class Hit(NamedTuple):
    """A term at one of its prefixes."""

    rank: int
    term: Term


Pieces = dict[PortPrefix, list[Hit]]


class Judged(NamedTuple):
    """What some terms about a peer come to."""

    own: Pieces
    answers: dict[PortPrefix, Entry]
    """At each prefix of theirs, and at those of terms about everybody within."""


class Weighed(Generic[Name]):
    """Complete layers: at each prefix the answer over all rules, also those about everybody."""

    def __init__(
        self, namer: Namer, noting: Namer, everybody: Sequence[Term], enforced: Isolation, full: Isolation
    ) -> None:
        """`noting` makes the entries of what passes or is only noted."""
        self._namer = namer
        self._noting = noting
        self._anybody = _pieces(everybody, False)
        self._enforced = enforced
        self._full = full
        self._beginnings: Beginnings[Name, Judged] = Beginnings(Judged({}, {}))

    def forget(self) -> None:
        """No more layers are made for now."""
        self._beginnings.forget()

    def of_anybody(self) -> Layer:
        """The layer of any peer, with the default verdict."""
        places = dict.fromkeys((PortPrefix(), *self._anybody))
        return _stored({prefix: self._weigh(prefix, {}, False) for prefix in places}, False)

    def of_peer(self, names: tuple[Name, ...], terms: Callable[[Name], Iterable[Term]]) -> Layer:
        """The layer of peers that the terms of all these names mean; `terms` finds those of one."""
        judged = self._beginnings.whole(names, lambda name: _pieces(terms(name), True), self._with)
        return _stored(judged.answers, True)

    def _with(self, before: Judged, more: Pieces) -> Judged:
        """Judge anew what some more terms are about."""
        own = before.own.copy()
        for prefix, hits in more.items():
            own[prefix] = [*own.get(prefix, ()), *hits]
        touched = dict.fromkeys(more)
        if any(prefix.bits < FULL_BITS for prefix in more):
            for prefix in (*before.answers, *self._anybody):
                if any(wider in more for wider in prefix.parents()):
                    touched[prefix] = None
        again = {prefix: self._weigh(prefix, own, True) for prefix in touched}
        return Judged(own, before.answers | again)

    def _weigh(self, prefix: PortPrefix, own: Pieces, specific: bool) -> Entry:
        """The entry for packets that just the terms at a prefix and at wider ones are about."""
        around = (prefix, *prefix.parents())
        hits = [hit for part in (own, self._anybody) for place in around for hit in part.get(place, ())]
        enforced = _answer(self._namer, [hit for hit in hits if not hit.term.audit], self._enforced)
        full = _answer(self._noting, hits, self._full)
        given = full if enforced.allow else enforced
        rank = max((hit.rank for hit in hits), default=0)
        rank = max(rank, self._full.precedence) | PEER_BIT * specific
        return Entry(rank, given.allow, given.cookie, given.match, given.flags)


def _stored(answers: Mapping[PortPrefix, Entry], specific: bool) -> Layer:
    """Without the prefixes of which the next wider stored one says the same."""
    if all(prefix.bits == FULL_BITS for prefix in answers):
        return dict(zip(answers, answers.values(), strict=True))
    layer: Layer = {}
    for prefix in sorted(answers, key=lambda place: place.bits):
        entry = answers[prefix]
        found_instead = next((layer[wider] for wider in prefix.parents() if wider in layer), None)
        if found_instead is None or not _says_as(found_instead, entry, specific):
            layer[prefix] = entry
    return layer


def _says_as(wider: Entry, entry: Entry, specific: bool) -> bool:
    """Whether a wider prefix's entry can stand for one: a peer's must not lose rank, that of any peer may."""
    rank = entry.precedence if specific else wider.precedence
    return wider == Entry(rank, entry.allow, entry.cookie, entry.match, entry.flags)


def _pieces(terms: Iterable[Term], specific: bool) -> Pieces:
    found: Pieces = {}
    for term in terms:
        for prefix in term.matter.prefixes:
            rank = precedence(term.order, term.matter.action is Action.DENY, specific, prefix.bits)
            found.setdefault(prefix, []).append(Hit(rank, term))
    return found


def _answer(namer: Namer, hits: Sequence[Hit], isolation: Isolation) -> Entry:
    """The verdict of the first tier that has one."""
    for tier in _TIERS:
        heard = _ruling(hits, tier)
        if heard:
            refs = frozenset[RuleRef]().union(*(hit.term.refs for hit in heard))
            return namer.rule(heard[0].rank, heard[0].term.matter.action is Action.ALLOW, refs)
        if tier is Tier.NORMAL and isolation.isolated:
            break
    return namer.default(isolation)


def _ruling(hits: Sequence[Hit], tier: Tier) -> list[Hit]:
    """The best of a tier's rules; none when it passes on."""
    mine = [hit for hit in hits if hit.term.order >> 16 == tier]
    held = False
    while mine:
        rank = max(hit.rank for hit in mine)
        heard = [hit for hit in mine if hit.rank == rank]
        action = heard[0].term.matter.action
        if action is Action.HOLD:
            held = True
            mine = [hit for hit in mine if hit.rank < rank]
        elif action is Action.PASS or (action is Action.ALLOW and held):
            return []
        else:
            return heard
    return []


def with_numbers(term: Term, numbers: Iterable[int]) -> Term:
    """A term about a port's name, for peers that give the name these numbers."""
    matter = term.matter
    assert matter.name is not None
    protocol = matter.name.protocol
    prefixes = tuple(whole(protocol, number) for number in sorted(numbers))
    return term._replace(matter=Matter(matter.peer, prefixes, None, matter.action))
