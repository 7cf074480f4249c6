"""Node ports from outside on a lab whose nodes carry known flows on in the driver of their device.

node-1: near      node-2: far      outside: 203.0.113.2, which asks node-1
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from cilia.lab import kernel, records
from cilia.lab.plan import OUTSIDE_HOST
from tests.support.offload import finish_packets
from tests.support.services_lab import ServicesLab, question, server, service, services_lab
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

DSR = {"service.cilium.io/forwarding-mode": "dsr"}
SERVICES = {"near": "near", "far": "far", "far-dsr": "far"}
"""Each with the pod that serves it."""
ALL_FRAMES = 3
"""ETH_P_ALL."""
EXCHANGES = 10


@pytest.fixture(scope="module")
def lab() -> Iterator[ServicesLab]:
    with services_lab("tsx", 2, ["bpf-lb-acceleration=testing-only"]) as made:
        made.start_pods(server("near", 1, "node-1"), server("far", 2, "node-2"))
        spaces = [made.plan.outside, *(node.netns for node in made.plan.nodes)]
        spaces += [record.netns for record in records.pods(made.plan)]
        for space in spaces:
            with kernel.inside_network(space):
                finish_packets("eth0")
        for name, pod in SERVICES.items():
            body = service(name, {"pod": pod}, type="NodePort")
            body["metadata"]["annotations"] = DSR if name.endswith("dsr") else {}
            made.apply(body)
        for name in SERVICES:
            until(partial(is_served, made, name), name)
        yield made


def is_served(lab: ServicesLab, name: str) -> bool:
    """Over both families."""
    asked_both = [asked(lab, name, "tcp", six) for six in (False, True)]
    return all("who" in found for found in lab.at("outside").ask_all(asked_both))


def asked(lab: ServicesLab, name: str, protocol: str, six: bool) -> dict[str, object]:
    node = lab.plan.nodes[0]
    address = node.ipv6 if six else node.ipv4
    return question(protocol, address, lab.node_ports(name)[protocol])


@contextmanager
def frames_of(lab: ServicesLab, port: int) -> Iterator[list[bytes]]:
    """What node-1 has seen for a node port, at any device, once the driver's program has let it pass; counted
    when the block ends."""
    seen: list[bytes] = []
    with kernel.inside_network(lab.plan.nodes[0].netns):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_FRAMES))
    with tap:
        tap.setblocking(False)
        yield seen
        while True:
            try:
                frame = tap.recv(1 << 16)
            except BlockingIOError:
                return
            if port.to_bytes(2) in frame[34:60]:
                seen.append(frame)


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("name", SERVICES)
def test_a_node_port_from_outside(lab: ServicesLab, name: str, protocol: str, six: bool) -> None:
    outside, wanted = lab.at("outside"), asked(lab, name, protocol, six)
    talk = f"{name}-{protocol}-{six}"
    first = outside.request({"open": talk, **wanted})
    try:
        with frames_of(lab, int(str(wanted["port"]))) as frames:
            answers = [outside.request({"say": talk, "want": 900 * (turn % 2)}) for turn in range(EXCHANGES)]
    finally:
        outside.request({"close": talk})
    for answer in (first, *answers):
        assert answer.get("who") == SERVICES[name], answer
        assert (answer["peer"], answer["peer_port"]) == (wanted["address"], wanted["port"])
        assert (answer["client"] == OUTSIDE_HOST[six]) == (name != "far"), answer
    if name == "near" or (name, protocol) == ("far-dsr", "udp"):
        assert len(frames) >= EXCHANGES, "a pod of the node, or a datagram with an option, is the stack's"
    else:
        assert not frames, "the flow is known, but the stack has seen its packets"
