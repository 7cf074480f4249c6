"""The whole graph on random events: nodes, pods elsewhere and policies come, change and go.

After each event the graph says what a new one would say of the same inputs, its entries say what the oracle
says, and at no turn on the way there has an address a verdict that neither the old nor the new rules give.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cilia.control.graph import ControlGraph, GraphConfig
from cilia.control.policy.entries.resolve import decide
from cilia.control.policy.facts import Party
from cilia.control.policy.reasons import oracle
from cilia.control.policy.rules import ICMP, TCP
from cilia.model.endpoint import RemoteEndpoint
from cilia.model.identity import UNKNOWN, Identity
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.node import Node
from cilia.model.policy import Direction, Entry, EntryFlags, PolicyObject, SubjectPolicy
from cilia.schema import CidrGroupRow, Desired, Inputs, NamespaceRow, PodRow
from tests.support.policy_cases import GROUPS, endpoint, policy, random_spec

OWN = Node(
    name="here",
    addresses=("172.18.0.2", "fd00:18::2"),
    router_addresses=("10.9.0.1",),
    pod_cidrs=("10.9.0.0/24",),
)
NODES = {
    "two": ("172.18.0.3", "10.8.0"),
    "three": ("172.18.0.4", "10.7.0"),
    "four": ("172.18.0.77", "10.6.0"),
}
REMOTE = {"e1": "10.8.0.5", "e2": "10.7.0.5", "e3": "10.7.0.6"}
API_SERVER = "203.0.113.9"
ASKED = (
    *(
        "172.18.0.2",
        "10.9.0.1",
        "172.18.0.3",
        "fd00:18::3",
        "172.18.0.4",
        "10.8.0.1",
        "10.7.0.1",
        "172.18.0.77",
    ),
    *REMOTE.values(),
    *(API_SERVER, "8.8.8.8", "2002::1", "10.1.2.3", "10.200.0.1"),
)
PREFIXES = (
    *("0.0.0.0/0", "::/0", "172.18.0.0/16", "172.18.0.2/32", "172.18.0.3/32", "10.0.0.0/8", "10.9.0.0/24"),
    *("10.7.0.0/24", "10.7.0.5/32", "10.8.0.0/24", f"{API_SERVER}/32"),
)
WEB = IdentityId(300)
PACKETS = ((TCP, 80), (ICMP, 8))
Verdicts = dict[tuple[str, int], bool]


class Story:
    """Inputs that change, and a graph that follows them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cidr_nodes = self.rng.random() < 0.4
        self.nodes: dict[str, Node] = {}
        self.remote: dict[str, RemoteEndpoint] = {}
        self.policies: dict[str, PolicyObject] = {}
        self.graph = self.fresh()

    def fresh(self) -> ControlGraph:
        """A new graph over the inputs as they are."""
        inputs = Inputs()
        attachment = endpoint(1, WEB, ipv4="10.9.0.2").attachment
        inputs.attachments.put(msgspec.structs.replace(attachment, namespace="red", pod="web"))
        inputs.namespaces.put(NamespaceRow(name="red"))
        inputs.pods.put(PodRow(namespace="red", name="web", labels={"app": "web"}))
        for number, app in enumerate(("web", "db", "job"), WEB):
            inputs.cluster_identities.put(
                Identity(IdentityId(number), Labels.kubernetes("red", {"app": app}, {}))
            )
        inputs.cidr_groups.replace(
            CidrGroupRow(name=name, labels={"kind": name}, prefixes=prefixes)
            for name, prefixes in GROUPS.items()
        )
        for table in inputs.tables():
            table.synced = True
        config = GraphConfig(
            node="here", own=OWN, cidr_nodes=self.cidr_nodes, apiserver_addresses=(API_SERVER,)
        )
        made = ControlGraph(inputs, Desired(), config)
        self.tell(made)
        made.step(0.0)
        return made

    def tell(self, graph: ControlGraph) -> None:
        """Let a graph's inputs be what they are now."""
        graph.inputs.nodes.replace(list(self.nodes.values()))
        graph.inputs.remote_endpoints.replace(list(self.remote.values()))
        graph.inputs.policies.replace(list(self.policies.values()))

    def change(self) -> None:
        """One random event."""
        happen: Callable[[], None] = self.rng.choice((self.some_node, self.some_pod, *[self.some_policy] * 3))
        happen()
        self.tell(self.graph)

    def some_node(self) -> None:
        """A node comes, is labelled anew or goes."""
        rng, name = self.rng, self.rng.choice(tuple(NODES))
        self.nodes.pop(name, None)
        if rng.random() < 0.7:
            address, pods = NODES[name]
            second = (f"fd00:18::{address.rpartition('.')[2]}",) if rng.random() < 0.5 else ()
            self.nodes[name] = Node(
                name=name,
                addresses=(address, *second),
                router_addresses=(f"{pods}.1",),
                pod_cidrs=(f"{pods}.0/24",),
                labels=rng.choice(({}, {"zone": "a"}, {"zone": "b"})),
            )

    def some_pod(self) -> None:
        """A pod elsewhere comes, speaks for somebody else or goes."""
        name = self.rng.choice(tuple(REMOTE))
        self.remote.pop(name, None)
        if self.rng.random() < 0.7:
            self.remote[name] = RemoteEndpoint(
                namespace="red",
                name=name,
                identity=IdentityId(self.rng.choice((301, 302))),
                node_ip="172.18.0.3",
                addresses=(REMOTE[name],),
            )

    def some_policy(self) -> None:
        """A policy comes, is edited or goes."""
        name = f"p{self.rng.randrange(4)}"
        self.policies.pop(name, None)
        if self.rng.random() < 0.75:
            self.policies[name] = random_policy(self.rng, name)

    def row(self, graph: ControlGraph) -> SubjectPolicy:
        return next(row for row in graph.desired.subjects if row.identity == WEB)

    def verdicts(self, graph: ControlGraph) -> Verdicts:
        """Which addresses the pod here may send to."""
        known = [(ipaddress.ip_network(row.prefix), row.identity) for row in graph.desired.ipcache]
        entries, found = self.row(graph).entries, Verdicts()
        for text in ASKED:
            address = ipaddress.ip_address(text)
            around = [(network.prefixlen, identity) for network, identity in known if address in network]
            identity = max(around)[1]
            for protocol, port in PACKETS:
                hit = decide(entries, identity, int(Direction.EGRESS), protocol, port)
                found[text, protocol] = identity != UNKNOWN and hit is not None and passes(hit[1])
        return found


def random_policy(rng: random.Random, name: str) -> PolicyObject:
    """A policy about what pods send to nodes, entities, prefixes or networks; or any."""
    zone: dict[str, Any] = {"matchLabels": {"zone": rng.choice("ab")}}
    if rng.random() < 0.4:
        operator = rng.choice(("Exists", "DoesNotExist"))
        zone = {"matchExpressions": [{"key": "zone", "operator": operator}]}
    entity = rng.choice(("host", "remote-node", "kube-apiserver", "cluster", "world"))
    rule = rng.choice(({"toNodes": [zone]}, {"toEntities": [entity]}, {"toCIDR": rng.sample(PREFIXES, 2)}))
    kind = rng.randrange(6)
    if kind == 0:
        any_kind, spec = random_spec(rng)
        return policy(any_kind, name, spec)
    if kind < 4:
        spec = {"endpointSelector": {}, rng.choice(("egress", "egressDeny")): [rule]}
        return policy("CiliumClusterwideNetworkPolicy", name, spec)
    peers = [{"networks": rng.sample(PREFIXES, rng.randint(1, 2))}, {"nodes": zone}, {"namespaces": {}}]
    rules = [
        {"action": rng.choice(("Accept", "Deny", "Pass")), "to": [rng.choice(peers)]}
        for _ in range(rng.randint(1, 3))
    ]
    spec = {"tier": rng.choice(("Admin", "Baseline")), "priority": rng.randint(0, 3), "egress": rules}
    return policy("ClusterNetworkPolicy", name, {**spec, "subject": {"namespaces": {}}})


def passes(entry: Entry) -> bool:
    """Whether the kernel lets a packet pass by this entry."""
    return entry.allow or bool(entry.flags & EntryFlags.AUDIT)


def addresses_of(graph: ControlGraph) -> set[tuple[str, int]]:
    return {(row.prefix, row.identity) for row in graph.desired.ipcache}


@pytest.mark.parametrize("seed", range(8))
def test_the_graph_follows(seed: int) -> None:
    story = Story(seed)
    for _ in range(10):
        before = story.verdicts(story.graph)
        story.change()
        during = [story.verdicts(story.graph) for _ in story.graph.turns(0.0)]
        after, fresh = during[-1], story.fresh()
        assert after == story.verdicts(fresh)
        assert addresses_of(story.graph) == addresses_of(fresh)
        for verdicts in during:
            assert all(verdict in (before[key], after[key]) for key, verdict in verdicts.items())
        agree_with_oracle(story)


def agree_with_oracle(story: Story) -> None:
    """Some of the entries say what the oracle says."""
    facts, row = story.graph.policy.facts(), story.row(story.graph)
    subject = Party(identity=WEB, labels=row.labels)
    for identity in story.rng.sample(sorted(facts.identities), 8):
        peer = Party(identity=identity, labels=facts.identities[identity])
        for protocol, port in PACKETS:
            hit = decide(row.entries, identity, int(Direction.EGRESS), protocol, port)
            assert hit is not None
            verdict = oracle.judge(facts, subject, peer, Direction.EGRESS, protocol, port)
            assert passes(hit[1]) == verdict.allow
