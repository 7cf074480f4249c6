"""Rules into entries: what the kernel's two look-ups must find so that their answer is the policy's.

The kernel looks up (peer, protocol, port) and (any, protocol, port), each by longest prefix, and takes the
higher precedence. The two never see each other's prefixes, so they are computed apart, as *layers*: in a
layer the value stored at a prefix must be the best of all rules that cover the prefix, because a longer
prefix hides the shorter ones. A rule wider than a prefix that beats those at the prefix makes the prefix
needless: what the wider one stores is then found instead.

Peers meant by the same rules share one layer; subjects selected by the same specs share one `Group`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import msgspec

from cilia.control.policy.cookies import CookieBook
from cilia.control.policy.ports import FULL_BITS, PROTOCOL_BITS, PortPrefix, prefixes
from cilia.control.policy.rules import Action, Cidr, Peer, PortRange, Section, Selector, Tier, reserved
from cilia.model.ids import Cookie, IdentityId
from cilia.model.policy import Direction, Entry, EntryFlags, EntryKey, MatchKind, PolicyMode, RuleRef

DEFAULT_PRECEDENCE = 0
"""The default verdict yields to every rule."""

DENY_BIT = 1 << 7
PEER_BIT = 1 << 6

LOCALHOST = RuleRef("Cilia", "", "allow-localhost", "", "")
"""The built-in rule that lets a node reach its own pods (health probes of the kubelet)."""

_KINDS = {
    (False, False): MatchKind.ALL,
    (False, True): MatchKind.PROTOCOL_ONLY,
    (True, False): MatchKind.L3_ONLY,
    (True, True): MatchKind.L3_PROTOCOL,
}


def precedence(deny: bool, specific: bool, bits: int) -> int:
    """The precedence of a rule: 8 bits tier, 16 priority, 1 deny, 7 specificity.

    Deny beats allow. Among equals the more specific one is named: a rule about certain peers before one
    about everybody, then the longer prefix of protocol and port (`bits` of 24).
    """
    return Tier.NORMAL << 24 | DENY_BIT * deny | PEER_BIT * specific | bits


def match_kind(specific: bool, bits: int) -> MatchKind:
    """What Hubble calls a match on a peer or none, and on so many bits of protocol and port."""
    if bits > PROTOCOL_BITS:
        return MatchKind.L3_L4 if specific else MatchKind.L4_ONLY
    return _KINDS[(specific, bits > 0)]


class Term(NamedTuple):
    """A rule with its ports cut into prefixes."""

    peer: Peer
    prefixes: tuple[PortPrefix, ...]
    deny: bool
    ref: RuleRef


Layer = dict[PortPrefix, Entry]
Name = Callable[[frozenset[RuleRef]], Cookie]


def layer(terms: Iterable[Term], specific: bool, name: Name) -> Layer:
    """The entries of one peer (or, not `specific`, of any peer) under rules that all are about it."""
    own: dict[PortPrefix, tuple[int, bool, set[RuleRef]]] = {}
    for term in terms:
        for prefix in term.prefixes:
            rank = precedence(term.deny, specific, prefix.bits)
            known = own.get(prefix)
            if known is None or rank > known[0]:
                own[prefix] = (rank, term.deny, {term.ref})
            elif rank == known[0]:
                known[2].add(term.ref)
    return {
        prefix: Entry(rank, not deny, name(frozenset(refs)), match_kind(specific, prefix.bits))
        for prefix, (rank, deny, refs) in own.items()
        if not any(own[parent][0] > rank for parent in prefix.parents() if parent in own)
    }


class Side:
    """One direction of a group: its rules, whether it isolates, and the layers in use."""

    def __init__(self, direction: Direction, isolated: bool, isolating: frozenset[RuleRef]) -> None:
        self.direction = direction
        self.isolated = isolated
        self._isolating = isolating
        self.everybody: list[Term] = []
        self.specific: list[Term] = []
        self._classes: dict[IdentityId, tuple[int, ...]] = {}
        """Which of `specific` are about an identity: identities alike share a layer."""
        self._layers: dict[tuple[int, ...], Layer] = {}
        self._users: dict[tuple[int, ...], int] = {}
        self._base: Layer = {}

    def build(self, members: Members, cookies: CookieBook) -> dict[EntryKey, Entry]:
        """All entries, from scratch."""
        cookie = cookies.name(self._isolating, default=True) if self.isolated else Cookie(0)
        default = Entry(DEFAULT_PRECEDENCE, not self.isolated, cookie, MatchKind.NONE, EntryFlags.DEFAULT)
        self._base = {PortPrefix(): default} | layer(self.everybody, False, cookies.name)
        entries = {EntryKey(int(self.direction), 0, *prefix): entry for prefix, entry in self._base.items()}
        about: dict[IdentityId, list[int]] = {}
        for number, term in enumerate(self.specific):
            for identity in members(term.peer):
                about.setdefault(identity, []).append(number)
        for identity, numbers in about.items():
            entries.update(self._entries(identity, self._enter(identity, tuple(numbers), cookies)))
        return entries

    def patch(
        self,
        identities: Iterable[IdentityId],
        members: Members,
        cookies: CookieBook,
        entries: dict[EntryKey, Entry],
    ) -> None:
        """Bring the entries of some identities up to date, in place."""
        for identity in identities:
            old = self._classes.get(identity, ())
            new = tuple(n for n, term in enumerate(self.specific) if identity in members(term.peer))
            if old == new:
                continue
            if old:
                for key in self._entries(identity, self._layers[old]):
                    del entries[key]
                self._leave(identity, old)
            if new:
                entries.update(self._entries(identity, self._enter(identity, new, cookies)))

    def cookies(self) -> set[Cookie]:
        """Every cookie in the entries."""
        used = {entry.cookie for entry in self._base.values()}
        for held in self._layers.values():
            used.update(entry.cookie for entry in held.values())
        used.discard(Cookie(0))
        return used

    def _enter(self, identity: IdentityId, numbers: tuple[int, ...], cookies: CookieBook) -> Layer:
        self._classes[identity] = numbers
        self._users[numbers] = self._users.get(numbers, 0) + 1
        held = self._layers.get(numbers)
        if held is None:
            held = layer([self.specific[number] for number in numbers], True, cookies.name)
            self._layers[numbers] = held
        return held

    def _leave(self, identity: IdentityId, numbers: tuple[int, ...]) -> None:
        del self._classes[identity]
        self._users[numbers] -= 1
        if not self._users[numbers]:
            del self._users[numbers], self._layers[numbers]

    def _entries(self, identity: IdentityId, held: Layer) -> dict[EntryKey, Entry]:
        direction = int(self.direction)
        return {EntryKey(direction, identity, *prefix): entry for prefix, entry in held.items()}


Members = Callable[[Peer], Set[IdentityId]]
"""Answers which identities a peer (never None) means now."""


class Group:
    """The entries of all subjects that the same sections select."""

    def __init__(
        self, sections: Sequence[Section], mode: PolicyMode, *, allow_localhost: bool = True
    ) -> None:
        self.users: set[IdentityId] = set()
        self.rules = fingerprint(sections, mode, allow_localhost)
        self.entries: dict[EntryKey, Entry] = {}
        effective = () if mode is PolicyMode.NEVER else tuple(sections)
        self.sides = [_side(direction, effective, mode, allow_localhost) for direction in Direction]
        self.peers: tuple[Selector | Cidr, ...] = tuple(
            dict.fromkeys(term.peer for side in self.sides for term in side.specific if term.peer is not None)
        )

    @property
    def ingress_enforced(self) -> bool:
        """Whether ingress is isolated."""
        return self.sides[0].isolated

    @property
    def egress_enforced(self) -> bool:
        """Whether egress is isolated."""
        return self.sides[1].isolated

    def build(self, members: Members, cookies: CookieBook) -> None:
        """Compute all entries."""
        self.entries = {}
        for side in self.sides:
            self.entries |= side.build(members, cookies)

    def patch(self, identities: Iterable[IdentityId], members: Members, cookies: CookieBook) -> None:
        """Recompute the entries of some identities; rows handed out before keep theirs."""
        fresh = dict(self.entries)
        for side in self.sides:
            side.patch(identities, members, cookies, fresh)
        self.entries = fresh

    def cookies(self) -> set[Cookie]:
        """Every cookie in the entries."""
        return set().union(*(side.cookies() for side in self.sides))


def _side(
    direction: Direction, sections: tuple[Section, ...], mode: PolicyMode, allow_localhost: bool
) -> Side:
    isolating = frozenset(section.ref for section in sections if direction in section.isolates)
    isolated = mode is PolicyMode.ALWAYS or bool(isolating)
    side = Side(direction, isolated, isolating)
    for section in sections:
        for rule in section.rules:
            if rule.direction is direction:
                term = Term(rule.peer, cut(rule.ports), rule.action is Action.DENY, rule.ref)
                (side.everybody if rule.peer is None else side.specific).append(term)
    if isolated and allow_localhost and direction is Direction.INGRESS:
        side.specific.append(Term(reserved("host"), (PortPrefix(),), False, LOCALHOST))
    return side


def cut(ports: tuple[PortRange, ...]) -> tuple[PortPrefix, ...]:
    """Ranges as prefixes, each once."""
    if len(ports) == 1:
        return prefixes(ports[0])
    return tuple(dict.fromkeys(prefix for part in ports for prefix in prefixes(part)))


def fingerprint(sections: Sequence[Section], mode: PolicyMode, allow_localhost: bool) -> str:
    """A name for everything that decides about entries but the identities."""
    content = msgspec.msgpack.encode((sections, mode, allow_localhost))
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
    whole = PortPrefix(protocol, port, FULL_BITS)
    for prefix in (whole, *whole.parents()):
        key = EntryKey(direction, peer, *prefix)
        entry = entries.get(key)
        if entry is not None:
            return key, entry
    return None
