"""Rules into entries: what the kernel's two look-ups must find so that their answer is the policy's.

A `Group` holds the entries of all subjects that the same sections select, each direction a `Side`. A side
reads its sections into terms, asks whom each means, and gives identities meant by the same terms one layer
(`layers`). An identity more or less costs one look at the terms, and one reference in the entries.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Protocol

import msgspec

from cilia.control.policy.cookies import CookieBook
from cilia.control.policy.drafts import Reading, reading
from cilia.control.policy.facts import LOCALHOST
from cilia.control.policy.layers import (
    HIGHEST_PRIORITY,
    Isolation,
    Layer,
    Matter,
    Namer,
    Part,
    Ranked,
    Term,
    Weighed,
    order,
    with_numbers,
)
from cilia.control.policy.ports import PortPrefix, whole
from cilia.control.policy.rules import (
    Action,
    Cidr,
    Cidrs,
    Inside,
    PortName,
    Section,
    Selector,
    Tier,
    reserved,
)
from cilia.model.endpoint import NamedPort
from cilia.model.entries import Entries, Place
from cilia.model.ids import Cookie, IdentityId
from cilia.model.policy import Direction, Entry, EntryKey, PolicyMode, RuleRef

Meant = Selector | Cidr | Cidrs | Inside
"""A peer that means some identities and not others."""


class World(Protocol):
    """What a group asks about everybody else."""

    def members(self, peer: Meant) -> Set[IdentityId]:
        """The identities a peer means now: one live set for as long as a group is about the peer."""

    def port_numbers(self, identity: IdentityId, name: PortName) -> frozenset[int]:
        """The numbers that endpoints of an identity give a port name."""

    def naming(self, name: PortName) -> Set[IdentityId]:
        """The identities some endpoint of which has a port of that name."""


Numbered = tuple[int, frozenset[int]]
"""A term about a port's name, by its number, and the ports that somebody gives the name."""

Class = tuple[int | Numbered, ...]
"""What tells identities apart: the peers (by number) that mean them, and what they call ports."""


class Alike:
    """Identities that the same terms are about, and the layer they share."""

    __slots__ = ("layer", "parts", "users")

    def __init__(self, parts: Class) -> None:
        self.parts = parts
        self.layer: Layer = {}
        self.users = 0


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
        self._everybody: list[Term] = []
        self._named: list[Term] = []
        about: dict[Meant, list[Term]] = {}
        for term in terms:
            if term.matter.name is not None:
                self._named.append(term)
            elif term.matter.peer is None:
                self._everybody.append(term)
            else:
                about.setdefault(term.matter.peer, []).append(term)
        self._peers = list(about)
        self._about = list(about.values())
        self._of: dict[IdentityId, Alike] = {}
        self._alike: dict[Class, Alike] = {}
        self._parts: list[Part] = []
        self._used: frozenset[Cookie] | None = None
        """The cookies, once asked for."""
        self._world: World | None = None
        self._members: list[Set[IdentityId]] = []
        """Whom each of `peers` means, as the world tells."""
        self._maker: Ranked | Weighed | None = None
        self._base: Layer = {}

    def peers(self) -> Iterator[Meant]:
        """The peers it speaks of."""
        yield from self._peers
        yield from (term.matter.peer for term in self._named if term.matter.peer is not None)

    def names(self) -> Iterator[PortName]:
        """The port names whose numbers depend on the peer."""
        return (term.matter.name for term in self._named if term.matter.name is not None)

    def build(self, world: World, cookies: CookieBook) -> Mapping[IdentityId, Alike]:
        """Compute all layers from scratch; returns who has which."""
        self._start(world, cookies)
        self._of = self._classify(world)
        users = Counter(self._of.values())
        self._alike = {alike.parts: alike for alike in users}
        for alike, count in users.items():
            alike.users = count
            alike.layer = self._layer(alike.parts)
        self._forget()
        return self._of

    @property
    def anybody(self) -> Layer:
        """The layer of any peer."""
        return self._base

    def patch(self, identities: Iterable[IdentityId], world: World) -> Iterator[tuple[Place, Layer | None]]:
        """The layers of those of some identities whose layer is another now."""
        if world is not self._world:
            self._follow(world)
        for identity in identities:
            old, new = self._of.get(identity), self._class(identity, world)
            if new == (old.parts if old is not None else ()):
                continue
            if old is not None:
                self._leave(identity, old)
            yield (int(self.direction), identity), self._enter(identity, new) if new else None
        self._forget()

    def cookies(self) -> frozenset[Cookie]:
        """Every cookie that its layers have, or may have when identities come."""
        if self._used is None:
            held = (alike.layer for alike in self._alike.values())
            layers = chain((self._base,), held, (part.entries for part in self._parts))
            self._used = frozenset(entry.cookie for layer in layers for entry in layer.values())
        return self._used

    def _follow(self, world: World) -> None:
        self._world = world
        self._members = [world.members(peer) for peer in self._peers]

    def _start(self, world: World, cookies: CookieBook) -> None:
        # Those that mean many come first, so that classes begin alike and their layers grow from each other.
        self._follow(world)
        places = sorted(range(len(self._peers)), key=lambda place: -len(self._members[place]))
        self._peers = [self._peers[place] for place in places]
        self._about = [self._about[place] for place in places]
        self._members = [self._members[place] for place in places]
        self._used = None
        namer = Namer(cookies, self._audit and not self._weighed)
        if self._weighed:
            noting = Namer(cookies, True)
            weighed = Weighed(namer, noting, self._everybody, self._enforced, self.isolation)
            self._maker, self._base = weighed, weighed.of_anybody()
        else:
            ranked = Ranked(namer, self.isolation)
            self._maker, self._base = ranked, ranked.of_anybody(self._everybody)
            self._parts = [ranked.part(terms, True) for terms in self._about]

    def _forget(self) -> None:
        if isinstance(self._maker, Ranked):
            self._maker.forget()

    def _classify(self, world: World) -> dict[IdentityId, Alike]:
        """Everybody whom some term means."""
        found: dict[IdentityId, Alike] = {}
        for number, members in enumerate(self._members):
            if found:
                _add(found, members, number)
            else:
                found = dict.fromkeys(members, Alike((number,)))
        for number, term in enumerate(self._named):
            by_ports: dict[frozenset[int], list[IdentityId]] = {}
            for identity in self._naming(world, term):
                by_ports.setdefault(self._ports(world, identity, term), []).append(identity)
            for ports, naming in by_ports.items():
                _add(found, naming, (number, ports))
        return found

    def _class(self, identity: IdentityId, world: World) -> Class:
        meant: list[int | Numbered] = [
            number for number, members in enumerate(self._members) if identity in members
        ]
        for number, term in enumerate(self._named):
            matter = term.matter
            assert matter.name is not None
            if identity in world.naming(matter.name) and (
                matter.peer is None or identity in world.members(matter.peer)
            ):
                meant.append((number, self._ports(world, identity, term)))
        return tuple(meant)

    @staticmethod
    def _naming(world: World, term: Term) -> Set[IdentityId]:
        """The identities that a term about a port's name means."""
        assert term.matter.name is not None
        naming, peer = world.naming(term.matter.name), term.matter.peer
        return naming if peer is None else naming & world.members(peer)

    @staticmethod
    def _ports(world: World, identity: IdentityId, term: Term) -> frozenset[int]:
        assert term.matter.name is not None
        return world.port_numbers(identity, term.matter.name)

    def _enter(self, identity: IdentityId, parts: Class) -> Layer:
        alike = self._alike.get(parts)
        if alike is None:
            alike = self._alike[parts] = Alike(parts)
            alike.layer = self._layer(parts)
            self._used = None
        alike.users += 1
        self._of[identity] = alike
        return alike.layer

    def _leave(self, identity: IdentityId, alike: Alike) -> None:
        del self._of[identity]
        alike.users -= 1
        if not alike.users:
            del self._alike[alike.parts]
            self._used = None

    def _layer(self, parts: Class) -> Layer:
        maker = self._maker
        assert maker is not None, "build comes first"
        if isinstance(maker, Weighed):
            terms = [self._about[part] if isinstance(part, int) else [self._numbered(part)] for part in parts]
            return maker.of_peer(list(chain.from_iterable(terms)))
        return maker.of_peer(
            parts,
            [
                self._parts[part] if isinstance(part, int) else maker.part([self._numbered(part)], True)
                for part in parts
            ],
        )

    def _numbered(self, part: Numbered) -> Term:
        number, ports = part
        return with_numbers(self._named[number], ports)


def _add(found: dict[IdentityId, Alike], members: Iterable[IdentityId], part: int | Numbered) -> None:
    """Note that a term, or all about a peer, is about some more identities: they leave those they were alike
    and join others."""
    joined: dict[Alike | None, Alike] = {}
    for identity in members:
        left = found.get(identity)
        alike = joined.get(left)
        if alike is None:
            alike = joined[left] = Alike((*left.parts, part) if left is not None else (part,))
        found[identity] = alike


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
        names = {name for each in read for name in each.names}
        own = tuple(sorted(port for port in named_ports if port.name in names))
        self.rules = fingerprint((each.digest for each in read), mode, audit, own, allow_localhost)
        effective = [] if mode is PolicyMode.NEVER else read
        self.sides = [
            _side(direction, effective, mode, audit, own, allow_localhost) for direction in Direction
        ]
        self.peers = tuple(dict.fromkeys(peer for side in self.sides for peer in side.peers()))
        self.names = tuple(dict.fromkeys(name for side in self.sides for name in side.names()))
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

    def build(self, world: World, cookies: CookieBook) -> None:
        """Compute all entries."""
        made = {int(side.direction): side.build(world, cookies) for side in self.sides}
        anybody = {(int(side.direction), 0): side.anybody for side in self.sides}
        self.entries = Entries.of_sides(made).replaced(anybody)
        self._used = None

    def patch(self, identities: Set[IdentityId], world: World, cookies: CookieBook) -> None:
        """Recompute the entries about some identities: those that came or went, are meant by others of
        `peers`, or give other numbers to `names`. Rows handed out before keep theirs.

        `cookies` is the book of `build`."""
        changed = dict(chain.from_iterable(side.patch(identities, world) for side in self.sides))
        if changed:
            self.entries = self.entries.replaced(changed)

    def cookies(self) -> frozenset[Cookie]:
        """Every cookie in the entries, and those that other identities may bring; the same object while
        nothing changes."""
        ingress, egress = (side.cookies() for side in self.sides)
        if self._used is None or self._used[0] is not ingress or self._used[1] is not egress:
            self._used = (ingress, egress, (ingress | egress) - {Cookie(0)})
        return self._used[2]


def _needs_weighing(terms: Sequence[Term], audit_differs: bool, audit: bool) -> bool:
    """Whether the highest rank alone is not the answer."""
    passing = any(term.matter.action in (Action.PASS, Action.HOLD) for term in terms)
    partly_audited = not audit and any(term.audit for term in terms)
    return passing or partly_audited or audit_differs or len(terms) > HIGHEST_PRIORITY


def _side(
    direction: Direction,
    sections: Sequence[Reading],
    mode: PolicyMode,
    audit: bool,
    own_ports: tuple[NamedPort, ...],
    allow_localhost: bool,
) -> Side:
    full = _isolation(direction, sections, mode)
    enforced = full
    if audit:
        enforced = Isolation()
    elif any(each.section.audit for each in sections):
        enforced = _isolation(direction, [each for each in sections if not each.section.audit], mode)
    terms = _terms(direction, sections, audit, own_ports)
    if full.isolated and allow_localhost and direction is Direction.INGRESS:
        heard = audit or not enforced.isolated
        matter = Matter(reserved("host"), (PortPrefix(),), None, Action.ALLOW)
        terms.append(Term(matter, order(Tier.NORMAL), heard, frozenset({LOCALHOST})))
    return Side(direction, terms, full, enforced, audit=audit)


def _isolation(direction: Direction, sections: Iterable[Reading], mode: PolicyMode) -> Isolation:
    by = frozenset(
        section.ref
        for section, *_ in sections
        if direction in section.isolates and section.tier is Tier.NORMAL
    )
    return Isolation(mode is PolicyMode.ALWAYS or bool(by), by)


def _terms(
    direction: Direction, sections: Sequence[Reading], audit: bool, own_ports: tuple[NamedPort, ...]
) -> list[Term]:
    """The rules of one direction, those alike together."""
    alike: dict[tuple[Matter, int, bool], list[RuleRef]] = {}
    for tier in Tier:
        place = 0
        for each in _in_order(sections, tier):
            heard = audit or each.section.audit
            for draft in each.drafts[direction]:
                matter = draft.settled(own_ports) if draft.own else draft.matter
                key = (matter, order(tier, place), heard)
                refs = alike.get(key)
                if refs is None:
                    alike[key] = [draft.ref]
                else:
                    refs.append(draft.ref)
                place += 1
    return [Term(*key, frozenset(refs)) for key, refs in alike.items() if key[0].prefixes or key[0].name]


def _in_order(sections: Iterable[Reading], tier: Tier) -> list[Reading]:
    """The sections of a tier in the order they are heard; the normal tier has none."""
    mine = [each for each in sections if each.section.tier is tier]
    if tier is Tier.NORMAL:
        return mine
    return sorted(mine, key=lambda each: (each.section.priority, each.section.ref.name, each.section.ref))


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
