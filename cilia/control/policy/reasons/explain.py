"""Why a packet passes or not: the deciding rules, the losers, the near misses, and what would allow it.

    Facts, both ends, protocol, port ──► oracle: the verdict and every rule about the packet, as heard
                                    ├──► deciding · losers, each with the reason it lost
                                    ├──► misses: rules that would have allowed, each with what is amiss;
                                    │    those that are refused among them
                                    └──► remedy (`remedy.py`): a change, judged again before it is told

The oracle decides; nothing here does. All is pure and may run in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from cilia.control.policy.facts import LOCALHOST, Facts, Party
from cilia.control.policy.reasons import oracle, words
from cilia.control.policy.rules import (
    Action,
    Inside,
    PortName,
    PortRange,
    Ports,
    Requirement,
    Rule,
    Section,
    Selector,
    Tier,
    WrittenPeer,
)
from cilia.model.endpoint import NamedPort
from cilia.model.explain import Expansion, Member, Remedy, RuleStory, Side
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.policy import Direction, PolicyMode, PolicyObject, RuleRef

PolicyKey = tuple[str, str, str]

SHOWN_MISSES = 12
SHOWN_LOSERS = 30
SHOWN_MEMBERS = 10
SHOWN_PODS = 3
SHOWN_ISOLATING = 3

DIRECTIONS = {Direction.INGRESS: "ingress", Direction.EGRESS: "egress"}


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """A packet on one side: whose policy, towards or from whom, and what it carries."""

    subject: Party
    peer: Party | None
    """None: nobody knows who it is."""
    direction: Direction
    protocol: int
    port: int
    """Of the destination, or the ICMP type; 0 where the protocol has neither."""

    @property
    def ports(self) -> str:
        """`TCP 80`."""
        return words.port_text(PortRange(self.protocol, self.port, self.port))


class Library(msgspec.Struct, frozen=True, kw_only=True):
    """What turns references into something to read."""

    policies: Mapping[PolicyKey, PolicyObject] = {}
    pods: Callable[[IdentityId], Sequence[str]] = lambda identity: ()
    """Names of the pods that have an identity."""
    members: Callable[[WrittenPeer], Iterable[IdentityId]] | None = None
    """Whom a peer means, when somebody knows it faster than by asking each identity."""

    def written(self, ref: RuleRef) -> object:
        """The object a rule is of, as plain data, or None."""
        return words.as_written(self.policies.get((ref.kind, ref.namespace, ref.name)))


class Heard(msgspec.Struct, frozen=True):
    """A rule of a section that selects the subject, and why it is not about the packet (empty: it is)."""

    section: Section
    rule: Rule
    amiss: str


def explain(facts: Facts, packet: Packet, library: Library, subject: str) -> Side:
    """All there is to say about one side; `subject` is what to call it. The remedy is `remedy.find`'s."""
    verdict = judge(facts, packet)
    heard = rules_of(facts, packet)
    about = [each for each in heard if not each.amiss]
    deciding = [each for each in about if each.rule.ref in verdict.rules and not verdict.default]
    losers = [each for each in about if each not in deciding]
    stories = [
        story(each.section, each.rule, library, facts, decides(each, facts, packet, verdict))
        for each in deciding
    ]
    stories += [_built_in(ref) for ref in sorted(verdict.rules) if ref == LOCALHOST]
    if verdict.default:
        stories += [
            _isolating(section, library, packet.direction)
            for section in sections_of(facts, packet)
            if section.ref in verdict.rules
        ]
    misses = _misses([*heard, *_refused(facts, packet)], packet, verdict)
    return Side(
        direction=DIRECTIONS[packet.direction],
        subject=subject,
        verdict=verdict_word(verdict),
        default=verdict.default,
        reason=reason(facts, packet, verdict, subject),
        deciding=tuple(stories),
        losers=tuple(
            story(each.section, each.rule, library, facts, lost(each, facts, packet, verdict, deciding))
            for each in losers[:SHOWN_LOSERS]
        ),
        misses=tuple(
            story(each.section, each.rule, library, facts, each.amiss) for each in misses[:SHOWN_MISSES]
        ),
        misses_left_out=max(0, len(misses) - SHOWN_MISSES),
    )


def with_remedy(side: Side, remedy: Remedy | None) -> Side:
    """The side and how to allow the packet."""
    return msgspec.structs.replace(side, remedy=remedy)


# -- verdicts -------------------------------------------------------------------------------------------


def judge(facts: Facts, packet: Packet) -> oracle.Verdict:
    """The oracle's answer."""
    return oracle.judge(facts, packet.subject, packet.peer, packet.direction, packet.protocol, packet.port)


def verdict_word(verdict: oracle.Verdict) -> str:
    """allow, deny or audit."""
    if verdict.audited:
        return "audit"
    return "allow" if verdict.allow else "deny"


def has_side(facts: Facts, party: Party) -> bool:
    """Whether a party's own policy is asked: a pod's always, a node's where some policy is about nodes."""
    if party.labels.namespace:
        return True
    if party.labels.is_host:
        return any(section.nodes for section in facts.sections)
    return any(party.labels.has("reserved", name) for name in ("init", "health", "ingress"))


def sections_of(facts: Facts, packet: Packet) -> list[Section]:
    """The sections that are for the subject, in the order in which they are heard."""
    return oracle.selecting(facts, packet.subject)


def rules_of(facts: Facts, packet: Packet) -> list[Heard]:
    """Every rule of the packet's direction that is for the subject, with what is amiss."""
    return [
        Heard(section, rule, amiss(facts, rule, packet))
        for section in sections_of(facts, packet)
        for rule in section.rules
        if rule.direction is packet.direction
    ]


def reason(facts: Facts, packet: Packet, verdict: oracle.Verdict, subject: str) -> str:
    """The verdict in a sentence or two."""
    way = DIRECTIONS[packet.direction]
    if facts.mode is PolicyMode.NEVER:
        return "Enforcement mode is never: everything passes."
    said = _said(facts, verdict, way, subject)
    if not verdict.audited:
        return said
    return f"{said} It passes all the same and is noted as AUDIT: {_why_audit(facts, packet)}."


def _said(facts: Facts, verdict: oracle.Verdict, way: str, subject: str) -> str:
    passes = verdict.allow and not verdict.audited
    if not verdict.default:
        named = sorted(words.ref_text(ref) for ref in verdict.rules)
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        return f"{'Allowed' if passes else 'Denied'} by {named[0]}{more}."
    if passes:
        return f"Allowed: no rule is about this packet, and no policy isolates {subject} in {way}."
    who = ", ".join(sorted(words.ref_text(ref) for ref in verdict.rules)[:SHOWN_ISOLATING])
    if not who:
        always = facts.mode is PolicyMode.ALWAYS
        why = "enforcement mode is always" if always else f"{subject} has no labels yet"
        return f"Denied by default: {why}, and no rule allows this packet in {way}."
    more = f" and {len(verdict.rules) - SHOWN_ISOLATING} more" if len(verdict.rules) > SHOWN_ISOLATING else ""
    verb = "isolates" if len(verdict.rules) == 1 else "isolate"
    return f"Denied by default: {who}{more} {verb} {subject} in {way}, and no rule allows this packet."


def _why_audit(facts: Facts, packet: Packet) -> str:
    if facts.audit:
        return "this node is in audit"
    if packet.subject.audit:
        return "the endpoint is in audit"
    return "the policy is in audit"


def decides(each: Heard, facts: Facts, packet: Packet, verdict: oracle.Verdict) -> str:
    """Why a rule decides."""
    problem = next(
        (refused.problem for refused in each.section.refused if refused.ref == each.rule.ref), None
    )
    if problem is not None:
        return f"it can't be enforced as written, so it closes ({problem.path}: {problem.sentence})"
    tier = words.TIERS[each.section.tier]
    if each.section.tier is Tier.NORMAL:
        if each.rule.action is Action.DENY:
            return "it denies, and deny beats allow"
        return "it allows, and no rule denies"
    return f"it is the first about the packet in tier {tier} (priority {each.section.priority})"


def lost(
    each: Heard, facts: Facts, packet: Packet, verdict: oracle.Verdict, deciding: Sequence[Heard]
) -> str:
    """Why a rule that is about the packet does not decide."""
    section, rule = each.section, each.rule
    if facts.mode is PolicyMode.NEVER:
        return "enforcement mode is never"
    if rule.action is Action.PASS:
        return "it passes on to the next tier"
    if rule.action is Action.HOLD:
        return "it may pass on: some addresses of the peer are in its networks and some are not"
    if section.audit:
        return "its policy is in audit: what it says is noted, not enforced"
    if not deciding:
        isolated = any(packet.direction in other.isolates for other in sections_of(facts, packet))
        if section.tier is Tier.BASELINE and isolated:
            return "baseline rules are not heard where a policy isolates"
        return "a rule of its tier before it passed on"
    first = deciding[0]
    if section.tier < first.section.tier:
        return f"tier {words.TIERS[first.section.tier]} is heard before tier {words.TIERS[section.tier]}"
    if section.tier > first.section.tier:
        return f"a rule of tier {words.TIERS[section.tier]} before it passed on"
    if section.tier is Tier.NORMAL:
        return "a deny rule beats it" if rule.action is Action.ALLOW else "says the same, less specifically"
    return f"{words.ref_text(first.rule.ref)} is heard before it"


def _misses(heard: Iterable[Heard], packet: Packet, verdict: oracle.Verdict) -> list[Heard]:
    """Of a default deny: rules that would have allowed, those nearest to it first."""
    if (verdict.allow and not verdict.audited) or not verdict.default:
        return []
    would = [each for each in heard if each.amiss and each.rule.action is not Action.DENY]
    return sorted(would, key=lambda each: (each.amiss.count(";"), each.rule.ref))


def _refused(facts: Facts, packet: Packet) -> Iterator[Heard]:
    """Allowances that can't be enforced as written, as rules about no packet."""
    for section in sections_of(facts, packet):
        for refused in section.refused:
            if refused.direction is packet.direction and refused.action is Action.ALLOW:
                rule = Rule(refused.direction, None, (), refused.action, refused.ref)
                problem = refused.problem
                yield Heard(section, rule, f"it is refused ({problem.path}: {problem.sentence})")


# -- why a rule is not about a packet -------------------------------------------------------------------


def amiss(facts: Facts, rule: Rule, packet: Packet) -> str:
    """What keeps a rule from being about a packet; empty when it is about it."""
    covered = oracle.covers(rule, facts, packet.subject, packet.peer, packet.protocol, packet.port)
    ports = "" if covered else _ports_amiss(facts, rule.ports, packet)
    peer = "" if oracle.means(facts, rule.peer, packet.peer) else _peer_amiss(rule.peer, packet.peer, facts)
    return "; ".join(part for part in (peer, ports) if part)


def numbers(facts: Facts, name: PortName, packet: Packet) -> list[int]:
    """The ports that a name means for this packet: those of the end that receives it."""
    given: Iterable[NamedPort] = ()
    if packet.direction is Direction.INGRESS:
        given = packet.subject.named_ports
    elif packet.peer is not None:
        given = facts.port_names.get(packet.peer.identity, ())
    protocol = words.protocol_name(name.protocol)
    return sorted(port.port for port in given if (port.name, port.protocol) == (name.name, protocol))


def _ports_amiss(facts: Facts, ports: Sequence[Ports], packet: Packet) -> str:
    told = f"it is about {words.ports_text(ports)}, not {packet.ports}"
    receiver = "the pod" if packet.direction is Direction.INGRESS else "the peer"
    for part in ports:
        if isinstance(part, PortName) and part.protocol == packet.protocol:
            found = numbers(facts, part, packet)
            what = " and ".join(map(str, found)) if found else "nothing"
            told += f" ({receiver} calls {what} {part.name})"
    return told


def _peer_amiss(meant: WrittenPeer, peer: Party | None, facts: Facts) -> str:
    if peer is None or not peer.labels.items:
        return "nobody knows the peer's identity"
    if isinstance(meant, Selector):
        failing = [part for part in meant.requirements if not part.holds(peer.labels)]
        return " and ".join(_requirement_amiss(part, peer.labels) for part in failing[:3])
    if isinstance(meant, Inside):
        own = ", ".join(sorted(facts.addresses.get(peer.identity, ())))
        return f"it is about {words.peer_text(meant)}, the peer has {own or 'no address inside'}"
    networks = oracle.addresses(peer, facts)
    prefixes = words.peer_text(meant)
    if not networks:
        kind = "a pod" if peer.labels.namespace else _reserved_name(peer.labels)
        return f"it is about addresses in {prefixes}, and the peer is {kind}: select it by its labels"
    return f"{networks[0]} is not in {prefixes}"


def _requirement_amiss(requirement: Requirement, labels: Labels) -> str:
    has = [
        str(label)
        for label in labels.items
        if label.key == requirement.key and requirement.source in ("any", label.source)
    ]
    wants = words.requirement_text(requirement)
    return f"it wants {wants}, the peer has {', '.join(has) or 'no such label'}"


def _reserved_name(labels: Labels) -> str:
    names = [label.key for label in labels.items if label.source == "reserved"]
    return f"the entity {names[0]}" if names else "something else"


# -- telling of rules -----------------------------------------------------------------------------------


def story(section: Section, rule: Rule, library: Library, facts: Facts, why: str) -> RuleStory:
    """A rule with its text, whom it means, and why it decides or not."""
    ref = rule.ref
    return RuleStory(
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        resource_version=ref.resource_version,
        path=ref.path,
        action=str(Action.PASS if rule.action is Action.HOLD else rule.action),
        tier=words.TIERS[section.tier],
        priority=section.priority,
        audit=section.audit,
        ports=words.ports_text(rule.ports),
        why=why,
        yaml=words.to_yaml(words.rule_as_written(library.written(ref), ref.path)),
        # One that is refused is about nobody.
        peer=expansion(rule.peer, facts, library) if rule.ports else None,
    )


def expansion(peer: WrittenPeer, facts: Facts, library: Library) -> Expansion:
    """Whom a peer means now."""
    text = words.peer_text(peer)
    if peer is None:
        return Expansion(selector=text, count=len(facts.identities))
    if library.members is not None:
        found = sorted(library.members(peer))
    else:
        found = sorted(
            number
            for number, labels in facts.identities.items()
            if oracle.means(facts, peer, Party(identity=number, labels=labels))
        )
    return Expansion(
        selector=text,
        count=len(found),
        members=tuple(
            Member(
                identity=number,
                labels=tuple(facts.identities.get(number, Labels()).strings()),
                pods=tuple(library.pods(number)[:SHOWN_PODS]),
            )
            for number in found[:SHOWN_MEMBERS]
        ),
    )


def _isolating(section: Section, library: Library, direction: Direction) -> RuleStory:
    ref = section.ref
    written = words.subject_as_written(library.written(ref), ref.path)
    return RuleStory(
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        resource_version=ref.resource_version,
        path=ref.path,
        action="isolate",
        tier=words.TIERS[section.tier],
        audit=section.audit,
        why=f"it selects the endpoint and isolates it in {DIRECTIONS[direction]}",
        yaml=words.to_yaml(written or None),
    )


def _built_in(ref: RuleRef) -> RuleStory:
    return RuleStory(
        kind=ref.kind,
        name=ref.name,
        action=str(Action.ALLOW),
        tier=words.TIERS[Tier.NORMAL],
        why="a node reaches its own pods, so that the kubelet's probes pass",
    )
