"""Every kind of service from every place to a backend here and one elsewhere, as real traffic on a lab.

    node-1: near, client, raw      node-2: far      outside: 203.0.113.2, whose packets to the services' own
                                                    addresses come to node-1

Each question is asked over both families and by each protocol. Its answer says who served it, which client
the server saw and where the answer came from; all three must be right.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest

from cilia.api.types import LocalService
from cilia.lab.plan import OUTSIDE_HOST
from tests.support.services_lab import (
    PORTS,
    ServicesLab,
    client,
    ip,
    manifest,
    question,
    server,
    service,
    services_lab,
)

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

NUMBERS = {"near": 1, "far": 2}
SCTP_PORTS = {"near": 30131, "far": 30132}
"""One port all the way, since SCTP keeps it: of the pod, the Service and the node."""
HOST_PORT = 18080
BALANCED = {"near": ("198.51.100.11", "2001:db8:198::11"), "far": ("198.51.100.12", "2001:db8:198::12")}
EXTERNAL = {"near": ("198.51.100.21", "2001:db8:198::21"), "far": ("198.51.100.22", "2001:db8:198::22")}
BY_HAND = {"near": ("198.51.100.31", "2001:db8:198::31"), "far": ("198.51.100.32", "2001:db8:198::32")}
REDIRECTED = ("169.254.20.10", "fd00:20::10")
INSIDE = ("client", "packets:raw", "node-1")
EVERYWHERE = (*INSIDE, "outside")
KINDS = {
    "ClusterIP": INSIDE,
    "NodePort": (*EVERYWHERE, "node-2"),
    "NodePort elsewhere": INSIDE,
    "NodePort at the loopback": ("node-1",),
    "LoadBalancer": EVERYWHERE,
    "externalIPs": ("outside",),
    "externalIPs of the node": EVERYWHERE,
    "by hand": EVERYWHERE,
    "hostPort": EVERYWHERE,
    "hostPort at the loopback": ("node-1",),
    "hostPort elsewhere": EVERYWHERE,
    "redirect by address": (*INSIDE, "node-2"),
    "redirect of a service": (*INSIDE, "node-2"),
}
"""Who may ask for what. Addresses outside are nobody's inside unless they are the node's own."""
PATIENCE = 20.0
"""Seconds without an answer that mean none: hundreds are asked for at once."""
SETTLE = 90.0
"""Seconds until services must be served, on a busy machine."""


class Cell(msgspec.Struct, frozen=True):
    """One question: who asks for what, and what must come of it."""

    kind: str
    place: str
    protocol: str
    address: str
    port: int
    who: str
    """The server."""
    clients: tuple[str, ...]
    """Whom it may see."""

    def question(self, timeout: float) -> dict[str, Any]:
        return question(self.protocol, self.address, self.port, timeout=timeout)

    def fault(self, answer: dict[str, Any]) -> str:
        """What is wrong with the answer, in words; empty when nothing is."""
        who = NUMBERS[self.who] if self.protocol == "sctp" else self.who
        told = f"{self.place} asks {self.address} port {self.port} by {self.protocol}: "
        if "error" in answer:
            return told + f"{answer['error']}, expected {self.who}"
        if answer["who"] != who:
            return told + f"{answer['who']} answered, expected {self.who}"
        if (answer["peer"], answer["peer_port"]) != (self.address, self.port):
            return told + f"the answer came from {answer['peer']} port {answer['peer_port']}"
        if self.protocol != "sctp" and answer["client"] not in self.clients:
            return told + f"{self.who} saw {answer['client']}, expected one of {self.clients}"
        return ""


class Matrix:
    """Makes cells; knows the lab's addresses."""

    def __init__(self, lab: ServicesLab) -> None:
        self.lab = lab
        self.routers = {view.name: view.router_addresses for view in lab.agents["node-1"].nodes()}
        self.nodes = {node.name: (node.ipv4, node.ipv6) for node in lab.plan.nodes}
        self.cells: list[Cell] = []

    def seen(self, place: str, who: str, six: bool) -> tuple[str, ...]:
        """The client's address that a server sees when the client's own node translates."""
        if place == "outside":
            return (OUTSIDE_HOST[six] if who == "near" else self.routers["node-1"][six],)
        if place in self.nodes:
            return (self.routers[place][six],)
        return (self.lab.addresses(place.removeprefix("packets:"))[six],)

    def add(
        self,
        kind: str,
        who: str,
        addresses: tuple[str, ...],
        ports: dict[str, int],
        *,
        places: tuple[str, ...] = (),
        seen: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Questions for `addresses` by every protocol in `ports`. `seen`: clients by place, where another
        node translates."""
        for place in places or KINDS[kind]:
            for address in addresses:
                six = ":" in address
                clients = ((seen or {})[place][six],) if seen else self.seen(place, who, six)
                for protocol, port in ports.items():
                    if protocol == "sctp" and place in self.nodes:
                        continue  # Raw sockets of the node are not translated.
                    self.cells.append(Cell(kind, place, protocol, address, port, who, clients))

    def build(self) -> list[Cell]:
        """All of them."""
        for who in NUMBERS:
            sctp = {"sctp": SCTP_PORTS[who]}
            ports = {"tcp": 80, "udp": 80, "udp-each": 80}
            given = self.lab.node_ports(who)
            node_ports = {"tcp": given["tcp"], "udp": given["udp"], "udp-each": given["udp"], **sctp}
            self.add("ClusterIP", who, self.lab.cluster_ips(who), ports | sctp)
            self.add("NodePort", who, self.nodes["node-1"], node_ports)
            self.add("NodePort elsewhere", who, self.nodes["node-2"], node_ports)
            self.add("NodePort at the loopback", who, ("127.0.0.1",), node_ports)
            self.add("LoadBalancer", who, BALANCED[who], ports | sctp)
            self.add("externalIPs", who, EXTERNAL[who], ports | sctp)
            self.add("by hand", who, BY_HAND[who], ports)
        self.add("externalIPs of the node", "far", self.nodes["node-1"], ports)
        self.add_host_ports()
        self.add_redirects()
        return self.cells

    def add_host_ports(self) -> None:
        """Only the pod's own node knows them: others send there, and the node is what is seen of its pods."""
        ports = dict.fromkeys(("tcp", "udp", "udp-each"), HOST_PORT)
        near, far = self.nodes["node-1"], self.nodes["node-2"]
        from_node = dict.fromkeys(INSIDE, near)
        self.add("hostPort", "near", near, ports)
        self.add("hostPort at the loopback", "near", ("127.0.0.1",), ports)
        self.add("hostPort elsewhere", "far", far, ports, seen=from_node | {"outside": OUTSIDE_HOST})

    def add_redirects(self) -> None:
        """Each node's clients get the pod of their node."""
        asked = {"tcp": 53, "udp": 53, "udp-each": 53}
        anywhere = self.lab.cluster_ips("anywhere")
        for places, who in ((INSIDE, "near"), (("node-2",), "far")):
            self.add("redirect by address", who, REDIRECTED, asked, places=places)
            self.add("redirect of a service", who, anywhere, {"tcp": 80, "udp": 80}, places=places)


def pods() -> list[dict[str, Any]]:
    """One server on each node, with host ports; one client."""
    found = []
    for name, number in NUMBERS.items():
        made = server(name, number, f"node-{number}", sctp=SCTP_PORTS.values())
        for port in made["spec"]["containers"][0]["ports"]:
            if port["containerPort"] == PORTS["tcp"]:
                port["hostPort"] = HOST_PORT
        found.append(made)
    return [*found, client("client", "node-1"), client("raw", "node-1")]


def services(lab: ServicesLab) -> None:
    """One Service of all kinds for each server; what redirects; what is written by hand."""
    node = lab.plan.nodes[0]
    for who in NUMBERS:
        sctp = SCTP_PORTS[who]
        ports = [
            {"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": PORTS["tcp"]},
            {"name": "udp", "protocol": "UDP", "port": 80, "targetPort": PORTS["udp"]},
            {"name": "sctp", "protocol": "SCTP", "port": sctp, "targetPort": sctp, "nodePort": sctp},
        ]
        external = [*EXTERNAL[who], *((node.ipv4, node.ipv6) if who == "far" else ())]
        lab.apply(service(who, {"pod": who}, type="LoadBalancer", ports=ports, externalIPs=external))
        lab.give_addresses(who, *BALANCED[who])
        for address in BY_HAND[who]:
            for protocol in ("TCP", "UDP"):
                six = ":" in address
                frontend, backend = (
                    f"[{text}]" if six else text for text in (address, lab.addresses(who)[six])
                )
                lab.agents["node-1"].put_local_service(
                    LocalService(
                        frontend=f"{frontend}:80/{protocol}",
                        backends=(f"{backend}:{PORTS['tcp']}",),
                        name=f"by-hand-{who}",
                    )
                )
    lab.apply(service("anywhere", {"app": "web"}))
    for number, address in enumerate(REDIRECTED):
        matcher = {"ip": address, "toPorts": redirected_ports(53)}
        lab.apply(redirect(f"by-address-{number}", {"addressMatcher": matcher}))
    named = {"serviceName": "anywhere", "namespace": "default", "toPorts": redirected_ports(80)}
    lab.apply(redirect("by-service", {"serviceMatcher": named}))


def redirected_ports(port: int) -> list[dict[str, str]]:
    """A port of TCP and UDP as redirects write it."""
    return [{"name": name.lower(), "port": str(port), "protocol": name} for name in ("TCP", "UDP")]


def redirect(name: str, frontend: dict[str, Any]) -> dict[str, Any]:
    """To the servers of the client's node."""
    selector = {"matchLabels": {"app": "web"}}
    backend = {"localEndpointSelector": selector, "toPorts": redirected_ports(PORTS["tcp"])}
    spec = {"redirectFrontend": frontend, "redirectBackend": backend}
    return manifest("CiliumLocalRedirectPolicy", name, spec)


@pytest.fixture(scope="module")
def lab() -> Iterator[ServicesLab]:
    with services_lab("tsm", 2, ["enable-local-redirect-policy"]) as made:
        node = made.plan.nodes[0]
        routes = [
            f"route add {address} via {node.ipv6 if ':' in address else node.ipv4}"
            for where in (BALANCED, EXTERNAL, BY_HAND)
            for pair in where.values()
            for address in pair
        ]
        ip(made.plan.fabric, *routes)
        made.start_pods(*pods())
        services(made)
        yield made


@pytest.fixture(scope="module")
def faults(lab: ServicesLab) -> dict[tuple[str, str], list[str]]:
    """What is wrong, by kind and place."""
    cells = Matrix(lab).build()
    found: dict[tuple[str, str], list[str]] = {(cell.kind, cell.place): [] for cell in cells}
    first = [cell for cell in cells if cell.protocol == "tcp"]
    deadline = time.monotonic() + SETTLE
    while wrong(lab, first, 0.5) and time.monotonic() < deadline:
        time.sleep(0.1)
    for cell, fault in wrong(lab, cells, PATIENCE):
        found[cell.kind, cell.place].append(fault)
    return found


def wrong(lab: ServicesLab, cells: list[Cell], timeout: float) -> list[tuple[Cell, str]]:
    """Ask all at once."""
    asked: dict[str, list[Cell]] = {}
    for cell in cells:
        asked.setdefault(cell.place, []).append(cell)
    questions = {place: [cell.question(timeout) for cell in some] for place, some in asked.items()}
    answers = lab.ask_everywhere(questions)
    return [
        (cell, fault)
        for place, some in asked.items()
        for cell, answer in zip(some, answers[place], strict=True)
        if (fault := cell.fault(answer))
    ]


@pytest.mark.parametrize(("kind", "place"), [(kind, place) for kind, some in KINDS.items() for place in some])
def test_who_answers_whom_from_where(faults: dict[tuple[str, str], list[str]], kind: str, place: str) -> None:
    assert not faults[kind, place], "\n".join(faults[kind, place])
