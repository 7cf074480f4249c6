"""The oracle: a policy decision straight from the rules, slow and obviously right.

It shares nothing with the engine but the rules themselves: no index, no prefixes of ports, no precedence,
no longest match on entries. Tests hold the compiled entries, and the kernel, to its answers; `hearing` tells
people what was considered.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

import msgspec

from cilia.control.policy.facts import LOCALHOST as LOCALHOST
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.rules import (
    SCTP,
    TCP,
    UDP,
    Action,
    Cidr,
    Cidrs,
    Inside,
    PortRange,
    Rule,
    Section,
    Selector,
    Tier,
    WrittenPeer,
)
from cilia.model.address import IPNetwork
from cilia.model.identity import HOST, WORLD_IPV4, WORLD_IPV6
from cilia.model.labels import Labels
from cilia.model.policy import Direction, PolicyMode, RuleRef

_PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}


class Verdict(msgspec.Struct, frozen=True):
    """The answer, and every rule that agrees with it; by default, the policies that isolate."""

    allow: bool
    """Whether the packet passes."""
    rules: frozenset[RuleRef]
    default: bool = False
    audited: bool = False
    """It passes, but only because of audit: `rules` and `default` say what would have denied it."""
    tier: Tier | None = None
    """The tier that decided; None when none did (default allow)."""


class Heard(msgspec.Struct, frozen=True):
    """A rule that is about a packet, with its section."""

    section: Section
    rule: Rule


ALLOWED = Verdict(True, frozenset(), default=True)
"""No policy forbids it."""


def judge(
    facts: Facts, subject: Party, peer: Party | None, direction: Direction, protocol: int, port: int
) -> Verdict:
    """Judge one packet between `subject` and `peer` (None: nobody knows who).

    What is not in audit says whether the packet passes; if it does, all sections together say why, or that
    they would have denied it.

    `port` is the receiver's, or the ICMP type; 0 for protocols without ports.
    """
    sections = selecting(facts, subject)
    heard = _about(sections, facts, subject, peer, direction, protocol, port)
    full = _verdict(heard, isolation(facts, subject, sections, direction), facts, direction, peer)
    if facts.audit or subject.audit:
        enforced = ALLOWED
    else:
        firm = [section for section in sections if not section.audit]
        binding = [item for item in heard if not item.section.audit]
        enforced = _verdict(binding, isolation(facts, subject, firm, direction), facts, direction, peer)
    if not enforced.allow:
        return enforced
    return Verdict(True, full.rules, full.default, not full.allow, full.tier)


def selecting(facts: Facts, subject: Party) -> list[Section]:
    """The sections in force for a subject, in the order they are heard."""
    if facts.mode is PolicyMode.NEVER:
        return []
    mine = [section for section in facts.sections if section.selects(subject.labels)]
    return sorted(mine, key=lambda section: (-section.tier, section.priority, section.ref.name, section.ref))


def hearing(
    facts: Facts, subject: Party, peer: Party | None, direction: Direction, protocol: int, port: int
) -> list[Heard]:
    """Every rule that is about a packet, in the order they are heard: those of the normal tier all together.

    The built-in rule for the local host (`LOCALHOST`) is not among them.
    """
    return _about(selecting(facts, subject), facts, subject, peer, direction, protocol, port)


def isolation(
    facts: Facts, subject: Party, sections: Sequence[Section], direction: Direction
) -> tuple[bool, frozenset[RuleRef]]:
    """Whether a subject is isolated in a direction, and which sections do so.

    An endpoint that has no labels yet always is: it could be anybody.
    """
    by = frozenset(
        section.ref for section in sections if section.tier is Tier.NORMAL and direction in section.isolates
    )
    if facts.mode is PolicyMode.NEVER:
        return False, by
    always = facts.mode is PolicyMode.ALWAYS or subject.labels.has("reserved", "init")
    return always or bool(by), by


def _about(
    sections: Sequence[Section],
    facts: Facts,
    subject: Party,
    peer: Party | None,
    direction: Direction,
    protocol: int,
    port: int,
) -> list[Heard]:
    return [
        Heard(section, rule)
        for section in sections
        for rule in section.rules
        if rule.direction is direction
        and means(facts, rule.peer, peer)
        and covers(rule, facts, subject, peer, protocol, port)
    ]


def _verdict(
    heard: Sequence[Heard],
    isolated_by: tuple[bool, frozenset[RuleRef]],
    facts: Facts,
    direction: Direction,
    peer: Party | None,
) -> Verdict:
    """The answer of the first tier that has one."""
    isolated, by = isolated_by
    ruling = _ruling(heard, Tier.ADMIN)
    if ruling is not None:
        return Verdict(ruling.action is Action.ALLOW, frozenset({ruling.ref}), tier=Tier.ADMIN)
    normal = [item.rule for item in heard if item.section.tier is Tier.NORMAL]
    denying = frozenset(rule.ref for rule in normal if rule.action is Action.DENY)
    if denying:
        return Verdict(False, denying, tier=Tier.NORMAL)
    allowing = frozenset(rule.ref for rule in normal)
    if isolated and _is_localhost(facts, direction, peer):
        allowing |= {LOCALHOST}
    if allowing:
        return Verdict(True, allowing, tier=Tier.NORMAL)
    if isolated:
        return Verdict(False, by, default=True, tier=Tier.NORMAL)
    ruling = _ruling(heard, Tier.BASELINE)
    if ruling is not None:
        return Verdict(ruling.action is Action.ALLOW, frozenset({ruling.ref}), tier=Tier.BASELINE)
    return ALLOWED


def _ruling(heard: Sequence[Heard], tier: Tier) -> Rule | None:
    """The rule of an ordered tier that decides; None when none is about the packet, or it is passed on."""
    held = False
    for item in heard:
        if item.section.tier is not tier:
            continue
        action = item.rule.action
        if action is Action.HOLD:
            held = True
        elif action is Action.DENY or (action is Action.ALLOW and not held):
            return item.rule
        else:
            return None
    return None


def _is_localhost(facts: Facts, direction: Direction, peer: Party | None) -> bool:
    return (
        facts.allow_localhost
        and direction is Direction.INGRESS
        and peer is not None
        and peer.identity == HOST
    )


def covers(rule: Rule, facts: Facts, subject: Party, peer: Party | None, protocol: int, port: int) -> bool:
    """Whether a rule is about a packet's protocol and port."""
    return any(part.covers(protocol, port) for part in numbered(rule, facts, subject, peer))


def numbered(rule: Rule, facts: Facts, subject: Party, peer: Party | None) -> Iterator[PortRange]:
    """The ports of a rule, names replaced by the numbers that the receiving end gives them.

    The receiver of ingress is the subject itself; that of egress any endpoint of the peer's identity.
    """
    if rule.direction is Direction.INGRESS:
        named = frozenset(subject.named_ports)
    else:
        named = facts.port_names.get(peer.identity, frozenset()) if peer is not None else frozenset()
    for part in rule.ports:
        if isinstance(part, PortRange):
            yield part
            continue
        for port in named:
            if port.name == part.name and _PROTOCOLS.get(port.protocol) == part.protocol:
                yield PortRange(part.protocol, port.port, port.port)


def means(facts: Facts, meant: WrittenPeer, peer: Party | None) -> bool:
    """Whether a rule's peer means this one. A reference that nobody followed means nobody."""
    if meant is None:
        return True
    if peer is None:
        return False
    if isinstance(meant, Cidr):
        return _is_within(meant, peer, facts)
    if isinstance(meant, Cidrs):
        return any(_is_within(block, peer, facts) for block in meant.blocks)
    if isinstance(meant, Inside):
        return is_inside(meant, facts.addresses.get(peer.identity, frozenset()))
    return isinstance(meant, Selector) and meant.matches(peer.labels)


def _is_within(block: Cidr, peer: Party, facts: Facts) -> bool:
    """Whether one of the addresses a peer stands for is in a block."""
    if block.outside and _is_node(peer.labels):
        return False
    return any(
        _within(network, block.prefix) and not any(_within(network, part) for part in block.excepts)
        for network in addresses(peer, facts)
    )


def is_inside(meant: Inside, own: frozenset[str]) -> bool:
    """Whether some, or all, of a peer's own addresses are within some prefix."""
    found = [
        any(_within(ipaddress.ip_network(address), prefix) for prefix in meant.prefixes) for address in own
    ]
    return bool(found) and all(found) if meant.whole else any(found)


def addresses(peer: Party, facts: Facts) -> list[IPNetwork]:
    """What an identity stands for that CIDR rules can mean: prefixes of the world and, on demand, nodes."""
    if peer.identity in (WORLD_IPV4, WORLD_IPV6):
        return [ipaddress.ip_network("0.0.0.0/0" if peer.identity == WORLD_IPV4 else "::/0")]
    if _is_node(peer.labels) and not facts.cidr_nodes:
        return []
    found = [label.key.replace("-", ":") for label in peer.labels.items if label.source == "cidr"]
    return [ipaddress.ip_network(text) for text in found]


def _is_node(labels: Labels) -> bool:
    return labels.is_host or labels.has("reserved", "remote-node")


def _within(network: IPNetwork, prefix: str) -> bool:
    other = ipaddress.ip_network(prefix)
    return network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
