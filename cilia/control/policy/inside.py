"""Where the pods are: which blocks of addresses cover all of them, and denials that mean them, too.

The API of ClusterNetworkPolicy means addresses anywhere by `networks`. Pods are told apart here by who they
are, so a denial of a block means pods exactly where it covers every prefix that nodes give their pods in its
family: then all pods are denied (in both families, which no rule can tell apart). A block that covers some of
them means none, and a warning says so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

import msgspec

from cilia.control.policy.rules import HAS_NAMESPACE, Action, Cidr, Rule, Section, Selector, Tier
from cilia.model.node import Node
from cilia.schema import Inputs

PODS = Selector((HAS_NAMESPACE,))
"""All pods, of any cluster."""


class PodPrefixes:
    """The prefixes of all nodes' pods, as first and last address of each family."""

    def __init__(self, inputs: Inputs) -> None:
        self._nodes = inputs.nodes
        self._changes = inputs.nodes.cursor()
        self._spans: dict[int, tuple[int, int]] = {}

    def step(self) -> bool:
        """Follow the nodes; returns whether other blocks may cover all pods now."""
        if not self._changes.pending:
            return False
        self._changes.take()
        before, self._spans = self._spans, _spans(self._nodes)
        return before != self._spans

    def covered(self, cidr: Cidr) -> bool:
        """Whether all pods with an address of the block's family are within it."""
        network = ipaddress.ip_network(cidr.prefix)
        span = self._spans.get(network.version)
        return (
            span is not None
            and not cidr.excepts
            and int(network.network_address) <= span[0]
            and span[1] <= int(network.broadcast_address)
        )


def _spans(nodes: Iterable[Node]) -> dict[int, tuple[int, int]]:
    spans: dict[int, tuple[int, int]] = {}
    for node in nodes:
        for text in node.pod_cidrs:
            network = ipaddress.ip_network(text)
            first, last = int(network.network_address), int(network.broadcast_address)
            known = spans.get(network.version, (first, last))
            spans[network.version] = (min(known[0], first), max(known[1], last))
    return spans


def may_mean_pods(section: Section) -> bool:
    """Whether some denial of blocks in it means pods when they are within."""
    return section.tier is not Tier.NORMAL and any(_denies_block(rule) for rule in section.rules)


def with_pods(section: Section, prefixes: PodPrefixes) -> Section:
    """A section whose denials of blocks mean the pods within them, too."""
    if not may_mean_pods(section):
        return section
    return msgspec.structs.replace(section, rules=tuple(_with_pods(section.rules, prefixes)))


def _with_pods(rules: Iterable[Rule], prefixes: PodPrefixes) -> Iterator[Rule]:
    for rule in rules:
        yield rule
        if isinstance(rule.peer, Cidr) and _denies_block(rule) and prefixes.covered(rule.peer):
            yield msgspec.structs.replace(rule, peer=PODS)


def _denies_block(rule: Rule) -> bool:
    return rule.action is Action.DENY and isinstance(rule.peer, Cidr)
