"""What a Service may say about who is served by whom, and what policies say about it, on a lab of two nodes.

node-1: near, other, client, raw, stranger      node-2: far      outside: 203.0.113.2
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from cilia.hubble.client import Client as Hubble
from cilia.lab.plan import OUTSIDE_HOST
from cilia.proto.observer.observer_pb2 import GetFlowsRequest
from tests.support.services_lab import (
    END,
    PORTS,
    Document,
    ServicesLab,
    client,
    ip,
    manifest,
    question,
    server,
    service,
    services_lab,
)
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

BALANCED = ("198.51.100.40", "2001:db8:198::40")
SHARED = "198.51.100.41"
MANY = 24
"""Questions after which both of two backends have answered but once in some eight million times."""
LOOPBACK = {
    "ipv4-service-loopback-address": "169.254.99.1",
    "ipv6-service-loopback-address": "100::99:1",
}
"""Whom a pod sees that reaches itself; not the defaults, so that the flags are tried as well."""
HOST_PORT = 9100
OTHER_PORTS = {"tcp": 9090, "udp": 9090}


@pytest.fixture(scope="module")
def lab() -> Iterator[ServicesLab]:
    with services_lab("tsr", 2, [f"{flag}={address}" for flag, address in LOOPBACK.items()]) as made:
        made.start_pods(
            server("near", 1, "node-1"),
            server("far", 2, "node-2"),
            server("other", 3, "node-1", labels={"app": "other"}, ports=OTHER_PORTS),
            client("client", "node-1"),
            client("raw", "node-1"),
            client("stranger", "node-1"),
        )
        node = made.plan.nodes[0]
        routes = (
            (SHARED, node.ipv4),
            (BALANCED[0], node.ipv4),
            (BALANCED[1], node.ipv6),
        )
        ip(made.plan.fabric, *(f"route add {address} via {next_hop}" for address, next_hop in routes))
        yield made


@pytest.fixture
def offered(lab: ServicesLab) -> Iterator[Callable[..., tuple[str, str]]]:
    """Makes a Service and waits until every node serves it; what was made goes with the test."""
    names = []

    def offer(name: str, selector: Document | None, **spec: Any) -> tuple[str, str]:
        names.append(name)
        annotations = spec.pop("annotations", None)
        made = service(name, selector, **spec)
        if annotations:
            made["metadata"]["annotations"] = annotations
        lab.apply(made)
        until(lambda: served(lab, name), f"every node to serve {name}")
        return lab.cluster_ips(name)

    yield offer
    lab.delete("Service", *names)


def served(lab: ServicesLab, name: str) -> bool:
    """Whether the nodes' kernels have the Service with all the backends its slices list."""
    wanted = lab.endpoints(name)
    if not wanted and lab.get("Service", name)["spec"].get("selector"):
        return False
    found = []
    for agent in lab.agents.values():
        views = [view for view in agent.services().services if view.spec.flags.name == name]
        if not views or any(view.status.state != "realized" for view in views):
            return False
        found.append({backend.ip for view in views for backend in view.spec.backend_addresses})
    spec = lab.get("Service", name)["spec"]
    everywhere = "Local" not in (spec.get("externalTrafficPolicy"), spec.get("internalTrafficPolicy"))
    close = spec.get("trafficDistribution")
    return (
        all(some == wanted for some in found) if everywhere and not close else set().union(*found) == wanted
    )


def is_serving(lab: ServicesLab, address: str) -> bool:
    """Whether a host answers by itself."""
    return "who" in lab.at("node-1").ask("tcp", address, HOST_PORT)


def who(lab: ServicesLab, where: str, address: str, port: int, protocol: str = "tcp") -> Counter[str]:
    """Who answers many questions from one place."""
    asked = [question(protocol, address, port) for _ in range(MANY)]
    return Counter(str(found.get("who", found.get("error"))) for found in lab.at(where).ask_all(asked))


# -- traffic policies, topology and affinity -----------------------------------------------------------------


def test_both_backends_share_the_work(lab: ServicesLab, offered: Callable[..., tuple[str, str]]) -> None:
    for address in offered("both", {"app": "web"}):
        for where in ("client", "packets:raw", "node-1"):
            assert set(who(lab, where, address, 80)) == {"near", "far"}, where


def test_clients_of_a_local_service_outside_keep_their_address(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]]
) -> None:
    offered("local", {"app": "web"}, type="NodePort", externalTrafficPolicy="Local")
    port = lab.node_ports("local")["tcp"]
    for node, name in zip(lab.plan.nodes, ("near", "far"), strict=True):
        for address, seen in zip((node.ipv4, node.ipv6), OUTSIDE_HOST, strict=True):
            assert set(who(lab, "outside", address, port)) == {name}
            assert lab.at("outside").ask("tcp", address, port)["client"] == seen
            assert lab.at("outside").ask("udp", address, lab.node_ports("local")["udp"])["client"] == seen


def test_a_node_without_backends_of_a_local_service_serves_nobody_outside(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]]
) -> None:
    offered("elsewhere", {"pod": "far"}, type="NodePort", externalTrafficPolicy="Local")
    port, node = lab.node_ports("elsewhere")["tcp"], lab.plan.nodes[0]
    assert "error" in lab.at("outside").ask("tcp", node.ipv4, port, timeout=0.5)
    assert lab.at("outside").ask("tcp", lab.plan.nodes[1].ipv4, port)["who"] == "far"
    for address in offered("inner", {"pod": "far"}, internalTrafficPolicy="Local"):
        for where in ("client", "packets:raw", "node-1"):
            assert "error" in lab.at(where).ask("tcp", address, 80, timeout=0.5)
        assert lab.at("node-2").ask("tcp", address, 80)["who"] == "far"


def test_internal_clients_of_a_local_service_get_this_nodes_backends(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]]
) -> None:
    for address in offered("here", {"app": "web"}, internalTrafficPolicy="Local"):
        for where, name in (("client", "near"), ("packets:raw", "near"), ("node-2", "far")):
            assert set(who(lab, where, address, 80)) == {name}


def test_close_backends_are_preferred_when_asked_for(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]]
) -> None:
    for address in offered("close", {"app": "web"}, trafficDistribution="PreferClose"):
        for where, name in (("client", "near"), ("packets:raw", "near"), ("node-2", "far")):
            assert set(who(lab, where, address, 80)) == {name}


def test_a_client_stays_with_its_backend_when_asked_for(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]]
) -> None:
    addresses = offered("sticky", {"app": "web"}, type="NodePort", sessionAffinity="ClientIP")
    ports = lab.node_ports("sticky")
    for number, address in enumerate(addresses):
        for where in ("client", "packets:raw", "node-1"):
            assert len(after_the_first(lab, where, address, 80)) == 1
            assert len(after_the_first(lab, where, address, 80, "udp-each")) == 1
        node = lab.plan.nodes[0]
        assert len(after_the_first(lab, "outside", (node.ipv4, node.ipv6)[number], ports["tcp"])) == 1


def after_the_first(lab: ServicesLab, where: str, address: str, port: int, protocol: str = "tcp") -> set[str]:
    """Who answers one question, and then many: of some that begin in one moment each would be the first."""
    first = lab.at(where).ask(protocol, address, port)["who"]
    return {first, *who(lab, where, address, port, protocol)}


# -- who may ask ---------------------------------------------------------------------------------------------


def test_only_the_source_ranges_may_ask(lab: ServicesLab, offered: Callable[..., tuple[str, str]]) -> None:
    ranges = ["203.0.113.0/24", "2001:db8:203::/64"]
    for pod in ("near", "far"):
        offered("ranges", {"pod": pod}, type="LoadBalancer", loadBalancerSourceRanges=ranges)
        lab.give_addresses("ranges", *BALANCED)
        for address in BALANCED:
            until(partial(is_answered, lab, address, pod), f"{pod} at {address}")
        lab.apply(
            service("ranges", {"pod": pod}, type="LoadBalancer", loadBalancerSourceRanges=["192.0.2.0/24"])
        )
        for address in BALANCED:
            until(partial(is_answered, lab, address, *REFUSALS), f"nobody at {address}")
        lab.delete("Service", "ranges")


REFUSALS = ("timeout", "refused", "unreachable")


def is_answered(lab: ServicesLab, address: str, *wanted: str, port: int = 80, protocol: str = "tcp") -> bool:
    """Whether one of these answers a client outside, or one of these things goes wrong."""
    found = lab.at("outside").ask(protocol, address, port, timeout=0.4)
    return str(found.get("who", found.get("error"))) in wanted


def is_refused(lab: ServicesLab, where: str, protocol: str, address: str) -> bool:
    """Whether a client is told that nobody serves."""
    return bool(lab.at(where).ask(protocol, address, 80).get("error") == "refused")


def is_kept_out(lab: ServicesLab, where: str, address: str) -> bool:
    """Whether a client has no answer."""
    return "error" in lab.at(where).ask("tcp", address, 80, timeout=0.4)


def test_policies_judge_the_backend_and_name_their_rule(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]]
) -> None:
    addresses = offered("guarded", {"pod": "near"}, type="NodePort")
    port, node = lab.node_ports("guarded")["tcp"], lab.plan.nodes[0]
    ports = [{"ports": [{"port": str(PORTS["tcp"]), "protocol": "TCP"}]}]
    rule = {"fromEndpoints": [{"matchLabels": {"app": "client"}}], "toPorts": ports}
    spec = {"endpointSelector": {"matchLabels": {"pod": "near"}}, "ingress": [rule]}
    lab.apply(manifest("CiliumNetworkPolicy", "only-clients", spec))
    lab.api.merge("/api/v1/namespaces/default/pods/stranger", {"metadata": {"labels": {"app": "stranger"}}})
    try:
        until(partial(is_kept_out, lab, "stranger", addresses[0]), "the stranger to be kept out")
        allowed = [question("tcp", address, 80) for address in addresses]
        denied = [one | {"timeout": 0.4} for one in allowed]
        answers = lab.ask_everywhere(
            {
                "client": [*allowed, *(one | {"protocol": "udp"} for one in denied)],
                "packets:raw": allowed,
                "stranger": denied,
                "packets:stranger": denied,
                "outside": [question("tcp", node.ipv4, port, timeout=0.4)],
            }
        )
        told = {where: [found.get("who") for found in some] for where, some in answers.items()}
        assert told.pop("client") == ["near", "near", None, None]
        assert told.pop("packets:raw") == ["near", "near"]
        assert all(who is None for some in told.values() for who in some), told
        wanted = {"stranger", "client", OUTSIDE_HOST[0]}
        until(lambda: wanted <= denied_by(lab, "node-1", "only-clients"), "flows that name the policy")
    finally:
        lab.delete("CiliumNetworkPolicy", "only-clients")
    until(lambda: not is_kept_out(lab, "stranger", addresses[0]), "the policy's end")


def denied_by(lab: ServicesLab, node: str, policy: str) -> set[str]:
    """Who was denied by a policy, by Hubble: pods by name, others by address."""
    with Hubble(f"unix://{lab.plan.node(node).hubble_socket}") as hubble:
        answers = hubble.get_flows(GetFlowsRequest(number=1000))
        flows = [answer.flow for answer in answers if answer.HasField("flow")]
    return {
        flow.source.pod_name or flow.IP.source
        for flow in flows
        if flow.destination.pod_name == "near" and any(r.name == policy for r in flow.ingress_denied_by)
    }


# -- nobody, oneself, by name, kept apart --------------------------------------------------------------------


def test_without_backends_clients_are_refused_at_once(lab: ServicesLab) -> None:
    lab.apply(service("nobody", {"app": "nobody"}, type="NodePort"))
    try:
        ports = lab.node_ports("nobody")
        for number, address in enumerate(lab.cluster_ips("nobody")):
            for where in ("client", "packets:raw", "node-1"):
                for protocol in ("tcp", "udp"):
                    what = f"{where} to be refused by {protocol} at {address}"
                    until(partial(is_refused, lab, where, protocol, address), what)
            node = lab.plan.nodes[0]
            at_node = (node.ipv4, node.ipv6)[number]
            for protocol in ("tcp", "udp"):
                found = lab.at("outside").ask(protocol, at_node, ports[protocol])
                # Where a wire takes no time, the kernel may get the ICMP error to a SYN while it still holds
                # the socket, and heeds a later one only: those to the SYNs sent again after seconds.
                assert found["error"] == "refused", found
    finally:
        lab.delete("Service", "nobody")


def test_a_pod_reaches_itself(lab: ServicesLab, offered: Callable[..., tuple[str, str]]) -> None:
    for number, address in enumerate(offered("self", {"pod": "near"})):
        own, loop = lab.addresses("near")[number], [*LOOPBACK.values()][number]
        for where, seen in (("near", own), ("packets:near", loop)):
            for protocol in ("tcp", "udp", "udp-each"):
                found = lab.at(where).ask(protocol, address, 80)
                assert (found.get("who"), found.get("client"), found.get("peer")) == (
                    "near",
                    seen,
                    address,
                ), found


def test_a_headless_service_is_left_alone(lab: ServicesLab) -> None:
    made = service("headless", {"app": "web"})
    made["spec"]["clusterIP"] = "None"
    lab.apply(made)
    try:
        until(lambda: len(lab.endpoints("headless")) == 4, "its slices")
        for agent in lab.agents.values():
            assert not [view for view in agent.services().services if view.spec.flags.name == "headless"]
            assert not [one for one in agent.services().problems if one.name == "headless"]
        for address in lab.endpoints("headless"):
            assert "who" in lab.at("client").ask("tcp", address, PORTS["tcp"])
    finally:
        lab.delete("Service", "headless")


def test_a_named_port_is_each_pods_own(lab: ServicesLab, offered: Callable[..., tuple[str, str]]) -> None:
    lab.api.merge("/api/v1/namespaces/default/pods/other", {"metadata": {"labels": {"set": "named"}}})
    lab.api.merge("/api/v1/namespaces/default/pods/far", {"metadata": {"labels": {"set": "named"}}})
    ports = [{"name": "web", "port": 80, "targetPort": "on-tcp"}]
    for address in offered("named", {"set": "named"}, ports=ports):
        for where in ("client", "packets:raw", "node-1"):
            assert set(who(lab, where, address, 80)) == {"other", "far"}


def test_datagrams_leave_a_pod_that_only_other_services_have(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]]
) -> None:
    """Blue and green: a connection stays where it is until it ends, a client of datagrams has no such end."""
    selectors = ({"pod": "near"}, {"pod": "far"})
    for name, selector in zip(("blue", "green"), selectors, strict=True):
        offered(name, selector)
    offered("active", selectors[0], type="NodePort")
    ports = lab.node_ports("active")
    node = lab.plan.nodes[0]
    asked = [
        (where, address, {"tcp": 80, "udp": 80})
        for where in ("client", "packets:raw")
        for address in lab.cluster_ips("active")
    ]
    asked += [("outside", address, ports) for address in (node.ipv4, node.ipv6)]
    names = [
        (where, f"{where} {protocol} {address}", question(protocol, address, of[protocol]))
        for where, address, of in asked
        for protocol in ("tcp", "udp")
    ]
    for where, name, first in names:
        assert lab.at(where).request({"open": name, **first})["who"] == "near", name
    spec = lab.get("Service", "active")["spec"]
    lab.apply(service("active", selectors[1], type="NodePort", ports=spec["ports"]))

    def told(where: str, name: str) -> str:
        found = lab.at(where).request({"say": name})
        return str(found.get("who") or found["error"])

    def is_ended(where: str, name: str) -> bool:
        return told(where, name) not in ("near", "far")

    def is_green(where: str, name: str) -> bool:
        return told(where, name) == "far"

    for where, name, first in names:
        if first["protocol"] == "tcp":
            continue
        if where == "client":
            until(partial(is_ended, where, name), f"the socket to be ended: {name}")
        else:
            until(partial(is_green, where, name), f"another backend: {name}")
    for where, name, first in names:
        assert first["protocol"] == "udp" or told(where, name) == "near", name
        lab.at(where).request({"close": name})


def test_tcp_and_udp_on_one_port_are_two_services(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]]
) -> None:
    for protocol, pod in (("tcp", "near"), ("udp", "far")):
        port = {
            "name": protocol,
            "protocol": protocol.upper(),
            "port": 53,
            "targetPort": 8080,
        }
        offered(f"dns-{protocol}", {"pod": pod}, type="LoadBalancer", ports=[port])
        lab.give_addresses(f"dns-{protocol}", SHARED)
    for protocol, pod in (("tcp", "near"), ("udp", "far")):
        until(partial(is_answered, lab, SHARED, pod, port=53, protocol=protocol), f"{pod} by {protocol}")
        for where in ("client", "packets:raw", "node-1"):
            assert lab.at(where).ask(protocol, SHARED, 53)["who"] == pod


# -- how packets get there -----------------------------------------------------------------------------------


def test_backends_that_answer_directly_see_the_client(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]]
) -> None:
    offered("snat", {"pod": "far"}, type="NodePort")
    annotations = {"service.cilium.io/forwarding-mode": "dsr"}
    offered("direct", {"pod": "far"}, type="NodePort", annotations=annotations)
    node = lab.plan.nodes[0]
    routers = {view.name: view.router_addresses for view in lab.agents["node-1"].nodes()}["node-1"]
    for name, clients in (("snat", routers), ("direct", OUTSIDE_HOST)):
        ports = lab.node_ports(name)
        for address, seen in zip((node.ipv4, node.ipv6), clients, strict=True):
            for protocol in ("tcp", "udp", "udp-each"):
                port = ports[protocol.partition("-")[0]]
                found = lab.at("outside").ask(protocol, address, port)
                told = (found.get("who"), found.get("client"), found.get("peer"))
                assert told == ("far", seen, address), (name, protocol, found)


@pytest.fixture
def hosts(lab: ServicesLab) -> Iterator[None]:
    """Servers at the nodes' own addresses, port 9100, that say which node they are."""
    served = [f"{protocol}:{HOST_PORT}" for protocol in ("tcp", "udp")]
    running = []
    try:
        for node in lab.plan.nodes:
            command = ["timeout", "120", sys.executable, "-IS", str(END), "serve", node.name, "1", *served]
            command = ["nsenter", f"--net={node.netns}", "--", *command]
            running.append(subprocess.Popen(command))
        yield
    finally:
        for process in running:
            process.terminate()
            process.wait()


@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize("mode", ["snat", "dsr"])
def test_nodes_serve_as_backends(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]], mode: str
) -> None:
    """As pods of the host's network do."""
    asked = lab.plan.nodes[0]
    for node in lab.plan.nodes:
        name = f"host-{node.name}"
        ports = [{"name": each, "protocol": each.upper(), "port": 80} for each in ("tcp", "udp")]
        for family, address in (("IPv4", node.ipv4), ("IPv6", node.ipv6)):
            lab.apply(
                manifest(
                    "EndpointSlice",
                    f"{name}-{family.lower()}",
                    labels={"kubernetes.io/service-name": name},
                    addressType=family,
                    ports=[{**port, "port": HOST_PORT} for port in ports],
                    endpoints=[{"addresses": [address], "conditions": {"ready": True}}],
                )
            )
        until(partial(is_serving, lab, node.ipv4), f"the server of {node.name}")
        annotations = {"service.cilium.io/forwarding-mode": mode}
        addresses = offered(name, None, type="NodePort", ports=ports, annotations=annotations)
        numbers = lab.node_ports(name)
        for where in ("client", "packets:raw", "node-1", "outside"):
            for protocol in ("tcp", "udp", "udp-each"):
                number = numbers[protocol.partition("-")[0]]
                targets = [(asked.ipv4, number), (asked.ipv6, number)]
                if where != "outside":
                    targets += [(address, 80) for address in addresses]
                for target in targets:
                    found = lab.at(where).ask(protocol, *target)
                    told = (found.get("who"), found.get("peer"))
                    assert told == (node.name, target[0]), (where, protocol, found)
        lab.delete("EndpointSlice", f"{name}-ipv4", f"{name}-ipv6")


@pytest.mark.parametrize("where", ["client", "packets:raw", "outside"])
def test_large_messages_pass_both_ways(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]], where: str
) -> None:
    """Larger than the tunnel takes: senders are told, datagrams come in pieces."""
    addresses = offered("large", {"pod": "far"}, type="NodePort")
    ports: dict[str, int] = {"tcp": 80, "udp": 80}
    if where == "outside":
        node = lab.plan.nodes[0]
        addresses, ports = (node.ipv4, node.ipv6), lab.node_ports("large")
    for address in addresses:
        for protocol, size in (("tcp", 200_000), ("udp", 1_000), ("udp", 1_440), ("udp", 4_000)):
            found = lab.at(where).ask(protocol, address, ports[protocol], size=size, want=size)
            assert (found.get("got"), found.get("more")) == (size, size), (address, protocol, size, found)


def test_nobody_takes_a_node_port_from_its_service(
    lab: ServicesLab, offered: Callable[..., tuple[str, str]]
) -> None:
    addresses = offered("taken", {"pod": "near"}, type="NodePort")
    port = lab.node_ports("taken")["tcp"]
    for address in addresses:
        assert lab.at("node-1").ask("tcp", address, 80, source_port=port)["error"] == "EADDRINUSE"
        assert lab.at("client").ask("tcp", address, 80, source_port=port)["who"] == "near"
