"""A lab of two nodes for tests of policies: objects through the API server, waiting, questions in bulk.

node-1, node-2       pods with an echo server on the ports their objects name
203.0.113.2-4        one host outside the cluster, which has three addresses of each family
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from cilia.api.client import AgentClient
from cilia.api.types import OptionChange
from cilia.hubble.client import Client as HubbleClient
from cilia.lab import control, records, starting, teardown
from cilia.lab.plan import LabPlan, make_plan
from cilia.lab.records import PodRecord
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.api_client import Client
from tests.support.logs import assert_no_crash
from tests.support.policy_truth import Document, Packet, Peer
from tests.support.waiting import until

PATIENCE = 90.0
ANSWER_TIMEOUT = 0.25
"""Seconds without an answer that mean no."""
SECOND_TIMEOUT = 3.0
"""The same for a question asked again because an answer was due: more than one retransmission of a SYN."""
OUTSIDE_ADDRESSES = (
    ("203.0.113.2", "2001:db8:203::2"),
    ("203.0.113.3", "2001:db8:203::3"),
    ("203.0.113.4", "2001:db8:203::4"),
)
PATHS = {
    "Namespace": "/api/v1/namespaces",
    "Pod": "/api/v1/namespaces/{}/pods",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "CiliumNetworkPolicy": "/apis/cilium.io/v2/namespaces/{}/ciliumnetworkpolicies",
    "CiliumClusterwideNetworkPolicy": "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies",
    "ClusterNetworkPolicy": "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
    "CiliumCIDRGroup": "/apis/cilium.io/v2/ciliumcidrgroups",
    "Service": "/api/v1/namespaces/{}/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
}
API_VERSIONS = {
    "Namespace": "v1",
    "Pod": "v1",
    "Service": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "ClusterNetworkPolicy": "policy.networking.k8s.io/v1alpha2",
}
POLICIES = frozenset(kind for kind in PATHS if kind.endswith("NetworkPolicy"))

Key = tuple[str, str, str]


def policy(kind: str, name: str, spec: Document, namespace: str = "", **more: Any) -> Document:
    """An object of a kind as one writes it in YAML."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    version = API_VERSIONS.get(kind, "cilium.io/v2")
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec, **more}


def pod(peer: Peer, node: str, serve: Iterable[tuple[str, int]]) -> Document:
    """A pod that echoes on these ports (protocol, number); those the peer has names for carry them."""
    names = {value: name for name, value in peer.ports.items()}
    ports = [
        {"protocol": protocol, "containerPort": port}
        | ({"name": names[protocol, port]} if (protocol, port) in names else {})
        for protocol, port in serve
    ]
    spec = {
        "nodeName": node,
        "containers": [{"name": "c", "image": "cilia.io/lab/server", "ports": ports}],
    }
    metadata = {"name": peer.name, "namespace": peer.namespace, "labels": peer.labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


class PolicyLab:
    """See the module. Use `policy_lab()`."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan
        self.api = Client(Path(plan.kubeconfig))
        self.agents = tuple(AgentClient(node.agent_socket) for node in plan.nodes)
        self._applied: dict[Key, tuple[str, int]] = {}
        """Policies that are there: uid and generation."""

    # objects

    def apply(self, *documents: Document) -> None:
        """Create or replace objects; the API server must take them."""
        for document in documents:
            self._apply(document)

    def delete(self, *documents: Document) -> None:
        """Delete objects."""
        for document in documents:
            path, name = _path(document), document["metadata"]["name"]
            answer = self.api.delete(f"{path}/{name}")
            assert answer.code < 300, answer.body
            self._applied.pop(_key(document), None)

    def replace_all(self, documents: Sequence[Document], state: str = "valid") -> None:
        """Make these policies, all in one state, the only ones, and wait until every node enforces them."""
        wanted = {_key(document) for document in documents}
        for kind, namespace, name in set(self._applied) - wanted:
            self.delete(policy(kind, name, {}, namespace))
        self.apply(*documents)
        self.settle(state)

    @contextmanager
    def mode(self, value: str) -> Iterator[None]:
        """Enforcement (default, always, never) on every node, for the length of a block."""
        for agent in self.agents:
            agent.change_settings(OptionChange(options={"PolicyEnforcement": value}))
        try:
            yield
        finally:
            for agent in self.agents:
                agent.change_settings(OptionChange(reset=("PolicyEnforcement",)))

    def settle(self, state: str = "valid") -> None:
        """Wait until every node enforces the policies as last written."""
        for agent in self.agents:
            until(partial(self._knows, agent, state), "an agent to know the policies")
            revision = agent.policies().revision
            answer = agent.wait_policy(revision, PATIENCE)
            assert answer.reached, f"revision {revision} is not enforced: {answer}"

    def _apply(self, document: Document) -> None:
        path, name = _path(document), document["metadata"]["name"]
        answer = self.api.post(path, document)
        while answer.code == 409:
            # It exists; and whoever writes its status in between makes us ask again.
            old = self.api.get(f"{path}/{name}").json["metadata"]["resourceVersion"]
            metadata = {**document["metadata"], "resourceVersion": old}
            answer = self.api.put(f"{path}/{name}", {**document, "metadata": metadata})
        assert answer.code < 300, answer.body
        if document["kind"] in POLICIES:
            metadata = answer.json["metadata"]
            self._applied[_key(document)] = (metadata["uid"], metadata["generation"])

    def _knows(self, agent: AgentClient, state: str) -> bool:
        listed = agent.policies().policies
        for one in listed:
            refused = one.state == "invalid" and state == "valid"
            assert not refused, f"{one.kind} {one.name} is refused: {one.problems}"
        known = {(one.kind, one.namespace, one.name): (one.uid, one.generation) for one in listed}
        return known == self._applied and all(one.state == state for one in listed)

    # pods

    def record(self, peer: Peer) -> PodRecord:
        """Where a pod, or the host outside, runs."""
        if peer.is_pod:
            return records.find_pod(self.plan, peer.namespace, peer.name)
        return next(one for one in records.pods(self.plan) if one.name == "outside")

    def start_pods(self, documents: Sequence[Document], patience: float = PATIENCE) -> None:
        """Create pods and wait until they run, every node knows their addresses and enforces them."""
        self.apply(*documents)
        keys = [(one["metadata"]["namespace"], one["metadata"]["name"]) for one in documents]

        def running() -> bool:
            alive = {(one.namespace, one.name) for one in records.pods(self.plan) if records.alive(one)}
            return alive.issuperset(keys)

        until(running, "all pods to run", patience)
        addresses = {
            address
            for one in records.pods(self.plan)
            if (one.namespace, one.name) in keys
            for address in one.ips
        }
        for agent in self.agents:
            until(partial(self._reachable, agent, addresses), "a node to know all pods")
        self.settle()

    def relabel(self, peer: Peer, labels: dict[str, str]) -> None:
        """Give a pod other labels, and wait until every node knows it by them."""
        path = PATHS["Pod"].format(peer.namespace)
        answer = self.api.merge(f"{path}/{peer.name}", {"metadata": {"labels": labels}})
        assert answer.code < 300, answer.body
        wanted = {f"k8s:{key}={value}" for key, value in labels.items()}
        addresses = set(self.record(peer).ips)

        def known() -> bool:
            ours = [
                view.status.identity.id
                for agent in self.agents
                for view in agent.endpoints()
                if view.status.external_identifiers.pod_name == f"{peer.namespace}/{peer.name}"
                and wanted <= set(view.status.identity.labels)
            ]
            return bool(ours) and all(
                entry.identity == ours[0]
                for agent in self.agents
                for entry in agent.addresses()
                if entry.cidr.partition("/")[0] in addresses
            )

        until(known, f"every node to know {peer.name} by its labels")

    def _reachable(self, agent: AgentClient, addresses: set[str]) -> bool:
        known = {entry.cidr.partition("/")[0] for entry in agent.addresses() if entry.identity >= 256}
        states = {view.status.state for view in agent.endpoints()}
        return known >= addresses and states <= {"ready"}

    def route_from_outside(self) -> None:
        """Let the host outside reach pods at their own addresses, as a router that knows the nodes would."""
        routes = [
            f"route add {prefix} via {node.ipv6 if ':' in prefix else node.ipv4}"
            for node in self.plan.nodes
            for view in self.agents[0].nodes()
            if view.name == node.name
            for prefix in view.pod_cidrs
        ]
        _ip(self.plan.fabric, routes)

    def answer_from_outside(self, prefixes: Iterable[str]) -> None:
        """Give the host outside all addresses of these prefixes."""
        near = dict(zip((False, True), OUTSIDE_ADDRESSES[0], strict=True))
        for prefix in prefixes:
            _ip(self.plan.outside, [f"route add local {prefix} dev lo"])
            _ip(self.plan.fabric, [f"route add {prefix} via {near[':' in prefix]}"])

    # traffic

    def answers(self, packets: Sequence[Packet], timeout: float = ANSWER_TIMEOUT) -> list[str]:
        """Ask all questions at once, each from its source; the prober's answers in their order."""
        asked: dict[str, list[int]] = {}
        sockets = {packet.source: "" for packet in packets}
        for source in sockets:
            sockets[source] = self.record(source).control_socket
        for number, packet in enumerate(packets):
            asked.setdefault(sockets[packet.source], []).append(number)
        found = [""] * len(packets)

        def ask(socket: str) -> None:
            questions = [_question(packets[number], timeout) for number in asked[socket]]
            results = control.ask(socket, {"probe": questions}, timeout=timeout + 60)["results"]
            for number, result in zip(asked[socket], results, strict=True):
                found[number] = str(result["answer"])

        with ThreadPoolExecutor(max_workers=len(asked)) as threads:
            list(threads.map(ask, asked))
        return found

    def wrong(self, packets: Sequence[Packet], allowed: Callable[[Packet], bool]) -> list[str]:
        """Ask, compare with what should be, and say each difference in a line.

        Who should have been answered and was not is asked again with more patience: on a busy machine
        a late answer is no denial.
        """
        answers = dict(zip(packets, self.answers(packets), strict=True))
        silent = [one for one in packets if allowed(one) and answers[one] == "timeout"]
        if silent:
            answers |= dict(zip(silent, self.answers(silent, SECOND_TIMEOUT), strict=True))
        wrong = [
            f"{describe(one)}: {answers[one]}, expected {'an answer' if allowed(one) else 'none'}"
            for one in packets
            if (answers[one] == "ok") != allowed(one)
        ]
        return wrong and wrong + self.flows(packet for packet in silent if answers[packet] == "timeout")

    def flows(self, packets: Iterable[Packet]) -> list[str]:
        """What the nodes saw of these packets and their answers, for a test that fails."""
        found = []
        for packet in packets:
            ends = [address_of(one, packet.family) for one in (packet.source, packet.target)]
            filters = [flow_pb2.FlowFilter(source_ip=[a], destination_ip=[b]) for a, b in (ends, ends[::-1])]
            request = observer_pb2.GetFlowsRequest(number=6, whitelist=filters)
            for node in self.plan.nodes:
                with HubbleClient(f"unix://{node.hubble_socket}") as client:
                    for answer in client.get_flows(request):
                        found.append(
                            f"{node.name}: {text_format.MessageToString(answer.flow, as_one_line=True)}"
                        )
        return found


def describe(packet: Packet) -> str:
    """A question in a line."""
    ends = " -> ".join(f"{one.namespace or 'outside'}/{one.name}" for one in (packet.source, packet.target))
    return f"{ends} {packet.family} {packet.protocol}/{packet.port}"


def address_of(peer: Peer, family: str) -> str:
    """A peer's address of a family."""
    return next(one for one in peer.addresses if (":" in one) == (family == "IPv6"))


def _question(packet: Packet, timeout: float) -> dict[str, Any]:
    question = {
        "protocol": packet.protocol.lower(),
        "address": address_of(packet.target, packet.family),
        "port": 0 if packet.protocol == "ICMP" else packet.port,
        "timeout": timeout,
    }
    if not packet.source.is_pod:
        question["source"] = address_of(packet.source, packet.family)
    return question


def _key(document: Document) -> Key:
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def _path(document: Document) -> str:
    return PATHS[document["kind"]].format(document["metadata"].get("namespace", ""))


@contextmanager
def policy_lab(name: str, nodes: int = 2, flags: tuple[str, ...] = ()) -> Iterator[PolicyLab]:
    """A lab without pods, whose agents have more flags; all of it goes at the end."""
    teardown.take_down(name)
    plan = make_plan(name, nodes, agent_flags=flags)
    try:
        starting.start(plan, lambda _: None)
        _more_addresses(plan)
        yield PolicyLab(plan)
        assert_no_crash(Path(plan.log_dir))
    finally:
        teardown.take_down(name)


def _ip(netns: str, lines: Iterable[str]) -> None:
    command = ["nsenter", f"--net={netns}", "--", "ip", "-batch", "-"]
    subprocess.run(command, input="\n".join(lines), text=True, check=True)


def _more_addresses(plan: LabPlan) -> None:
    lines = [
        line
        for ipv4, ipv6 in OUTSIDE_ADDRESSES[1:]
        for line in (f"address add {ipv4}/24 dev eth0", f"address add {ipv6}/64 dev eth0 nodad")
    ]
    _ip(plan.outside, lines)
