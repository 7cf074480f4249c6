"""Streams of a client outside that the driver of the node it asks carries alone, once they are open.

        ┌ client x
switch ─┼ node one: from_driver; from_netdev only until the stream is open
        └ node two ── pod_c
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from cilia.dataplane import bpf, xdp
from cilia.dataplane.bpf import Attach
from cilia.dataplane.xdp import Acceleration
from tests.support.datapath_world import World
from tests.support.offload import finish_packets
from tests.support.outside_client import (
    ASKED,
    BACKENDS,
    CLIENT,
    SERVED,
    SWITCH,
    VIRTUAL4,
    VIRTUAL6,
    serve_by,
)
from tests.support.service_world import Balancer
from tests.support.traffic_nodes import ONE, PREFIX, TWO, inside

pytestmark = pytest.mark.root

FROM_NETDEV, PEER = "eth-from_netdev", "peer"
SPACES = {"c": f"{PREFIX}c", "n2": TWO.namespace}


@pytest.fixture(scope="module", params=[Acceleration.GENERIC, Acceleration.NATIVE])
def accelerated(cluster: dict[str, World], request: pytest.FixtureRequest) -> Iterator[World]:
    """Node one. Checksums and segments are finished before the wire, as on a real one. The driver of a veth
    sends only to one that has a program, too."""
    for space in (CLIENT, ONE.namespace, TWO.namespace):
        with inside(space):
            finish_packets("eth")
    dataplane = cluster["n1"].dataplane
    with inside(ONE.namespace):
        xdp.attach(dataplane, [cluster["n1"].devices["eth"]], request.param)
    if request.param is Acceleration.NATIVE:
        with inside(SWITCH):
            port = socket.if_nametoindex(ONE.namespace.removeprefix(PREFIX))
            dataplane.attach(PEER, xdp.PROGRAM, port, Attach.XDP, bpf.XDP_DRIVER)
    yield cluster["n1"]
    dataplane.detach(PEER)
    with inside(ONE.namespace):
        xdp.attach(dataplane, [], Acceleration.DISABLED)


@contextmanager
def without_netdev(world: World) -> Iterator[None]:
    """Node one with the driver's program only."""
    world.dataplane.detach(FROM_NETDEV)
    try:
        yield
    finally:
        with inside(ONE.namespace):
            world.dataplane.attach(FROM_NETDEV, "from_netdev", world.devices["eth"], Attach.TCX_INGRESS)


def exactly(stream: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = stream.recv(size - len(found))
        assert part, "closed early"
        found += part
    return found


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("kind", ["a pod of another node", "another node", "a pod that answers itself"])
def test_an_open_stream_needs_the_driver_only(
    balancers: list[Balancer], accelerated: World, kind: str, family: socket.AddressFamily
) -> None:
    backend = BACKENDS[kind]
    serve_by(balancers, backend, "tcp")
    ipv4 = family == socket.AF_INET
    with ExitStack() as stack:
        with inside(SPACES[backend.where]):
            listener = stack.enter_context(closing(socket.socket(family)))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((backend.ipv4 if ipv4 else backend.ipv6, SERVED))
            listener.listen()
        with inside(CLIENT):
            client = stack.enter_context(closing(socket.socket(family)))
        client.settimeout(30.0)
        listener.settimeout(30.0)
        client.connect((VIRTUAL4 if ipv4 else VIRTUAL6, ASKED))
        server = stack.enter_context(closing(listener.accept()[0]))
        server.settimeout(30.0)
        client.sendall(b"open")
        assert exactly(server, 4) == b"open"
        stack.enter_context(without_netdev(accelerated))
        for at in range(0, 300_000, 30_000):
            text = bytes([at % 251]) * 30_000
            client.sendall(text)
            assert exactly(server, len(text)) == text
            server.sendall(text)
            assert exactly(client, len(text)) == text
