"""The oracle: a policy decision straight from the rules, slow and obviously right.

It shares nothing with the engine but the rules themselves: no index, no prefixes of ports, no precedence,
no longest match on entries. Tests hold the compiled entries, and the kernel, to its answers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec

from cilia.control.policy.resolve import LOCALHOST
from cilia.control.policy.rules import Action, Cidr, Peer, Rule, Section
from cilia.control.policy.selection import network_of
from cilia.model.identity import HOST, Identity
from cilia.model.labels import Labels
from cilia.model.policy import Direction, PolicyMode, RuleRef


class Verdict(msgspec.Struct, frozen=True):
    """The answer, and every rule that agrees with it; by default, the policies that isolate."""

    allow: bool
    rules: frozenset[RuleRef]
    default: bool = False


def judge(
    sections: Iterable[Section],
    subject: Labels,
    peer: Identity | None,
    direction: Direction,
    protocol: int,
    port: int,
    *,
    mode: PolicyMode = PolicyMode.DEFAULT,
    allow_localhost: bool = True,
) -> Verdict:
    """Judge one packet between `subject` and `peer` (None: nobody knows who)."""
    if mode is PolicyMode.NEVER:
        return Verdict(True, frozenset(), default=True)
    mine = [section for section in sections if section.subject.matches(subject)]
    isolating = frozenset(section.ref for section in mine if direction in section.isolates)
    isolated = mode is PolicyMode.ALWAYS or bool(isolating)
    about = [
        rule
        for section in mine
        for rule in section.rules
        if rule.direction is direction and _is_about(rule, peer, protocol, port)
    ]
    denying = frozenset(rule.ref for rule in about if rule.action is Action.DENY)
    if denying:
        return Verdict(False, denying)
    allowing = frozenset(rule.ref for rule in about)
    localhost = allow_localhost and direction is Direction.INGRESS and peer is not None and peer.id == HOST
    if localhost and isolated:
        allowing |= {LOCALHOST}
    if allowing:
        return Verdict(True, allowing)
    return Verdict(not isolated, isolating, default=True)


def _is_about(rule: Rule, peer: Identity | None, protocol: int, port: int) -> bool:
    return any(part.covers(protocol, port) for part in rule.ports) and _is_meant(rule.peer, peer)


def _is_meant(meant: Peer, peer: Identity | None) -> bool:
    if meant is None:
        return True
    if peer is None:
        return False
    if not isinstance(meant, Cidr):
        return meant.matches(peer.labels)
    network = network_of(peer.id, peer.labels)
    return (
        network is not None
        and _within(network, meant.prefix)
        and not any(_within(network, part) for part in meant.excepts)
    )


def _within(network: ipaddress.IPv4Network | ipaddress.IPv6Network, prefix: str) -> bool:
    other = ipaddress.ip_network(prefix)
    return network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
