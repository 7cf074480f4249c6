"""Settings changed while the agent runs: in force when the command returns, and still after a crash."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cilia.lab import kernel
from tests.support.agent_node import ANSWERED, UNANSWERED, AgentNode, agent_node
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

CILIA = (sys.executable, "-P", "-c", "from cilia.apps.ctl import main; main()")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentNode]:
    """A node with an agent, a server, and a client that nothing isolates."""
    with agent_node("live-config", tmp_path_factory.mktemp("live")) as made:
        made.pod("server", {"app": "server"})
        made.pod("client", {"app": "client"})
        made.start()
        made.addresses = {name: made.add(name) for name in ("server", "client")}
        made.serve("server")
        yield made


@pytest.fixture(autouse=True)
def everything_is_reset(node: AgentNode) -> Iterator[None]:
    yield
    ctl(node, "config", "--reset")
    ctl(node, "endpoint", "config", "default/server", "--reset")
    node.forget("deny")
    until(lambda: reaches(node), "the client to reach the server again")


def ctl(node: AgentNode, *words: str) -> str:
    """The command's output; it must succeed."""
    environment = {**os.environ, "CILIA_AGENT_SOCKET": str(node.state / "agent.sock")}
    done = subprocess.run(
        [*CILIA, *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def reaches(node: AgentNode, timeout: float = UNANSWERED) -> bool:
    return node.reaches("client", node.addresses["server"][0], timeout=timeout)


def deny(node: AgentNode, app: str = "server", direction: str = "ingress") -> None:
    """A policy that cuts a pod off in a direction, enforced."""
    before = node.client.policies().revision
    node.write(
        "deny",
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "deny", "namespace": "default"},
            "spec": {"endpointSelector": {"matchLabels": {"app": app}}, direction: [{}]},
        },
    )
    assert node.client.wait_policy(before + 1, 20).reached


def setting(node: AgentNode, name: str) -> tuple[object, str]:
    row = next(row for row in node.client.settings() if row.name == name)
    return row.value, row.source


def test_always_isolates_everybody_at_once_and_reset_undoes_it(node: AgentNode) -> None:
    assert reaches(node, ANSWERED)
    ctl(node, "config", "PolicyEnforcement=always")
    assert not reaches(node)
    assert setting(node, "enforcement") == ("always", "live")
    ctl(node, "config", "--reset")
    assert reaches(node, ANSWERED)
    assert setting(node, "enforcement") == ("default", "default")


def test_a_change_survives_the_agents_death(node: AgentNode) -> None:
    ctl(node, "config", "enable-policy=always")
    node.agent.end(signal.SIGKILL)
    node.start()
    assert setting(node, "enforcement") == ("always", "live")
    assert not reaches(node)
    saved = node.state / "live.json"
    assert json.loads(saved.read_text()) == {"enforcement": "always"}
    assert saved.stat().st_mode & 0o777 == 0o600


def test_an_unknown_option_is_refused_with_what_there_is(node: AgentNode) -> None:
    environment = {**os.environ, "CILIA_AGENT_SOCKET": str(node.state / "agent.sock")}
    done = subprocess.run(
        [*CILIA, "config", "PolicyTracing=Enabled"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "PolicyEnforcement" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_log_says_who_changed_what(node: AgentNode) -> None:
    ctl(node, "config", "PolicyEnforcement=never")
    line = next(
        line for line in node.agent.words().splitlines() if "setting changed" in line and "never" in line
    )
    assert "uid=0" in line
    assert "before=default" in line


def test_a_node_in_audit_passes_what_it_would_deny(node: AgentNode) -> None:
    deny(node)
    assert not reaches(node)
    ctl(node, "config", "PolicyAuditMode=Enabled")
    assert reaches(node, ANSWERED)
    ctl(node, "config", "--reset", "PolicyAuditMode")
    assert not reaches(node)


def test_an_endpoint_in_audit_passes_what_it_would_deny_also_after_a_crash(node: AgentNode) -> None:
    deny(node)
    assert not reaches(node)
    ctl(node, "endpoint", "config", "default/server", "PolicyAuditMode=Enabled")
    assert reaches(node, ANSWERED)
    node.agent.end(signal.SIGKILL)
    node.start()
    row = node.client.endpoint_settings("pod-name:default/server")[0]
    assert (row.value, row.source) == (True, "live")
    assert reaches(node, ANSWERED)
    ctl(node, "endpoint", "config", "default/server", "PolicyAuditMode=Disabled")
    assert not reaches(node)


def test_a_flow_that_audit_let_pass_ends_with_audit(node: AgentNode) -> None:
    deny(node)
    ctl(node, "config", "PolicyAuditMode=Enabled")
    flow = node.connect("client", node.addresses["server"][0])
    assert flow is not None
    with flow:
        flow.sendall(b"one")
        assert flow.recv(3) == b"one"
        ctl(node, "config", "--reset")
        flow.sendall(b"two")
        flow.settimeout(UNANSWERED)
        with pytest.raises(TimeoutError):
            flow.recv(3)


def test_a_denied_pod_is_answered_while_it_is_told_so(node: AgentNode) -> None:
    deny(node, "client", "egress")
    assert failure(node) == "timed out"
    ctl(node, "config", "PolicyDenyResponse=icmp")
    assert setting(node, "policy-deny-response") == ("icmp", "live")
    assert failure(node) == "No route to host"
    ctl(node, "config", "--reset")
    assert failure(node) == "timed out"


def test_the_node_reaches_isolated_pods_unless_told_that_policy_decides(node: AgentNode) -> None:
    deny(node)
    assert host_reaches(node, ANSWERED)
    node.agent.end()
    node.start(allow_localhost="policy")
    assert not host_reaches(node)
    node.agent.end()
    node.start()
    assert host_reaches(node, ANSWERED)


def host_reaches(node: AgentNode, timeout: float = UNANSWERED) -> bool:
    with kernel.inside_network(node.netns), socket.socket() as one:
        one.settimeout(timeout)
        return one.connect_ex((node.addresses["server"][0], 8080)) == 0


def failure(node: AgentNode) -> str:
    """Why the client's connection does not come about."""
    with node.inside("client", socket.AF_INET, socket.SOCK_STREAM) as one:
        one.settimeout(3 * UNANSWERED)
        try:
            one.connect((node.addresses["server"][0], 8080))
        except OSError as error:
            return error.strerror or str(error)
    return ""
