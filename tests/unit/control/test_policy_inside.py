"""An administrator's denial of addresses means the pods too when it covers all of them."""

from __future__ import annotations

from typing import Any

import pytest

from cilia.control.policy.expand import RuleNode
from cilia.control.policy.inside import PODS
from cilia.control.policy.rules import Cidr
from cilia.model.node import Node
from cilia.model.policy import PolicyObject
from cilia.schema import Inputs
from tests.support.policy_reading import written


def admin(action: str, *networks: str) -> PolicyObject:
    rule: dict[str, Any] = {"action": action, "to": [{"networks": networks}]}
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [rule]}
    return written("ClusterNetworkPolicy", spec)


class Story:
    def __init__(self, policy: PolicyObject) -> None:
        self.inputs = Inputs()
        self.node = RuleNode(self.inputs)
        self.changes = self.node.rules.cursor()
        self.inputs.policies.put(policy)

    def nodes(self, *prefixes: str) -> None:
        """One node for each prefix; those of before are gone."""
        for name in list(self.inputs.nodes.keys()):
            self.inputs.nodes.delete(name)
        for number, prefix in enumerate(prefixes):
            self.inputs.nodes.put(Node(name=f"n{number}", pod_cidrs=(prefix,)))

    def peers(self) -> list[object]:
        self.node.step()
        (row,) = self.node.rules
        return [rule.peer for section in row.sections for rule in section.rules]


@pytest.mark.parametrize(
    ("block", "meant"),
    [
        ("10.0.0.0/8", True),
        ("10.1.0.0/16", True),
        ("10.1.0.0/23", True),
        ("10.1.0.0/24", False),
        ("10.1.1.7/32", False),
        ("192.0.2.0/24", False),
        ("fd00::/8", False),
    ],
)
def test_pods_are_meant_when_all_of_them_are_within(block: str, meant: bool) -> None:
    story = Story(admin("Deny", block))
    story.nodes("10.1.0.0/24", "10.1.1.0/24")
    assert story.peers() == [Cidr(block), *([PODS] if meant else [])]


def test_each_family_for_itself() -> None:
    story = Story(admin("Deny", "10.0.0.0/8", "fd00::/8"))
    story.nodes("10.1.0.0/24", "2001:db8::/64")
    assert story.peers() == [Cidr("10.0.0.0/8"), PODS, Cidr("fd00::/8")]


@pytest.mark.parametrize("action", ["Accept", "Pass"])
def test_only_denials_are_wider_than_written(action: str) -> None:
    story = Story(admin(action, "10.0.0.0/8"))
    story.nodes("10.1.0.0/24")
    assert story.peers() == [Cidr("10.0.0.0/8")]


def test_other_policies_mean_what_is_outside() -> None:
    spec = {"endpointSelector": {}, "egressDeny": [{"toCIDR": ["10.0.0.0/8"]}]}
    story = Story(written("CiliumClusterwideNetworkPolicy", spec))
    story.nodes("10.1.0.0/24")
    assert story.peers() == [Cidr("10.0.0.0/8")]


def test_it_follows_the_nodes_and_is_quiet_when_nothing_comes_of_it() -> None:
    story = Story(admin("Deny", "10.1.0.0/16"))
    assert story.peers() == [Cidr("10.1.0.0/16")]
    story.nodes("10.1.0.0/24")
    assert story.peers() == [Cidr("10.1.0.0/16"), PODS]
    story.changes.take()
    story.nodes("10.1.0.0/24", "10.1.1.0/24")
    assert story.peers() == [Cidr("10.1.0.0/16"), PODS]
    assert story.changes.take() == ([], [])
    story.nodes("10.1.0.0/24", "10.2.0.0/24")
    assert story.peers() == [Cidr("10.1.0.0/16")]
    story.nodes()
    assert story.peers() == [Cidr("10.1.0.0/16")]
    story.inputs.policies.delete(("ClusterNetworkPolicy", "", "p"))
    story.nodes("10.1.0.0/24")
    story.node.step()
    assert len(story.node.rules) == 0
