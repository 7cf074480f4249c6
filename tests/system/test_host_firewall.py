"""The host held to policies, as real traffic: outside, other nodes, pods near and far."""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from cilia.abi import object_path
from cilia.api.client import AgentError
from cilia.lab import control, kernel, starting, teardown
from cilia.lab.plan import make_plan
from cilia.model.endpoint import HOST_ENDPOINT
from tests.support.attacker import Siege, run_cilia
from tests.support.policy_lab import PolicyLab, pod, policy
from tests.support.policy_truth import Document, Peer
from tests.support.waiting import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
    pytest.mark.skipif(not object_path().exists(), reason="needs the eBPF object: run make bpf"),
]

SSH, OTHER, POD_PORT = 22, 8000, 7000
NO_ANSWER = 0.4
"""Seconds without an answer that mean no, where none is due."""
ANSWERED = 20.0
"""The same, where one is."""
NEAR, FAR = Peer("default", "near", {"app": "near"}), Peer("default", "far", {"app": "far"})
API_SERVER = "172.18.0.1"
ECHOES = itertools.count(os.getpid())


class Lab(NamedTuple):
    """Two nodes that enforce policies on themselves; node-1 serves on two ports."""

    policies: PolicyLab
    places: Siege

    def open_to(self, source: str, target: str, port: int, *, due: bool = False) -> bool:
        """Whether a connection comes about; one that is `due` is waited for patiently."""
        try:
            self.places[source].connected(target, port, timeout=ANSWERED if due else NO_ANSWER).close()
        except TimeoutError:
            return False
        return True

    def pings(self, source: str, target: str, *, due: bool = False) -> bool:
        """Whether an echo is answered; likewise."""
        with kernel.inside_network(self.places[source].netns):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with raw:
            raw.settimeout(ANSWERED if due else NO_ANSWER)
            raw.connect((target, 0))
            echo = ICMP(type=8, id=next(ECHOES) & 0xFFFF)
            raw.send(bytes(echo))
            try:
                while IP(raw.recv(256))[ICMP].type != 0:
                    pass
            except TimeoutError:
                return False
        return True

    def node(self, number: int) -> tuple[str, str]:
        """A node's addresses."""
        plan = self.policies.plan.nodes[number - 1]
        return plan.ipv4, plan.ipv6

    def router(self, number: int) -> str:
        """The address a node has among its pods."""
        views = self.policies.agents[0].nodes()
        (found,) = [view for view in views if view.name == f"node-{number}"]
        return next(address for address in found.router_addresses if ":" not in address)

    def address_of(self, peer: Peer) -> str:
        return self.policies.record(peer).ips[0]

    def flows(self, *filters: str) -> list[dict[str, object]]:
        """What node-1 has seen."""
        socket_path = self.policies.plan.nodes[0].hubble_socket
        words = ["observe", "--server", f"unix://{socket_path}", "--all", "-o", "json", *filters]
        return [line["flow"] for line in map(json.loads, run_cilia(*words).splitlines()) if "flow" in line]


TO_NODE_1: Document = {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "node-1"}}}


def host_policy(spec: Document, name: str = "host") -> Document:
    return policy("CiliumClusterwideNetworkPolicy", name, {**TO_NODE_1, **spec})


def to_port(port: int, protocol: str = "TCP") -> Document:
    return {"toPorts": [{"ports": [{"port": str(port), "protocol": protocol}]}]}


TO_API_SERVER = {"toEntities": ["kube-apiserver"], **to_port(6443)}
SSH_ONLY = {
    "ingress": [
        {"fromEntities": ["world"], **to_port(SSH)},
        {"fromEntities": ["world"], "icmps": [{"fields": [{"type": 8, "family": "IPv4"}]}]},
    ]
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    name = f"thf{os.getpid() % 1000000}"
    teardown.take_down(name)
    plan = make_plan(name, 2, agent_flags=("host-firewall",))
    try:
        starting.start(plan, lambda _: None)
        made = PolicyLab(plan)
        serve = (("TCP", POD_PORT),)
        made.start_pods([pod(NEAR, "node-1", serve), pod(FAR, "node-2", serve)])
        places = Siege(plan)
        listeners = [places["node-1"].bound(socket.SOCK_STREAM, "::", port) for port in (SSH, OTHER)]
        yield Lab(made, places)
        for listener in listeners:
            listener.close()
        places.close()
    finally:
        teardown.take_down(name)


@pytest.fixture(autouse=True)
def no_policies(lab: Lab) -> Iterator[None]:
    yield
    lab.policies.replace_all([])


def ways_in(lab: Lab) -> dict[str, tuple[str, str]]:
    """Every kind of way to node-1's own ports: from where, to which address."""
    ipv4, ipv6 = lab.node(1)
    router = lab.router(1)
    return {
        "outside, IPv4": ("outside", ipv4),
        "outside, IPv6": ("outside", ipv6),
        "another node": ("node-2", ipv4),
        "another node, behind the tunnel": ("node-2", router),
        "a pod here": ("near", ipv4),
        "a pod here, to its gateway": ("near", router),
        "a pod elsewhere": ("far", ipv4),
        "a pod elsewhere, behind the tunnel": ("far", router),
    }


def expect_in(lab: Lab, port: int, wanted: Collection[str] | None = None) -> None:
    """Just the wanted ways in must be open, which are all unless some are named."""
    ways = ways_in(lab)
    due = ways.keys() if wanted is None else set(wanted)
    found = {name for name, way in ways.items() if lab.open_to(*way, port, due=name in due)}
    assert found == due, f"to port {port}"


def ways_out(lab: Lab) -> dict[str, Callable[[bool], bool]]:
    """Every kind of way from node-1's own processes; each is told whether it is due."""
    return {
        "a pod here": lambda due: lab.open_to("node-1", lab.address_of(NEAR), POD_PORT, due=due),
        "a pod elsewhere": lambda due: lab.open_to("node-1", lab.address_of(FAR), POD_PORT, due=due),
        "outside": lambda due: lab.pings("node-1", "203.0.113.2", due=due),
        "another node": lambda due: lab.pings("node-1", lab.node(2)[0], due=due),
        "the API server": lambda due: lab.open_to("node-1", API_SERVER, 6443, due=due),
    }


def expect_out(lab: Lab, wanted: Collection[str] | None = None) -> None:
    """Just the wanted ways out must be open; likewise."""
    ways = ways_out(lab)
    due = ways.keys() if wanted is None else set(wanted)
    assert {name for name, asked in ways.items() if asked(name in due)} == due


def test_the_host_is_an_endpoint_with_its_nodes_labels(lab: Lab) -> None:
    (view,) = [one for one in lab.policies.agents[0].endpoints() if one.id == HOST_ENDPOINT]
    labels = set(view.status.identity.labels)
    assert {"reserved:host", "k8s:kubernetes.io/hostname=node-1"} <= labels
    assert (view.status.state, view.status.policy.realized.policy_enabled) == ("ready", "none")
    socket_path = lab.policies.plan.nodes[0].agent_socket
    assert "reserved:host" in run_cilia("endpoint", "list", "--agent-socket", socket_path)


def test_nothing_is_judged_before_a_policy_speaks_of_the_host(lab: Lab) -> None:
    expect_in(lab, OTHER)
    expect_out(lab)


def test_only_what_is_allowed_enters(lab: Lab) -> None:
    lab.policies.replace_all([host_policy(SSH_ONLY)])
    expect_in(lab, OTHER, ())
    expect_in(lab, SSH, {"outside, IPv4", "outside, IPv6"})
    assert lab.pings("outside", lab.node(1)[0], due=True)
    assert not lab.pings("near", lab.node(1)[0])
    expect_out(lab)
    # The other node is not meant, nor are pods.
    assert lab.pings("outside", lab.node(2)[0], due=True)
    assert lab.open_to("far", lab.address_of(NEAR), POD_PORT, due=True)
    lab.policies.replace_all([])
    expect_in(lab, OTHER)


def test_only_what_is_allowed_leaves(lab: Lab) -> None:
    spec = {
        "egress": [
            TO_API_SERVER,
            {"toEndpoints": [{"matchLabels": {"app": "near", "k8s:io.kubernetes.pod.namespace": "default"}}]},
        ]
    }
    lab.policies.replace_all([host_policy(spec)])
    allowed = {"the API server", "a pod here"}
    expect_out(lab, allowed)
    expect_in(lab, OTHER)
    # Tunnels and pods' own traffic are not the host's.
    assert lab.open_to("near", lab.address_of(FAR), POD_PORT, due=True)
    assert lab.pings("near", "203.0.113.2", due=True)


def test_nodes_are_told_apart_by_their_labels(lab: Lab) -> None:
    """Also behind the tunnel, where all nodes travel under one number."""

    def only(name: str) -> Document:
        nodes = {"fromNodes": [{"matchLabels": {"kubernetes.io/hostname": name}}]}
        return host_policy({"ingress": [nodes]})

    lab.policies.replace_all([only("node-2")])
    # A pod elsewhere that does not use the tunnel has its node's address.
    named = {"another node", "another node, behind the tunnel", "a pod elsewhere"}
    expect_in(lab, OTHER, named)
    lab.policies.replace_all([only("node-3")])
    expect_in(lab, OTHER, ())
    near = {"endpointSelector": {"matchLabels": {"app": "near"}}}
    for name, reached in (("node-2", True), ("node-3", False)):
        rule = {"fromNodes": [{"matchLabels": {"kubernetes.io/hostname": name}}]}
        to_pod = policy("CiliumNetworkPolicy", "pod", {**near, "ingress": [rule]}, "default")
        lab.policies.replace_all([to_pod])
        assert lab.open_to("node-2", lab.address_of(NEAR), POD_PORT, due=reached) is reached
        assert not lab.open_to("far", lab.address_of(NEAR), POD_PORT)
        assert lab.open_to("node-1", lab.address_of(NEAR), POD_PORT, due=True)


def test_audit_first(lab: Lab) -> None:
    since = lab.policies.agents[0].policies().revision
    lab.policies.replace_all([host_policy({**SSH_ONLY, "audit": True})])
    expect_in(lab, OTHER)
    until(lambda: lab.flows("--verdict", "AUDIT", "--to-port", str(OTHER)), "flows that audit told of")
    flow = lab.flows("--verdict", "AUDIT", "--to-port", str(OTHER))[0]
    assert flow["destination"]["ID"] == HOST_ENDPOINT  # type: ignore[index]
    assert [rule["name"] for rule in flow["ingress_denied_by"]] == ["host"]  # type: ignore[attr-defined]
    lab.policies.replace_all([host_policy(SSH_ONLY)])
    assert lab.policies.agents[0].policies().revision > since
    expect_in(lab, OTHER, ())
    until(lambda: lab.flows("-t", "drop", "--to-port", str(OTHER)), "drops that name their rule")


def test_who_closed_too_much_opens_the_host_from_the_node_itself(lab: Lab) -> None:
    """Without the API server, which is behind the closed door."""
    ipv4, _ = lab.node(1)

    def switch(*words: str) -> None:
        agent = lab.policies.plan.nodes[0].agent_socket
        run_cilia("endpoint", "config", str(HOST_ENDPOINT), *words, "--agent-socket", agent)

    lab.policies.replace_all([host_policy({"ingress": [{}], "egress": [{}]})])
    try:
        assert not lab.open_to("outside", ipv4, SSH)
        assert not lab.open_to("node-1", API_SERVER, 6443)
        switch("PolicyAuditMode=Enabled")
        assert lab.open_to("outside", ipv4, SSH, due=True)
        lab.policies.replace_all([])
    finally:
        switch("--reset")
    assert lab.open_to("node-1", API_SERVER, 6443, due=True)


def test_a_node_that_lost_its_agent_is_opened_from_itself_too(lab: Lab) -> None:
    """A new agent hears nothing behind the closed door, so it is not ready; one word opens all the same."""
    plan = lab.policies.plan
    socket_path = plan.nodes[0].agent_socket
    words = [
        "endpoint",
        "config",
        str(HOST_ENDPOINT),
        "PolicyAuditMode=Enabled",
        "--agent-socket",
        socket_path,
    ]
    lab.policies.replace_all([host_policy({"ingress": [{}], "egress": [{}]})])
    try:
        control.ask(plan.control_socket, {"kill_agent": "node-1"})
        control.ask(plan.control_socket, {"start_agent": "node-1"})
        until(lambda: "waiting for the API server" in state_of_agent(lab), "an agent that hears nothing")
        assert not lab.open_to("node-1", API_SERVER, 6443)
        run_cilia(*words)
        assert lab.open_to("node-1", API_SERVER, 6443, due=True)
        until(lambda: state_of_agent(lab) == "", "an agent that is ready")
        assert lab.open_to("outside", lab.node(1)[0], OTHER, due=True)
        lab.policies.replace_all([])
    finally:
        run_cilia("endpoint", "config", str(HOST_ENDPOINT), "--reset", "--agent-socket", socket_path)


def state_of_agent(lab: Lab) -> str:
    """Why node-1's agent is not ready; empty when it is."""
    try:
        return lab.policies.agents[0].status().agent.msg
    except AgentError as error:
        return str(error)


def talk(ours: socket.socket, theirs: socket.socket) -> bool:
    """Whether words pass both ways."""
    for sender, receiver in ((ours, theirs), (theirs, ours)):
        sender.sendall(b"word")
        receiver.settimeout(ANSWERED)
        try:
            if receiver.recv(64) == b"":
                return False
        except TimeoutError:
            return False
    return True


@pytest.fixture
def session(lab: Lab) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from outside that was there before any policy: the client's end, the host's."""
    with lab.places["node-1"].bound(socket.SOCK_STREAM, "0.0.0.0", 2222) as listener:
        client = lab.places["outside"].connected(lab.node(1)[0], 2222)
        server, _ = listener.accept()
        with client, server:
            yield client, server


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_session_that_the_policy_allows_lives_on(
    lab: Lab, session: tuple[socket.socket, socket.socket], first: str
) -> None:
    """Whoever speaks first, though nobody had tracked the flow."""
    client, server = session
    assert talk(client, server)
    allowing = {"ingress": [{"fromEntities": ["world"], **to_port(2222)}], "egress": [TO_API_SERVER]}
    lab.policies.replace_all([host_policy(allowing)])
    assert talk(*(session if first == "client" else session[::-1]))
    denying = host_policy({**SSH_ONLY, "egress": [TO_API_SERVER]})
    lab.policies.replace_all([denying])
    for speaker, hearer in (session, session[::-1]):
        speaker.sendall(b"nobody hears this")
        hearer.settimeout(0.3)
        with pytest.raises(TimeoutError):
            hearer.recv(64)
    lab.policies.replace_all([])
    until(lambda: client.recv(64), "what the host has said meanwhile")


def test_the_documented_policy_does_what_it_says(lab: Lab) -> None:
    page = (Path(__file__).parents[2] / "docs" / "policy-language.md").read_text()
    section = page[page.index("## Policies for nodes") :]
    (example,) = [part.split("```")[0] for part in section.split("```yaml")[1:2]]
    lab.policies.replace_all([host_policy(yaml.safe_load(example)["spec"] | TO_NODE_1)])
    expect_in(lab, OTHER, ways_in(lab).keys() - {"outside, IPv4", "outside, IPv6"})
    expect_in(lab, SSH)
    assert lab.pings("outside", lab.node(1)[0], due=True)


def test_the_policy_outlives_the_agent(lab: Lab) -> None:
    """Nothing enters while the agent is away or starts anew, and its own connections come about."""
    lab.policies.replace_all([host_policy(SSH_ONLY)])
    plan = lab.policies.plan
    ipv4, _ = lab.node(1)
    control.ask(plan.control_socket, {"kill_agent": "node-1"})
    assert not lab.open_to("outside", ipv4, OTHER)
    control.ask(plan.control_socket, {"start_agent": "node-1"})
    ready = False
    while not ready:
        assert not lab.open_to("outside", ipv4, OTHER)
        assert lab.open_to("outside", ipv4, SSH, due=True)
        with suppress(AgentError, OSError):
            ready = lab.policies.agents[0].status().ready
    lab.policies.settle()
    assert not lab.open_to("outside", ipv4, OTHER)


TAGS = {"none": (), "priority only": (0,), "priority only, twice": (0, 0)}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS.keys())
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_frame_with_a_priority_is_a_frame(lab: Lab, tags: tuple[int, ...], family: int) -> None:
    """The kernel takes those of VLAN 0 as untagged ones (IEEE 802.1Q, 6.9)."""
    ipv6 = family == socket.AF_INET6
    port, attacker, host = 7788, lab.places["node-2"], lab.places["node-1"]

    def heard(source: str, payload: bytes, *, due: bool = False) -> bool:
        server.settimeout(ANSWERED if due else NO_ANSWER)
        frame: Packet = Ether(src=attacker.mac, dst=host.mac)
        for tag in tags:
            frame /= Dot1Q(vlan=tag, prio=5)
        target = host.ipv6 if ipv6 else host.ipv4
        layer = IPv6(src=source, dst=target) if ipv6 else IP(src=source, dst=target)
        attacker.send(frame / layer / UDP(sport=4000, dport=port) / payload)
        try:
            while server.recv(64) != payload:
                pass
        except TimeoutError:
            return False
        return True

    world = "2001:db8:9::9" if ipv6 else "203.0.113.99"
    near = lab.policies.record(NEAR).ips[ipv6]
    with host.bound(socket.SOCK_DGRAM, "::" if ipv6 else "0.0.0.0", port) as server:
        passes = len(tags) < 2
        assert heard(world, b"before", due=passes) is passes
        assert not heard(near, b"as a pod of this node")
        lab.policies.replace_all([host_policy(SSH_ONLY)])
        assert not heard(world, b"behind the policy")
