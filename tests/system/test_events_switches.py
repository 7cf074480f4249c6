"""Kinds of events that are switched off and on while the agent runs, and a node's limit of events."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cilia.api.types import Health
from tests.support.agent_node import ANSWERED, UNANSWERED, AgentNode, agent_node
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

SETTLE = 0.5
"""Seconds without another flow, after which none is under way."""
CILIA = (sys.executable, "-P", "-c", "from cilia.apps.ctl import main; main()")
DENY = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNetworkPolicy",
    "metadata": {"name": "deny", "namespace": "default"},
    "spec": {"endpointSelector": {"matchLabels": {"app": "closed"}}, "ingress": [{}]},
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentNode]:
    """A node with a client, a server, and one that nobody may talk to."""
    with agent_node("events-switch", tmp_path_factory.mktemp("events")) as made:
        for name in ("open", "closed", "client"):
            made.pod(name, {"app": name})
        made.start()
        made.addresses = {name: made.add(name) for name in ("open", "closed", "client")}
        made.serve("open")
        made.serve("closed")
        made.write("deny", DENY)
        until(lambda: not reaches(made, "closed"), "the policy")
        yield made


@pytest.fixture(autouse=True)
def everything_is_reset(node: AgentNode) -> Iterator[None]:
    yield
    cilia(node, "config", "--reset")


def cilia(node: AgentNode, *words: str) -> str:
    """The command's output; it must succeed."""
    environment = {
        **os.environ,
        "CILIA_AGENT_SOCKET": str(node.state / "agent.sock"),
        "HUBBLE_SERVER": f"unix://{node.state / 'hubble.sock'}",
    }
    done = subprocess.run(
        [*CILIA, *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(node: AgentNode, *filters: str) -> list[dict[str, Any]]:
    """Flows, and what is told beside them, oldest first."""
    return [json.loads(line) for line in cilia(node, "observe", "--all", "-o", "json", *filters).splitlines()]


def reaches(node: AgentNode, pod: str) -> bool:
    due = pod == "open"
    return node.reaches("client", node.addresses[pod][0], timeout=ANSWERED if due else UNANSWERED)


def reported(node: AgentNode) -> Counter[str]:
    """Verdicts of the flows of one packet that passes and one that drops, of this moment only."""
    before = answers(node)
    last = max((line["flow"]["time"] for line in before if "flow" in line), default="")
    assert reaches(node, "open")
    reaches(node, "closed")
    mark_the_end(node)
    news = [line["flow"] for line in answers(node) if "flow" in line and line["flow"]["time"] > last]
    return Counter(flow["verdict"] for flow in news if flow["l4"].get("TCP", {}))


def mark_the_end(node: AgentNode) -> None:
    """Wait until what was reported so far can be read: the reader takes 20 ms, and longer when it is busy."""
    seen, since = -1, 0.0

    def settled() -> bool:
        nonlocal seen, since
        before, seen = seen, node.client.status().hubble.seen_flows
        if before != seen:
            since = time.monotonic()
        return time.monotonic() - since > SETTLE

    until(settled, "the reader")


def setting(node: AgentNode, option: str) -> tuple[object, str]:
    row = next(row for row in node.client.settings() if row.option == option)
    return row.value, row.source


def test_traces_stop_while_drops_go_on_and_come_back(node: AgentNode) -> None:
    assert set(reported(node)) == {"FORWARDED", "DROPPED"}
    cilia(node, "config", "TraceNotification=Disabled")
    assert setting(node, "TraceNotification") == (False, "live")
    assert set(reported(node)) == {"DROPPED"}
    assert "forwarded packets not reported" in node.client.status().hubble.msg
    cilia(node, "config", "TraceNotification=Enabled")
    assert set(reported(node)) == {"FORWARDED", "DROPPED"}


def test_drops_stop_while_traces_go_on(node: AgentNode) -> None:
    cilia(node, "config", "DropNotification=Disabled")
    assert set(reported(node)) == {"FORWARDED"}


def test_audit_verdicts_stop_while_the_rest_goes_on(node: AgentNode) -> None:
    cilia(node, "config", "PolicyAuditMode=Enabled")
    assert "AUDIT" in reported(node)
    cilia(node, "config", "PolicyVerdictNotification=Disabled")
    assert set(reported(node)) == {"FORWARDED"}


def test_without_aggregation_every_packet_is_reported(node: AgentNode) -> None:
    cilia(node, "config", "MonitorAggregationLevel=none", "DropNotification=Disabled")
    many = reported(node)["FORWARDED"]
    cilia(node, "config", "MonitorAggregationLevel=medium")
    assert reported(node)["FORWARDED"] < many


def test_without_correlation_flows_name_no_policy(node: AgentNode) -> None:
    assert denied(node)["ingress_denied_by"][0]["name"] == "deny"
    node.agent.end()
    node.start("env", "CILIA_HUBBLE_NETWORK_POLICY_CORRELATION_ENABLED=false", hubble_event_queue_size="64")
    assert node.agent.words().count("--hubble-event-queue-size is without meaning") == 1
    assert "ingress_denied_by" not in denied(node)
    node.agent.end()
    node.start()


def denied(node: AgentNode) -> dict[str, Any]:
    """The newest denial."""
    reaches(node, "closed")
    until(lambda: answers(node, "--type", "policy-verdict", "--verdict", "DROPPED"), "a denial")
    return dict(answers(node, "--type", "policy-verdict", "--verdict", "DROPPED")[-1]["flow"])


def test_a_denial_is_told_to_who_asks_for_verdicts(node: AgentNode) -> None:
    told = denied(node)
    assert (told["event_type"], told["drop_reason_desc"]) == ({"type": 5}, "POLICY_DENIED")
    line = cilia(node, "observe", "--type", "policy-verdict", "--verdict", "DROPPED", "--last", "1")
    assert "policy-verdict:none INGRESS DENIED (TCP Flags: SYN)" in line


def test_without_hubble_policies_hold_and_nobody_is_told(node: AgentNode) -> None:
    node.agent.end()
    node.start("env", "CILIA_ENABLE_HUBBLE=false", hubble_metrics="drop")
    assert reaches(node, "open")
    assert not reaches(node, "closed")
    status = node.client.status()
    assert status.hubble.state == Health.DISABLED
    assert status.hubble.seen_flows == 0
    assert not (node.state / "hubble.sock").exists()
    node.agent.end()
    node.start()
    assert "FORWARDED" in reported(node)


def test_what_a_limit_held_back_is_told_as_lost(node: AgentNode) -> None:
    cilia(node, "config", "EventsRateLimit=2", "EventsBurstLimit=2", "MonitorAggregationLevel=none")
    for _ in range(30):
        assert reaches(node, "open")
    until(lambda: any("lost_events" in line for line in answers(node)), "the loss to be told")
    assert "at most 2 events/s" in node.client.status().hubble.msg
    assert node.client.status().hubble.lost_events > 0
    held_back = re.search(r'^cilia_events_held_back_total\{kind="trace"\} (\S+)', node.client.metrics(), re.M)
    assert held_back is not None and float(held_back[1]) > 0
    reaches(node, "closed")
    until(lambda: answers(node, "--verdict", "DROPPED"), "a drop")
    cilia(node, "config", "--reset")
    assert "events/s" not in node.client.status().hubble.msg
    assert "FORWARDED" in reported(node)
