"""Checks: what changes for flows and for pairs, held to the oracle pair by pair."""

from __future__ import annotations

import random
from itertools import product

import msgspec
import pytest

from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.reasons import check, explain, oracle
from cilia.control.policy.reasons.check import Actor, Observed, together
from cilia.control.policy.reasons.explain import Packet
from cilia.control.policy.rules import (
    ALL_PORTS,
    TCP,
    UDP,
    Action,
    Cidr,
    Inside,
    Peer,
    PortName,
    PortRange,
    Ports,
    Rule,
    Section,
    Selector,
    Tier,
    equals,
)
from cilia.model.endpoint import NamedPort
from cilia.model.explain import Difference
from cilia.model.identity import HOST, WORLD_IPV4, reserved_identities
from cilia.model.ids import IdentityId
from cilia.model.labels import Label, Labels
from cilia.model.policy import Direction, RuleRef

RESERVED = {row.id: row.labels for row in reserved_identities()}
APPS = ("web", "db", "job", "client")


def actor(number: int, app: str, ports: tuple[NamedPort, ...] = ()) -> Actor:
    labels = Labels.kubernetes("demo", {"app": app})
    return Actor(
        party=Party(identity=IdentityId(number), labels=labels, named_ports=ports), name=f"demo/{app}"
    )


def outside(number: int, prefix: str) -> Actor:
    labels = Labels.of([Label("cidr", prefix), Label("reserved", "world")])
    return Actor(party=Party(identity=IdentityId(number), labels=labels), name=prefix)


ACTORS = [
    actor(300, "web", (NamedPort("http", 8080),)),
    actor(300, "web", (NamedPort("http", 9090),)),
    *(actor(301 + at, app) for at, app in enumerate(APPS[1:])),
    Actor(party=Party(identity=HOST, labels=RESERVED[HOST]), name="host"),
    Actor(party=Party(identity=WORLD_IPV4, labels=RESERVED[WORLD_IPV4]), name="world-ipv4"),
    outside(1 << 31, "192.0.2.0/24"),
    outside((1 << 31) + 1, "192.0.2.7/32"),
]


ADDRESSES = {
    IdentityId(300): frozenset({"10.1.0.1", "10.2.0.1"}),
    IdentityId(301): frozenset({"10.1.0.2"}),
    IdentityId(302): frozenset({"10.2.0.2"}),
}


def facts(*sections: Section) -> Facts:
    names: dict[IdentityId, frozenset[NamedPort]] = {}
    for each in ACTORS:
        party = each.party
        names[party.identity] = names.get(party.identity, frozenset()) | frozenset(party.named_ports)
    identities = {each.party.identity: each.party.labels for each in ACTORS}
    return Facts(sections=sections, identities=identities, port_names=names, addresses=ADDRESSES)


def app(name: str) -> Selector:
    return Selector((equals("k8s", "app", name),))


def section(
    name: str,
    subject: Selector,
    *rules: tuple[Direction, Peer, tuple[Ports, ...], Action],
    isolates: tuple[Direction, ...] = (),
    tier: Tier = Tier.NORMAL,
    audit: bool = False,
) -> Section:
    ref = RuleRef("CiliumNetworkPolicy", "demo", name, "1", "spec")
    made = tuple(
        Rule(*rule, msgspec.structs.replace(ref, path=f"spec.rules[{at}]")) for at, rule in enumerate(rules)
    )
    return Section(subject=subject, ref=ref, isolates=isolates, rules=made, tier=tier, audit=audit)


IN, OUT = Direction.INGRESS, Direction.EGRESS
WEB_FROM_CLIENT = section(
    "web", app("web"), (IN, app("client"), (PortRange(TCP, 80, 80),), Action.ALLOW), isolates=(IN,)
)


def test_nothing_changes_when_nothing_changes() -> None:
    found = check.compare_pairs(facts(WEB_FROM_CLIENT), facts(WEB_FROM_CLIENT), ACTORS)
    assert (found.differences, found.notes) == ([], ())


def test_a_new_policy_denies_what_nothing_isolated() -> None:
    found = check.compare_pairs(facts(), facts(WEB_FROM_CLIENT), ACTORS)
    assert all(row.newly_denied and row.direction == "ingress" for row in found.differences)
    (of_client,) = [row for row in found.differences if row.port != "any"]
    assert of_client.source == "demo/client"
    assert "TCP 80" not in of_client.port
    (of_all,) = [row for row in found.differences if row.port == "any"]
    assert "demo/db" in of_all.source
    assert of_all.after_rules == ("default deny of CiliumNetworkPolicy demo/web spec",)
    # The node still reaches its pods: nothing changes for it.
    assert of_all.others == 2 * 7 - 1


def test_a_side_that_changes_behind_one_that_denies_is_no_difference() -> None:
    closed = section("closed", app("client"), isolates=(OUT,))
    found = check.compare_pairs(
        facts(closed, WEB_FROM_CLIENT),
        facts(closed, msgspec.structs.replace(WEB_FROM_CLIENT, rules=())),
        ACTORS,
    )
    assert found.differences == []


def test_flows_tell_how_often_they_were_seen() -> None:
    flows = [
        Observed(source=ACTORS[4], destination=ACTORS[0], protocol=TCP, port=80, count=3, last_seen="now"),
        Observed(source=ACTORS[2], destination=ACTORS[0], protocol=TCP, port=80, count=7),
        Observed(source=ACTORS[8], destination=ACTORS[0], protocol=UDP, port=53),
    ]
    found = check.compare_flows(facts(), facts(WEB_FROM_CLIENT), flows)
    assert [(row.source, row.flows, row.protocol) for row in found] == [
        ("demo/db", 7, "TCP"),
        ("192.0.2.7/32", 1, "UDP"),
    ]


def test_work_is_bounded_and_said() -> None:
    found = check.compare_pairs(facts(), facts(WEB_FROM_CLIENT), ACTORS, budget=3)
    assert any("left out" in note for note in found.notes)


def test_many_ports_are_cut_and_said() -> None:
    many = section(
        "many",
        app("web"),
        (IN, None, tuple(PortRange(TCP, port, port) for port in range(1000, 1100)), Action.ALLOW),
        isolates=(IN,),
    )
    ports, cut = check.ports_of([facts(many)], [])
    assert cut
    assert len(ports) == check.PORTS_LIMIT + 3


INSIDE = [Inside(("10.1.0.0/16",), whole) for whole in (False, True)]


def some_section(random: random.Random, number: int) -> Section:
    choices: list[tuple[Ports, ...]] = [
        ALL_PORTS,
        (PortRange(TCP, 80, 90),),
        (PortRange(UDP),),
        (PortName(TCP, "http"),),
    ]

    def rule() -> tuple[Direction, Peer, tuple[Ports, ...], Action]:
        peer: Peer = random.choice(
            [None, *(app(name) for name in APPS), Cidr("192.0.2.0/24", ("192.0.2.7/32",)), *INSIDE]
        )
        actions = list(Action) if tier is not Tier.NORMAL else [Action.ALLOW, Action.DENY]
        return random.choice([IN, OUT]), peer, random.choice(choices), random.choice(actions)

    tier = random.choice([Tier.NORMAL, Tier.NORMAL, Tier.ADMIN, Tier.BASELINE])
    isolates = tuple(way for way in Direction if random.random() < 0.5) if tier is Tier.NORMAL else ()
    return section(
        f"policy-{number}",
        random.choice([Selector(), *(app(name) for name in APPS)]),
        *(rule() for _ in range(random.randint(0, 3))),
        isolates=isolates,
        tier=tier,
        audit=random.random() < 0.2,
    )


def word(known: Facts, subject: Party, peer: Party, direction: Direction, port: tuple[int, int]) -> str:
    if not explain.has_side(known, subject):
        return "allow"
    packet = Packet(subject=subject, peer=peer, direction=direction, protocol=port[0], port=port[1])
    return explain.verdict_word(explain.judge(known, packet))


@pytest.mark.parametrize("seed", range(25))
def test_every_pair_is_as_the_oracle_says(seed: int) -> None:
    random_ = random.Random(seed)
    common = [some_section(random_, number) for number in range(random_.randint(0, 3))]
    before = facts(*common, *(some_section(random_, 10 + n) for n in range(random_.randint(0, 2))))
    after = facts(*common, *(some_section(random_, 20 + n) for n in range(random_.randint(0, 2))))
    ports, _ = check.ports_of((before, after), [each.party for each in ACTORS])
    expected: dict[tuple[str, str], int] = {}
    for source, destination in product(ACTORS, ACTORS):
        changes = set()
        for port in ports:
            words = [
                together(
                    word(known, source.party, destination.party, OUT, port),
                    word(known, destination.party, source.party, IN, port),
                )
                for known in (before, after)
            ]
            if words[0] != words[1]:
                changes.add((words[0], words[1]))
        for change in changes:
            expected[change] = expected.get(change, 0) + 1
    found = check.compare_pairs(before, after, ACTORS)
    assert {(row.before, row.after) for row in found.differences} == set(expected)
    for change, number in expected.items():
        told = sum(row.others + 1 for row in found.differences if (row.before, row.after) == change)
        # A pair may stand in several lines, for different ports.
        assert told >= number


@pytest.mark.parametrize(
    ("before", "after", "denied", "allowed"),
    [
        ("allow", "deny", True, False),
        ("audit", "deny", True, False),
        ("deny", "audit", False, True),
        ("deny", "allow", False, True),
        ("allow", "audit", False, False),
    ],
)
def test_what_is_newly_denied_and_allowed(before: str, after: str, denied: bool, allowed: bool) -> None:
    row = Difference(
        source="a", destination="b", protocol="TCP", before=before, after=after, direction="egress"
    )
    assert (row.newly_denied, row.newly_allowed) == (denied, allowed)


def test_the_oracle_is_asked_with_what_selects_the_subject_only() -> None:
    known = facts(WEB_FROM_CLIENT, section("other", app("db"), isolates=(IN,)))
    verdict = oracle.judge(known, ACTORS[0].party, ACTORS[4].party, IN, TCP, 80)
    assert verdict.allow
