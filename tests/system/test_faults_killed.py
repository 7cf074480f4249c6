"""An agent that dies at any moment: what forwards goes on, and the next one finds all and nothing more."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import msgspec
import pytest

from cilia.dataplane import loader
from cilia.dataplane.links import POD_GROUP
from cilia.model.endpoint import Attachment
from tests.support.agent_node import AgentNode, agent_node
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

ROUNDS, PODS = 7, 3
"""Kills, and how many ADDs run at each."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentNode]:
    """A node with a client and a server that live through everything."""
    with agent_node("faults-killed", tmp_path_factory.mktemp("killed")) as made:
        for name in ("server", "client", *(f"pod-{number}" for number in range(PODS))):
            made.pod(name, {"app": name})
        made.start()
        made.addresses = {name: made.add(name) for name in ("server", "client")}
        made.serve("server")
        yield made


def saved(node: AgentNode) -> dict[str, Attachment]:
    """By host-side interface, the attachments on disk."""

    class File(msgspec.Struct):
        attachment: Attachment

    files = (node.state / "endpoints").glob("*.json")
    found = [msgspec.json.decode(path.read_bytes(), type=File).attachment for path in files]
    return {attachment.host_interface: attachment for attachment in found}


def nothing_half_made(node: AgentNode) -> None:
    """Interfaces, files, endpoints, addresses and kernel entries tell the same story."""
    attachments = saved(node)
    assert node.pod_links() == set(attachments)
    assert sorted(node.saved()) == sorted(f"{row.id}.json" for row in attachments.values())
    assert node.endpoint_ids() == {row.id for row in attachments.values()}
    status = node.client.status()
    assert (status.ipam.ipv4_used, status.ipam.ipv6_used) == (len(attachments), len(attachments))
    held = {row.ipv4 for row in attachments.values()}
    in_kernel = {str(entry.key) for entry in node.client.map("endpoints").entries}
    assert {text for text in held if not any(text in key for key in in_kernel)} == set()


def test_killed_at_any_moment_of_an_add(node: AgentNode) -> None:
    moments = random.Random(20)
    names = [f"pod-{number}" for number in range(PODS)]
    statuses: list[int] = []
    for turn in range(ROUNDS):
        calls = [node.spawn("ADD", name) for name in names]
        time.sleep(moments.uniform(0.01, 0.25))
        node.agent.end(signal.SIGKILL)
        answers = [end(call) for call in calls]
        assert all(status == 0 or b'"code":11' in answer for status, answer in answers), answers
        statuses += [status for status, _ in answers]
        assert node.reaches("client", node.addresses["server"][0])
        node.start()
        nothing_half_made(node)
        for name in names:
            # A runtime tries again in the same sandbox, or gives it up; both must work.
            if turn % 2:
                node.delete(name)
            address = node.add(name)[0]
            node.check(name)
            assert node.reaches(name, node.addresses["server"][0]), address
        for name in names:
            node.delete(name)
        nothing_half_made(node)
    assert len(node.pod_links()) == 2


def ip(node: AgentNode, words: str) -> None:
    """Run ip(8) on the node."""
    subprocess.run(["nsenter", f"--net={node.netns}", "--", "ip", *words.split()], check=True)


def end(call: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    output, _ = call.communicate(timeout=60)
    return call.returncode, output


def test_killed_during_deletions(node: AgentNode) -> None:
    """A DEL is served or queued, never lost: after the next start the pods are gone."""
    names = [f"pod-{number}" for number in range(PODS)]
    for moment in (0.02, 0.06):
        for name in names:
            node.add(name)
        calls = [node.spawn("DEL", name) for name in names]
        time.sleep(moment)
        node.agent.end(signal.SIGKILL)
        assert [end(call) for call in calls] == [(0, b"")] * PODS
        node.start()
        nothing_half_made(node)
        assert len(node.pod_links()) == 2
        queue = [path for path in (node.state / "deleteQueue").iterdir() if not path.name.startswith(".")]
        assert queue == []


def test_sigterm_leaves_flows_and_the_next_agent_adopts_them(node: AgentNode) -> None:
    server = node.addresses["server"][0]
    connection = node.connect("client", server)
    assert connection is not None
    with connection:
        before = node.endpoint_ids()
        assert node.agent.end(signal.SIGTERM) == 0
        assert "Traceback" not in node.agent.words()
        connection.sendall(b"while it is away")
        assert connection.recv(64) == b"while it is away"
        assert node.reaches("client", server)
        status, answer = node.call("ADD", "pod-0")
        assert (status, answer["code"]) == (1, 11)
        node.start()
        assert node.endpoint_ids() == before
        connection.sendall(b"afterwards")
        assert connection.recv(64) == b"afterwards"


def test_a_pod_whose_interface_went_while_the_agent_was_away_is_forgotten(node: AgentNode) -> None:
    node.add("pod-0")
    (name,) = (row.host_interface for row in saved(node).values() if row.pod == "pod-0")
    node.agent.end(signal.SIGKILL)
    ip(node, f"link delete {name}")
    node.start()
    nothing_half_made(node)
    assert name not in node.pod_links()
    node.delete("pod-0")


def test_remains_of_a_killed_agent_go_and_what_is_not_ours_stays(node: AgentNode) -> None:
    directory = node.state / "endpoints"
    node.agent.end(signal.SIGKILL)
    ip(node, f"link add lxcff group {POD_GROUP} type veth peer name half-made")
    ip(node, "link add lxcbr0 type veth peer name not-ours")
    (directory / "77.json").write_bytes(b'{"attachment": {"id": 77')
    (directory / ".78.json.4242.tmp").write_bytes(b"half")
    (node.state / "node.json").write_bytes(b'["10.77')
    node.start()
    until(lambda: (directory / "77.broken").exists(), "the damaged file to be set aside")
    assert not (directory / ".78.json.4242.tmp").exists()
    (directory / "77.broken").unlink()
    assert node.pod_links() - set(saved(node)) == {"lxcbr0"}
    ip(node, "link delete lxcbr0")
    nothing_half_made(node)


def test_killed_at_any_moment_of_a_start(node: AgentNode) -> None:
    """Half-loaded programs, half-made devices: the next start copes with anything, and traffic goes on."""
    server = node.addresses["server"][0]
    moments = random.Random(9)
    node.agent.end(signal.SIGKILL)
    before = (node.pod_links(), node.saved())
    for turn in range(6):
        if turn % 2:
            for programs in node.prefix.glob("v*/programs"):
                shutil.rmtree(programs)
        agent = node.launch()
        time.sleep(moments.uniform(0.4, 1.6))
        agent.end(signal.SIGKILL)
        assert "Traceback" not in agent.words()
        assert node.reaches("client", server)
    node.start()
    assert (node.pod_links(), node.saved()) == before
    nothing_half_made(node)
    assert not list(node.prefix.glob("v*/programs/incomplete"))
    assert node.reaches("client", server)


def test_pins_that_went_are_made_anew(node: AgentNode) -> None:
    before = (node.pod_links(), node.saved())
    connection = node.connect("client", node.addresses["server"][0])
    assert connection is not None
    node.agent.end(signal.SIGKILL)
    loader.remove(node.prefix)
    node.start()
    with connection:
        connection.sendall(b"as before")
        assert connection.recv(64) == b"as before"
    assert (node.pod_links(), node.saved()) == before
    nothing_half_made(node)
    assert node.reaches("client", node.addresses["server"][0])
