"""History of a real agent: what pods did is there after a kill and after a restart."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow.parquet as pq
import pytest

import cilia
from tests.support.agent_node import AgentNode, agent_node
from tests.support.waiting import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
    pytest.mark.timeout(240),
]

FLAGS = {"hubble_history_dir": "flows", "hubble_history_interval": "500ms", "hubble_capacity": "256"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentNode]:
    with agent_node("cilhist", tmp_path_factory.mktemp("history")) as node:
        for name in ("client", "server"):
            node.pod(name, {"app": name})
        node.start(**FLAGS)
        node.addresses = {name: node.add(name) for name in ("client", "server")}
        node.serve("server")
        yield node


def between(node: AgentNode) -> list[dict[str, Any]]:
    """All flows of the pods the node has."""
    frame = cilia.flows(str(node.state / "hubble.sock"), since=None, pod="default/")
    rows: list[dict[str, Any]] = frame.arrow().to_pylist()
    return rows


def talk(node: AgentNode, times: int) -> None:
    for _ in range(times):
        assert node.reaches("client", node.addresses["server"][0])


def uuids(node: AgentNode) -> set[str]:
    return {row["uuid"] for row in between(node)}


def sealed(node: AgentNode) -> set[str]:
    """What is in files that any tool reads."""
    found: set[str] = set()
    for path in (node.state / "flows").glob("flows-*.parquet"):
        # Files are merged meanwhile.
        with suppress(FileNotFoundError):
            found.update(pq.read_table(path, columns=["uuid"])["uuid"].to_pylist())
    return found


def test_what_pods_did_survives_a_kill(node: AgentNode) -> None:
    talk(node, 10)
    until(lambda: sealed(node), "the first file")
    # In portions that the ring holds: a starved agent loses, and counts, what it can't seal in time.
    for _ in range(8):
        talk(node, 20)
        before = uuids(node)
        until(lambda: before <= sealed(node), "what was seen to be sealed")  # noqa: B023
    assert len(before) > 256, "more than the ring holds"
    node.agent.end(signal.SIGKILL)
    node.start(**FLAGS)
    rows = between(node)
    found = {row["uuid"] for row in rows}
    assert len(rows) == len(found)
    assert before <= found
    assert {"client", "server"} <= {row["source_pod"] for row in rows}


def test_an_orderly_stop_loses_nothing(node: AgentNode) -> None:
    talk(node, 5)
    before = uuids(node)
    assert node.agent.end() == 0
    node.start(**FLAGS)
    assert before <= uuids(node)
    assert not list((node.state / "flows").glob(".*"))


def test_wrong_settings_are_refused_in_a_sentence(node: AgentNode) -> None:
    node.agent.end()
    (node.directory / "file").write_text("")
    assert "choose another" in node.refused(hubble_history_dir=str(node.directory / "file"))
    for name, value, words in (
        ("max_bytes", "much", "must be"),
        ("max_age", "0s", "must be"),
        ("interval", "soon", "no length of time"),
    ):
        agent = node.launch(**{"hubble_history_dir": "flows", f"hubble_history_{name}": value})
        assert agent.process.wait(60) == 2
        assert words in agent.words()
