"""Which identities a peer means, kept current by set algebra over a label index instead of scans.

Two structures: an index from labels to the identities that carry them (answers a new selector), and from
labels to the selectors that ask for them (answers a new identity). Addresses are kept as sorted ranges:
prefixes nest or are disjoint, so those within a prefix are neighbours.
"""

from __future__ import annotations

import bisect
import ipaddress
from collections.abc import Iterable

from cilia.control.policy.rules import ANY_SOURCE, Cidr, Operator, Requirement, Selector
from cilia.model.address import IPNetwork
from cilia.model.identity import WORLD_IPV4, WORLD_IPV6
from cilia.model.ids import IdentityId
from cilia.model.labels import NAMESPACE, Label, Labels

Name = tuple[str, ...]
"""Where identities and selectors meet in the indexes: (source, key) or (source, key, value)."""

_EVERYWHERE = {WORLD_IPV4: "0.0.0.0/0", WORLD_IPV6: "::/0"}


def cidr_label(prefix: str) -> Label:
    """The label of a prefix's identity; colons are dashes, and no dash stands first or last."""
    address, _, length = prefix.partition("/")
    text = address.replace(":", "-")
    text = ("0" if text.startswith("-") else "") + text + ("0" if text.endswith("-") else "")
    return Label("cidr", f"{text}/{length}")


def network_of(identity: IdentityId, labels: Labels) -> IPNetwork | None:
    """The prefix an identity stands for, or None when it is not one of addresses outside the cluster."""
    if identity in _EVERYWHERE:
        return ipaddress.ip_network(_EVERYWHERE[identity])
    for label in labels.items:
        if label.source == "cidr":
            return ipaddress.ip_network(label.key.replace("-", ":"))
    return None


class Span:
    """A prefix as the numbers of its first and last address."""

    __slots__ = ("first", "last", "version")

    def __init__(self, network: IPNetwork) -> None:
        self.version = network.version
        self.first = int(network.network_address)
        self.last = int(network.broadcast_address)

    def within(self, other: Span) -> bool:
        """Whether every address of this prefix is in the other."""
        return self.version == other.version and other.first <= self.first and self.last <= other.last


class CidrSpans:
    """A Cidr ready for comparison."""

    def __init__(self, cidr: Cidr) -> None:
        self.span = Span(ipaddress.ip_network(cidr.prefix))
        self._excepts = [Span(ipaddress.ip_network(prefix)) for prefix in cidr.excepts]

    def contains(self, span: Span) -> bool:
        """Whether a prefix is meant: every prefix of the excepts has an identity, so none is cut."""
        return span.within(self.span) and not any(span.within(left_out) for left_out in self._excepts)


class IdentityIndex:
    """All identities by label and by address."""

    def __init__(self) -> None:
        self._labels: dict[IdentityId, Labels] = {}
        self._spans: dict[IdentityId, Span] = {}
        self._sorted: dict[int, list[tuple[int, int, IdentityId]]] = {4: [], 6: []}
        self._by_name: dict[Name, set[IdentityId]] = {}

    def get(self, identity: IdentityId) -> Labels | None:
        """The labels of an identity, or None."""
        return self._labels.get(identity)

    def span(self, identity: IdentityId) -> Span | None:
        """The addresses of an identity, if it stands for addresses."""
        return self._spans.get(identity)

    def put(self, identity: IdentityId, labels: Labels) -> None:
        """Add an identity that is not there yet."""
        self._labels[identity] = labels
        for name in _names(labels):
            self._by_name.setdefault(name, set()).add(identity)
        network = network_of(identity, labels)
        if network is not None:
            span = Span(network)
            self._spans[identity] = span
            bisect.insort(self._sorted[span.version], (span.first, span.last, identity))

    def remove(self, identity: IdentityId) -> None:
        """Remove an identity; removing the absent is no error."""
        labels = self._labels.pop(identity, None)
        if labels is None:
            return
        for name in _names(labels):
            members = self._by_name[name]
            members.discard(identity)
            if not members:
                del self._by_name[name]
        span = self._spans.pop(identity, None)
        if span is not None:
            line = self._sorted[span.version]
            del line[bisect.bisect_left(line, (span.first, span.last, identity))]

    def select(self, peer: Selector | Cidr) -> set[IdentityId]:
        """The identities a peer means now."""
        return self._addresses(peer) if isinstance(peer, Cidr) else self._selected(peer.requirements)

    def _selected(self, requirements: Iterable[Requirement]) -> set[IdentityId]:
        demanded: list[set[IdentityId]] = []
        forbidden: list[set[IdentityId]] = []
        for requirement in requirements:
            negative = requirement.operator in (Operator.NOT_IN, Operator.DOES_NOT_EXIST)
            (forbidden if negative else demanded).append(self._mentioned(requirement))
        if demanded:
            demanded.sort(key=len)
            chosen = demanded[0].intersection(*demanded[1:])
        else:
            chosen = set(self._labels)
        return chosen.difference(*forbidden)

    def _mentioned(self, requirement: Requirement) -> set[IdentityId]:
        """Who carries the key, with one of the values if the requirement has any."""
        name = (requirement.source, requirement.key)
        if not requirement.values:
            return self._by_name.get(name, set())
        if len(requirement.values) == 1:
            return self._by_name.get((*name, requirement.values[0]), set())
        return set().union(*(self._by_name.get((*name, value), ()) for value in requirement.values))

    def _addresses(self, cidr: Cidr) -> set[IdentityId]:
        spans = CidrSpans(cidr)
        line = self._sorted[spans.span.version]
        chosen: set[IdentityId] = set()
        for place in range(bisect.bisect_left(line, (spans.span.first,)), len(line)):
            first, _, identity = line[place]
            if first > spans.span.last:
                break
            if spans.contains(self._spans[identity]):
                chosen.add(identity)
        return chosen


def _names(labels: Labels) -> set[Name]:
    """Under which names an identity with these labels is found."""
    found: set[Name] = set()
    for label in labels.items:
        for source in (label.source, ANY_SOURCE):
            found.add((source, label.key))
            found.add((source, label.key, label.value))
    return found


class Selections:
    """The peers in use and the identities each means, kept current as identities come and go."""

    def __init__(self) -> None:
        self.index = IdentityIndex()
        self._members: dict[Selector | Cidr, set[IdentityId]] = {}
        self._users: dict[Selector | Cidr, int] = {}
        self._spans: dict[Cidr, CidrSpans] = {}
        self._asking: dict[Name, dict[Selector | Cidr, None]] = {}

    def members(self, peer: Selector | Cidr) -> set[IdentityId]:
        """The identities an acquired peer means now (live: do not change or keep it)."""
        return self._members[peer]

    def peers(self) -> dict[Selector | Cidr, frozenset[IdentityId]]:
        """Every peer in use and whom it means now: a copy, for people."""
        return {peer: frozenset(members) for peer, members in self._members.items()}

    def acquire(self, peer: Selector | Cidr) -> None:
        """Begin to follow a peer, or count one more user of it."""
        self._users[peer] = self._users.get(peer, 0) + 1
        if self._users[peer] > 1:
            return
        self._members[peer] = self.index.select(peer)
        if isinstance(peer, Cidr):
            self._spans[peer] = CidrSpans(peer)
        else:
            self._file(peer)

    def release(self, peer: Selector | Cidr) -> None:
        """Count one user less; without users a peer is no longer followed."""
        self._users[peer] -= 1
        if self._users[peer]:
            return
        del self._users[peer], self._members[peer]
        if isinstance(peer, Cidr):
            del self._spans[peer]
        else:
            self._unfile(peer)

    def put(self, identity: IdentityId, labels: Labels) -> list[Selector | Cidr]:
        """Add or relabel an identity; returns the peers whose meaning changed."""
        known = self.index.get(identity)
        if known == labels:
            return []
        left = set(self.remove(identity)) if known is not None else set()
        self.index.put(identity, labels)
        joined = {peer for peer in self._candidates(identity, labels) if self._means(peer, identity, labels)}
        for peer in joined:
            self._members[peer].add(identity)
        return list(left ^ joined)

    def remove(self, identity: IdentityId) -> list[Selector | Cidr]:
        """Remove an identity; returns the peers whose meaning changed."""
        labels = self.index.get(identity)
        if labels is None:
            return []
        left = [peer for peer in self._candidates(identity, labels) if identity in self._members[peer]]
        for peer in left:
            self._members[peer].remove(identity)
        self.index.remove(identity)
        return left

    def _candidates(self, identity: IdentityId, labels: Labels) -> list[Selector | Cidr]:
        """Peers that could mean an identity: those asking for one of its labels, or for none."""
        found: dict[Selector | Cidr, None] = dict(self._asking.get((), {}))
        for name in _names(labels):
            found.update(self._asking.get(name, {}))
        if self.index.span(identity) is not None:
            found.update(dict.fromkeys(self._spans))
        return list(found)

    def _means(self, peer: Selector | Cidr, identity: IdentityId, labels: Labels) -> bool:
        if isinstance(peer, Selector):
            return peer.matches(labels)
        span = self.index.span(identity)
        return span is not None and self._spans[peer].contains(span)

    def _file(self, selector: Selector) -> None:
        for name in _filed_under(selector):
            self._asking.setdefault(name, {})[selector] = None

    def _unfile(self, selector: Selector) -> None:
        for name in _filed_under(selector):
            askers = self._asking[name]
            del askers[selector]
            if not askers:
                del self._asking[name]


def _filed_under(selector: Selector) -> list[Name]:
    """Under which labels a selector is looked for: all that satisfy its most telling demand.

    Most identities carry a namespace and many share one, so that other keys tell more. A selector that
    demands nothing is filed under the empty name and always looked at.
    """
    demands = [r for r in selector.requirements if r.operator in (Operator.IN, Operator.EXISTS)]
    if not demands:
        return [()]
    best = min(
        demands, key=lambda r: (r.operator is Operator.EXISTS, r.key == NAMESPACE, len(r.values), r.key)
    )
    if best.operator is Operator.EXISTS:
        return [(best.source, best.key)]
    return [(best.source, best.key, value) for value in best.values]
