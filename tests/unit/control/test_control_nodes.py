"""Node addresses and the host's routes to pods, from the nodes there are."""

from __future__ import annotations

import msgspec

from cilia.control.nodes import NodesNode, known_nodes, usable_pod_cidrs
from cilia.model.node import Node, NodeAddress, Route
from cilia.schema import Desired, Inputs

ONE = Node(name="one", addresses=("192.0.2.1",), router_addresses=("10.0.1.1",), pod_cidrs=("10.0.1.0/24",))
TWO = Node(name="two", addresses=("192.0.2.2", "2001:db8::2"), pod_cidrs=("10.0.2.0/24", "fd00:2::/120"))


def build() -> tuple[Inputs, Desired, NodesNode]:
    inputs, desired = Inputs(), Desired()
    return inputs, desired, NodesNode(inputs, desired, node="one", device="cilia_host", mtu=1450)


def test_every_node_has_addresses_and_every_pod_prefix_a_route() -> None:
    inputs, desired, node = build()
    inputs.nodes.put(ONE)
    inputs.nodes.put(TWO)
    node.step()
    assert desired.node_addresses.get("192.0.2.1") == NodeAddress(
        address="192.0.2.1", node="one", local=True, mtu=1450
    )
    assert len(desired.node_addresses) == 3
    assert desired.routes.get("10.0.2.0/24") == Route(
        prefix="10.0.2.0/24", device="cilia_host", source="10.0.1.1", mtu=1450
    )
    inputs.nodes.delete("two")
    node.step()
    assert [route.prefix for route in desired.routes] == ["10.0.1.0/24"]


def test_no_routes_before_this_node_is_known() -> None:
    inputs, desired, node = build()
    inputs.nodes.put(TWO)
    node.step()
    assert len(desired.routes) == 0


def test_nobody_takes_this_nodes_addresses() -> None:
    inputs, desired, node = build()
    for name in ("an-impostor", "one", "zz-impostor"):
        inputs.nodes.put(Node(name=name, addresses=("192.0.2.1",)))
        node.step()
    row = desired.node_addresses.get("192.0.2.1")
    assert row is not None
    assert (row.node, row.local) == ("one", True)


def test_a_pod_prefix_that_holds_a_nodes_address_has_no_route() -> None:
    greedy = Node(name="greedy", pod_cidrs=("192.0.2.0/24", "10.0.3.0/24", "2001:db8::/32", "2001:db9::/32"))
    usable = usable_pod_cidrs([ONE, TWO, greedy], "one")
    assert usable["greedy"] == ("10.0.3.0/24", "2001:db9::/32")
    assert usable["two"] == TWO.pod_cidrs


def test_this_nodes_pods_are_nobody_elses() -> None:
    greedy = Node(name="greedy", pod_cidrs=("10.0.0.0/8", "10.0.1.128/25", "10.9.0.0/24"))
    assert usable_pod_cidrs([ONE, greedy], "one") == {"one": ONE.pod_cidrs, "greedy": ("10.9.0.0/24",)}


def test_what_a_node_knows_of_itself_needs_no_cluster() -> None:
    inputs, desired = Inputs(), Desired()
    node = NodesNode(inputs, desired, node="one", device="cilia_host", mtu=1450, own=ONE)
    node.step()
    assert [route.prefix for route in desired.routes] == ["10.0.1.0/24"]
    for row in (Node(name="one", addresses=("198.51.100.1",), pod_cidrs=("10.9.0.0/24",)), TWO):
        inputs.nodes.put(row)
        node.step()
    assert {row.address: row.local for row in desired.node_addresses} == {
        "192.0.2.1": True,
        "192.0.2.2": False,
        "2001:db8::2": False,
    }
    inputs.nodes.delete("one")
    node.step()
    assert {route.prefix for route in desired.routes} == {"10.0.1.0/24", *TWO.pod_cidrs}


def test_a_node_knows_itself_but_its_labels() -> None:
    told = Node(name="one", addresses=("203.0.113.9",), labels={"zone": "a"})
    assert known_nodes([told, TWO], ONE) == [msgspec.structs.replace(ONE, labels={"zone": "a"}), TWO]
    assert known_nodes([], ONE) == [ONE]
