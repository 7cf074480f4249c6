"""Policies decode whole, keep absent and empty apart, and refuse what they do not know with its path."""

import pytest

from cilia.cluster.store import Invalid, decode
from cilia.model.resources.base import LabelSelector
from cilia.model.resources.cilium_policy import CiliumNetworkPolicy
from cilia.model.resources.network_policy import NetworkPolicy

META = b'"metadata": {"name": "p", "namespace": "n", "generation": 3, "managedFields": [{"x": 1}]}'


def cnp(rule: bytes) -> CiliumNetworkPolicy:
    return decode(
        b'{"apiVersion": "cilium.io/v2", "kind": "X", %s, "spec": %s}' % (META, rule), CiliumNetworkPolicy
    )


def test_a_rule_keeps_absent_and_empty_apart() -> None:
    policy = cnp(b'{"endpointSelector": {}, "ingress": [{"fromEndpoints": []}, {}]}')
    assert policy.spec is not None
    assert policy.spec.endpoint_selector == LabelSelector()
    assert policy.spec.ingress is not None
    empty, absent = policy.spec.ingress
    assert empty.from_endpoints == ()
    assert absent.from_endpoints is None
    assert policy.spec.egress is None


def test_every_name_of_the_language_is_understood() -> None:
    policy = cnp(
        b"""{"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
        "egress": [{"toFQDNs": [{"matchName": "example.org."}], "toCIDRSet": [{"cidr": "10.0.0.0/8",
          "except": ["10.1.0.0/16"]}, {"cidrGroupRef": "g"}],
          "toServices": [{"k8sService": {"serviceName": "s"}}],
          "toGroups": [{"aws": {"securityGroupsIds": ["x"]}}], "authentication": {"mode": "required"},
          "toPorts": [{"ports": [{"port": "80", "endPort": 90, "protocol": "TCP"}],
            "terminatingTLS": {"secret": {"name": "s"}, "trustedCA": "ca"},
            "rules": {"kafka": [{"clientID": "c", "apiKey": "produce"}]}}]}],
        "egressDeny": [{"icmps": [{"fields": [{"type": 8}, {"family": "IPv6", "type": "EchoRequest"}]}]}],
        "enableDefaultDeny": {"ingress": false}}"""
    )
    assert policy.spec is not None
    assert policy.spec.egress is not None
    rule = policy.spec.egress[0]
    assert rule.to_cidr_set is not None
    assert rule.to_cidr_set[0].except_ == ("10.1.0.0/16",)
    assert rule.to_groups is not None
    assert rule.to_groups[0].aws is not None
    assert rule.to_groups[0].aws.security_groups_ids == ("x",)
    assert rule.to_ports is not None
    assert rule.to_ports[0].terminating_tls is not None
    assert rule.to_ports[0].terminating_tls.trusted_ca == "ca"


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (b'{"endpointSelector": {}, "ingress": [{"fromSpace": []}]}', "`$.spec.ingress[0]`"),
        (b"{}", "exactly one of endpointSelector, nodeSelector must be set, found none"),
        (b'{"endpointSelector": {}, "nodeSelector": {}}', "found endpointSelector and nodeSelector"),
        (b'{"endpointSelector": {}, "ingress": [{"fromEntities": ["moon"]}]}', "fromEntities[0]"),
        (b'{"endpointSelector": {"matchLabels": {"a": "-"}}}', "matchLabels"),
        (
            b'{"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": "a..b"}]}]}',
            "toFQDNs[0].matchName",
        ),
        (
            b'{"endpointSelector": {}, "ingress": [{"toPorts": [{"ports": [{"port": "80x-"}]}]}]}',
            "ports[0].port",
        ),
        (
            b'{"endpointSelector": {}, "ingress": [{"toPorts": [{"ports": [{"port": "99999"}]}]}]}',
            "ports[0].port",
        ),
        (
            b'{"endpointSelector": {}, "ingress": [{"toPorts": [{"ports": [{"port": "80\\n"}]}]}]}',
            "ports[0].port",
        ),
    ],
)
def test_what_can_not_be_understood_is_refused_with_its_path(rule: bytes, complaint: str) -> None:
    with pytest.raises(Invalid) as refusal:
        cnp(rule)
    assert complaint in str(refusal.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("field", ["matchName", "matchPattern"])
def test_a_hostile_name_is_refused_without_backtracking(field: str) -> None:
    with pytest.raises(Invalid):
        cnp(
            b'{"endpointSelector": {}, "egress": [{"toFQDNs": [{"%s": "%s!"}]}]}'
            % (field.encode(), b"a" * 50_000)
        )


def test_network_policy_ports_are_numbers_or_names() -> None:
    policy = decode(
        b"""{"metadata": {"name": "p"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
        "ports": [{"port": 80}, {"protocol": "UDP", "port": "dns"}, {"port": 1, "endPort": 9}]}]}}""",
        NetworkPolicy,
    )
    assert policy.spec.ingress is not None
    rule = policy.spec.ingress[0]
    assert rule.ports is not None
    assert [(port.protocol, port.port, port.end_port) for port in rule.ports] == [
        ("TCP", 80, None),
        ("UDP", "dns", None),
        ("TCP", 1, 9),
    ]
    assert rule.from_ is not None
    assert rule.from_[0].ip_block is not None
