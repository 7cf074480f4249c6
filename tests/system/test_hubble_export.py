"""Exporters of a real agent: what pods do is in files, as its settings and its file of flow logs say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_node import UNANSWERED, AgentNode, agent_node
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

FLOW_LOGS = """
flowLogs:
- name: drops
  filePath: {0}/drops.log
  includeFilters: [{{verdict: [DROPPED]}}]
  fieldMask: [verdict, drop_reason_desc, source.pod_name, destination.pod_name, ingress_denied_by]
- name: pairs
  filePath: {0}/pairs.log
  fieldAggregate: [source.pod_name, destination.pod_name, verdict]
  aggregationInterval: 1s
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentNode]:
    directory = tmp_path_factory.mktemp("export")
    with agent_node("cilexp", directory) as node:
        for name in ("client", "server"):
            node.pod(name, {"app": name})
        node.start(
            hubble_export_file_path=str(directory / "all.log"),
            hubble_export_denylist='{"source_label":["reserved:host"]}',
            hubble_flowlogs_config_path=str(directory / "flowlogs.yaml"),
        )
        node.addresses = {name: node.add(name) for name in ("client", "server")}
        node.serve("server")
        yield node


def lines(path: Path) -> list[Any]:
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in whole.splitlines()]


def flows(path: Path) -> list[Any]:
    return [line["flow"] for line in lines(path) if "flow" in line]


def between(path: Path, source: str, destination: str) -> list[Any]:
    return [
        flow
        for flow in flows(path)
        if flow.get("source", {}).get("pod_name") == source
        and flow.get("destination", {}).get("pod_name") == destination
    ]


def test_what_pods_do_is_in_the_file(node: AgentNode) -> None:
    path = node.directory / "all.log"
    assert node.reaches("client", node.addresses["server"][0])
    until(lambda: between(path, "client", "server"), "lines")
    flow = between(path, "client", "server")[0]
    assert flow["verdict"] == "FORWARDED"
    assert flow["l4"]["TCP"]["destination_port"] == 8080
    assert "k8s:app=client" in flow["source"]["labels"]
    assert {line["node_name"] for line in lines(path)} == {"default/node-1"}
    assert path.stat().st_mode & 0o777 == 0o600
    until(lambda: node.client.status().hubble.exporters[0].lines, "the exporter to know of its lines")
    (status,) = node.client.status().hubble.exporters
    assert (status.name, status.state, status.path) == ("static", "active", str(path))
    assert (status.lost_events, status.problem) == (0, "")


def test_a_file_that_is_taken_away_is_made_anew(node: AgentNode) -> None:
    path = node.directory / "all.log"
    path.rename(node.directory / "taken.log")
    assert node.reaches("client", node.addresses["server"][0])
    until(lambda: between(path, "client", "server"), "lines in the new file")


def test_a_file_of_flow_logs_is_followed(node: AgentNode) -> None:
    drops, pairs = node.directory / "drops.log", node.directory / "pairs.log"
    config = node.directory / "flowlogs.yaml"
    assert "can't be read" in node.client.status().hubble.msg
    config.write_text(FLOW_LOGS.format(node.directory))
    until(lambda: len(node.client.status().hubble.exporters) == 3, "three exporters")
    node.write(
        "isolate",
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "isolate", "namespace": "default"},
            "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]},
        },
    )
    until(lambda: not node.reaches("client", node.addresses["server"][0], timeout=UNANSWERED), "the policy")
    until(lambda: between(drops, "client", "server"), "drops in their file")
    flow = between(drops, "client", "server")[0]
    assert flow["drop_reason_desc"] == "POLICY_DENIED"
    assert [policy["name"] for policy in flow["ingress_denied_by"]] == ["isolate"]
    assert set(flow) == {"verdict", "drop_reason_desc", "source", "destination", "ingress_denied_by"}
    until(lambda: between(pairs, "client", "server"), "counts in their file")
    assert all(sum(flow["aggregate"].values()) for flow in flows(pairs))

    config.write_text("flowLogs: [{name: drops}]")
    until(lambda: "filePath is required" in node.client.status().hubble.msg, "the sentence")
    assert len(node.client.status().hubble.exporters) == 3
    config.write_text("flowLogs: []")
    until(lambda: len(node.client.status().hubble.exporters) == 1, "the static exporter alone")
    node.forget("isolate")


def test_metrics_tell_of_exporters(node: AgentNode) -> None:
    text = node.client.metrics()
    assert 'hubble_dynamic_exporter_up{name="static"} 1.0' in text
    assert 'hubble_exporter_lines_total{name="static"}' in text


def test_what_was_seen_before_the_end_is_written(node: AgentNode) -> None:
    path = node.directory / "all.log"
    until(lambda: node.reaches("client", node.addresses["server"][0], timeout=UNANSWERED), "the connection")
    seen = node.client.status().hubble.seen_flows
    assert node.agent.end() == 0
    assert seen
    assert all(line.endswith(b"\n") for line in path.read_bytes().splitlines(keepends=True))
    assert between(path, "client", "server")


def test_wrong_settings_are_refused_in_a_sentence(node: AgentNode) -> None:
    node.stop_agents()
    for settings, sentence in (
        ({"hubble_export_allowlist": "drops"}, "is not a filter"),
        ({"hubble_export_fieldmask": "sauce"}, "no flow has the field 'sauce'"),
        ({"hubble_export_file_path": "events.log"}, "path from the root"),
        (
            {"hubble_redact_http_headers_allow": "a", "hubble_redact_http_headers_deny": "b"},
            "one of the two lists",
        ),
    ):
        assert sentence in node.refused(**{"hubble_export_file_path": "/dev/null", **settings})
