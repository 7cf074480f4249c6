"""What people are shown of services on a running node: the command line, flows, and a kernel that was
tampered with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cilia.abi import layout
from cilia.api.client import AgentClient
from cilia.dataplane.bpf import Map, get
from cilia.dataplane.loader import root_of
from cilia.lab import starting, teardown
from cilia.lab.plan import LabPlan, make_plan
from tests.support.kubectl import kubectl
from tests.support.waiting import until

NAME = f"tsv{os.getpid() % 1000000}"
OBJECTS = """
apiVersion: v1
kind: Pod
metadata: {name: web-0, labels: {app: web}}
spec: {containers: [{name: c, image: cilia.io/lab/server, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {containers: [{name: c, image: cilia.io/lab/client}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"""
DIAL = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as found:
        found.sendall(b"hello")
        print(found.recv(16).decode())
except OSError as error:
    print(type(error).__name__)
"""

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]


class Node:
    """A lab of one node, with a Service that is served and one that is not."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan
        (self.node,) = plan.nodes
        self.agent = AgentClient(self.node.agent_socket)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return kubectl(self.plan, *arguments, stdin=stdin)

    def cilia(self, *arguments: str, code: int = 0) -> str:
        environment = {
            **os.environ,
            "CILIA_AGENT_SOCKET": str(self.node.agent_socket),
            "HUBBLE_SERVER": f"unix://{self.node.hubble_socket}",
        }
        program = str(Path(sys.executable).with_name("cilia"))
        done = subprocess.run(
            [program, *arguments], check=False, text=True, capture_output=True, env=environment, timeout=60
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    def dial(self, address: str, port: int) -> str:
        lab = [sys.executable, "-m", "cilia.lab", "exec", "default/client", "--name", NAME, "--"]
        done = subprocess.run(
            [*lab, sys.executable, "-ISc", DIAL, address, str(port)],
            check=True,
            text=True,
            capture_output=True,
            timeout=60,
        )
        return done.stdout.strip()

    def address(self, service: str) -> str:
        found: dict[str, Any] = json.loads(self.kubectl("get", "service", service, "-o", "json"))
        return str(found["spec"]["clusterIP"])

    def map(self, name: str) -> Map:
        """A map of the node's, as somebody sees it who has no business with it."""
        described = layout()
        spec = described.maps[name]
        fd = get(root_of(Path(self.node.bpf_prefix)) / "maps" / name)
        assert fd is not None and spec.key and spec.value
        return Map(fd, described.dtype(spec.key), described.dtype(spec.value), name)

    def flows(self, *flags: str) -> list[dict[str, Any]]:
        told = self.cilia("observe", "--all", "-o", "json", *flags)
        return [json.loads(line)["flow"] for line in told.splitlines()]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    teardown.take_down(NAME)
    made = make_plan(NAME, 1, agent_flags=("trace-sock",))
    try:
        starting.start(made, lambda _: None)
        found = Node(made)
        found.kubectl("apply", "-f", "-", stdin=OBJECTS)
        found.kubectl("wait", "pod", "--all", "--for=condition=Ready", "--timeout=90s")
        until(lambda: found.dial(found.address("web"), 80) == "hello", "the service to answer")
        yield found
    finally:
        teardown.take_down(NAME)


def test_services_are_listed_with_backends_and_reasons(node: Node) -> None:
    lines = node.cilia("service", "list").splitlines()
    served = next(line for line in lines if f"{node.address('web')}:80/TCP" in line)
    assert "default/web" in served and ":8080 (active)" in served and "realized" in served
    assert "no pod has the labels it selects" in next(line for line in lines if "default/empty" in line)
    assert "NodePort" in "".join(lines)
    page = node.cilia("service", "get", "default/web")
    assert "default/web-0" in page and "as intended" in page


def test_maps_are_shown_in_words(node: Node) -> None:
    vip = node.address("web")
    assert f"{vip}:80/TCP" in node.cilia("bpf", "lb", "list")
    assert "service=default/web" in node.cilia("map", "get", "services")
    assert f"{vip}:80/TCP (default/web)" in node.cilia("bpf", "ct", "list", "global")
    raw = json.loads(node.cilia("map", "get", "services", "--raw", "-o", "json"))["entries"]
    assert all(isinstance(entry["value"]["flags"], int) for entry in raw)
    for name in ("backends", "frontends", "slots", "affinity", "snat", "service_flows", "socket_services"):
        node.cilia("map", "get", name)


def test_flows_name_the_service_that_was_asked_for(node: Node) -> None:
    vip = node.address("web")
    until(lambda: node.flows("--to-service", "default/web", "--type", "trace:to-endpoint"), "flows")
    first = node.flows("--to-service", "default/web", "--type", "trace:to-endpoint")[0]
    assert first["destination"]["pod_name"] == "web-0"
    assert first["destination_service"] == {"name": "web", "namespace": "default"}
    assert first["Summary"].endswith(f"via {vip}:80")
    answer = node.flows("--from-service", "default/web", "--type", "trace:to-endpoint")[0]
    assert answer["source"]["pod_name"] == "web-0"


def test_sockets_are_traced_and_belong_to_pods(node: Node) -> None:
    vip, empty = node.address("web"), node.address("empty")
    before = node.flows("--type", "trace-sock:pre-xlate-fwd", "--to-service", "default/web")[-1]
    assert (before["source"]["pod_name"], before["IP"]["destination"]) == ("client", vip)
    after = node.flows("--type", "trace-sock:post-xlate-fwd", "--to-service", "default/web")[-1]
    assert (after["destination"]["pod_name"], after["Summary"]) == ("web-0", f"TCP, via {vip}:80")
    assert node.dial(empty, 80) == "ConnectionRefusedError"
    until(lambda: node.flows("--to-service", "default/empty", "--verdict", "DROPPED"), "the refusal")
    refused = node.flows("--to-service", "default/empty", "--verdict", "DROPPED")[-1]
    assert refused["drop_reason_desc"] == "SERVICE_BACKEND_NOT_FOUND"
    assert refused["source"]["pod_name"] == "client"


def test_a_service_by_hand_comes_and_goes(node: Node) -> None:
    backend = next(one.status.networking for one in node.agent.endpoints() if one.id != 65535)
    target = f"{backend.addressing[0].ipv4}:8080"
    told = node.cilia(
        "service", "update", "--frontend", "192.0.2.10:80", "--backend", target, "--name", "edge"
    )
    assert told.startswith("192.0.2.10:80/TCP is written")
    until(lambda: "realized" in node.cilia("service", "get", "192.0.2.10:80"), "the kernel to have it")
    node.cilia("service", "update", "--frontend", "192.0.2.10:80/tcp", "--affinity", "1m")
    until(lambda: "60 seconds" in node.cilia("service", "get", "edge"), "the change")
    assert "192.0.2.10:80/TCP" in node.cilia("service", "list", "--type", "standalone")
    node.cilia("service", "delete", "192.0.2.10:80")
    until(lambda: "192.0.2.10" not in node.cilia("service", "list"), "it to go")


def test_a_kernel_that_was_tampered_with_is_found_and_put_right(node: Node) -> None:
    vip = node.address("web")
    assert "as intended" in node.cilia("verify")
    services = node.map("services")
    keys, _ = services.dump()
    try:
        services.remove(keys)
        told = node.cilia("verify", code=1)
        assert f"{vip}:80/TCP" in told and "--repair puts them right" in told
        assert 'cilium_verify_map_differences{map_name="services"}' in node.agent.metrics()
        assert "put right" in node.cilia("verify", "--repair")
        until(lambda: "as intended" in node.cilia("verify"), "the repair")
    finally:
        services.close()
    assert node.dial(vip, 80) == "hello"


def test_use_of_ports_and_the_status_page(node: Node) -> None:
    until(lambda: node.agent.nat().limit > 0, "the first sweep")
    assert "Towards each peer there are" in node.cilia("nat", "top")
    page = node.cilia("status")
    assert "Services" in page and "frontends" in page and "as intended" in page
    assert "cilium_nat_endpoint_max_connection" in node.agent.metrics()
