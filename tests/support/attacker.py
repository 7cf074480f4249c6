"""A lab under attack: frames as an attacker makes them, and ears wherever they must not arrive.

    node-1: mallory, alice, vera, boxed        node-2: far        outside: a host of the world

Every frame sent carries a mark of its own; `heard` tells where a mark came out.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from cilia.api.client import AgentClient
from cilia.lab import kernel, records, starting, teardown
from cilia.lab.plan import OUTSIDE_HOST, LabPlan, make_plan
from cilia.model.drop_reasons import TEXTS
from cilia.proto.flow import flow_pb2
from tests.support.kubectl import kubectl

EVERYTHING = 3
"""ETH_P_ALL of linux/if_ether.h."""
OUTGOING = 4
"""PACKET_OUTGOING of linux/if_packet.h: what the socket's own side sent."""
_MARK = re.compile(rb"mark-\d{8}-")
SETTLE = 0.25
"""Seconds within which a frame has gone all the way through the lab, unless the machine is very busy."""
PATIENCE = 30.0
"""Seconds to wait for what must come."""


class Place:
    """A network namespace with a device that an attacker writes to and a victim listens at."""

    def __init__(self, name: str, netns: str, addresses: tuple[str, ...], device: str = "eth0") -> None:
        self.name = name
        self.netns = netns
        self.ipv4, self.ipv6 = addresses
        with kernel.inside_network(netns):
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
            self._wire.bind((device, EVERYTHING))
            self.mac = self._wire.getsockname()[4].hex(":")
        self._wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._wire.setblocking(False)
        (link,) = self.ip("-j", "address", "show", "dev", device)
        own = [entry["local"] for entry in link["addr_info"]]
        self.link_local: str = next((address for address in own if address.startswith("fe80")), "")
        self.gateway_mac: str = next((n["lladdr"] for n in self.ip("-j", "neigh") if "lladdr" in n), "")

    def close(self) -> None:
        """Let go of the device."""
        self._wire.close()

    def ip(self, *words: str) -> Any:
        """Run ip(8) here; what it says as JSON, if asked for."""
        done = subprocess.run(
            ["nsenter", f"--net={self.netns}", "--", "ip", *words], check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout or "[]") if "-j" in words else done.stdout

    def send(self, packet: Packet | bytes) -> None:
        """Put a frame on the wire; bare packets are framed for the gateway."""
        if isinstance(packet, Packet) and not isinstance(packet, Ether):
            packet = Ether(src=self.mac, dst=self.gateway_mac) / packet
        self._wire.send(bytes(packet))

    def frames(self) -> Iterator[bytes]:
        """What has come in since the last call."""
        with suppress(BlockingIOError):
            while True:
                frame, sender = self._wire.recvfrom(1 << 16)
                if sender[2] != OUTGOING:
                    yield frame

    def bound(self, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        """A socket of this place; it listens if it is one of connections."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with kernel.inside_network(self.netns):
            found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((address, port))
        found.settimeout(PATIENCE)
        if kind is socket.SOCK_STREAM:
            found.listen()
        return found

    def connected(
        self, address: str, port: int, source_port: int = 0, timeout: float = PATIENCE
    ) -> socket.socket:
        """A TCP connection from this place. Raises OSError."""
        with kernel.inside_network(self.netns):
            found = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        found.settimeout(timeout)
        found.bind(("", source_port))
        found.connect((address, port))
        return found


class Siege:
    """The lab, its places, and what its nodes report."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan
        self.places: dict[str, Place] = {}
        for pod in records.pods(plan):
            if pod.namespace and records.alive(pod):
                self._add(pod.name, pod.netns, pod.ips)
        for node in plan.nodes:
            self._add(node.name, node.netns, (node.ipv4, node.ipv6))
        self._add("outside", plan.outside, OUTSIDE_HOST)
        self.places["fabric"] = Place("fabric", plan.fabric, ("", ""), "br0")
        self._marks = 0

    def _add(self, name: str, netns: str, addresses: tuple[str, ...]) -> None:
        self.places[name] = Place(name, netns, addresses)

    def close(self) -> None:
        """Let go of everything."""
        for place in self.places.values():
            place.close()

    def __getitem__(self, name: str) -> Place:
        return self.places[name]

    def mark(self) -> bytes:
        """Bytes that no other frame carries."""
        self._marks += 1
        return b"mark-%08d-" % self._marks

    def heard(self, mark: bytes, settle: float = SETTLE) -> set[str]:
        """Where a mark has come out since the last call."""
        time.sleep(settle)
        return {
            name
            for name, place in self.places.items()
            # Not `any`: each place is emptied for the next call.
            if [frame for frame in place.frames() if mark in frame]
        }

    def comes_out(self, mark: bytes, name: str, due: bool) -> bool:
        """Whether a mark comes out at a place; it is waited for patiently only where it is due."""
        end = time.monotonic() + (PATIENCE if due else SETTLE)
        while not (found := name in self.heard(mark, SETTLE / 10)) and time.monotonic() < end:
            pass
        return found

    def marks_heard(self) -> dict[bytes, set[str]]:
        """Every mark that has come out since the last call, and where."""
        time.sleep(SETTLE)
        found: dict[bytes, set[str]] = {}
        for name, place in self.places.items():
            for frame in place.frames():
                for mark in _MARK.findall(frame):
                    found.setdefault(mark, set()).add(name)
        return found

    def quiet(self) -> None:
        """Forget what has come in."""
        for place in self.places.values():
            for _ in place.frames():
                pass

    def drops(self, node: str = "node-1", *filters: str) -> list[dict[str, Any]]:
        """Dropped flows a node knows of, oldest first."""
        (found,) = (plan for plan in self.plan.nodes if plan.name == node)
        words = ["observe", "--server", f"unix://{found.hubble_socket}", "--all", "-t", "drop", "-o", "json"]
        lines = run_cilia(*words, *filters).splitlines()
        return [line["flow"] for line in map(json.loads, lines) if "flow" in line]

    def reasons_seen(self, pod: str) -> set[str]:
        """Reasons of the drops of a pod's own packets, as told by the flows of node-1."""
        views = AgentClient(self.plan.nodes[0].agent_socket).endpoints()
        (endpoint,) = (view.id for view in views if view.status.external_identifiers.pod_name == f"red/{pod}")
        return {
            flow["drop_reason_desc"] for flow in self.drops() if flow.get("source", {}).get("ID") == endpoint
        }

    def dropped(self, node: str = "node-1") -> dict[str, int]:
        """Dropped packets by reason, as the node's kernel counts them."""
        (found,) = (plan for plan in self.plan.nodes if plan.name == node)
        counts: dict[str, int] = {}
        for family in text_string_to_metric_families(AgentClient(found.agent_socket).metrics()):
            for sample in family.samples:
                if sample.name == "cilium_drop_count_total":
                    (number,) = (code for code, text in TEXTS.items() if text == sample.labels["reason"])
                    reason = flow_pb2.DropReason.Name(flow_pb2.DropReason.ValueType(number))
                    counts[reason] = counts.get(reason, 0) + int(sample.value)
        return counts

    def identity(self, pod: str) -> int:
        """The security identity of a pod."""
        text = self.kubectl("get", "ciliumendpoint", "-n", "red", pod, "-o", "jsonpath={.status.identity.id}")
        return int(text)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Ask the lab's API server."""
        return kubectl(self.plan, *arguments, stdin=stdin)


def run_cilia(*words: str) -> str:
    """What the command line says."""
    program = "from cilia.apps.ctl import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words], check=False, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def siege(name: str, manifests: str) -> Iterator[Siege]:
    """A lab of two nodes with the pods and policies of `manifests`, taken down at the end."""
    teardown.take_down(name)
    plan = make_plan(name, 2)
    try:
        starting.start(plan, lambda _: None)
        kubectl(plan, "apply", "-f", "-", stdin=manifests)
        kubectl(plan, "wait", "pod", "--all", "-n", "red", "--for=condition=Ready", "--timeout=90s")
        under_attack = Siege(plan)
        try:
            yield under_attack
        finally:
            under_attack.close()
    finally:
        teardown.take_down(name)
