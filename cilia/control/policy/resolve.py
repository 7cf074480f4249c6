"""Rules into entries: what the kernel's two look-ups must find so that their answer is the policy's.

A `Group` holds the entries of all subjects that the same sections select, each direction a `Side`. A side
reads its sections into terms, asks whom each means, and gives identities meant by the same terms one layer
(`layers`). An identity more or less costs one look at the terms, and one reference in the entries.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Protocol
from weakref import WeakKeyDictionary

import msgspec

from cilia.control.policy.cookies import CookieBook
from cilia.control.policy.facts import LOCALHOST
from cilia.control.policy.layers import (
    HIGHEST_PRIORITY,
    Bests,
    Isolation,
    Layer,
    Namer,
    Ranked,
    Term,
    Weighed,
    best,
    order,
    with_numbers,
)
from cilia.control.policy.ports import PortPrefix, numbers, prefixes, whole
from cilia.control.policy.rules import (
    Action,
    Cidr,
    CidrGroup,
    Cidrs,
    PortName,
    PortRange,
    Rule,
    Section,
    Selector,
    ServicePeer,
    Tier,
    reserved,
)
from cilia.model.endpoint import NamedPort
from cilia.model.entries import Entries, Place
from cilia.model.ids import Cookie, IdentityId
from cilia.model.policy import Direction, Entry, EntryKey, PolicyMode, RuleRef

Meant = Selector | Cidr | Cidrs
"""A peer that means some identities and not others."""


class World(Protocol):
    """What a group asks about everybody else."""

    def members(self, peer: Meant) -> Set[IdentityId]:
        """The identities a peer means now."""

    def port_numbers(self, identity: IdentityId, name: PortName) -> frozenset[int]:
        """The numbers that endpoints of an identity give a port name."""

    def naming(self, name: PortName) -> Set[IdentityId]:
        """The identities some endpoint of which has a port of that name."""


Class = tuple[int | tuple[int, frozenset[int]], ...]
"""What tells identities apart: which peers mean them (by number), and for a term about a port's name (by
its number) the ports that they give the name."""


class Side:
    """One direction of a group: its terms, whether it isolates, and the layers in use."""

    def __init__(
        self,
        direction: Direction,
        terms: Sequence[Term],
        full: Isolation,
        enforced: Isolation,
        *,
        audit: bool,
    ) -> None:
        """`audit`: no denial of the whole side is enforced."""
        self.direction = direction
        self.isolation = full
        self._audit = audit
        self._enforced = enforced
        self._weighed = _needs_weighing(terms, full != enforced and not audit, audit)
        if full.isolated and not self._weighed:
            terms = [term for term in terms if term.order >> 16 != Tier.BASELINE]
        self._everybody = [term for term in terms if term.peer is None and term.name is None]
        self._about: dict[Meant, list[Term]] = {}
        for term in terms:
            if term.peer is not None and term.name is None:
                self._about.setdefault(term.peer, []).append(term)
        self._peers = list(self._about)
        self._named = [term for term in terms if term.name is not None]
        self._classes: dict[IdentityId, Class] = {}
        self._layers: dict[Class, Layer] = {}
        self._users: dict[Class, int] = {}
        self._bests: dict[int | tuple[int, frozenset[int]], Bests] = {}
        self._maker: Ranked | Weighed | None = None
        self._base: Layer = {}

    def peers(self) -> Iterator[Meant]:
        """The peers it speaks of."""
        return (peer for peer in chain(self._peers, (term.peer for term in self._named)) if peer is not None)

    def names(self) -> Iterator[PortName]:
        """The port names whose numbers depend on the peer."""
        return (term.name for term in self._named if term.name is not None)

    def build(self, world: World, cookies: CookieBook) -> Iterator[tuple[Place, Layer]]:
        """All layers, from scratch."""
        self._start(cookies)
        yield (int(self.direction), 0), self._base
        about: dict[IdentityId, list[int | tuple[int, frozenset[int]]]] = defaultdict(list)
        for number, peer in enumerate(self._peers):
            for identity in world.members(peer):
                about[identity].append(number)
        for number, term in enumerate(self._named):
            for identity in self._naming(world, term):
                about[identity].append((number, self._ports(world, identity, term)))
        for identity, numbered in about.items():
            yield (int(self.direction), identity), self._enter(identity, tuple(numbered))

    def patch(self, identities: Iterable[IdentityId], world: World) -> Iterator[tuple[Place, Layer | None]]:
        """The layers of those of some identities whose layer is another now."""
        for identity in identities:
            old, new = self._classes.get(identity, ()), self._class(identity, world)
            if old == new:
                continue
            if old:
                self._leave(identity, old)
            yield (int(self.direction), identity), self._enter(identity, new) if new else None

    def cookies(self) -> set[Cookie]:
        """Every cookie in the layers, and 0."""
        return {entry.cookie for layer in (self._base, *self._layers.values()) for entry in layer.values()}

    def _start(self, cookies: CookieBook) -> None:
        self._classes.clear()
        self._layers.clear()
        self._users.clear()
        self._bests.clear()
        namer = Namer(cookies.name, self._audit and not self._weighed)
        if self._weighed:
            noting = Namer(cookies.name, True)
            weighed = Weighed(namer, noting, self._everybody, self._enforced, self.isolation)
            self._maker, self._base = weighed, weighed.of_anybody()
        else:
            ranked = Ranked(namer, self.isolation)
            self._maker, self._base = ranked, ranked.of_anybody(self._everybody)

    def _class(self, identity: IdentityId, world: World) -> Class:
        meant: list[int | tuple[int, frozenset[int]]] = [
            number for number, peer in enumerate(self._peers) if identity in world.members(peer)
        ]
        meant += [
            (number, self._ports(world, identity, term))
            for number, term in enumerate(self._named)
            if identity in self._naming(world, term)
        ]
        return tuple(meant)

    @staticmethod
    def _naming(world: World, term: Term) -> Set[IdentityId]:
        """The identities that a term about a port's name means."""
        assert term.name is not None
        naming = world.naming(term.name)
        return naming if term.peer is None else naming & world.members(term.peer)

    @staticmethod
    def _ports(world: World, identity: IdentityId, term: Term) -> frozenset[int]:
        assert term.name is not None
        return world.port_numbers(identity, term.name)

    def _enter(self, identity: IdentityId, alike: Class) -> Layer:
        self._classes[identity] = alike
        self._users[alike] = self._users.get(alike, 0) + 1
        held = self._layers.get(alike)
        if held is None:
            held = self._layers[alike] = self._layer(alike)
        return held

    def _leave(self, identity: IdentityId, alike: Class) -> None:
        del self._classes[identity]
        self._users[alike] -= 1
        if not self._users[alike]:
            del self._users[alike], self._layers[alike]

    def _layer(self, alike: Class) -> Layer:
        if isinstance(self._maker, Weighed):
            return self._maker.of_peer([term for part in alike for term in self._terms(part)])
        assert self._maker is not None
        return self._maker.of_peer([self._best(part) for part in alike])

    def _best(self, part: int | tuple[int, frozenset[int]]) -> Bests:
        known = self._bests.get(part)
        if known is None:
            known = self._bests[part] = best(self._terms(part), True)
        return known

    def _terms(self, part: int | tuple[int, frozenset[int]]) -> list[Term]:
        if isinstance(part, int):
            return self._about[self._peers[part]]
        number, ports = part
        return [with_numbers(self._named[number], ports)]


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
        effective = () if mode is PolicyMode.NEVER else tuple(sections)
        own = _relevant(effective, named_ports)
        self.rules = fingerprint(sections, mode, audit, own, allow_localhost)
        self.sides = [
            _side(direction, effective, mode, audit, own, allow_localhost) for direction in Direction
        ]
        self.peers = tuple(dict.fromkeys(peer for side in self.sides for peer in side.peers()))
        self.names = tuple(dict.fromkeys(name for side in self.sides for name in side.names()))
        """Port names in egress rules: their numbers depend on the peer."""
        self._used: set[Cookie] | None = None

    @property
    def ingress_enforced(self) -> bool:
        """Whether ingress is isolated, be it in audit only."""
        return self.sides[0].isolation.isolated

    @property
    def egress_enforced(self) -> bool:
        """Whether egress is isolated, be it in audit only."""
        return self.sides[1].isolation.isolated

    def build(self, world: World, cookies: CookieBook) -> None:
        """Compute all entries."""
        self.entries = Entries(chain.from_iterable(side.build(world, cookies) for side in self.sides))
        self._used = None

    def patch(self, identities: Set[IdentityId], world: World, cookies: CookieBook) -> None:
        """Recompute the entries about some identities: those that came or went, are meant by others of
        `peers`, or give other numbers to `names`. Rows handed out before keep theirs.

        `cookies` is the book of `build`."""
        changed = dict(chain.from_iterable(side.patch(identities, world) for side in self.sides))
        if changed:
            self.entries = self.entries.replaced(changed)
            self._used = None

    def cookies(self) -> set[Cookie]:
        """Every cookie in the entries."""
        if self._used is None:
            self._used = set[Cookie]().union(*(side.cookies() for side in self.sides)) - {Cookie(0)}
        return self._used


def _needs_weighing(terms: Sequence[Term], audit_differs: bool, audit: bool) -> bool:
    """Whether the highest rank alone is not the answer."""
    passing = any(term.action is Action.PASS for term in terms)
    partly_audited = not audit and any(term.audit for term in terms)
    return passing or partly_audited or audit_differs or len(terms) > HIGHEST_PRIORITY


def _side(
    direction: Direction,
    sections: tuple[Section, ...],
    mode: PolicyMode,
    audit: bool,
    own_ports: tuple[NamedPort, ...],
    allow_localhost: bool,
) -> Side:
    full = _isolation(direction, sections, mode)
    enforced = _isolation(direction, [section for section in sections if not section.audit], mode)
    if audit:
        enforced = Isolation()
    terms = _terms(direction, sections, audit, own_ports)
    if full.isolated and allow_localhost and direction is Direction.INGRESS:
        heard = audit or not enforced.isolated
        refs = frozenset({LOCALHOST})
        terms.append(
            Term(reserved("host"), (PortPrefix(),), None, Action.ALLOW, order(Tier.NORMAL), heard, refs)
        )
    return Side(direction, terms, full, enforced, audit=audit)


def _isolation(direction: Direction, sections: Iterable[Section], mode: PolicyMode) -> Isolation:
    by = frozenset(s.ref for s in sections if s.tier is Tier.NORMAL and direction in s.isolates)
    return Isolation(mode is PolicyMode.ALWAYS or bool(by), by)


def _terms(
    direction: Direction, sections: tuple[Section, ...], audit: bool, own_ports: tuple[NamedPort, ...]
) -> list[Term]:
    """The rules of one direction, those alike together."""
    alike: dict[Term, list[RuleRef]] = {}
    for place, section, rule in _in_order(direction, sections):
        assert not isinstance(rule.peer, CidrGroup | ServicePeer), "references are followed before"
        for cut, name in _cut(rule, own_ports):
            heard = audit or section.audit
            term = Term(rule.peer, cut, name, rule.action, order(section.tier, place), heard, frozenset())
            alike.setdefault(term, []).append(rule.ref)
    return [term._replace(refs=frozenset(refs)) for term, refs in alike.items()]


def _in_order(direction: Direction, sections: Iterable[Section]) -> Iterator[tuple[int, Section, Rule]]:
    """The rules of one direction, each after those of its tier that are heard first, with their number."""
    heard = dict.fromkeys(Tier, 0)
    for section in sorted(sections, key=lambda s: (s.priority, s.ref.name, s.ref)):
        for rule in section.rules:
            if rule.direction is direction:
                yield heard[section.tier], section, rule
                heard[section.tier] += 1


def _cut(
    rule: Rule, own_ports: tuple[NamedPort, ...]
) -> Iterator[tuple[tuple[PortPrefix, ...], PortName | None]]:
    """The ports of a rule as prefixes, and as names where their numbers depend on the peer.

    Nothing, when no port has a name that the rule is about.
    """
    found: dict[PortPrefix, None] = {}
    for ports in rule.ports:
        if isinstance(ports, PortRange):
            found.update(dict.fromkeys(prefixes(ports)))
        elif rule.direction is Direction.INGRESS:
            found.update(dict.fromkeys(whole(ports.protocol, n) for n in sorted(numbers(own_ports, ports))))
        else:
            yield (), ports
    if found:
        yield tuple(found), None


def _relevant(sections: Iterable[Section], named_ports: tuple[NamedPort, ...]) -> tuple[NamedPort, ...]:
    """Those of a subject's named ports that its ingress rules speak of."""
    names = {name for section in sections for name in _facets(section)[1]}
    return tuple(sorted(port for port in named_ports if port.name in names))


def fingerprint(
    sections: Sequence[Section],
    mode: PolicyMode,
    audit: bool,
    named_ports: tuple[NamedPort, ...],
    allow_localhost: bool,
) -> str:
    """A name for everything that decides about entries but the identities."""
    content = (sorted(_facets(section)[0] for section in sections), mode, audit, named_ports, allow_localhost)
    return hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).hexdigest()


_known: WeakKeyDictionary[Section, tuple[bytes, frozenset[str]]] = WeakKeyDictionary()


def _facets(section: Section) -> tuple[bytes, frozenset[str]]:
    """A digest of a section, and the port names in its ingress rules; computed once."""
    known = _known.get(section)
    if known is None:
        digest = hashlib.blake2b(msgspec.msgpack.encode(section), digest_size=16).digest()
        known = _known[section] = (digest, frozenset(_ingress_names(section)))
    return known


def _ingress_names(section: Section) -> Iterator[str]:
    for rule in section.rules:
        if rule.direction is Direction.INGRESS:
            yield from (ports.name for ports in rule.ports if isinstance(ports, PortName))


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
