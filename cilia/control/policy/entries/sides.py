"""One direction of a group: its terms, whom they are about, and the layers that identities share.

Terms about the same peer are one *topic*, and a term about a port's name is one of its own. Topics are
numbered; the topics that mean an identity are its class, and identities of one class share a layer. A side
is built from scratch, or derived from one that says almost the same: topics that both have keep their
numbers, and only identities that other topics mean change their class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from itertools import count
from operator import attrgetter
from typing import NamedTuple, Protocol, TypeVar

from cilia.control.policy.entries.cookies import CookieBook
from cilia.control.policy.entries.layers import (
    HIGHEST_PRIORITY,
    Isolation,
    Layer,
    Namer,
    Part,
    Ranked,
    Term,
    Weighed,
    with_numbers,
)
from cilia.control.policy.rules import Action, Meant, PortName, Tier
from cilia.model.ids import Cookie, IdentityId
from cilia.model.policy import Direction


class World(Protocol):
    """What a group asks about everybody else."""

    def members(self, peer: Meant) -> Set[IdentityId]:
        """The identities a peer means now: one live set for as long as a group is about the peer."""

    def port_numbers(self, identity: IdentityId, name: PortName) -> frozenset[int]:
        """The numbers that endpoints of an identity give a port name."""

    def naming(self, name: PortName) -> Set[IdentityId]:
        """The identities some endpoint of which has a port of that name."""


Topic = Meant | Term
"""What a class is made of: a peer, or a term about the ports that peers give a name."""

Numbered = tuple[int, frozenset[int]]
"""A topic about a port's name, by its number, and the ports that somebody gives the name."""

Member = int | Numbered

Class = tuple[Member, ...]
"""What tells identities apart: the topics that mean them, by number and in its order."""


_COOKIE = attrgetter("cookie")
_PASSING = (Action.PASS, Action.HOLD)
_Key = TypeVar("_Key")

Relaid = list[tuple[list[IdentityId], Layer]]
"""Identities whose layer is another now: an empty one where no topic means them any more."""


class Alike:
    """Identities of one class, and the layer they share; never changed once it is there."""

    __slots__ = ("_cookies", "layer", "parts")

    def __init__(self, parts: Class, layer: Layer) -> None:
        self.parts = parts
        self.layer = layer
        self._cookies: frozenset[Cookie] | None = None

    def cookies(self) -> frozenset[Cookie]:
        """Every cookie in the layer."""
        if self._cookies is None:
            self._cookies = _cookies_of(self.layer)
        return self._cookies


class Move:
    """A class that identities of another, or of none, join."""

    __slots__ = ("left", "parts")

    def __init__(self, left: Alike | None, parts: Class) -> None:
        self.left = left
        self.parts = parts


class Change(NamedTuple):
    """How the topics of a side differ from those of another: numbers."""

    gone: frozenset[int]
    came: range
    other: frozenset[int]
    """Of which the terms are others now."""


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
        by_peer: dict[Meant, list[Term]] = {}
        by_name: dict[Term, list[Term]] = {}
        for term in terms:
            matter = term.matter
            if matter.name is not None:
                by_name[term] = [term]
            elif matter.peer is not None:
                by_peer.setdefault(matter.peer, []).append(term)
            else:
                self._everybody.append(term)
        self._topics: dict[Topic, list[Term]] = dict([*by_peer.items(), *by_name.items()])
        self.names = [term.matter.name for term in by_name if term.matter.name is not None]
        """The port names whose numbers depend on the peer."""
        named = [term.matter.peer for term in by_name if term.matter.peer is not None]
        self.peers: list[Meant] = [*by_peer, *named]
        """The peers it speaks of."""
        self._numbers: dict[Topic, int] = {}
        """Ascending."""
        self._next = 0
        self._terms: dict[int, list[Term]] = {}
        self._named: dict[int, Term] = {}
        """The topics that are about ports' names."""
        self._members: dict[int, Set[IdentityId]] = {}
        """Whom the topics mean that are peers, as the world tells; ascending."""
        self._parts: dict[int, Part] = {}
        self._of: dict[IdentityId, Alike] = {}
        self._users: dict[Alike, int] = {}
        """How many identities are of each class."""
        self._alike: dict[Class, Alike] = {}
        self._used: frozenset[Cookie] | None = None
        """The cookies, once asked for."""
        self._world: World | None = None
        self._maker: Ranked[Member] | Weighed[Member] | None = None
        self._base: Layer = {}

    @property
    def anybody(self) -> Layer:
        """The layer of any peer."""
        return self._base

    @property
    def holders(self) -> Mapping[IdentityId, Alike]:
        """Who has which layer."""
        return self._of

    def build(self, world: World, cookies: CookieBook) -> None:
        """Compute all layers from scratch, once."""
        self._begin(cookies)
        self._number(self._topics, world)
        self._make_parts()
        for topic, members in self._everyone(self._numbers.values()):
            _join(self._of, members, topic)
        self._users = dict(Counter(self._of.values()))
        self._alike = {alike.parts: alike for alike in self._users}
        for alike in self._users:
            alike.layer = self._layer(alike.parts)
        self._forget()

    def derive(self, before: Side, world: World, cookies: CookieBook) -> Relaid | None:
        """Compute the layers from those of another side, which is current; returns those that differ, or
        None when all may. `cookies` is the book of both."""
        if before._world is not world:
            before._follow(world)
        self._begin(cookies)
        change = self._renumber(before, world)
        alike = self._judges_as(before)
        if alike:
            untouched = before._parts.keys() - change.gone - change.other
            self._parts = {number: before._parts[number] for number in untouched}
            self._alike = {p: a for p, a in before._alike.items() if change.other.isdisjoint(p)}
            if self._base == before._base:
                self._base = before._base
        self._make_parts()
        self._of, self._users = before._of.copy(), before._users.copy()
        relaid = [
            (who, self._move(move.left, move.parts, who)) for move, who in self._moved(before, change).items()
        ]
        if not alike:
            self._lay_anew()
        self._forget()
        return relaid if alike else None

    def patch(self, identities: Iterable[IdentityId], world: World) -> Relaid:
        """The layers of those of some identities whose layer is another now."""
        if world is not self._world:
            self._follow(world)
        relaid = []
        for identity in identities:
            left, parts = self._of.get(identity), self._class(identity, world)
            if parts != (left.parts if left is not None else ()):
                relaid.append(([identity], self._move(left, parts, [identity])))
        if relaid:
            self._forget()
        return relaid

    def cookies(self) -> frozenset[Cookie]:
        """Every cookie that its layers have, or may have when identities come."""
        if self._used is None:
            parts = self._parts
            apart = (_cookies_of(part.entries) for part in parts.values())
            # A layer of one part has no other cookies than the part.
            made = (a.cookies() for a in self._alike.values() if len(a.parts) > 1 or a.parts[0] not in parts)
            self._used = _cookies_of(self._base).union(*apart, *made)
        return self._used

    # Topics.

    def _begin(self, cookies: CookieBook) -> None:
        namer = Namer(cookies, self._audit and not self._weighed)
        if self._weighed:
            noting = Namer(cookies, True)
            weighed: Weighed[Member] = Weighed(namer, noting, self._everybody, self._enforced, self.isolation)
            self._maker, self._base = weighed, weighed.of_anybody()
        else:
            ranked: Ranked[Member] = Ranked(namer, self.isolation)
            self._maker, self._base = ranked, ranked.of_anybody(self._everybody)

    def _forget(self) -> None:
        assert self._maker is not None, "build comes first"
        self._maker.forget()

    def _judges_as(self, before: Side) -> bool:
        """Whether what is alike about topics makes layers alike."""
        if self._weighed or before._weighed:
            mine, other = self._weighing(), before._weighing()
            return self._weighed == before._weighed and mine == other
        return self._audit == before._audit

    def _weighing(self) -> tuple[list[Term], Isolation, Isolation, bool]:
        return self._everybody, self._enforced, self.isolation, self._audit

    def _number(self, topics: Collection[Topic], world: World) -> range:
        """Give topics the next numbers; returns these."""
        self._world = world
        peers = [(topic, world.members(topic)) for topic in topics if not isinstance(topic, Term)]
        named = [topic for topic in topics if isinstance(topic, Term)]
        # Those that mean many come first, so that classes begin alike and their layers grow from each other.
        peers.sort(key=lambda peer: -len(peer[1]))
        self._members.update(enumerate([members for _, members in peers], self._next))
        self._named.update(enumerate(named, self._next + len(peers)))
        ordered = [*[topic for topic, _ in peers], *named]
        self._terms.update(enumerate([self._topics[topic] for topic in ordered], self._next))
        self._numbers.update(zip(ordered, count(self._next), strict=False))
        first, self._next = self._next, self._next + len(ordered)
        return range(first, self._next)

    def _renumber(self, before: Side, world: World) -> Change:
        """Let topics keep the numbers they had in another side."""
        gone, other = set(), set()
        for topic, number in before._numbers.items():
            terms = self._topics.get(topic)
            if terms is None:
                gone.add(number)
                continue
            self._numbers[topic] = number
            self._terms[number] = terms
            if isinstance(topic, Term):
                self._named[number] = topic
            else:
                self._members[number] = before._members[number]
            if terms != before._terms[number]:
                other.add(number)
        self._next = before._next
        came = self._number([topic for topic in self._topics if topic not in self._numbers], world)
        return Change(frozenset(gone), came, frozenset(other))

    # Classes.

    def _follow(self, world: World) -> None:
        self._world = world
        for topic, number in self._numbers.items():
            if not isinstance(topic, Term):
                self._members[number] = world.members(topic)

    def _everyone(self, topics: Iterable[int]) -> Iterator[tuple[Member, Iterable[IdentityId]]]:
        """Whom topics mean: what stands in the class of whom."""
        for number in topics:
            term = self._named.get(number)
            if term is None:
                yield number, self._members[number]
                continue
            by_ports: dict[frozenset[int], list[IdentityId]] = {}
            for identity in self._naming(term):
                by_ports.setdefault(self._ports(identity, term), []).append(identity)
            for ports, naming in by_ports.items():
                yield (number, ports), naming

    def _class(self, identity: IdentityId, world: World) -> Class:
        meant: list[Member] = [number for number, members in self._members.items() if identity in members]
        if not self._named:
            return tuple(meant)
        for number, term in self._named.items():
            matter = term.matter
            assert matter.name is not None
            if identity in world.naming(matter.name) and (
                matter.peer is None or identity in world.members(matter.peer)
            ):
                meant.append((number, self._ports(identity, term)))
        return tuple(sorted(meant, key=_number_of))

    def _naming(self, term: Term) -> Set[IdentityId]:
        """The identities that a term about a port's name means."""
        world, peer = self._world, term.matter.peer
        assert term.matter.name is not None and world is not None
        naming = world.naming(term.matter.name)
        return naming if peer is None else naming & world.members(peer)

    def _ports(self, identity: IdentityId, term: Term) -> frozenset[int]:
        assert term.matter.name is not None and self._world is not None
        return self._world.port_numbers(identity, term.matter.name)

    def _moved(self, before: Side, change: Change) -> dict[Move, list[IdentityId]]:
        """Those whom topics mean that came, went, or have other terms now, by what becomes of them."""
        of = before._of
        leaving: dict[IdentityId, Alike] = {}
        for _, members in before._everyone((*change.gone, *change.other)):
            leaving.update(zip(members, map(of.__getitem__, members), strict=True))
        found = {
            Move(alike, tuple(part for part in alike.parts if _number_of(part) not in change.gone)): who
            for alike, who in _inverted(leaving).items()
        }
        if not change.came:
            return found
        moved: dict[IdentityId, Move] = {}
        for move, who in found.items():
            moved |= dict.fromkeys(who, move)
        for topic, members in self._everyone(change.came):
            joining: dict[Move | Alike | None, Move] = {}
            for identity in members:
                was = moved.get(identity) or of.get(identity)
                joined = joining.get(was)
                if joined is None:
                    joined = joining[was] = _joined(was, topic)
                moved[identity] = joined
        return _inverted(moved)

    # Layers.

    def _move(self, left: Alike | None, parts: Class, who: list[IdentityId]) -> Layer:
        """Let identities leave a class for another; returns its layer, empty where no topic means them."""
        if left is not None:
            self._users[left] -= len(who)
            if not self._users[left]:
                del self._users[left]
                if self._alike.get(left.parts) is left:
                    del self._alike[left.parts]
                self._used = None
        if not parts:
            for identity in who:
                del self._of[identity]
            return {}
        alike = self._made(parts)
        self._users[alike] = self._users.get(alike, 0) + len(who)
        self._of |= dict.fromkeys(who, alike)
        return alike.layer

    def _made(self, parts: Class) -> Alike:
        alike = self._alike.get(parts)
        if alike is None:
            alike = self._alike[parts] = Alike(parts, self._layer(parts))
            self._used = None
        return alike

    def _lay_anew(self) -> None:
        """Make the layers that were taken over from a side that judges otherwise."""
        relaid = {alike: self._made(alike.parts) for alike in self._users}
        self._of = {identity: relaid[alike] for identity, alike in self._of.items()}
        self._users = dict(Counter(self._of.values()))

    def _layer(self, parts: Class) -> Layer:
        maker = self._maker
        assert maker is not None, "build comes first"
        if isinstance(maker, Weighed):
            return maker.of_peer(parts, self._terms_of)
        return maker.of_peer(parts, self._part_of)

    def _terms_of(self, part: Member) -> Sequence[Term]:
        return self._terms[part] if isinstance(part, int) else [self._numbered(part)]

    def _part_of(self, part: Member) -> Part:
        if isinstance(part, int):
            return self._parts[part]
        assert isinstance(self._maker, Ranked)
        return self._maker.part([self._numbered(part)], True)

    def _make_parts(self) -> None:
        """What the terms of each topic come to that is a peer, where the ranks alone decide."""
        if isinstance(self._maker, Ranked):
            for number in self._members:
                if number not in self._parts:
                    self._parts[number] = self._maker.part(self._terms[number], True)

    def _numbered(self, part: Numbered) -> Term:
        number, ports = part
        return with_numbers(self._named[number], ports)


def _number_of(part: Member) -> int:
    return part if isinstance(part, int) else part[0]


def _inverted(of: Mapping[IdentityId, _Key]) -> dict[_Key, list[IdentityId]]:
    found: dict[_Key, list[IdentityId]] = {}
    for identity, key in of.items():
        who = found.get(key)
        if who is None:
            found[key] = [identity]
        else:
            who.append(identity)
    return found


def _joined(was: Move | Alike | None, part: Member) -> Move:
    if was is None:
        return Move(None, (part,))
    return Move(was.left if isinstance(was, Move) else was, (*was.parts, part))


def _join(found: dict[IdentityId, Alike], members: Iterable[IdentityId], part: Member) -> None:
    """Note that a topic means some more identities: they leave those they were alike and join others."""
    joined: dict[Alike | None, Alike] = {}
    for identity in members:
        left = found.get(identity)
        alike = joined.get(left)
        if alike is None:
            alike = joined[left] = Alike((*left.parts, part) if left is not None else (part,), {})
        found[identity] = alike


def _cookies_of(layer: Layer) -> frozenset[Cookie]:
    return frozenset(map(_COOKIE, layer.values()))


def _needs_weighing(terms: Sequence[Term], audit_differs: bool, audit: bool) -> bool:
    """Whether the highest rank alone is not the answer."""
    if audit_differs or len(terms) > HIGHEST_PRIORITY:
        return True
    return any(term.matter.action in _PASSING or (term.audit and not audit) for term in terms)
