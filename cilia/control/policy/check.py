"""What proposed policies would change, against flows that were seen and every pair of workloads.

Everything is compared by classes: parties that no rule, before or after, can tell apart are judged once.

    parties ──► class: sections that select it (before, after), its ports, which peers of rules mean it
    affected class x group of peers its rules tell apart x port ──► the oracle, before and after
    where that side differs: the other side, and with it the packet's whole verdict

All is pure and may run in any thread. Work is bounded by `BUDGET`; what it cuts off is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from cilia.control.policy import explain, oracle, words
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.rules import (
    ICMP,
    SCTP,
    TCP,
    UDP,
    Cidr,
    Cidrs,
    PortName,
    PortRange,
    Section,
    Selector,
)
from cilia.control.policy.selection import IdentityIndex
from cilia.model.endpoint import NamedPort
from cilia.model.explain import Difference
from cilia.model.ids import IdentityId
from cilia.model.policy import Direction, RuleRef

BUDGET = 400_000
"""Judgements of one check: some seconds of one core at the worst."""
SHOWN = 500
"""Lines of a report."""
PORTS_LIMIT = 64
SHOWN_RULES = 4
SHOWN_NAMES = 3
ECHO = 8

SomePeer = Selector | Cidr | Cidrs
Port = tuple[int, int]
"""Protocol and port, or protocol ICMP and type."""


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """A workload, or somebody outside, with a name for people."""

    party: Party
    """Two actors with one identity number have the same labels."""
    name: str


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """Flows alike in all that policy can tell."""

    source: Actor
    destination: Actor
    protocol: int
    port: int
    count: int = 1
    last_seen: str = ""


class Outcome(NamedTuple):
    """One side's verdict."""

    word: str
    rules: tuple[RuleRef, ...]
    default: bool


OPEN = Outcome("allow", (), True)
"""Of an end that has no policy: the world, another entity."""


class Class(NamedTuple):
    """What makes actors alike: as subjects, and as peers of every rule."""

    before: tuple[int, ...]
    """Sections that select it, by place."""
    after: tuple[int, ...]
    named_ports: tuple[NamedPort, ...]
    audit: bool
    has_side: bool
    mask: int
    """One bit for each peer that means it."""
    host: bool
    given: frozenset[NamedPort]
    """What egress rules mean by names when it is the peer."""

    @property
    def affected(self) -> bool:
        """Whether its own policy may say something else."""
        return self.has_side and self.before != self.after


class Comparison:
    """Two sets of facts about the same world."""

    def __init__(self, before: Facts, after: Facts, actors: Iterable[Actor]) -> None:
        """`actors`: everybody who will be asked about."""
        self.judged = 0
        self._facts = (before, after)
        self._sections = list(dict.fromkeys((*before.sections, *after.sections)))
        self._places = {section: at for at, section in enumerate(self._sections)}
        self._active = tuple(frozenset(self._places[s] for s in facts.sections) for facts in self._facts)
        self._bits: dict[SomePeer, int] = {}
        for section in self._sections:
            for rule in section.rules:
                if isinstance(rule.peer, SomePeer):
                    self._bits.setdefault(rule.peer, len(self._bits))
        self._masks = self._all_masks(actors)
        self._selecting: dict[object, tuple[int, ...]] = {}
        self._classes: dict[Party, Class] = {}
        self._representatives: dict[Class, Party] = {}
        self._relevant: dict[tuple[tuple[int, ...], tuple[int, ...], Direction], int] = {}
        self._named: dict[tuple[tuple[int, ...], tuple[int, ...], Direction], bool] = {}
        self._narrow: dict[tuple[int, tuple[int, ...]], Facts] = {}
        self._known: dict[object, tuple[Outcome, Outcome]] = {}

    def _all_masks(self, actors: Iterable[Actor]) -> dict[IdentityId, int]:
        index = IdentityIndex(cidr_nodes=self._facts[0].cidr_nodes)
        masks: dict[IdentityId, int] = {}
        for actor in actors:
            if actor.party.identity not in masks:
                masks[actor.party.identity] = 0
                index.put(actor.party.identity, actor.party.labels)
        for peer, bit in self._bits.items():
            for identity in index.select(peer):
                masks[identity] |= 1 << bit
        return masks

    def class_of(self, party: Party) -> Class:
        """The class of an actor."""
        known = self._classes.get(party)
        if known is not None:
            return known
        selecting = self._selecting.get(party.labels)
        if selecting is None:
            selecting = tuple(at for at, s in enumerate(self._sections) if s.selects(party.labels))
            self._selecting[party.labels] = selecting
        found = Class(
            before=tuple(at for at in selecting if at in self._active[0]),
            after=tuple(at for at in selecting if at in self._active[1]),
            named_ports=party.named_ports,
            audit=party.audit,
            has_side=any(explain.has_side(facts, party) for facts in self._facts),
            mask=self._masks.get(party.identity, 0),
            host=party.labels.is_host,
            given=self._facts[0].port_names.get(party.identity, frozenset()),
        )
        self._classes[party] = found
        self._representatives.setdefault(found, party)
        return found

    def side(self, subject: Class, peer: Class, direction: Direction, port: Port) -> tuple[Outcome, Outcome]:
        """Verdicts of one side, before and after."""
        if not subject.has_side:
            return OPEN, OPEN
        key = (
            subject.before, subject.after, subject.named_ports, subject.audit, direction, port,
            self.told_apart(subject, peer, direction),
        )  # fmt: skip
        known = self._known.get(key)
        if known is None:
            before = self._outcome(0, subject, peer, direction, port)
            if subject.affected:
                known = (before, self._outcome(1, subject, peer, direction, port))
            else:
                known = (before, before)
            self._known[key] = known
        return known

    def told_apart(self, subject: Class, peer: Class, direction: Direction) -> object:
        """All that a subject's rules can see of a peer."""
        sections = (subject.before, subject.after, direction)
        relevant = self._relevant.get(sections)
        if relevant is None:
            relevant, named = 0, False
            for at in {*subject.before, *subject.after}:
                for rule in self._sections[at].rules:
                    if rule.direction is direction:
                        relevant |= 1 << self._bits[rule.peer] if isinstance(rule.peer, SomePeer) else 0
                        named |= any(isinstance(part, PortName) for part in rule.ports)
            self._relevant[sections] = relevant
            self._named[sections] = named
        given = peer.given if direction is Direction.EGRESS and self._named[sections] else None
        return (peer.mask & relevant, peer.host, given)

    def _outcome(self, which: int, subject: Class, peer: Class, direction: Direction, port: Port) -> Outcome:
        self.judged += 1
        verdict = oracle.judge(
            self._narrowed(which, subject),
            self._representatives[subject],
            self._representatives[peer],
            direction,
            *port,
        )
        return Outcome(explain.verdict_word(verdict), tuple(sorted(verdict.rules)), verdict.default)

    def _narrowed(self, which: int, subject: Class) -> Facts:
        """The facts with only the sections that are for a subject."""
        places = subject.after if which else subject.before
        facts = self._narrow.get((which, places))
        if facts is None:
            mine = tuple(self._sections[at] for at in places)
            facts = msgspec.structs.replace(self._facts[which], sections=mine)
            self._narrow[(which, places)] = facts
        return facts


def sections_changed(before: Facts, after: Facts) -> tuple[Section, ...]:
    """Sections in force in one of the two only."""
    old, new = set(before.sections), set(after.sections)
    return tuple(old ^ new)


# -- flows ----------------------------------------------------------------------------------------------


def compare_flows(before: Facts, after: Facts, observed: Sequence[Observed]) -> list[Difference]:
    """The flows whose verdict would change, the most frequent first."""
    comparison = Comparison(before, after, (a for flow in observed for a in (flow.source, flow.destination)))
    found = []
    for flow in observed:
        source, destination = (comparison.class_of(a.party) for a in (flow.source, flow.destination))
        if not (source.affected or destination.affected):
            continue
        port = (flow.protocol, flow.port)
        egress = comparison.side(source, destination, Direction.EGRESS, port)
        ingress = comparison.side(destination, source, Direction.INGRESS, port)
        change = _changed(egress, ingress)
        if change is None:
            continue
        found.append(
            msgspec.structs.replace(
                change,
                source=flow.source.name,
                destination=flow.destination.name,
                protocol=words.protocol_name(flow.protocol),
                port=str(flow.port) if flow.port or flow.protocol in (TCP, UDP, SCTP) else "",
                flows=flow.count,
                last_seen=flow.last_seen,
            )
        )
    return sorted(found, key=lambda row: (not row.newly_denied, -row.flows, row.source, row.destination))


def _changed(egress: tuple[Outcome, Outcome], ingress: tuple[Outcome, Outcome]) -> Difference | None:
    """The difference of a packet whose sides were judged before and after, or None."""
    before, after = (together(egress[at].word, ingress[at].word) for at in (0, 1))
    if before == after:
        return None
    side, direction = egress, Direction.EGRESS
    if egress[0].word == egress[1].word or (ingress[0].word != ingress[1].word and ingress[1].word == after):
        side, direction = ingress, Direction.INGRESS
    return Difference(
        source="",
        destination="",
        protocol="",
        before=before,
        after=after,
        direction=explain.DIRECTIONS[direction],
        before_rules=_named(side[0]),
        after_rules=_named(side[1]),
    )


def together(egress: str, ingress: str) -> str:
    """The verdict on a packet that both sides judge."""
    both = (egress, ingress)
    return next((word for word in ("deny", "audit") if word in both), "allow")


def _named(outcome: Outcome) -> tuple[str, ...]:
    if outcome.default and outcome.word == "allow":
        return ("no rule, and no policy isolates",)
    start = "default deny of " if outcome.default else ""
    shown = [start + words.ref_text(ref) for ref in outcome.rules[:SHOWN_RULES]]
    more = len(outcome.rules) - len(shown)
    if outcome.default and not shown:
        shown = ["enforcement mode always"]
    return (*shown, *([f"{more} more"] if more > 0 else []))


# -- pairs ----------------------------------------------------------------------------------------------


class PairsFound(NamedTuple):
    """What `compare_pairs` found."""

    differences: list[Difference]
    pairs: int
    """Pairs of identities and ports that were compared."""
    notes: tuple[str, ...]


class _Line(NamedTuple):
    """What one line of the report tells of many pairs."""

    direction: str
    before: str
    after: str
    before_rules: tuple[str, ...]
    after_rules: tuple[str, ...]
    subject: str


def compare_pairs(before: Facts, after: Facts, actors: Sequence[Actor], budget: int = BUDGET) -> PairsFound:
    """Every pair of actors on every port that some rule speaks of, where the verdict would change."""
    comparison = Comparison(before, after, actors)
    members: dict[Class, list[Actor]] = {}
    for actor in actors:
        members.setdefault(comparison.class_of(actor.party), []).append(actor)
    ports, cut = ports_of((before, after), [actor.party for actor in actors])
    notes = [f"Of the ports that rules speak of, the first {PORTS_LIMIT} were compared."] if cut else []
    lines: dict[_Line, dict[tuple[Class, Class], list[Port]]] = {}
    compared, steps = 0, 0
    for subject, peer, direction, port in _candidates(comparison, members, ports):
        steps += 1
        if comparison.judged > budget or steps > 5 * budget:
            notes.append(
                "There are more pairs than one check compares, the rest was left out: check fewer policies."
            )
            break
        compared += len(members[subject]) * len(members[peer])
        ends = (subject, peer) if direction is Direction.EGRESS else (peer, subject)
        egress = comparison.side(*ends, Direction.EGRESS, port)
        if direction is Direction.INGRESS and egress[0].word != egress[1].word:
            continue  # Found from the egress side.
        change = _changed(egress, comparison.side(ends[1], ends[0], Direction.INGRESS, port))
        if change is not None:
            line = _Line(
                change.direction,
                change.before,
                change.after,
                change.before_rules,
                change.after_rules,
                members[ends[0 if change.direction == "egress" else 1]][0].party.labels.namespace,
            )
            lines.setdefault(line, {}).setdefault((ends[0], ends[1]), []).append(port)
    found = [
        difference
        for line, pairs in lines.items()
        for difference in _summed(line, pairs, members, len(ports))
    ]
    if len(found) > SHOWN:
        notes.append(f"{len(found) - SHOWN} more lines were left out.")
    found.sort(key=lambda row: (not row.newly_denied, -row.others, row.source, row.destination))
    return PairsFound(found[:SHOWN], compared, tuple(notes))


def _candidates(
    comparison: Comparison, members: Mapping[Class, Sequence[Actor]], ports: Sequence[Port]
) -> Iterator[tuple[Class, Class, Direction, Port]]:
    """Pairs of classes of which the subject's own side differs."""
    for subject in members:
        if not subject.affected:
            continue
        for direction in Direction:
            groups: dict[object, list[Class]] = {}
            for peer in members:
                groups.setdefault(comparison.told_apart(subject, peer, direction), []).append(peer)
            for peers in groups.values():
                for port in ports:
                    one, other = comparison.side(subject, peers[0], direction, port)
                    if one.word != other.word:
                        for peer in peers:
                            if peer.has_side or subject.has_side:
                                yield subject, peer, direction, port


def _summed(
    line: _Line,
    pairs: Mapping[tuple[Class, Class], list[Port]],
    members: Mapping[Class, Sequence[Actor]],
    all_ports: int,
) -> Iterator[Difference]:
    """One row for each set of ports."""
    by_ports: dict[tuple[Port, ...], list[tuple[Class, Class]]] = {}
    for pair, listed in pairs.items():
        by_ports.setdefault(tuple(listed), []).append(pair)
    for ports, alike in by_ports.items():
        number = sum(len(members[one]) * len(members[two]) for one, two in alike)
        protocol, port = _ports_words(ports, all_ports)
        yield Difference(
            source=_names(members, (one for one, _ in alike)),
            destination=_names(members, (two for _, two in alike)),
            protocol=protocol,
            port=port,
            before=line.before,
            after=line.after,
            direction=line.direction,
            before_rules=line.before_rules,
            after_rules=line.after_rules,
            others=number - 1,
        )


def _names(members: Mapping[Class, Sequence[Actor]], classes: Iterable[Class]) -> str:
    """The first names of some classes, and how many more there are."""
    names = list(dict.fromkeys(actor.name for found in dict.fromkeys(classes) for actor in members[found]))
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def _ports_words(ports: Sequence[Port], all_ports: int) -> tuple[str, str]:
    if len(ports) == all_ports:
        return "any", "any"
    protocols = sorted({protocol for protocol, _ in ports})
    if len(protocols) == 1:
        return words.protocol_name(protocols[0]), ", ".join(str(port) for _, port in ports)
    return "several", ", ".join(words.port_text(PortRange(p, n, n)) for p, n in ports)


def ports_of(sides: Iterable[Facts], parties: Iterable[Party]) -> tuple[list[Port], bool]:
    """The ports that rules and names speak of, one other of TCP and UDP, and an ICMP echo; whether there are
    more than one check compares."""
    found: dict[Port, None] = {}
    ranges: set[PortRange] = set()
    names: set[tuple[int, str]] = set()
    for facts in sides:
        for section in facts.sections:
            for rule in section.rules:
                for part in rule.ports:
                    if isinstance(part, PortName):
                        names.add((part.protocol, part.name))
                    elif part.protocol:
                        ranges.add(part)
    for part in sorted(ranges):
        whole = part == PortRange(part.protocol) and part.protocol in (TCP, UDP, SCTP)
        if not whole:
            found[(part.protocol, part.first)] = None
    for party in parties:
        for port in party.named_ports:
            number = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}.get(port.protocol, 0)
            if (number, port.name) in names:
                found[(number, port.port)] = None
    cut = len(found) > PORTS_LIMIT
    shown = list(found)[:PORTS_LIMIT]
    for protocol in (TCP, UDP):
        shown.append((protocol, _other(protocol, ranges)))
    shown.append((ICMP, ECHO))
    return list(dict.fromkeys(shown)), cut


def _other(protocol: int, ranges: Iterable[PortRange]) -> int:
    """A port that no rule speaks of in particular."""
    spoken = [part for part in ranges if part.protocol == protocol and part != PortRange(protocol)]
    for port in (9, 1, 7, 19, 65535, 33333):
        if not any(part.first <= port <= part.last for part in spoken):
            return port
    return next((port for port in range(2, 65536) if not any(p.first <= port <= p.last for p in spoken)), 9)
