"""What no policy can say, and what is not enforced yet: refused with the path of the part at fault."""

from __future__ import annotations

from typing import Any

import pytest

from cilia.control.policy.layer7 import PROXIED
from cilia.control.policy.parse import parse
from cilia.control.policy.parse_cilium import UNSUPPORTED
from cilia.model.resources import cilium_policy as resource
from tests.support.policy_reading import ccnp, cnp, written

HTTP = "egress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{%s}]}}]}]"
RULES = "egress: [{toPorts: [{ports: [{port: '53', protocol: %s}], rules: {%s}}]}]"
PORTS = "egress[0].toPorts[0]"


def faults(text: str) -> list[tuple[str, str]]:
    parsed = cnp(f"{{endpointSelector: {{}}, {text}}}")
    assert parsed.sections == ()
    assert all(problem.sentence.endswith(".") for problem in parsed.problems)
    return [(problem.path.removeprefix("spec."), problem.sentence) for problem in parsed.problems]


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
        ('log: {value: "a\\tb"}, ingress: [{}]', "log.value", "printable"),
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
