"""Rules: what a policy object says once the three dialects are read, still in terms of labels and prefixes.

A rule is one peer of one rule of an object, with the ports it is about: the unit that a verdict names.
All types are frozen and hashable.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from cilia.model.labels import NAMESPACE, Labels
from cilia.model.policy import Direction, PolicyProblem, RuleRef

ANY_SOURCE = "any"
"""The source of a selector's key that matches labels of every source."""

ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58
SCTP = 132
"""Protocol numbers of IP (IANA); 0 stands for all of them."""


class Operator(enum.StrEnum):
    """How a requirement compares (Kubernetes label selectors)."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class Requirement(msgspec.Struct, frozen=True, order=True):
    """One condition on the labels under `source:key`."""

    source: str
    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def holds(self, labels: Labels) -> bool:
        """Whether `labels` meet the condition; the negative operators also hold where the key is absent."""
        found = [
            label.value
            for label in labels.items
            if label.key == self.key and self.source in (ANY_SOURCE, label.source)
        ]
        if self.operator is Operator.EXISTS:
            return bool(found)
        if self.operator is Operator.DOES_NOT_EXIST:
            return not found
        matched = any(value in self.values for value in found)
        return matched if self.operator is Operator.IN else not matched


class Selector(msgspec.Struct, frozen=True, cache_hash=True):
    """Label sets that meet every requirement; no requirement selects every label set."""

    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def of(cls, requirements: Iterable[Requirement]) -> Selector:
        """Sort and remove duplicates, so that equal meanings share one cache entry more often."""
        return cls(tuple(sorted(set(requirements))))

    def matches(self, labels: Labels) -> bool:
        """Whether `labels` are selected."""
        return all(requirement.holds(labels) for requirement in self.requirements)


def equals(source: str, key: str, value: str = "") -> Requirement:
    """The requirement that a label has this value."""
    return Requirement(source, key, Operator.IN, (value,))


def exists(source: str, key: str) -> Requirement:
    """The requirement that a label is there."""
    return Requirement(source, key, Operator.EXISTS)


def reserved(name: str) -> Selector:
    """The selector of a reserved identity."""
    return Selector((equals("reserved", name),))


HAS_NAMESPACE = exists("k8s", NAMESPACE)
"""True of pods only."""


class Cidr(msgspec.Struct, frozen=True, cache_hash=True):
    """Addresses outside the cluster within `prefix` and in none of `excepts` (canonical text, sorted).

    Pods are never meant, whatever their addresses; nodes only where the agents say that CIDR rules mean them.
    """

    prefix: str
    excepts: tuple[str, ...] = ()
    outside: bool = False
    """Nodes are not meant even then: `Inside` speaks of them."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """All prefixes it speaks of: each needs an identity of its own."""
        return (self.prefix, *self.excepts)


class CidrGroup(msgspec.Struct, frozen=True, cache_hash=True):
    """Addresses of CiliumCIDRGroups, by name or by the labels of the groups, less `excepts`.

    A reference: what it stands for is looked up when the groups are known (`expand`).
    """

    name: str = ""
    selector: Selector | None = None
    """Over the labels of groups; None: the one called `name`."""
    excepts: tuple[str, ...] = ()


class ServicePeer(msgspec.Struct, frozen=True, cache_hash=True):
    """What stands behind Kubernetes Services: a reference, as CidrGroup is.

    A Service with a selector means the pods it selects; one without means the addresses of its
    EndpointSlices.
    """

    namespace: str = ""
    """Empty: of every namespace."""
    name: str = ""
    selector: Selector | None = None
    """Over the labels of Services; None: the one called `name`."""


class Cidrs(msgspec.Struct, frozen=True, cache_hash=True):
    """Addresses within any of several blocks: what a CidrGroup or ServicePeer stands for."""

    blocks: tuple[Cidr, ...]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """All prefixes it speaks of."""
        return tuple(dict.fromkeys(prefix for block in self.blocks for prefix in block.prefixes))


class Inside(msgspec.Struct, frozen=True, cache_hash=True):
    """Pods and nodes by their addresses, as `networks` of ClusterNetworkPolicy mean them.

    Packets know identities, not addresses: one identity may have addresses within and others elsewhere.
    """

    prefixes: tuple[str, ...]
    """Canonical text, sorted."""
    whole: bool
    """Identities all of whose addresses are within some prefix; else those that have any within."""


Meant = Selector | Cidr | Cidrs | Inside
"""A peer that means some identities and not others."""

Peer = Meant | None
"""Whom a rule is about; None is everybody, also those nobody knows."""

WrittenPeer = Peer | CidrGroup | ServicePeer
"""A peer as the policy writes it, references not yet followed."""


class PortRange(msgspec.Struct, frozen=True, order=True):
    """Ports `first`..`last` of a protocol; for ICMP the types. Protocol 0: all protocols and ports."""

    protocol: int = 0
    first: int = 0
    last: int = 65535

    def covers(self, protocol: int, port: int) -> bool:
        """Whether a packet to `port` is meant."""
        return self.protocol in (0, protocol) and self.first <= port <= self.last


class PortName(msgspec.Struct, frozen=True, order=True):
    """The ports that the receiving pod calls `name`."""

    protocol: int
    """TCP, UDP or SCTP."""
    name: str


Ports = PortRange | PortName

ALL_PORTS = (PortRange(),)


class Tier(enum.IntEnum):
    """When a section is heard: every tier before the next lower one. The top byte of the precedence."""

    ADMIN = 192
    """ClusterNetworkPolicy, tier Admin."""
    NORMAL = 128
    """NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy."""
    BASELINE = 64
    """ClusterNetworkPolicy, tier Baseline: for subjects that no normal section isolates."""


class Action(enum.StrEnum):
    """What a rule says of the packets it is about."""

    ALLOW = "allow"
    DENY = "deny"
    PASS = "pass"
    """The rest of its tier says nothing: the next tier decides."""
    HOLD = "hold"
    """Perhaps a Pass: what the rest of its tier allows is left to the next tier, what it denies is denied."""


class Rule(msgspec.Struct, frozen=True):
    """What to do with one peer on some ports, in one direction."""

    direction: Direction
    peer: WrittenPeer
    ports: tuple[Ports, ...]
    action: Action
    ref: RuleRef


class Refused(msgspec.Struct, frozen=True):
    """A rule that can't be enforced as written: an allowance allows nothing, others deny everybody."""

    direction: Direction
    action: Action
    """As written."""
    ref: RuleRef
    problem: PolicyProblem
    """The first that was found."""


class Section(msgspec.Struct, frozen=True, kw_only=True, weakref=True, cache_hash=True):
    """One spec of an object: whom it is for, the directions it isolates, its rules.

    Rules of a normal section have no order: deny beats allow. Those of the other tiers are heard in the
    order written, sections by `priority` and then by name; the first that is about a packet decides.
    """

    subject: Selector
    ref: RuleRef
    """The spec as a whole: what a default deny names."""
    isolates: tuple[Direction, ...]
    rules: tuple[Rule, ...]
    tier: Tier = Tier.NORMAL
    priority: int = 0
    """0..1000, lower is heard first; always 0 in the normal tier."""
    audit: bool = False
    """The section decides nothing; what it would have denied is noted."""
    nodes: bool = False
    """It is about nodes (their host endpoint), not about pods."""
    refused: tuple[Refused, ...] = ()
    """What of it can't be enforced; `rules` say what holds in its place."""

    def selects(self, labels: Labels) -> bool:
        """Whether it is for endpoints with these labels."""
        return self.nodes == labels.is_host and self.subject.matches(labels)


class Parsed(msgspec.Struct, frozen=True):
    """A policy object read. It may have both sections and problems: what has none is in force."""

    sections: tuple[Section, ...] = ()
    """All in force; a rule with a problem stands for what `Refused` says."""
    problems: tuple[PolicyProblem, ...] = ()
    warnings: tuple[PolicyProblem, ...] = ()
    """Parts in force whose meaning here is not quite, or may not be, what the author had in mind."""

    @property
    def prefixes(self) -> frozenset[str]:
        """Every CIDR prefix that some rule speaks of; those behind references are `expand`'s."""
        return frozenset(
            prefix
            for section in self.sections
            for rule in section.rules
            if isinstance(rule.peer, Cidr | Cidrs)
            for prefix in rule.peer.prefixes
        )
