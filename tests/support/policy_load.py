"""Policies that change under traffic: packets whose fate is known, and who was in force when each was judged.

Datagrams go from every pod to every other one, at random, on flows old and new. A change of policies is known
by two moments: before its write to the API server, and when every node said that it enforces it. In between
each end of a packet may have been judged by the old policies or by the new ones, and by nothing else.
"""

from __future__ import annotations

import bisect
import random
import resource
import selectors
import socket
import struct
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cilia.lab import kernel
from tests.support.background import Background
from tests.support.policy_lab import address_of, policy
from tests.support.policy_truth import Document, Packet, Peer, Side, Truth

PORTS = (7001, 7002)
APPS = tuple(f"app-{number}" for number in range(10))
NAMESPACE = "default"
FAMILIES = ("IPv4", "IPv6")
SENDERS = 4
"""Sockets of a pod: each is a flow to every other pod and port."""
RENEWED = 50
"""One packet of so many leaves by a socket that was opened for it: a flow nobody has seen."""
TICK = 0.002
MARGIN = 0.1
"""Seconds between the return of the call that sends a packet and its verdict, at the most."""
NUMBER = struct.Struct("!I")


@dataclass(frozen=True, kw_only=True)
class Revision:
    """Policies, and from when to when they came into force (monotonic seconds)."""

    policies: tuple[Document, ...] = ()
    apps: Mapping[str, str] = field(default_factory=dict)
    """The label `app` of pods (by name) that have another one than at first."""
    written: float = float("-inf")
    enforced: float = float("-inf")


class Traffic(Background):
    """Sends datagrams between pods in a thread until closed."""

    def __init__(self, peers: Sequence[Peer], netns: Sequence[str], rate: int, seed: int) -> None:
        """`rate` is in packets a second; `netns` are the peers' namespaces."""
        super().__init__()
        _raise_limit()
        self.peers = peers
        self.times = array("d")
        """Of each packet: before the call that sent it. On a busy machine the call itself may wait."""
        self.sent = array("d")
        """Of each packet: after that call."""
        self.routes: list[tuple[int, int, int, int]] = []
        """Of each packet: source, target, index of its port and of its family."""
        self.arrived = bytearray()
        self._netns = netns
        self._random = random.Random(seed)
        self._per_tick = max(1, round(rate * TICK))
        self._senders = [[self._open(pod) for _ in range(SENDERS)] for pod in range(len(peers))]
        self._receivers = [self._listen(pod, port) for pod in range(len(peers)) for port in PORTS]
        self._targets = [
            [("::ffff:" if family == "IPv4" else "") + address_of(peer, family) for family in FAMILIES]
            for peer in peers
        ]

    def _close(self) -> None:
        for opened in (*self._receivers, *(one for row in self._senders for one in row)):
            opened.close()

    def packet(self, number: int) -> Packet:
        """What was sent."""
        source, target, port, family = self.routes[number]
        return Packet(self.peers[source], self.peers[target], "UDP", PORTS[port], FAMILIES[family])

    def _open(self, pod: int) -> socket.socket:
        with kernel.inside_network(self._netns[pod]):
            opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        opened.setblocking(False)
        return opened

    def _listen(self, pod: int, port: int) -> socket.socket:
        opened = self._open(pod)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        opened.bind(("::", port))
        return opened

    def _run(self) -> None:
        with selectors.EpollSelector() as selector:
            for opened in self._receivers:
                selector.register(opened, selectors.EVENT_READ)
            due = time.monotonic()
            while not self._stopping.is_set():
                self._receive(selector, max(0.0, due - time.monotonic()))
                if time.monotonic() >= due:
                    due = time.monotonic() + TICK
                    for _ in range(self._per_tick):
                        self._send()
            while self._receive(selector, 5 * MARGIN):
                pass

    def _send(self) -> None:
        draw = self._random.randrange
        source, target = draw(len(self.peers)), draw(len(self.peers) - 1)
        target += target >= source
        port, family, slot = draw(len(PORTS)), draw(len(FAMILIES)), draw(SENDERS)
        if draw(RENEWED) == 0:
            self._senders[source][slot].close()
            self._senders[source][slot] = self._open(source)
        number = len(self.routes)
        self.routes.append((source, target, port, family))
        self.arrived.append(0)
        self.times.append(time.monotonic())
        address = (self._targets[target][family], PORTS[port])
        self._senders[source][slot].sendto(NUMBER.pack(number), address)
        self.sent.append(time.monotonic())

    def _receive(self, selector: selectors.BaseSelector, patience: float) -> bool:
        """Whether anything came."""
        ready = selector.select(patience)
        for key, _ in ready:
            opened = key.fileobj
            assert isinstance(opened, socket.socket)
            try:
                while data := opened.recv(64):
                    self.arrived[NUMBER.unpack(data)[0]] = 1
            except BlockingIOError:
                continue
        return bool(ready)


@dataclass
class Report:
    """What became of the packets."""

    packets: int = 0
    arrived: int = 0
    crossing: int = 0
    """Sent while more than one revision could have judged them."""
    passed: list[str] = field(default_factory=list)
    """Got through although no revision that could have judged them allows it."""
    lost: list[str] = field(default_factory=list)
    """Were dropped although each revision that could have judged them allows it."""
    unknown: int = 0
    """The same, while an end was being relabelled: until the receiving node hears of the new identity too, it
    believes nobody who claims it."""


def judge(traffic: Traffic, revisions: Sequence[Revision], truth: Truth) -> Report:
    """Compare each packet's fate with the revisions that could have judged it."""
    report = Report(packets=len(traffic.times))
    verdicts = _Verdicts(revisions, truth)
    written = [one.written for one in revisions]
    enforced = [one.enforced for one in revisions]
    for number, (moment, sent) in enumerate(zip(traffic.times, traffic.sent, strict=True)):
        first = bisect.bisect_left(enforced, moment) - 1
        last = bisect.bisect_right(written, sent + MARGIN) - 1
        packet, came = traffic.packet(number), traffic.arrived[number]
        report.arrived += came
        report.crossing += last > first
        sides = [
            [verdicts.of(one, packet, ingress) for one in range(first, last + 1)] for ingress in (False, True)
        ]
        if came and not all(any(side) for side in sides):
            report.passed.append(_say(packet, moment, revisions[first : last + 1]))
        if not came and all(all(side) for side in sides):
            if verdicts.are_relabelled(packet, first, last):
                report.unknown += 1
                continue
            report.lost.append(_say(packet, moment, revisions[first : last + 1]))
    return report


class _Verdicts:
    """Verdicts by kinds of pods: those with equal labels fare alike."""

    def __init__(self, revisions: Sequence[Revision], truth: Truth) -> None:
        self._revisions = revisions
        self._truth = truth
        self._known: dict[tuple[int, str, str, int, bool], bool] = {}

    def of(self, revision: int, packet: Packet, ingress: bool) -> bool:
        """What one end says under a revision."""
        source, target = self._app(revision, packet.source), self._app(revision, packet.target)
        key = (revision, source, target, packet.port, ingress)
        found = self._known.get(key)
        if found is None:
            called = replace(
                packet,
                source=replace(packet.source, labels={"app": source}),
                target=replace(packet.target, labels={"app": target}),
            )
            policies = self._revisions[revision].policies
            found = self._known[key] = self._truth.side_allows(policies, Side(called, ingress))
        return found

    def are_relabelled(self, packet: Packet, first: int, last: int) -> bool:
        """Whether revisions call an end of the packet differently."""
        ends = (packet.source, packet.target)
        return any(self._app(n, end) != self._app(first, end) for n in range(first, last + 1) for end in ends)

    def _app(self, revision: int, peer: Peer) -> str:
        return self._revisions[revision].apps.get(peer.name, peer.labels["app"])


def _say(packet: Packet, moment: float, revisions: Sequence[Revision]) -> str:
    ends = " -> ".join(f"{one.name} ({one.labels['app']})" for one in (packet.source, packet.target))
    since = ", ".join(
        f"{len(one.policies)} policies, {moment - one.written:.4f} to {moment - one.enforced:.4f} s earlier"
        for one in revisions
    )
    return f"{ends} {packet.family} port {packet.port}, judged by one of: {since}"


# changes


class Changes:
    """Random policies, one changed at a time; the same seed gives the same sequence."""

    def __init__(self, seed: int, policies: int = 8) -> None:
        """`policies` is how many there are at most."""
        self._random = random.Random(seed)
        self._most = policies
        self._current: dict[str, Document] = {}

    def next(self) -> tuple[str, Document, tuple[Document, ...]]:
        """`apply` or `delete`, the policy that is meant, and all policies that are then in force."""
        name = f"policy-{self._random.randrange(self._most)}"
        if name in self._current and self._random.random() < 0.5:
            return "delete", self._current.pop(name), tuple(self._current.values())
        kind = self._current[name]["kind"] if name in self._current else None
        self._current[name] = self._policy(name, kind)
        return "apply", self._current[name], tuple(self._current.values())

    def _policy(self, name: str, kind: str | None) -> Document:
        kind = kind or self._random.choice(
            ("NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy")
        )
        ingress = self._random.random() < 0.5
        if kind == "NetworkPolicy":
            return policy(kind, name, self._kubernetes(ingress), NAMESPACE)
        return policy(kind, name, self._cilium(ingress), NAMESPACE if kind == "CiliumNetworkPolicy" else "")

    def _kubernetes(self, ingress: bool) -> Document:
        rule: Document = {"from" if ingress else "to": [{"podSelector": self._apps(4)}]}
        if self._random.random() < 0.5:
            rule["ports"] = [{"port": self._random.choice(PORTS), "protocol": "UDP"}]
        word = "Ingress" if ingress else "Egress"
        return {"podSelector": self._apps(2), "policyTypes": [word], word.lower(): [rule]}

    def _cilium(self, ingress: bool) -> Document:
        word = "ingress" if ingress else "egress"
        rule: Document = {"fromEndpoints" if ingress else "toEndpoints": [self._apps(4)]}
        if self._random.random() < 0.5:
            port = {"port": str(self._random.choice(PORTS)), "protocol": "UDP"}
            rule["toPorts"] = [{"ports": [port]}]
        spec: dict[str, Any] = {"endpointSelector": self._apps(3)}
        if self._random.random() < 0.5:
            return spec | {f"{word}Deny": [rule], "enableDefaultDeny": {word: False}}
        return spec | {word: [rule]}

    def _apps(self, most: int) -> Document:
        values = self._random.sample(APPS, self._random.randint(1, most))
        operator = "NotIn" if self._random.random() < 0.2 else "In"
        return {"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}


def _raise_limit() -> None:
    """Many pods are many sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
