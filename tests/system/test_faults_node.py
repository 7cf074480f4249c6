"""Faults on one node: bad calls, bad files, a full disk, a second agent. Nothing half-made or lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cilia.apps.agent.cleanup import remove_everything
from cilia.apps.agent.settings import AgentSettings
from cilia.dataplane.bpf import BpfError
from cilia.lab import kernel
from tests.support.agent_node import UNANSWERED, AgentNode, agent_node
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

DISK = "size=2m,mode=0700"
SECOND = f"/sys/fs/bpf/faults-second-{os.getpid()}"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentNode]:
    """A node with a running agent, a small disk for its state, and two pods."""
    with agent_node("faults-node", tmp_path_factory.mktemp("node")) as made:
        kernel.mount("tmpfs", str(made.state), "tmpfs", data=DISK)
        try:
            made.pod("server", {"app": "server"})
            made.pod("client", {"app": "client"})
            made.start(conntrack_gc_interval="1")
            made.addresses = {name: made.add(name) for name in ("server", "client")}
            made.serve("server")
            yield made
        finally:
            made.stop_agents()
            kernel.unmount(str(made.state))


@pytest.fixture(autouse=True)
def the_agent_lives_and_serves(node: AgentNode) -> Iterator[None]:
    before = (node.pod_links(), node.saved())
    yield
    assert node.agent.process.poll() is None, node.agent.words()
    assert "Traceback" not in node.agent.words()
    assert (node.pod_links(), node.saved()) == before
    until(
        lambda: node.reaches("client", node.addresses["server"][0], timeout=UNANSWERED),
        "the client to reach the server",
    )


# -- calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stdin", "changes", "code"),
    [
        (b"{", {}, 6),
        (b"\xff\xfe", {}, 6),
        (b"[]", {}, 7),
        (b'{"cniVersion": "1.0.0", "name": "cilia", "type": "cilia-cni", "mtu": "wide"}', {}, 7),
        (b'{"cniVersion": "9.0.0", "name": "cilia", "type": "cilia-cni"}', {}, 1),
        (b"", {"CNI_COMMAND": "FROBNICATE"}, 4),
        (b"", {"CNI_IFNAME": "../../etc"}, 4),
        (b"", {"CNI_IFNAME": "a-name-that-is-too-long"}, 4),
        (b"", {"CNI_CONTAINERID": "; rm -rf /"}, 4),
        (b"", {"CNI_NETNS": ""}, 4),
        (b"", {"CNI_NETNS": "/run/netns/faults-nowhere"}, 8),
        (b"", {"CNI_NETNS": "/proc/version"}, 8),
        (b"", {"CNI_NETNS": "/tmp"}, 8),
        (b"", {"CNI_IFNAME": "lo"}, 5),
    ],
)
def test_a_malformed_call_is_answered_with_a_code_and_a_sentence(
    node: AgentNode, stdin: bytes, changes: dict[str, str], code: int
) -> None:
    node.pod("late")
    status, answer = node.call("ADD", "late", stdin=stdin, **changes)
    assert (status, answer["code"]) == (1, code), answer
    assert len(answer["msg"]) > 10
    assert node.client.status().ipam.ipv4_used == 2


def test_bytes_that_are_no_call(node: AgentNode) -> None:
    for garbage in (
        b"",
        b"CILIACNI1",
        b"CILIACNI1" + b"\xff" * 8,
        os.urandom(4096),
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(30)
            caller.connect(str(node.state / "cni.sock"))
            caller.sendall(garbage)
            caller.shutdown(socket.SHUT_WR)
            while caller.recv(4096):
                pass


def test_an_interface_that_is_there_already(node: AgentNode) -> None:
    node.pod("taken")
    command = ["nsenter", f"--net={node.netns_of('taken')}", "--"]
    subprocess.run([*command, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x"], check=True)
    status, answer = node.call("ADD", "taken")
    assert (status, answer["code"]) == (1, 5)
    assert "eth0" in answer["msg"] and "File exists" in answer["msg"]


def test_a_pod_nobody_knows(node: AgentNode) -> None:
    node.pod("ghost")
    node.forget("pod-ghost")
    status, answer = node.call("ADD", "ghost")
    assert (status, answer["code"]) == (1, 11)
    assert answer["msg"] == "there is no pod default/ghost at the API server"


def test_a_pod_whose_namespace_vanishes_at_once(node: AgentNode) -> None:
    """The runtime takes the sandbox away while the ADD runs; whatever the answer, the DEL cleans up."""
    for number in range(5):
        node.pod("brief", {"app": f"brief-{number}"})
        adding = node.spawn("ADD", "brief")
        kernel.delete_network(str(node.netns_of("brief")))
        adding.communicate(timeout=90)
        node.delete("brief")
        node.drop_pod("brief")


# -- files ---------------------------------------------------------------------------------------------------


def cnp(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}


DENY_CLIENT = cnp(
    "deny-client",
    {
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingressDeny": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}],
        "ingress": [{"fromEntities": ["all"]}],
    },
)


@pytest.mark.parametrize(
    "bad",
    [
        {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingres": [{}]},
        {"endpointSelector": {"matchLabels": {"app": "server"}}, "egress": [{"toCIDR": ["10.0.0.0/99"]}]},
        {
            "endpointSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"toPorts": [{"ports": [{"port": "70000", "protocol": "TCP"}]}]}],
        },
        {"endpointSelector": {"matchExpressions": [{"key": "app", "operator": "Sometimes"}]}},
        {"endpointSelector": {"matchLabels": "everything"}},
        {},
    ],
)
def test_a_malformed_policy_is_refused_in_the_open_and_others_hold(
    node: AgentNode, bad: dict[str, Any]
) -> None:
    server = node.addresses["server"][0]
    try:
        node.write("a-bad", cnp("bad", bad))
        node.write("deny", DENY_CLIENT)
        until(
            lambda: not node.reaches("client", server, timeout=UNANSWERED), "the good policy to be enforced"
        )
        until(lambda: problems(node, "bad"), "the bad one to be refused")
    finally:
        node.forget("a-bad")
        node.forget("deny")


def problems(node: AgentNode, name: str) -> list[str]:
    """What the agent says is wrong with a policy."""
    return [
        problem.sentence
        for policy in node.client.policies().policies
        if policy.name == name and policy.state == "invalid"
        for problem in policy.problems
    ]


@pytest.mark.parametrize("text", ["{", "\t- :\n -x: [", "kind: 7\nmetadata: []\n", "\x00\x01", "- a\n- b\n"])
def test_a_file_that_is_no_manifest_takes_nothing_away(node: AgentNode, text: str) -> None:
    server = node.addresses["server"][0]
    path = node.source / "garbage.yaml"
    try:
        node.write("deny", DENY_CLIENT)
        until(lambda: not node.reaches("client", server, timeout=UNANSWERED), "the policy to be enforced")
        path.write_text(text)
        until(lambda: "garbage.yaml" in node.agent.words(), "a line about the file")
        assert not node.reaches("client", server, timeout=UNANSWERED)
    finally:
        path.unlink(missing_ok=True)
        node.forget("deny")


GARBAGE: list[dict[str, Any]] = [
    {
        "kind": "CiliumEndpoint",
        "metadata": {"name": "moon", "namespace": "default"},
        "status": {
            "id": 9,
            "identity": {"id": 70_000_000_000, "labels": [":=:"]},
            "networking": {"node": "the-moon", "addressing": [{"ipv4": "10.77.0.300", "ipv6": "::%x"}]},
            "named-ports": [{"name": "x", "port": -4, "protocol": "?"}],
        },
    },
    {
        "kind": "CiliumEndpoint",
        "metadata": {"name": "host", "namespace": "default"},
        "status": {
            "id": 9,
            "identity": {"id": 1},
            "networking": {"node": "192.0.2.9", "addressing": [{"ipv4": "198.51.100.7"}]},
        },
    },
    {
        "kind": "CiliumNode",
        "metadata": {"name": "evil"},
        "spec": {
            "addresses": [
                {"type": "InternalIP", "ip": "192.0.2.1"},
                {"type": "InternalIP", "ip": "nowhere"},
                {"type": "CiliumInternalIP", "ip": "::"},
            ],
            "ipam": {"podCIDRs": ["0.0.0.0/0", "192.0.2.0/24", "10.77.0.0/24", "x", "10.5.0.0/77"]},
        },
    },
    {"kind": "CiliumIdentity", "metadata": {"name": "1"}, "security-labels": {"k8s:app": "server"}},
    {"kind": "CiliumIdentity", "metadata": {"name": "99999999999"}, "security-labels": {}},
    {"kind": "CiliumIdentity", "metadata": {"name": "web"}, "security-labels": {}},
]


def test_garbage_from_the_cluster_is_ignored_with_a_line_each(node: AgentNode) -> None:
    routes = node.routes()
    before = {(entry.cidr, entry.identity) for entry in node.client.addresses()}
    try:
        node.write("garbage", *({"apiVersion": "cilium.io/v2", **document} for document in GARBAGE))
        for name in ("moon", "host", "evil", "'1'", "'99999999999'", "'web'"):
            until(partial(said, node, name), f"a line about {name}")
        after = {(entry.cidr, entry.identity) for entry in node.client.addresses()}
        assert after == before
        assert node.routes() == routes
        assert node.agent.words().count("the-moon") == 1
    finally:
        node.forget("garbage")


def said(node: AgentNode, words: str) -> bool:
    """Whether the agent's log has the words."""
    return words in node.agent.words()


def test_a_pod_with_absurd_labels_can_do_without_or_waits(node: AgentNode) -> None:
    absurd = {"": "", "=": "=", ":" * 300: "x" * 5000, "a/b/c": "\n", "é": "\x00"}
    node.pod("absurd", absurd)
    try:
        status, answer = node.call("ADD", "absurd")
        assert status == 0 or answer["code"] == 11, answer
        node.delete("absurd")
    finally:
        node.forget("pod-absurd")


# -- limits --------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """The file system has no byte left for the length of the block."""
    filler = directory / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        yield
    finally:
        filler.unlink()


def test_a_full_disk_refuses_adds_and_nothing_else(node: AgentNode) -> None:
    server = node.addresses["server"][0]
    node.pod("late", {"app": "server"})
    node.pod("leaving", {"app": "server"})
    node.add("leaving")
    with full_disk(node.state):
        status, answer = node.call("ADD", "late")
        assert (status, answer["code"]) == (1, 5)
        assert "No space left on device" in answer["msg"] and "make room" in answer["msg"]
        assert node.reaches("client", server)
        node.delete("leaving")
        assert node.client.status().ready
    node.add("late")
    node.delete("late")


def test_two_agents_on_one_node(node: AgentNode) -> None:
    elsewhere = str(node.directory / "second")
    assert node.refused() == "another agent runs on this node: stop it first"
    assert (
        node.refused(bpf_prefix=SECOND, state_dir=elsewhere)
        == "another agent runs on this node: stop it first"
    )
    assert not Path(SECOND).exists()
    with kernel.inside_network(node.netns), pytest.raises(BpfError, match="another agent runs on this node"):
        settings = AgentSettings(node_name="node-1", bpf_prefix=Path(SECOND))
        list(remove_everything(settings))
    node.pod("elsewhere")
    sentence = node.refused("nsenter", f"--net={node.netns_of('elsewhere')}", "--", state_dir=elsewhere)
    assert sentence.startswith(f"another agent holds {node.prefix}: stop it first")


def test_a_full_disk_does_not_keep_an_agent_from_starting(node: AgentNode) -> None:
    """Nor does it lose a DEL: what can't be queued is refused, and the runtime repeats it."""
    node.pod("leaving", {"app": "server"})
    node.add("leaving")
    with full_disk(node.state):
        node.agent.end(signal.SIGKILL)
        status, answer = node.call("DEL", "leaving")
        assert (status, answer["code"]) == (1, 11)
        assert "can't be queued (No space left on device); make room or start the agent" in answer["msg"]
        node.start()
        node.delete("leaving")
        assert node.reaches("client", node.addresses["server"][0])
