"""Warnings: rules in force that can't match what their author probably meant.

They depend on who is there now, so that they come and go: whoever shows them lets them stand for a while
first. They never change a verdict. Looked for off the hot path, a few policies at a time.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple, Protocol

from cilia.control.identity import node_labels
from cilia.control.policy.meaning.expand import PolicyRules, Reference
from cilia.control.policy.meaning.selection import Block, blocks_of
from cilia.control.policy.meaning.spans import Lengths, Span
from cilia.control.policy.rules import (
    SCTP,
    TCP,
    UDP,
    Action,
    Cidr,
    CidrGroup,
    Cidrs,
    Inside,
    PortName,
    Rule,
    Section,
    Selector,
    ServicePeer,
    Tier,
)
from cilia.model.ids import IdentityId
from cilia.model.labels import Label, Labels
from cilia.model.node import Node
from cilia.model.policy import PolicyProblem, RuleRef

MOST_WARNINGS = 16
"""Of one policy."""

_PROTOCOLS = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}
_SUBJECT_FIELDS = {"NetworkPolicy": "podSelector", "ClusterNetworkPolicy": "subject"}


class Known(Protocol):
    """Who is there."""

    def select(self, peer: Selector | Inside) -> Set[IdentityId]:
        """The identities that a peer means."""

    def naming(self, name: PortName) -> Set[IdentityId]:
        """The identities some endpoint of which has a port of that name."""

    def exists(self, reference: Reference) -> bool:
        """Whether anything that a reference names is there."""


class Taken(NamedTuple):
    """A prefix that CIDR rules don't mean."""

    span: Span
    text: str
    node: str
    pods: bool
    """Of pods; else an address of the node itself."""


class Ground:
    """What lies where CIDR rules don't reach, and the nodes' labels."""

    def __init__(self, nodes: Iterable[Node], *, cidr_nodes: bool) -> None:
        """`cidr_nodes`: CIDR rules mean nodes."""
        rows = list(nodes)
        self.hosts = [Labels.of([Label("reserved", "host"), *node_labels(node)]) for node in rows]
        self._lines: dict[int, list[Taken]] = {4: [], 6: []}
        self._prefixes: dict[tuple[int, int, int], Taken] = {}
        self._lengths = Lengths()
        for node in rows:
            self._take(node.pod_cidrs, node.name, pods=True)
            if not cidr_nodes:
                self._take((*node.addresses, *node.router_addresses), node.name, pods=False)
        for line in self._lines.values():
            line.sort(key=_first)

    def under(self, cidr: Cidr) -> Taken | None:
        """Something that a block covers, or is within, and doesn't mean; everywhere covers nothing."""
        block = Block(cidr)
        if not block.span.bits:
            return None
        for prefix in block.span.around(self._lengths.of(block.span.version)):
            if prefix in self._prefixes:
                return self._prefixes[prefix]
        line = self._lines[block.span.version]
        place = bisect.bisect_left(line, block.span.first, key=_first)
        while place < len(line) and line[place].span.first <= block.span.last:
            if not block.leaves_out(line[place].span):
                return line[place]
            place += 1
        return None

    def _take(self, texts: Iterable[str], node: str, *, pods: bool) -> None:
        for text in texts:
            span = Span(text)
            taken = Taken(span, text, node, pods)
            self._lines[span.version].append(taken)
            self._prefixes[span.prefix] = taken
            self._lengths.add(span)


def _first(taken: Taken) -> int:
    return taken.span.first


def review(row: PolicyRules, known: Known, ground: Ground) -> tuple[PolicyProblem, ...]:
    """The warnings about one policy: at most `MOST_WARNINGS`."""
    found = dict.fromkeys(
        [
            *(problem for section in row.sections for problem in _of_subject(section, known, ground)),
            *_of_references(row, known),
            *_of_selectors(row, known),
            *(problem for section in row.sections for problem in _of_rules(section, known, ground)),
        ]
    )
    if len(found) <= MOST_WARNINGS:
        return tuple(found)
    rest = len(found) - MOST_WARNINGS + 1
    more = PolicyProblem("", f"{rest} more warnings are not shown: begin with these.")
    return (*list(found)[: MOST_WARNINGS - 1], more)


def _rules(sections: Iterable[Section]) -> Iterator[Rule]:
    return (rule for section in sections for rule in section.rules)


def _of_subject(section: Section, known: Known, ground: Ground) -> Iterator[PolicyProblem]:
    if section.nodes:
        if not any(section.subject.matches(labels) for labels in ground.hosts):
            yield PolicyProblem(
                f"{section.ref.path}.nodeSelector",
                "No node has these labels, so the policy is for nobody: compare with "
                "`kubectl get nodes --show-labels`.",
            )
    elif not known.select(section.subject):
        field = _SUBJECT_FIELDS.get(section.ref.kind, "endpointSelector")
        yield PolicyProblem(
            f"{section.ref.path}.{field}",
            "No pod has these labels now, so the policy is for nobody: compare with "
            "`kubectl get pods --show-labels`.",
        )


def _of_references(row: PolicyRules, known: Known) -> Iterator[PolicyProblem]:
    for rule in _rules(row.parsed.sections):
        if isinstance(rule.peer, CidrGroup | ServicePeer) and not known.exists(rule.peer):
            yield PolicyProblem(rule.ref.path, f"There is no {_name(rule.peer)}: {_without(rule)}.")


def _name(reference: Reference) -> str:
    if isinstance(reference, CidrGroup):
        kind, name = "CiliumCIDRGroup", reference.name
    else:
        kind, name = "Service", f"{reference.namespace}/{reference.name}"
    return f"{kind} with these labels" if reference.selector is not None else f"{kind} {name}"


def _without(rule: Rule) -> str:
    return {
        Action.ALLOW: "the rule allows nobody until it is created",
        Action.DENY: "the rule denies nobody until it is created",
        Action.PASS: "the rule passes nobody on until it is created",
        Action.HOLD: "the rule passes nobody on until it is created",
    }[rule.action]


def _of_selectors(row: PolicyRules, known: Known) -> Iterator[PolicyProblem]:
    """Peers by label that mean nobody; one written peer may stand for several selectors."""
    by_ref: dict[RuleRef, list[Selector]] = {}
    for rule in _rules(row.sections):
        if isinstance(rule.peer, Selector):
            by_ref.setdefault(rule.ref, []).append(rule.peer)
    for ref, selectors in by_ref.items():
        if not any(known.select(selector) for selector in selectors):
            yield PolicyProblem(
                ref.path,
                "Nobody has these labels now, so the rule is about nobody: compare with "
                "`kubectl get ciliumidentities --show-labels`.",
            )


def _of_rules(section: Section, known: Known, ground: Ground) -> Iterator[PolicyProblem]:
    for rule in section.rules:
        if isinstance(rule.peer, Inside):
            yield from _of_networks(rule, rule.peer, known)
        elif isinstance(rule.peer, Cidr | Cidrs) and section.tier is Tier.NORMAL:
            yield from _of_blocks(rule, blocks_of(rule.peer), ground)
        yield from _of_names(rule, known)


def _of_networks(rule: Rule, peer: Inside, known: Known) -> Iterator[PolicyProblem]:
    """Pods alike of which some are within networks and some are not."""
    if rule.action is Action.PASS:
        return
    some, whole = (known.select(Inside(peer.prefixes, every)) for every in (False, True))
    if len(some) > len(whole):
        yield PolicyProblem(
            rule.ref.path,
            "Some addresses of pods alike, or of a node, are in these networks and others are not, so "
            f"{_SPLIT[rule.action]}: use namespaces, pods or nodes.",
        )


_SPLIT = {
    Action.ALLOW: "none of these are accepted",
    Action.DENY: "all of these are denied",
    Action.HOLD: "what later rules accept of all these is left to the next tier",
}


def _of_blocks(rule: Rule, blocks: Iterable[Cidr], ground: Ground) -> Iterator[PolicyProblem]:
    found = ((cidr, ground.under(cidr)) for cidr in blocks)
    hit = next(((cidr, taken) for cidr, taken in found if taken is not None), None)
    if hit is not None:
        yield PolicyProblem(rule.ref.path, _about_ground(*hit))


def _of_names(rule: Rule, known: Known) -> Iterator[PolicyProblem]:
    """A name without a protocol stands for all of them: one is enough."""
    meant: dict[str, list[PortName]] = {}
    for ports in rule.ports:
        if isinstance(ports, PortName):
            meant.setdefault(ports.name, []).append(ports)
    for name, variants in meant.items():
        if not any(known.naming(each) for each in variants):
            protocols = " or ".join(_PROTOCOLS[each.protocol] for each in variants)
            yield PolicyProblem(
                rule.ref.path,
                f"No pod calls a {protocols} port {name!r}: name the port in the pods' "
                "spec.containers[].ports, or write its number.",
            )


def _about_ground(cidr: Cidr, taken: Taken) -> str:
    if taken.pods:
        return (
            f"{cidr.prefix} overlaps the pods of node {taken.node} ({taken.text}), which CIDR rules never "
            "mean: select pods by their labels."
        )
    return (
        f"{cidr.prefix} covers node {taken.node} ({taken.text}), which CIDR rules don't mean: use the "
        "entities host and remote-node, or start the agents with --policy-cidr-match-mode=nodes."
    )
