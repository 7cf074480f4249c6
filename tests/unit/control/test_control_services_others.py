"""Host ports, redirects and services by hand: what they ask for, and when it comes true."""

from __future__ import annotations

from typing import Any

import pytest

from cilia.control.services.node import ServicesNode
from cilia.control.services.selectors import Requirement, Selector, read_line, read_object
from cilia.control.services.settings import ServiceSettings
from cilia.model.node import Node
from cilia.model.service import Algorithm, Backend, Frontend, FrontendKind, Protocol, ServiceEntry
from cilia.schema import Desired, Inputs, LocalRedirectRow, LocalServiceRow, PodRow, ServiceRow
from cilia.schema.rows import HostPort, RedirectPort, ServicePort

TCP, UDP = Protocol.TCP, Protocol.UDP
OWN = Node(name="here", addresses=("172.18.0.2", "fd00:18::2"))
DNS = RedirectPort(53, UDP, "dns")
DNS_TCP = RedirectPort(53, TCP, "dns-tcp")


class Pods:
    """The node's inputs and what comes of them."""

    def __init__(self, **settings: Any) -> None:
        self.inputs, self.desired = Inputs(), Desired()
        given = ServiceSettings(**({"local_redirects": True} | settings))
        self.node = ServicesNode(self.inputs, self.desired, node="here", settings=given, own=OWN)

    def add(self, *rows: object) -> Pods:
        for row in rows:
            match row:
                case PodRow():
                    self.inputs.pods.put(row)
                case ServiceRow():
                    self.inputs.services.put(row)
                case LocalRedirectRow():
                    self.inputs.redirects.put(row)
                case LocalServiceRow():
                    self.inputs.local_services.put(row)
        self.node.step()
        return self

    def entry(self, address: str, port: int = 53, protocol: Protocol = UDP) -> ServiceEntry:
        found = self.desired.service_entries.get(Frontend(address, port, protocol))
        assert found is not None, self.frontends
        return found

    @property
    def frontends(self) -> list[str]:
        return sorted(map(str, self.desired.service_entries.keys()))

    def problem(self, kind: str, name: str, namespace: str = "dns") -> str:
        state = self.desired.service_states.get((kind, namespace, name))
        assert state is not None
        (found,) = state.problems
        return found


def pod(name: str = "cache", **fields: Any) -> PodRow:
    given = {"labels": {"app": "cache"}, "addresses": ("10.0.1.5",)} | fields
    return PodRow(namespace="dns", name=name, node="here", **given)


# host ports


def hosted(*ports: HostPort, **fields: Any) -> PodRow:
    return pod(host_ports=ports or (HostPort(8080, 80, TCP),), **fields)


def test_a_host_port_is_at_all_addresses_of_its_family() -> None:
    pods = Pods().add(hosted())
    assert pods.frontends == ["0.0.0.0:8080/TCP", "172.18.0.2:8080/TCP"]
    entry = pods.entry("172.18.0.2", 8080, TCP)
    assert (entry.kind, entry.namespace, entry.name) == (FrontendKind.HOST_PORT, "dns", "cache")
    assert entry.internal == entry.external == (Backend("10.0.1.5", 80, TCP, node="here"),)
    assert entry.outside
    assert not pods.entry("0.0.0.0", 8080, TCP).outside
    pods.add(hosted(addresses=("10.0.1.5", "fd00::5")))
    assert set(pods.frontends) > {"172.18.0.2:8080/TCP", "[fd00:18::2]:8080/TCP", "[::]:8080/TCP"}


@pytest.mark.parametrize(
    ("host_ip", "found"),
    [
        ("192.168.1.2", ["192.168.1.2:8080/TCP"]),
        ("127.0.0.1", ["0.0.0.0:8080/TCP"]),
        ("::1", ["[::]:8080/TCP"]),
    ],
)
def test_a_host_port_at_a_chosen_address(host_ip: str, found: list[str]) -> None:
    row = hosted(HostPort(8080, 80, TCP, host_ip), addresses=("10.0.1.5", "fd00::5"))
    assert Pods().add(row).frontends == found


def test_a_host_port_among_the_node_ports() -> None:
    pods = Pods().add(hosted(HostPort(30080, 80, TCP)))
    assert pods.frontends == []
    assert "30080 is a node port (30000 to 32767)" in pods.problem("Pod", "cache")


def test_pods_on_the_hosts_network_open_their_own() -> None:
    pods = Pods().add(hosted(host_network=True))
    assert pods.frontends == []
    assert list(pods.desired.service_states) == []


def test_who_stays_has_a_port_before_who_leaves() -> None:
    pods = Pods().add(hosted(name="a", terminating=True))
    assert pods.entry("172.18.0.2", 8080, TCP).name == "a"
    pods.add(hosted(name="b", addresses=("10.0.1.6",)))
    assert pods.entry("172.18.0.2", 8080, TCP).name == "b"
    assert "HostPort of Pod dns/b" in pods.problem("Pod", "a")


def test_a_service_has_an_address_before_a_host_port() -> None:
    row = ServiceRow(
        namespace="dns",
        name="edge",
        type="LoadBalancer",
        cluster_ips=("10.96.0.9",),
        load_balancer_ips=("172.18.0.2",),
        ports=(ServicePort("", 8080, TCP),),
    )
    assert Pods().add(hosted(), row).entry("172.18.0.2", 8080, TCP).name == "edge"


# redirects


def redirect(name: str = "nodelocal", **fields: Any) -> LocalRedirectRow:
    given = {"backend_labels": {"app": "cache"}, "backend_ports": (DNS,)} | fields
    return LocalRedirectRow(namespace="dns", name=name, **given)


def by_address(**fields: Any) -> LocalRedirectRow:
    return redirect(**({"address": "169.254.169.254", "frontend_ports": (RedirectPort(80, UDP),)} | fields))


def kube_dns(**fields: Any) -> ServiceRow:
    given = {
        "cluster_ips": ("10.96.0.10",),
        "ports": (ServicePort("dns", 53, UDP), ServicePort("dns-tcp", 53, TCP)),
    } | fields
    return ServiceRow(namespace="dns", name="kube-dns", **given)


BY_SERVICE = redirect(service="kube-dns", backend_ports=(DNS, DNS_TCP))


def test_an_address_goes_to_local_pods() -> None:
    pods = Pods().add(by_address(), pod())
    entry = pods.entry("169.254.169.254", 80)
    assert (entry.kind, entry.name, entry.loose, entry.outside) == (
        FrontendKind.LOCAL_REDIRECT,
        "nodelocal",
        True,
        False,
    )
    assert entry.internal == (Backend("10.0.1.5", 53, UDP, node="here"),)


def test_a_service_goes_to_local_pods_port_by_port() -> None:
    pods = Pods().add(kube_dns(), BY_SERVICE, pod())
    for protocol in (UDP, TCP):
        entry = pods.entry("10.96.0.10", protocol=protocol)
        assert entry.kind is FrontendKind.LOCAL_REDIRECT
        assert not entry.loose
        assert entry.internal[0].protocol is protocol
    state = pods.desired.service_states.get(("Service", "dns", "kube-dns"))
    assert state is not None
    assert state.problems == ()


def test_without_a_ready_pod_the_service_keeps_its_own() -> None:
    pods = Pods().add(kube_dns(), BY_SERVICE, pod(ready=False))
    assert pods.entry("10.96.0.10").kind is FrontendKind.CLUSTER_IP
    pods.add(pod())
    assert pods.entry("10.96.0.10").kind is FrontendKind.LOCAL_REDIRECT
    pods.add(pod(terminating=True))
    assert pods.entry("10.96.0.10").kind is FrontendKind.CLUSTER_IP


def test_an_address_whose_pods_are_not_ready_is_left_alone() -> None:
    pods = Pods().add(by_address(), pod(ready=False))
    entry = pods.entry("169.254.169.254", 80)
    assert (entry.internal, entry.loose, len(entry.draining)) == ((), True, 1)
    pods.inputs.pods.delete(("dns", "cache"))
    pods.node.step()
    assert pods.frontends == []


def test_one_port_of_a_service() -> None:
    row = redirect(service="kube-dns", frontend_ports=(DNS_TCP,), backend_ports=(RedirectPort(5353, TCP),))
    pods = Pods().add(kube_dns(), row, pod())
    assert pods.entry("10.96.0.10", protocol=TCP).internal[0].port == 5353
    assert pods.entry("10.96.0.10").kind is FrontendKind.CLUSTER_IP


def test_only_pods_of_its_namespace_that_it_selects() -> None:
    other = PodRow(namespace="shop", name="x", labels={"app": "cache"}, addresses=("10.0.1.9",))
    row = by_address(
        backend_labels={}, backend_expressions=({"key": "app", "operator": "NotIn", "values": ["web"]},)
    )
    pods = Pods().add(row, pod(), pod("web", labels={"app": "web"}, addresses=("10.0.1.6",)), other)
    assert [backend.address for backend in pods.entry("169.254.169.254", 80).internal] == ["10.0.1.5"]


def test_backends_may_be_skipped() -> None:
    skipping = by_address(skip_from_backend=True)
    pods = Pods().add(
        skipping, pod(addresses=("10.0.1.5", "fd00::5")), pod("b", ready=False, addresses=("10.0.1.6",))
    )
    assert pods.entry("169.254.169.254", 80).skip == ("10.0.1.5", "10.0.1.6", "fd00::5")
    assert Pods().add(by_address(), pod()).entry("169.254.169.254", 80).skip == ()


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (by_address(problem="spec.x: bad"), "spec.x: bad"),
        (redirect(service="none"), "serviceMatcher: there is no Service dns/none"),
        (redirect(service="kube-dns", frontend_ports=(RedirectPort(1, UDP),)), "has no port 1/UDP"),
        (
            redirect(service="kube-dns", frontend_ports=(RedirectPort(53, UDP, "x"),)),
            "has no port 53/UDP (x)",
        ),
        (by_address(backend_ports=()), "spec.redirectBackend.toPorts: it is empty"),
        (by_address(backend_ports=(RedirectPort(53, TCP),)), "another protocol than 80/UDP"),
        (by_address(frontend_ports=(DNS, RedirectPort(54, UDP))), "of several ports each needs a name"),
        (by_address(frontend_ports=(DNS, RedirectPort(54, UDP, "x"))), "54/UDP (x) has no port of its name"),
        (
            redirect(
                service="kube-dns", backend_ports=(RedirectPort(1, UDP, "x"), RedirectPort(2, UDP, "y"))
            ),
            "none",
        ),
        (by_address(backend_expressions=({"key": "a", "operator": "Like"},)), "'Like' is no operator"),
    ],
)
def test_redirects_that_cannot_be(row: LocalRedirectRow, field: str) -> None:
    pods = Pods().add(kube_dns(), row, pod())
    assert field in pods.problem("CiliumLocalRedirectPolicy", "nodelocal")
    assert pods.frontends == ["10.96.0.10:53/TCP", "10.96.0.10:53/UDP"]


def test_redirects_follow_their_service() -> None:
    pods = Pods().add(BY_SERVICE, pod())
    assert pods.frontends == []
    pods.add(kube_dns())
    assert pods.entry("10.96.0.10").kind is FrontendKind.LOCAL_REDIRECT
    pods.add(kube_dns(cluster_ips=("10.96.0.11",)))
    assert pods.frontends == ["10.96.0.11:53/TCP", "10.96.0.11:53/UDP"]
    pods.add(kube_dns(headless=True, cluster_ips=()))
    assert pods.frontends == []
    assert "has no cluster address" in pods.problem("CiliumLocalRedirectPolicy", "nodelocal")


def test_redirects_take_no_address_of_a_service() -> None:
    row = by_address(address="10.96.0.10", frontend_ports=(DNS,))
    pods = Pods().add(kube_dns(), row, pod())
    assert pods.entry("10.96.0.10").kind is FrontendKind.CLUSTER_IP
    assert "is ClusterIP of Service dns/kube-dns" in pods.problem("CiliumLocalRedirectPolicy", "nodelocal")


def test_redirects_may_be_off_or_bounded() -> None:
    pods = Pods(local_redirects=False).add(by_address(), pod())
    assert "enable-local-redirect-policy" in pods.problem("CiliumLocalRedirectPolicy", "nodelocal")
    pods = Pods(redirect_prefixes=("10.0.0.0/8",)).add(by_address(), pod())
    assert "169.254.169.254 is in none" in pods.problem("CiliumLocalRedirectPolicy", "nodelocal")


# by hand


def by_hand(*backends: Backend, **fields: Any) -> LocalServiceRow:
    return LocalServiceRow(frontend=Frontend("192.0.2.1", 80, TCP), backends=backends, **fields)


ONE, TWO = Backend("10.0.1.5", 8080, TCP), Backend("10.0.2.5", 8080, TCP, 3, "there")


def test_a_service_by_hand() -> None:
    entry = (
        Pods().add(by_hand(TWO, ONE, name="edge", algorithm="maglev", affinity=5)).entry("192.0.2.1", 80, TCP)
    )
    assert entry.internal == entry.external == (ONE, TWO)
    assert (entry.kind, entry.name, entry.algorithm, entry.affinity, entry.outside) == (
        FrontendKind.STANDALONE,
        "edge",
        Algorithm.MAGLEV,
        5,
        True,
    )


def test_only_backends_of_this_node() -> None:
    pods = Pods().add(by_hand(ONE, TWO, local_only=True))
    assert pods.entry("192.0.2.1", 80, TCP).internal == ()
    entry = pods.add(pod()).entry("192.0.2.1", 80, TCP)
    assert entry.internal == (ONE,)
    assert entry.keeps_client


def test_maintenance_by_hand() -> None:
    shut = Backend("10.0.1.5", 8080, TCP, 0)
    entry = Pods().add(by_hand(shut, TWO)).entry("192.0.2.1", 80, TCP)
    assert (entry.internal, entry.draining) == ((TWO,), (shut,))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (by_hand(Backend("fd00::5", 80, TCP)), "is not of the frontend's family"),
        (by_hand(Backend("10.0.1.5", 80, UDP)), "another protocol"),
        (by_hand(Backend("192.0.2.1", 80, TCP)), "is the frontend itself"),
        (by_hand(algorithm="best"), "algorithm: 'best'"),
        (by_hand(mode="best"), "mode: 'best'"),
        (by_hand(source_ranges=("ten",)), "source_ranges: 'ten' is no prefix"),
        (by_hand(source_ranges=("fe80::1%eth0/128",)), "is no prefix"),
        (by_hand(source_ranges=("::/0",)), "is not of the frontend's family; it lets nobody in"),
    ],
)
def test_what_is_wrong_by_hand(row: LocalServiceRow, told: str) -> None:
    pods = Pods().add(row)
    entry = pods.entry("192.0.2.1", 80, TCP)
    assert entry.internal == ()
    assert entry.outside is not bool(row.source_ranges)
    assert told in pods.problem("Standalone", "192.0.2.1:80/TCP", "")


def test_a_service_by_hand_goes() -> None:
    pods = Pods().add(by_hand(ONE))
    pods.inputs.local_services.delete(Frontend("192.0.2.1", 80, TCP))
    pods.node.step()
    assert pods.frontends == []
    assert list(pods.desired.service_states) == []


# selectors


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("a=b", (Requirement("a", "In", ("b",)),)),
        ("a==b , c!=d", (Requirement("a", "In", ("b",)), Requirement("c", "NotIn", ("d",)))),
        ("x.io/a in (b, c),!d", (Requirement("x.io/a", "In", ("b", "c")), Requirement("d", "DoesNotExist"))),
        ("a notin (b),c", (Requirement("a", "NotIn", ("b",)), Requirement("c", "Exists"))),
        ("a=", (Requirement("a", "In", ("",)),)),
    ],
)
def test_selectors_in_a_line(text: str, found: tuple[Requirement, ...]) -> None:
    assert read_line(text) == Selector(found)


@pytest.mark.parametrize("text", ["=b", "a=b=c", "a in b", "a in (b", "a,,b", "!", "a b", "a in (b c)"])
def test_lines_that_are_no_selector(text: str) -> None:
    with pytest.raises(ValueError, match="is no label"):
        read_line(text)


def test_requirements() -> None:
    labels = {"a": "b"}
    assert read_line("a in (b,c),a,!d,d!=e,d notin (e)").selects(labels)
    assert not read_line("!a").selects(labels)
    assert not read_line("a notin (b)").selects(labels)
    assert read_object({"a": "b"}, [{"key": "d", "operator": "DoesNotExist"}]).selects(labels)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ({"operator": "In"}, "has no key"),
        ({"key": "a", "operator": "In"}, "In without values"),
        ({"key": "a", "operator": "In", "values": "b"}, "no list of texts"),
    ],
)
def test_expressions_that_cannot_be_read(expression: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_object({}, [expression])
