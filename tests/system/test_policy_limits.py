"""Policies at and beyond their limits: degraded where it shows, closed rather than open, never wrong."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from cilia.api.types import EndpointView, Health
from cilia.lab import kernel
from tests.support.policy_lab import PolicyLab, pod, policy, policy_lab
from tests.support.policy_truth import Document, Packet, Peer
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

SPACE = "default"
NAMES = ("big", "other", "third")
SERVE = [("TCP", 80), ("UDP", 80)]
MANY = ("198.18.0.0/16", "2001:db8:f00::/48")
"""Prefixes of the host outside: it answers on each of their addresses."""
PORT = 8080
MARGIN = 0.2
"""Seconds between a send and the packet's verdict, at the most."""
ENOUGH = 5
"""Packets to each address that show what is in force."""


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    with policy_lab(f"tpx{os.getpid() % 1000000}", nodes=1) as made:
        made.start_pods([pod(Peer(SPACE, name, {"app": name}), "node-1", SERVE) for name in NAMES])
        made.answer_from_outside(MANY)
        yield made


@pytest.fixture(scope="module")
def pods(lab: PolicyLab) -> dict[str, Peer]:
    return {name: Peer(SPACE, name, {"app": name}, lab.record(Peer(SPACE, name)).ips) for name in NAMES}


@pytest.fixture(autouse=True)
def no_policies(lab: PolicyLab) -> Iterator[None]:
    yield
    lab.replace_all(())


def cilium(name: str, app: str, spec: Document) -> Document:
    return policy(
        "CiliumNetworkPolicy", name, {"endpointSelector": {"matchLabels": {"app": app}}, **spec}, SPACE
    )


def world(address: str) -> Peer:
    return Peer("", address, addresses=(address,))


def packet(source: Peer, target: Peer, protocol: str = "UDP") -> Packet:
    """A question to a port that is served, in the first family that the target has."""
    family = "IPv6" if ":" in target.addresses[0] else "IPv4"
    return Packet(source, target, protocol, 80 if target.is_pod else PORT, family)


def ask(lab: PolicyLab, ends: Sequence[tuple[Peer, Peer]]) -> list[bool]:
    """Whether each pair's second is reached."""
    return [answer == "ok" for answer in lab.answers([packet(*pair) for pair in ends])]


def endpoint(lab: PolicyLab, name: str) -> EndpointView:
    return lab.agents[0].endpoint(f"pod-name:{SPACE}/{name}")


# more entries than a map holds


def wide(prefixes: int) -> Document:
    """As many entries as prefixes times forty ports."""
    cidrs = [f"100.64.{number // 256}.{number % 256}/32" for number in range(prefixes)]
    ports = [{"ports": [{"port": str(2 * port + 1), "protocol": "TCP"} for port in range(40)]}]
    anyone = {"fromEntities": ["all"]}
    return cilium("wide", "big", {"ingress": [anyone], "egress": [{"toCIDR": cidrs, "toPorts": ports}]})


def test_a_policy_that_overflows_its_map_closes_its_subject_and_heals(
    lab: PolicyLab, pods: dict[str, Peer]
) -> None:
    inwards, outwards = (pods["other"], pods["big"]), (pods["big"], pods["other"])
    bystanders = (pods["other"], pods["third"])
    assert ask(lab, [inwards, outwards, bystanders]) == [True, True, True]
    lab.apply(wide(500))
    agent = lab.agents[0]
    until(lambda: agent.status().agent.state is Health.WARNING, "the status to tell")
    assert "denied" in agent.status().agent.msg
    assert endpoint(lab, "big").status.error
    assert not endpoint(lab, "other").status.error
    assert ask(lab, [inwards, outwards, bystanders]) == [False, False, True]
    lab.apply(wide(2))
    lab.settle()
    assert agent.status().agent.state is Health.OK
    assert not endpoint(lab, "big").status.error
    assert ask(lab, [inwards, outwards, bystanders]) == [True, False, True]


# many values


def test_a_selector_of_ten_thousand_values(lab: PolicyLab, pods: dict[str, Peer]) -> None:
    values = [f"somebody-{number}" for number in range(9_999)]

    def chosen(operator: str, *more: str) -> Document:
        expression = {"key": "app", "operator": operator, "values": [*values, *more]}
        return cilium("values", "big", {"ingress": [{"fromEndpoints": [{"matchExpressions": [expression]}]}]})

    ends = [(pods["other"], pods["big"]), (pods["third"], pods["big"])]
    lab.replace_all([chosen("In", "other")])
    assert ask(lab, ends) == [True, False]
    lab.replace_all([chosen("NotIn", "other")])
    assert ask(lab, ends) == [False, True]
    lab.replace_all([chosen("In")])
    assert ask(lab, ends) == [False, False]


# many prefixes


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def nested(draw: random.Random, root: str, count: int) -> list[Network]:
    """Prefixes that overlap: most lie within others, down to single addresses."""
    wide: list[Network] = [ipaddress.ip_network(root)]
    found: set[Network] = set()
    while len(found) < count:
        inside = draw.choice(wide)
        length = inside.prefixlen + draw.choice((1, 2, 3, 5, 8, 12, 16))
        if length > inside.max_prefixlen:
            continue
        address = inside.network_address + draw.randrange(inside.num_addresses)
        made = ipaddress.ip_network(f"{address}/{length}", strict=False)
        found.add(made)
        if len(wide) < 50:
            wide.append(made)
    return sorted(found, key=lambda one: (one.prefixlen, int(one.network_address)))


def addresses_around(prefixes: Sequence[Network], seed: int, count: int) -> list[str]:
    """Addresses at the edges of prefixes and within."""
    draw = random.Random(seed)
    found: set[str] = set()
    while len(found) < count:
        network = draw.choice(prefixes)
        edge = draw.choice((0, network.num_addresses - 1, draw.randrange(network.num_addresses)))
        found.add(str(network.network_address + edge))
    return sorted(found)


def within(address: str, prefixes: Sequence[Network]) -> bool:
    number = ipaddress.ip_address(address)
    return any(number in one for one in prefixes)


def test_three_thousand_overlapping_prefixes(lab: PolicyLab, pods: dict[str, Peer]) -> None:
    """Half of them deny: some of the wide ones, most of the narrow ones."""
    draw = random.Random(2)
    prefixes, denied = [], []
    for root in MANY:
        made = nested(draw, root, 1500)
        prefixes += made
        denied += draw.sample(made[150:750], 50) + draw.sample(made[750:], 700)
    chosen = set(denied)
    allowed = [one for one in prefixes if one not in chosen]
    egress, deny = ([{"toCIDR": [str(one) for one in group]}] for group in (allowed, denied))
    lab.replace_all([cilium("prefixes", "big", {"egress": egress, "egressDeny": deny})])
    addresses = addresses_around(prefixes, 3, 300)
    expected = [within(one, allowed) and not within(one, denied) for one in addresses]
    packets = [packet(pods["big"], world(one), "TCP") for one in addresses]
    verdicts = dict(zip(packets, expected, strict=True))
    assert lab.wrong(packets, verdicts.__getitem__) == []
    assert 50 < sum(expected) < 350


# swaps under traffic


class Stream:
    """Numbered datagrams from a pod to addresses of the host outside; who arrived is known."""

    def __init__(self, lab: PolicyLab, source: Peer, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        self.sent: list[tuple[float, float, int]] = []
        """Of each packet: when the call that sent it began and ended, and the index of its address."""
        self.arrived: set[int] = set()
        with kernel.inside_network(lab.record(source).netns):
            self._senders = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(8)]
        with kernel.inside_network(lab.plan.outside):
            self._receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._receiver.bind(("::", 7100))
        self._receiver.setblocking(False)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        targets = [address if ":" in address else f"::ffff:{address}" for address in self.addresses]
        while not self._stopping.is_set():
            for index, target in enumerate(targets):
                number, began = len(self.sent), time.monotonic()
                self._senders[number % 8].sendto(struct.pack("!I", number), (target, 7100))
                self.sent.append((began, time.monotonic(), index))
            self._read()
            time.sleep(0.001)
        time.sleep(5 * MARGIN)
        self._read()

    def _read(self) -> None:
        try:
            while data := self._receiver.recv(16):
                self.arrived.add(struct.unpack("!I", data)[0])
        except BlockingIOError:
            return

    def fates(self, since: float, until: float) -> list[Counter[bool]]:
        """Of each address, how many packets sent in between arrived (True) and how many did not."""
        found: list[Counter[bool]] = [Counter() for _ in self.addresses]
        for number, (began, ended, index) in enumerate(self.sent):
            if since < began and ended < until:
                found[index][number in self.arrived] += 1
        return found

    def go_on(self) -> None:
        """Wait until each address has been sent enough packets from now on."""
        wanted = len(self.sent) + (ENOUGH + 1) * len(self.addresses)
        until(lambda: len(self.sent) >= wanted, "packets to be sent")

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """End, and take what is under way."""
        self._stopping.set()
        self._thread.join(60)
        for opened in (*self._senders, self._receiver):
            opened.close()


@contextmanager
def streaming(lab: PolicyLab, source: Peer, addresses: Sequence[str]) -> Iterator[Stream]:
    stream = Stream(lab, source, addresses)
    stream.start()
    try:
        yield stream
    finally:
        stream.stop()


def group(name: str, *prefixes: str) -> Document:
    return policy("CiliumCIDRGroup", name, {"externalCIDRs": list(prefixes)})


def by_group(name: str) -> Document:
    return cilium("by-group", "big", {"egress": [{"toCIDRSet": [{"cidrGroupRef": name}]}]})


def only(fates: Counter[bool], arrived: bool) -> bool:
    """Whether packets were sent and all had this fate."""
    return bool(fates[arrived]) and not fates[not arrived]


BOTH, FIRST, SECOND, NEITHER = "198.18.1.1", "198.18.2.1", "2001:db8:f00::1", "198.18.4.1"
ONE = group("one", "198.18.1.0/24", f"{FIRST}/32")
TWO = group("two", f"{BOTH}/32", f"{SECOND}/128")


@pytest.fixture
def groups(lab: PolicyLab) -> Iterator[None]:
    lab.apply(ONE, TWO)
    yield
    lab.replace_all(())
    lab.delete(ONE, TWO)


def test_a_cidr_group_swapped_for_another_under_traffic(
    lab: PolicyLab, pods: dict[str, Peer], groups: None
) -> None:
    """What both groups hold is never dropped, what neither holds never passes."""
    lab.replace_all([by_group("one")])
    begun = time.monotonic()
    windows = []
    with streaming(lab, pods["big"], (BOTH, FIRST, SECOND, NEITHER)) as stream:
        for name in ("two", "one") * 10:
            lab.replace_all([by_group(name)])
            enforced = time.monotonic()
            stream.go_on()
            until_then = time.monotonic()
            time.sleep(MARGIN)
            windows.append((name, enforced, until_then))
    whole = stream.fates(begun, float("inf"))
    assert only(whole[0], True) and only(whole[3], False), whole
    for name, since, till in windows:
        fates = stream.fates(since, till)
        assert only(fates[1], name == "one") and only(fates[2], name == "two"), (name, fates)


def test_a_denied_cidr_group_swapped_for_another_under_traffic(
    lab: PolicyLab, pods: dict[str, Peer], groups: None
) -> None:
    """What both groups hold never passes, what neither holds is never dropped."""

    def denying(name: str) -> Document:
        everybody = {"toEntities": ["world"]}
        deny = [{"toCIDRSet": [{"cidrGroupRef": name}]}]
        return cilium("by-group", "big", {"egress": [everybody], "egressDeny": deny})

    lab.replace_all([denying("one")])
    begun = time.monotonic()
    with streaming(lab, pods["big"], (BOTH, FIRST, SECOND, NEITHER)) as stream:
        for name in ("two", "one") * 10:
            lab.replace_all([denying(name)])
    whole = stream.fates(begun, float("inf"))
    assert only(whole[0], False) and only(whole[3], True), whole


def test_a_cidr_groups_prefixes_exchanged_under_traffic(
    lab: PolicyLab, pods: dict[str, Peer], groups: None
) -> None:
    lab.replace_all([by_group("one")])
    begun = time.monotonic()
    with streaming(lab, pods["big"], (BOTH, FIRST, SECOND, NEITHER)) as stream:
        for prefixes, follower in ((TWO, 2), (ONE, 1)) * 5:
            lab.apply({**ONE, "spec": prefixes["spec"]})
            since = time.monotonic()
            until(lambda: stream.fates(since, float("inf"))[follower][True] > 5, "the group's new prefixes")  # noqa: B023
    whole = stream.fates(begun, float("inf"))
    assert only(whole[0], True) and only(whole[3], False), whole


def test_identities_that_come_and_go_during_swaps(lab: PolicyLab, pods: dict[str, Peer]) -> None:
    """Policies of others give new identities to addresses that a policy is about, while it is switched."""
    open_addresses, closed = ("198.18.1.1", "198.18.200.9", "2001:db8:f00::1"), ("198.18.8.8", "198.18.9.200")
    rules = {
        "egress": [{"toCIDR": list(MANY)}],
        "egressDeny": [{"toCIDR": ["198.18.8.0/23"]}],
    }
    draw = random.Random(4)
    lab.replace_all([cilium("rules", "big", rules)])
    begun = time.monotonic()
    with streaming(lab, pods["big"], (*open_addresses, *closed)) as stream:
        for number in range(30):
            extra = [{"toCIDR": [f"192.0.2.{number}/32"]}]
            lab.apply(cilium("rules", "big", {**rules, "egress": [*rules["egress"], *extra]}))
            prefixes = [
                str(
                    ipaddress.ip_network(
                        f"{draw.choice((*open_addresses[:2], *closed))}/{length}", strict=False
                    )
                )
                for length in (32, draw.randrange(17, 32))
            ]
            coming = cilium("coming", draw.choice(("other", "third")), {"egress": [{"toCIDR": prefixes}]})
            lab.apply(coming)
            if number % 3:
                lab.delete(coming)
    lab.settle()
    whole = stream.fates(begun, float("inf"))
    assert all(only(fates, True) for fates in whole[: len(open_addresses)]), whole
    assert all(only(fates, False) for fates in whole[len(open_addresses) :]), whole
