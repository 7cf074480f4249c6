"""Identities: the cluster's pass through, prefixes get numbers that need no memory."""

from __future__ import annotations

import msgspec
import pytest

from cilia.control import identity as module
from cilia.control.apiserver import ApiServerNode
from cilia.control.identity import IdentityNode, LocalAllocator, cidr_labels, first_choice
from cilia.control.policy.meaning.expand import RuleNode
from cilia.model.identity import HOST, LOCAL_CIDR_FIRST, LOCAL_NODE_FIRST, WORLD_IPV4, reserved_identities
from cilia.model.ids import IdentityId
from cilia.model.labels import CLUSTER, NAMESPACE
from cilia.model.node import Node
from cilia.model.policy import PolicyObject
from cilia.schema import Desired, EndpointSliceRow, Inputs
from tests.support.policy_cases import PODS, policy


def speaking(name: str, *prefixes: str) -> PolicyObject:
    spec = {"endpointSelector": {}, "egress": [{"toCIDR": list(prefixes)}]}
    return policy("CiliumNetworkPolicy", name, spec)


def world(restored: dict[str, IdentityId] | None = None) -> tuple[Inputs, Desired, IdentityNode]:
    inputs, desired = Inputs(), Desired()
    return inputs, desired, Stepped(inputs, desired, restored)


class Stepped(IdentityNode):
    """With the rules it reads stepped before it."""

    def __init__(self, inputs: Inputs, desired: Desired, restored: dict[str, IdentityId] | None) -> None:
        self.rules = RuleNode(inputs)
        super().__init__(inputs, desired, self.rules, restored=restored)

    def step(self, *, keep: bool = False) -> None:
        self.rules.step()
        super().step(keep=keep)


def test_reserved_and_cluster_identities() -> None:
    inputs, desired, node = world()
    assert set(desired.identities) == set(reserved_identities())
    inputs.cluster_identities.put(PODS[0])
    node.step()
    assert desired.identities.get(PODS[0].id) == PODS[0]
    inputs.cluster_identities.delete(PODS[0].id)
    node.step()
    assert set(desired.identities) == set(reserved_identities())


def test_a_prefix_lives_as_long_as_somebody_speaks_of_it() -> None:
    inputs, desired, node = world()
    one, two = speaking("one", "10.0.0.0/8", "192.0.2.0/24"), speaking("two", "10.0.0.0/8")
    inputs.policies.replace([one, two])
    node.step()
    assert {row.prefix for row in node.cidrs} == {"10.0.0.0/8", "192.0.2.0/24"}
    inputs.policies.replace([two])
    node.step()
    (row,) = node.cidrs
    identity = desired.identities.get(row.identity)
    assert identity is not None
    assert identity.labels.strings() == ["cidr:10.0.0.0/8", "reserved:world", "reserved:world-ipv4"]
    inputs.policies.replace([])
    node.step()
    assert len(node.cidrs) == 0
    assert set(desired.identities) == set(reserved_identities())


def test_a_refused_rule_speaks_of_nothing() -> None:
    inputs, _, node = world()
    spec = {"endpointSelector": {}, "egress": [{"toCIDR": ["10.0.0.0/8"], "toFQDNs": []}]}
    inputs.policies.put(policy("CiliumNetworkPolicy", "one", spec))
    node.step()
    assert len(node.cidrs) == 0


def test_everywhere_is_the_world() -> None:
    inputs, desired, node = world()
    inputs.policies.put(speaking("one", "0.0.0.0/0"))
    node.step()
    assert [(row.prefix, row.identity) for row in node.cidrs] == [("0.0.0.0/0", WORLD_IPV4)]
    inputs.policies.replace([])
    node.step()
    assert WORLD_IPV4 in desired.identities


def test_numbers_need_no_memory() -> None:
    forward, backward = LocalAllocator(), LocalAllocator()
    prefixes = [f"10.{n}.0.0/16" for n in range(50)]
    came, _ = forward.settle(prefixes)
    for prefix in prefixes[::-1]:
        backward.settle([prefix])
    assert dict(backward.settle(prefixes)[0]).items() <= dict(came).items()
    assert all(LOCAL_CIDR_FIRST < number < LOCAL_NODE_FIRST for _, number in came)
    assert len(dict(came)) == len({number for _, number in came}) == 50


def test_restored_numbers_go_before() -> None:
    number = IdentityId(LOCAL_CIDR_FIRST + 7)
    inputs, _, node = world({"10.0.0.0/8": number})
    inputs.policies.put(speaking("one", "10.0.0.0/8"))
    node.step()
    assert [row.identity for row in node.cidrs] == [number]


def test_prefixes_that_hash_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    last = IdentityId(LOCAL_NODE_FIRST - 1)
    monkeypatch.setattr(module, "first_choice", lambda prefix: last - LOCAL_CIDR_FIRST)
    allocator = LocalAllocator()
    came, _ = allocator.settle(["10.0.0.0/8", "11.0.0.0/8"])
    assert [number for _, number in came] == [last, LOCAL_CIDR_FIRST + 1]
    swapped, gone = allocator.settle(["11.0.0.0/8", "12.0.0.0/8"])
    assert gone == [("10.0.0.0/8", last)]
    assert swapped == [("12.0.0.0/8", LOCAL_CIDR_FIRST + 2)]


def test_labels_of_a_prefix() -> None:
    assert cidr_labels("2001:db8::/32").strings() == [
        "cidr:2001-db8--0/32",
        "reserved:world",
        "reserved:world-ipv6",
    ]
    assert first_choice("10.0.0.0/8") == first_choice("10.0.0.0/8")


ONE = Node(name="one", addresses=("172.18.0.2",), router_addresses=("10.0.1.1",))
TWO = Node(
    name="two",
    addresses=("172.18.0.3", "fd00:18::3"),
    router_addresses=("10.0.2.1",),
    labels={"zone": "b", NAMESPACE: "kube-system"},
)


class Nodes:
    """An identity node on node one of two."""

    def __init__(self, *, cidr_nodes: bool = False, apiserver: str = "") -> None:
        self.inputs, self.desired = Inputs(), Desired()
        self.rules = RuleNode(self.inputs)
        self.apiservers = ApiServerNode(self.inputs, dialled=[apiserver] if apiserver else [], own=ONE)
        self.node = IdentityNode(
            self.inputs,
            self.desired,
            self.rules,
            node="one",
            own=ONE,
            apiservers=self.apiservers.addresses,
            cidr_nodes=cidr_nodes,
        )
        self.inputs.nodes.replace([ONE, TWO])

    def step(self) -> dict[str, list[str]]:
        """The labels of each address of other nodes."""
        self.turn()
        found = {}
        for row in self.node.node_ids:
            identity = self.desired.identities.get(row.identity)
            assert identity is not None
            assert row.identity > LOCAL_NODE_FIRST
            found[row.prefix] = identity.labels.strings()
        return found

    def turn(self, *, keep: bool = False) -> None:
        self.rules.step()
        self.apiservers.step()
        self.node.step(keep=keep)

    def prefixes(self) -> dict[str, list[str]]:
        """The labels of each prefix that has an identity."""
        found = {}
        for row in self.node.cidrs:
            identity = self.desired.identities.get(row.identity)
            assert identity is not None
            found[row.prefix] = identity.labels.strings()
        return found

    def host(self) -> list[str]:
        row = self.desired.identities.get(HOST)
        assert row is not None
        return row.labels.strings()


def telling(name: str) -> PolicyObject:
    nodes = {"matchLabels": {"zone": "b"}}
    return policy("CiliumNetworkPolicy", name, {"endpointSelector": {}, "ingress": [{"fromNodes": [nodes]}]})


def test_nodes_are_told_apart_while_some_policy_does() -> None:
    world = Nodes()
    assert world.step() == {}
    world.inputs.policies.put(telling("p"))
    assert world.step() == {
        "172.18.0.3/32": ["cidr:172.18.0.3/32", "k8s:zone=b", "reserved:remote-node"],
        "fd00:18::3/128": ["cidr:fd00-18--3/128", "k8s:zone=b", "reserved:remote-node"],
        "10.0.2.1/32": ["cidr:10.0.2.1/32", "k8s:zone=b", "reserved:remote-node"],
    }
    world.inputs.nodes.put(msgspec.structs.replace(TWO, labels={"zone": "c"}, router_addresses=()))
    labels = world.step()
    assert labels.keys() == {"172.18.0.3/32", "fd00:18::3/128"}
    assert "k8s:zone=c" in labels["172.18.0.3/32"]
    world.inputs.nodes.delete("two")
    assert world.step() == {}
    world.inputs.nodes.put(TWO)
    assert len(world.step()) == 3
    world.inputs.policies.delete(telling("p").key)
    assert world.step() == {}
    assert all(identity.id < LOCAL_NODE_FIRST for identity in world.desired.identities)


def test_cidr_rules_that_mean_nodes_tell_them_apart() -> None:
    world = Nodes(cidr_nodes=True, apiserver="172.18.0.3")
    labels = world.step()
    assert "reserved:kube-apiserver" in labels["10.0.2.1/32"]
    assert world.host() == ["cidr:10.0.1.1/32", "cidr:172.18.0.2/32", "reserved:host"]


def test_an_api_server_outside_is_of_the_world_and_no_node() -> None:
    world = Nodes(apiserver="203.0.113.9")
    world.step()
    (row,) = world.node.cidrs
    assert row.prefix == "203.0.113.9/32"
    identity = world.desired.identities.get(row.identity)
    assert identity is not None
    assert identity.labels.strings() == [
        "cidr:203.0.113.9/32",
        "reserved:kube-apiserver",
        "reserved:world",
        "reserved:world-ipv4",
    ]
    world.inputs.policies.put(speaking("p", "203.0.113.9/32", "203.0.113.0/24"))
    world.step()
    assert len(world.node.cidrs) == 2
    world.inputs.policies.delete(speaking("p").key)
    world.step()
    assert [one.prefix for one in world.node.cidrs] == ["203.0.113.9/32"]


def test_the_host_carries_its_nodes_labels() -> None:
    world = Nodes(apiserver="172.18.0.2")
    world.step()
    assert world.host() == ["reserved:host", "reserved:kube-apiserver"]
    world.inputs.nodes.put(msgspec.structs.replace(ONE, labels={"zone": "a", CLUSTER: "elsewhere"}))
    world.step()
    assert world.host() == ["k8s:zone=a", "reserved:host", "reserved:kube-apiserver"]


API_V4 = ["cidr:192.0.2.1/32", "reserved:kube-apiserver", "reserved:world", "reserved:world-ipv4"]


def slices(*addresses: str, service: str = "kubernetes") -> EndpointSliceRow:
    return EndpointSliceRow(namespace="default", name=service, service=service, addresses=addresses)


def test_what_the_api_server_publishes_counts_too() -> None:
    world = Nodes()
    world.inputs.endpoint_slices.put(slices("172.18.0.3", "2001:db8::1"))
    world.inputs.endpoint_slices.put(slices("192.0.2.9", service="other"))
    world.step()
    assert world.prefixes().keys() == {"2001:db8::1/128"}
    assert "reserved:world-ipv6" in world.prefixes()["2001:db8::1/128"]


def test_an_api_server_that_becomes_a_node_is_no_part_of_the_world() -> None:
    world = Nodes(apiserver="192.0.2.1")
    world.step()
    world.inputs.nodes.put(msgspec.structs.replace(TWO, addresses=("192.0.2.1",)))
    world.turn(keep=True)
    assert world.prefixes() == {"192.0.2.1/32": API_V4}
    assert world.node.leaving
    world.turn()
    assert world.prefixes() == {}
    world.inputs.nodes.delete("two")
    world.turn(keep=True)
    assert world.node.came
    assert not world.node.leaving
    assert world.prefixes() == {"192.0.2.1/32": API_V4}


def test_a_prefix_of_policies_is_called_otherwise_while_it_is_the_api_server() -> None:
    world = Nodes()
    to_it = {"endpointSelector": {}, "egress": [{"toCIDR": ["192.0.2.1/32"]}]}
    world.inputs.policies.put(policy("CiliumNetworkPolicy", "p", to_it))
    world.step()
    numbers = {row.prefix: row.identity for row in world.node.cidrs}
    assert "reserved:kube-apiserver" not in world.prefixes()["192.0.2.1/32"]
    world.inputs.endpoint_slices.put(slices("192.0.2.1"))
    world.step()
    assert world.prefixes() == {"192.0.2.1/32": API_V4}
    world.inputs.endpoint_slices.delete(("default", "kubernetes"))
    world.turn(keep=True)
    assert world.prefixes() == {"192.0.2.1/32": API_V4}
    world.turn()
    assert "reserved:kube-apiserver" not in world.prefixes()["192.0.2.1/32"]
    assert {row.prefix: row.identity for row in world.node.cidrs} == numbers


def test_nodes_become_api_servers_by_what_these_publish() -> None:
    world = Nodes(cidr_nodes=True)
    world.inputs.endpoint_slices.put(slices("172.18.0.2", "172.18.0.3"))
    labels = world.step()
    assert "reserved:kube-apiserver" in labels["172.18.0.3/32"]
    assert "reserved:kube-apiserver" in world.host()
    assert world.prefixes() == {}
