"""Whose addresses lie where: the identities of pods and nodes that peers of kind `Inside` mean.

Counted, not listed: of each identity how many addresses it has, and how many of these lie within each peer in
use. An address that comes or goes costs one look at each of these peers; a peer that comes costs what lies
within it, since the addresses are kept in order from the first peer on.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator

from cilia.control.policy.meaning.spans import Prefixes, Span
from cilia.control.policy.rules import Inside
from cilia.model.ids import IdentityId

Claim = tuple[IdentityId, tuple[str, ...]]
"""Whom an endpoint or node speaks for, and its addresses."""


class _Held:
    """A peer in use."""

    __slots__ = ("inside", "members", "prefixes", "users")

    def __init__(self, peer: Inside) -> None:
        self.prefixes = Prefixes(peer.prefixes)
        """As written: they may nest."""
        self.inside: Counter[IdentityId] = Counter()
        self.members: set[IdentityId] = set()
        self.users = 1


class Addresses:
    """The addresses of every endpoint and node known, by identity."""

    def __init__(self) -> None:
        self._claims: dict[Hashable, Claim] = {}
        self._totals: Counter[IdentityId] = Counter()
        self._held: dict[Inside, _Held] = {}
        self._lines: dict[int, list[tuple[int, IdentityId]]] | None = None
        """By family, every address with its identity, in order; None before anybody asks."""

    def __contains__(self, identity: object) -> bool:
        """Whether an identity has any address."""
        return identity in self._totals

    def claim(self, claimant: Hashable, claim: Claim | None) -> list[tuple[IdentityId, Inside]]:
        """Replace what an endpoint says (None: it is gone); returns which peers mean an identity now and did
        not, or the reverse."""
        before = self._claims.pop(claimant, None)
        if claim is not None and claim[0] and claim[1]:
            self._claims[claimant] = claim
        else:
            claim = None
        if before == claim:
            return []
        for each, sign in ((before, -1), (claim, 1)):
            if each is not None:
                self._count(*each, sign)
        touched = {each[0] for each in (before, claim) if each is not None}
        return [
            (identity, peer)
            for peer, held in self._held.items()
            for identity in touched
            if self._settle(peer, held, identity)
        ]

    def acquire(self, peer: Inside) -> None:
        """Begin to follow a peer, or count one more user of it."""
        held = self._held.get(peer)
        if held is not None:
            held.users += 1
            return
        held = self._held[peer] = _Held(peer)
        for span in _apart(peer.prefixes):
            held.inside.update(self._between(span))
        for identity in list(held.inside):
            self._settle(peer, held, identity)

    def release(self, peer: Inside) -> None:
        """Count one user less; without users a peer is no longer followed."""
        held = self._held[peer]
        held.users -= 1
        if not held.users:
            del self._held[peer]

    def members(self, peer: Inside) -> set[IdentityId]:
        """The identities an acquired peer means now: one live set until it is released, not to be changed."""
        return self._held[peer].members

    def select(self, peer: Inside) -> set[IdentityId]:
        """The identities a peer means now, whether it is followed or not."""
        self.acquire(peer)
        found = set(self.members(peer))
        self.release(peer)
        return found

    def peers(self) -> dict[Inside, frozenset[IdentityId]]:
        """Every peer in use and whom it means now: a copy, for people."""
        return {peer: frozenset(held.members) for peer, held in self._held.items()}

    def all(self) -> dict[IdentityId, frozenset[str]]:
        """Every address by identity: a copy."""
        found: dict[IdentityId, set[str]] = {}
        for identity, addresses in self._claims.values():
            found.setdefault(identity, set()).update(addresses)
        return {identity: frozenset(addresses) for identity, addresses in found.items()}

    def _between(self, span: Span) -> Iterator[IdentityId]:
        """Of every address in a prefix its identity."""
        if self._lines is None:
            self._lines = {4: [], 6: []}
            for identity, addresses in self._claims.values():
                for one in map(Span, addresses):
                    self._lines[one.version].append((one.first, identity))
            for line in self._lines.values():
                line.sort()
        line = self._lines[span.version]
        start = bisect.bisect_left(line, (span.first,))
        stop = bisect.bisect_left(line, (span.last + 1,))
        return (line[place][1] for place in range(start, stop))

    def _file(self, identity: IdentityId, addresses: Iterable[str], sign: int) -> None:
        """Keep the order of addresses, if anybody has asked for it."""
        if self._lines is None:
            return
        for one in map(Span, addresses):
            line, entry = self._lines[one.version], (one.first, identity)
            if sign > 0:
                bisect.insort(line, entry)
            else:
                del line[bisect.bisect_left(line, entry)]

    def _count(self, identity: IdentityId, addresses: tuple[str, ...], sign: int) -> None:
        self._file(identity, addresses, sign)
        self._totals[identity] += sign * len(addresses)
        if not self._totals[identity]:
            del self._totals[identity]
        for held in self._held.values():
            held.inside[identity] += sign * _within(held.prefixes, addresses)

    def _settle(self, peer: Inside, held: _Held, identity: IdentityId) -> bool:
        """Bring one membership up to date; returns whether it is another one now."""
        inside = held.inside[identity]
        if not inside:
            del held.inside[identity]
        meant = inside == self._totals[identity] if inside and peer.whole else bool(inside)
        if meant == (identity in held.members):
            return False
        (held.members.add if meant else held.members.discard)(identity)
        return True


def _apart(prefixes: Iterable[str]) -> list[Span]:
    """Prefixes without those that lie within another."""
    found: list[Span] = []
    for span in sorted(map(Span, prefixes), key=lambda span: span.bits):
        if not any(span.within(wider) for wider in found):
            found.append(span)
    return found


def _within(prefixes: Prefixes, addresses: Iterable[str]) -> int:
    """How many of some addresses lie within."""
    return sum(prefixes.contain(Span(address)) for address in addresses)
