"""A relay over the agents of a lab: one answer for three nodes, and what remains when one dies."""

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


class Stage:
    """A lab of three nodes with a relay in front."""

    def __init__(self, plan: LabPlan, directory: Path) -> None:
        self.plan = plan
        self.server = f"unix://{directory / 'relay.sock'}"
        peers = ",".join(f"default/{node.name}=unix://{node.hubble_socket}" for node in plan.nodes)
        command = [sys.executable, "-m", "cilia.apps.relay", "serve", "--listen-address", self.server]
        self.relay = subprocess.Popen([*command, "--peers", peers, "--retry-timeout", "1s"])

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
    plan = make_plan(NAME, 3)
    starting.start(plan, lambda _message: None)
    try:
        stage = Stage(plan, tmp_path_factory.mktemp("relay"))
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
