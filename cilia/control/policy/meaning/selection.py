"""Which identities a peer means, kept current by set algebra over a label index instead of scans.

Two structures: an index from labels to the identities that carry them (answers a new selector), and from
labels to the selectors that ask for them (answers a new identity). Addresses have the same two: sorted
ranges (prefixes nest or are disjoint, so those within a prefix are neighbours) and, by their length, the
blocks that peers speak of (a prefix is within at most one block of each length).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Set

from cilia.control.policy.meaning.spans import Lengths, Prefixes, Span
from cilia.control.policy.rules import ANY_SOURCE, Cidr, Cidrs, Operator, Requirement, Selector
from cilia.model.address import IPNetwork
from cilia.model.identity import WORLD_IPV4, WORLD_IPV6
from cilia.model.ids import IdentityId
from cilia.model.labels import NAMESPACE, Label, Labels

Name = tuple[str, ...]
"""Where identities and selectors meet in the indexes: (source, key) or (source, key, value)."""

SomePeer = Selector | Cidr | Cidrs
"""A peer that means certain identities."""

_EVERYWHERE = {WORLD_IPV4: "0.0.0.0/0", WORLD_IPV6: "::/0"}


def cidr_label(prefix: str) -> Label:
    """The label of a prefix's identity; colons are dashes, and no dash stands first or last."""
    address, _, length = prefix.partition("/")
    text = address.replace(":", "-")
    text = ("0" if text.startswith("-") else "") + text + ("0" if text.endswith("-") else "")
    return Label("cidr", f"{text}/{length}")


def spans_of(identity: IdentityId, labels: Labels, cidr_nodes: bool = False) -> tuple[Span, ...]:
    """The prefixes an identity stands for; none when it is not one of addresses outside the cluster.

    A node's addresses count only if `cidr_nodes`.
    """
    if identity in _EVERYWHERE:
        return (Span(_EVERYWHERE[identity]),)
    found = [label.key for label in labels.items if label.source == "cidr"]
    if not found or (is_node(labels) and not cidr_nodes):
        return ()
    return tuple(Span(text.replace("-", ":")) for text in found)


def network_of(identity: IdentityId, labels: Labels) -> IPNetwork | None:
    """The prefix outside the cluster that an identity stands for, or None."""
    spans = spans_of(identity, labels)
    return spans[0].network if spans else None


def is_node(labels: Labels) -> bool:
    """Whether they are a node's."""
    return labels.has("reserved", "remote-node") or labels.has("reserved", "host")


_NOTHING = Prefixes()


class Block:
    """A Cidr ready for comparison: thousands of exceptions cost what one of each length costs."""

    def __init__(self, cidr: Cidr) -> None:
        self.span = Span(cidr.prefix)
        self.outside = cidr.outside
        self._excepts = Prefixes(cidr.excepts) if cidr.excepts else _NOTHING

    def leaves_out(self, span: Span) -> bool:
        """Whether a prefix within the block is in an exception: each of these has an identity, so none is
        cut."""
        return self._excepts.contain(span)


def blocks_of(peer: Cidr | Cidrs) -> tuple[Cidr, ...]:
    """The blocks a peer consists of."""
    return peer.blocks if isinstance(peer, Cidrs) else (peer,)


class IdentityIndex:
    """All identities by label and by address."""

    def __init__(self, *, cidr_nodes: bool = False) -> None:
        self._cidr_nodes = cidr_nodes
        self._labels: dict[IdentityId, Labels] = {}
        self._spans: dict[IdentityId, tuple[Span, ...]] = {}
        self._sorted: dict[int, list[tuple[int, int, IdentityId]]] = {4: [], 6: []}
        self._by_name: dict[Name, set[IdentityId]] = {}
        self._sources: set[str] = set()
        """Of every label there ever was: a handful."""

    def __iter__(self) -> Iterator[IdentityId]:
        return iter(self._labels)

    def get(self, identity: IdentityId) -> Labels | None:
        """The labels of an identity, or None."""
        return self._labels.get(identity)

    def labels(self) -> dict[IdentityId, Labels]:
        """Everybody's labels: a copy."""
        return dict(self._labels)

    def spans(self, identity: IdentityId) -> tuple[Span, ...]:
        """The addresses of an identity, if it stands for addresses."""
        return self._spans.get(identity, ())

    def put(self, identity: IdentityId, labels: Labels) -> None:
        """Add an identity that is not there yet."""
        self._labels[identity] = labels
        by_name = self._by_name
        for name in _names(labels):
            members = by_name.get(name)
            if members is None:
                by_name[name] = {identity}
                self._sources.add(name[0])
            else:
                members.add(identity)
        spans = spans_of(identity, labels, self._cidr_nodes)
        if spans:
            self._spans[identity] = spans
        for span in spans:
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
        for span in self._spans.pop(identity, ()):
            line = self._sorted[span.version]
            del line[bisect.bisect_left(line, (span.first, span.last, identity))]

    def select(self, peer: SomePeer) -> set[IdentityId]:
        """The identities a peer means now."""
        if isinstance(peer, Selector):
            return self._selected(peer.requirements)
        return {identity for cidr in blocks_of(peer) for identity in self.within(Block(cidr))}

    def _selected(self, requirements: Iterable[Requirement]) -> set[IdentityId]:
        demanded: list[Set[IdentityId]] = []
        forbidden: list[Set[IdentityId]] = []
        for requirement in requirements:
            negative = requirement.operator in (Operator.NOT_IN, Operator.DOES_NOT_EXIST)
            (forbidden if negative else demanded).append(self._mentioned(requirement))
        if not demanded:
            return set(self._labels).difference(*forbidden)
        demanded.sort(key=len)
        chosen = set(demanded[0]).intersection(*demanded[1:])
        return chosen.difference(*forbidden) if forbidden else chosen

    def _mentioned(self, requirement: Requirement) -> Set[IdentityId]:
        """Who carries the key, with one of the values if the requirement has any."""
        names = _asked_names(requirement, self._sources)
        if len(names) == 1:
            return self._by_name.get(names[0], frozenset())
        return set().union(*(self._by_name.get(name, ()) for name in names))

    def within(self, block: Block) -> Iterator[IdentityId]:
        """The identities of addresses in a block."""
        line = self._sorted[block.span.version]
        for place in range(bisect.bisect_left(line, (block.span.first,)), len(line)):
            first, last, identity = line[place]
            if first > block.span.last:
                break
            if block.outside and is_node(self._labels[identity]):
                continue
            if last <= block.span.last and not block.leaves_out(self._span(block, identity, first, last)):
                yield identity

    def _span(self, block: Block, identity: IdentityId, first: int, last: int) -> Span:
        (found, *_) = (
            span
            for span in self._spans[identity]
            if (span.version, span.first, span.last) == (block.span.version, first, last)
        )
        return found


def _names(labels: Labels) -> set[Name]:
    """Under which names an identity with these labels is found."""
    found: set[Name] = set()
    for label in labels.items:
        found.add((label.source, label.key))
        found.add((label.source, label.key, label.value))
    return found


def _asked_names(requirement: Requirement, sources: Iterable[str]) -> list[Name]:
    """The names of the labels that a requirement mentions."""
    key = requirement.key
    found: list[Name] = []
    for source in sources if requirement.source == ANY_SOURCE else (requirement.source,):
        found += [(source, key, value) for value in requirement.values] or [(source, key)]
    return found


class Followed:
    """A peer in use. Compared by identity: the hash of a peer of 10,000 values or blocks takes its time."""

    __slots__ = ("members", "peer", "users")

    def __init__(self, peer: SomePeer) -> None:
        self.peer = peer
        self.members: set[IdentityId] = set()
        self.users = 1


class Selections:
    """The peers in use and the identities each means, kept current as identities come and go."""

    def __init__(self, *, cidr_nodes: bool = False) -> None:
        self.index = IdentityIndex(cidr_nodes=cidr_nodes)
        self._followed: dict[SomePeer, Followed] = {}
        self._asking: dict[Name, dict[Followed, Selector]] = {}
        self._blocks: dict[tuple[int, int, int], dict[Cidr, Block]] = {}
        self._speaking: dict[Cidr, tuple[Block, dict[Followed, None]]] = {}
        """The blocks of the peers in use, each with these."""
        self._lengths = Lengths()

    def members(self, peer: SomePeer) -> set[IdentityId]:
        """The identities an acquired peer means now: one live set until it is released, not to be changed."""
        return self._followed[peer].members

    def peers(self) -> dict[SomePeer, frozenset[IdentityId]]:
        """Every peer in use and whom it means now: a copy, for people."""
        return {peer: frozenset(held.members) for peer, held in self._followed.items()}

    def acquire(self, peer: SomePeer) -> None:
        """Begin to follow a peer, or count one more user of it."""
        held = self._followed.get(peer)
        if held is not None:
            held.users += 1
            return
        held = self._followed[peer] = Followed(peer)
        if isinstance(peer, Selector):
            held.members = self.index.select(peer)
            for name in _filed_under(peer):
                self._asking.setdefault(name, {})[held] = peer
        else:
            for cidr in dict.fromkeys(blocks_of(peer)):
                held.members.update(self.index.within(self._file(cidr, held)))

    def release(self, peer: SomePeer) -> None:
        """Count one user less; without users a peer is no longer followed."""
        held = self._followed[peer]
        held.users -= 1
        if held.users:
            return
        del self._followed[peer]
        if isinstance(peer, Selector):
            self._unfile_selector(peer, held)
        else:
            for cidr in dict.fromkeys(blocks_of(peer)):
                self._unfile(cidr, held)

    def put(self, identity: IdentityId, labels: Labels) -> list[SomePeer]:
        """Add or relabel an identity; returns the peers whose meaning changed."""
        known = self.index.get(identity)
        if known == labels:
            return []
        left = self._meaning(identity, known) if known is not None else set()
        if known is not None:
            self.index.remove(identity)
        self.index.put(identity, labels)
        joined = self._meaning(identity, labels)
        for held in left - joined:
            held.members.remove(identity)
        for held in joined - left:
            held.members.add(identity)
        return [held.peer for held in left ^ joined]

    def remove(self, identity: IdentityId) -> list[SomePeer]:
        """Remove an identity; returns the peers whose meaning changed."""
        labels = self.index.get(identity)
        if labels is None:
            return []
        left = self._meaning(identity, labels)
        for held in left:
            held.members.remove(identity)
        self.index.remove(identity)
        return [held.peer for held in left]

    def meaning(self, identity: IdentityId) -> list[SomePeer]:
        """The peers in use that mean an identity."""
        labels = self.index.get(identity)
        return [held.peer for held in self._meaning(identity, labels)] if labels is not None else []

    def _meaning(self, identity: IdentityId, labels: Labels) -> set[Followed]:
        """The peers in use that mean an identity of the index."""
        if not self._followed:
            return set()
        asking: dict[Followed, Selector] = dict(self._asking.get((), {}))
        for label in labels.items:
            key, value = label.key, label.value
            for source in (label.source, ANY_SOURCE):
                for name in ((source, key), (source, key, value)):
                    askers = self._asking.get(name)
                    if askers is not None:
                        asking.update(askers)
        found = {held for held, selector in asking.items() if selector.matches(labels)}
        node = is_node(labels)
        for span in self.index.spans(identity):
            for prefix in span.around(self._lengths.of(span.version)):
                for cidr, block in self._blocks.get(prefix, {}).items():
                    if not (node and block.outside) and not block.leaves_out(span):
                        found.update(self._speaking[cidr][1])
        return found

    def _file(self, cidr: Cidr, held: Followed) -> Block:
        known = self._speaking.get(cidr)
        if known is None:
            block = Block(cidr)
            known = self._speaking[cidr] = (block, {})
            self._blocks.setdefault(block.span.prefix, {})[cidr] = block
            self._lengths.add(block.span)
        known[1][held] = None
        return known[0]

    def _unfile(self, cidr: Cidr, held: Followed) -> None:
        block, speaking = self._speaking[cidr]
        del speaking[held]
        if not speaking:
            prefix = block.span.prefix
            del self._speaking[cidr], self._blocks[prefix][cidr]
            if not self._blocks[prefix]:
                del self._blocks[prefix]
            self._lengths.remove(block.span)

    def _unfile_selector(self, selector: Selector, held: Followed) -> None:
        for name in _filed_under(selector):
            askers = self._asking[name]
            del askers[held]
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
    return [(best.source, best.key, value) for value in dict.fromkeys(best.values)]
