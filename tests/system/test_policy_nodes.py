"""Nodes as peers of pods' rules, by their labels and as entities, as real traffic."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from cilia.abi import object_path
from tests.support.attacker import Siege
from tests.support.policy_lab import PolicyLab, pod, policy, policy_lab
from tests.support.policy_truth import Document, Peer

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
    pytest.mark.skipif(not object_path().exists(), reason="needs the eBPF object: run make bpf"),
]

POD_PORT, NODE_PORT = 7000, 8000
NO_ANSWER = 0.4
"""Seconds without an answer that mean no."""
LATE_ANSWER = 5.0
"""The same where one is due: a busy machine may be late."""
NEAR, FAR = Peer("default", "near", {"app": "near"}), Peer("default", "far", {"app": "far"})
HOSTNAME = "kubernetes.io/hostname"
NODES = ("node-1", "node-2")
EVERYBODY = frozenset((*NODES, "far"))


class Lab(NamedTuple):
    """Two nodes that serve on a port, with a pod on each."""

    policies: PolicyLab
    places: Siege

    def is_open(self, source: str, target: str, expected: bool) -> bool:
        """Whether connections come about; alike in both families."""
        port = NODE_PORT if target in NODES else POD_PORT
        place = self.places[target]
        timeout = LATE_ANSWER if expected else NO_ANSWER
        found = {self._connects(source, address, port, timeout) for address in (place.ipv4, place.ipv6)}
        assert len(found) == 1, f"{source} reaches {target} in one family only"
        return found.pop()

    def _connects(self, source: str, address: str, port: int, timeout: float) -> bool:
        try:
            self.places[source].connected(address, port, timeout=timeout).close()
        except TimeoutError:
            return False
        return True


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with policy_lab(f"tpn{os.getpid() % 1000000}") as made:
        serve = (("TCP", POD_PORT),)
        made.start_pods([pod(NEAR, "node-1", serve), pod(FAR, "node-2", serve)])
        places = Siege(made.plan)
        listeners = [places[node].bound(socket.SOCK_STREAM, "::", NODE_PORT) for node in NODES]
        yield Lab(made, places)
        for listener in listeners:
            listener.close()
        places.close()


def cilium(**spec: Any) -> Document:
    return policy("CiliumNetworkPolicy", "nodes", {"endpointSelector": NEAR_ONLY, **spec}, "default")


NEAR_ONLY = {"matchLabels": NEAR.labels}
ONE, TWO = ({"matchLabels": {HOSTNAME: node}} for node in NODES)
BUT_TWO = {"matchExpressions": [{"key": HOSTNAME, "operator": "NotIn", "values": ["node-2"]}]}
OPEN = {"ingress": False, "egress": False}

INTO = {
    "any node": (cilium(ingress=[{"fromNodes": [{}]}]), {"node-1", "node-2"}),
    "the other node": (cilium(ingress=[{"fromNodes": [TWO]}]), {"node-1", "node-2"}),
    "the own node": (cilium(ingress=[{"fromNodes": [ONE]}]), {"node-1"}),
    "nodes by expression": (cilium(ingress=[{"fromNodes": [BUT_TWO]}]), {"node-1"}),
    "the other node denied": (
        cilium(ingressDeny=[{"fromNodes": [TWO]}], enableDefaultDeny=OPEN),
        {"node-1", "far"},
    ),
    "the own node denied": (
        cilium(ingressDeny=[{"fromNodes": [ONE]}], enableDefaultDeny=OPEN),
        {"node-2", "far"},
    ),
    "every other node by entity": (cilium(ingress=[{"fromEntities": ["remote-node"]}]), {"node-1", "node-2"}),
    "by entity, one denied by label": (
        cilium(ingress=[{"fromEntities": ["all"]}], ingressDeny=[{"fromNodes": [TWO]}]),
        {"node-1", "far"},
    ),
}
"""Who reaches `near`: always its own node, unless that is denied."""


def administrator(*rules: Document) -> Document:
    subject = {"pods": {"namespaceSelector": {}, "podSelector": NEAR_ONLY}}
    spec = {"tier": "Admin", "priority": 1, "subject": subject, "egress": list(rules)}
    return policy("ClusterNetworkPolicy", "nodes", spec)


OUT = {
    "any node": (cilium(egress=[{"toNodes": [{}]}]), {"node-1", "node-2"}),
    "the other node": (cilium(egress=[{"toNodes": [TWO]}]), {"node-2"}),
    "the own node": (cilium(egress=[{"toNodes": [ONE]}]), {"node-1"}),
    "nodes by expression": (cilium(egress=[{"toNodes": [BUT_TWO]}]), {"node-1"}),
    "the other node denied": (
        cilium(egressDeny=[{"toNodes": [TWO]}], enableDefaultDeny=OPEN),
        {"node-1", "far"},
    ),
    "the host by entity, pods by label": (
        cilium(egress=[{"toEntities": ["host"]}, {"toEndpoints": [{"matchLabels": FAR.labels}]}]),
        {"node-1", "far"},
    ),
    "an administrator denies one": (
        administrator({"action": "Deny", "to": [{"nodes": TWO}]}),
        {"node-1", "far"},
    ),
    "an administrator accepts one": (
        administrator(
            {"action": "Accept", "to": [{"nodes": ONE}]},
            {"action": "Deny", "to": [{"nodes": {}}, {"namespaces": {}}]},
        ),
        {"node-1"},
    ),
}
"""Whom `near` reaches."""


@pytest.mark.parametrize("name", INTO)
def test_who_reaches_a_pod(lab: Lab, name: str) -> None:
    document, expected = INTO[name]
    lab.policies.replace_all([document])
    assert {source for source in EVERYBODY if lab.is_open(source, "near", source in expected)} == expected


@pytest.mark.parametrize("name", OUT)
def test_whom_a_pod_reaches(lab: Lab, name: str) -> None:
    document, expected = OUT[name]
    lab.policies.replace_all([document])
    assert {target for target in EVERYBODY if lab.is_open("near", target, target in expected)} == expected
