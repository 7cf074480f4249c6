"""Faults of the cluster around the agents: API server away, garbage in its objects, kills amid changes."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cilia.api.client import AgentClient
from cilia.api.types import Health
from cilia.cluster.kube.client import KubeStore
from cilia.cluster.store import CILIUM_NETWORK_POLICIES
from cilia.lab import cgroups, cni, control, fabric, kernel, records, starting, teardown
from cilia.lab.plan import API_PORT, LabPlan, make_plan
from cilia.lab.records import PodRecord
from tests.support.kubectl import kubectl, stream
from tests.support.logs import assert_no_crash
from tests.support.waiting import until

NAME = f"tf{os.getpid()}"
PORTS = (8080, 8081)
TIMEOUTS = (0.3, 3.0)
"""Seconds without an answer that mean no: at first, and where one was due."""
AWAY = 8.0
"""Seconds the API server is away; what follows is the same after a minute."""

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]


def pod(name: str, node: str, app: str) -> dict[str, Any]:
    ports = [{"containerPort": port} for port in PORTS]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "containers": [{"name": "c", "image": "cilia.io/lab/server", "ports": ports}],
        },
    }


def allow_to_server(*ports: int, client: str = "client") -> dict[str, Any]:
    """Only the pods of one app reach the server, on these ports."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "server", "namespace": "default"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "server"}},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"app": client}}],
                    "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"} for port in ports]}],
                }
            ],
        },
    }


WORKLOADS = (
    pod("server", "node-2", "server"),
    pod("client", "node-1", "client"),
    pod("stranger", "node-1", "stranger"),
    pod("spare", "node-2", "client"),
)


@pytest.fixture(scope="module")
def plan() -> Iterator[LabPlan]:
    teardown.take_down(NAME)
    made = make_plan(NAME, 2)
    try:
        starting.start(made, lambda _: None)
        kubectl(made, "apply", "-f", "-", stdin=stream(*WORKLOADS))
        kubectl(made, "wait", "pod", "--all", "--for=condition=Ready", "--timeout=90s")
        kubectl(made, "apply", "-f", "-", stdin=stream(allow_to_server(PORTS[0])))
        until(lambda: first_only(made), "the first policy")
        yield made
        assert_no_crash(Path(made.log_dir))
    finally:
        teardown.take_down(NAME)


def record(plan: LabPlan, name: str) -> PodRecord:
    return records.find_pod(plan, "default", name)


def ready(plan: LabPlan, node: str) -> bool:
    return AgentClient(plan.node(node).agent_socket).status().ready


def source_state(plan: LabPlan, node: str) -> Health:
    """How a node's agent gets on with the API server, as its status says."""
    return AgentClient(plan.node(node).agent_socket).status().kubernetes.state


def reached(plan: LabPlan, source: str, target: str = "server", least: int = 0) -> list[bool]:
    """Which of the ports a pod reaches, over IPv4 and then IPv6.

    When fewer than `least` answer it is asked again with more patience: on a busy machine a late answer is no
    denial.
    """
    found: list[bool] = []
    for timeout in TIMEOUTS:
        questions = [
            {"protocol": "tcp", "address": address, "port": port, "timeout": timeout}
            for address in record(plan, target).ips
            for port in PORTS
        ]
        answers = control.ask(record(plan, source).control_socket, {"probe": questions})["results"]
        found = [answer["answer"] == "ok" for answer in answers]
        if sum(found) >= least:
            break
    return found


def first_only(plan: LabPlan) -> bool:
    """The policy of `allow_to_server(8080)` holds exactly."""
    seen = reached(plan, "client", least=2)
    return seen == [True, False] * 2 and reached(plan, "stranger") == [False] * 4


class ApiServer:
    """The lab's API server, to be killed and started again where it was."""

    def __init__(self, plan: LabPlan) -> None:
        self._plan = plan
        found = records.find_process(plan, "apiserver")
        assert found is not None
        self._record = found
        self._command = Path(f"/proc/{found.pid}/cmdline").read_text().split("\0")[:-1]
        view = msgspec.yaml.decode(Path(plan.kubeconfig).read_bytes(), type=dict[str, Any])
        self._port = int(view["clusters"][0]["cluster"]["server"].rpartition(":")[2])
        self._process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """SIGKILL: nothing is said, connections break."""
        os.kill(self._record.pid, signal.SIGKILL)
        until(lambda: not records.alive(self._record), "the API server's end")

    def start(self) -> None:
        """The same program on the same addresses and files."""
        listeners = [
            socket.create_server(("127.0.0.1", self._port), backlog=512),
            fabric.listen(self._plan.fabric, self._plan.api_address, API_PORT),
        ]
        numbers = iter([str(listener.fileno()) for listener in listeners])
        command = [
            next(numbers) if before == "--listen-fd" else word
            for before, word in zip(["", *self._command], self._command, strict=False)
        ]
        log = Path(self._plan.log_dir, "apiserver-again.log")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                pass_fds=[listener.fileno() for listener in listeners],
                stdout=output,
                stderr=output,
                cwd="/",
            )
        cgroups.join(cgroups.find_mount() / self._plan.cgroup_name / "control", self._process.pid)
        for listener in listeners:
            listener.close()

    def reap(self) -> None:
        """End what was started here; the lab goes next."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)


@pytest.fixture
def api_server(plan: LabPlan) -> Iterator[ApiServer]:
    server = ApiServer(plan)
    yield server
    server.reap()


# -- kills amid policy changes -------------------------------------------------------------------------------


class Flipping:
    """Changes the policy every few milliseconds, between one port and the other, in a thread."""

    def __init__(self, plan: LabPlan) -> None:
        self._plan = plan
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._flip()))
        self.changes = 0

    def __enter__(self) -> Flipping:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def past(self, count: int) -> bool:
        """Whether so many changes were made."""
        return self.changes > count

    async def _flip(self) -> None:
        async with KubeStore.discover(Path(self._plan.kubeconfig), {}) as store:
            while not self._stop.is_set():
                spec = allow_to_server(PORTS[(self.changes + 1) % 2])["spec"]
                patch = msgspec.json.encode({"spec": spec})
                await store.patch(CILIUM_NETWORK_POLICIES, "server", patch, namespace="default")
                self.changes += 1
                await asyncio.sleep(0.005)


def reaches_just(plan: LabPlan, wanted: list[bool]) -> bool:
    """The client reaches these ports, and no others."""
    return reached(plan, "client") == wanted


def one_of_two(plan: LabPlan) -> bool:
    """Exactly one of the two policies is in force, over both families, and nobody else gets in."""
    seen = reached(plan, "client", least=2)
    return seen in ([True, False] * 2, [False, True] * 2) and reached(plan, "stranger") == [False] * 4


def test_killed_amid_policy_changes_one_of_them_holds_and_then_the_newest(plan: LabPlan) -> None:
    moments = random.Random(5)
    for _ in range(2):
        with Flipping(plan) as flipping:
            until(partial(flipping.past, flipping.changes + 20), "some changes")
            time.sleep(moments.uniform(0, 0.1))
            control.ask(plan.control_socket, {"kill_agent": "node-2"})
            assert one_of_two(plan)
            time.sleep(moments.uniform(0, 0.2))
            assert one_of_two(plan)
            control.ask(plan.control_socket, {"start_agent": "node-2"})
            until(lambda: ready(plan, "node-2"), "the agent to be back")
        newest = [bool(flipping.changes % 2 == 0), bool(flipping.changes % 2 == 1)] * 2
        until(partial(reaches_just, plan, newest), "the newest policy")
        assert reached(plan, "stranger") == [False] * 4
    kubectl(plan, "apply", "-f", "-", stdin=stream(allow_to_server(PORTS[0])))
    until(lambda: first_only(plan), "the first policy again")


# -- garbage -------------------------------------------------------------------------------------------------

GARBAGE: tuple[dict[str, Any], ...] = (
    {
        "kind": "CiliumEndpoint",
        "metadata": {"name": "moon", "namespace": "default"},
        "status": {
            "id": 9,
            "identity": {"id": 1 << 40, "labels": [":=:"]},
            "networking": {"node": "the-moon", "addressing": [{"ipv4": "10.244.0.300", "ipv6": "::%x"}]},
        },
    },
    {
        "kind": "CiliumNode",
        "metadata": {"name": "evil"},
        "spec": {
            "addresses": [{"type": "InternalIP", "ip": "172.18.0.12"}, {"type": "InternalIP", "ip": "x"}],
            "ipam": {"podCIDRs": ["0.0.0.0/0", "172.18.0.0/16", "10.244.0.0/16", "10.5.0.0/77"]},
        },
    },
    {"kind": "CiliumIdentity", "metadata": {"name": "1"}, "security-labels": {"k8s:app": "server"}},
    {"kind": "CiliumIdentity", "metadata": {"name": "99999999999"}, "security-labels": {}},
)


def has_words(log: Path, words: str) -> bool:
    return words in log.read_text()


def test_garbage_in_the_api_server_takes_nothing_away(plan: LabPlan) -> None:
    documents = tuple({"apiVersion": "cilium.io/v2", **document} for document in GARBAGE)
    kubectl(plan, "create", "--validate=false", "-f", "-", stdin=stream(*documents))
    try:
        for node in plan.nodes:
            log = Path(plan.log_dir, f"agent-{node.name}.log")
            for words in ("default/moon", "evil", "'1'", "'99999999999'"):
                until(partial(has_words, log, words), f"a line about {words}")
            assert ready(plan, node.name)
        assert first_only(plan)
    finally:
        for kind in ("ciliumendpoint/moon", "ciliumnode/evil", "ciliumidentity/1"):
            kubectl(plan, "delete", kind, "--ignore-not-found")
        kubectl(plan, "delete", "ciliumidentity/99999999999", "--ignore-not-found")


def test_a_node_whose_object_is_deleted_gets_it_back(plan: LabPlan) -> None:
    """Its own pods and addresses do not depend on it; the other nodes learn of it again."""
    node = plan.node("node-2")
    wanted = node_object(plan, node.name)
    routes = routes_of(node.netns)
    kubectl(plan, "delete", "ciliumnode", node.name)
    until(lambda: node_object(plan, node.name) == wanted, "the object to be there again")
    until(lambda: first_only(plan), "the other node to know it again")
    assert routes_of(node.netns) == routes


def node_object(plan: LabPlan, name: str) -> list[str]:
    """Addresses and pod prefixes of a CiliumNode; nothing when it is not there."""
    fields = "-o=jsonpath={.spec.addresses[*].ip} {.spec.ipam.podCIDRs[*]}"
    return sorted(kubectl(plan, "get", "ciliumnode", name, "--ignore-not-found", fields).split())


def routes_of(netns: str) -> str:
    command = ["nsenter", f"--net={netns}", "--", "ip", "route"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# -- the API server away -------------------------------------------------------------------------------------


def box(plan: LabPlan, name: str) -> PodRecord:
    """A sandbox nobody started a pod for."""
    directory = Path(plan.state, f"box-{name}")
    directory.mkdir(mode=0o700, exist_ok=True)
    found = PodRecord(
        namespace="default",
        name=name,
        uid="",
        node="node-2",
        sandbox=f"box-{name}",
        netns=f"{plan.netns_dir}/box-{name}",
        directory=str(directory),
    )
    kernel.create_network(found.netns)
    return found


def lose(plan: LabPlan, sandbox: PodRecord) -> None:
    asyncio.run(cni.delete(plan.node("node-2"), sandbox))
    kernel.delete_network(sandbox.netns)
    shutil.rmtree(sandbox.directory)


def pod_links(plan: LabPlan) -> set[str]:
    with kernel.inside_network(plan.node("node-2").netns):
        return {name for _, name in socket.if_nameindex() if name.startswith("lxc")}


def test_the_api_server_goes_away_and_comes_back(plan: LabPlan, api_server: ApiServer) -> None:
    node = plan.node("node-2")
    server = record(plan, "server").ips[0]
    known, unknown = box(plan, "spare"), box(plan, "unknown")
    links = pod_links(plan)
    with control.Channel(record(plan, "client").control_socket) as stream:
        stream.ask({"stream": {"address": server, "port": 8080, "bytes_per_second": 1 << 18}})
        api_server.kill()
        gone = time.monotonic()
        assert first_only(plan)
        asyncio.run(cni.add(node, known))
        with pytest.raises(cni.CniError) as refused:
            asyncio.run(cni.add(node, unknown))
        assert refused.value.code == 11
        asyncio.run(cni.check(node, known))
        lose(plan, known)
        lose(plan, unknown)
        assert pod_links(plan) == links
        assert ready(plan, "node-2")
        until(lambda: source_state(plan, "node-2") is not Health.OK, "the status to say so")
        control.ask(plan.control_socket, {"kill_agent": "node-2"})
        control.ask(plan.control_socket, {"start_agent": "node-2"})
        assert first_only(plan)
        time.sleep(max(0.0, AWAY - (time.monotonic() - gone)))
        assert first_only(plan)
        api_server.start()
        until(lambda: ready(plan, "node-2"), "the agent that started meanwhile to be ready")
        result = stream.ask({"finish": True})
    assert result["intact"] and result["sent"] == result["received"] > 0
    catches_up(plan)


def catches_up(plan: LabPlan) -> None:
    """Policies, pods and endpoints follow the API server again, on both nodes."""
    kubectl(plan, "apply", "-f", "-", stdin=stream(allow_to_server(*PORTS, client="stranger")))
    until(lambda: reached(plan, "stranger") == [True] * 4, "the new policy")
    assert reached(plan, "client") == [False] * 4
    kubectl(plan, "apply", "-f", "-", stdin=stream(pod("late", "node-1", "stranger")))
    kubectl(plan, "wait", "pod", "late", "--for=condition=Ready", "--timeout=90s")
    until(lambda: reached(plan, "late") == [True] * 4, "a new pod to be known on the other node")
    names = kubectl(plan, "get", "ciliumendpoints", "-o=jsonpath={.items[*].metadata.name}").split()
    assert sorted(names) == ["client", "late", "server", "spare", "stranger"]
