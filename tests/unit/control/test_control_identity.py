"""Identities: the cluster's pass through, prefixes get numbers that need no memory."""

from __future__ import annotations

import pytest

from cilia.control import identity as module
from cilia.control.identity import IdentityNode, LocalAllocator, cidr_labels, first_choice
from cilia.control.policy.expand import RuleNode
from cilia.model.identity import LOCAL_CIDR_FIRST, LOCAL_NODE_FIRST, WORLD_IPV4, reserved_identities
from cilia.model.ids import IdentityId
from cilia.model.policy import PolicyObject
from cilia.schema import Desired, Inputs
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

    def step(self) -> None:
        self.rules.step()
        super().step()


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


def test_a_refused_policy_speaks_of_nothing() -> None:
    inputs, _, node = world()
    spec = {"endpointSelector": {}, "egress": [{"toCIDR": ["10.0.0.0/8"]}, {"toFQDNs": []}]}
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
