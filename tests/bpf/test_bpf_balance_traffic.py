"""Real sockets that ask for services, translated packet by packet."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.support.datapath_ears import Ears
from tests.support.datapath_world import ALLOW_ALL, DENY_ALL, TCP, UDP, Frontend, World
from tests.support.traffic_nodes import ONE, PREFIX, TWO, ask, inside, talk, two_nodes

pytestmark = pytest.mark.root

SO_COOKIE = 57
PORT = 7777
VIP4, VIP6 = "10.96.0.10", "fd00:96::10"
LOOPBACK4, LOOPBACK6 = "169.254.42.1", "100::a9fe:2a01"
A, B, C = ONE.pod("a"), ONE.pod("b"), TWO.pod("c")
PROTOCOLS = {"tcp": TCP, "udp": UDP}
PATHS = {
    "same node": ("b", B.ipv4, A.ipv4),
    "same node, IPv6": ("b", B.ipv6, A.ipv6),
    "other node": ("c", C.ipv4, A.ipv4),
    "other node, IPv6": ("c", C.ipv6, A.ipv6),
    "itself": ("a", A.ipv4, LOOPBACK4),
    "itself, IPv6": ("a", A.ipv6, LOOPBACK6),
    "its node": ("n1", "10.0.1.1", A.ipv4),
    "its node, IPv6": ("n1", "fd00:1::1", A.ipv6),
    "another node": ("n2", "10.0.2.1", A.ipv4),
    "another node's underlay": ("n2", TWO.underlay, ONE.underlay),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, World]]:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    with two_nodes() as made:
        yield made


@pytest.fixture
def node(nodes: dict[str, World]) -> Iterator[World]:
    yield nodes["n1"]
    for made in nodes.values():
        made.forget_services()
        made.forget_flows()


def serve(node: World, backend: str, port: int = PORT) -> str:
    """A service of both protocols for one backend; what to ask for."""
    vip = VIP6 if ":" in backend else VIP4
    for number, protocol in enumerate(PROTOCOLS.values(), 1):
        node.add_service(Frontend(number, vip, 80, protocol), [(backend, port)])
    return f"{vip}@80"


@pytest.mark.parametrize(("server", "address", "seen"), PATHS.values(), ids=PATHS.keys())
def test_streams_and_datagrams(node: World, server: str, address: str, seen: str) -> None:
    asked = serve(node, address)
    assert talk("a", server, address, "tcp", 300_000, asked=asked) == seen
    assert talk("a", server, address, "udp", 1200, asked=asked) == seen


@pytest.mark.parametrize("path", ["same node", "same node, IPv6", "other node", "itself", "its node"])
def test_fragmented_datagrams(node: World, path: str) -> None:
    server, address, seen = PATHS[path]
    assert talk("a", server, address, "udp", 5000, asked=serve(node, address)) == seen


@pytest.mark.parametrize("path", ["same node", "same node, IPv6", "other node", "itself", "itself, IPv6"])
def test_refused_ports_are_told(node: World, path: str) -> None:
    """The backend's answer is about the packet as it was sent to the frontend."""
    _, address, _ = PATHS[path]
    asked = serve(node, address)
    for kind in PROTOCOLS:
        assert ask("a", kind, asked) == "refused"


@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_nobody_serves(node: World, vip: str) -> None:
    for number, (kind, protocol) in enumerate(PROTOCOLS.items(), 1):
        node.add_service(Frontend(number, vip, 80, protocol), [], "SERVICE_REJECT")
        assert ask("a", kind, f"{vip}@80") == "refused"
    node.add_service(Frontend(1, vip, 80), [])
    assert ask("a", "tcp", f"{vip}@80") == "silence"


@pytest.mark.parametrize("backend", [B.ipv4, B.ipv6])
def test_a_connection_whose_last_backend_has_gone_ends(node: World, backend: str) -> None:
    vip, family = (VIP6, socket.AF_INET6) if ":" in backend else (VIP4, socket.AF_INET)
    frontend = Frontend(1, vip, 80)
    node.add_service(frontend, [(backend, PORT)])
    with inside(f"{PREFIX}b"):
        listening = socket.create_server((backend, PORT), family=family)
    with inside(f"{PREFIX}a"):
        asking = socket.socket(family)
    with listening, asking:
        asking.settimeout(30)
        asking.connect((vip, 80))
        asking.sendall(b"question")
        node.add_service(frontend, [], "SERVICE_REJECT")
        node.end_backend(frontend, 0)
        with pytest.raises(ConnectionResetError):
            asking.sendall(b"another")
            asking.recv(1)


def test_a_node_port_of_a_node_elsewhere(node: World) -> None:
    node.settings["node_port_first"], node.settings["node_port_last"] = 30000, 32767
    node.add_service(Frontend(1, "0.0.0.0", 30080), [(B.ipv4, PORT)], "SERVICE_NODE_PORT")
    assert talk("a", "b", B.ipv4, "tcp", 1000, asked=f"{TWO.underlay}@30080") == A.ipv4


def test_what_a_translated_socket_asked_for_is_known(node: World) -> None:
    """The socket was given the backend when it connected; its packets show nothing else."""
    frontend = Frontend(3, VIP4, 53, UDP)
    node.add_service(frontend, [(B.ipv4, 5353)])
    ears = Ears(node)
    with inside(f"{PREFIX}a"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        (cookie,) = struct.unpack("<Q", asking.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))
        key = node.row("socket_service_key", cookie=cookie, address=B.ipv4, port=5353, protocol=UDP)
        value = node.row("socket_service", address=VIP4, port=53, service=3)
        node.put("socket_services", key, value)
        asking.sendto(b"question", (B.ipv4, 5353))
    (entry,) = [value for key, value in node.flows() if int(key["protocol"]) == UDP]
    assert int(entry["service"]) == 3
    assert not int(entry["flags"]) & node.layout.value("CT_TRANSLATED")
    assert node.service_flows() == []
    (event,) = [event for event in ears.traces() if int(event["protocol"]) == UDP]
    assert (int(event["service"]), int(event["original_destination_port"])) == (3, 53)
    assert event["original_destination"].tobytes() == node.address(VIP4).tobytes()
    assert event["destination"].tobytes() == node.address(B.ipv4).tobytes()


@pytest.mark.parametrize("backend", [B.ipv4, C.ipv6])
def test_a_pod_is_told_of_its_policy(node: World, backend: str) -> None:
    """The packet is answered as the pod sent it: its socket knows the frontend only."""
    asked = serve(node, backend)
    node.set_policy(1, DENY_ALL)
    try:
        node.settings["flags"] |= node.layout.value("NODE_DENY_RESPONSE")
        assert {ask("a", kind, asked) for kind in PROTOCOLS} == {"prohibited"}
    finally:
        node.settings["flags"] ^= node.layout.value("NODE_DENY_RESPONSE")
        node.set_policy(1, ALLOW_ALL)
