"""A lab for tests of services: servers that say who they are and whom they see, and clients in every place.

    node-1: near, client, ...      node-2: far, ...      outside: 203.0.113.2

Clients run where they are asked for, and stay: a question costs no process.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cilia.api.client import AgentClient
from cilia.lab import records, starting, teardown
from cilia.lab.plan import LabPlan, make_plan
from tests.support.api_client import Client
from tests.support.logs import assert_no_crash
from tests.support.waiting import until

Document = dict[str, Any]
END = Path(__file__).with_name("services_end.py")
LIMIT = 1200
"""Seconds a client lives at most: it never outlives a test that died."""
PATHS = {
    "Namespace": ("v1", "/api/v1/namespaces"),
    "Node": ("v1", "/api/v1/nodes"),
    "Pod": ("v1", "/api/v1/namespaces/{}/pods"),
    "Service": ("v1", "/api/v1/namespaces/{}/services"),
    "EndpointSlice": ("discovery.k8s.io/v1", "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"),
    "CiliumNetworkPolicy": ("cilium.io/v2", "/apis/cilium.io/v2/namespaces/{}/ciliumnetworkpolicies"),
    "CiliumLocalRedirectPolicy": (
        "cilium.io/v2",
        "/apis/cilium.io/v2/namespaces/{}/ciliumlocalredirectpolicies",
    ),
}
PORTS = {"tcp": 8080, "udp": 8080, "sctp": 8132}
"""Where servers listen. SCTP keeps its port through a service."""


def manifest(kind: str, name: str, spec: Document | None = None, **more: Any) -> Document:
    """An object of the namespace `default`; `labels` and `annotations` go into its metadata."""
    metadata = {"name": name, "namespace": "default"}
    metadata |= {key: more.pop(key) for key in ("labels", "annotations") if key in more}
    body: Document = {"apiVersion": PATHS[kind][0], "kind": kind, "metadata": metadata, **more}
    return body if spec is None else body | {"spec": spec}


def server(
    name: str,
    number: int,
    node: str,
    *,
    labels: Document | None = None,
    ports: Document = PORTS,
    sctp: Iterable[int] = (),
    **container: Any,
) -> Document:
    """A pod that serves `ports` and more ports by SCTP; it says that it is `name`, or `number` by SCTP."""
    served = [*ports.items(), *(("sctp", port) for port in sctp)]
    named = [
        {"name": f"on-{protocol}", "protocol": protocol.upper(), "containerPort": port}
        for protocol, port in ports.items()
    ]
    words = [f"{protocol}:{port}" for protocol, port in served]
    command = [sys.executable, "-IS", str(END), "serve", name, str(number), *words]
    fields = {"name": "c", "image": "tests/server", "command": command, "ports": named, **container}
    spec = {"nodeName": node, "containers": [fields]}
    return manifest("Pod", name, spec, labels={"app": "web", "pod": name, **(labels or {})})


def client(name: str, node: str) -> Document:
    """A pod that serves nothing."""
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "cilia.io/lab/client"}]}
    return manifest("Pod", name, spec, labels={"app": "client"})


def service(name: str, selector: Document | None, **spec: Any) -> Document:
    """A Service of both families with a port for each protocol, unless `ports` says otherwise."""
    ports = [
        {"name": protocol, "protocol": protocol.upper(), "port": number, "targetPort": PORTS[protocol]}
        for protocol, number in (("tcp", 80), ("udp", 80), ("sctp", PORTS["sctp"]))
    ]
    fields: Document = {"ports": ports, "ipFamilyPolicy": "RequireDualStack", **spec}
    if selector is not None:
        fields["selector"] = selector
    return manifest("Service", name, fields)


class Place:
    """A client that runs somewhere: `ask` it. Closing ends its process.

    Where packets are translated, not sockets, a client whose kernel gives one port to two flows towards one
    backend by two frontends has one of them dropped. Questions there (`numbered`) have a port each.
    """

    def __init__(self, command: Sequence[str], *, numbered: bool) -> None:
        self._ports = itertools.cycle(range(10_000, 30_000)) if numbered else None
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def request(self, request: Document) -> Document:
        """One request of `services_end`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the client ended: {self._process.args!r}"
        answer: Document = json.loads(line)
        return answer

    def ask_all(self, questions: Sequence[Document]) -> list[Document]:
        """All at once."""
        asked = list(questions)
        if self._ports is not None:
            asked = [{"source_port": next(self._ports), **one} for one in asked]
        answers: list[Document] = self.request({"ask": asked})["answers"]
        return answers

    def ask(self, protocol: str, address: str, port: int, **more: Any) -> Document:
        """One question."""
        return self.ask_all([question(protocol, address, port, **more)])[0]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def question(protocol: str, address: str, port: int, **more: Any) -> Document:
    """A question as a client takes it."""
    return {"protocol": protocol, "address": address, "port": port, **more}


class ServicesLab:
    """See the module. Use `services_lab()`."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan
        self.api = Client(Path(plan.kubeconfig))
        self.agents = {node.name: AgentClient(node.agent_socket) for node in plan.nodes}
        self._places: dict[str, Place] = {}

    # objects

    def apply(self, *documents: Document) -> None:
        """Create or replace objects."""
        for document in documents:
            path, name = _path(document), document["metadata"]["name"]
            answer = self.api.post(path, document)
            if answer.code == 409:
                answer = self.api.merge(f"{path}/{name}", {k: v for k, v in document.items() if k != "kind"})
            assert answer.code < 300, answer.body

    def delete(self, kind: str, *names: str, **how: Any) -> None:
        """Delete objects of the namespace `default`."""
        for name in names:
            path = PATHS[kind][1].format("default")
            answer = self.api.delete(f"{path}/{name}", how or None)
            assert answer.code < 300 or answer.code == 404, answer.body

    def get(self, kind: str, name: str) -> Document:
        """An object of the namespace `default`."""
        answer = self.api.get(f"{PATHS[kind][1].format('default')}/{name}")
        assert answer.code == 200, answer.body
        found: Document = answer.json
        return found

    def give_addresses(self, name: str, *addresses: str) -> None:
        """Addresses of a load balancer."""
        status = {"loadBalancer": {"ingress": [{"ip": address} for address in addresses]}}
        path = f"{PATHS['Service'][1].format('default')}/{name}/status"
        answer = self.api.merge(path, {"status": status})
        assert answer.code < 300, answer.body

    def cluster_ips(self, name: str) -> tuple[str, str]:
        """IPv4, IPv6."""
        spec = self.get("Service", name)["spec"]
        four, six = sorted(spec["clusterIPs"], key=lambda text: ":" in text)
        return four, six

    def node_ports(self, name: str) -> dict[str, int]:
        """By the port's name."""
        ports = self.get("Service", name)["spec"]["ports"]
        return {port["name"]: port["nodePort"] for port in ports}

    def endpoints(self, name: str) -> set[str]:
        """Addresses of ready endpoints in a Service's slices."""
        path = PATHS["EndpointSlice"][1].format("default")
        return {
            address
            for item in self.api.get(path).json["items"]
            if item["metadata"]["labels"].get("kubernetes.io/service-name") == name
            for endpoint in item["endpoints"] or ()
            if endpoint["conditions"]["ready"]
            for address in endpoint["addresses"]
        }

    def events(self, name: str) -> list[str]:
        """What was told of an object."""
        found = self.api.get("/api/v1/namespaces/default/events").json["items"]
        return [item["message"] for item in found if item["involvedObject"]["name"] == name]

    def start_pods(self, *documents: Document) -> None:
        """Create pods and wait until every node knows them."""
        self.apply(*documents)
        names = {document["metadata"]["name"] for document in documents}

        def running() -> bool:
            return names <= {one.name for one in records.pods(self.plan) if records.alive(one)}

        until(running, "all pods to run")
        addresses = {address for name in names for address in self.addresses(name)}

        def known() -> bool:
            return all(
                addresses
                <= {entry.cidr.partition("/")[0] for entry in agent.addresses() if entry.identity >= 256}
                for agent in self.agents.values()
            )

        until(known, "every node to know all pods")

    def addresses(self, pod: str) -> tuple[str, ...]:
        """IPv4, IPv6."""
        return records.find_pod(self.plan, "default", pod).ips

    # clients

    def at(self, where: str) -> Place:
        """The client in a pod (by name), on a node, `outside`, or `packets:POD`: a pod without its cgroup.

        Sockets of the last are not the node's, so each of their packets is translated.
        """
        place = self._places.get(where)
        if place is None:
            numbered = where == "outside" or where.startswith("packets:")
            place = self._places[where] = Place(self._command(where), numbered=numbered)
        return place

    def _command(self, where: str) -> list[str]:
        end = ["timeout", str(LIMIT), sys.executable, "-IS", str(END), "ask"]
        if where.startswith("packets:"):
            record = records.find_pod(self.plan, "default", where.partition(":")[2])
            return ["nsenter", f"--net={record.netns}", "--", *end]
        if where == "outside":
            words = ["outside-exec"]
        elif where in self.agents:
            words = ["node-exec", where]
        else:
            words = ["exec", f"default/{where}"]
        return [sys.executable, "-m", "cilia.lab", *words, "--name", self.plan.name, "--", *end]

    def forget(self, where: str) -> None:
        """End a client, because its place goes."""
        place = self._places.pop(where, None)
        if place is not None:
            place.close()

    def ask_everywhere(self, asked: dict[str, list[Document]]) -> dict[str, list[Document]]:
        """Questions by place, all places at once."""
        places = {where: self.at(where) for where in asked}
        with ThreadPoolExecutor(max_workers=max(1, len(asked))) as threads:
            answers = threads.map(lambda where: places[where].ask_all(asked[where]), asked)
            return dict(zip(asked, answers, strict=True))

    def close(self) -> None:
        """End all clients."""
        for where in list(self._places):
            self.forget(where)


def ip(netns: str, *lines: str) -> None:
    """Tell ip(8) in a namespace."""
    command = ["nsenter", f"--net={netns}", "--", "ip", "-batch", "-"]
    subprocess.run(command, input="\n".join(lines), text=True, check=True)


def _path(document: Document) -> str:
    return PATHS[document["kind"]][1].format(document["metadata"].get("namespace", ""))


@contextmanager
def services_lab(prefix: str, nodes: int = 2, flags: Iterable[str] = ()) -> Iterator[ServicesLab]:
    """A lab without pods; all of it goes at the end. No program of it may have crashed."""
    name = f"{prefix}{os.getpid() % 1000000}"
    teardown.take_down(name)
    plan = make_plan(name, nodes, agent_flags=tuple(flags))
    lab = None
    try:
        starting.start(plan, lambda _: None)
        lab = ServicesLab(plan)
        yield lab
        assert_no_crash(Path(plan.log_dir))
    finally:
        if lab is not None:
            lab.close()
        teardown.take_down(name)
