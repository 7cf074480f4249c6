"""Real sockets over the real programs, for tests: two nodes joined by a wire, with VXLAN between them.

pod_a, pod_b ── node one ══ eth ══ node two ── pod_c
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from cilia.dataplane import loader
from cilia.dataplane.bpf import Attach
from tests.support.datapath_world import ALLOW_ALL, Pod, World

PREFIX = f"cbt{os.getpid()}"
CLONE_NEWNET = 0x40000000
SIZES = {"conntrack": 4096, "policies": 16, "snat": 4096, "ipcache": 1024, "ipcache_hosts": 1024}
TRAFFIC = Path(__file__).parents[1] / "bpf" / "traffic_end.py"


class Node(msgspec.Struct):
    """One node's addresses and pods."""

    name: str
    number: int
    pods: list[str]

    @property
    def namespace(self) -> str:
        return f"{PREFIX}{self.name}"

    @property
    def underlay(self) -> str:
        return f"192.0.2.{self.number}"

    def pod(self, name: str) -> Pod:
        place = 11 + self.pods.index(name)
        return Pod(
            name,
            self.number * 100 + place,
            1000 + self.number * 100 + place,
            1 + self.pods.index(name),
            f"10.0.{self.number}.{place}",
            f"fd00:{self.number}::{place}",
            f"0a:00:00:00:{self.number:02}:{place:02}",
            f"0e:00:00:00:{self.number:02}:{place:02}",
        )


ONE, TWO = Node("n1", 1, ["a", "b"]), Node("n2", 2, ["c"])
NODES = (ONE, TWO)


def ip(namespace: str, *words: str) -> str:
    done = subprocess.run(["ip", "-n", namespace, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def namespaces(names: list[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
            ip(name, "link", "set", "lo", "up")
        yield


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, in a named network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert libc.setns(there, CLONE_NEWNET) == 0
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)
        os.close(there)


def wire_nodes() -> None:
    ip(ONE.namespace, *f"link add eth type veth peer name eth netns {TWO.namespace}".split())
    for node in NODES:
        wire_host(node, f"{node.underlay}/24")


def wire_host(node: Node, *underlay: str) -> None:
    """Addresses of a node, in prefixes, on `eth`; its other devices and its routes."""
    space, number = node.namespace, node.number
    for command in (
        *(f"addr add {prefix} dev eth{' nodad' if ':' in prefix else ''}" for prefix in underlay),
        "link set eth up",
        "link add vx type vxlan external dstport 8472 nolearning",
        "link set vx up mtu 1450",
        "link add host type veth peer name net",
        "link set host up",
        "link set net up",
        f"addr add 10.0.{number}.1/32 dev host",
        f"addr add fd00:{number}::1/128 dev host nodad",
        f"route add 10.0.0.0/16 dev host src 10.0.{number}.1 mtu 1450",
        f"route add fd00::/16 dev host src fd00:{number}::1 mtu 1450",
    ):
        ip(space, *command.split())
    with inside(space):
        for family in ("ipv4", "ipv6"):
            Path(f"/proc/sys/net/{family}/conf/all/forwarding").write_text("1")


def wire_pod(node: Node, pod: Pod) -> None:
    space, inner = node.namespace, f"{PREFIX}{pod.name}"
    link = f"link add pod_{pod.name} address {pod.host_mac} type veth peer name eth0 netns {inner}"
    ip(space, *link.split())
    ip(space, "link", "set", f"pod_{pod.name}", "up")
    for command in (
        f"link set eth0 address {pod.mac} mtu 1450 up",
        f"addr add {pod.ipv4}/32 dev eth0",
        f"addr add {pod.ipv6}/128 dev eth0 nodad",
        f"route add 10.0.{node.number}.1 dev eth0",
        f"route add default via 10.0.{node.number}.1",
        f"route add fd00:{node.number}::1 dev eth0",
        f"-6 route add default via fd00:{node.number}::1",
    ):
        ip(inner, *command.split())


def devices_of(node: Node) -> dict[str, int]:
    links = json.loads(ip(node.namespace, "-j", "link", "show"))
    found = {link["ifname"]: link["ifindex"] for link in links}
    return {"pod_a": 0, "pod_b": 0, "tunnel": found["vx"]} | found


def mac_of(node: Node, name: str) -> str:
    return str(json.loads(ip(node.namespace, "-j", "link", "show", name))[0]["address"])


def furnish(world: World, node: Node, other: Node) -> None:
    value = world.layout.value
    world.settings[0] = world.row(
        "node_settings",
        ipv4=node.underlay,
        router_ipv4=f"10.0.{node.number}.1",
        router_ipv6=f"fd00:{node.number}::1",
        flags=value("NODE_TUNNEL") | value("NODE_MASQUERADE_IPV4"),
        host_ifindex=world.devices["host"],
        net_ifindex=world.devices["net"],
        tunnel_ifindex=world.devices["vx"],
        native_ifindex=world.devices["eth"],
        host_mac=mac_of(node, "host"),
        aggregation=3,
        report_interval=5,
        nat_first_port=33000,
        nat_last_port=33999,
        tunnel_port=8472,
    )[0]
    for address in (node.underlay, f"10.0.{node.number}.1", f"fd00:{node.number}::1"):
        world.add_endpoint(address, identity=1, flags=value("ENDPOINT_HOST"))
    for name in node.pods:
        pod = msgspec.structs.replace(node.pod(name), ifindex=world.devices[f"pod_{name}"])
        world.add_pod(pod)
        world.set_policy(pod.subject, ALLOW_ALL)
    for name in other.pods:
        pod = other.pod(name)
        world.add_prefix(pod.ipv4, pod.identity, tunnel=other.underlay)
        world.add_prefix(pod.ipv6, pod.identity, tunnel=other.underlay)
    flags = value("IPCACHE_HOST_ADDRESS")
    for router in (f"10.0.{other.number}.1", f"fd00:{other.number}::1"):
        world.add_prefix(router, 6, tunnel=other.underlay, flags=flags | value("IPCACHE_TUNNEL"))
    world.add_prefix(other.underlay, 6, flags=flags | value("IPCACHE_UNDERLAY"))
    world.add_node(other.underlay)


@contextmanager
def running(node: Node, other: Node) -> Iterator[World]:
    prefix = Path("/sys/fs/bpf", f"cilia-test-traffic-{node.name}-{os.getpid()}")
    try:
        with inside(node.namespace):
            dataplane = loader.load(prefix, {}, SIZES)
            try:
                world = World(dataplane, devices_of(node))
                furnish(world, node, other)
                for device, program, where in (
                    *[(f"pod_{name}", "from_container", Attach.TCX_INGRESS) for name in node.pods],
                    ("net", "from_host", Attach.TCX_INGRESS),
                    ("host", "to_host", Attach.TCX_INGRESS),
                    ("vx", "from_overlay", Attach.TCX_INGRESS),
                    ("eth", "from_netdev", Attach.TCX_INGRESS),
                    ("eth", "to_netdev", Attach.TCX_EGRESS),
                ):
                    dataplane.attach(f"{device}-{program}", program, world.devices[device], where)
            except BaseException:
                dataplane.close()
                raise
        try:
            yield world
        finally:
            dataplane.close()
    finally:
        loader.remove(prefix)


@contextmanager
def two_nodes() -> Iterator[dict[str, World]]:
    """Both nodes with their pods, by name; gone afterwards."""
    pods = [(node, node.pod(name)) for node in NODES for name in node.pods]
    names = [node.namespace for node in NODES] + [f"{PREFIX}{pod.name}" for _, pod in pods]
    with namespaces(names):
        wire_nodes()
        for node, pod in pods:
            wire_pod(node, pod)
        with running(ONE, TWO) as one, running(TWO, ONE) as two:
            yield {"n1": one, "n2": two}


def end(where: str, *words: str) -> list[str]:
    return ["ip", "netns", "exec", f"{PREFIX}{where}", sys.executable, str(TRAFFIC), *words]


def talk(client: str, server: str, address: str, kind: str, size: int = 1, *, asked: str = "") -> str:
    """One exchange of `size` bytes each way; the address the server saw, or what went wrong. `asked`: what
    the client asks for, if not the server's own address."""
    listening = subprocess.Popen(end(server, "serve", kind, address), stdout=subprocess.PIPE, text=True)
    try:
        assert listening.stdout is not None
        listening.stdout.readline()
        command = end(client, "ask", kind, asked or address, str(size))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
        return done.stdout.strip() or done.stderr
    finally:
        listening.kill()
        listening.wait()


def ask(client: str, kind: str, address: str) -> str:
    """How asking where nobody answers fails."""
    command = end(client, "ask", kind, address, "1")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    return done.stderr.strip()
