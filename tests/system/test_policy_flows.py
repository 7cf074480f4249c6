"""Flows that outlive policies: what is denied stops with the next packet, what is allowed goes on."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence

import pytest

from cilia.lab import kernel
from tests.support.policy_flows import Conversation, Conversations
from tests.support.policy_lab import PolicyLab, pod, policy, policy_lab
from tests.support.policy_truth import Document, Peer
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

CLIENT = Peer("default", "client", {"app": "client"})
SERVERS = (
    (Peer("default", "near", {"app": "server"}), "node-1"),
    (Peer("default", "far", {"app": "server"}), "node-2"),
)
PORT = 7000
WAITING_PORT = 7001
QUIET = 0.3
"""Seconds in which nothing may arrive."""
UNDER_WAY = 0.3
"""Seconds that a packet may be on its way after its verdict."""

SERVER = {"matchLabels": {"app": "server"}}
CLIENTS = {"matchLabels": {"app": "client"}}
OPEN = {"ingress": False, "egress": False}


def cilium(spec: Document) -> Document:
    return policy("CiliumNetworkPolicy", "change", spec, "default")


def ports(first: int, last: int) -> list[Document]:
    return [{"ports": [{"port": str(first), "endPort": last, "protocol": "ANY"}]}]


ENDING = {
    "ingress isolated": policy("NetworkPolicy", "change", {"podSelector": SERVER}, "default"),
    "egress isolated": policy(
        "NetworkPolicy", "change", {"podSelector": CLIENTS, "policyTypes": ["Egress"]}, "default"
    ),
    "ingress denied": cilium(
        {"endpointSelector": SERVER, "enableDefaultDeny": OPEN, "ingressDeny": [{"fromEndpoints": [CLIENTS]}]}
    ),
    "egress denied": cilium(
        {
            "endpointSelector": CLIENTS,
            "enableDefaultDeny": OPEN,
            "egressDeny": [{"toPorts": ports(PORT, WAITING_PORT)}],
        }
    ),
    "ingress allowed for another port": cilium(
        {"endpointSelector": SERVER, "ingress": [{"toPorts": ports(8000, 8080)}]}
    ),
    "egress allowed for another port": cilium(
        {"endpointSelector": CLIENTS, "egress": [{"toPorts": ports(8000, 8080)}]}
    ),
}


def audited(document: Document) -> Document:
    """The same, but what it denies is only noted."""
    noted = {"annotations": {"policy.cilia.io/audit": "true"}}
    return {**document, "metadata": {**document["metadata"], **noted}}


STANDING = {
    **{f"{name}, in audit": audited(document) for name, document in ENDING.items()},
    "ingress": cilium({"endpointSelector": SERVER, "ingress": [{"fromEndpoints": [CLIENTS]}]}),
    "egress": cilium({"endpointSelector": CLIENTS, "egress": [{"toPorts": ports(PORT, WAITING_PORT)}]}),
    "the other direction isolated": policy(
        "NetworkPolicy", "change", {"podSelector": SERVER, "policyTypes": ["Egress"]}, "default"
    ),
    "the client's ingress isolated": policy("NetworkPolicy", "change", {"podSelector": CLIENTS}, "default"),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    with policy_lab(f"tpf{os.getpid() % 1000000}") as made:
        servers = [pod(peer, node, [("TCP", 8080)]) for peer, node in SERVERS]
        made.start_pods([pod(CLIENT, "node-1", [("TCP", 8080)]), *servers])
        yield made


def ends_of(lab: PolicyLab) -> Iterator[tuple[str, tuple[str, str], str]]:
    """Name, namespaces of client and server, address of the server."""
    client = lab.record(CLIENT)
    for peer, _ in SERVERS:
        server = lab.record(peer)
        for address in server.ips:
            yield f"{peer.name} {address}", (client.netns, server.netns), address


@pytest.fixture(scope="module")
def flows(lab: PolicyLab) -> Iterator[Conversations]:
    """TCP and UDP, same node and across nodes, both families; they live through all tests of this file."""
    lab.replace_all(())
    kinds = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
    made = [
        Conversation(f"{word} to {name}", netns, address, PORT, kind)
        for name, netns, address in ends_of(lab)
        for word, kind in kinds.items()
    ]
    with Conversations(made) as running:
        yield running


def begin(netns: tuple[str, str], address: str) -> tuple[socket.socket, socket.socket]:
    """A connection that is being set up, and the listener it is for."""
    with kernel.inside_network(netns[1]):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, WAITING_PORT), family=family)
    with kernel.inside_network(netns[0]):
        client = socket.socket(family, socket.SOCK_STREAM)
    client.setblocking(False)
    assert client.connect_ex((address, WAITING_PORT)) == errno.EINPROGRESS
    return client, listener


def connected(clients: Sequence[socket.socket]) -> list[socket.socket]:
    """Those whose connection has come about or failed."""
    return select.select([], clients, [], 0)[1]


def all_flow(flows: Conversations, since: float) -> None:
    """Wait until each direction delivers; a stream that was cut retransmits within seconds."""
    until(lambda: len(flows.arriving_after(since)) == len(flows.ends), "every flow to go on")


@pytest.mark.parametrize("name", ENDING)
def test_what_is_denied_now_ends_with_its_next_packet(
    lab: PolicyLab, flows: Conversations, name: str
) -> None:
    lab.replace_all(())
    all_flow(flows, time.monotonic())
    lab.replace_all([ENDING[name]])
    enforced = time.monotonic()
    time.sleep(UNDER_WAY)
    flows.catch_up()
    silent = time.monotonic()
    time.sleep(QUIET)
    assert flows.arriving_after(enforced) == []
    assert flows.heard_after(silent) == []
    lab.replace_all(())
    all_flow(flows, time.monotonic())
    assert flows.failure is None


@pytest.mark.parametrize("name", STANDING)
def test_what_stays_allowed_loses_nothing(lab: PolicyLab, flows: Conversations, name: str) -> None:
    lab.replace_all(())
    all_flow(flows, time.monotonic())
    lost = flows.missing()
    lab.replace_all([STANDING[name]])
    all_flow(flows, time.monotonic())
    assert flows.missing() == lost
    assert flows.failure is None


@pytest.mark.parametrize("name", ENDING)
def test_what_is_allowed_now_lets_waiting_connections_through(lab: PolicyLab, name: str) -> None:
    """A connect that gets no answer sends its SYN again, and then gets one."""
    lab.replace_all([ENDING[name]])
    waiting = [begin(netns, address) for _, netns, address in ends_of(lab)]
    clients = [client for client, _ in waiting]
    try:
        time.sleep(QUIET)
        assert connected(clients) == []
        lab.replace_all(())
        until(lambda: len(connected(clients)) == len(clients), "the connections")
        assert all(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 for client in clients)
    finally:
        for opened in (one for pair in waiting for one in pair):
            opened.close()
