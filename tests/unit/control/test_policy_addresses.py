"""Whose addresses lie where: pods and nodes that networks of administrators mean."""

from __future__ import annotations

import random

import pytest

from cilia.control.identity import IdentityNode
from cilia.control.policy.entries.resolve import decide
from cilia.control.policy.meaning.addresses import Addresses
from cilia.control.policy.meaning.expand import RuleNode
from cilia.control.policy.node import PolicyNode
from cilia.control.policy.reasons.oracle import is_inside
from cilia.control.policy.rules import TCP, Inside
from cilia.model.endpoint import RemoteEndpoint
from cilia.model.identity import HOST, REMOTE_NODE
from cilia.model.ids import EndpointId, IdentityId, Revision
from cilia.model.node import Node
from cilia.model.policy import Direction, SubjectPolicy
from cilia.schema import Desired, Inputs
from tests.support.policy_cases import endpoint, pod, policy

SOME, WHOLE = Inside(("10.1.0.0/16", "fd00::/64"), False), Inside(("10.1.0.0/16", "fd00::/64"), True)
WEB, DB = pod(300, "red", "web"), pod(301, "red", "db")


def meant(addresses: Addresses) -> tuple[set[int], set[int]]:
    return {*addresses.members(SOME)}, {*addresses.members(WHOLE)}


@pytest.mark.parametrize("early", [True, False])
def test_some_and_all_addresses_of_an_identity(early: bool) -> None:
    addresses = Addresses()
    claims = {1: (300, ("10.1.0.1", "fd00::1")), 2: (300, ("10.1.0.2",)), 3: (301, ("10.2.0.1",))}
    claims[4] = (302, ("10.1.9.9", "fd01::1"))
    for peer in (SOME, WHOLE) * early:
        addresses.acquire(peer)
    for claimant, (identity, own) in claims.items():
        addresses.claim(claimant, (IdentityId(identity), own))
    for peer in (SOME, WHOLE) * (not early):
        addresses.acquire(peer)
    assert meant(addresses) == ({300, 302}, {300})
    assert addresses.claim(5, (IdentityId(300), ("10.9.0.1",))) == [(300, WHOLE)]
    assert meant(addresses) == ({300, 302}, set())
    assert addresses.claim(5, None) == [(300, WHOLE)]
    assert addresses.claim(2, (IdentityId(301), ("10.1.0.2",))) == [(301, SOME)]
    assert meant(addresses) == ({300, 301, 302}, {300})
    assert addresses.claim(2, (IdentityId(301), ("10.1.0.2",))) == []
    assert addresses.claim(9, None) == []


def test_who_has_no_address_is_not_meant() -> None:
    addresses = Addresses()
    addresses.acquire(WHOLE)
    addresses.claim(1, (IdentityId(300), ()))
    addresses.claim(2, (IdentityId(0), ("10.1.0.1",)))
    assert not addresses.members(WHOLE)
    assert 300 not in addresses
    assert addresses.all() == {}


def test_counting_equals_listing() -> None:
    rng = random.Random(7)
    pool = ("10.1.0.1", "10.1.0.2", "10.2.0.1", "fd00::1", "fd00:1::1")
    addresses = Addresses()
    for peer in (SOME, WHOLE):
        addresses.acquire(peer)
    for _ in range(2_000):
        identity = IdentityId(300 + rng.randrange(4))
        claim = (identity, tuple(rng.sample(pool, rng.randint(0, 2)))) if rng.random() < 0.7 else None
        addresses.claim(rng.randrange(8), claim)
        listed = addresses.all()
        for peer in (SOME, WHOLE):
            assert addresses.members(peer) == {i for i, own in listed.items() if is_inside(peer, own)}
            assert addresses.select(peer) == addresses.members(peer)


def test_prefixes_that_nest_count_once() -> None:
    nested = Inside(("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"), True)
    addresses = Addresses()
    addresses.claim(1, (IdentityId(300), ("10.1.2.3", "10.1.2.3", "10.200.0.1")))
    addresses.claim(2, (IdentityId(301), ("10.1.2.3", "11.0.0.1")))
    assert addresses.select(nested) == {300}
    addresses.acquire(nested)
    addresses.claim(2, (IdentityId(301), ("10.1.2.3",)))
    assert addresses.members(nested) == addresses.select(nested) == {300, 301}


def test_users_are_counted() -> None:
    addresses = Addresses()
    addresses.acquire(SOME)
    addresses.acquire(SOME)
    addresses.release(SOME)
    assert SOME in addresses.peers()
    addresses.release(SOME)
    assert addresses.peers() == {}


class Story:
    """A policy that denies a network, a local pod `web`, and peers that come and go."""

    def __init__(self, action: str = "Deny", *, cidr_nodes: bool = False) -> None:
        self.inputs, self.desired = Inputs(), Desired()
        own = Node(name="here", addresses=("172.18.0.2",), router_addresses=("10.9.0.1",))
        rules = RuleNode(self.inputs)
        self.identities = IdentityNode(
            self.inputs, self.desired, rules, node="here", own=own, cidr_nodes=cidr_nodes
        )
        self.policies = PolicyNode(self.inputs, self.desired, rules, own=own, cidr_nodes=cidr_nodes)
        self.rules = rules
        for identity in (WEB, DB):
            self.inputs.cluster_identities.put(identity)
        self.desired.endpoints.put(endpoint(1, WEB.id, ipv4="10.9.0.2"))
        self.networks(action, "10.1.0.0/16", "172.18.0.3/32")

    def networks(self, action: str, *networks: str) -> None:
        spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}
        egress = [{"action": action, "to": [{"networks": list(networks)}]}]
        self.inputs.policies.put(policy("ClusterNetworkPolicy", "p", spec | {"egress": egress}))

    def remote(self, name: str, *addresses: str) -> None:
        self.inputs.remote_endpoints.put(
            RemoteEndpoint(
                namespace="red", name=name, identity=DB.id, node_ip="172.18.0.3", addresses=addresses
            )
        )

    def allows(self, peer: int) -> bool:
        self.rules.step()
        self.identities.step()
        self.policies.step(Revision(self.inputs.policies.revision))
        found = decide(self.row().entries, peer, int(Direction.EGRESS), TCP, 80)
        assert found is not None
        return found[1].allow

    def row(self) -> SubjectPolicy:
        return next(row for row in self.desired.subjects if row.identity == WEB.id)


def test_a_part_of_the_pods_is_denied_by_its_network() -> None:
    story = Story()
    assert story.allows(DB.id)
    story.remote("one", "10.2.0.1")
    assert story.allows(DB.id)
    before = story.row().epoch
    story.remote("two", "10.1.0.1")
    assert not story.allows(DB.id)
    assert story.row().epoch > before, "running flows of the first one are judged again"
    story.inputs.remote_endpoints.delete(("red", "two"))
    assert story.allows(DB.id)


def test_the_first_address_of_an_identity_leaves_the_epoch() -> None:
    story = Story()
    assert story.allows(DB.id)
    before = story.row().epoch
    story.remote("one", "10.1.0.1")
    assert not story.allows(DB.id)
    assert story.row().epoch == before


def test_local_pods_are_denied_by_their_network() -> None:
    story = Story()
    story.desired.endpoints.put(endpoint(2, DB.id, ipv4="10.1.7.7"))
    assert not story.allows(DB.id)
    story.desired.endpoints.delete(EndpointId(2))
    assert story.allows(DB.id)


def test_nodes_are_denied_by_their_addresses() -> None:
    story = Story()
    assert story.allows(REMOTE_NODE)
    assert not list(story.identities.node_ids)
    for number in (3, 4):
        story.inputs.nodes.put(Node(name=f"n{number}", addresses=(f"172.18.0.{number}",)))
    assert story.allows(HOST)
    numbers = {row.prefix: row.identity for row in story.identities.node_ids}
    assert not story.allows(numbers["172.18.0.3/32"])
    assert story.allows(numbers["172.18.0.4/32"])
    story.inputs.nodes.delete("n3")
    assert story.allows(REMOTE_NODE)
    assert not list(story.identities.node_ids), "nobody needs to tell nodes apart any more"


@pytest.mark.parametrize("network", ["172.18.0.2/32", "10.9.0.1/32", "0.0.0.0/1"])
def test_the_own_node_is_denied_by_any_of_its_addresses(network: str) -> None:
    story = Story()
    assert story.allows(HOST)
    story.networks("Deny", network)
    assert not story.allows(HOST)
    story.networks("Deny", "::/0")
    assert story.allows(HOST)


def test_where_cidr_rules_mean_nodes_one_address_of_the_own_node_is_still_not_all() -> None:
    """A Pass that took one address for the node would skip the denial of its others."""
    story = Story(cidr_nodes=True)
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}
    egress = [
        {"action": "Pass", "to": [{"networks": ["172.18.0.2/32"]}]},
        {"action": "Deny", "to": [{"networks": ["10.9.0.0/16"]}]},
    ]
    story.inputs.policies.put(policy("ClusterNetworkPolicy", "p", spec | {"egress": egress}))
    assert not story.allows(HOST)
