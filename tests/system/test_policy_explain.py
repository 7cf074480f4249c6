"""`cilia policy explain`, `check`, `selectors` and the accounting, on a node with real traffic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.agent_node import UNANSWERED, AgentNode, agent_node
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

CILIA = (sys.executable, "-P", "-c", "from cilia.apps.ctl import main; main()")
HUBBLE = (sys.executable, "-P", "-m", "cilia.cli.observe")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentNode]:
    """A server that only admits one of two clients, on one port."""
    with agent_node("explain", tmp_path_factory.mktemp("explain")) as made:
        for name in ("server", "client", "stranger"):
            made.pod(name, {"app": name})
        made.write("web", policy())
        made.start()
        made.addresses = {name: made.add(name) for name in ("server", "client", "stranger")}
        made.serve("server")
        until(
            lambda: made.reaches("client", made.addresses["server"][0], timeout=UNANSWERED),
            "the client to be let in",
        )
        yield made


def policy(app: str = "client", port: int = 8080, name: str = "web") -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "server"}},
            "log": {"value": "let in"},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"app": app}}],
                    "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}]}],
                }
            ],
        },
    }


def ctl(node: AgentNode, *words: str, stdin: str = "", status: int = 0) -> str:
    """The command's output; it must end with `status`."""
    environment = {
        **os.environ,
        "CILIA_AGENT_SOCKET": str(node.state / "agent.sock"),
        "CILIA_HUBBLE_SOCKET": f"unix://{node.state}/hubble.sock",
    }
    done = subprocess.run(
        [*CILIA, *words],
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def explain(node: AgentNode, *words: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ctl(node, "policy", "explain", "-o", "json", *words))
    return told


def ends(source: str, destination: str = "default/server", port: str = "8080") -> list[str]:
    return ["--from", source, "--to", destination, "--port", port]


def test_an_allowed_packet_names_its_rule(node: AgentNode) -> None:
    told = explain(node, *ends("default/client"))
    assert told["verdict"] == "allow"
    egress, ingress = told["sides"]
    assert (egress["direction"], egress["default"]) == ("egress", True)
    (rule,) = ingress["deciding"]
    assert (rule["name"], rule["path"]) == ("web", "spec.ingress[0].fromEndpoints[0]")
    assert yaml.safe_load(rule["yaml"])["fromEndpoints"] == [{"matchLabels": {"app": "client"}}]
    assert rule["peer"]["members"][0]["pods"] == ["default/client"]
    assert "attached as lxc" in told["source"]["origin"]


@pytest.mark.parametrize(("source", "port"), [("default/stranger", "8080"), ("default/client", "81/UDP")])
def test_a_remedy_allows_what_it_promises(node: AgentNode, source: str, port: str) -> None:
    told = explain(node, *ends(source, port=port))
    assert told["verdict"] == "deny"
    ingress = told["sides"][1]
    assert ingress["default"]
    assert [rule["action"] for rule in ingress["deciding"]] == ["isolate"]
    assert ingress["misses"]
    assert ingress["remedy"]["verified"]


def test_a_remedy_applied_opens_the_way(node: AgentNode) -> None:
    address = node.addresses["server"][0]
    assert not node.reaches("stranger", address, timeout=UNANSWERED)
    told = explain(node, *ends("default/stranger"))
    (change,) = told["sides"][1]["remedy"]["changes"]
    changed = policy()
    changed["spec"]["ingress"] += yaml.safe_load(change["yaml"])
    node.write("web", changed)
    until(lambda: node.reaches("stranger", address, timeout=UNANSWERED), "the remedy to work")
    node.write("web", policy())
    until(lambda: not node.reaches("stranger", address, timeout=UNANSWERED), "the policy to be as before")


def test_ends_of_all_kinds(node: AgentNode) -> None:
    address = node.addresses["client"][0]
    endpoint = next(
        e for e in node.client.endpoints() if e.status.external_identifiers.pod_name.endswith("/client")
    )
    for source in (address, str(endpoint.id), f"identity:{endpoint.status.identity.id}", "app=client"):
        assert explain(node, *ends(source))["verdict"] == "allow", source
    assert explain(node, *ends("host"))["sides"][0]["deciding"][0]["name"] == "allow-localhost"
    assert explain(node, *ends("world"))["verdict"] == "deny"
    outside = explain(node, *ends("203.0.113.9"))
    assert outside["source"]["origin"].endswith("the world")
    assert yaml.safe_load(outside["sides"][0]["remedy"]["changes"][0]["yaml"])[0]["fromCIDR"] == [
        "203.0.113.9/32"
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (ends("default/nobody"), "No pod default/nobody has an endpoint"),
        (ends("???"), "names nobody"),
        (ends("app=none"), "No identity has the labels"),
        (ends("default/client", port="http"), "has no port called"),
        (ends("default/client", port="99999"), "is not below"),
        (["00000000-0000-4000-8000-000000000001"], "is no flow of this agent"),
        ([], "Say what to explain"),
    ],
)
def test_what_cannot_be_explained_is_said(node: AgentNode, words: list[str], sentence: str) -> None:
    environment = {**os.environ, "CILIA_AGENT_SOCKET": str(node.state / "agent.sock")}
    done = subprocess.run(
        [*CILIA, "policy", "explain", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def flows(node: AgentNode, *words: str) -> list[dict[str, Any]]:
    lines = ctl(node, "observe", "-o", "json", "--last", "100", *words).splitlines()
    return [json.loads(line)["flow"] for line in lines if '"flow"' in line]


def test_a_dropped_flow_names_its_policy_and_is_explained(node: AgentNode) -> None:
    assert not node.reaches("stranger", node.addresses["server"][0], timeout=UNANSWERED)
    found: list[dict[str, Any]] = []

    def dropped() -> bool:
        found[:] = flows(node, "--verdict", "DROPPED", "--from-pod", "default/stranger")
        return bool(found)

    until(dropped, "the drop to be seen")
    flow = found[-1]
    (denied,) = flow["ingress_denied_by"]
    assert (denied["kind"], denied["name"], denied["namespace"]) == ("CiliumNetworkPolicy", "web", "default")
    assert "cilia:rule=spec" in denied["labels"]
    assert int(denied["revision"]) > 0
    told = explain(node, flow["uuid"])
    assert told["then"]["verdict"] == "denied"
    assert told["then"]["reason"] == "POLICY_DENIED"
    assert told["then"]["ingress"][0].startswith("default deny of CiliumNetworkPolicy default/web@")
    assert (told["source"]["pod"], told["destination"]["pod"]) == ("default/stranger", "default/server")
    assert (told["protocol"], told["port"], told["verdict"]) == ("TCP", "8080", "deny")
    shown = ctl(node, "observe", "--verdict", "DROPPED", "--last", "1")
    assert "by default deny of CiliumNetworkPolicy default/web spec" in shown


def test_an_allowed_flow_carries_its_rule_and_log(node: AgentNode) -> None:
    assert node.reaches("client", node.addresses["server"][0])
    found: list[dict[str, Any]] = []

    def seen() -> bool:
        found[:] = [
            flow
            for flow in flows(node, "--from-pod", "default/client", "--to-pod", "default/server")
            if flow.get("ingress_allowed_by")
        ]
        return bool(found)

    until(seen, "the flow to be seen")
    assert found[-1]["ingress_allowed_by"][0]["name"] == "web"
    told = explain(node, found[-1]["uuid"])
    assert (told["then"]["verdict"], told["verdict"]) == ("forwarded", "allow")


def check(node: AgentNode, *documents: dict[str, Any], words: tuple[str, ...] = (), status: int = 0) -> Any:
    text = yaml.safe_dump_all(documents)
    return json.loads(ctl(node, "policy", "check", "-o", "json", *words, "-", stdin=text, status=status))


def test_checking_what_changes_nothing_finds_nothing(node: AgentNode) -> None:
    report = check(node, policy())
    assert report["replaced"] == ["CiliumNetworkPolicy default/web"]
    assert (report["flows"], report["pairs"]) == ([], [])


def test_a_check_finds_the_flows_that_would_be_denied(node: AgentNode) -> None:
    assert node.reaches("client", node.addresses["server"][0])
    before = node.client.policies()

    def found() -> bool:
        report = check(node, policy(app="other"), status=1)
        return any(row["source"] == "default/client" and row["port"] == "8080" for row in report["flows"])

    until(found, "the flow to be found")
    report = check(node, policy(app="other"), status=1)
    row = report["flows"][0]
    assert (row["before"], row["after"], row["direction"]) == ("allow", "deny", "ingress")
    assert row["after-rules"] == ["default deny of CiliumNetworkPolicy default/web spec"]
    assert any("default/client" in row["source"] and row["port"] == "8080" for row in report["pairs"])
    assert node.client.policies() == before


def test_a_check_tells_what_would_be_opened(node: AgentNode) -> None:
    report = check(node, policy(app="stranger", name="more"), words=("--fail-on", "newly-allowed"), status=1)
    assert report["added"] == ["CiliumNetworkPolicy default/more"]
    (row,) = [row for row in report["pairs"] if "default/stranger" in row["source"]]
    assert (row["before"], row["after"], row["port"]) == ("deny", "allow", "8080")
    check(node, policy(app="stranger", name="more"), words=("--fail-on", "newly-denied"))


def test_a_removal_is_checked(node: AgentNode) -> None:
    words = (
        "policy",
        "check",
        "-o",
        "json",
        "--delete",
        "CiliumNetworkPolicy/default/web",
        "--fail-on",
        "any",
    )
    report = json.loads(ctl(node, *words, status=1))
    assert report["removed"] == ["CiliumNetworkPolicy default/web"]
    assert any("default/stranger" in row["source"] and row["after"] == "allow" for row in report["pairs"])


def test_invalid_policies_are_told_with_their_paths(node: AgentNode) -> None:
    broken = policy()
    broken["spec"]["ingress"][0]["fromCIDR"] = ["nonsense"]
    report = check(node, broken, {"kind": "Nothing"}, status=2)
    assert len(report["problems"]) >= 1
    text = ctl(node, "policy", "check", "-", stdin=yaml.safe_dump(broken), status=2)
    assert "spec.ingress[0]" in text


def test_selectors_tell_whom_they_mean(node: AgentNode) -> None:
    views = json.loads(ctl(node, "policy", "selectors", "-o", "json"))
    (view,) = [view for view in views if "app=client" in view["selector"]]
    client = next(
        e for e in node.client.endpoints() if e.status.external_identifiers.pod_name == "default/client"
    )
    assert view["identities"] == [client.status.identity.id]
    assert [user["path"] for user in view["users"]] == ["spec.ingress[0].fromEndpoints[0]"]


def test_audit_lets_pass_and_names_what_would_have_denied(node: AgentNode) -> None:
    address = node.addresses["server"][0]
    noted = policy()
    noted["metadata"]["annotations"] = {"policy.cilia.io/audit": "true"}
    node.write("web", noted)
    until(lambda: node.reaches("stranger", address, timeout=UNANSWERED), "audit to let the stranger in")
    found: list[dict[str, Any]] = []

    def seen() -> bool:
        found[:] = flows(node, "--verdict", "AUDIT", "--from-pod", "default/stranger")
        return bool(found)

    until(seen, "the note")
    assert [rule["name"] for rule in found[-1]["ingress_denied_by"]] == ["web"]
    assert not found[-1].get("ingress_allowed_by")
    told = explain(node, found[-1]["uuid"])
    assert (told["then"]["verdict"], told["verdict"]) == ("audit", "audit")
    assert told["sides"][1]["reason"].endswith("AUDIT: the policy is in audit.")
    shown = ctl(node, "observe", "--verdict", "AUDIT", "--last", "1")
    assert "would be denied by default deny of CiliumNetworkPolicy default/web spec" in shown
    report = check(node, policy(), status=1)
    assert any((row["before"], row["after"]) == ("audit", "deny") for row in report["flows"])
    node.write("web", policy())
    until(lambda: not node.reaches("stranger", address, timeout=UNANSWERED), "the policy to be as before")


def test_ends_on_another_node(node: AgentNode) -> None:
    labels = [
        "k8s:app=client",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.kubernetes.pod.namespace=far",
    ]
    security = dict(label.split("=") for label in labels)
    meta = {"name": "there", "namespace": "far"}
    node.write(
        "far",
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNode",
            "metadata": {"name": "node-2"},
            "spec": {
                "addresses": [{"type": "InternalIP", "ip": "192.0.2.2"}],
                "ipam": {"podCIDRs": ["10.78.0.0/24"]},
            },
        },
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumIdentity",
            "metadata": {"name": "7777"},
            "security-labels": security,
        },
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumEndpoint",
            "metadata": meta,
            "status": {
                "id": 9,
                "identity": {"id": 7777, "labels": labels},
                "networking": {"node": "192.0.2.2", "addressing": [{"ipv4": "10.78.0.9"}]},
            },
        },
    )
    until(lambda: any(e.cidr == "10.78.0.9/32" for e in node.client.addresses()), "the pod to be known")
    for source in ("far/there", "10.78.0.9", "7777"):
        told = explain(node, *ends(source))
        assert told["verdict"] == "deny", source
        (change,) = told["sides"][-1]["remedy"]["changes"]
        assert yaml.safe_load(change["yaml"])[0]["fromEndpoints"] == [
            {"matchLabels": {"app": "client", "k8s:io.kubernetes.pod.namespace": "far"}}
        ]
    told = explain(node, *ends("far/there"))
    assert told["source"]["node"] == "node-2"
    assert told["source"]["origin"] == "CiliumEndpoint far/there of node node-2 (192.0.2.2)"
    assert any("audit switched on there" in note for note in told["notes"])
    told = explain(node, *ends("default/client", "far/there", "443"))
    assert [side["subject"] for side in told["sides"]] == ["default/client", "far/there"]
    node.forget("far")


def test_entries_count_what_they_let_pass_and_what_they_stop(node: AgentNode) -> None:
    address = node.addresses["server"][0]
    assert node.reaches("client", address)
    assert not node.reaches("stranger", address, timeout=UNANSWERED)
    told = json.loads(ctl(node, "endpoint", "policy", "default/server", "-o", "json"))
    assert told["counted-since"]
    allowed = next(
        e for e in told["entries"] if e["rules"] and e["rules"][0]["path"].startswith("spec.ingress")
    )
    stopped = next(e for e in told["entries"] if e["default"] and e["direction"] == "ingress")
    for entry in (allowed, stopped):
        assert entry["hits"] >= 1
        assert entry["bytes"] >= 40 * entry["hits"]
        assert entry["last-hit"] >= told["counted-since"]
    assert allowed["packets"] > allowed["hits"]
    assert stopped["packets"] == stopped["hits"]


def test_rules_never_used_are_listed(node: AgentNode) -> None:
    assert node.reaches("client", node.addresses["server"][0])
    more = policy(app="nobody", name="unused")
    node.write("unused", more)
    until(lambda: "unused" in ctl(node, "policy", "get", "--unused"), "the rule to be in force")
    found = json.loads(ctl(node, "policy", "get", "--unused", "-o", "json"))
    assert [rule["name"] for rule in found["rules"]] == ["unused"]
    listed = json.loads(ctl(node, "policy", "get", "-o", "json"))["policies"]
    assert [(row["name"], row["state"], row["endpoints"]) for row in listed] == [
        ("unused", "valid", 1),
        ("web", "valid", 1),
    ]
    node.forget("unused")
    until(lambda: "unused" not in ctl(node, "policy", "get"), "the policy to be gone")


def test_people_get_a_tree(node: AgentNode) -> None:
    text = ctl(node, "policy", "explain", *ends("default/stranger"))
    assert text.startswith("DENY  default/stranger → default/server  TCP 8080")
    assert "To allow it (tried: it would pass this side)" in text
    text = ctl(node, "policy", "check", "-", stdin=yaml.safe_dump(policy(app="other")), status=1)
    assert "Newly denied: " in text
