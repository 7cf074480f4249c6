"""What no policy can say, and what is not enforced yet: told with its path, and closed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cilia.control.policy.dialects.cilium import UNSUPPORTED
from cilia.control.policy.dialects.layer7 import PROXIED
from cilia.control.policy.dialects.parse import parse
from cilia.control.policy.rules import Parsed, Section, Tier
from cilia.model.resources import cilium_policy as resource
from tests.support.policy_reading import DB, IN, JOB, OUT, admin, allows, ccnp, cnp, netpol, written

HTTP = "egress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{%s}]}}]}]"
RULES = "egress: [{toPorts: [{ports: [{port: '53', protocol: %s}], rules: {%s}}]}]"
PORTS = "egress[0].toPorts[0]"


NOTHING = "Until then the rule allows nothing."
EVERYBODY = "Until then the rule denies everybody."
NO_EFFECT = "Until then the policy has no effect."


def faults(text: str) -> list[tuple[str, str]]:
    """Paths and sentences of a policy's problems; its one rule closes."""
    parsed = cnp(f"{{endpointSelector: {{}}, {text}}}")
    (section,) = parsed.sections
    assert section.isolates
    assert closes(section, "Deny: " in text)
    assert all(problem.sentence.endswith(".") for problem in parsed.problems)
    return [(problem.path.removeprefix("spec."), problem.sentence) for problem in parsed.problems]


def closes(section: Section, denies: bool) -> bool:
    """Whether of the rules nothing is left but denials of everybody."""
    stand_ins = [(str(rule.action), rule.peer) for rule in section.rules]
    return stand_ins == [("deny", None)] * len(section.refused) if denies else not stand_ins


def in_force(parsed: Parsed) -> Parsed:
    """What of a policy with problems holds."""
    assert parsed.problems
    return Parsed(parsed.sections)


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ("ingress: [{fromRequires: [{}]}]", "ingress[0].fromRequires"),
        ("ingress: [{fromGroups: []}]", "ingress[0].fromGroups"),
        ("egress: [{toRequires: [{}]}]", "egress[0].toRequires"),
        ("egress: [{toGroups: [{}]}]", "egress[0].toGroups"),
        ("egress: [{toFQDNs: [{matchName: a.org}]}]", "egress[0].toFQDNs"),
        ("egress: [{authentication: {mode: required}}]", "egress[0].authentication.mode"),
        (HTTP % "path: /a.*", f"{PORTS}.rules"),
        (RULES % ("ANY", "dns: [{matchPattern: '*.org'}]"), f"{PORTS}.rules"),
        (RULES % ("TCP", "kafka: [{role: produce, topic: a}]"), f"{PORTS}.rules"),
        (
            "egress: [{toPorts: [{ports: [{port: '1', protocol: TCP}], serverNames: ['*.a']}]}]",
            f"{PORTS}.serverNames",
        ),
        (
            "egress: [{toPorts: [{ports: [{port: '1', protocol: TCP}],"
            " terminatingTLS: {secret: {name: s}}}]}]",
            f"{PORTS}.terminatingTLS",
        ),
        (
            "egress: [{toPorts: [{ports: [{port: '1', protocol: TCP}],"
            " listener: {name: l, envoyConfig: {name: e}}}]}]",
            f"{PORTS}.listener",
        ),
    ],
)
def test_what_is_right_but_not_enforced_says_so(part: str, path: str) -> None:
    ((where, sentence),) = faults(part)
    assert where == path
    assert "not supported" in sentence or "not enforced yet" in sentence


@pytest.mark.parametrize(
    ("part", "path", "said"),
    [
        ("egress: [{toPorts: [{}]}]", f"{PORTS}.ports", "names no port"),
        (
            "egress: [{toPorts: [{ports: [{port: '0', endPort: 9}]}]}]",
            f"{PORTS}.ports[0].endPort",
            "every port",
        ),
        (
            "egress: [{toPorts: [{ports: [{port: '9', endPort: 8}]}]}]",
            f"{PORTS}.ports[0].endPort",
            "exchange",
        ),
        (
            "egress: [{toPorts: [{ports: [{port: web, endPort: 9}]}]}]",
            f"{PORTS}.ports[0].endPort",
            "no range",
        ),
        (
            "egress: [{toPorts: [{ports: [{port: a-very-long-port-name}]}]}]",
            f"{PORTS}.ports[0].port",
            "no name",
        ),
        (
            "egress: [{toPorts: [{ports: [{port: '7', protocol: VRRP}]}]}]",
            f"{PORTS}.ports[0].port",
            "no ports",
        ),
        (
            "egress: [{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: '1'}]}]}]",
            "egress[0].icmps",
            "two rules",
        ),
        ("egress: [{icmps: [{fields: []}]}]", "egress[0].icmps[0].fields", "no ICMP type"),
        (
            "egress: [{icmps: [{fields: [{type: PacketTooBig}]}]}]",
            "egress[0].icmps[0].fields[0].type",
            "family",
        ),
        ("egress: [{toCIDR: [10.0.0.0/8], toEntities: [all]}]", "egress[0]", "two rules"),
        ("egress: [{toCIDR: [10.0.0.0/33]}]", "egress[0].toCIDR[0]", "not a prefix"),
        (
            "egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/8]}]}]",
            "egress[0].toCIDRSet[0].except[0]",
            "not within",
        ),
        (
            "egress: [{toCIDRSet: [{cidrGroupRef: g, except: [moon]}]}]",
            "egress[0].toCIDRSet[0].except[0]",
            "not a prefix",
        ),
        ("egress: [{toCIDR: ['fe80::%1/64']}]", "egress[0].toCIDR[0]", "not a prefix"),
        ("egress: [{toCIDR: [10.0.0.0/255.0.0.0]}]", "egress[0].toCIDR[0]", "not a prefix"),
        (
            "egressDeny: [{toEndpoints: [{matchLabels: {'a b': c}}]}]",
            "egressDeny[0].toEndpoints[0].matchLabels[a b]",
            "no label's key",
        ),
        (
            "egressDeny: [{toEndpoints: [{matchExpressions: [{key: 'k8s:', operator: Exists}]}]}]",
            "egressDeny[0].toEndpoints[0].matchExpressions[0].key",
            "no label's key",
        ),
        (
            "egress: [{toEndpoints: [{matchExpressions:"
            " [{key: 'cidrgroup:io.cilium.policy.cidrgroupname/g', operator: DoesNotExist}]}]}]",
            "egress[0].toEndpoints[0]",
            "stands alone",
        ),
        (
            "egress: [{toEndpoints: [{matchLabels:"
            " {'cidrgroup:io.cilium.policy.cidrgroupname/g': '', 'cidrgroup:a': b}}]}]",
            "egress[0].toEndpoints[0]",
            "stands alone",
        ),
        (
            "egress: [{toNodes: [{matchLabels: {'reserved:host': ''}}]}]",
            "egress[0].toNodes[0]",
            "no label of Kubernetes",
        ),
        ("egress: [{toServices: [{}]}]", "egress[0].toServices[0]", "names no Service"),
        (
            "egress: [{toServices: [{k8sService: {namespace: a}}]}]",
            "egress[0].toServices[0].k8sService.serviceName",
            "give its name",
        ),
        ("egress: [{toEndpoints: [{matchLabels: {'cidr:a': ''}}]}]", "egress[0].toEndpoints[0]", "prefix"),
        (
            "egress: [{toEndpoints: [{matchLabels: {'cidr:10.0.0.0/8': '', app: b}}]}]",
            "egress[0].toEndpoints[0]",
            "alone",
        ),
        (
            "egress: [{toEndpoints: [{matchExpressions: [{key: a, operator: Exists, values: [b]}]}]}]",
            "egress[0].toEndpoints[0].matchExpressions[0]",
            "no values",
        ),
        # Of applications: the fault itself, and not that nothing of the kind is enforced.
        (HTTP % "path: '/(a'", f"{PORTS}.rules.http[0].path", "no regular expression"),
        (HTTP % "method: '(?=G)'", f"{PORTS}.rules.http[0].method", "RE2"),
        (HTTP % r"host: '(a)\1'", f"{PORTS}.rules.http[0].host", "RE2"),
        (HTTP % "headers: ['']", f"{PORTS}.rules.http[0].headers[0]", "empty"),
        (RULES % ("UDP", "http: [{}]"), f"{PORTS}.ports[0].protocol", "TCP"),
        (RULES % ("ANY", "http: [{}]"), f"{PORTS}.ports[0].protocol", "TCP"),
        (RULES % ("SCTP", "dns: [{matchName: a}]"), f"{PORTS}.ports[0].protocol", "UDP"),
        (
            RULES % ("TCP", f"dns: [{{matchName: {'a' * 64}.org}}]"),
            f"{PORTS}.rules.dns[0].matchName",
            "this long",
        ),
        (
            RULES % ("TCP", "kafka: [{role: produce, apiKey: fetch}]"),
            f"{PORTS}.rules.kafka[0]",
            "either role",
        ),
        (RULES % ("TCP", "kafka: [{topic: a/b}]"), f"{PORTS}.rules.kafka[0].topic", "Topics"),
        (RULES % ("TCP", "kafka: [{apiVersion: new}]"), f"{PORTS}.rules.kafka[0].apiVersion", "digits"),
        (
            "egress: [{toPorts: [{ports: [{port: '1', endPort: 9, protocol: TCP}], rules: {http: [{}]}}]}]",
            f"{PORTS}.ports[0].endPort",
            "ranges",
        ),
        (
            "egress: [{toPorts: [{ports: [{port: '0', protocol: TCP}], rules: {http: [{}]}}]}]",
            f"{PORTS}.ports[0].port",
            "certain ports",
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchName: a}]}}]}]",
            "ingress[0].toPorts[0].rules.dns",
            "egress",
        ),
        (
            "egress: [{toFQDNs: [{matchPattern: '%s'}]}]" % ("a." * 130),
            "egress[0].toFQDNs[0].matchPattern",
            "long",
        ),
        (
            "egress: [{toPorts: [{ports: [{port: '1', protocol: TCP}], serverNames: ['a b']}]}]",
            f"{PORTS}.serverNames[0]",
            "DNS name",
        ),
    ],
)
def test_a_fault_is_told_as_what_it_is(part: str, path: str, said: str) -> None:
    ((where, sentence),) = faults(part)
    assert (where, said in sentence) == (path, True), sentence


def test_every_problem_is_told_faults_first() -> None:
    told = faults("egress: [{toFQDNs: []}, {toCIDR: [moon]}, {toCIDR: [moon]}]")
    assert [path for path, _ in told] == ["egress[1].toCIDR[0]", "egress[2].toCIDR[0]", "egress[0].toFQDNs"]


def test_what_is_not_enforced_counts_among_the_kinds_of_peers() -> None:
    told = faults("egress: [{toCIDR: [10.0.0.0/8], toFQDNs: [{matchName: a}]}]")
    assert [path for path, _ in told] == ["egress[0]", "egress[0].toFQDNs"]


def test_rules_and_a_listener_exclude_each_other() -> None:
    both = "rules: {http: [{}]}, listener: {name: l, envoyConfig: {name: e}}"
    told = faults(f"ingress: [{{toPorts: [{{ports: [{{port: '1', protocol: TCP}}], {both}}}]}}]")
    assert told[0][0] == "ingress[0].toPorts[0].listener"


def test_a_clusterwide_policy_uses_nothing_of_a_namespace() -> None:
    listener = "listener: {name: l, envoyConfig: {kind: CiliumEnvoyConfig, name: e}}"
    spec = f"ingress: [{{toPorts: [{{ports: [{{port: '1', protocol: TCP}}], {listener}}}]}}]"
    (problem,) = ccnp(f"{{endpointSelector: {{}}, {spec}}}").problems
    assert problem.path == "spec.ingress[0].toPorts[0].listener.envoyConfig.kind"
    (problem,) = ccnp(
        "{endpointSelector: {}, egress: [{toServices: [{k8sService: {serviceName: a}}]}]}"
    ).problems
    assert problem.path == "spec.egress[0].toServices[0].k8sService.namespace"


def test_policies_for_nodes_need_the_host_firewall() -> None:
    (problem,) = ccnp("{nodeSelector: {}, ingress: [{}]}", host_firewall=False).problems
    assert (problem.path, "--host-firewall" in problem.sentence) == ("spec.nodeSelector", True)
    (problem,) = cnp("{nodeSelector: {}, ingress: [{}]}").problems
    assert (problem.path, "Clusterwide" in problem.sentence) == ("spec.nodeSelector", True)


HTTP_RULE = "{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}"


@pytest.mark.parametrize("side", [f"ingress: [{HTTP_RULE}]", "egressDeny: [{toCIDR: [moon]}]"])
def test_a_node_is_not_shut_by_what_cannot_be_enforced(side: str) -> None:
    """Shut out of its cluster, it would never hear that the policy was mended."""
    parsed = ccnp(f"{{nodeSelector: {{}}, {side}, ingressDeny: [{{fromCIDR: [192.0.2.0/24]}}]}}")
    assert parsed.problems and not parsed.sections
    assert all(problem.sentence.endswith("the policy has no effect.") for problem in parsed.problems)


def test_an_allowance_with_a_problem_allows_nothing_and_the_others_stand() -> None:
    rules = f"[{HTTP_RULE}, {{fromEndpoints: [{{matchLabels: {{app: db}}}}]}}]"
    parsed = cnp(f"{{endpointSelector: {{}}, ingress: {rules}, egress: [{{toFQDNs: []}}]}}")
    assert [problem.sentence.endswith(NOTHING) for problem in parsed.problems] == [True, True]
    assert [refused.ref.path for section in parsed.sections for refused in section.refused] == [
        "spec.ingress[0]",
        "spec.egress[0]",
    ]
    assert [allows(in_force(parsed), peer, direction=IN) for peer in (DB, JOB)] == [True, False]
    assert not allows(in_force(parsed), DB, direction=OUT)


def test_a_denial_with_a_problem_denies_everybody() -> None:
    rules = (
        "egressDeny: [{toCIDR: [moon]}], egress: [{toEntities: [all]}], ingress: [{}, {fromEntities: [all]}]"
    )
    parsed = cnp(f"{{endpointSelector: {{}}, {rules}}}")
    (problem,) = parsed.problems
    assert problem.sentence.endswith(EVERYBODY)
    assert not allows(in_force(parsed), DB, direction=OUT)
    assert allows(in_force(parsed), DB, direction=IN)


@pytest.mark.parametrize(("wish", "isolated"), [("", True), ("enableDefaultDeny: {ingress: false},", False)])
def test_isolation_is_as_written(wish: str, isolated: bool) -> None:
    parsed = cnp(f"{{endpointSelector: {{}}, {wish} ingress: [{HTTP_RULE}]}}")
    assert allows(in_force(parsed), DB) is not isolated


def test_a_network_policy_with_a_problem_closes_too() -> None:
    parsed = netpol(
        "{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{}], ingress: "
        "[{from: [{}, {podSelector: {}}]}, {ports: [{port: 90}]}]}"
    )
    (problem,) = parsed.problems
    assert problem.sentence.endswith(NOTHING)
    assert [allows(in_force(parsed), DB, port) for port in (80, 90)] == [False, True]
    assert allows(in_force(parsed), DB, direction=OUT)


@pytest.mark.parametrize(
    ("action", "closed"), [("Accept", False), ("Deny", True), ("Pass", True)], ids=["accept", "deny", "pass"]
)
@pytest.mark.parametrize("tier", ["Admin", "Baseline"])
def test_an_administrators_rule_with_a_problem_closes_in_its_place(
    tier: str, action: str, closed: bool
) -> None:
    faulty = f"{{action: {action}, from: [{{namespaces: {{}}, pods: {{podSelector: {{}}}}}}]}}"
    first = "{action: Accept, from: [{pods: {podSelector: {matchLabels: {app: db}}}}]}"
    parsed = admin(
        f"{{tier: {tier}, priority: 5, subject: {{namespaces: {{}}}}, ingress: [{first}, {faulty}]}}"
    )
    (problem,) = parsed.problems
    assert problem.sentence.endswith(EVERYBODY if closed else NOTHING)
    (section,) = parsed.sections
    assert section.tier == Tier[tier.upper()]
    assert allows(in_force(parsed), DB)
    assert allows(in_force(parsed), JOB) is not closed


OTHERS = "ingress: [{fromCIDR: [moon]}]"


@pytest.mark.parametrize(
    "parsed",
    [
        cnp(f"{{endpointSelector: {{matchLabels: {{'a b': c}}}}, {OTHERS}}}"),
        cnp(f"{{endpointSelector: {{matchLabels: {{'k8s:io.kubernetes.pod.namespace': x}}}}, {OTHERS}}}"),
        cnp(f"{{nodeSelector: {{}}, {OTHERS}}}"),
        ccnp(f"{{nodeSelector: {{}}, {OTHERS}}}", host_firewall=False),
        netpol("{podSelector: {matchExpressions: [{key: a, operator: In}]}, ingress: [{from: [{}]}]}"),
        admin("{tier: Admin, priority: 1, subject: {}, ingress: [{action: Deny, from: [{}]}]}"),
    ],
)
def test_a_policy_about_nobody_knows_whom_has_no_effect(parsed: Parsed) -> None:
    assert parsed.sections == ()
    whole = [problem for problem in parsed.problems if NO_EFFECT in problem.sentence]
    assert len(whole) == 1
    assert not any(said in p.sentence for p in parsed.problems for said in (NOTHING, EVERYBODY))


def test_of_several_specs_only_those_without_a_subject_have_no_effect() -> None:
    policy = written("CiliumNetworkPolicy", None)
    specs = [{"endpointSelector": {"matchLabels": {"a b": "c"}}, "ingress": [{}]}, {"endpointSelector": {}}]
    body = resource.CiliumNetworkPolicy(
        metadata=policy.body.metadata, specs=msgspec.convert(specs, tuple[resource.Rule, ...])
    )
    parsed = parse(msgspec.structs.replace(policy, body=body))
    assert [section.ref.path for section in parsed.sections] == ["specs[1]"]
    assert parsed.problems[0].sentence.endswith("Until then specs[0] has no effect.")


def test_a_text_that_does_not_fit_is_left_out() -> None:
    parsed = cnp('{endpointSelector: {}, log: {value: "a\\tb"}, ingress: [{fromEntities: [all]}]}')
    (problem,) = parsed.problems
    assert problem.path == "spec.log.value"
    assert problem.sentence.endswith("Until then flows don't carry it.")
    (section,) = parsed.sections
    assert [rule.ref.log for rule in section.rules] == [""]
    assert allows(in_force(parsed), DB)


def test_no_field_of_the_language_is_overlooked() -> None:
    """Whoever adds a field to the resources decides here whether it is read or refused."""
    peers = ("endpoints", "entities", "cidr", "cidr_set", "nodes")
    read_here = {f"{side}_{kind}" for side in ("from", "to") for kind in peers} | {"to_services"}
    rules = (resource.IngressRule, resource.IngressDenyRule, resource.EgressRule, resource.EgressDenyRule)
    assert {field for rule in rules for field in rule.__struct_fields__} == (
        read_here | {"to_ports", "icmps", "authentication"} | set(UNSUPPORTED)
    )
    groups = (resource.PortRule, resource.PortDenyRule)
    assert {field for group in groups for field in group.__struct_fields__} == {"ports", *PROXIED}
    assert set(resource.PortProtocol.__struct_fields__) == {"port", "end_port", "protocol"}
    assert set(resource.CIDRRule.__struct_fields__) == {
        "cidr",
        "cidr_group_ref",
        "cidr_group_selector",
        "except_",
    }
    assert set(resource.ICMPField.__struct_fields__) == {"family", "type"}
    assert set(resource.Service.__struct_fields__) == {"k8s_service", "k8s_service_selector"}
    assert set(resource.Rule.__struct_fields__) == {
        "endpoint_selector",
        "node_selector",
        "ingress",
        "ingress_deny",
        "egress",
        "egress_deny",
        "enable_default_deny",
        "labels",
        "description",
        "log",
        "audit",
    }


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "rule",
    [
        {
            "fromEndpoints": [
                {
                    "matchExpressions": [
                        {"key": "a", "operator": "In", "values": [f"v{n}" for n in range(10_000)]}
                    ]
                }
            ]
        },
        {"fromCIDR": [f"10.{n >> 8}.{n & 255}.0/24" for n in range(10_000)]},
        {
            "fromCIDRSet": [
                {"cidr": "10.0.0.0/8", "except": [f"10.{n >> 8}.{n & 255}.0/24" for n in range(5_000)]}
            ]
        },
        {"toPorts": [{"ports": [{"port": f"p{n}"}]} for n in range(10_000)]},
    ],
)
def test_extreme_policies_are_read_in_time(rule: dict[str, Any]) -> None:
    policy = written("CiliumNetworkPolicy", {"endpointSelector": {}, "ingress": [rule]})
    assert parse(policy).problems == ()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["(" * 4000, "a" * 100_000, "(a{65535}){65535}", "[" * 4000, "\\" * 4001])
def test_hostile_expressions_are_refused_in_time(text: str) -> None:
    spec = {
        "endpointSelector": {},
        "egress": [
            {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": text}]}}]}
        ],
    }
    assert parse(written("CiliumNetworkPolicy", spec)).problems
