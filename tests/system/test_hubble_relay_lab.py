"""Three nodes seen as one, through the relay of a lab: grpcio with generated classes asks it by mutual TLS,
from the network where only the fabric is."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cilia.lab import control, starting, teardown
from cilia.lab.plan import LabPlan, make_plan
from tests.support.kubectl import kubectl
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
CONNECTIONS = 20
DIAL = """
import socket, sys
for _ in range(int(sys.argv[2])):
    with socket.create_connection((sys.argv[1], 8080), timeout=20) as made:
        print(made.getsockname()[1])
"""
ASK = """
import sys
from pathlib import Path
import grpc
from google.protobuf import json_format
from cilia.proto.observer import observer_pb2

target, folder, request = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
files = [(folder / name).read_bytes() if (folder / name).exists() else None for name in sys.argv[4:]]
channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(*files))
call = channel.unary_stream(
    "/observer.Observer/GetFlows",
    request_serializer=observer_pb2.GetFlowsRequest.SerializeToString,
    response_deserializer=observer_pb2.GetFlowsResponse.FromString,
)
try:
    for response in call(json_format.Parse(request, observer_pb2.GetFlowsRequest())):
        shown = json_format.MessageToJson(response, preserving_proto_field_name=True, indent=None)
        print(shown, flush=True)
except grpc.RpcError as error:
    raise SystemExit(error.code().name)
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

Answer = list[dict[str, Any]]


class Stage:
    """A lab of three nodes with its relay: a client on the first, a server on the second."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return kubectl(self.plan, *arguments, stdin=stdin)

    def asking(self, *files: str, **request: Any) -> list[str]:
        """The command line of a viewer that shows these files."""
        program = [sys.executable, "-c", ASK, self.plan.relay_address, f"{self.plan.certificates}/ui-client"]
        return ["nsenter", f"--net={self.plan.fabric}", "--", *program, json.dumps(request), *files]

    def ask(self, **request: Any) -> Answer:
        """A whole answer; empty when the call fails."""
        command = self.asking("ca.crt", "tls.key", "tls.crt", **request)
        done = subprocess.run(command, check=False, text=True, capture_output=True, timeout=60)
        return [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []

    @contextmanager
    def follow(self, **request: Any) -> Iterator[queue.Queue[dict[str, Any]]]:
        """What a follower gets while the block runs."""
        command = self.asking("ca.crt", "tls.key", "tls.crt", follow=True, **request)
        came: queue.Queue[dict[str, Any]] = queue.Queue()
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
        assert process.stdout is not None
        lines = process.stdout

        def read() -> None:
            for line in lines:
                came.put(json.loads(line))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield came
        finally:
            process.terminate()
            process.wait()
            reader.join()
            lines.close()

    def dial(self, count: int) -> list[int]:
        """Connect from node-1 to node-2 that often; the client's ports."""
        address = self.kubectl("get", "pod", "web-0", "-o", "jsonpath={.status.podIP}")
        lab = [sys.executable, "-m", "cilia.lab", "exec", "default/client", "--name", self.plan.name, "--"]
        done = subprocess.run(
            [*lab, sys.executable, "-ISc", DIAL, address, str(count)],
            check=True, text=True, capture_output=True, timeout=60,
        )  # fmt: skip
        return [int(line) for line in done.stdout.split()]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    teardown.take_down(NAME)
    plan = make_plan(NAME, 3, relay=True)
    try:
        starting.start(plan, lambda _message: None)
        stage = Stage(plan)
        stage.kubectl("apply", "-f", "-", stdin=OBJECTS)
        stage.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s")
        until(lambda: states(stage.ask(number=1)) == {"NODE_CONNECTED": EVERYBODY}, "all nodes to answer")
        yield stage
    finally:
        teardown.take_down(NAME)


EVERYBODY = ["default/node-1", "default/node-2", "default/node-3"]


def states(answer: Answer) -> dict[str, list[str]]:
    """What an answer says of nodes: who is in which state."""
    told = [each["node_status"] for each in answer if "node_status" in each]
    return {each["state_change"]: sorted(each["node_names"]) for each in told}


def opened(answer: Answer, ports: set[int]) -> Counter[tuple[int, str]]:
    """How often each node told of the first packet of each connection."""
    found: Counter[tuple[int, str]] = Counter()
    for each in answer:
        tcp = each.get("flow", {}).get("l4", {}).get("TCP", {})
        if tcp.get("flags") == {"SYN": True} and tcp["source_port"] in ports:
            found[tcp["source_port"], each["node_name"]] += 1
    return found


def test_each_node_tells_of_a_connection_once_and_all_by_time(stage: Stage) -> None:
    ports = set(stage.dial(CONNECTIONS))
    wanted = {(port, node) for port in ports for node in EVERYBODY[:2]}

    def seen() -> bool:
        return set(opened(stage.ask(number=4000), ports)) >= wanted

    until(seen, "flows of both nodes")
    answer = stage.ask(number=4000)
    assert opened(answer, ports) == dict.fromkeys(wanted, 1)
    flows = [each["flow"] for each in answer if "flow" in each]
    assert len({flow["uuid"] for flow in flows}) == len(flows)
    times = [flow["time"] for flow in flows]
    assert times == sorted(times)
    assert "lost_events" not in {key for each in answer for key in each}


@pytest.mark.parametrize("files", [("ca.crt",), ("nobodys.crt", "tls.key", "tls.crt")])
def test_without_a_certificate_or_trust_nothing_is_told(stage: Stage, files: tuple[str, ...]) -> None:
    command = stage.asking(*files, number=5)
    done = subprocess.run(command, check=False, text=True, capture_output=True, timeout=60)
    assert (done.stdout, done.stderr.strip().splitlines()[-1]) == ("", "UNAVAILABLE")


def test_a_follower_and_an_answer_say_that_a_node_is_away_and_that_it_is_back(stage: Stage) -> None:
    client = {"whitelist": [{"source_pod": ["default/client"]}]}
    with stage.follow(**client) as came:
        first = came.get(timeout=60)
        assert states([first]) == {"NODE_CONNECTED": EVERYBODY}
        control.ask(stage.plan.control_socket, {"kill_agent": "node-2"})
        until_told(came, {"NODE_UNAVAILABLE": ["default/node-2"]})

        away = {"NODE_CONNECTED": [EVERYBODY[0], EVERYBODY[2]], "NODE_UNAVAILABLE": ["default/node-2"]}
        until(lambda: states(stage.ask(number=5)) == away, "a partial answer that says so")
        (port,) = stage.dial(1)
        until(lambda: set(opened(stage.ask(number=4000), {port})) == {(port, EVERYBODY[0])}, "its flow")

        control.ask(stage.plan.control_socket, {"start_agent": "node-2"})
        until_told(came, {"NODE_CONNECTED": ["default/node-2"]})
        until(lambda: states(stage.ask(number=5)) == {"NODE_CONNECTED": EVERYBODY}, "a whole answer")

        def both() -> bool:
            (port,) = stage.dial(1)
            return set(opened(stage.ask(number=4000), {port})) == {(port, node) for node in EVERYBODY[:2]}

        until(both, "flows of the node that is back")
        until_told(came, node="default/node-2")


def until_told(
    came: queue.Queue[dict[str, Any]], wanted: dict[str, list[str]] | None = None, *, node: str = ""
) -> None:
    """Read on until a follower is told the states, or a flow of a node."""
    heard: Answer = []
    while True:
        try:
            heard.append(came.get(timeout=60))
        except queue.Empty:
            raise AssertionError(f"{wanted or node} was not told; what was: {heard[-5:]}") from None
        if wanted is not None and states(heard[-1:]) == wanted:
            return
        if node and "flow" in heard[-1] and heard[-1]["node_name"] == node:
            return
