"""What became of policies, in their status: node by node, with warnings, and quiet when nothing happens."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cilia.lab import kernel
from cilia.lab.plan import API_PORT
from tests.support.policy_lab import PATHS, PolicyLab, pod, policy, policy_lab
from tests.support.policy_truth import Document, Peer
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

WEB = Peer(name="web", namespace="default", labels={"app": "web"})
CNP = "CiliumNetworkPolicy"
QUIET_SECONDS = 3.0


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    """Two nodes, and a pod on the first."""
    with policy_lab(f"tls{os.getpid() % 1000000}") as made:
        made.start_pods([pod(WEB, "node-1", [("TCP", 8080)])])
        yield made


def read(lab: PolicyLab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.api.get(f"{PATHS[CNP].format('default')}/{name}").json
    return found


def status(lab: PolicyLab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = read(lab, name).get("status", {})
    return found


def condition(lab: PolicyLab, name: str, kind: str) -> dict[str, Any]:
    rows = [row for row in status(lab, name).get("conditions", ()) if row["type"] == kind]
    return rows[0] if rows else {}


def isolating(name: str, app: str, **ingress: Any) -> dict[str, Any]:
    spec = {"endpointSelector": {"matchLabels": {"app": app}}, "ingress": [ingress]}
    return policy(CNP, name, spec, "default")


def test_a_node_says_that_it_enforces_what_concerns_its_pods(lab: PolicyLab) -> None:
    lab.apply(isolating("ours", "web", fromEntities=["world"]))
    until(lambda: status(lab, "ours").get("nodes"), "a node's word")
    found = status(lab, "ours")
    assert set(found["nodes"]) == {"node-1"}
    assert found["nodes"]["node-1"]["ok"] is True
    assert found["nodes"]["node-1"]["enforcing"] is True
    until(lambda: condition(lab, "ours", "Valid").get("status") == "True", "the word of its fields")


def test_nothing_is_written_while_nothing_changes(lab: PolicyLab) -> None:
    until(lambda: status(lab, "ours").get("nodes"), "a node's word")

    def quiet() -> bool:
        before = read(lab, "ours")["metadata"]["resourceVersion"]
        time.sleep(QUIET_SECONDS)
        return bool(read(lab, "ours")["metadata"]["resourceVersion"] == before)

    until(quiet, "the last word about what has changed before")


def test_a_rule_about_nobody_is_warned_of_until_it_is_mended(lab: PolicyLab) -> None:
    lab.apply(isolating("lonely", "web", fromEndpoints=[{"matchLabels": {"app": "nobody-has-this"}}]))
    until(lambda: condition(lab, "lonely", "Plausible"), "a warning")
    found = condition(lab, "lonely", "Plausible")
    assert found["status"] == "False"
    assert "spec.ingress[0].fromEndpoints[0]" in found["message"]
    until(lambda: condition(lab, "lonely", "Valid").get("status") == "True", "the word of its fields")
    lab.apply(isolating("lonely", "web", fromEntities=["world"]))
    until(lambda: condition(lab, "lonely", "Plausible").get("status") == "True", "the warning to go")


def test_an_edit_that_is_refused_shows_at_the_field_and_at_the_node(lab: PolicyLab) -> None:
    lab.apply(isolating("edited", "web", fromEntities=["world"]))
    until(lambda: status(lab, "edited").get("nodes"), "a node's word")
    ports = [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}]
    lab.apply(isolating("edited", "web", toPorts=ports))
    until(lambda: condition(lab, "edited", "Valid").get("status") == "False", "the field to be told")
    assert "spec.ingress[0].toPorts[0].rules: " in condition(lab, "edited", "Valid")["message"]
    # What of it can be enforced is.
    until(lambda: status(lab, "edited")["nodes"]["node-1"]["enforcing"], "the node to enforce the rest")
    aimless = {"endpointSelector": {"matchLabels": {"app": "web", "k8s:": ""}}, "ingress": [{}]}
    lab.apply(policy(CNP, "edited", aimless, "default"))
    until(lambda: not status(lab, "edited")["nodes"]["node-1"]["ok"], "the node to take its word back")
    assert "spec.endpointSelector" in status(lab, "edited")["nodes"]["node-1"]["error"]


def test_a_node_without_pods_of_the_policy_any_more_says_nothing(lab: PolicyLab) -> None:
    lab.apply(isolating("moving", "web", fromEntities=["world"]))
    until(lambda: status(lab, "moving").get("nodes"), "a node's word")
    lab.apply(isolating("moving", "elsewhere", fromEntities=["world"]))
    until(lambda: not status(lab, "moving").get("nodes"), "the node's word to go")


def test_the_api_server_is_an_entity(lab: PolicyLab) -> None:
    def reaches() -> bool:
        with kernel.inside_network(lab.record(WEB).netns), socket.socket() as one:
            one.settimeout(1)
            return one.connect_ex((lab.plan.api_address, API_PORT)) == 0

    until(reaches, "the API server to be reached")
    rules = {"endpointSelector": {"matchLabels": {"app": "web"}}}
    nodes: list[Document] = [{"toEntities": ["remote-node"]}]
    for egress in (
        [{"toEntities": ["kube-apiserver"]}],
        # It is no node here, but outside the cluster.
        [{"toEntities": ["world"]}],
        [{"toCIDR": [f"{lab.plan.api_address}/32"]}],
    ):
        lab.apply(policy(CNP, "to-api", {**rules, "egress": nodes}, "default"))
        until(lambda: not reaches(), "nodes to be all there is")
        lab.apply(policy(CNP, "to-api", {**rules, "egress": egress}, "default"))
        until(reaches, "the API server to be reached")


def test_a_nodes_labels_are_those_of_its_kubernetes_node(lab: PolicyLab) -> None:
    path = "/api/v1/nodes/node-2"

    def labels() -> dict[str, str]:
        found: dict[str, str] = lab.api.get("/apis/cilium.io/v2/ciliumnodes/node-2").json["metadata"][
            "labels"
        ]
        return found

    def relabel(**changes: str | None) -> bool:
        found = lab.api.get(path).json
        merged = {**found["metadata"]["labels"], **changes}
        found["metadata"]["labels"] = {key: value for key, value in merged.items() if value is not None}
        return bool(lab.api.put(path, found).code < 300)

    until(lambda: relabel(rack="r1"), "the node to be labelled")
    until(lambda: labels().get("rack") == "r1", "the label to arrive")
    until(lambda: relabel(rack=None), "the label to be taken away")
    until(lambda: "rack" not in labels(), "the label to go")
