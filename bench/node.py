"""One node as a cluster has it: embedded API server, operator and agent as processes, pods as namespaces.

Everything is the product's own and runs as it does in the lab; only the kubelet is played here, so that the
time of each of its calls can be taken.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from cilia.cluster import store as cluster
from cilia.cluster.kube.client import KubeStore
from cilia.cluster.kube.kubeconfig import load
from cilia.kit.clock import SystemClock
from cilia.kit.files import private_directory
from cilia.lab import cgroups, cni, fabric, kernel, objects, processes, teardown
from cilia.lab.daemon import agent_command, operator_command
from cilia.lab.plan import API_PORT, LabPlan, NodePlan, make_plan
from cilia.lab.records import PodRecord
from cilia.lab.source import write_credentials

NAME = "ciliabench"
ROOT = Path("/run/cilia-bench")
NAMESPACE = "bench"
READY_SECONDS = 60.0


class BenchError(Exception):
    """A measurement could not be taken; the message says what was in the way."""


class Node:
    """A running node. Calls of the CNI plugin are those of a kubelet: created pod, ready namespace, ADD."""

    def __init__(self, plan: LabPlan, store: KubeStore) -> None:
        self.plan = plan
        self.node: NodePlan = plan.nodes[0]
        self.store = store
        self.pods: dict[str, PodRecord] = {}
        self._config = b""
        self._agent: processes.Running | None = None
        self._serial = 0

    @property
    def agent_pid(self) -> int:
        """The agent's process."""
        assert self._agent is not None
        return self._agent.record.pid

    async def start_agent(self) -> float:
        """Start the agent; seconds until /v1/healthz says that it is ready."""
        start = time.perf_counter()
        command = agent_command(self.plan, self.node)
        group = cgroups.find_mount() / self.plan.cgroup_name / self.node.name / "agent"
        self._agent = await processes.start(self.plan, "agent", command, group, netns=self.node.netns)
        while not ready(self.node.agent_socket):
            if self._agent.ended or time.perf_counter() - start > READY_SECONDS:
                words = processes.last_lines(self._agent.record.log, 20)
                raise BenchError(f"the agent did not become ready:\n{words}")
            await asyncio.sleep(0.01)
        return time.perf_counter() - start

    async def kill_agent(self) -> None:
        """SIGKILL."""
        assert self._agent is not None
        await self._agent.kill()

    async def prepare(self, count: int, labels: Sequence[str] = ()) -> list[PodRecord]:
        """Create pods at the API server and their namespaces; `labels` are the values of `app`, in turn."""
        made = []
        for number in range(count):
            self._serial += 1
            name = f"pod-{self._serial}"
            pod = {
                "metadata": {"name": name, "labels": {"app": labels[number % len(labels)]} if labels else {}},
                "spec": {"nodeName": self.node.name, "containers": [{"name": "main", "image": "none"}]},
            }
            raw = await self.store.create(
                cluster.PODS, cluster.encode(cluster.PODS, pod), namespace=NAMESPACE
            )
            uid = msgspec.json.decode(raw)["metadata"]["uid"]
            netns = f"{self.plan.netns_dir}/{name}"
            kernel.create_network(netns)
            record = PodRecord(
                namespace=NAMESPACE,
                name=name,
                uid=uid,
                node=self.node.name,
                sandbox=f"{self._serial:064x}",
                netns=netns,
                directory="",
            )
            made.append(record)
            self.pods[name] = record
        return made

    def launch(self, command: cni.Command, pod: PodRecord) -> tuple[int, int]:
        """Start the plugin as a runtime does; (process id, descriptor of a file with its answer)."""
        if not self._config:
            config = cni.find_config(self.node) or {}
            request = {"cniVersion": config["cniVersion"], "name": config["name"], **config["plugins"][0]}
            self._config = msgspec.json.encode(request)
        given, answer = os.memfd_create("config"), os.memfd_create("answer")
        os.write(given, self._config)
        os.lseek(given, 0, os.SEEK_SET)
        try:
            process = os.posix_spawn(
                f"{self.node.cni_bin}/cilia-cni",
                ["cilia-cni"],
                cni.environment(command, self.node, pod),
                file_actions=[(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, answer, 1)],
            )
        finally:
            os.close(given)
        return process, answer

    def finish(self, pod: PodRecord, process: int, answer: int) -> dict[str, Any]:
        """Wait for a plugin; its answer. Raises BenchError."""
        _, status = os.waitpid(process, 0)
        text = os.pread(answer, 1 << 16, 0)
        os.close(answer)
        if status:
            raise BenchError(f"CNI call for {pod.name}: {text.decode(errors='replace')}")
        return msgspec.json.decode(text) if text else {}

    def call(self, command: cni.Command, pod: PodRecord) -> tuple[float, dict[str, Any]]:
        """One call of the plugin: seconds from exec to exit, and the answer."""
        start = time.perf_counter()
        process, answer = self.launch(command, pod)
        result = self.finish(pod, process, answer)
        return time.perf_counter() - start, result

    def attach_all(self, pods: Sequence[PodRecord]) -> tuple[float, list[str]]:
        """ADD all at once; seconds until the last has answered, and the IPv4 addresses."""
        start = time.perf_counter()
        running = [self.launch("ADD", pod) for pod in pods]
        results = [self.finish(pod, *call) for pod, call in zip(pods, running, strict=True)]
        return time.perf_counter() - start, [address(result) for result in results]

    async def remove(self, pods: Sequence[PodRecord]) -> None:
        """DEL, and take away what `prepare` made."""
        for pod in pods:
            self.call("DEL", pod)
            kernel.delete_network(pod.netns)
            await self.store.delete(cluster.PODS, pod.name, namespace=NAMESPACE)
            del self.pods[pod.name]


def address(result: dict[str, Any]) -> str:
    """The IPv4 address in a CNI result."""
    found = [entry["address"].partition("/")[0] for entry in result["ips"]]
    return str(next(one for one in found if ":" not in one))


def ready(path: str) -> bool:
    """Whether the agent behind a socket says that it is ready."""
    try:
        with opened(path) as connection:
            connection.request("GET", "/v1/healthz")
            status = msgspec.json.decode(connection.getresponse().read())
    except (OSError, http.client.HTTPException):
        return False
    return bool(status["cilium"]["state"] == "Ok")


@contextmanager
def opened(path: str) -> Any:
    """HTTP over a unix socket."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5.0)
    try:
        connection.sock.connect(path)
        yield connection
    finally:
        connection.sock.close()


@asynccontextmanager
async def running(pods: int = 0, *, flags: tuple[str, ...] = (), events: bool = True) -> AsyncIterator[Node]:
    """A node with an agent that is ready and `pods` pods attached, ten identities among them.
    `flags`: more of the agent's; `events`: whether it reads the kernel's."""
    plan = make_plan(NAME, 1, root=ROOT, agent_flags=flags, events=events)
    teardown.take_down(NAME, ROOT)
    try:
        _build(plan)
        await _start_control(plan)
        async with KubeStore(load([Path(plan.kubeconfig)]), user_agent="bench") as store:
            await _register(plan, store)
            node = Node(plan, store)
            await node.start_agent()
            node.attach_all(await node.prepare(pods, [f"app-{number}" for number in range(10)]))
            yield node
    finally:
        teardown.take_down(NAME, ROOT)
        if ROOT.is_dir():
            ROOT.rmdir()


def _build(plan: LabPlan) -> None:
    private_directory(Path(plan.state))
    for directory in (plan.log_dir, plan.bpffs, f"{plan.state}/processes"):
        private_directory(Path(directory))
    kernel.mount("bpf", plan.bpffs, "bpf", data="mode=0700")
    fabric.build(plan)
    for directory in (plan.nodes[0].directory, plan.nodes[0].cni_bin, plan.nodes[0].cni_conf):
        private_directory(Path(directory))


async def _start_control(plan: LabPlan) -> None:
    local = socket.create_server(("127.0.0.1", 0), backlog=512)
    inside = fabric.listen(plan.fabric, plan.api_address, API_PORT)
    write_credentials(plan, int(local.getsockname()[1]))
    group = cgroups.find_mount() / plan.cgroup_name / "control"
    with local, inside:
        descriptors = (local.fileno(), inside.fileno())
        command = [sys.executable, "-P", "-c", "from cilia.apps.apiserver import main; main()"]
        command += ["--state-dir", f"{plan.state}/apiserver", "--tls-san", plan.api_address]
        for descriptor in descriptors:
            command += ["--listen-fd", str(descriptor)]
        await processes.start(plan, "apiserver", command, group, pass_fds=descriptors)
    await processes.start(plan, "operator", operator_command(plan), group, netns=plan.fabric)


async def _register(plan: LabPlan, store: KubeStore) -> None:
    """The objects a kubelet and an administrator would make."""
    node = objects.node_object(plan.nodes[0], SystemClock(), ready=True)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            await store.create(cluster.NODES, cluster.encode(cluster.NODES, node))
            break
        except cluster.Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)
    await store.create(
        cluster.NAMESPACES, cluster.encode(cluster.NAMESPACES, {"metadata": {"name": NAMESPACE}})
    )
