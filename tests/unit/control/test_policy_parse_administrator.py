"""ClusterNetworkPolicy: tiers, order, Pass, what its peers mean, and how it fails closed."""

from __future__ import annotations

import msgspec
import pytest

from cilia.control.policy.dialects.parse import parse
from cilia.control.policy.rules import SCTP, TCP, UDP, Action, Cidr, Inside, Parsed, Tier
from cilia.model.endpoint import NamedPort
from cilia.model.identity import Identity
from tests.support.policy_reading import (
    DB,
    FAR,
    HOST,
    IN,
    JOB,
    NODE,
    OUT,
    PREFIX,
    WEB,
    WORLD4,
    WORLD6,
    admin,
    allows,
    cnp,
    node,
    who,
    written,
)

HEAD = "tier: %s, priority: 5, subject: {namespaces: {}}"
EVERYBODY = (WEB, DB, JOB, HOST, NODE, WORLD4, WORLD6)


def ingress(rules: str, tier: str = "Admin") -> Parsed:
    return admin(f"{{{HEAD % tier}, ingress: [{rules}]}}")


def egress(rules: str, tier: str = "Admin") -> Parsed:
    return admin(f"{{{HEAD % tier}, egress: [{rules}]}}")


def denied_to(peer: str) -> list[Identity]:
    """Whom a Deny of one peer cuts off, outward."""
    parsed = egress(f"{{action: Deny, to: [{peer}]}}")
    return [one for one in (*EVERYBODY, FAR) if not allows(parsed, one, direction=OUT)]


def paths(parsed: Parsed) -> list[str]:
    assert all(problem.sentence.endswith(".") for problem in parsed.problems)
    return [problem.path for problem in parsed.problems]


def test_tier_and_priority() -> None:
    (section,) = ingress("{action: Deny, from: [{namespaces: {}}]}").sections
    assert (section.tier, section.priority, section.isolates) == (Tier.ADMIN, 5, ())
    (section,) = ingress("{action: Deny, from: [{namespaces: {}}]}", "Baseline").sections
    assert section.tier is Tier.BASELINE


def test_the_first_rule_that_is_about_a_packet_decides() -> None:
    accept, deny = (f"{{action: {what}, from: [{{namespaces: {{}}}}]}}" for what in ("Accept", "Deny"))
    assert allows(ingress(f"{accept}, {deny}"), DB)
    assert not allows(ingress(f"{deny}, {accept}"), DB)
    assert [rule.action for rule in ingress(f"{accept}, {deny}").sections[0].rules] == [
        Action.ALLOW,
        Action.DENY,
    ]


def test_pass_leaves_it_to_the_next_tier() -> None:
    parsed = ingress("{action: Pass, from: [{namespaces: {}}]}, {action: Deny, from: [{namespaces: {}}]}")
    assert allows(parsed, DB)


def test_a_rule_without_rules_in_a_direction_says_nothing_of_it() -> None:
    parsed = ingress("{action: Deny, from: [{namespaces: {}}]}")
    assert allows(parsed, DB, direction=OUT)


@pytest.mark.parametrize(
    ("subject", "selected"),
    [
        ("namespaces: {}", [WEB, DB, JOB]),
        ("namespaces: {matchLabels: {team: r}}", [WEB, DB]),
        ("pods: {namespaceSelector: {matchLabels: {team: r}}, podSelector: {matchLabels: {app: db}}}", [DB]),
        ("pods: {podSelector: {matchLabels: {app: job}}}", [JOB]),
        ("pods: {namespaceSelector: {}, podSelector: {}}", [WEB, DB, JOB]),
    ],
)
def test_subjects_are_pods(subject: str, selected: list[Identity]) -> None:
    (section,) = admin(f"{{tier: Admin, priority: 0, subject: {{{subject}}}}}").sections
    assert [one for one in EVERYBODY if section.selects(one.labels)] == selected


@pytest.mark.parametrize("subject", ["{}", "{namespaces: {}, pods: {podSelector: {}}}"])
def test_a_subject_is_one_of_two(subject: str) -> None:
    assert paths(admin(f"{{tier: Admin, priority: 0, subject: {subject}}}")) == ["spec.subject"]


@pytest.mark.parametrize(
    ("peer", "meant"),
    [
        ("{namespaces: {}}", [WEB, DB, JOB]),
        ("{namespaces: {matchExpressions: [{key: team, operator: NotIn, values: [r]}]}}", [JOB]),
        ("{pods: {podSelector: {matchLabels: {app: web}}}}", [WEB]),
        ("{nodes: {}}", [HOST, NODE]),
        ("{networks: [0.0.0.0/0, '::/0']}", [*EVERYBODY, FAR]),
        # Inside by addresses, which nobody has here.
        ("{networks: [0.0.0.0/0]}", [WORLD4]),
        ("{networks: ['::/0']}", [WORLD6]),
        ("{networks: [10.0.0.0/8]}", []),
    ],
)
def test_peers_that_are_denied(peer: str, meant: list[Identity]) -> None:
    assert denied_to(peer) == meant


def test_nodes_are_selected_by_label() -> None:
    near, far = node(2 << 24, "zone=a"), node((2 << 24) + 1, "zone=b")
    host = node(1, "zone=a", kind="host")
    parsed = egress("{action: Deny, to: [{nodes: {matchLabels: {zone: a}}}]}")
    assert [allows(parsed, one, direction=OUT) for one in (near, far, host)] == [False, True, False]


def test_networks_are_blocks_outside_the_cluster() -> None:
    parsed = egress("{action: Deny, to: [{networks: [10.0.0.0/8, 192.0.2.0/24]}]}")
    assert parsed.prefixes == {"10.0.0.0/8", "192.0.2.0/24"}
    assert not allows(parsed, PREFIX["10.1.0.0/16"], direction=OUT)
    assert allows(parsed, WORLD4, direction=OUT)
    rules = egress("{action: Accept, to: [{networks: [10.9.9.9/8]}]}").sections[0].rules
    assert {rule.ref.path for rule in rules} == {"spec.egress[0].to[0]"}
    assert [rule.peer for rule in rules] == [
        Cidr("10.0.0.0/8", outside=True),
        Inside(("10.0.0.0/8",), True),
    ]


ALL_WITHIN, SOME_WITHIN, NONE_WITHIN = ("10.1.0.1", "10.1.0.2"), ("10.1.0.1", "10.2.0.1"), ("10.2.0.1",)
TO_BLOCK = "to: [{networks: [10.1.0.0/16]}]"
TO_ALL = "to: [{networks: [0.0.0.0/0, '::/0']}]"


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        # All within, some within, none within.
        (f"{{action: Deny, {TO_BLOCK}}}", (False, False, True)),
        (f"{{action: Accept, {TO_BLOCK}}}, {{action: Deny, {TO_ALL}}}", (True, False, False)),
        (f"{{action: Pass, {TO_BLOCK}}}, {{action: Deny, {TO_ALL}}}", (True, False, False)),
    ],
)
def test_networks_are_addresses_inside_too(rules: str, allowed: tuple[bool, ...]) -> None:
    parsed = egress(rules)
    found = (
        allows(parsed, DB, direction=OUT, peer_addresses=addresses)
        for addresses in (ALL_WITHIN, SOME_WITHIN, NONE_WITHIN)
    )
    assert tuple(found) == allowed


def test_perhaps_passed_is_never_accepted_by_a_later_rule() -> None:
    """The next tier denies: what a Pass is about must come to it, and what later rules deny stays denied."""
    accept = f"{{action: Pass, {TO_BLOCK}}}, {{action: Accept, {TO_ALL}}}, {{action: Deny, {TO_ALL}}}"
    nobody = cnp("{endpointSelector: {}, enableDefaultDeny: {egress: true}}")
    parsed = Parsed((*egress(accept).sections, *nobody.sections))
    assert [
        allows(parsed, DB, direction=OUT, peer_addresses=addresses)
        for addresses in (ALL_WITHIN, SOME_WITHIN, NONE_WITHIN)
    ] == [False, False, True]


def test_one_family_of_all_addresses() -> None:
    deny = f"{{action: Deny, {TO_ALL}}}"
    one_family = egress(f"{{action: Accept, to: [{{networks: [0.0.0.0/0]}}]}}, {deny}")
    assert who(one_family, EVERYBODY, direction=OUT) == [WORLD4]
    both = ("10.0.0.1", "fd00::1")
    for action in ("Accept", "Pass"):
        parsed = egress(f"{{action: {action}, to: [{{networks: [0.0.0.0/0]}}]}}, {deny}")
        assert [
            allows(parsed, DB, direction=OUT, peer_addresses=addresses)
            for addresses in (both[:1], both[1:], both)
        ] == [True, False, False]
    parsed = egress(f"{{action: Accept, {TO_ALL}}}, {deny}")
    assert who(parsed, EVERYBODY, direction=OUT) == list(EVERYBODY)


def test_protocols() -> None:
    parsed = ingress(
        "{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}},"
        " {udp: {destinationPort: {range: {start: 90, end: 95}}}}, {sctp: {destinationPort: {number: 7}}}]}"
    )
    assert not allows(parsed, DB, 80)
    assert allows(parsed, DB, 81)
    assert [allows(parsed, DB, port, protocol=UDP) for port in (89, 90, 95, 96)] == [1, 0, 0, 1]
    assert not allows(parsed, DB, 7, protocol=SCTP)
    assert allows(parsed, DB, 80, protocol=SCTP)


def test_a_named_port_is_the_receivers() -> None:
    rule = "{action: Deny, %s: [{namespaces: {}}], protocols: [{destinationNamedPort: web}]}"
    ports = (NamedPort("web", 8080, "TCP"),)
    parsed = ingress(rule % "from")
    assert not allows(parsed, DB, 8080, subject_ports=ports)
    assert allows(parsed, DB, 8080, peer_ports=ports)
    parsed = egress(rule % "to")
    assert not allows(parsed, DB, 8080, direction=OUT, peer_ports=ports)
    assert allows(parsed, DB, 8081, direction=OUT, peer_ports=ports)


def test_peers_are_of_this_cluster() -> None:
    assert allows(ingress("{action: Deny, from: [{namespaces: {}}]}"), FAR)


def test_the_name_of_a_rule_is_what_flows_say() -> None:
    parsed = ingress("{name: no-strangers, action: Deny, from: [{namespaces: {}}]}")
    (rule,) = parsed.sections[0].rules
    assert (rule.ref.path, rule.ref.log) == ("spec.ingress[0].from[0]", "no-strangers")
    assert parsed.sections[0].ref.log == ""


@pytest.mark.parametrize("action", ["Deny", "Pass"])
@pytest.mark.parametrize(
    "rule",
    [
        "from: [{planets: {}}]",
        "from: [{namespaces: {}}, {planets: {}}]",
        "from: [{pods: {podSelector: {}}}], protocols: [{quic: {}}]",
    ],
)
def test_what_nobody_knows_denies_everything(action: str, rule: str) -> None:
    parsed = ingress(f"{{action: {action}, {rule}}}")
    assert who(parsed, EVERYBODY) == []
    assert allows(parsed, DB, direction=OUT)
    assert len(parsed.warnings) == 1
    assert "denies everything" in parsed.warnings[0].sentence


def test_what_nobody_knows_accepts_nothing() -> None:
    deny = "{action: Deny, from: [{namespaces: {}}]}"
    assert not allows(ingress(f"{{action: Accept, from: [{{planets: {{}}}}]}}, {deny}"), DB)
    quic = "{action: Accept, from: [{namespaces: {}}], protocols: [{quic: {}}]}"
    assert not allows(ingress(f"{quic}, {deny}"), DB)
    both = quic.replace("{quic: {}}", "{quic: {}}, {tcp: {destinationPort: {number: 80}}}")
    assert allows(ingress(f"{both}, {deny}"), DB, 80)
    assert not allows(ingress(f"{both}, {deny}"), DB, 81)


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ("action: Deny, to: [{namespaces: {}, nodes: {}}]", "to[0]"),
        ("action: Deny, to: [{networks: [moon]}]", "to[0].networks[0]"),
        ("action: Deny, to: [{domainNames: [a.org]}]", "to[0].domainNames"),
        ("action: Accept, to: [{domainNames: ['*.a.org']}]", "to[0].domainNames"),
        ("action: Deny, to: [{nodes: {}}], protocols: [{destinationNamedPort: a}]", "to[0]"),
        (
            "action: Deny, to: [{namespaces: {}}], protocols: [{destinationNamedPort: a b}]",
            "protocols[0].destinationNamedPort",
        ),
        ("action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {}}]", "protocols[0].tcp.destinationPort"),
        (
            "action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]",
            "protocols[0].tcp.destinationPort",
        ),
        (
            "action: Deny, to: [{namespaces: {}}],"
            " protocols: [{tcp: {destinationPort: {range: {start: 9, end: 9}}}}]",
            "protocols[0].tcp.destinationPort.range",
        ),
        (
            "action: Deny, to: [{namespaces: {}}], protocols:"
            " [{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}]",
            "protocols[0]",
        ),
    ],
)
def test_refusals(rule: str, path: str) -> None:
    parsed = egress(f"{{{rule}}}")
    assert paths(parsed) == [f"spec.egress[0].{path}"]
    (section,) = parsed.sections
    denials = [(Action.DENY, None)] if "Deny" in rule else []
    assert [(each.action, each.peer) for each in section.rules] == denials


def test_names_are_not_enforced_yet_but_only_where_they_could_be() -> None:
    (problem,) = egress("{action: Accept, to: [{domainNames: [a.org]}]}").problems
    assert "not enforced yet" in problem.sentence
    (problem,) = egress("{action: Pass, to: [{domainNames: [a.org]}]}").problems
    assert "only be accepted" in problem.sentence


def test_it_is_in_no_namespace() -> None:
    spec = {"tier": "Admin", "priority": 0, "subject": {"namespaces": {}}}
    within = msgspec.structs.replace(written("ClusterNetworkPolicy", spec), namespace="red")
    assert paths(parse(within)) == ["metadata.namespace"]


def test_audit() -> None:
    spec = {"tier": "Admin", "priority": 0, "subject": {"namespaces": {}}}
    (section,) = parse(written("ClusterNetworkPolicy", spec, **{"policy.cilia.io_audit": "true"})).sections
    assert section.audit


def test_ports_are_of_tcp_only_where_said() -> None:
    parsed = ingress(
        "{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}"
    )
    assert [allows(parsed, DB, 80, protocol=protocol) for protocol in (TCP, UDP)] == [False, True]
    assert parsed.sections[0].rules[0].direction is IN
