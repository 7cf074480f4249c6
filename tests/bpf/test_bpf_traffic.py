"""Real sockets over the real programs: streams, datagrams, pings and their ends."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.datapath_world import ALLOW_ALL, DENY_ALL, World
from tests.support.traffic_nodes import ONE, TWO, ask, end, talk, two_nodes

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, World]]:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    with two_nodes() as made:
        yield made


A, B, C = ONE.pod("a"), ONE.pod("b"), TWO.pod("c")
PATHS = {
    "same node": ("a", "b", B.ipv4, A.ipv4),
    "same node, IPv6": ("a", "b", B.ipv6, A.ipv6),
    "other node": ("a", "c", C.ipv4, A.ipv4),
    "other node, IPv6": ("c", "b", B.ipv6, C.ipv6),
    "pod to its node": ("a", "n1", "10.0.1.1", A.ipv4),
    "pod to its node, IPv6": ("a", "n1", "fd00:1::1", A.ipv6),
    "pod to its node's underlay": ("a", "n1", ONE.underlay, A.ipv4),
    "node to its pod": ("n1", "a", A.ipv4, "10.0.1.1"),
    "node to its pod, IPv6": ("n1", "a", A.ipv6, "fd00:1::1"),
    "node to a pod elsewhere": ("n1", "c", C.ipv4, "10.0.1.1"),
    "pod to another node": ("a", "n2", "10.0.2.1", A.ipv4),
    "masqueraded": ("a", "n2", TWO.underlay, ONE.underlay),
}


@pytest.mark.parametrize(("client", "server", "address", "seen"), PATHS.values(), ids=PATHS.keys())
def test_streams_and_datagrams(
    nodes: dict[str, World], client: str, server: str, address: str, seen: str
) -> None:
    assert talk(client, server, address, "tcp", 300_000) == seen
    assert talk(client, server, address, "udp", 1200) == seen


@pytest.mark.parametrize("path", ["same node", "other node", "masqueraded"])
def test_fragmented_datagrams(nodes: dict[str, World], path: str) -> None:
    client, server, address, seen = PATHS[path]
    assert talk(client, server, address, "udp", 5000) == seen


@pytest.mark.parametrize("path", ["same node, IPv6", "other node, IPv6", "pod to its node, IPv6"])
@pytest.mark.parametrize("size", [100, 5000])
def test_extension_headers(nodes: dict[str, World], path: str, size: int) -> None:
    """Hop-by-hop and destination options; in pieces, the latter stand behind the fragment header."""
    client, server, address, seen = PATHS[path]
    assert talk(client, server, address, "udp-options", size) == seen


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [100, 4000])
def test_pings(nodes: dict[str, World], path: str, size: int) -> None:
    client, _, address, _ = PATHS[path]
    command = end(client, "ask", "ping", address, str(size))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert (done.stdout.strip(), done.stderr) == (address, "")


@pytest.mark.parametrize("path", ["same node", "other node", "node to its pod", "masqueraded"])
def test_refused_ports_are_told(nodes: dict[str, World], path: str) -> None:
    """An ICMP error or a reset finds its way back to who asked."""
    client, _, address, _ = PATHS[path]
    for kind in ("tcp", "udp"):
        assert ask(client, kind, address) == "refused"


def test_policy_changes_meet_the_next_packet(nodes: dict[str, World]) -> None:
    node = nodes["n2"]
    node.set_policy(1, DENY_ALL)
    try:
        assert talk("a", "c", C.ipv4, "udp") == "silence\n"
    finally:
        node.set_policy(1, ALLOW_ALL)
    assert talk("a", "c", C.ipv4, "udp") == A.ipv4


@pytest.mark.parametrize("address", [B.ipv4, B.ipv6, C.ipv4, C.ipv6, "10.0.1.1", TWO.underlay])
def test_a_pod_is_told_of_its_policy(nodes: dict[str, World], address: str) -> None:
    """Sockets fail at once, not by a timeout; without the switch they wait."""
    node = nodes["n1"]
    node.set_policy(1, DENY_ALL)
    try:
        told = {}
        for kind in ("tcp", "udp"):
            node.settings["flags"][0] |= node.layout.value("NODE_DENY_RESPONSE")
            told[kind] = ask("a", kind, address)
        assert told == {"tcp": "prohibited", "udp": "prohibited"}
        node.settings["flags"][0] &= ~np.uint32(node.layout.value("NODE_DENY_RESPONSE"))
        assert ask("a", "udp", address) == "silence"
    finally:
        node.settings["flags"][0] &= ~np.uint32(node.layout.value("NODE_DENY_RESPONSE"))
        node.set_policy(1, ALLOW_ALL)


@pytest.mark.parametrize("address", [B.ipv4, B.ipv6, C.ipv4])
def test_a_stream_that_is_denied_midway(nodes: dict[str, World], address: str) -> None:
    """Its packets are batches with unfinished checksums; the answers quote the first bytes of one."""
    node = nodes["n1"]
    server = "c" if address == C.ipv4 else "b"
    listening = subprocess.Popen(end(server, "serve", "tcp", address), stdout=subprocess.PIPE, text=True)
    asking: subprocess.Popen[str] | None = None
    try:
        assert listening.stdout is not None
        listening.stdout.readline()
        command = end("a", "ask", "tcp", address, str(10**9))
        asking = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not any(value["packets"][0] > 50 for _, value in node.flows()):
            assert asking.poll() is None
            time.sleep(0.01)
        before = node.counted(133)
        node.settings["flags"][0] |= node.layout.value("NODE_DENY_RESPONSE")
        node.set_policy(1, DENY_ALL)
        _, said = asking.communicate(timeout=90)
        assert said.strip() in ("silence", "prohibited")
        assert node.counted(133) > before
    finally:
        node.settings["flags"][0] &= ~np.uint32(node.layout.value("NODE_DENY_RESPONSE"))
        node.set_policy(1, ALLOW_ALL)
        node.forget_flows()
        for process in filter(None, (asking, listening)):
            process.kill()
            process.wait()
