"""The kinds that policies are made of, as users write them, against a server that got our definitions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from cilia.model.resources import crd
from tests.support.api_client import Client
from tests.support.policy_examples import examples

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
GROUPS = "/apis/cilium.io/{}/ciliumcidrgroups"
ADMIN = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "CiliumNetworkPolicy": "ciliumnetworkpolicies",
    "CiliumClusterwideNetworkPolicy": "ciliumclusterwidenetworkpolicies",
    "CiliumCIDRGroup": "ciliumcidrgroups",
    "ClusterNetworkPolicy": "clusternetworkpolicies",
}
CCNP = "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies"


def established(api: Client, name: str) -> bool:
    conditions = api.get(f"{DEFINITIONS}/{name}").json.get("status", {}).get("conditions", [])
    return any(row["type"] == "Established" and row["status"] == "True" for row in conditions)


@pytest.fixture(scope="module")
def defined(api: Client) -> Iterator[Client]:
    """A server that knows the kinds; those that were not there before are removed again."""
    made = []
    for definition in crd.all_definitions():
        answer = api.post(DEFINITIONS, definition)
        assert answer.code in (201, 409), answer.json
        if answer.code == 201:
            made.append(definition["metadata"]["name"])
    end = time.monotonic() + 60
    while not all(established(api, name) for name in made):
        assert time.monotonic() < end, "the definitions were not established within 60 s"
        time.sleep(0.05)
    yield api
    for name in made:
        api.delete(f"{DEFINITIONS}/{name}")
        api.until_gone(f"{DEFINITIONS}/{name}")


@pytest.mark.parametrize("version", ["v2alpha1", "v2"])
def test_a_group_of_prefixes_in_either_version(defined: Client, version: str) -> None:
    path, other = GROUPS.format(version), GROUPS.format({"v2": "v2alpha1"}.get(version, "v2"))
    body = {"metadata": {"name": f"offices-{version}"}, "spec": {"externalCIDRs": ["10.0.0.0/8", "::/0"]}}
    assert (
        defined.post(path, {"apiVersion": f"cilium.io/{version}", "kind": "CiliumCIDRGroup", **body}).code
        == 201
    )
    try:
        found = defined.get(f"{other}/offices-{version}").json
        assert found["spec"] == body["spec"]
        wrong = {"metadata": {"name": "wrong"}, "spec": {"externalCIDRs": ["moon"]}}
        refused = defined.post(
            path, {"apiVersion": f"cilium.io/{version}", "kind": "CiliumCIDRGroup", **wrong}
        )
        assert (refused.code, "externalCIDRs[0]" in refused.json["message"]) == (422, True)
    finally:
        defined.delete(f"{path}/offices-{version}")


def admin(**spec: Any) -> dict[str, Any]:
    base = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "quarantine"},
        "spec": base | spec,
    }


def test_a_policy_of_the_administrator(defined: Client) -> None:
    rule = {"action": "Deny", "to": [{"networks": ["10.0.0.0/8"]}], "protocols": [{"tcp": {}}]}
    refused = defined.post(ADMIN, admin(egress=[rule]))
    assert (refused.code, "protocols[0].tcp" in refused.json["message"]) == (422, True)
    rule["protocols"] = [{"tcp": {"destinationPort": {"number": 25}}}]
    assert defined.post(ADMIN, admin(egress=[rule])).code == 201
    try:
        condition = {
            "type": "Valid",
            "status": "True",
            "reason": "Accepted",
            "message": "in force",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        answer = defined.merge(f"{ADMIN}/quarantine/status", {"status": {"conditions": [condition]}})
        assert answer.json["status"]["conditions"] == [condition]
        assert answer.json["spec"]["egress"] == [rule]
    finally:
        defined.delete(f"{ADMIN}/quarantine")


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"subject": {}}, "spec.subject"),
        ({"priority": 1001}, "spec.priority"),
        ({"tier": "Normal"}, "spec.tier"),
        ({"ingress": [{"action": "Deny", "from": []}]}, "spec.ingress[0].from"),
        ({"ingress": [{"action": "Deny", "from": [{}]}]}, "spec.ingress[0].from[0]"),
        ({"ingress": [{"action": "Deny", "from": [{"namespaces": {}}] * 26}]}, "spec.ingress[0].from"),
    ],
)
def test_bounds_of_the_administrators_kind(defined: Client, spec: dict[str, Any], path: str) -> None:
    refused = defined.post(ADMIN, admin(**spec))
    assert (refused.code, path in refused.json["message"]) == (422, True), refused.json


def test_every_example_of_the_documentation_is_accepted(defined: Client, namespace: str) -> None:
    for document in examples():
        plural = PLURALS[document["kind"]]
        within = f"/namespaces/{namespace}" if "namespace" in document["metadata"] else ""
        body = {**document, "metadata": {**document["metadata"]}}
        body["metadata"].pop("namespace", None)
        path = f"/apis/{document['apiVersion']}{within}/{plural}"
        answer = defined.post(path, body, fieldValidation="Strict", dryRun="All")
        assert answer.code == 201, answer.json


def test_what_is_ours_in_a_clusterwide_policy_is_kept(defined: Client) -> None:
    spec = {
        "endpointSelector": {},
        "audit": True,
        "log": {"value": "by order"},
        "egress": [{"toCIDRSet": [{"cidrGroupSelector": {"matchLabels": {"kind": "office"}}}]}],
        "ingress": [{"toPorts": [{"ports": [{"protocol": "VRRP"}]}]}],
    }
    body = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "watched"},
        "spec": spec,
    }
    assert defined.post(CCNP, body).json["spec"] == spec
    try:
        nodes = {"n1": {"ok": True, "enforcing": True, "localPolicyRevision": 7}}
        answer = defined.merge(f"{CCNP}/watched/status", {"status": {"nodes": nodes}})
        assert answer.json["status"]["nodes"] == nodes
    finally:
        defined.delete(f"{CCNP}/watched")
