"""Explanations: who decides, who loses and why, who nearly matched, and a remedy that holds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import yaml

from cilia.control.policy.dialects.parse import parse
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.reasons import explain, oracle, remedy, words
from cilia.control.policy.reasons.explain import Library, Packet
from cilia.control.policy.rules import (
    ALL_PORTS,
    SCTP,
    TCP,
    UDP,
    Action,
    Inside,
    PortRange,
    Rule,
    Section,
    Selector,
    Tier,
    equals,
)
from cilia.model.endpoint import NamedPort
from cilia.model.explain import Side
from cilia.model.identity import HOST, WORLD_IPV4, reserved_identities
from cilia.model.ids import IdentityId
from cilia.model.labels import NAMESPACE, Label, Labels
from cilia.model.policy import Direction, PolicyMode, PolicyObject, RuleRef
from cilia.model.resources.cilium_policy import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from cilia.model.resources.network_policy import NetworkPolicy

KINDS: dict[str, Any] = {
    "NetworkPolicy": NetworkPolicy,
    "CiliumNetworkPolicy": CiliumNetworkPolicy,
    "CiliumClusterwideNetworkPolicy": CiliumClusterwideNetworkPolicy,
}
METADATA_NAME = "kubernetes.io/metadata.name"


def pod(number: int, namespace: str, app: str, ports: tuple[NamedPort, ...] = ()) -> Party:
    labels = Labels.kubernetes(namespace, {"app": app}, {METADATA_NAME: namespace})
    return Party(identity=IdentityId(number), labels=labels, named_ports=ports)


CLIENT = pod(300, "demo", "client")
WEB = pod(301, "demo", "web", (NamedPort("http", 8080, "TCP"),))
STRANGER = pod(302, "other", "client")
RESERVED = {row.id: row.labels for row in reserved_identities()}
HOSTED = Party(identity=HOST, labels=RESERVED[HOST])
OUTSIDE = Party(
    identity=IdentityId(1 << 24),
    labels=Labels.of([Label("cidr", "192.0.2.7/32"), Label("reserved", "world")]),
)
PARTIES = (CLIENT, WEB, STRANGER, OUTSIDE)


def objects(text: str) -> list[PolicyObject]:
    found = []
    for document in yaml.safe_load_all(text):
        kind = document["kind"]
        body = msgspec.convert(document, KINDS[kind], strict=False)
        meta = document["metadata"]
        found.append(
            PolicyObject(
                kind=kind,
                namespace=meta.get("namespace", ""),
                name=meta["name"],
                resource_version="7",
                body=body,
            )
        )
    return found


def read(policy: PolicyObject) -> tuple[Section, ...]:
    """What a proposal says, which is to have no problems."""
    parsed = parse(policy)
    assert not parsed.problems, parsed.problems
    return parsed.sections


class Scene:
    """Policies as YAML, and the parties above."""

    def __init__(self, text: str, **more: Any) -> None:
        policies = objects(text) if text else []
        sections = tuple(section for policy in policies for section in parse(policy).sections)
        more["sections"] = sections + tuple(more.get("sections", ()))
        identities = RESERVED | {party.identity: party.labels for party in PARTIES}
        names = {party.identity: frozenset(party.named_ports) for party in PARTIES}
        self.facts = Facts(**{"identities": identities, "port_names": names, **more})
        self.library = Library(
            policies={policy.key: policy for policy in policies}, pods=lambda number: (f"pod-{number}",)
        )

    def packet(
        self,
        peer: Party | None = CLIENT,
        port: int = 80,
        protocol: int = TCP,
        direction: Direction = Direction.INGRESS,
        subject: Party = WEB,
    ) -> Packet:
        return Packet(subject=subject, peer=peer, direction=direction, protocol=protocol, port=port)

    def side(self, **packet: Any) -> Side:
        asked = self.packet(**packet)
        found = explain.explain(self.facts, asked, self.library, "demo/web")
        return explain.with_remedy(found, remedy.find(self.facts, asked, self.library, read))


ALLOW_ADMIN = """
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: demo}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints:
    - matchLabels: {app: admin}
    - matchLabels: {app: client}
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""
DENY_CLIENT = """
kind: CiliumNetworkPolicy
metadata: {name: wall, namespace: demo}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingressDeny:
  - fromEndpoints:
    - matchExpressions: [{key: app, operator: Exists}]
"""


def test_an_allow_names_its_rule_with_the_text_and_whom_it_means() -> None:
    side = Scene(ALLOW_ADMIN).side()
    (rule,) = side.deciding
    assert (side.verdict, side.default, side.remedy) == ("allow", False, None)
    assert (rule.policy, rule.path, rule.resource_version) == (
        "demo/web", "spec.ingress[0].fromEndpoints[1]", "7",
    )  # fmt: skip
    shown = yaml.safe_load(rule.yaml)
    assert shown["fromEndpoints"] == [{"matchLabels": {"app": "client"}}]
    assert "toPorts" in shown
    assert rule.peer is not None
    assert [(m.identity, m.pods) for m in rule.peer.members] == [(300, ("pod-300",))]
    assert rule.ports == "TCP 80"


def test_without_policies_nothing_decides() -> None:
    side = Scene("").side()
    assert (side.verdict, side.default, side.deciding) == ("allow", True, ())
    assert "no policy isolates demo/web in ingress" in side.reason


def test_a_default_deny_names_who_isolates_and_what_nearly_matched() -> None:
    side = Scene(ALLOW_ADMIN).side(port=81)
    assert (side.verdict, side.default) == ("deny", True)
    assert [(rule.policy, rule.path, rule.action) for rule in side.deciding] == [
        ("demo/web", "spec", "isolate")
    ]
    assert "endpointSelector" in side.deciding[0].yaml
    near, far = side.misses
    assert near.path == "spec.ingress[0].fromEndpoints[1]"
    assert near.why == "it is about TCP 80, not TCP 81"
    assert far.why.startswith("it wants app=admin, the peer has k8s:app=client; ")


REFUSED = """
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: demo}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: admin}}]
  - toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{}]}}]
  egress:
  - authentication: {mode: required}
"""


def test_a_refused_rule_is_a_near_miss_with_its_problem() -> None:
    side = Scene(REFUSED).side()
    assert (side.verdict, side.default) == ("deny", True)
    _, refused = side.misses
    assert (refused.path, refused.action, refused.peer) == ("spec.ingress[1]", "allow", None)
    assert refused.why.startswith("it is refused (spec.ingress[1].toPorts[0].rules: Application-layer rules")
    assert "http" in refused.yaml
    assert side.remedy is not None
    assert side.remedy.verified


def test_a_refused_denial_says_why_it_denies_everybody() -> None:
    rule = (
        'ingressDeny: [{fromEndpoints: [{}], toPorts: [{ports: [{port: "9", endPort: 8, protocol: TCP}]}]}]'
    )
    scene = Scene(
        f"{{kind: CiliumNetworkPolicy, metadata: {{name: wall, namespace: demo}},"
        f" spec: {{endpointSelector: {{}}, {rule}}}}}"
    )
    (decides,) = scene.side(peer=OUTSIDE, port=443).deciding
    assert decides.path == "spec.ingressDeny[0]"
    assert "so it closes (spec.ingressDeny[0].toPorts[0].ports[0].endPort: " in decides.why


def test_the_remedy_of_a_default_deny_is_a_rule_that_holds() -> None:
    side = Scene(ALLOW_ADMIN).side(port=81)
    assert side.remedy is not None and side.remedy.verified
    (change,) = side.remedy.changes
    assert change.sentence == "Add this rule to spec.ingress of CiliumNetworkPolicy demo/web:"
    assert yaml.safe_load(change.yaml) == [
        {
            "fromEndpoints": [{"matchLabels": {"app": "client"}}],
            "toPorts": [{"ports": [{"port": "81", "protocol": "TCP"}]}],
        }
    ]


def test_a_remedy_for_a_network_policy_speaks_its_dialect() -> None:
    scene = Scene(
        """
kind: NetworkPolicy
metadata: {name: closed, namespace: demo}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""
    )
    side = scene.side(peer=STRANGER)
    assert side.remedy is not None and side.remedy.verified
    assert yaml.safe_load(side.remedy.changes[0].yaml) == [
        {
            "from": [
                {
                    "namespaceSelector": {"matchLabels": {METADATA_NAME: "other"}},
                    "podSelector": {"matchLabels": {"app": "client"}},
                }
            ],
            "ports": [{"protocol": "TCP", "port": 80}],
        }
    ]
    outside = scene.side(peer=OUTSIDE)
    assert outside.remedy is not None and outside.remedy.verified
    assert yaml.safe_load(outside.remedy.changes[0].yaml)[0]["from"] == [
        {"ipBlock": {"cidr": "192.0.2.7/32"}}
    ]


def test_what_a_network_policy_cannot_say_becomes_a_policy_of_its_own() -> None:
    scene = Scene(
        """
kind: NetworkPolicy
metadata: {name: closed, namespace: demo}
spec: {podSelector: {}, policyTypes: [Egress]}
"""
    )
    side = scene.side(peer=HOSTED, direction=Direction.EGRESS)
    assert side.remedy is not None and side.remedy.verified
    policy = yaml.safe_load(side.remedy.changes[0].yaml)
    assert policy["kind"] == "CiliumNetworkPolicy"
    assert policy["metadata"] == {"name": "allow-to-host-tcp-80", "namespace": "demo"}
    assert policy["spec"]["egress"][0]["toEntities"] == ["host"]


@pytest.mark.parametrize(
    ("protocol", "port", "expected"),
    [
        (UDP, 53, {"toPorts": [{"ports": [{"port": "53", "protocol": "UDP"}]}]}),
        (SCTP, 7, {"toPorts": [{"ports": [{"port": "7", "protocol": "SCTP"}]}]}),
        (1, 8, {"icmps": [{"fields": [{"family": "IPv4", "type": 8}]}]}),
        (58, 128, {"icmps": [{"fields": [{"family": "IPv6", "type": 128}]}]}),
        (47, 0, {}),
    ],
)
def test_remedies_of_every_protocol_hold(protocol: int, port: int, expected: dict[str, Any]) -> None:
    side = Scene(ALLOW_ADMIN).side(protocol=protocol, port=port)
    assert side.remedy is not None and side.remedy.verified
    rule = yaml.safe_load(side.remedy.changes[0].yaml)[0]
    rule.pop("fromEndpoints")
    assert rule == expected


def test_a_deny_beats_an_allow_and_both_are_told() -> None:
    side = Scene(ALLOW_ADMIN + "---" + DENY_CLIENT).side()
    assert (side.verdict, side.default) == ("deny", False)
    assert [rule.policy for rule in side.deciding] == ["demo/wall"]
    assert [(rule.policy, rule.why) for rule in side.losers] == [("demo/web", "a deny rule beats it")]


def test_the_remedy_of_a_deny_narrows_it() -> None:
    side = Scene(ALLOW_ADMIN + "---" + DENY_CLIENT).side()
    assert side.remedy is not None and side.remedy.verified
    (change,) = side.remedy.changes
    assert "Narrow spec.ingressDeny[0].fromEndpoints[0] of CiliumNetworkPolicy demo/wall" in change.sentence
    (rule,) = yaml.safe_load(change.yaml)
    expressions = rule["fromEndpoints"][0]["matchExpressions"]
    assert {"key": "k8s:app", "operator": "NotIn", "values": ["client"]} in expressions


def test_a_deny_in_front_of_a_default_deny_takes_two_changes() -> None:
    side = Scene(ALLOW_ADMIN + "---" + DENY_CLIENT).side(port=443)
    assert side.remedy is not None and side.remedy.verified
    assert len(side.remedy.changes) == 2


def test_a_denied_prefix_gets_an_exception() -> None:
    scene = Scene(
        """
kind: CiliumNetworkPolicy
metadata: {name: wall, namespace: demo}
spec:
  endpointSelector: {}
  enableDefaultDeny: {ingress: false}
  ingressDeny: [{fromCIDR: ["192.0.2.0/24"]}]
"""
    )
    side = scene.side(peer=OUTSIDE)
    assert side.remedy is not None and side.remedy.verified
    assert yaml.safe_load(side.remedy.changes[0].yaml) == [
        {"fromCIDRSet": [{"cidr": "192.0.2.0/24", "except": ["192.0.2.7/32"]}]}
    ]


def test_a_deny_of_everybody_can_only_be_removed() -> None:
    scene = Scene(
        """
kind: CiliumNetworkPolicy
metadata: {name: wall, namespace: demo}
spec:
  endpointSelector: {}
  enableDefaultDeny: {ingress: false}
  ingressDeny: [{fromEntities: [all]}]
"""
    )
    side = scene.side()
    assert side.remedy is not None and side.remedy.verified
    assert side.remedy.changes[0].sentence.startswith("Remove spec.ingressDeny[0]")


def admin_section(action: Action, tier: Tier = Tier.ADMIN, priority: int = 5) -> Section:
    path = "spec.ingress[0].from[0]"
    ref = RuleRef("ClusterNetworkPolicy", "", "guard", "9", path)
    peer = Selector((equals("k8s", NAMESPACE, "demo"),))
    return Section(
        subject=Selector((equals("k8s", "app", "web"),)),
        ref=msgspec.structs.replace(ref, path="spec"),
        isolates=(),
        rules=(Rule(Direction.INGRESS, peer, ALL_PORTS, action, ref),),
        tier=tier,
        priority=priority,
    )


def test_tiers_are_told_in_the_order_they_are_heard() -> None:
    scene = Scene(ALLOW_ADMIN, sections=(admin_section(Action.DENY),))
    side = scene.side()
    assert [(rule.tier, rule.priority, rule.why) for rule in side.deciding] == [
        ("admin", 5, "it is the first about the packet in tier admin (priority 5)")
    ]
    assert [rule.why for rule in side.losers] == ["tier admin is heard before tier normal"]
    assert side.remedy is not None and side.remedy.verified
    (rule,) = yaml.safe_load(side.remedy.changes[0].yaml)
    assert (rule["action"], rule["protocols"]) == ("Pass", [{"tcp": {"destinationPort": {"number": 80}}}])


def test_a_pass_is_a_loser_that_says_so() -> None:
    side = Scene(ALLOW_ADMIN, sections=(admin_section(Action.PASS),)).side()
    assert side.verdict == "allow"
    assert [rule.why for rule in side.losers] == ["it passes on to the next tier"]


def networks(action: Action, *, whole: bool = False) -> Section:
    """A section about egress to addresses within 10.1.0.0/16."""
    section = admin_section(action)
    peer = Inside(("10.1.0.0/16",), whole)
    rule = msgspec.structs.replace(section.rules[0], direction=Direction.EGRESS, peer=peer)
    return msgspec.structs.replace(section, rules=(rule,))


def test_networks_tell_the_addresses_of_the_peer() -> None:
    def scene(*addresses: str) -> Scene:
        own = {CLIENT.identity: frozenset(addresses)}
        return Scene("", sections=(networks(Action.DENY),), addresses=own)

    assert scene("10.2.0.1").side(direction=Direction.EGRESS).verdict == "allow"
    denied = scene("10.2.0.1", "10.1.0.1").side(direction=Direction.EGRESS)
    assert denied.verdict == "deny"
    (rule,) = denied.deciding
    assert rule.peer is not None
    assert rule.peer.selector == "pods and nodes with an address in 10.1.0.0/16"
    assert denied.remedy is not None and denied.remedy.verified
    missed = scene("10.2.0.1")
    (heard,) = explain.rules_of(missed.facts, missed.packet(direction=Direction.EGRESS))
    assert heard.amiss == ("it is about pods and nodes with an address in 10.1.0.0/16, the peer has 10.2.0.1")


def test_what_may_be_passed_says_so() -> None:
    scene = Scene(
        "",
        sections=(networks(Action.HOLD), networks(Action.ALLOW)),
        addresses={CLIENT.identity: frozenset({"10.1.0.1", "10.2.0.1"})},
    )
    side = scene.side(direction=Direction.EGRESS)
    assert side.verdict == "allow" and side.deciding == ()
    assert [(rule.action, "may pass on" in rule.why) for rule in side.losers] == [
        ("pass", True),
        ("allow", False),
    ]


def test_a_baseline_deny_is_overridden_by_a_policy_that_isolates_nobody() -> None:
    scene = Scene("", sections=(admin_section(Action.DENY, Tier.BASELINE),))
    side = scene.side()
    assert side.verdict == "deny"
    assert side.remedy is not None and side.remedy.verified
    policy = yaml.safe_load(side.remedy.changes[0].yaml)
    assert policy["spec"]["enableDefaultDeny"] == {"ingress": False}


def test_a_baseline_rule_is_not_heard_where_a_policy_isolates() -> None:
    side = Scene(ALLOW_ADMIN, sections=(admin_section(Action.ALLOW, Tier.BASELINE),)).side(port=81)
    assert side.verdict == "deny"
    assert [rule.why for rule in side.losers] == ["baseline rules are not heard where a policy isolates"]


@pytest.mark.parametrize(
    ("facts", "subject", "why"),
    [
        ({"audit": True}, WEB, "this node is in audit"),
        ({}, msgspec.structs.replace(WEB, audit=True), "the endpoint is in audit"),
    ],
)
def test_audit_says_what_would_be_denied_and_how_to_allow_it(
    facts: dict[str, Any], subject: Party, why: str
) -> None:
    side = Scene(ALLOW_ADMIN, **facts).side(port=81, subject=subject)
    assert side.verdict == "audit"
    assert side.reason.startswith("Denied by default") and side.reason.endswith(f"as AUDIT: {why}.")
    assert [rule.action for rule in side.deciding] == ["isolate"]
    assert side.misses
    assert side.remedy is not None and side.remedy.verified


def test_a_policy_in_audit_loses_and_says_why() -> None:
    sections = tuple(
        msgspec.structs.replace(section, audit=True) for p in objects(DENY_CLIENT) for section in read(p)
    )
    side = Scene(ALLOW_ADMIN, sections=sections).side()
    assert side.verdict == "audit"
    assert [rule.policy for rule in side.deciding] == ["demo/wall"]
    assert side.reason.endswith("the policy is in audit.")


def test_modes_say_so() -> None:
    assert (
        Scene(ALLOW_ADMIN, mode=PolicyMode.NEVER).side(port=81).reason.startswith("Enforcement mode is never")
    )
    side = Scene("", mode=PolicyMode.ALWAYS).side()
    assert "enforcement mode is always" in side.reason
    assert side.remedy is not None and side.remedy.verified


def test_the_node_reaches_its_own_pods() -> None:
    side = Scene(ALLOW_ADMIN).side(peer=HOSTED, port=81)
    assert side.verdict == "allow"
    assert [rule.name for rule in side.deciding] == ["allow-localhost"]


def test_names_of_ports_are_told_with_their_numbers() -> None:
    scene = Scene(
        """
kind: NetworkPolicy
metadata: {name: named, namespace: demo}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{ports: [{port: http}]}]
"""
    )
    assert scene.side(port=8080).verdict == "allow"
    (miss,) = scene.side(port=80).misses
    assert miss.why == "it is about TCP http, not TCP 80 (the pod calls 8080 http)"


@pytest.mark.parametrize("peer", [None, OUTSIDE, HOSTED, STRANGER])
def test_a_miss_says_what_is_amiss_with_anybody(peer: Party | None) -> None:
    text = ALLOW_ADMIN.replace("    toPorts", "  - fromCIDR: [10.0.0.0/8]\n    toPorts")
    scene = Scene(text, allow_localhost=False)
    packet = scene.packet(peer=peer)
    for heard in explain.rules_of(scene.facts, packet):
        assert heard.amiss


def test_what_is_amiss_agrees_with_the_oracle() -> None:
    scene = Scene(ALLOW_ADMIN + "---" + DENY_CLIENT)
    for peer in (*PARTIES, HOSTED):
        for port in (80, 81, 8080):
            packet = scene.packet(peer=peer, port=port)
            about = [h.rule.ref for h in explain.rules_of(scene.facts, packet) if not h.amiss]
            heard = oracle.hearing(scene.facts, WEB, peer, Direction.INGRESS, TCP, port)
            assert [h.rule.ref for h in heard if h.rule.ref.kind != "Cilia"] == about


def test_the_world_as_a_whole_is_an_entity() -> None:
    world = Party(identity=WORLD_IPV4, labels=RESERVED[WORLD_IPV4])
    side = Scene(ALLOW_ADMIN).side(peer=world)
    assert side.remedy is not None and side.remedy.verified
    assert yaml.safe_load(side.remedy.changes[0].yaml)[0]["fromEntities"] == ["world"]


def test_paths_are_taken_apart() -> None:
    found = words.place("specs[1].egressDeny[2].toCIDRSet[3].cidr")
    assert found is not None
    assert (found.rule, found.peers, found.peer) == ("specs[1].egressDeny[2]", "toCIDRSet", 3)
    assert words.place("spec") is None
    assert words.part_of({"a": [{"b": 1}]}, "a[0].b") == 1
    assert words.part_of({"a": []}, "a[0].b") is None


def test_ports_in_words() -> None:
    assert words.port_text(PortRange()) == "all protocols and ports"
    assert words.port_text(PortRange(TCP)) == "TCP"
    assert words.port_text(PortRange(UDP, 1, 9)) == "UDP 1-9"
