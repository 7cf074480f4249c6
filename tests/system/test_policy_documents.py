"""What the documentation's examples say of pods, as packets between pods of a lab of two nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.policy_examples import CLUSTER, Example, Statement, blocks
from tests.support.policy_lab import PolicyLab, policy_lab
from tests.support.policy_truth import Packet, Peer

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(CLUSTER.read_text()))
PODS = {
    f"{one['metadata']['namespace']}/{one['metadata']['name']}": one
    for one in DOCUMENTS
    if one["kind"] == "Pod"
}


def between_pods(example: Example) -> list[Statement]:
    """What it says of two pods; protocols without ports have nobody to answer."""
    return [
        one
        for one in example.statements
        if one.source in PODS and one.destination in PODS and not one.port.endswith("/ip")
    ]


EXAMPLES = [example for example in blocks() if between_pods(example) and not example.refused]


def serving(name: str) -> dict[str, Any]:
    """A pod that answers on every port that some example asks it on."""
    document = PODS[name]
    container = document["spec"]["containers"][0]
    ports = list(container.get("ports", []))
    known = {(port.get("protocol", "TCP"), port["containerPort"]) for port in ports}
    for example in EXAMPLES:
        for statement in between_pods(example):
            number, _, protocol = statement.port.partition("/")
            if statement.destination == name and protocol and (protocol, int(number)) not in known:
                known.add((protocol, int(number)))
                ports.append({"containerPort": int(number), "protocol": protocol})
    return {**document, "spec": {**document["spec"], "containers": [{**container, "ports": ports}]}}


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    with policy_lab(f"tpd{os.getpid() % 1000000}") as made:
        made.apply(*(one for one in DOCUMENTS if one["kind"] != "Pod"))
        made.start_pods([serving(name) for name in PODS])
        yield made


def peer(lab: PolicyLab, name: str) -> Peer:
    namespace, _, pod = name.partition("/")
    record = lab.record(Peer(namespace, pod))
    return Peer(namespace, pod, addresses=tuple(record.ips))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_packets_go_as_the_example_says(lab: PolicyLab, example: Example) -> None:
    peers = {name: peer(lab, name) for name in PODS}
    expected: dict[Packet, bool] = {}
    for statement in between_pods(example):
        number, _, protocol = statement.port.partition("/")
        for family, ping in (("IPv4", 8), ("IPv6", 128)):
            port = int(number) if protocol else ping
            ends = peers[statement.source], peers[statement.destination]
            expected[Packet(*ends, protocol or "ICMP", port, family)] = statement.outcome != "denied"
    lab.replace_all(example.documents)
    assert not lab.wrong(list(expected), expected.__getitem__)
