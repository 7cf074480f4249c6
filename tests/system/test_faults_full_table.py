"""Full tables: conntrack refuses new flows and never an established one; no address is left for a pod."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.dataplane import loader
from tests.support.agent_node import ANSWERED, UNANSWERED, AgentNode, agent_node
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

ENTRIES = 64
CLIENTS = tuple(f"client-{number}" for number in range(6))
"""One pod alone may open only part of the table."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentNode]:
    with agent_node("faults-table", tmp_path_factory.mktemp("table")) as made:
        for name in ("server", *CLIENTS):
            made.pod(name, {"app": name})
        made.start(conntrack_entries=str(ENTRIES), conntrack_gc_interval="0.5", ipv4_pod_cidr="10.77.0.0/28")
        yield made


def test_new_flows_wait_and_old_ones_live(node: AgentNode) -> None:
    server, *_ = (node.add(name)[0] for name in ("server", *CLIENTS))
    node.serve("server")
    held: list[socket.socket] = []
    try:
        held += open_all(node, CLIENTS[0], server)
        assert held
        assert drops(node, "Rate limited") > 0
        assert drops(node, "CT: Map insertion failed") == 0
        assert node.reaches(CLIENTS[1], server)
        for client in CLIENTS[1:]:
            held += open_all(node, client, server)
        assert drops(node, "CT: Map insertion failed") > 0
        assert all(map(echoes, held))
        assert node.client.status().ready
        node.delete(CLIENTS[0])
        until(
            lambda: node.reaches(CLIENTS[-1], server, timeout=UNANSWERED),
            "room again when a pod and its flows went",
        )
    finally:
        for found in held:
            found.close()


def test_no_address_is_left(node: AgentNode) -> None:
    extra: list[str] = []
    while True:
        name = f"extra-{len(extra)}"
        node.pod(name, {"app": "extra"})
        status, answer = node.call("ADD", name)
        if status:
            break
        extra.append(name)
        assert len(extra) < 16
    assert answer["code"] == 101
    assert "10.77.0.0/28" in answer["msg"]
    used = node.client.status().ipam
    assert used.ipv4_used == used.ipv6_used == len(node.pod_links())
    node.delete(extra.pop())
    until(lambda: node.call("ADD", name)[0] == 0, "an address to be free again")


def open_all(node: AgentNode, client: str, server: str) -> list[socket.socket]:
    """As many connections as a pod gets."""
    held: list[socket.socket] = []
    while (more := node.connect(client, server, timeout=1.5)) is not None:
        more.settimeout(ANSWERED)
        held.append(more)
        assert len(held) <= ENTRIES
    return held


def echoes(connection: socket.socket) -> bool:
    """Whether a connection still carries data both ways."""
    connection.sendall(b"still here")
    return connection.recv(32) == b"still here"


def drops(node: AgentNode, reason: str) -> float:
    """Packets dropped for a reason, as the metrics tell."""
    found = re.findall(
        rf'cilium_drop_count_total{{[^}}]*reason="{reason}"[^}}]*}} ([0-9.e+]+)', node.client.metrics()
    )
    return sum(map(float, found))


def test_a_full_map_of_endpoints(tmp_path: Path) -> None:
    """Pinned maps keep their size: one that is too small for another pod refuses it and keeps the others."""
    with agent_node("faults-map", tmp_path) as node:
        loader.load(node.prefix, sizes={"endpoints": 8}).close()
        names = [f"pod-{number}" for number in range(4)]
        for name in names:
            node.pod(name, {"app": name})
        node.start()
        held = []
        for name in names:
            status, answer = node.call("ADD", name)
            if status:
                break
            held.append((name, answer["ips"][0]["address"].partition("/")[0]))
        assert answer["code"] == 11
        assert "map endpoints is full (8 entries): raise its size" in answer["msg"]
        assert len(held) == len(node.pod_links()) == len(node.saved()) == node.client.status().ipam.ipv4_used
        node.serve(held[0][0])
        assert node.reaches(held[1][0], held[0][1])
        node.delete(held.pop()[0])
        node.add(name)
