"""Services in the lab, from the object to the packet: given addresses, followed, checked, ended, told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cilia.api.client import AgentClient
from cilia.api.types import LocalService
from cilia.lab import control, kernel, records, starting, teardown
from cilia.lab.plan import LabPlan, make_plan
from tests.support.kubectl import kubectl
from tests.support.waiting import until

NAME = f"tsw{os.getpid() % 1000000}"
PODS = """
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: web}}
spec:
  nodeName: node-1
  containers:
    - name: c
      image: cilia.io/lab/server
      ports: [{name: http, containerPort: 8080}]
      lifecycle: {preStop: {sleep: {seconds: 12}}}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: web, at: far}}
spec:
  nodeName: node-2
  containers: [{name: c, image: cilia.io/lab/server, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node-1, containers: [{name: c, image: cilia.io/lab/client}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {selector: {at: far}, ports: [{port: 80, targetPort: http}]}
"""
DIAL = """
import socket, sys
answers = []
for target in sys.argv[1:]:
    host, _, port = target.rpartition("@")
    try:
        with socket.create_connection((host, int(port)), timeout=10) as found:
            found.sendall(b"hello")
            answers.append(found.recv(16).decode())
    except OSError as error:
        answers.append(type(error).__name__)
print(" ".join(answers))
"""
HOLD = """
import socket, sys
host, _, port = sys.argv[1].rpartition("@")
with socket.create_connection((host, int(port)), timeout=300) as found:
    print("open", flush=True)
    try:
        print("ended" if not found.recv(1) else "data", flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]


class Cluster:
    """A running lab with the Service `web`."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan
        self.agent = AgentClient(plan.nodes[0].agent_socket)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return kubectl(self.plan, *arguments, stdin=stdin)

    def get(self, *what: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", *what, "-o", "json"))
        return found

    def command(self, where: str, program: str, *arguments: str) -> list[str]:
        """How to run a program in a pod (`default/client`), on a node (`node-1`) or outside."""
        if where == "outside":
            words = ["outside-exec"]
        elif "/" in where:
            words = ["exec", where]
        else:
            words = ["node-exec", where]
        lab = [sys.executable, "-m", "cilia.lab", *words, "--name", NAME, "--"]
        return [*lab, sys.executable, "-ISc", program, *arguments]

    def dial(self, where: str, *targets: str) -> str:
        done = subprocess.run(
            self.command(where, DIAL, *targets), capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def conditions(self) -> dict[str, tuple[bool, bool, bool]]:
        """Of each endpoint of `web`, by pod: ready, serving, terminating."""
        found = self.get("endpointslice", "web-ipv4")
        return {
            item["targetRef"]["name"]: (
                item["conditions"]["ready"],
                item["conditions"]["serving"],
                item["conditions"]["terminating"],
            )
            for item in found["endpoints"] or ()
        }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    teardown.take_down(NAME)
    made = make_plan(NAME, 2)
    try:
        starting.start(made, lambda _: None)
        found = Cluster(made)
        found.kubectl("apply", "-f", "-", stdin=PODS)
        found.kubectl("wait", "pod", "--all", "--for=condition=Ready", "--timeout=90s")
        until(lambda: len(found.conditions()) == 2, "both pods in the slice")
        yield found
    finally:
        teardown.take_down(NAME)


def test_a_service_is_reached_from_pods_and_nodes(cluster: Cluster) -> None:
    spec = cluster.get("service", "web")["spec"]
    four, six = spec["clusterIPs"]
    targets = [f"{four}@80", f"{six}@80"]
    until(lambda: cluster.dial("default/client", *targets) == "hello hello", "pod to service")
    assert cluster.dial("node-2", *targets) == "hello hello"
    assert cluster.dial("default/client", f"{four}@81") != "hello"


def test_health_checks_tell_where_endpoints_are(cluster: Cluster) -> None:
    spec = cluster.get("service", "web")["spec"]
    for node in cluster.plan.nodes:
        done = subprocess.run(
            cluster.command(
                "node-1",
                "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=20).read().decode())",
                f"http://{node.ipv4}:{spec['healthCheckNodePort']}/",
            ),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["localEndpoints"] == 1
    done = subprocess.run(
        cluster.command(
            "node-1",
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:10256/healthz').status)",
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == "200", done.stderr


def test_services_by_hand(cluster: Cluster) -> None:
    pod = next(found for found in records.pods(cluster.plan) if found.name == "far")
    written = cluster.agent.put_local_service(
        LocalService(frontend="198.51.100.9:80", backends=(f"{pod.ips[0]}:8080",), name="by-hand")
    )
    assert written.frontend == "198.51.100.9:80/TCP"
    until(
        lambda: cluster.dial("default/client", "198.51.100.9@80") == "hello", "the service by hand from a pod"
    )
    assert cluster.agent.delete_local_service(written.frontend) == []


def test_a_problem_becomes_an_event(cluster: Cluster) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "odd", "annotations": {"service.cilium.io/lb-algorithm": "best"}},
        "spec": {"ports": [{"port": 80}]},
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(service))

    def told() -> list[str]:
        events = cluster.get("events")["items"]
        return [item["message"] for item in events if item["involvedObject"]["name"] == "odd"]

    until(told, "the event")
    assert any("lb-algorithm" in message for message in told())
    cluster.kubectl("delete", "service", "odd")


def test_sockets_end_whose_backend_went_while_no_agent_looked(cluster: Cluster) -> None:
    """Takes the pod `far` away."""
    address = cluster.get("service", "far")["spec"]["clusterIP"]
    until(lambda: cluster.dial("default/client", f"{address}@80") == "hello", "the service of one pod")
    holder = subprocess.Popen(
        cluster.command("default/client", HOLD, f"{address}@80"), stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "open"
        control.ask(cluster.plan.control_socket, {"kill_agent": "node-1"})
        # Its end is not heard: the network of its node goes first.
        pod = next(found for found in records.pods(cluster.plan) if found.name == "far")
        with kernel.inside_network(pod.netns):
            subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)
        cluster.kubectl("delete", "pod", "far", "--wait=true")
        until(lambda: set(cluster.conditions()) == {"near"}, "one pod left")
        control.ask(cluster.plan.control_socket, {"start_agent": "node-1"})
        assert holder.stdout.readline().strip() == "ConnectionAbortedError"
    finally:
        holder.kill()
        holder.wait()


def test_a_pod_that_ends_drains_and_its_sockets_end_with_it(cluster: Cluster) -> None:
    """Last: it takes the other pod away."""
    address = cluster.get("service", "web")["spec"]["clusterIP"]
    until(lambda: set(cluster.conditions()) == {"near"}, "one pod left")
    holder = subprocess.Popen(
        cluster.command("default/client", HOLD, f"{address}@80"), stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "open"
        cluster.kubectl("delete", "pod", "near", "--wait=false")
        until(lambda: cluster.conditions().get("near") == (False, True, True), "the pod to be draining")
        # The only one, and it still serves: better than nobody.
        assert cluster.dial("default/client", f"{address}@80") == "hello"
        until(lambda: not cluster.conditions(), "no endpoint")
        assert holder.stdout.readline().strip() in ("ended", "ConnectionAbortedError", "ConnectionResetError")
    finally:
        holder.kill()
        holder.wait()
    until(
        lambda: cluster.dial("default/client", f"{address}@80") == "ConnectionRefusedError",
        "the answer of a service without backends",
    )
