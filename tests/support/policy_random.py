"""Random rules, parties and packets, seeded: all that rules can say, for engine and oracle to agree on.

`setting(seed)` makes facts straight from rules, without objects, readers or tables; `compiled()` resolves
them for a subject, and `questions()` asks about packets near the edges of what the rules speak of. The same
seed gives the same material. `policy_cases` does the same from objects as users write them.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable, Iterator, Set

import msgspec

from cilia.control.policy.entries.cookies import CookieBook
from cilia.control.policy.entries.resolve import Group
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.meaning.selection import cidr_label
from cilia.control.policy.reasons import oracle
from cilia.control.policy.rules import (
    ALL_PORTS,
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Action,
    Cidr,
    Cidrs,
    Inside,
    Meant,
    Operator,
    Peer,
    PortName,
    PortRange,
    Ports,
    Requirement,
    Rule,
    Section,
    Selector,
    Tier,
    equals,
    exists,
    reserved,
)
from cilia.model.endpoint import NamedPort
from cilia.model.identity import RESERVED_NAMES, UNKNOWN
from cilia.model.ids import IdentityId
from cilia.model.labels import Label, Labels
from cilia.model.policy import Direction, PolicyMode, RuleRef

APPS, TIERS, NAMESPACES = ("web", "db", "job"), ("front", "back"), ("red", "blue")
NAMES = ("http", "dns", "admin")
NUMBERS = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}
PORTLESS = (2, 47, 50, 112)
EDGES = (0, 1, 22, 79, 80, 81, 443, 8080, 32767, 32768, 65535)
PREFIXES = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "172.18.0.0/16")
PREFIXES6 = ("::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::7/128")
NODES = {2 << 24: "172.18.0.3", (2 << 24) + 1: "172.18.0.4"}

ADDRESSES = ("10.1.2.3", "10.1.9.9", "10.200.0.1", "192.0.2.1", "2001:db8:1::7", "2001:db8:9::1")
"""Of pods."""

Question = tuple[Party | None, Direction, int, int]
"""Peer, direction, protocol, port."""


class FactWorld:
    """What a group asks about everybody, answered by looking at everybody."""

    def __init__(self, facts: Facts, present: Set[IdentityId] | None = None) -> None:
        self._facts = facts
        self._present = facts.identities.keys() if present is None else present
        self._members: dict[Meant, frozenset[IdentityId]] = {}

    def members(self, peer: Meant) -> frozenset[IdentityId]:
        """The identities a peer means."""
        if peer not in self._members:
            self._members[peer] = frozenset(
                identity
                for identity, labels in self._facts.identities.items()
                if identity in self._present
                and oracle.means(self._facts, peer, Party(identity=identity, labels=labels))
            )
        return self._members[peer]

    def port_numbers(self, identity: IdentityId, name: PortName) -> frozenset[int]:
        """The numbers that endpoints of an identity give a port name."""
        given = self._facts.port_names.get(identity, frozenset())
        return frozenset(
            p.port for p in given if p.name == name.name and p.protocol == NUMBERS[name.protocol]
        )

    def naming(self, name: PortName) -> frozenset[IdentityId]:
        """The identities that have such a port."""
        return frozenset(i for i in self._present if self.port_numbers(i, name))


def group(facts: Facts, subject: Party, *, shuffle: random.Random | None = None) -> Group:
    """The group that a subject is in, not built yet."""
    mine = [section for section in facts.sections if section.selects(subject.labels)]
    if shuffle is not None:
        shuffle.shuffle(mine)
    return Group(
        mine,
        facts.mode,
        audit=facts.audit or subject.audit,
        named_ports=subject.named_ports,
        allow_localhost=facts.allow_localhost,
    )


def compiled(facts: Facts, subject: Party, cookies: CookieBook) -> Group:
    """The group that a subject is in."""
    made = group(facts, subject)
    made.build(FactWorld(facts), cookies)
    return made


def setting(seed: int) -> tuple[Facts, list[Party]]:
    """Random facts, and some parties that are judged by them."""
    rng = random.Random(seed)
    identities = everybody()
    facts = Facts(
        sections=tuple(section(rng, f"p{number}") for number in range(rng.randint(1, 7))),
        identities=identities,
        port_names={i: named for i in identities if 256 <= i < 65536 and (named := names(rng))},
        addresses=addresses(rng, identities),
        mode=rng.choices(list(PolicyMode), (8, 1, 1))[0],
        audit=rng.random() < 0.08,
        allow_localhost=rng.random() < 0.8,
        cidr_nodes=rng.random() < 0.5,
    )
    locals_ = [i for i in identities if 256 <= i < 65536]
    chosen = [*rng.sample(locals_, 3), IdentityId(1)] if rng.random() < 0.3 else rng.sample(locals_, 3)
    return facts, [
        Party(
            identity=identity,
            labels=identities[identity],
            named_ports=tuple(sorted(names(rng))),
            audit=rng.random() < 0.15,
        )
        for identity in (*chosen, chosen[0])
    ]


def everybody() -> dict[IdentityId, Labels]:
    """Pods, reserved identities, nodes and all prefixes, as they are in a cluster."""
    found = {
        number: Labels.of(Label("reserved", name) for name in names)
        for number, names in RESERVED_NAMES.items()
        if number != UNKNOWN
    }
    found[IdentityId(1)] = Labels.of(
        (Label("reserved", "host"), Label("k8s", "zone", "a"), cidr_label("172.18.0.2/32"))
    )
    for number, address in NODES.items():
        zone = Label("k8s", "zone", "ab"[number & 1])
        found[IdentityId(number)] = Labels.of(
            (Label("reserved", "remote-node"), zone, cidr_label(f"{address}/32"))
        )
    number = 300
    for namespace in NAMESPACES:
        for app in APPS:
            for tier in TIERS:
                found[IdentityId(number)] = Labels.kubernetes(namespace, {"app": app, "tier": tier})
                number += 1
    for place, prefix in enumerate((*PREFIXES[1:], *PREFIXES6[1:])):
        labels = (cidr_label(prefix), Label("reserved", "world"))
        found[IdentityId((1 << 24) + place)] = Labels.of(labels)
    return found


def names(rng: random.Random) -> frozenset[NamedPort]:
    """Named ports of an endpoint, or of all endpoints of an identity: a name may have several numbers."""
    return frozenset(
        NamedPort(rng.choice(NAMES), rng.choice(EDGES[1:]), rng.choice(list(NUMBERS.values())))
        for _ in range(rng.choice((0, 1, 2, 4)))
    )


def addresses(rng: random.Random, identities: Iterable[IdentityId]) -> dict[IdentityId, frozenset[str]]:
    """Those of the host, of nodes, and up to three for each identity of pods."""
    found = {IdentityId(number): frozenset({address}) for number, address in NODES.items()}
    found[IdentityId(1)] = frozenset({"172.18.0.2", "10.1.2.1"})
    for identity in identities:
        if 256 <= identity < 65536:
            found[identity] = frozenset(rng.sample(ADDRESSES, rng.randint(0, 3)))
    return found


def section(rng: random.Random, name: str) -> Section:
    """A section of any tier."""
    tier = rng.choices(list(Tier), (3, 6, 2))[0]
    kind = "ClusterNetworkPolicy" if tier is not Tier.NORMAL else "CiliumNetworkPolicy"
    ref = RuleRef(kind, "", name, str(rng.randint(1, 3)), "spec", rng.choice(("", "", "noted")))
    isolates: tuple[Direction, ...] = ()
    if tier is Tier.NORMAL:
        isolates = rng.choice(((), (Direction.INGRESS,), (Direction.EGRESS,), tuple(Direction)))
    nodes = rng.random() < 0.1
    return Section(
        subject=reserved("host") if nodes else rng.choice((Selector(), Selector(), selector(rng))),
        ref=ref,
        isolates=isolates,
        rules=tuple(rule(rng, ref, tier, place) for place in range(rng.randint(0, 5))),
        tier=tier,
        priority=rng.randint(0, 2) if tier is not Tier.NORMAL else 0,
        audit=rng.random() < 0.2,
        nodes=nodes,
    )


def rule(rng: random.Random, ref: RuleRef, tier: Tier, place: int) -> Rule:
    """A rule that a section of this tier may have."""
    weights = (4, 2, 0, 0) if tier is Tier.NORMAL else (3, 3, 3, 2)
    return Rule(
        rng.choice(list(Direction)),
        peer(rng),
        ports(rng),
        rng.choices(list(Action), weights)[0],
        msgspec.structs.replace(ref, path=f"spec.rules[{place}]"),
    )


def selector(rng: random.Random) -> Selector:
    """A selector of pods, nodes or reserved identities."""
    return rng.choice(
        (
            Selector((equals("k8s", "app", rng.choice(APPS)),)),
            Selector((equals("any", "tier", rng.choice(TIERS)),)),
            Selector((Requirement("k8s", "app", Operator.NOT_IN, (rng.choice(APPS),)), exists("k8s", "app"))),
            Selector((Requirement("k8s", "zone", Operator.DOES_NOT_EXIST),)),
        )
    )


def peer(rng: random.Random) -> Peer:
    """A peer of any kind."""
    made: tuple[Peer, ...] = (
        None,
        Selector(),
        selector(rng),
        selector(rng),
        reserved(rng.choice(("host", "remote-node", "world", "kube-apiserver"))),
        Selector((exists("reserved", "remote-node"), equals("k8s", "zone", rng.choice("ab")))),
        block(rng),
        Cidrs(tuple(block(rng) for _ in range(rng.randint(0, 3)))),
        Inside(tuple(rng.sample((*PREFIXES, *PREFIXES6), rng.randint(1, 3))), rng.random() < 0.5),
        Inside((rng.choice(PREFIXES[1:]),), rng.random() < 0.5),
    )
    return rng.choice(made)


def block(rng: random.Random) -> Cidr:
    """A prefix, less some that are within it."""
    family = rng.choice((PREFIXES, PREFIXES6))
    prefix = rng.choice(family)
    inside = [other for other in family if other != prefix and _within(other, prefix)]
    excepts = tuple(sorted(rng.sample(inside, rng.randint(0, min(2, len(inside))))))
    return Cidr(prefix, excepts, rng.random() < 0.3)


def _within(inner: str, outer: str) -> bool:
    return ipaddress.ip_network(inner).subnet_of(ipaddress.ip_network(outer))  # type: ignore[arg-type]


def ports(rng: random.Random) -> tuple[Ports, ...]:
    """Everything, some ports and names, or types of ICMP."""
    if rng.random() < 0.25:
        return ALL_PORTS
    return tuple(_ports(rng) for _ in range(rng.randint(1, 3)))


def _ports(rng: random.Random) -> Ports:
    protocol = rng.choice(tuple(NUMBERS))
    first, last = sorted((rng.choice(EDGES[1:]), rng.choice((*EDGES[1:], rng.randrange(1, 65536)))))
    kind = rng.choice((8, 0, 128, 129))
    return rng.choice(
        (
            PortRange(protocol),
            PortRange(protocol, first, first),
            PortRange(protocol, first, first),
            PortRange(protocol, first, last),
            PortRange(rng.choice(PORTLESS)),
            PortRange(rng.choice((ICMP, ICMPV6)), kind, kind),
            PortName(protocol, rng.choice(NAMES)),
            PortName(protocol, rng.choice(NAMES)),
        )
    )


def questions(facts: Facts, seed: int, count: int) -> Iterator[Question]:
    """Random packets near the edges of what rules and endpoints speak of."""
    rng = random.Random(seed)
    peers = [Party(identity=i, labels=labels) for i, labels in facts.identities.items()]
    edges = _edges(facts)
    for _ in range(count):
        peer = rng.choice(peers) if rng.random() < 0.97 else None
        protocol = rng.choice((TCP, TCP, TCP, UDP, UDP, SCTP, ICMP, ICMPV6, rng.choice(PORTLESS)))
        yield peer, rng.choice(list(Direction)), protocol, _port(rng, protocol, edges)


def _port(rng: random.Random, protocol: int, edges: list[int]) -> int:
    if protocol in PORTLESS:
        return 0
    if protocol in (ICMP, ICMPV6):
        return rng.choice((0, 8, 128, 129))
    return rng.choice(edges) if rng.random() < 0.9 else rng.randrange(65536)


def _edges(facts: Facts) -> list[int]:
    spoken = [part for s in facts.sections for rule in s.rules for part in rule.ports]
    found = {edge for part in spoken if isinstance(part, PortRange) for edge in (part.first, part.last)}
    found |= {edge + step for edge in found for step in (-1, 1)} | set(EDGES)
    return sorted(edge for edge in found if 0 <= edge <= 65535)
