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

from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.meaning.selection import IdentityIndex
from cilia.control.policy.reasons import explain, oracle, words
from cilia.control.policy.rules import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Cidr,
    Cidrs,
    Inside,
    PortName,
    PortRange,
    Rule,
    Selector,
)
from cilia.model.endpoint import NamedPort
from cilia.model.explain import Difference
from cilia.model.ids import IdentityId
from cilia.model.policy import Direction, RuleRef

BUDGET = 400_000
"""Judgements of one check: some seconds of one core at the worst."""
STEPS = 2_000_000
"""Pairs of classes of one check that are looked at."""
SHOWN = 500
"""Lines of a report."""
PORTS_LIMIT = 64
SHOWN_RULES = 4
SHOWN_NAMES = 3
ECHO = 8

SomePeer = Selector | Cidr | Cidrs | Inside
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


Both = tuple[Outcome, Outcome]
"""Before and after."""

OPEN: Both = (Outcome("allow", (), True), Outcome("allow", (), True))
"""Of an end that has no policy: the world, another entity."""


class Class:
    """Actors alike: as subjects, and as peers of every rule. Compared by identity."""

    __slots__ = ("actors", "after", "before", "given", "has_side", "host", "mask", "party", "rules")

    def __init__(
        self,
        party: Party,
        before: tuple[int, ...],
        after: tuple[int, ...],
        *,
        has_side: bool,
        mask: int,
        given: frozenset[NamedPort],
    ) -> None:
        self.party = party
        """One of them, who stands for all."""
        self.before = before
        """Sections that select it, by place."""
        self.after = after
        self.has_side = has_side
        self.mask = mask
        """One bit for each peer that means it."""
        self.given = given
        """What egress rules mean by names when it is the peer."""
        self.host = party.labels.is_host
        self.actors: list[Actor] = []
        self.rules: dict[Direction, Rules] = {}
        """What its sections say, once somebody has asked."""

    @property
    def affected(self) -> bool:
        """Whether its own policy may say something else."""
        return self.has_side and self.before != self.after


class Rules:
    """What the sections of a subject say in one direction, before and after; shared by subjects alike."""

    def __init__(self, rules: Sequence[Rule], bits: Mapping[SomePeer, int]) -> None:
        self.rules = rules
        self.relevant = 0
        """The peers they can tell apart, as bits."""
        self.named = False
        """Whether some are about named ports."""
        for rule in rules:
            if isinstance(rule.peer, SomePeer):
                self.relevant |= 1 << bits[rule.peer]
            self.named |= any(isinstance(part, PortName) for part in rule.ports)
        self.outcomes: dict[object, Outcomes] = {}

    def ports_alike(self, facts: Facts, subject: Party, peer: Party, ports: Sequence[Port]) -> list[object]:
        """Of each port a value that is equal where no rule tells ports apart."""
        numbered = [list(oracle.numbered(rule, facts, subject, peer)) for rule in self.rules]
        return [tuple(any(part.covers(*port) for part in parts) for parts in numbered) for port in ports]


class Outcomes:
    """The verdicts of one side on all ports compared. Compared by identity."""

    __slots__ = ("both", "differs")

    def __init__(self, both: tuple[Both, ...]) -> None:
        self.both = both
        self.differs = any(before.word != after.word for before, after in both)


class Comparison:
    """Two sets of facts about the same world, some actors, and the ports to compare."""

    def __init__(
        self, before: Facts, after: Facts, actors: Iterable[Actor], ports: Sequence[Port] = ()
    ) -> None:
        """`actors`: everybody who will be asked about."""
        self.judged = 0
        self._facts = (before, after)
        self._ports = ports
        self._open = Outcomes((OPEN,) * len(ports))
        self._known: dict[tuple[Both, ...], Outcomes] = {self._open.both: self._open}
        """Equal verdicts are one value: many subjects say the same."""
        self._sections = list(dict.fromkeys((*before.sections, *after.sections)))
        places = {section: at for at, section in enumerate(self._sections)}
        self._active = tuple(
            frozenset(places[section] for section in facts.sections) for facts in self._facts
        )
        self._bits: dict[SomePeer, int] = {}
        for section in self._sections:
            for rule in section.rules:
                if isinstance(rule.peer, SomePeer):
                    self._bits.setdefault(rule.peer, len(self._bits))
        self._masks: dict[IdentityId, int] = {}
        self._selecting: dict[IdentityId, list[int]] = {}
        self._rules: dict[object, Rules] = {}
        self._narrow: dict[tuple[int, tuple[int, ...]], Facts] = {}
        self._classes: dict[object, Class] = {}
        self._class_of: dict[Party, Class] = {}
        everybody = list(actors)
        self._index(everybody)
        for actor in everybody:
            self.class_of(actor.party).actors.append(actor)

    def _index(self, actors: Iterable[Actor]) -> None:
        """Whom each peer means and each section selects, by set algebra."""
        index = IdentityIndex(cidr_nodes=self._facts[0].cidr_nodes)
        hosts: set[IdentityId] = set()
        for actor in actors:
            party = actor.party
            if party.identity not in self._masks:
                self._masks[party.identity] = 0
                self._selecting[party.identity] = []
                index.put(party.identity, party.labels)
                if party.labels.is_host:
                    hosts.add(party.identity)
        for peer, bit in self._bits.items():
            for identity in self._inside(peer) if isinstance(peer, Inside) else index.select(peer):
                self._masks[identity] |= 1 << bit
        for at, section in enumerate(self._sections):
            for identity in index.select(section.subject):
                if section.nodes == (identity in hosts):
                    self._selecting[identity].append(at)

    def _inside(self, peer: Inside) -> list[IdentityId]:
        """The actors that a peer means by their addresses."""
        addresses = self._facts[0].addresses
        return [one for one in self._masks if oracle.is_inside(peer, addresses.get(one, frozenset()))]

    def classes(self) -> list[Class]:
        """All classes that have actors."""
        return list(self._classes.values())

    def class_of(self, party: Party) -> Class:
        """The class of an actor."""
        known = self._class_of.get(party)
        if known is not None:
            return known
        selecting = self._selecting[party.identity]
        before, after = (tuple(at for at in selecting if at in active) for active in self._active)
        has_side = any(explain.has_side(facts, party) for facts in self._facts)
        mask = self._masks[party.identity]
        given = self._facts[0].port_names.get(party.identity, frozenset())
        host = party.labels.is_host
        alike = (before, after, has_side, mask, given, host, party.named_ports, party.audit)
        found = self._classes.get(alike)
        if found is None:
            found = Class(party, before, after, has_side=has_side, mask=mask, given=given)
            self._classes[alike] = found
        self._class_of[party] = found
        return found

    def rules(self, subject: Class, direction: Direction) -> Rules:
        """What a subject's sections say."""
        mine = subject.rules.get(direction)
        if mine is not None:
            return mine
        party = subject.party
        key = (subject.before, subject.after, party.named_ports, party.audit, direction)
        known = self._rules.get(key)
        if known is None:
            known = Rules(
                [
                    rule
                    for at in sorted({*subject.before, *subject.after})
                    for rule in self._sections[at].rules
                    if rule.direction is direction
                ],
                self._bits,
            )
            self._rules[key] = known
        subject.rules[direction] = known
        return known

    def told_apart(self, rules: Rules, peer: Class, direction: Direction) -> object:
        """All that rules can see of a peer."""
        given = peer.given if rules.named and direction is Direction.EGRESS else None
        return (peer.mask & rules.relevant, peer.host, given)

    def outcomes(self, subject: Class, peer: Class, direction: Direction) -> Outcomes:
        """The verdicts of one side on every port."""
        if not subject.has_side:
            return self._open
        rules = self.rules(subject, direction)
        key = self.told_apart(rules, peer, direction)
        known = rules.outcomes.get(key)
        if known is None:
            alike = rules.ports_alike(self._facts[0], subject.party, peer.party, self._ports)
            judged: dict[object, Both] = {}
            for port, like in zip(self._ports, alike, strict=True):
                if like not in judged:
                    judged[like] = self.side(subject, peer, direction, port)
            both = tuple(judged[like] for like in alike)
            known = self._known.setdefault(both, Outcomes(both))
            rules.outcomes[key] = known
        return known

    def side(self, subject: Class, peer: Class, direction: Direction, port: Port) -> Both:
        """Verdicts of one side on one port."""
        if not subject.has_side:
            return OPEN
        before = self._outcome(0, subject, peer, direction, port)
        return before, self._outcome(1, subject, peer, direction, port) if subject.affected else before

    def _outcome(self, which: int, subject: Class, peer: Class, direction: Direction, port: Port) -> Outcome:
        self.judged += 1
        facts = self._narrowed(which, subject)
        verdict = oracle.judge(facts, subject.party, peer.party, direction, *port)
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


# -- flows -------------------------------------------------------------------------------------------------


def compare_flows(before: Facts, after: Facts, observed: Sequence[Observed]) -> list[Difference]:
    """The flows whose verdict would change, the most frequent first."""
    comparison = Comparison(before, after, (a for flow in observed for a in (flow.source, flow.destination)))
    known: dict[object, _Change | None] = {}
    found = []
    for flow in observed:
        source, destination = (comparison.class_of(a.party) for a in (flow.source, flow.destination))
        if not (source.affected or destination.affected):
            continue
        port = (flow.protocol, flow.port)
        key = (source, destination, port)
        if key not in known:
            egress = comparison.side(source, destination, Direction.EGRESS, port)
            known[key] = _changed(egress, comparison.side(destination, source, Direction.INGRESS, port))
        change = known[key]
        if change is not None:
            found.append(
                Difference(
                    source=flow.source.name,
                    destination=flow.destination.name,
                    protocol=words.protocol_name(flow.protocol),
                    port=str(flow.port) if flow.protocol in (TCP, UDP, SCTP, ICMP, ICMPV6) else "",
                    flows=flow.count,
                    last_seen=flow.last_seen,
                    **change._asdict(),
                )
            )
    return sorted(found, key=lambda row: (not row.newly_denied, -row.flows, row.source, row.destination))


class _Change(NamedTuple):
    """What happens to a packet, and by whose rules."""

    direction: str
    before: str
    after: str
    before_rules: tuple[str, ...]
    after_rules: tuple[str, ...]


def _changed(egress: Both, ingress: Both) -> _Change | None:
    """The difference of a packet whose sides were judged before and after, or None."""
    before, after = (together(egress[at].word, ingress[at].word) for at in (0, 1))
    if before == after:
        return None
    side, direction = egress, Direction.EGRESS
    if egress[0].word == egress[1].word or (ingress[0].word != ingress[1].word and ingress[1].word == after):
        side, direction = ingress, Direction.INGRESS
    return _Change(explain.DIRECTIONS[direction], before, after, _named(side[0]), _named(side[1]))


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


# -- pairs -------------------------------------------------------------------------------------------------


class PairsFound(NamedTuple):
    """What `compare_pairs` found."""

    differences: list[Difference]
    pairs: int
    """Pairs of identities, in one direction, that were compared on all ports."""
    notes: tuple[str, ...]


class _Line:
    """The pairs to which one thing happens on the same ports."""

    def __init__(self) -> None:
        self.sources: dict[Class, None] = {}
        self.destinations: dict[Class, None] = {}
        self.pairs = 0

    def add(self, source: Class, destination: Class) -> None:
        """Count the pairs of two classes."""
        self.sources[source] = None
        self.destinations[destination] = None
        self.pairs += len(source.actors) * len(destination.actors)


def compare_pairs(before: Facts, after: Facts, actors: Sequence[Actor], budget: int = BUDGET) -> PairsFound:
    """Every pair of actors on every port that some rule speaks of, where the verdict would change."""
    ports, cut = ports_of((before, after), [actor.party for actor in actors])
    comparison = Comparison(before, after, actors, ports)
    notes = [f"Of the ports that rules speak of, the first {PORTS_LIMIT} were compared."] if cut else []
    lines: dict[tuple[_Change, tuple[Port, ...]], _Line] = {}
    templates: dict[tuple[Outcomes, Outcomes], list[tuple[_Change, tuple[Port, ...]]]] = {}
    pairs = 0
    for steps, (source, destination, egress, ingress) in enumerate(_differing(comparison)):
        if comparison.judged > budget or steps > STEPS:
            notes.append(
                "There are more pairs than one check compares, the rest was left out: check fewer policies."
            )
            break
        pairs += len(source.actors) * len(destination.actors)
        changes = templates.get((egress, ingress))
        if changes is None:
            changes = templates[(egress, ingress)] = _changes(egress, ingress, ports)
        for change in changes:
            line = lines.get(change)
            if line is None:
                line = lines[change] = _Line()
            line.add(source, destination)
    found = [_difference(*change, line, len(ports)) for change, line in lines.items()]
    if len(found) > SHOWN:
        notes.append(f"{len(found) - SHOWN} more lines were left out.")
    found.sort(key=lambda row: (not row.newly_denied, -row.others, row.source, row.destination))
    return PairsFound(found[:SHOWN], pairs, tuple(notes))


def _differing(comparison: Comparison) -> Iterator[tuple[Class, Class, Outcomes, Outcomes]]:
    """(source, destination, and what each side says) where a side says something else, each pair once."""
    classes = comparison.classes()
    for subject in classes:
        if not subject.affected:
            continue
        for direction in Direction:
            for peer in classes:
                mine = comparison.outcomes(subject, peer, direction)
                if not mine.differs:
                    continue
                if direction is Direction.EGRESS:
                    yield subject, peer, mine, comparison.outcomes(peer, subject, Direction.INGRESS)
                else:
                    egress = comparison.outcomes(peer, subject, Direction.EGRESS)
                    if not egress.differs:
                        # Else it was found from the egress side.
                        yield peer, subject, egress, mine


def _changes(
    egress: Outcomes, ingress: Outcomes, ports: Sequence[Port]
) -> list[tuple[_Change, tuple[Port, ...]]]:
    """What changes for a pair, and on which ports."""
    found: dict[_Change, list[Port]] = {}
    for port, out, into in zip(ports, egress.both, ingress.both, strict=True):
        change = _changed(out, into)
        if change is not None:
            found.setdefault(change, []).append(port)
    return [(change, tuple(listed)) for change, listed in found.items()]


def _difference(change: _Change, ports: tuple[Port, ...], line: _Line, all_ports: int) -> Difference:
    protocol, port = _ports_words(ports, all_ports)
    return Difference(
        source=_names(line.sources),
        destination=_names(line.destinations),
        protocol=protocol,
        port=port,
        others=line.pairs - 1,
        **change._asdict(),
    )


def _names(classes: Iterable[Class]) -> str:
    """The first names of some classes, and how many more there are."""
    names = list(dict.fromkeys(actor.name for found in classes for actor in found.actors))
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
