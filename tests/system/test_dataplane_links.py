"""Pod and node links in namespaces of their own, with the real programs on them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cilia.dataplane import bpf, links, namespaces
from cilia.dataplane.links import Links, PodLink, Routes
from cilia.dataplane.loader import Dataplane
from cilia.model.endpoint import EndpointEntry
from cilia.model.ids import EndpointId, IdentityId, SubjectId
from cilia.model.node import NodeSettings, Route
from cilia.model.policy import EntryKey
from cilia.schema import Desired
from tests.support.dataplane import allow, dataplane, kernel_state, loaded_once, needs_kernel, subject

__all__ = ["dataplane", "loaded_once"]
pytestmark = needs_kernel

GATEWAYS = {"gateway_ipv4": "10.9.0.1", "gateway_ipv6": "fd09::1"}


def ip(*arguments: str) -> str:
    """Run ip(8)."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Node:
    """A node namespace with pods' namespaces beside it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.name = self.namespace("node")
        self.fd = os.open(self.path(self.name), os.O_RDONLY)
        stack.callback(os.close, self.fd)
        with self.inside():
            self.links = Links()
            ip("link", "set", "lo", "up")
            ip("link", "add", "uplink0", "type", "veth", "peer", "name", "uplink1")
            ip("link", "set", "uplink1", "up")
            ip("address", "add", "192.0.2.1/24", "dev", "uplink0")
            ip("link", "set", "uplink0", "up")
            ip("route", "add", "default", "via", "192.0.2.254")
        stack.callback(self.links.close)

    def namespace(self, name: str) -> str:
        full = f"cilia-dp-{os.getpid()}-{name}"
        ip("netns", "add", full)
        self._stack.callback(subprocess.run, ["ip", "netns", "del", full], check=False)
        return full

    def path(self, name: str) -> str:
        return f"/run/netns/{name}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        with namespaces.entered(self.fd):
            yield

    def pod(self, number: int, namespace: str) -> PodLink:
        return PodLink(
            endpoint=number,
            netns=self.path(namespace),
            interface="eth0",
            host_interface=links.host_interface(f"container-{number}", "eth0"),
            mac=links.random_mac(),
            host_mac=links.random_mac(),
            mtu=1450,
            ipv4=f"10.9.0.{number}",
            ipv6=f"fd09::{number:x}",
            **GATEWAYS,
        )


@pytest.fixture
def node() -> Iterator[Node]:
    with ExitStack() as stack:
        yield Node(stack)


def entry(link: PodLink, ifindex: int) -> EndpointEntry:
    return EndpointEntry(
        id=EndpointId(link.endpoint),
        ifindex=ifindex,
        identity=IdentityId(256 + link.endpoint),
        subject=SubjectId(1),
        mac=link.mac,
        host_mac=link.host_mac,
        ipv4=link.ipv4,
        ipv6=link.ipv6,
    )


def reaches(namespace: int, target: str, *, due: bool = True) -> bool:
    """Whether a UDP datagram sent from a namespace arrives at port 7000 of `target`, and back.

    What is due is waited for patiently.
    """
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with namespaces.entered(namespace), socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(30 if due else 0.5)
        client.connect((target, 7000))
        try:
            client.send(b"there")
            return client.recv(100) == b"back"
        except OSError:
            return False


@contextmanager
def answering(namespace: int) -> Iterator[None]:
    """A UDP responder in a namespace, for the length of a block."""
    with namespaces.entered(namespace), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::", 7000))
        child = os.fork()
        if child == 0:
            while True:
                _, sender = server.recvfrom(100)
                server.sendto(b"back", sender)
        try:
            yield
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


def test_a_pod_link_is_complete(node: Node, dataplane: Dataplane) -> None:
    namespace = node.namespace("a")
    link = node.pod(5, namespace)
    with node.inside():
        index = node.links.add_pod(link, dataplane.programs["from_container"])
        assert node.links.pods() == {5: links.Device(link.host_interface, index, 1450)}
        assert "from_container" in ip_tc(link.host_interface)
    inside = ip("-n", namespace, "addr", "show", "eth0")
    assert "10.9.0.5/32" in inside and "fd09::5/128" in inside and link.mac in inside and "mtu 1450" in inside
    assert "tentative" not in inside and "state UP" in inside
    assert "default via 10.9.0.1 dev eth0" in ip("-n", namespace, "route")
    assert "default via fd09::1 dev eth0" in ip("-n", namespace, "-6", "route")
    with node.inside():
        assert node.links.delete_link(link.host_interface)
        assert not node.links.delete_link(link.host_interface)
        assert node.links.pods() == {}


def ip_tc(device: str) -> str:
    return subprocess.run(
        ["tc", "filter", "show", "dev", device, "ingress"], check=True, capture_output=True, text=True
    ).stdout


def test_many_requests_go_out_in_runs(node: Node) -> None:
    with node.inside():
        pair = node.links.ensure_host_pair(["10.9.0.1"], 1500)
        addresses = [f"10.9.{at >> 8}.{at & 255}" for at in range(1, 501)]
        node.links.ensure_host_pair(addresses, 1500)
        assert sorted(node.links.addresses_of(pair.host_ifindex)) == sorted(addresses)


def test_an_interrupted_add_is_made_again(node: Node, dataplane: Dataplane) -> None:
    link = node.pod(5, node.namespace("a"))
    with node.inside():
        first = node.links.add_pod(link, dataplane.programs["from_container"])
        second = node.links.add_pod(link, dataplane.programs["from_container"])
        assert second != first and len(node.links.pods()) == 1


def test_a_failed_add_leaves_nothing(node: Node, dataplane: Dataplane) -> None:
    namespace = node.namespace("a")
    link = node.pod(5, namespace)
    with node.inside():
        with pytest.raises(OSError, match="there is no network namespace"):
            node.links.add_pod(node.pod(6, "cilia-dp-none"), dataplane.programs["from_container"])
        with pytest.raises(OSError):
            node.links.add_pod(link, 9999)
        assert node.links.pods() == {} and node.links.find(link.host_interface) is None
    assert "eth0" not in ip("-n", namespace, "link")


def test_the_node_side_is_idempotent_and_removable(node: Node, dataplane: Dataplane) -> None:
    with node.inside():
        for addresses in (["10.9.0.1", "fd09::1"], ["10.9.0.2", "fd09::1"]):
            pair = node.links.ensure_host_pair(addresses, 1500)
            tunnel = node.links.ensure_vxlan(8472, 1500)
            node.links.configure_node()
            native = node.links.native_devices()
            assert [device.name for device in native] == ["uplink0"]
            node.links.attach_node(dataplane, pair, tunnel, native)
        shown = ip("addr", "show", "cilia_host")
        assert "10.9.0.2/32" in shown and "10.9.0.1/32" not in shown and "fd09::1/128" in shown
        index = native[0].ifindex
        hooks = ["from_host", f"from_netdev_{index}", "from_overlay", "to_host", f"to_netdev_{index}"]
        assert dataplane.attached() == sorted(hooks)
        assert namespaces.read_sysctl("ipv6/conf/uplink0/accept_ra") == "2"
        moved = node.links.ensure_vxlan(4789, 1500)
        assert moved != tunnel
        node.links.attach_node(dataplane, pair, moved, native)
        assert dataplane.attached() == sorted(hooks), "a hook follows to the device's successor"
        node.links.attach_node(dataplane, pair, 0, [])
        assert dataplane.attached() == ["from_host", "to_host"]
        assert node.links.remove_all() == 2
        assert node.links.find("cilia_net") is None


def test_a_busy_tunnel_port_is_named(node: Node, dataplane: Dataplane) -> None:
    with node.inside():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("0.0.0.0", 8472))
            with pytest.raises(OSError, match="UDP port 8472 is in use: free it or choose another"):
                node.links.ensure_vxlan(8472, 1500)
            assert node.links.find("cilia_vxlan") is None
        assert node.links.ensure_vxlan(8472, 1500)


def test_kernels_without_tcx_get_filters(
    node: Node, dataplane: Dataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(bpf, "link_create", refuse)
    with node.inside():
        pair = node.links.ensure_host_pair(["10.9.0.1"], 1500)
        node.links.attach_node(dataplane, pair, 0, node.links.native_devices())
        assert "from_host" in ip_tc("cilia_net") and "from_netdev" in ip_tc("uplink0")
        node.links.remove_all()
        assert "from_netdev" not in ip_tc("uplink0")


def test_routes_are_recognised_by_their_protocol(node: Node) -> None:
    with node.inside():
        node.links.ensure_host_pair(["10.9.0.1", "fd09::1"], 1500)
        routes = Routes(node.links)
        rows = [
            Route(prefix="10.9.0.0/24", device="cilia_host", source="10.9.0.1", mtu=1450),
            Route(prefix="fd09::/64", device="cilia_host", source="fd09::1", mtu=1430),
        ]
        assert routes.update(rows) == {} and routes.update(rows) == {}
        assert "10.9.0.0/24 dev cilia_host proto 167 scope link src 10.9.0.1 mtu 1450" in ip("route")
        assert routes.ours() == {"10.9.0.0/24", "fd09::/64"}
        assert routes.update([Route(prefix="10.8.0.0/24", device="nowhere0")]) == {
            "10.8.0.0/24": "device nowhere0 does not exist"
        }
        assert routes.prune(rows[:1]) == 1 and routes.ours() == {"10.9.0.0/24"}
        assert routes.delete(["10.9.0.0/24", "10.7.0.0/24"]) == {} and routes.ours() == set()
        assert "default via 192.0.2.254" in ip("route")


def test_reserved_ports_join_those_of_others(node: Node) -> None:
    path = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
    with node.inside():
        path.write_text("8080,9000-9010")
        node.links.reserve_ports(49152, 65535)
        node.links.reserve_ports(49152, 65535)
        assert path.read_text().strip() == "8080,9000-9010,49152-65535"


def test_the_nodes_own_addresses_are_those_others_can_use(node: Node) -> None:
    with node.inside():
        node.links.ensure_host_pair(["10.9.0.1", "fd09::1"], 1500)
        ip("address", "add", "198.51.100.7/32", "dev", "lo")
        found = node.links.local_addresses()
    assert {"10.9.0.1", "fd09::1", "198.51.100.7"} <= set(found)
    assert not [address for address in found if address.startswith(("127.", "fe80")) or address == "::1"]


def test_two_pods_talk_as_their_policy_says(node: Node, dataplane: Dataplane) -> None:
    """The whole room at once: links, filters, maps, and packets through them."""
    desired = Desired()
    state = kernel_state(dataplane, desired)
    pods = [node.pod(5, node.namespace("a")), node.pod(6, node.namespace("b"))]
    anyone = {EntryKey(1, 0): allow(), EntryKey(2, 0): allow()}
    with ExitStack() as stack, node.inside():
        pair = node.links.ensure_host_pair(["10.9.0.1", "fd09::1"], 1500)
        node.links.attach_node(dataplane, pair, 0, [])
        state.set_node(
            NodeSettings(
                router_ipv4="10.9.0.1",
                router_ipv6="fd09::1",
                host_ifindex=pair.host_ifindex,
                net_ifindex=pair.net_ifindex,
                host_mac=pair.host_mac,
            ),
            ["10.9.0.1", "fd09::1"],
        )
        for link in pods:
            index = node.links.add_pod(link, dataplane.programs["from_container"])
            desired.endpoint_entries.put(entry(link, index))
        client, server = (os.open(link.netns, os.O_RDONLY) for link in pods)
        stack.callback(os.close, client)
        stack.callback(os.close, server)
        stack.enter_context(answering(server))
        desired.subjects.put(subject(1, "r1", anyone))
        state.apply(1.0)
        assert state.errors() == []
        assert reaches(client, "10.9.0.6") and reaches(client, "fd09::6")
        desired.subjects.put(subject(1, "r2", {EntryKey(2, 0): allow()}))
        state.apply(2.0)
        assert not reaches(client, "10.9.0.6", due=False) and not reaches(client, "fd09::6", due=False)
        desired.subjects.put(subject(1, "r3", anyone))
        state.apply(3.0)
        assert reaches(client, "10.9.0.6")
        assert (
            node.links.filter_pods(
                [device.ifindex for device in node.links.pods().values()],
                dataplane.programs["from_container"],
            )
            == {}
        )
        assert reaches(client, "fd09::6")
        assert node.links.remove_all() == 3
