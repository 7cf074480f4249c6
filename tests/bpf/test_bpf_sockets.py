"""Real sockets in a control group: what they ask for, what they are given, and what they believe.

The world's network namespace is the node's own; a second one is a pod's. Both have SERVERS on their loopback.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from pyroute2 import IPRoute

from cilia.dataplane import namespaces, sockets
from cilia.dataplane.ringbuf import Ring
from cilia.lab import cgroups
from cilia.model.service import Backend, Protocol
from tests.support.datapath_world import FAR_NODE4, FAR_NODE6, NODE4, NODE6, World, private_network
from tests.support.service_maps import TCP, UDP, Address, ServiceMaps

pytestmark = pytest.mark.root

SO_NETNS_COOKIE = 71
VIP4, VIP6 = "10.96.0.10", "fd96::10"
SERVER4, OTHER4, SERVER6 = "10.88.0.1", "10.88.0.2", "fd88::1"
NODE_PORT = 31000
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
FAMILIES = [(VIP4, SERVER4), (VIP6, SERVER6)]


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def furnish_loopback() -> None:
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        for address in (SERVER4, OTHER4):
            ip.addr("add", index=1, address=address, prefixlen=32)
        ip.addr("add", index=1, address=SERVER6, prefixlen=128, flags=0x02)


@contextmanager
def joined(group: Path) -> Iterator[None]:
    """This process in a control group."""
    mount = cgroups.find_mount()
    home = Path("/proc/self/cgroup").read_text().splitlines()[-1].split("::")[1]
    cgroups.create(group)
    try:
        cgroups.join(group, os.getpid())
        yield
    finally:
        cgroups.join(mount / home.lstrip("/"), os.getpid())
        cgroups.remove(group)


@pytest.fixture(scope="module")
def hooked(loaded_world: World) -> Iterator[World]:
    """The world with its hooks on a control group that this process is in."""
    group = cgroups.find_mount() / f"cilia-test-sockets-{os.getpid()}"
    furnish_loopback()
    with joined(group):
        sockets.attach(loaded_world.dataplane, group)
        try:
            yield loaded_world
        finally:
            sockets.detach(loaded_world.dataplane)


@pytest.fixture(scope="module")
def pod() -> Iterator[int]:
    """A pod's network namespace."""
    with ExitStack() as stack:
        with private_network():
            furnish_loopback()
            pod = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, pod)
        yield pod


@pytest.fixture
def services(hooked: World, world: World) -> Iterator[ServiceMaps]:
    made = ServiceMaps(world.dataplane)
    made.enable()
    made.settings["netns"][0] = netns_cookie()
    made.settings["node_port_first"][0], made.settings["node_port_last"][0] = 30000, 32767
    host = world.layout.value("IPCACHE_HOST_ADDRESS")
    for address in (NODE4, NODE6):
        world.add_prefix(address, 1, flags=host)
    try:
        yield made
    finally:
        made.clear()


def netns_cookie() -> int:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as any_socket:
        return int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


@contextmanager
def server(address: Address, protocol: int = TCP) -> Iterator[socket.socket]:
    with closing(socket.socket(family_of(address[0]), KINDS[protocol])) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        if protocol == TCP:
            made.listen()
        yield made


@contextmanager
def client(protocol: int = TCP, family: int = socket.AF_INET) -> Iterator[socket.socket]:
    with closing(socket.socket(family, KINDS[protocol])) as made:
        made.settimeout(2.0)
        yield made


def peer_of(asked: Address, protocol: int = TCP, family: int = 0) -> Address:
    """Connects; the address that the kernel really talks to."""
    with client(protocol, family or family_of(asked[0])) as made:
        made.connect(asked)
        return true_peer(made)


def true_peer(connected: socket.socket) -> Address:
    """What is in the kernel's own list: getpeername is translated."""
    local = connected.getsockname()
    kind = "tcp" if connected.type == socket.SOCK_STREAM else "udp"
    suffix = "6" if connected.family == socket.AF_INET6 else ""
    for line in Path(f"/proc/thread-self/net/{kind}{suffix}").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == local[1] and int(fields[2].rpartition(":")[2], 16):
            return from_hex(fields[2])
    raise AssertionError(f"no socket at {local}")


def from_hex(text: str) -> Address:
    digits, _, port = text.partition(":")
    raw = np.frombuffer(bytes.fromhex(digits), ">u4").astype("<u4").tobytes()
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw), int(port, 16)


@pytest.mark.parametrize(("vip", "address"), FAMILIES)
def test_a_connection_goes_to_a_backend_and_is_named_as_asked(
    services: ServiceMaps, vip: str, address: str
) -> None:
    services.add((vip, 80), (address, 8080))
    with server((address, 8080)) as listener, client(family=family_of(vip)) as made:
        made.connect((vip, 80))
        accepted, _ = listener.accept()
        with accepted:
            assert true_peer(made) == (address, 8080)
            assert made.getpeername()[:2] == (vip, 80)
            assert accepted.getpeername()[:2] == made.getsockname()[:2]


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_an_ipv6_socket_talks_ipv4(services: ServiceMaps, protocol: int) -> None:
    services.add((VIP4, 80), (SERVER4, 8080), protocol=protocol)
    with server((SERVER4, 8080), protocol), client(protocol, socket.AF_INET6) as made:
        made.connect((f"::ffff:{VIP4}", 80))
        assert true_peer(made) == (f"::ffff:{SERVER4}", 8080)
        assert made.getpeername()[:2] == (f"::ffff:{VIP4}", 80)


@pytest.mark.parametrize(("vip", "address"), FAMILIES)
def test_datagrams_come_from_whom_they_were_sent_to(services: ServiceMaps, vip: str, address: str) -> None:
    services.add((vip, 53), (address, 5353), protocol=UDP)
    with server((address, 5353), UDP) as answering, client(UDP, family_of(vip)) as made:
        for text in (b"one", b"two"):
            made.sendto(text, (vip, 53))
            data, sender = answering.recvfrom(100)
            answering.sendto(data, sender)
            found, asked = made.recvfrom(100)
            assert (found, asked[:2]) == (text, (vip, 53))


def test_datagrams_of_an_ipv6_socket_to_ipv4(services: ServiceMaps) -> None:
    services.add((VIP4, 53), (SERVER4, 5353), protocol=UDP)
    with server((SERVER4, 5353), UDP) as answering, client(UDP, socket.AF_INET6) as made:
        made.sendto(b"one", (f"::ffff:{VIP4}", 53))
        data, sender = answering.recvfrom(100)
        answering.sendto(data, sender)
        assert made.recvfrom(100)[1][:2] == (f"::ffff:{VIP4}", 53)


def test_a_connected_datagram_socket_hears_the_frontend(services: ServiceMaps) -> None:
    services.add((VIP4, 53), (SERVER4, 5353), protocol=UDP)
    with server((SERVER4, 5353), UDP) as answering, client(UDP) as made:
        made.connect((VIP4, 53))
        made.send(b"one")
        answering.sendto(b"two", answering.recvfrom(100)[1])
        assert made.recvfrom(100) == (b"two", (VIP4, 53))
        assert made.getpeername() == (VIP4, 53)


def test_who_then_sends_to_the_backend_itself_hears_the_backend(services: ServiceMaps) -> None:
    services.add((VIP4, 53), (SERVER4, 5353), protocol=UDP)
    with server((SERVER4, 5353), UDP) as answering, client(UDP) as made:
        for asked in ((VIP4, 53), (SERVER4, 5353)):
            made.sendto(b"one", asked)
            answering.sendto(b"two", answering.recvfrom(100)[1])
            assert made.recvfrom(100)[1] == asked


def test_protocols_on_one_port_are_two_services(services: ServiceMaps) -> None:
    services.add((VIP4, 53), (SERVER4, 1053))
    services.add((VIP4, 53), (SERVER4, 2053), protocol=UDP)
    with server((SERVER4, 1053)):
        assert peer_of((VIP4, 53)) == (SERVER4, 1053)
    assert peer_of((VIP4, 53), UDP) == (SERVER4, 2053)


def test_connections_are_spread_and_datagrams_of_a_socket_are_not(services: ServiceMaps) -> None:
    backends = ((SERVER4, 7001), (OTHER4, 7002))
    services.add((VIP4, 80), *backends)
    services.add((VIP4, 80), *backends, protocol=UDP)
    with server(backends[0]), server(backends[1]):
        assert {peer_of((VIP4, 80)) for _ in range(40)} == set(backends)
    with ExitStack() as stack:
        servers = [stack.enter_context(server(each, UDP)) for each in backends]
        for each in servers:
            each.setblocking(False)
        with client(UDP) as made:
            for _ in range(20):
                made.sendto(b"x", (VIP4, 80))
        assert sorted(map(pending, servers)) == [0, 20]


def pending(answering: socket.socket) -> int:
    count = 0
    while True:
        try:
            answering.recv(10)
        except BlockingIOError:
            return count
        count += 1


def test_a_pod_stays_with_its_backend_while_it_asks_for_affinity(services: ServiceMaps, pod: int) -> None:
    backends = ((SERVER4, 7001), (OTHER4, 7002))
    services.add((VIP4, 80), *backends, flags=("SERVICE_AFFINITY",), affinity=100, protocol=UDP)
    here = {peer_of((VIP4, 80), UDP) for _ in range(20)}
    with namespaces.entered(pod):
        there = {peer_of((VIP4, 80), UDP) for _ in range(20)}
    assert len(here) == len(there) == 1
    (gone,) = here
    services.kill(*gone, UDP)
    assert {peer_of((VIP4, 80), UDP) for _ in range(20)} == {*backends} - {gone}


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_a_service_without_backends_refuses(services: ServiceMaps, vip: str, protocol: int) -> None:
    services.add((vip, 80), protocol=protocol)
    with pytest.raises(ConnectionRefusedError):
        peer_of((vip, 80), protocol)
    if protocol == UDP:
        with client(UDP, family_of(vip)) as made, pytest.raises(ConnectionRefusedError):
            made.sendto(b"x", (vip, 80))


def test_a_refusal_is_counted_and_told(services: ServiceMaps, world: World) -> None:
    reason = world.layout.value("DROP_SERVICE_BACKEND_NOT_FOUND")
    index = np.uint32(reason * 4 + world.layout.value("DIRECTION_EGRESS"))
    services.add((VIP4, 80))
    with closing(Ring(world.dataplane.maps["events"], world.layout)) as ring:
        ring.read()
        before = counted(world, index)
        with pytest.raises(ConnectionRefusedError):
            peer_of((VIP4, 80))
        told = ring.read()
    assert counted(world, index) == before + 1
    assert [tuple(each) for each in told[["kind", "verdict", "reason", "service", "destination_port"]]] == [
        (world.layout.value("EVENT_SOCKET"), world.layout.value("VERDICT_DROPPED"), reason, 1, 80)
    ]


def counted(world: World, index: np.uint32) -> int:
    found = world.dataplane.maps["counters"].lookup(index)
    assert found is not None
    return int(found["packets"].sum())


def test_a_loose_frontend_without_backends_is_none(services: ServiceMaps) -> None:
    services.add((SERVER4, 80), flags=("SERVICE_LOOSE",))
    with server((SERVER4, 80)):
        assert peer_of((SERVER4, 80)) == (SERVER4, 80)


def test_without_services_nothing_is_touched(services: ServiceMaps) -> None:
    with server((SERVER4, 8080)):
        assert peer_of((SERVER4, 8080)) == (SERVER4, 8080)
    assert not len(services.maps["socket_services"].dump()[0])


@pytest.mark.parametrize("node", [NODE4, FAR_NODE4, "127.0.0.1", "127.1.2.3"])
def test_node_ports_answer_at_every_node(services: ServiceMaps, node: str) -> None:
    services.add(("0.0.0.0", NODE_PORT), (SERVER4, 8080), flags=("SERVICE_NODE_PORT",), protocol=UDP)
    assert peer_of((node, NODE_PORT), UDP) == (SERVER4, 8080)


@pytest.mark.parametrize("node", [NODE6, FAR_NODE6, "::1"])
def test_node_ports_of_ipv6(services: ServiceMaps, node: str) -> None:
    services.add(("::", NODE_PORT), (SERVER6, 8080), flags=("SERVICE_NODE_PORT",), protocol=UDP)
    assert peer_of((node, NODE_PORT), UDP) == (SERVER6, 8080)


@pytest.mark.parametrize("kind", ["SERVICE_NODE_PORT", "SERVICE_HOST_PORT"])
@pytest.mark.parametrize("name", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_pods_loopback_is_its_own(services: ServiceMaps, pod: int, name: str, kind: str) -> None:
    """By any of its names; the zero address, under which node ports stand for all nodes, is one."""
    at, backend = ("::", SERVER6) if ":" in name else ("0.0.0.0", SERVER4)
    services.add((at, NODE_PORT), (backend, 8080), flags=(kind,), protocol=UDP)
    itself = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    with namespaces.entered(pod):
        assert peer_of((name, NODE_PORT), UDP) == (itself, NODE_PORT)
    assert peer_of((name, NODE_PORT), UDP) == (backend, 8080)


def test_ports_outside_the_range_and_foreign_addresses_are_no_node_ports(services: ServiceMaps) -> None:
    services.add(("0.0.0.0", 29999), (SERVER4, 8080), protocol=UDP)
    services.add(("0.0.0.0", NODE_PORT), (SERVER4, 8080), protocol=UDP)
    assert peer_of((NODE4, 29999), UDP) == (NODE4, 29999)
    assert peer_of((SERVER4, NODE_PORT), UDP) == (SERVER4, NODE_PORT)


@pytest.mark.parametrize("flag", ["SERVICE_EXTERNAL_IP", "SERVICE_HOST_PORT"])
def test_addresses_that_are_not_the_nodes_own_are_not_taken_over(services: ServiceMaps, flag: str) -> None:
    services.add((OTHER4, 80), (SERVER4, 8080), flags=(flag,), protocol=UDP)
    services.add((NODE4, 80), (SERVER4, 8080), flags=(flag,), protocol=UDP)
    assert peer_of((OTHER4, 80), UDP) == (OTHER4, 80)
    assert peer_of((NODE4, 80), UDP) == (SERVER4, 8080)


def test_the_host_reaches_host_ports_by_its_loopback(services: ServiceMaps, pod: int) -> None:
    services.add(("0.0.0.0", 80), (SERVER4, 8080), flags=("SERVICE_HOST_PORT",), protocol=UDP)
    assert peer_of(("127.0.0.1", 80), UDP) == (SERVER4, 8080)
    with namespaces.entered(pod):
        assert peer_of(("127.0.0.1", 80), UDP) == ("127.0.0.1", 80)


def test_a_redirect_leaves_some_alone(services: ServiceMaps, pod: int) -> None:
    services.add((OTHER4, 53), (SERVER4, 5353), flags=("SERVICE_REDIRECT",), protocol=UDP)
    with namespaces.entered(pod):
        key = services.record(
            "skip_redirect_key", address=OTHER4, netns=netns_cookie(), port=53, protocol=UDP
        )
        services.maps["skip_redirect"].update(key, np.uint32(1))
        assert peer_of((OTHER4, 53), UDP) == (OTHER4, 53)
    assert peer_of((OTHER4, 53), UDP) == (SERVER4, 5353)


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        (socket.AF_INET, ("0.0.0.0", NODE_PORT)),
        (socket.AF_INET, ("127.0.0.1", NODE_PORT)),
        (socket.AF_INET, (NODE4, NODE_PORT)),
        (socket.AF_INET6, ("::", NODE_PORT)),
        (socket.AF_INET6, (f"::ffff:{NODE4}", NODE_PORT)),
    ],
)
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_the_host_may_not_bind_a_node_port(
    services: ServiceMaps, family: int, wanted: Address, protocol: int
) -> None:
    for address in ("0.0.0.0", NODE4):
        services.add((address, NODE_PORT), (SERVER4, 8080), flags=("SERVICE_NODE_PORT",), protocol=protocol)
    with client(protocol, family) as made:
        with pytest.raises(OSError) as refused:
            made.bind(wanted)
        assert refused.value.errno == errno.EADDRINUSE
        made.bind((wanted[0], NODE_PORT + 1))


def test_a_node_port_for_outside_only_is_taken_too(services: ServiceMaps) -> None:
    services.add((NODE4, NODE_PORT), (SERVER4, 8080), flags=("SERVICE_NODE_PORT", "SERVICE_KEEPS_CLIENT"))
    with client() as made, pytest.raises(OSError, match="Address already in use"):
        made.bind(("0.0.0.0", NODE_PORT))


def test_pods_bind_what_they_like(services: ServiceMaps, pod: int) -> None:
    services.add(("0.0.0.0", NODE_PORT), (SERVER4, 8080), flags=("SERVICE_NODE_PORT",))
    with namespaces.entered(pod), client() as made:
        made.bind(("0.0.0.0", NODE_PORT))


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_closed_connection_is_forgotten(services: ServiceMaps, protocol: int) -> None:
    remembered = services.maps["socket_services"]
    for vip, address in FAMILIES:
        services.add((vip, 80), (address, 8080), protocol=protocol)
        with server((address, 8080), protocol), client(protocol, family_of(vip)) as made:
            made.connect((vip, 80))
            assert len(remembered.dump()[0]) == 1
        assert not len(remembered.dump()[0])


def test_a_closed_socket_of_datagrams_is_forgotten(services: ServiceMaps) -> None:
    remembered = services.maps["socket_services"]
    for port in range(1, 7):
        services.add((VIP4, port), (SERVER4, 8000 + port), protocol=UDP)
    with client(UDP) as made:
        for port in [*range(1, 5)] * 3:
            made.sendto(b"x", (VIP4, port))
        assert len(remembered.dump()[0]) == 4
    assert not len(remembered.dump()[0])
    with client(UDP) as made:
        for port in range(1, 7):
            made.sendto(b"x", (VIP4, port))
    assert len(remembered.dump()[0]) == 2, "of many peers the first are left to their age"


def test_translations_are_told_when_asked_for(services: ServiceMaps, world: World) -> None:
    services.add((VIP4, 53), (SERVER4, 5353), protocol=UDP)
    services.enable("NODE_TRACE_SOCKETS")
    world.settings["aggregation"][0] = world.layout.value("AGGREGATION_NONE")
    ring = Ring(world.dataplane.maps["events"], world.layout)
    with closing(ring), server((SERVER4, 5353), UDP) as answering, client(UDP) as made:
        ring.read()
        made.sendto(b"x", (VIP4, 53))
        answering.sendto(b"y", answering.recvfrom(10)[1])
        made.recvfrom(10)
        told = ring.read()
        cookie = int.from_bytes(made.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
    assert list(told["kind"]) == [world.layout.value("EVENT_SOCKET")] * 4
    assert list(told["point"]) == [1, 2, 3, 4]
    assert list(told["verdict"]) == [6, 7, 6, 7]
    assert list(told["destination_port"][:2]) == [53, 5353] and told["original_destination_port"][1] == 53
    assert list(told["source_port"][2:]) == [5353, 53] and told["original_source_port"][3] == 5353
    assert set(told["socket_cookie"]) == {cookie} and set(told["service"]) == {1}
    assert all(told["cgroup"])


@pytest.mark.parametrize(
    ("level", "points"), [("NONE", [1, 2, 3, 4] * 2), ("LOW", [1, 2] * 2), ("MEDIUM", [1, 2])]
)
def test_translations_are_told_once_with_aggregation(
    services: ServiceMaps, world: World, level: str, points: list[int]
) -> None:
    services.add((VIP4, 53), (SERVER4, 5353), protocol=UDP)
    services.enable("NODE_TRACE_SOCKETS")
    world.settings["aggregation"][0] = world.layout.value(f"AGGREGATION_{level}")
    ring = Ring(world.dataplane.maps["events"], world.layout)
    with closing(ring), server((SERVER4, 5353), UDP) as answering, client(UDP) as made:
        ring.read()
        for _ in range(2):
            made.sendto(b"x", (VIP4, 53))
            answering.sendto(b"y", answering.recvfrom(10)[1])
            made.recvfrom(10)
        assert list(ring.read()["point"]) == points


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize(("vip", "address"), [*FAMILIES, (f"::ffff:{VIP4}", SERVER4)])
def test_sockets_of_a_gone_backend_are_ended(
    services: ServiceMaps, pod: int, vip: str, address: str, protocol: int
) -> None:
    services.add((vip.removeprefix("::ffff:"), 80), (address, 8080), protocol=protocol)
    backend = Backend(address, 8080, Protocol(protocol))
    own = "/proc/thread-self/ns/net"
    with ExitStack() as stack:
        for network in (namespaces.open_network(own), os.dup(pod)):
            stack.callback(os.close, network)
            with namespaces.entered(network):
                stack.enter_context(server((address, 8080), protocol))
                asked, direct = (
                    stack.enter_context(client(protocol, family_of(each))) for each in (vip, address)
                )
                asked.connect((vip, 80))
                direct.connect((address, 8080))
                stack.callback(check_ended, asked, direct)
        remembered = services.maps["socket_services"]
        other = Backend(OTHER4, 8080, Protocol(protocol))
        assert sockets.destroy(remembered, [own, f"/proc/self/fd/{pod}"], [other]) == 0
        assert sockets.destroy(remembered, [own, f"/proc/self/fd/{pod}", "/run/netns/gone"], [backend]) == 2
        assert not len(remembered.dump()[0])


def test_sockets_are_ended_by_the_frontend_they_asked(services: ServiceMaps) -> None:
    numbers = [services.add((VIP4, port), (SERVER4, 8080), protocol=UDP) for port in (80, 81)]
    backend, own = Backend(SERVER4, 8080, Protocol.UDP), "/proc/thread-self/ns/net"
    with client(UDP) as one, client(UDP) as other:
        one.connect((VIP4, 80))
        other.connect((VIP4, 81))
        remembered = services.maps["socket_services"]
        assert sockets.destroy(remembered, [own], [], [(7777, backend)]) == 0
        assert sockets.destroy(remembered, [own], [], [(numbers[0], backend)]) == 1
        check_ended(one, other)


def check_ended(asked: socket.socket, direct: socket.socket) -> None:
    with pytest.raises(ConnectionAbortedError):
        asked.recv(1)
    direct.setblocking(False)
    with pytest.raises(BlockingIOError):
        direct.recv(1)


def test_many_backends_go_at_once(services: ServiceMaps) -> None:
    services.add((VIP4, 80), (SERVER4, 8080), protocol=UDP)
    gone = [Backend("10.99.0.1", port, Protocol.UDP) for port in range(1, 3000)]
    with client(UDP) as made:
        made.connect((VIP4, 80))
        backend = Backend(SERVER4, 8080, Protocol.UDP)
        remembered = services.maps["socket_services"]
        assert sockets.destroy(remembered, ["/proc/thread-self/ns/net"], [*gone, backend]) == 1
