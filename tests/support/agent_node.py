"""One node in a network namespace of its own, with a real agent on a directory of YAML, and pods to attach.

    outside namespaces            node namespace `<name>`                pod namespaces `<name>-<pod>`
    the test's own process        eth0 192.0.2.1, 2001:db8::1          eth0, made by the CNI plugin
                                  agent, cilia_host, cilia_vxlan

The test's process opens sockets inside the namespaces and keeps them, so nothing else has to run there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cilia.api.client import AgentClient
from cilia.dataplane import loader
from cilia.lab import cgroups, kernel
from cilia.model.endpoint import HOST_ENDPOINT
from tests.support.waiting import until

NETNS = Path("/run/netns")
PINS = Path("/sys/fs/bpf")
PATIENCE = 60.0
ANSWERED = 20.0
"""Seconds to wait for an answer that is due."""
UNANSWERED = 0.5
"""Seconds without an answer that mean none."""
AGENT = (sys.executable, "-P", "-c", "from cilia.apps.agent.main import main; main()")


class Agent:
    """A running agent process; its output goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def words(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")


class AgentNode:
    """See the module. Use `agent_node()`."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.netns = NETNS / name
        self.prefix = PINS / name
        self.cgroup = cgroups.find_mount() / name
        self.source = directory / "yaml"
        self.state = directory / "state"
        self.bin = directory / "bin"
        self.conf = directory / "net.d"
        self.client = AgentClient(str(self.state / "agent.sock"))
        self.agents: list[Agent] = []
        self.addresses: dict[str, list[str]] = {}
        """Of pods, for tests that share them."""
        self._pods: dict[str, Path] = {}
        self._results: dict[str, dict[str, Any]] = {}
        self._listeners: list[socket.socket] = []

    # the agent

    def options(self, **changes: str) -> list[str]:
        """The agent's command line; `changes` by flag name with underscores, empty ones are left out."""
        values = {
            "node-name": "node-1",
            "state-dir": str(self.state),
            "bpf-prefix": str(self.prefix),
            "source-dir": str(self.source),
            "cni-bin-dir": str(self.bin),
            "cni-conf-dir": str(self.conf),
            "native-device": "eth0",
            "cgroup-root": str(self.cgroup),
            "ipv4-pod-cidr": "10.77.0.0/24",
            "ipv6-pod-cidr": "fd00:77::/120",
            "health-listen": "",
            "metrics-listen": "",
            "identity-change-grace": "0",
        }
        values |= {key.replace("_", "-"): value for key, value in changes.items()}
        given = {key: value for key, value in values.items() if value or key.endswith("-listen")}
        return [word for key, value in given.items() for word in (f"--{key}", value)]

    def launch(self, *wrapper: str, **changes: str) -> Agent:
        """Start an agent; `wrapper` is put before its command."""
        log = self.directory / f"agent-{len(self.agents)}.log"
        command = ["nsenter", f"--net={self.netns}", "--", *wrapper, *AGENT, *self.options(**changes)]
        environment = {
            key: value
            for key, value in os.environ.items()
            if key != "KUBECONFIG" and not key.startswith("CILIA_")
        }
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd="/")
        agent = Agent(process, log)
        self.agents.append(agent)
        return agent

    def start(self, *wrapper: str, **changes: str) -> Agent:
        """Start an agent and wait until it is ready."""
        self.agent = self.launch(*wrapper, **changes)
        self.wait_ready(self.agent)
        return self.agent

    def wait_ready(self, agent: Agent) -> None:
        """Wait until pods can be attached."""

        def ready() -> bool:
            assert agent.process.poll() is None, agent.words()
            return self.client.status().ready

        try:
            until(ready, "the agent to be ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{agent.words()}") from error

    def refused(self, *wrapper: str, **changes: str) -> str:
        """Start an agent that must refuse to run: status 1 and one line, which is returned."""
        agent = self.launch(*wrapper, **changes)
        status = agent.process.wait(PATIENCE)
        words = agent.words().strip()
        assert status == 1, f"status {status}: {words}"
        assert "Traceback" not in words
        lines = [line for line in words.splitlines() if line.startswith("cilia-agent: ")]
        assert len(lines) == 1, words
        return lines[0].removeprefix("cilia-agent: ")

    # the cluster's objects

    def write(self, name: str, *documents: dict[str, Any]) -> None:
        """Write a manifest whole."""
        scratch = self.directory / f"{name}.tmp"
        scratch.write_text("\n---\n".join(json.dumps(document) for document in documents))
        scratch.rename(self.source / f"{name}.yaml")

    def forget(self, name: str) -> None:
        """Remove a manifest."""
        (self.source / f"{name}.yaml").unlink(missing_ok=True)

    def pod(self, name: str, labels: dict[str, str] | None = None) -> None:
        """Make a pod's namespace and its object."""
        path = NETNS / f"{self.name}-{name}"
        if name not in self._pods:
            kernel.create_network(str(path))
            self._pods[name] = path
        metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}", "labels": labels or {}}
        spec = {"nodeName": "node-1", "containers": [{"name": "c", "image": "none"}]}
        self.write(f"pod-{name}", {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def drop_pod(self, name: str) -> None:
        """Take a pod's object and namespace away."""
        self.forget(f"pod-{name}")
        kernel.delete_network(str(self._pods.pop(name)))

    def netns_of(self, name: str) -> Path:
        """A pod's network namespace."""
        return self._pods[name]

    # the runtime's side of CNI

    def call_command(self) -> list[str]:
        """How a runtime on this node runs the plugin."""
        return ["nsenter", f"--net={self.netns}", "--", str(self.bin / "cilia-cni")]

    def environment(self, command: str, pod: str, container: str = "", **changes: str) -> dict[str, str]:
        """The variables of one call."""
        arguments = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}"
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container or f"box-{pod}",
            "CNI_NETNS": str(self._pods[pod]) if pod in self._pods else "",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": arguments,
            "CNI_PATH": str(self.bin),
            "PATH": os.environ.get("PATH", os.defpath),
        } | changes

    def spawn(self, command: str, pod: str, container: str = "") -> subprocess.Popen[bytes]:
        """Begin a call; the configuration is on its way."""
        process = subprocess.Popen(
            self.call_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment(command, pod, container),
        )
        assert process.stdin is not None
        process.stdin.write(CONFIG)
        process.stdin.close()
        process.stdin = None
        return process

    def call(
        self, command: str, pod: str, container: str = "", *, stdin: bytes = b"", **changes: str
    ) -> tuple[int, dict[str, Any]]:
        """Make one call: exit status and answer."""
        done = subprocess.run(
            self.call_command(),
            input=stdin or CONFIG,
            capture_output=True,
            check=False,
            timeout=90,
            env=self.environment(command, pod, container, **changes),
        )
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}

    def add(self, pod: str, container: str = "") -> list[str]:
        """ADD that must succeed; the pod's addresses."""
        status, answer = self.call("ADD", pod, container)
        assert status == 0, answer
        self._results[pod] = answer
        return [entry["address"].partition("/")[0] for entry in answer["ips"]]

    def check(self, pod: str) -> None:
        """CHECK against what the last ADD answered; it must succeed."""
        request = {**json.loads(CONFIG), "prevResult": self._results[pod]}
        status, answer = self.call("CHECK", pod, stdin=json.dumps(request).encode())
        assert status == 0, answer

    def delete(self, pod: str, container: str = "") -> None:
        """DEL that must succeed."""
        status, answer = self.call("DEL", pod, container)
        assert status == 0, answer

    # what is there

    def pod_links(self) -> set[str]:
        """Names of the host-side interfaces of pods."""
        with kernel.inside_network(self.netns):
            return {name for _, name in socket.if_nameindex() if name.startswith("lxc")}

    def routes(self) -> str:
        """The node's routes, as ip(8) prints them."""
        found = [
            subprocess.run(
                ["nsenter", f"--net={self.netns}", "--", "ip", family, "route"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            for family in ("-4", "-6")
        ]
        return "".join(found)

    def saved(self) -> list[str]:
        """Files in the directory of endpoints."""
        return sorted(path.name for path in (self.state / "endpoints").iterdir())

    def endpoint_ids(self) -> set[int]:
        """Ids of the containers' endpoints the agent tells of; the host's is always there."""
        return {view.id for view in self.client.endpoints()} - {HOST_ENDPOINT}

    # traffic

    def inside(self, pod: str, family: int, kind: int) -> socket.socket:
        """A socket of a pod, used from here."""
        with kernel.inside_network(self._pods[pod]):
            return socket.socket(family, kind)

    def serve(self, pod: str, port: int = 8080) -> None:
        """Answer on a TCP port of a pod, over IPv4: what comes goes back. Until the node is closed."""
        listener = self.inside(pod, socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", port))
        listener.listen(256)
        self._listeners.append(listener)
        threading.Thread(target=_echo, args=(listener,), daemon=True).start()

    def connect(
        self, pod: str, address: str, port: int = 8080, timeout: float = ANSWERED
    ) -> socket.socket | None:
        """A connection from a pod, or None when none came about; its reads wait as long."""
        found = self.inside(pod, socket.AF_INET, socket.SOCK_STREAM)
        found.settimeout(timeout)
        try:
            found.connect((address, port))
        except OSError:
            found.close()
            return None
        return found

    def reaches(self, pod: str, address: str, port: int = 8080, timeout: float = ANSWERED) -> bool:
        """Whether a connection comes about; where none is due, or it is asked again, give UNANSWERED."""
        found = self.connect(pod, address, port, timeout)
        if found is not None:
            found.close()
        return found is not None

    # the end

    def stop_agents(self) -> None:
        """End what still runs."""
        for agent in self.agents:
            if agent.process.poll() is None:
                agent.process.kill()
            agent.process.wait(PATIENCE)

    def close(self) -> None:
        """Take everything away."""
        self.stop_agents()
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        loader.remove(self.prefix)
        for path in (*self._pods.values(), self.netns):
            kernel.delete_network(str(path))


def _echo(listener: socket.socket) -> None:
    """Serve one connection after the other in threads of their own; ends with the listener."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo_one, args=(connection,), daemon=True).start()


def _echo_one(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            return


CONFIG = json.dumps({"cniVersion": "1.0.0", "name": "cilia", "type": "cilia-cni"}).encode()


@contextmanager
def agent_node(name: str, directory: Path) -> Iterator[AgentNode]:
    """A node without an agent yet. All of it goes at the end.

    Runs of the tests beside each other do not meet: the process is part of all names.
    """
    node = AgentNode(f"{name}-{os.getpid()}", directory)
    NETNS.mkdir(exist_ok=True)
    for path in (node.source, node.state):
        path.mkdir(mode=0o700, parents=True)
    lines = [
        "link set lo up",
        "link add eth0 type veth peer name far0",
        "address add 192.0.2.1/24 dev eth0",
        "address add 2001:db8::1/64 dev eth0 nodad",
        "link set eth0 up",
        "link set far0 up",
        "route add default via 192.0.2.254",
    ]
    try:
        cgroups.create(node.cgroup)
        kernel.create_network(str(node.netns))
        command = ["nsenter", f"--net={node.netns}", "--", "ip", "-batch", "-"]
        subprocess.run(command, input="\n".join(lines), text=True, check=True)
        yield node
    finally:
        node.close()
        cgroups.remove(node.cgroup)
        shutil.rmtree(directory / "state", ignore_errors=True)
