"""Warnings say where a rule can't match what its author probably meant, and go when it can."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cilia.model.endpoint import NamedPort
from cilia.model.node import Node
from cilia.model.policy import PolicyProblem
from cilia.schema import CidrGroupRow
from tests.support.policy_cases import World, endpoint, pod, policy

WEB, DB = pod(300, "red", "web"), pod(301, "red", "db")
NODES = [
    Node(name="one", addresses=("172.18.0.2",), pod_cidrs=("10.0.1.0/24",)),
    Node(name="two", addresses=("172.18.0.3",), router_addresses=("10.0.2.1",), pod_cidrs=("10.0.2.0/24",)),
]


def world() -> World:
    made = World()
    made.inputs.cluster_identities.replace([WEB, DB])
    made.inputs.nodes.replace(NODES)
    web = msgspec.structs.replace(endpoint(1, WEB.id), named_ports=(NamedPort("http", 80),))
    made.desired.endpoints.put(web)
    return made


def warnings(made: World) -> list[PolicyProblem]:
    made.step()
    while made.policies.review():
        pass
    return [problem for state in made.desired.policy_states for problem in state.warnings]


def cnp(**spec: Any) -> Any:
    return policy("CiliumNetworkPolicy", "p", {"endpointSelector": {}} | spec)


def to(**rule: Any) -> Any:
    return cnp(egress=[rule])


@pytest.mark.parametrize(
    ("action", "words"),
    [("Deny", "all of these are denied"), ("Accept", "none of these"), ("Pass", "left to the next tier")],
)
def test_networks_that_hold_a_part_of_pods_alike(action: str, words: str) -> None:
    egress = [{"action": action, "to": [{"networks": ["10.0.0.0/16"]}]}]
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": egress}
    made = world()
    made.inputs.policies.put(policy("ClusterNetworkPolicy", "p", spec))
    made.desired.endpoints.put(endpoint(2, WEB.id, ipv4="10.0.1.7"))
    assert warnings(made) == [], "all of its addresses are within"
    made.desired.endpoints.put(endpoint(3, WEB.id, ipv4="10.1.1.7"))
    (warning,) = warnings(made)
    assert warning.path == "spec.egress[0].to[0]"
    assert words in warning.sentence
    made.desired.endpoints.put(endpoint(2, WEB.id, ipv4="10.1.1.8"))
    assert warnings(made) == []


@pytest.mark.parametrize(
    ("written", "path", "words"),
    [
        (
            cnp(endpointSelector={"matchLabels": {"app": "nobody"}}, ingress=[{}]),
            "spec.endpointSelector",
            "No pod has these labels",
        ),
        (
            policy("NetworkPolicy", "p", {"podSelector": {"matchLabels": {"app": "x"}}}),
            "spec.podSelector",
            "No pod",
        ),
        (
            to(toEndpoints=[{"matchLabels": {"app": "x"}}]),
            "spec.egress[0].toEndpoints[0]",
            "the rule is about nobody",
        ),
        (to(toCIDR=["10.0.2.128/25"]), "spec.egress[0].toCIDR[0]", "overlaps the pods of node two"),
        (to(toCIDR=["10.0.0.0/8"]), "spec.egress[0].toCIDR[0]", "overlaps the pods of node one"),
        (to(toCIDR=["172.18.0.3/32"]), "spec.egress[0].toCIDR[0]", "covers node two"),
        (to(toCIDRSet=[{"cidrGroupRef": "g"}]), "spec.egress[0].toCIDRSet[0]", "no CiliumCIDRGroup g"),
        (
            to(toServices=[{"k8sService": {"serviceName": "db", "namespace": "blue"}}]),
            "spec.egress[0].toServices[0]",
            "no Service blue/db: the rule allows nobody until",
        ),
        (
            to(toPorts=[{"ports": [{"port": "metrics", "protocol": "TCP"}]}]),
            "spec.egress[0]",
            "No pod calls a TCP port 'metrics'",
        ),
        (
            to(toPorts=[{"ports": [{"port": "metrics"}]}]),
            "spec.egress[0]",
            "No pod calls a TCP or UDP or SCTP port 'metrics'",
        ),
    ],
)
def test_a_warning(written: Any, path: str, words: str) -> None:
    made = world()
    made.inputs.policies.put(written)
    (found,) = warnings(made)
    assert found.path.startswith(path)
    assert words in found.sentence


@pytest.mark.parametrize(
    "written",
    [
        cnp(ingress=[{"fromEndpoints": [{"matchLabels": {"app": "db"}}]}]),
        to(toCIDR=["0.0.0.0/0", "192.0.2.0/24", "::/0"]),
        to(
            toCIDRSet=[
                {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/16"]},
                {"cidr": "172.16.0.0/12", "except": ["172.18.0.0/24"]},
            ]
        ),
        to(toPorts=[{"ports": [{"port": "http", "protocol": "TCP"}]}]),
        to(toPorts=[{"ports": [{"port": "http"}]}]),
        to(toEntities=["world", "host", "remote-node"]),
    ],
)
def test_nothing_to_warn_of(written: Any) -> None:
    made = world()
    made.inputs.policies.put(written)
    assert warnings(made) == []


def test_a_warning_goes_with_its_reason() -> None:
    made = world()
    made.inputs.policies.put(to(toCIDRSet=[{"cidrGroupRef": "g"}]))
    assert warnings(made)
    made.inputs.cidr_groups.put(CidrGroupRow(name="g", prefixes=("192.0.2.0/24",)))
    assert warnings(made) == []
    made.inputs.cidr_groups.delete("g")
    assert warnings(made)
    made.inputs.policies.put(to(toCIDRSet=[{"cidrGroupRef": "g"}, {"cidr": "10.0.0.0/33"}]))
    assert warnings(made) == []


def test_reviews_take_turns() -> None:
    made = world()
    for number in range(40):
        selector = {"matchLabels": {"app": f"x{number}"}}
        made.inputs.policies.put(
            policy("CiliumNetworkPolicy", f"p{number}", {"endpointSelector": selector, "ingress": [{}]})
        )
    made.step()
    assert made.policies.review(30)
    assert sum(bool(state.warnings) for state in made.desired.policy_states) == 30
    made.inputs.cluster_identities.put(pod(310, "red", "x1"))
    made.step()
    made.policies.review(10)
    assert sum(bool(state.warnings) for state in made.desired.policy_states) == 40
    while made.policies.review():
        pass
    assert sum(bool(state.warnings) for state in made.desired.policy_states) == 39


def test_many_warnings_are_cut() -> None:
    made = world()
    rules = [{"toEndpoints": [{"matchLabels": {"app": f"x{number}"}}]} for number in range(30)]
    made.inputs.policies.put(cnp(egress=rules))
    found = warnings(made)
    assert len(found) == 16
    assert found[-1].sentence.startswith("15 more warnings")
