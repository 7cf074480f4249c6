"""Rules and prefixes change turn by turn: no address meets a verdict of neither the old nor the new rules."""

from __future__ import annotations

import random

import pytest

from cilia.control.graph import ControlGraph, GraphConfig
from cilia.model.endpoint import Attachment
from cilia.model.identity import Identity
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.labels import Labels
from cilia.model.node import Node
from cilia.model.policy import PolicyObject
from cilia.schema import Desired, Inputs, NamespaceRow, PodRow
from tests.support.policy_cases import policy
from tests.support.reachability import reaches

POD = "10.0.1.11"
ADDRESSES = tuple(f"198.18.{third}.{last}" for third in (0, 1, 2) for last in (1, 2, 130, 255))
PREFIXES = (
    "0.0.0.0/0",
    *(f"198.18.0.0/{length}" for length in (15, 16, 22, 23, 24, 25)),
    *(f"198.18.1.0/{length}" for length in (24, 25, 30)),
    *(f"{address}/32" for address in ADDRESSES[::2]),
)


class Cluster:
    """One pod of `red` on this node, and its policies."""

    def __init__(self) -> None:
        self.inputs, self.desired = Inputs(), Desired()
        labels = Labels.kubernetes("red", {"app": "web"}, {})
        self.inputs.nodes.put(Node(name="one", addresses=("172.18.0.2",), pod_cidrs=("10.0.1.0/24",)))
        self.inputs.namespaces.put(NamespaceRow(name="red", labels={}))
        self.inputs.cluster_identities.put(Identity(IdentityId(301), labels))
        self.inputs.pods.put(PodRow(namespace="red", name="web", node="one", labels={"app": "web"}))
        self.inputs.attachments.put(
            Attachment(
                id=EndpointId(1),
                container_id="web",
                interface="eth0",
                netns="",
                host_interface="lxc1",
                ifindex=1,
                mac="02:00:00:00:00:01",
                host_mac="02:00:00:00:01:01",
                ipv4=POD,
                namespace="red",
                pod="web",
            )
        )
        for table in self.inputs.tables():
            table.synced = True
        self.graph = ControlGraph(self.inputs, self.desired, GraphConfig(node="one"))

    def write(self, *policies: PolicyObject) -> None:
        """Make these the policies."""
        for key in {row.key for row in self.inputs.policies} - {row.key for row in policies}:
            self.inputs.policies.delete(key)
        for row in policies:
            self.inputs.policies.put(row)

    def verdicts(self) -> dict[str, bool]:
        """Whether the pod reaches each address."""
        return {address: reaches(self.desired, POD, address) for address in ADDRESSES}


def rules(draw: random.Random) -> PolicyObject:
    allowed, denied = ([{"toCIDR": draw.sample(PREFIXES, draw.randint(1, 3))}] for _ in range(2))
    spec = {"endpointSelector": {}, "egress": allowed, "egressDeny": denied if draw.random() < 0.5 else []}
    return policy("CiliumNetworkPolicy", draw.choice(("first", "second")), spec)


@pytest.mark.parametrize("seed", range(6))
def test_each_address_keeps_its_verdict_until_it_has_the_new_one(seed: int) -> None:
    draw = random.Random(seed)
    cluster = Cluster()
    cluster.write(rules(draw))
    cluster.graph.step(0.0)
    for _ in range(4):
        old = cluster.verdicts()
        cluster.write(*{row.name: row for row in (rules(draw), rules(draw))}.values())
        seen = [cluster.verdicts() for _ in cluster.graph.turns(0.0)]
        new = cluster.verdicts()
        for verdicts in seen:
            wrong = {one for one in ADDRESSES if verdicts[one] not in (old[one], new[one])}
            assert not wrong, (old, verdicts, new)
        assert cluster.verdicts() == scratch(cluster).verdicts()


def scratch(cluster: Cluster) -> Cluster:
    """The same inputs, computed anew."""
    fresh = Cluster()
    fresh.write(*cluster.inputs.policies)
    fresh.graph.step(0.0)
    assert {row.prefix for row in fresh.desired.ipcache} == {row.prefix for row in cluster.desired.ipcache}
    return fresh


def test_rules_and_prefixes_change_in_turns_of_their_own() -> None:
    cluster = Cluster()
    one, two = ({"endpointSelector": {}, "egress": [{"toCIDR": [cidr]}]} for cidr in PREFIXES[5:7])
    cluster.write(policy("CiliumNetworkPolicy", "first", one))
    cluster.graph.step(0.0)
    cluster.write(policy("CiliumNetworkPolicy", "first", two))
    seen = []
    for _ in cluster.graph.turns(0.0):
        (subject,) = cluster.desired.subjects
        found = {row.prefix for row in cluster.desired.ipcache}
        seen.append((subject.rules, PREFIXES[5] in found, PREFIXES[6] in found))
    old, new = seen[0][0], seen[-1][0]
    assert old != new
    assert seen == [(old, True, True), (new, True, True), (new, False, True)]


def test_nodes_are_told_apart_before_rules_and_until_after_them() -> None:
    cluster = Cluster()
    cluster.inputs.nodes.put(Node(name="two", addresses=("172.18.0.3",), labels={"rack": "b"}))
    told = {"endpointSelector": {}, "ingress": [{"fromNodes": [{"matchLabels": {"rack": "b"}}]}]}
    alike = {"endpointSelector": {}, "ingress": [{"fromEntities": ["remote-node"]}]}
    seen = []
    for spec in (alike, told, alike):
        cluster.write(policy("CiliumNetworkPolicy", "first", spec))
        for _ in cluster.graph.turns(0.0):
            (subject,) = cluster.desired.subjects
            (node,) = [row.identity for row in cluster.desired.ipcache if row.prefix == "172.18.0.3/32"]
            seen.append((subject.rules, node == 6))
    rules_of = [seen[0][0], seen[2][0]]
    assert seen == [
        (rules_of[0], True),
        (rules_of[0], False),
        (rules_of[1], False),
        (rules_of[0], False),
        (rules_of[0], True),
    ]


def test_the_first_rules_wait_for_nothing() -> None:
    """Before rules are in force there are none under which a turn could be enforced."""
    cluster = Cluster()
    spec = {"endpointSelector": {}, "egress": [{"toCIDR": ["198.18.0.0/24"]}]}
    cluster.write(policy("CiliumNetworkPolicy", "first", spec))
    assert len([None for _ in cluster.graph.turns(0.0)]) == 1
    assert not cluster.verdicts()["198.18.1.1"]
