"""A machine without Kubernetes as a load balancer: services from a file and by the API, across crashes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.api.client import AgentError
from cilia.api.types import LocalService
from cilia.lab import cgroups, kernel
from tests.support.agent_node import AgentNode, agent_node
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

BACKEND = "192.0.2.1"
DIAL = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as found:
        print(found.recv(16).decode())
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AgentNode]:
    with agent_node("test-standalone", tmp_path) as found:
        yield found


def serve(node: AgentNode, port: int, word: str) -> socket.socket:
    """A server on the node that says a word to everybody."""
    with kernel.inside_network(node.netns):
        server = socket.create_server((BACKEND, port))

    def answer() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(word.encode())

    threading.Thread(target=answer, daemon=True).start()
    return server


def dial(node: AgentNode, address: str, port: int) -> str:
    """What a process of the node is told."""
    command = ["nsenter", f"--net={node.netns}", "--", sys.executable, "-ISc", DIAL, address, str(port)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        preexec_fn=lambda: cgroups.join(node.cgroup, os.getpid()),
    )
    return done.stdout.strip()


def test_services_from_a_file_and_by_the_api(node: AgentNode, tmp_path: Path) -> None:
    path = tmp_path / "services.yaml"
    path.write_text(f"services:\n- {{frontend: '192.0.2.50:80', backends: ['{BACKEND}:8001']}}\n")
    first, second = serve(node, 8001, "one"), serve(node, 8002, "two")
    with first, second:
        node.start(**{"services-file": str(path)})
        until(lambda: dial(node, "192.0.2.50", 80) == "one", "the service of the file")
        scratch = path.with_suffix(".new")
        scratch.write_text(f"services:\n- {{frontend: '192.0.2.50:80', backends: ['{BACKEND}:8002']}}\n")
        scratch.rename(path)
        until(lambda: dial(node, "192.0.2.50", 80) == "two", "the file's new backend")
        with pytest.raises(AgentError, match="services file"):
            node.client.put_local_service(LocalService(frontend="192.0.2.50:80"))
        node.client.put_local_service(LocalService(frontend="192.0.2.51:80", backends=(f"{BACKEND}:8001",)))
        until(lambda: dial(node, "192.0.2.51", 80) == "one", "the service by hand")
        with pytest.raises(AgentError, match="frontend: "):
            node.client.put_local_service(LocalService(frontend="nowhere"))

        node.agent.end(signal.SIGKILL)
        assert dial(node, "192.0.2.51", 80) == "one"
        node.start(**{"services-file": str(path)})
        assert (dial(node, "192.0.2.50", 80), dial(node, "192.0.2.51", 80)) == ("two", "one")
        assert node.client.verify().count == 0
        assert node.client.delete_local_service("192.0.2.51:80")[0].frontend == "192.0.2.50:80/TCP"
        until(lambda: dial(node, "192.0.2.51", 80) != "one", "the service by hand to go")


def test_garbage_on_disk_costs_its_services_and_nothing_else(node: AgentNode) -> None:
    (node.state / "services.json").write_bytes(b"\x00garbage")
    agent = node.start()
    assert node.client.local_services() == []
    assert "services by hand is not usable" in agent.words()
