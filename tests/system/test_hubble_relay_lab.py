"""A relay over the agents of a lab, by mutual TLS: one answer for three nodes, and what remains of it
when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cilia.kit import certificates
from cilia.kit.clock import SystemClock
from cilia.kit.tls import server_name
from cilia.lab import records, starting, teardown
from cilia.lab.plan import LabPlan, make_plan
from tests.support.waiting import until

NAME = f"trl{os.getpid() % 1000000}"
OBJECTS = """
apiVersion: v1
kind: Pod
metadata: {name: web-0, labels: {app: web}}
spec: {nodeName: node-2, containers: [{name: c, image: cilia.io/lab/server, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node-1, containers: [{name: c, image: cilia.io/lab/client}]}
"""
DIAL = """
import socket, sys
socket.create_connection((sys.argv[1], 8080), timeout=5).close()
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]


def certificates_in(directory: Path) -> None:
    """An authority, a certificate for all nodes and one for the relay."""
    now = SystemClock().wall()
    authority = certificates.make_authority("Lab CA", now=now, days=1)
    names = [server_name(f"node-{number}", "default") for number in (1, 2, 3)]
    made = {
        "node": certificates.issue(authority, names[0], names=names, now=now, days=1, client=False),
        "relay": certificates.issue(authority, "relay.example", now=now, days=1, server=False),
    }
    (directory / "ca.crt").write_bytes(authority.certificate)
    for name, issued in made.items():
        (directory / f"{name}.crt").write_bytes(issued.certificate)
        (directory / f"{name}.key").write_bytes(issued.key)


class Stage:
    """A lab of three nodes, and a relay on the first that finds the others by its agent's peer service."""

    def __init__(self, plan: LabPlan, directory: Path) -> None:
        self.plan = plan
        self.server = f"unix://{directory / 'relay.sock'}"
        first = plan.nodes[0]
        flags = {
            "listen-address": self.server,
            "peer-service": f"unix://{first.hubble_socket}",
            "tls-hubble-client-cert-file": directory / "relay.crt",
            "tls-hubble-client-key-file": directory / "relay.key",
            "tls-hubble-server-ca-files": directory / "ca.crt",
            "retry-timeout": "1s",
            "health-listen-address": "127.0.0.1:0",
        }
        command = ["nsenter", f"--net={first.netns}", "--", sys.executable, "-m", "cilia.apps.relay", "serve"]
        self.relay = subprocess.Popen(command + [f"--{name}={value}" for name, value in flags.items()])

    def close(self) -> None:
        """Stop the relay."""
        self.relay.send_signal(signal.SIGTERM)
        assert self.relay.wait(20) == 0

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        program = str(Path(sys.executable).with_name("kubectl"))
        environment = {**os.environ, "KUBECONFIG": self.plan.kubeconfig}
        return subprocess.run(
            [program, *arguments],
            check=True, text=True, capture_output=True, env=environment, input=stdin, timeout=60,
        ).stdout  # fmt: skip

    def observe(self, *arguments: str) -> list[dict[str, Any]]:
        program = str(Path(sys.executable).with_name("cilia"))
        done = subprocess.run(
            [program, "observe", "--server", self.server, "-o", "json", *arguments],
            check=False, text=True, capture_output=True, timeout=60,
        )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []

    def dial(self) -> None:
        address = self.kubectl("get", "pod", "web-0", "-o", "jsonpath={.status.podIP}")
        lab = [sys.executable, "-m", "cilia.lab", "exec", "default/client", "--name", self.plan.name, "--"]
        subprocess.run([*lab, sys.executable, "-ISc", DIAL, address], check=True, timeout=60)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    teardown.take_down(NAME)
    directory = tmp_path_factory.mktemp("relay")
    certificates_in(directory)
    tls = (
        f"--hubble-tls-cert-file={directory / 'node.crt'}",
        f"--hubble-tls-key-file={directory / 'node.key'}",
        f"--hubble-tls-client-ca-files={directory / 'ca.crt'}",
    )
    plan = make_plan(NAME, 3, agent_flags=tls)
    starting.start(plan, lambda _message: None)
    try:
        stage = Stage(plan, directory)
        try:
            stage.kubectl("apply", "-f", "-", stdin=OBJECTS)
            stage.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
            yield stage
        finally:
            stage.close()
    finally:
        teardown.take_down(NAME)


def test_one_answer_has_both_ends_of_a_connection(stage: Stage) -> None:
    stage.dial()

    def seen() -> bool:
        flows = [each for each in stage.observe("--port", "8080", "--last", "100") if "flow" in each]
        nodes = {each["node_name"] for each in flows}
        times = [each["time"] for each in flows]
        return nodes >= {"default/node-1", "default/node-2"} and times == sorted(times)

    until(seen, "flows of both nodes", 30)


def test_a_dead_agent_is_named_and_the_others_answer(stage: Stage) -> None:
    agent = records.find_process(stage.plan, f"agent/{stage.plan.nodes[2].name}")
    assert agent is not None
    os.kill(agent.pid, signal.SIGKILL)

    def told() -> bool:
        answer = stage.observe("--last", "5")
        states = [each["node_status"] for each in answer if "node_status" in each]
        away = [state["node_names"] for state in states if state["state_change"] == "NODE_UNAVAILABLE"]
        return away == [["default/node-3"]] and any("flow" in each for each in answer)

    until(told, "the answer to be partial", 30)
