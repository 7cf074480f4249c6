"""References mean what is there now, and a change reaches just the policies that depend on it."""

from __future__ import annotations

from typing import Any

from cilia.control.policy.meaning.expand import RuleNode, is_about_some_nodes
from cilia.control.policy.rules import (
    HAS_NAMESPACE,
    Cidr,
    Cidrs,
    Operator,
    Requirement,
    Selector,
    equals,
    exists,
    reserved,
)
from cilia.model.labels import CLUSTER, NAMESPACE
from cilia.model.policy import PolicyObject
from cilia.schema import CidrGroupRow, EndpointSliceRow, Inputs, ServiceRow
from tests.support.policy_cases import policy


def egress(name: str, **rule: Any) -> PolicyObject:
    return policy("CiliumNetworkPolicy", name, {"endpointSelector": {}, "egress": [rule]})


def group(name: str, *prefixes: str, **labels: str) -> CidrGroupRow:
    return CidrGroupRow(name=name, labels=labels, prefixes=prefixes)


class Book:
    """Inputs and the node that reads them."""

    def __init__(self) -> None:
        self.inputs = Inputs()
        self.node = RuleNode(self.inputs)
        self.changes = self.node.rules.cursor()

    def step(self) -> list[str]:
        """The names of the policies whose rules are other ones now."""
        self.node.step()
        put, deleted = self.changes.take()
        return sorted([*(row.policy.name for row in put), *(key[2] for key in deleted)])

    def peers(self, name: str = "p") -> list[object]:
        (row,) = [row for row in self.node.rules if row.policy.name == name]
        return [rule.peer for section in row.sections for rule in section.rules]


def test_a_group_by_name_comes_changes_and_goes() -> None:
    book = Book()
    book.inputs.policies.put(egress("p", toCIDRSet=[{"cidrGroupRef": "offices"}]))
    assert book.step() == ["p"]
    assert book.peers() == []
    book.inputs.cidr_groups.put(group("offices", "192.0.2.0/24", "198.51.100.0/24"))
    assert book.step() == ["p"]
    assert book.peers() == [Cidrs((Cidr("192.0.2.0/24"), Cidr("198.51.100.0/24")))]
    (row,) = book.node.rules
    assert row.prefixes == {"192.0.2.0/24", "198.51.100.0/24"}
    book.inputs.cidr_groups.put(group("elsewhere", "203.0.113.0/24"))
    assert book.step() == []
    book.inputs.cidr_groups.delete("offices")
    assert book.step() == ["p"]
    assert book.peers() == []


def test_a_group_swapped_for_another_in_one_step() -> None:
    book = Book()
    book.inputs.policies.put(
        egress("p", toCIDRSet=[{"cidrGroupSelector": {"matchLabels": {"kind": "office"}}}])
    )
    book.inputs.cidr_groups.put(group("a", "192.0.2.0/24", kind="office"))
    book.step()
    book.inputs.cidr_groups.delete("a")
    book.inputs.cidr_groups.put(group("b", "198.51.100.0/24", kind="office"))
    assert book.step() == ["p"]
    assert book.peers() == [Cidrs((Cidr("198.51.100.0/24"),))]


def test_exceptions_cut_the_prefixes_of_a_group() -> None:
    book = Book()
    book.inputs.policies.put(
        egress("p", toCIDRSet=[{"cidrGroupRef": "g", "except": ["192.0.2.0/25", "198.51.100.0/23"]}])
    )
    book.inputs.cidr_groups.put(group("g", "192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"))
    book.step()
    assert book.peers() == [Cidrs((Cidr("192.0.2.0/24", ("192.0.2.0/25",)), Cidr("2001:db8::/32")))]


def to_service(**service: Any) -> PolicyObject:
    return egress("p", toServices=[service])


def test_a_service_with_a_selector_means_its_pods() -> None:
    book = Book()
    book.inputs.policies.put(to_service(k8sService={"serviceName": "db", "namespace": "blue"}))
    book.step()
    assert book.peers() == []
    book.inputs.services.put(ServiceRow(namespace="blue", name="db", selector={"app": "db"}))
    assert book.step() == ["p"]
    pods = [
        equals("k8s", NAMESPACE, "blue"),
        equals("k8s", CLUSTER, "default"),
        equals("k8s", "app", "db"),
    ]
    assert book.peers() == [Selector.of(pods)]
    book.inputs.endpoint_slices.put(
        EndpointSliceRow(namespace="blue", name="db-1", service="db", addresses=("10.0.0.1",))
    )
    assert book.step() == []


def test_a_service_without_a_selector_means_the_addresses_of_its_slices() -> None:
    book = Book()
    book.inputs.policies.put(to_service(k8sService={"serviceName": "old", "namespace": "blue"}))
    book.inputs.services.put(ServiceRow(namespace="blue", name="old"))
    for name, address in (("a", "192.0.2.1"), ("b", "2001:db8::1")):
        book.inputs.endpoint_slices.put(
            EndpointSliceRow(namespace="blue", name=name, service="old", addresses=(address,))
        )
    book.step()
    assert book.peers() == [Cidrs((Cidr("192.0.2.1/32"), Cidr("2001:db8::1/128")))]
    book.inputs.endpoint_slices.put(EndpointSliceRow(namespace="blue", name="a", service="another"))
    assert book.step() == ["p"]
    assert book.peers() == [Cidrs((Cidr("2001:db8::1/128"),))]
    book.inputs.endpoint_slices.delete(("blue", "b"))
    assert book.step() == ["p"]
    assert book.peers() == []


def test_services_by_label() -> None:
    book = Book()
    selector = {"selector": {"matchLabels": {"tier": "data"}}, "namespace": "blue"}
    book.inputs.policies.put(to_service(k8sServiceSelector=selector))
    rows = [
        ServiceRow(namespace="blue", name="db", labels={"tier": "data"}, selector={"app": "db"}),
        ServiceRow(namespace="blue", name="web", labels={"tier": "front"}, selector={"app": "web"}),
        ServiceRow(namespace="red", name="db", labels={"tier": "data"}, selector={"app": "db"}),
    ]
    book.inputs.services.replace(rows)
    book.step()
    assert len(book.peers()) == 1
    book.inputs.services.delete(("blue", "db"))
    assert book.step() == ["p"]
    assert book.peers() == []


def test_a_policy_that_goes_is_depended_on_no_more() -> None:
    book = Book()
    book.inputs.policies.put(egress("p", toCIDRSet=[{"cidrGroupRef": "g"}]))
    book.step()
    book.inputs.policies.put(egress("p", toCIDRSet=[{"cidr": "192.0.2.0/24"}]))
    book.step()
    book.inputs.cidr_groups.put(group("g", "198.51.100.0/24"))
    assert book.step() == []
    book.inputs.policies.delete(("CiliumNetworkPolicy", "red", "p"))
    assert book.step() == ["p"]


def test_peers_that_tell_nodes_apart() -> None:
    zone = equals("k8s", "zone", "a")
    assert is_about_some_nodes(Selector.of([equals("reserved", "remote-node"), zone]))
    assert is_about_some_nodes(Selector.of([exists("reserved", "host"), zone]))
    assert not is_about_some_nodes(reserved("remote-node"))
    # Nothing in it leaves nodes out.
    assert is_about_some_nodes(Selector.of([zone]))
    elsewhere = Requirement("reserved", "health", Operator.DOES_NOT_EXIST)
    assert is_about_some_nodes(Selector.of([zone, elsewhere]))
    assert not is_about_some_nodes(Selector.of([zone, HAS_NAMESPACE]))
    assert not is_about_some_nodes(Selector.of([zone, equals("k8s", CLUSTER, "default")]))
    assert not is_about_some_nodes(Selector.of([zone, exists("reserved", "health")]))
    assert not is_about_some_nodes(Selector())
    assert not is_about_some_nodes(Cidr("10.0.0.0/8"))
    assert not is_about_some_nodes(None)
