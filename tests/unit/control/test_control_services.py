"""Services of every kind into frontends: who answers whom, at which address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cilia.control.services import frontends
from cilia.control.services.drafts import Draft
from cilia.control.services.node import ServicesNode
from cilia.control.services.settings import Mode, ServiceSettings
from cilia.model.node import Node
from cilia.model.service import Algorithm, ForwardingMode, Frontend, FrontendKind, Protocol, ServiceEntry
from cilia.schema import Desired, EndpointSliceRow, Inputs, ServiceRow
from cilia.schema.rows import ServicePort, SliceEndpoint, SlicePort

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
ZONE = "topology.kubernetes.io/zone"
OWN = Node(
    name="here",
    addresses=("172.18.0.2", "fd00:18::2"),
    router_addresses=("10.0.1.1",),
    labels={ZONE: "a", "pool": "edge"},
)
HTTP = ServicePort("http", 80, TCP, 30080)
OFFERED = SlicePort("http", 8080, TCP)


class Shop:
    """The node's inputs and what comes of them."""

    def __init__(self, settings: ServiceSettings | None = None, own: Node = OWN) -> None:
        self.inputs, self.desired = Inputs(), Desired()
        for table in self.inputs.tables():
            table.synced = True
        self.node = ServicesNode(self.inputs, self.desired, node="here", settings=settings, own=own)

    def add(self, *rows: ServiceRow | EndpointSliceRow) -> Shop:
        for row in rows:
            if isinstance(row, ServiceRow):
                self.inputs.services.put(row)
            else:
                self.inputs.endpoint_slices.put(row)
        self.node.step()
        return self

    def entry(self, address: str, port: int = 80, protocol: Protocol = TCP) -> ServiceEntry:
        found = self.desired.service_entries.get(Frontend(address, port, protocol))
        assert found is not None, sorted(map(str, self.frontends))
        return found

    @property
    def frontends(self) -> set[Frontend]:
        return set(self.desired.service_entries.keys())

    def problems(self, name: str = "web", kind: str = "Service") -> tuple[str, ...]:
        state = self.desired.service_states.get((kind, "shop", name))
        assert state is not None
        return state.problems


def service(name: str = "web", **fields: Any) -> ServiceRow:
    given = {"cluster_ips": ("10.96.0.7",), "ports": (HTTP,)} | fields
    return ServiceRow(namespace="shop", name=name, **given)


def endpoint(address: str, node: str = "here", **fields: Any) -> SliceEndpoint:
    return SliceEndpoint((address,), node=node, **fields)


def slice_of(
    *endpoints: SliceEndpoint,
    name: str = "web-1",
    service: str = "web",
    ports: Sequence[SlicePort] = (OFFERED,),
    **fields: Any,
) -> EndpointSliceRow:
    return EndpointSliceRow(
        namespace="shop", name=name, service=service, endpoints=endpoints, ports=tuple(ports), **fields
    )


def texts(backends: Sequence[object]) -> list[str]:
    return [str(backend).removesuffix("/TCP") for backend in backends]


HERE, THERE = endpoint("10.0.1.5"), endpoint("10.0.2.5", "there")
BOTH = ["10.0.1.5:8080", "10.0.2.5:8080"]


def test_a_cluster_ip_has_all_ready_backends_for_the_cluster_only() -> None:
    entry = Shop().add(service(), slice_of(HERE, THERE)).entry("10.96.0.7")
    assert (entry.kind, entry.namespace, entry.name, entry.port_name) == (
        FrontendKind.CLUSTER_IP,
        "shop",
        "web",
        "http",
    )
    assert texts(entry.internal) == BOTH
    assert entry.external == ()
    assert not entry.outside


def test_cluster_ips_may_be_open_to_the_outside() -> None:
    entry = Shop(ServiceSettings(external_cluster_ip=True)).add(service(), slice_of(HERE)).entry("10.96.0.7")
    assert entry.outside
    assert texts(entry.external) == BOTH[:1]


def test_a_cluster_ip_service_has_no_node_port() -> None:
    assert Shop().add(service()).frontends == {Frontend("10.96.0.7", 80, TCP)}


def test_node_ports_are_at_this_nodes_addresses_and_at_any() -> None:
    row = service(type="NodePort", cluster_ips=("10.96.0.7", "fd96::7"))
    shop = Shop().add(row, slice_of(HERE), slice_of(endpoint("fd00::5"), name="web-6", ipv6=True))
    ports = {frontend.address for frontend in shop.frontends if frontend.port == 30080}
    assert ports == {"172.18.0.2", "fd00:18::2", "0.0.0.0", "::"}
    assert shop.entry("172.18.0.2", 30080).outside
    assert texts(shop.entry("fd00:18::2", 30080).external) == ["[fd00::5]:8080"]
    assert not shop.entry("0.0.0.0", 30080).outside


def test_node_ports_may_be_at_chosen_addresses() -> None:
    shop = Shop(ServiceSettings(node_port_addresses=("192.168.1.2",)))
    shop.add(service(type="NodePort"), slice_of(HERE))
    assert shop.entry("192.168.1.2", 30080).outside
    assert Frontend("172.18.0.2", 30080, TCP) not in shop.frontends


def test_local_policy_binds_clients_outside_only() -> None:
    row = service(
        type="LoadBalancer",
        external_local=True,
        load_balancer_ips=("203.0.113.7",),
        external_ips=("198.51.100.7",),
    )
    shop = Shop().add(row, slice_of(HERE, THERE))
    for address, port in (("203.0.113.7", 80), ("198.51.100.7", 80), ("172.18.0.2", 30080)):
        entry = shop.entry(address, port)
        assert texts(entry.internal) == BOTH
        assert texts(entry.external) == BOTH[:1]
        assert entry.keeps_client
    assert Frontend("0.0.0.0", 30080, TCP) not in shop.frontends
    assert not shop.entry("10.96.0.7").keeps_client


def test_internal_local_policy_binds_cluster_ips_only() -> None:
    row = service(type="LoadBalancer", internal_local=True, load_balancer_ips=("203.0.113.7",))
    shop = Shop().add(row, slice_of(HERE, THERE))
    assert texts(shop.entry("10.96.0.7").internal) == BOTH[:1]
    assert texts(shop.entry("203.0.113.7").internal) == BOTH


def test_kinds_of_the_addresses() -> None:
    row = service(type="LoadBalancer", load_balancer_ips=("203.0.113.7",), external_ips=("198.51.100.7",))
    shop = Shop().add(row)
    assert shop.entry("203.0.113.7").kind is FrontendKind.LOAD_BALANCER
    assert shop.entry("198.51.100.7").kind is FrontendKind.EXTERNAL_IP
    assert shop.entry("0.0.0.0", 30080).kind is FrontendKind.NODE_PORT


@pytest.mark.parametrize(
    "fields",
    [
        {"headless": True, "cluster_ips": ()},
        {"type": "ExternalName", "cluster_ips": ()},
        {"labels": {"service.kubernetes.io/headless": ""}},
        {"cluster_ips": (), "external_ips": ("198.51.100.7",)},
        {"labels": {"service.kubernetes.io/service-proxy-name": "other"}},
    ],
)
def test_what_is_not_served(fields: dict[str, Any]) -> None:
    assert Shop().add(service(**fields), slice_of(HERE)).frontends == set()


def test_services_of_another_proxy_name() -> None:
    shop = Shop(ServiceSettings(proxy_name="cilia"))
    shop.add(service(), service("mine", labels={"service.kubernetes.io/service-proxy-name": "cilia"}))
    assert {entry.name for entry in shop.desired.service_entries} == {"mine"}


def test_switched_off() -> None:
    assert Shop(ServiceSettings(enabled=False)).add(service()).frontends == set()


def test_ports_go_by_name_and_protocol() -> None:
    row = service(
        ports=(
            ServicePort("dns", 53, UDP),
            ServicePort("dns-tcp", 53, TCP),
            ServicePort("sigtran", 53, SCTP),
        )
    )
    offered = (SlicePort("dns", 5353, UDP), SlicePort("dns-tcp", 5354, TCP), SlicePort("sigtran", 1, SCTP))
    shop = Shop().add(row, slice_of(HERE, ports=offered))
    assert [shop.entry("10.96.0.7", 53, protocol).internal[0].port for protocol in (UDP, TCP, SCTP)] == [
        5353,
        5354,
        1,
    ]


def test_one_name_may_be_another_number_in_another_slice() -> None:
    shop = Shop().add(
        service(), slice_of(HERE), slice_of(THERE, name="web-2", ports=(SlicePort("http", 9090, TCP),))
    )
    assert texts(shop.entry("10.96.0.7").internal) == ["10.0.1.5:8080", "10.0.2.5:9090"]


def test_a_port_that_no_slice_has_is_told() -> None:
    shop = Shop().add(service(), slice_of(HERE, ports=(SlicePort("web", 8080, TCP),)))
    assert shop.entry("10.96.0.7").internal == ()
    assert shop.problems() == (
        "spec.ports[http]: no EndpointSlice has a port of this name and protocol, only web/TCP; it has no "
        "backends until one does",
    )


def test_no_backends_is_no_problem() -> None:
    shop = Shop().add(service(), slice_of())
    assert shop.entry("10.96.0.7").internal == ()
    assert shop.problems() == ()


# endpoints


def test_terminating_endpoints_serve_when_nobody_is_ready() -> None:
    leaving = endpoint("10.0.1.6", ready=False, terminating=True)
    gone = endpoint("10.0.1.7", ready=False, serving=False, terminating=True)
    shop = Shop().add(service(), slice_of(THERE, leaving, gone))
    entry = shop.entry("10.96.0.7")
    assert texts(entry.internal) == ["10.0.2.5:8080"]
    assert texts(entry.draining) == ["10.0.1.6:8080", "10.0.1.7:8080"]
    entry = shop.add(slice_of(leaving, gone)).entry("10.96.0.7")
    assert texts(entry.internal) == ["10.0.1.6:8080"]
    assert texts(entry.draining) == ["10.0.1.7:8080"]


def test_local_and_cluster_fall_back_on_their_own() -> None:
    leaving = endpoint("10.0.1.6", ready=False, terminating=True)
    row = service(type="LoadBalancer", external_local=True, load_balancer_ips=("203.0.113.7",))
    entry = Shop().add(row, slice_of(THERE, leaving)).entry("203.0.113.7")
    assert texts(entry.internal) == ["10.0.2.5:8080"]
    assert texts(entry.external) == ["10.0.1.6:8080"]
    assert entry.draining == ()


def test_an_endpoint_that_is_not_ready_keeps_its_flows() -> None:
    entry = Shop().add(service(), slice_of(HERE, endpoint("10.0.1.6", ready=False))).entry("10.96.0.7")
    assert texts(entry.internal) == ["10.0.1.5:8080"]
    assert texts(entry.draining) == ["10.0.1.6:8080"]


def test_under_a_local_policy_nobody_drains_elsewhere() -> None:
    entry = Shop().add(service(internal_local=True), slice_of(HERE, THERE)).entry("10.96.0.7")
    assert entry.draining == ()


def test_elsewhere_all_drain_though_the_cluster_ip_is_local() -> None:
    leaving = endpoint("10.0.2.6", "there", ready=False, serving=False, terminating=True)
    row = service(type="NodePort", internal_local=True)
    shop = Shop().add(row, slice_of(leaving))
    assert shop.entry("10.96.0.7").draining == ()
    assert texts(shop.entry("0.0.0.0", 30080).draining) == ["10.0.2.6:8080"]


def test_a_service_of_many_slices_reads_what_changed() -> None:
    slices = [slice_of(endpoint(f"10.0.2.{n}", "there"), name=f"web-{n}") for n in range(6)]
    shop = Shop().add(service(), *slices)
    kept = shop.entry("10.96.0.7").internal
    assert [backend.address for backend in kept] == [f"10.0.2.{n}" for n in range(6)]
    shop.add(slice_of(endpoint("10.0.2.3", "there", ready=False), name="web-3"))
    now = shop.entry("10.96.0.7")
    assert [backend.address for backend in now.draining] == ["10.0.2.3"]
    assert now.internal[0] is kept[0]
    shop.add(slice_of(name="web-0", **note("weight", "50")))
    assert {backend.weight for backend in shop.entry("10.96.0.7").internal} == {2}


def test_beyond_the_bound_this_nodes_endpoints_still_count() -> None:
    shop = Shop(ServiceSettings(max_backends=3))
    slices = [
        slice_of(*(endpoint(f"10.0.{s}.{n}", "there") for n in range(2)), name=f"web-{s}") for s in range(5)
    ]
    row = service(type="LoadBalancer", external_local=True, load_balancer_ips=("203.0.113.7",))
    entry = shop.add(row, *slices, slice_of(HERE, name="web-9")).entry("203.0.113.7")
    assert texts(entry.external) == BOTH[:1]
    assert len(entry.internal) == 3
    assert "11 endpoints are more than the 3" in shop.problems()[0]


def test_of_two_slices_the_one_that_says_ready_is_believed() -> None:
    shop = Shop().add(service(), slice_of(endpoint("10.0.1.5", ready=False)), slice_of(HERE, name="web-2"))
    assert texts(shop.entry("10.96.0.7").internal) == ["10.0.1.5:8080"]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.96.0.7", "an address of the Service itself"),
        ("fd00::5", "not of the slice's family"),
        ("127.0.0.1", "not an address that other nodes can reach"),
        ("::1", "not of the slice's family"),
        ("169.254.1.1", "not an address that other nodes can reach"),
    ],
)
def test_addresses_that_can_be_no_backends(address: str, why: str) -> None:
    shop = Shop().add(service(), slice_of(HERE, endpoint(address)))
    assert texts(shop.entry("10.96.0.7").internal) == BOTH[:1]
    (problem,) = shop.problems()
    assert problem.startswith(f"EndpointSlice web-1: endpoints: {address} is")
    assert why in problem


def test_a_given_address_is_a_backend_only_where_it_is_a_nodes() -> None:
    row = service(external_ips=("172.18.0.2", "203.0.113.7"))
    shop = Shop().add(row, slice_of(endpoint("172.18.0.2"), endpoint("203.0.113.7", "")))
    assert texts(shop.entry("10.96.0.7").internal) == ["172.18.0.2:8080"]
    assert "203.0.113.7 is an address of the Service itself" in shop.problems()[0]


def test_a_thousand_bad_addresses_are_told_briefly() -> None:
    bad = [endpoint(f"127.0.{n >> 8}.{n & 255}") for n in range(1000)]
    problems = Shop().add(service(), slice_of(*bad)).problems()
    assert len(problems) == 21
    assert problems[-1] == "and 980 more"


def test_too_many_backends_leave_others_theirs() -> None:
    shop = Shop(ServiceSettings(max_backends=2))
    many = [endpoint(f"10.0.2.{n}", "there") for n in range(4)]
    entry = shop.add(service(), slice_of(*many, endpoint("10.0.9.9", ready=False), HERE)).entry("10.96.0.7")
    assert texts(entry.internal) == ["10.0.1.5:8080", "10.0.2.0:8080"]
    assert "6 endpoints are more than the 2" in shop.problems()[0]


def test_backends_know_their_node_and_zone() -> None:
    entry = Shop().add(service(), slice_of(endpoint("10.0.2.5", "there", zone="b"))).entry("10.96.0.7")
    assert (entry.internal[0].node, entry.internal[0].zone) == ("there", "b")


# nearness


def zoned(address: str, node: str, zone: str, **fields: Any) -> SliceEndpoint:
    return endpoint(address, node, zone=zone, **fields)


def nearest(*endpoints: SliceEndpoint, own: Node = OWN, **fields: Any) -> list[str]:
    entry = Shop(own=own).add(service(**fields), slice_of(*endpoints)).entry("10.96.0.7")
    return [backend.address[-3:] for backend in entry.internal]


ONE = zoned("10.0.0.1", "x", "a", hint_zones=("a",))
TWO = zoned("10.0.0.2", "y", "b", hint_zones=("b",))


def test_hints_for_this_zone_are_followed() -> None:
    assert nearest(ONE, TWO) == ["0.1"]


def test_hints_are_ignored_when_one_lacks_them_or_none_is_for_here() -> None:
    assert nearest(ONE, TWO, zoned("10.0.0.3", "z", "c")) == ["0.1", "0.2", "0.3"]
    assert nearest(TWO, zoned("10.0.0.3", "z", "c", hint_zones=("c",))) == ["0.2", "0.3"]
    assert nearest(ONE, TWO, own=Node(name="here", addresses=OWN.addresses)) == ["0.1", "0.2"]


def test_hints_of_those_that_are_not_ready_do_not_count() -> None:
    assert nearest(ONE, TWO, zoned("10.0.0.3", "z", "c", ready=False)) == ["0.1"]


def test_hints_for_this_node_come_first() -> None:
    near = zoned("10.0.0.4", "here", "a", hint_zones=("a",), hint_nodes=("here",))
    also = zoned("10.0.0.5", "x", "a", hint_zones=("a",), hint_nodes=("x",))
    assert nearest(near, also) == ["0.4"]
    assert nearest(also, TWO) == ["0.5"]


@pytest.mark.parametrize(
    ("distribution", "found"),
    [
        ("", ["0.6", "0.7", "0.8"]),
        ("PreferClose", ["0.6", "0.7"]),
        ("PreferSameZone", ["0.6", "0.7"]),
        ("PreferSameNode", ["0.6"]),
    ],
)
def test_slices_without_hints_go_by_what_the_service_asks(distribution: str, found: list[str]) -> None:
    slices = (zoned("10.0.0.6", "here", "a"), zoned("10.0.0.7", "x", "a"), zoned("10.0.0.8", "y", "b"))
    assert nearest(*slices, traffic_distribution=distribution) == found


def test_far_backends_drain_and_local_policies_know_no_nearness() -> None:
    shop = Shop().add(service(), slice_of(ONE, TWO))
    assert texts(shop.entry("10.96.0.7").draining) == ["10.0.0.2:8080"]
    here = zoned("10.0.0.2", "here", "a", hint_zones=("b",))
    assert nearest(ONE, here, internal_local=True) == ["0.2"]


def test_nearness_may_be_switched_off() -> None:
    shop = Shop(ServiceSettings(topology=False)).add(service(), slice_of(ONE, TWO))
    assert len(shop.entry("10.96.0.7").internal) == 2


def test_this_node_moves_to_another_zone() -> None:
    shop = Shop(own=Node(name="here"))
    shop.inputs.nodes.put(Node(name="here", labels={ZONE: "a"}))
    shop.add(service(), slice_of(ONE, TWO))
    assert texts(shop.entry("10.96.0.7").internal) == ["10.0.0.1:8080"]
    shop.inputs.nodes.put(Node(name="here", labels={ZONE: "b"}))
    shop.node.step()
    assert texts(shop.entry("10.96.0.7").internal) == ["10.0.0.2:8080"]


# annotations and settings


def note(name: str, value: str) -> dict[str, Any]:
    return {"annotations": {f"service.cilium.io/{name}": value}}


def test_weights_of_slices() -> None:
    light = slice_of(THERE, name="web-2", **note("weight", "50"))
    shut = slice_of(endpoint("10.0.3.5"), name="web-3", **note("weight", "0"))
    entry = Shop().add(service(), slice_of(HERE), light, shut).entry("10.96.0.7")
    assert [(b.address, b.weight) for b in entry.internal] == [("10.0.1.5", 2), ("10.0.2.5", 1)]
    assert texts(entry.draining) == ["10.0.3.5:8080"]


def test_a_weight_that_is_none() -> None:
    shop = Shop().add(service(), slice_of(HERE, **note("weight", "-1")))
    assert shop.entry("10.96.0.7").internal[0].weight == 1
    assert shop.problems()[0].startswith(
        "EndpointSlice web-1: metadata.annotations[service.cilium.io/weight]: '-1' is no number"
    )


def test_algorithm_and_mode() -> None:
    settings = ServiceSettings(algorithm=Algorithm.MAGLEV, mode=Mode.HYBRID)
    ports = (HTTP, ServicePort("quic", 80, UDP))
    shop = Shop(settings).add(service(ports=ports))
    assert shop.entry("10.96.0.7").algorithm is Algorithm.MAGLEV
    assert shop.entry("10.96.0.7").mode is ForwardingMode.DSR
    assert shop.entry("10.96.0.7", protocol=UDP).mode is ForwardingMode.SNAT
    annotations = (
        note("lb-algorithm", "random")["annotations"] | note("forwarding-mode", "dsr")["annotations"]
    )
    shop.add(service(ports=ports, annotations=annotations))
    assert shop.entry("10.96.0.7").algorithm is Algorithm.RANDOM
    assert shop.entry("10.96.0.7", protocol=UDP).mode is ForwardingMode.DSR


@pytest.mark.parametrize("name", ["lb-algorithm", "forwarding-mode", "type"])
def test_annotations_with_unknown_words(name: str) -> None:
    shop = Shop().add(service(**note(name, "best")))
    assert shop.frontends == {Frontend("10.96.0.7", 80, TCP)}
    assert shop.problems()[0].startswith(f"metadata.annotations[service.cilium.io/{name}]: 'best' is no")


@pytest.mark.parametrize(
    ("name", "value", "served"),
    [
        ("node", "edge", False),
        ("node-selector", "pool=edge", True),
        ("node-selector", "pool in (core, edge), !gpu", True),
        ("node-selector", "pool!=edge", False),
        ("node-selector", "pool=", False),
        ("node-selector", "=", False),
    ],
)
def test_exposure_on_some_nodes(name: str, value: str, served: bool) -> None:
    assert bool(Shop().add(service(**note(name, value))).frontends) is served


def test_exposure_on_nodes_with_the_label() -> None:
    own = Node(name="here", labels={"service.cilium.io/node": "edge"})
    assert Shop(own=own).add(service(**note("node", "edge"))).frontends


def test_exposure_follows_the_nodes_labels() -> None:
    shop = Shop(own=Node(name="here"))
    shop.add(service(**note("node-selector", "pool=edge")))
    assert shop.frontends == set()
    for pool, count in (("edge", 1), ("core", 0)):
        shop.inputs.nodes.put(Node(name="here", labels={"pool": pool}))
        shop.node.step()
        assert len(shop.frontends) == count


def test_exposure_of_one_kind() -> None:
    row = service(
        type="LoadBalancer",
        load_balancer_ips=("203.0.113.7",),
        external_ips=("198.51.100.7",),
        **note("type", "LoadBalancer"),
    )
    assert Shop().add(row).frontends == {Frontend("203.0.113.7", 80, TCP)}


def balanced(**fields: Any) -> ServiceRow:
    return service(type="LoadBalancer", load_balancer_ips=("203.0.113.7",), **fields)


def test_source_ranges_are_for_load_balancers() -> None:
    shop = Shop().add(balanced(source_ranges=("10.0.0.0/8",)))
    assert shop.entry("203.0.113.7").source_ranges == ("10.0.0.0/8",)
    assert shop.entry("172.18.0.2", 30080).source_ranges == ()
    shop = Shop(ServiceSettings(source_ranges_everywhere=True)).add(balanced(source_ranges=("10.0.0.0/8",)))
    assert shop.entry("172.18.0.2", 30080).source_ranges == ("10.0.0.0/8",)


def test_source_ranges_may_keep_out() -> None:
    row = balanced(source_ranges=("10.0.0.0/8",), **note("src-ranges-policy", "deny"))
    entry = Shop().add(row).entry("203.0.113.7")
    assert entry.source_ranges == ("10.0.0.0/8",)
    assert entry.sources_denied


def test_source_ranges_that_cannot_be_read_open_nothing() -> None:
    shop = Shop().add(balanced(source_ranges=("10.0.0.0/8", "ten")))
    assert shop.entry("203.0.113.7").source_ranges == ("10.0.0.0/8",)
    assert "'ten' is no prefix" in shop.problems()[0]
    shop.add(balanced(source_ranges=("ten",)))
    assert not shop.entry("203.0.113.7").outside
    assert shop.entry("172.18.0.2", 30080).outside


@pytest.mark.parametrize(
    "text", ["10.0.0.0/255.0.0.0", "fe80::%1/64", "fe80::1%eth0/128", "::ffff:10.0.0.0/104", "10.0.0.1/8"]
)
def test_source_ranges_that_only_look_like_prefixes(text: str) -> None:
    shop = Shop().add(balanced(source_ranges=(text,)))
    assert f"{text!r} is no prefix" in shop.problems()[0]
    assert not shop.entry("203.0.113.7").outside


def test_source_ranges_are_of_the_frontends_family() -> None:
    """::/0 is everybody of IPv6, and nobody of IPv4."""
    both: dict[str, Any] = {
        "type": "LoadBalancer",
        "cluster_ips": ("10.96.0.7", "fd96::7"),
        "load_balancer_ips": ("203.0.113.7", "2001:db8::7"),
    }
    shop = Shop().add(service(**both, source_ranges=("::/0",)))
    assert not shop.entry("203.0.113.7").outside
    assert shop.entry("2001:db8::7").outside and shop.entry("2001:db8::7").source_ranges == ("::/0",)
    assert "none is of 203.0.113.7's family" in shop.problems()[0]
    shop.add(service(**both, source_ranges=("::/0",), **note("src-ranges-policy", "deny")))
    entry = shop.entry("203.0.113.7")
    assert entry.outside and not entry.sources_denied and not entry.source_ranges
    assert shop.entry("2001:db8::7").sources_denied


def test_affinity_and_rejection() -> None:
    entry = Shop(ServiceSettings(reject=False)).add(service(affinity=600)).entry("10.96.0.7")
    assert entry.affinity == 600
    assert not entry.reject


def test_addresses_of_a_family_that_the_service_has_not() -> None:
    shop = Shop().add(service(external_ips=("2001:db8::7", "198.51.100.7")))
    assert {frontend.address for frontend in shop.frontends} == {"10.96.0.7", "198.51.100.7"}
    assert shop.problems() == (
        "spec.externalIPs: 2001:db8::7 has no effect, since the Service has no IPv6 among its ipFamilies",
    )


# health checks


def test_health_checks_count_ready_endpoints_of_this_node() -> None:
    shop = Shop().add(
        balanced(external_local=True, health_check_port=32000),
        slice_of(HERE, THERE, endpoint("10.0.1.6", ready=False, terminating=True)),
    )
    (check,) = shop.desired.health_checks
    assert (check.port, check.name, check.local_endpoints, check.addresses) == (32000, "web", 1, ())
    shop.add(balanced(health_check_port=32000))
    assert list(shop.desired.health_checks) == []


def test_health_checks_at_the_load_balancer() -> None:
    shop = Shop(ServiceSettings(health_checks_at_load_balancer=True))
    shop.add(balanced(external_local=True, health_check_port=32000))
    (check,) = shop.desired.health_checks
    assert (check.local_endpoints, check.addresses) == (0, ("203.0.113.7",))


# who has what several ask for


def aged(name: str, created: str, **fields: Any) -> ServiceRow:
    return service(name, created=created, type="NodePort", **fields)


@pytest.mark.parametrize("turned", [False, True])
def test_the_older_service_has_the_node_port(turned: bool) -> None:
    old = aged("old", "2024-01-01T00:00:00Z", cluster_ips=("10.96.0.1",))
    new = aged("new", "2025-01-01T00:00:00Z", cluster_ips=("10.96.0.2",))
    shop = Shop().add(*([new, old] if turned else [old, new]))
    assert {shop.entry(address, 30080).name for address in ("172.18.0.2", "0.0.0.0")} == {"old"}
    assert shop.entry("10.96.0.2").name == "new"
    assert shop.problems("old") == ()
    assert shop.problems("new") == (
        "spec.ports[].nodePort: 30080/TCP is NodePort of Service shop/old, which comes first; it has no "
        "effect here",
    )
    shop.inputs.services.delete(("shop", "old"))
    shop.node.step()
    assert shop.entry("172.18.0.2", 30080).name == "new"
    assert shop.problems("new") == ()


def test_of_the_same_age_the_name_decides() -> None:
    shop = Shop().add(aged("b", "", cluster_ips=("10.96.0.2",)), aged("a", "", cluster_ips=("10.96.0.1",)))
    assert shop.entry("0.0.0.0", 30080).name == "a"


def test_an_external_ip_takes_no_cluster_ip() -> None:
    thief = service("a", created="2020", cluster_ips=("10.96.0.9",), external_ips=("10.96.0.7",))
    shop = Shop().add(thief, service(created="2025"))
    assert shop.entry("10.96.0.7").name == "web"
    assert "spec.externalIPs: 10.96.0.7:80/TCP is ClusterIP of Service shop/web" in shop.problems("a")[0]


def test_a_port_that_stands_twice_in_a_service() -> None:
    shop = Shop().add(service(ports=(ServicePort("a", 80, TCP), ServicePort("b", 80, TCP))))
    assert shop.entry("10.96.0.7").port_name == "a"
    assert "spec.ports[1]: 10.96.0.7:80/TCP is another port" in shop.problems()[0]


def test_one_health_check_port_for_two() -> None:
    fields: dict[str, Any] = {"external_local": True, "health_check_port": 32000, "type": "LoadBalancer"}
    shop = Shop().add(
        service("a", cluster_ips=("10.96.0.1",), ports=(ServicePort("", 1, TCP),), **fields),
        service("b", cluster_ips=("10.96.0.2",), ports=(ServicePort("", 2, TCP),), **fields),
    )
    assert [check.name for check in shop.desired.health_checks] == ["a"]
    assert "spec.healthCheckNodePort: 32000 is that of Service shop/a" in shop.problems("b")[0]


# slices and Services that come and go


def test_a_slice_without_its_service_is_told_once_all_are_known() -> None:
    shop = Shop()
    shop.inputs.services.synced = False
    shop.add(slice_of(HERE))
    assert list(shop.desired.service_states) == []
    shop.inputs.services.synced = True
    shop.node.step()
    assert shop.problems("web-1", "EndpointSlice") == (
        "metadata.labels[kubernetes.io/service-name]: there is no Service shop/web; create it or delete "
        "the slice",
    )
    shop.add(service())
    assert [state.kind for state in shop.desired.service_states] == ["Service"]
    shop.inputs.services.delete(("shop", "web"))
    shop.node.step()
    assert [state.kind for state in shop.desired.service_states] == ["EndpointSlice"]
    shop.inputs.endpoint_slices.delete(("shop", "web-1"))
    shop.node.step()
    assert list(shop.desired.service_states) == []


def test_a_slice_changes_its_service() -> None:
    shop = Shop().add(service(), service("db", cluster_ips=("10.96.0.8",)), slice_of(HERE))
    shop.add(slice_of(HERE, service="db"))
    assert shop.entry("10.96.0.7").internal == ()
    assert texts(shop.entry("10.96.0.8").internal) == BOTH[:1]


def test_a_service_goes_with_all_it_had() -> None:
    shop = Shop().add(balanced(external_local=True, health_check_port=32000), slice_of(HERE))
    shop.inputs.services.delete(("shop", "web"))
    shop.inputs.endpoint_slices.delete(("shop", "web-1"))
    shop.node.step()
    desired = shop.desired
    assert not list(desired.service_entries)
    assert not list(desired.service_states)
    assert not list(desired.health_checks)


def test_what_a_row_says_of_itself_is_told() -> None:
    shop = Shop().add(service(problems=("spec.x: bad",)), slice_of(HERE, problems=("endpoints[3]: bad",)))
    assert shop.problems() == ("spec.x: bad", "EndpointSlice web-1: endpoints[3]: bad")


def test_node_ports_beyond_the_range_of_this_node_are_refused() -> None:
    """They are neither kept from sockets of the node nor looked up at other nodes' addresses."""
    ports = (HTTP, ServicePort("ssh", 22, TCP, 22), ServicePort("dns", 53, UDP, 32768))
    shop = Shop().add(service(type="NodePort", ports=ports), slice_of(HERE))
    assert {found.port for found in shop.frontends} == {80, 30080, 22, 53}
    assert {found.address for found in shop.frontends if found.port in (22, 53)} == {"10.96.0.7"}
    words = "is none of this node's node ports (30000 to 32767, --node-port-range); it has no effect here"
    assert {
        f"spec.ports[1].nodePort: 22 {words}",
        f"spec.ports[2].nodePort: 32768 {words}",
    } < set(shop.problems())
    wide = Shop(ServiceSettings(node_ports=(20, 40000))).add(service(type="NodePort", ports=ports))
    assert wide.entry("172.18.0.2", 22).outside and wide.entry("0.0.0.0", 32768, UDP)
    silent = Shop().add(service(ports=(ServicePort("ssh", 22, TCP, 22),)))
    assert silent.problems() == (), "a ClusterIP Service has no node ports"


def test_an_object_over_which_we_fail_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop().add(service("bad", cluster_ips=("10.96.0.8",)), slice_of(HERE))
    drafted = frontends.draft

    def fail(row: ServiceRow, *rest: Any) -> Draft:
        if row.name == "bad":
            raise KeyError("depth")
        return drafted(row, *rest)

    monkeypatch.setattr(frontends, "draft", fail)
    shop.add(service("bad", cluster_ips=("10.96.0.9",)), service())
    assert shop.frontends == {Frontend("10.96.0.7", 80, TCP)}
    (told,) = shop.problems("bad")
    assert told.startswith("it can't be served (KeyError: 'depth')")
    monkeypatch.undo()
    shop.add(service("bad", cluster_ips=("10.96.0.10",)))
    assert shop.entry("10.96.0.10") and shop.problems("bad") == ()


def test_a_target_port_that_no_pod_has_is_told() -> None:
    """The controller of slices then writes the endpoints without any port."""
    shop = Shop().add(service(), slice_of(HERE, THERE, ports=()))
    assert shop.entry("10.96.0.7").internal == ()
    (told,) = shop.problems()
    assert told.startswith("spec.ports[http]: 2 endpoints are ready, but their EndpointSlices give no port")
    unready = Shop().add(service(), slice_of(endpoint("10.0.1.5", ready=False), ports=()))
    assert unready.problems() == ()


def test_many_services_can_be_looked_at_in_parts() -> None:
    """What is prepared so, whatever changes meanwhile, is what one step makes of it."""
    whole, parts = Shop(), Shop()
    rows = [service(f"web-{at}", cluster_ips=(f"10.96.1.{at}",)) for at in range(20)]
    slices = [slice_of(HERE, name=f"s-{at}", service=f"web-{at}") for at in range(40)]
    for shop in (whole, parts):
        for row in rows:
            shop.inputs.services.put(row)
        for each in slices:
            shop.inputs.endpoint_slices.put(each)
    turns = 0
    while parts.node.advance(3):
        turns += 1
        assert turns < 100, "slices without a Service are looked at for ever"
    late = service("web-3", cluster_ips=("10.96.1.4",))
    for shop in (whole, parts):
        shop.add(late)
    assert turns > 5
    assert len(parts.frontends) == 19
    for mine, theirs in zip(parts.desired.tables(), whole.desired.tables(), strict=True):
        assert sorted(mine, key=str) == sorted(theirs, key=str)
