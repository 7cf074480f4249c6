"""Services, slices, redirects and what pods have to do with them: from objects to rows."""

from typing import Any

import msgspec
import pytest

from cilia.model.service import Protocol
from cilia.schema.rows import (
    EndpointSliceRow,
    HostPort,
    LocalRedirectRow,
    RedirectPort,
    ServicePort,
    ServiceRow,
    SliceEndpoint,
    SlicePort,
)
from cilia.sources import pods, redirects, services

TCP, UDP = Protocol.TCP, Protocol.UDP


def raw(**fields: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(fields))


def service(spec: dict[str, Any], status: dict[str, Any] | None = None, **metadata: Any) -> ServiceRow | None:
    named = {"name": "db", "namespace": "shop", **metadata}
    return services.service(raw(metadata=named, spec=spec, status=status or {}))


def endpoint_slice(**fields: Any) -> EndpointSliceRow:
    metadata = {
        "name": "db-1",
        "namespace": "shop",
        "labels": {services.SERVICE_NAME: "db"},
        "annotations": {"service.cilium.io/weight": "3", "other/thing": "1"},
    }
    row = services.endpoint_slice(raw(**{"metadata": metadata, "addressType": "IPv4", **fields}))
    assert row is not None
    return row


def test_a_service_of_everything() -> None:
    spec = {
        "type": "LoadBalancer",
        "selector": {"app": "db"},
        "clusterIP": "10.96.0.5",
        "clusterIPs": ["10.96.0.5", "FD00:0::5"],
        "externalIPs": ["192.0.2.7"],
        "ports": [
            {"name": "sql", "port": 5432, "targetPort": "sql", "nodePort": 30432, "protocol": "TCP"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ],
        "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "loadBalancerSourceRanges": ["198.51.100.7/24", " 10.0.0.0/8 ", "moon"],
        "healthCheckNodePort": 32000,
        "trafficDistribution": "PreferClose",
    }
    status = {
        "loadBalancer": {
            "ingress": [
                {"ip": "203.0.113.4", "ipMode": "VIP"},
                {"ip": "203.0.113.5", "ipMode": "Proxy"},
                {"ip": "203.0.113.6"},
                {"hostname": "lb.example"},
            ]
        }
    }
    annotations = {"service.cilium.io/type": "LoadBalancer", "example.org/x": "y"}
    made = "2026-01-02T03:04:05Z"
    found = service(spec, status, creationTimestamp=made, labels={"a": "b"}, annotations=annotations)
    assert found == ServiceRow(
        namespace="shop",
        name="db",
        created=made,
        labels={"a": "b"},
        annotations={"service.cilium.io/type": "LoadBalancer"},
        selector={"app": "db"},
        type="LoadBalancer",
        cluster_ips=("10.96.0.5", "fd00::5"),
        external_ips=("192.0.2.7",),
        load_balancer_ips=("203.0.113.4", "203.0.113.6"),
        ports=(ServicePort("sql", 5432, TCP, 30432), ServicePort("dns", 53, UDP)),
        external_local=True,
        internal_local=True,
        affinity=60,
        source_ranges=("10.0.0.0/8", "198.51.100.0/24", "moon"),
        health_check_port=32000,
        traffic_distribution="PreferClose",
    )


def test_services_without_addresses() -> None:
    assert service({"clusterIP": "None"}) == ServiceRow(namespace="shop", name="db", headless=True)
    assert service({"clusterIP": "", "ports": [{"port": 1}]}) == ServiceRow(
        namespace="shop", name="db", ports=(ServicePort("", 1, TCP),)
    )
    assert service({"type": "ExternalName"}) is None


def test_what_cannot_be_read_is_told_and_the_rest_stands() -> None:
    spec = {
        "clusterIPs": ["10.96.0.5"],
        "externalIPs": ["127.0.0.1", "192.0.2.1"],
        "ports": [{"port": 70000}, {"port": 80, "protocol": "ICMP"}, {"port": 81, "nodePort": -1}],
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
    }
    row = service(spec)
    assert row is not None
    assert row.external_ips == ("192.0.2.1",)
    assert row.ports == (ServicePort("", 81, TCP),)
    assert row.affinity == services.AFFINITY_SECONDS
    assert [problem.partition(":")[0] for problem in row.problems] == [
        "spec.externalIPs",
        "spec.ports[0].port",
        "spec.ports[1].protocol",
        "spec.ports[2].nodePort",
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
    ]


def test_source_ranges_may_stand_in_an_annotation() -> None:
    row = service({}, annotations={services.RANGES_ANNOTATION: "192.0.2.0/24, 10.0.0.0/8,"})
    assert row is not None
    assert row.source_ranges == ("10.0.0.0/8", "192.0.2.0/24")


def test_a_slice_of_everything() -> None:
    endpoints = [
        {
            "addresses": ["10.0.1.5"],
            "conditions": {"ready": False, "serving": True, "terminating": True},
            "nodeName": "node-1",
            "zone": "a",
            "hints": {"forZones": [{"name": "b"}, {"name": "a"}], "forNodes": [{"name": "node-2"}]},
        },
        {"addresses": ["10.0.1.6"]},
    ]
    ports = [{"name": "sql", "port": 5432, "protocol": "TCP"}, {"name": "all", "port": None}, {"port": 0}]
    assert endpoint_slice(endpoints=endpoints, ports=ports) == EndpointSliceRow(
        namespace="shop",
        name="db-1",
        service="db",
        addresses=("10.0.1.5", "10.0.1.6"),
        annotations={"service.cilium.io/weight": "3"},
        endpoints=(
            SliceEndpoint(
                ("10.0.1.5",),
                ready=False,
                serving=True,
                terminating=True,
                node="node-1",
                zone="a",
                hint_zones=("a", "b"),
                hint_nodes=("node-2",),
            ),
            SliceEndpoint(("10.0.1.6",)),
        ),
        ports=(SlicePort("sql", 5432, TCP),),
        problems=("ports[2].port: 0 is no port",),
    )


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
        ({"ready": True, "serving": None, "terminating": None}, (True, True, False)),
    ],
)
def test_conditions_that_are_not_told(
    conditions: dict[str, Any] | None, expected: tuple[bool, bool, bool]
) -> None:
    row = endpoint_slice(endpoints=[{"addresses": ["10.0.1.5"], "conditions": conditions}])
    (found,) = row.endpoints
    assert (found.ready, found.serving, found.terminating) == expected


def test_addresses_of_slices() -> None:
    endpoints = [
        {"addresses": ["192.0.2.9"], "conditions": {"ready": False}},
        {"addresses": ["192.0.2.10", "192.0.2.9", "127.0.0.1", "db.example"]},
        {"addresses": ["224.0.0.1"]},
    ]
    row = endpoint_slice(endpoints=endpoints)
    assert row.addresses == ("192.0.2.10", "192.0.2.9")
    assert len(row.endpoints) == 2
    assert len(row.problems) == 3
    row = endpoint_slice(addressType="IPv6", endpoints=[{"addresses": ["2001:DB8::1"]}])
    assert (row.ipv6, row.addresses) == (True, ("2001:db8::1",))
    assert endpoint_slice(addressType="FQDN", endpoints=[{"addresses": ["db.example"]}]).endpoints == ()
    assert services.endpoint_slice(raw(metadata={"name": "x", "namespace": "shop"}, endpoints=None)) is None


def test_what_services_need_of_a_pod() -> None:
    metadata = {"name": "web", "namespace": "shop", "uid": "u"}
    ports = [
        {"containerPort": 80, "hostPort": 8080},
        {"containerPort": 53, "hostPort": 53, "hostIP": "127.0.0.1", "protocol": "UDP"},
        {"containerPort": 54, "hostPort": 54, "hostIP": "0.0.0.0"},
        {"containerPort": 55, "hostPort": 55, "hostIP": "nowhere"},
        {"containerPort": 56, "hostPort": 56, "hostIP": "::ffff:10.96.0.10"},
        {"containerPort": 56, "hostPort": 56, "hostIP": "::ffff:0.0.0.0"},
        {"containerPort": 56, "hostPort": 56, "hostIP": "::ffff:127.0.0.1"},
        {"containerPort": 57, "hostPort": 57, "hostIP": "fe80::1%eth0"},
        {"containerPort": 58, "hostPort": 58, "hostIP": "224.0.0.1"},
        {"containerPort": 56},
    ]
    spec = {"containers": [{"name": "c", "ports": ports}]}
    status = {
        "phase": "Running",
        "podIP": "10.0.1.5",
        "podIPs": [{"ip": "10.0.1.5"}, {"ip": "fd00::5"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    row = pods.row(raw(metadata=metadata, spec=spec, status=status))
    assert row.addresses == ("10.0.1.5", "fd00::5")
    assert row.host_ports == (
        HostPort(8080, 80, TCP),
        HostPort(53, 53, UDP, "127.0.0.1"),
        HostPort(54, 54, TCP),
    )
    assert (row.ready, row.terminating) == (True, False)
    leaving = {**metadata, "deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert pods.row(raw(metadata=leaving, spec=spec, status=status)).terminating
    over = pods.row(raw(metadata=metadata, spec=spec, status={**status, "phase": "Succeeded"}))
    assert (over.addresses, over.host_ports, over.ready) == ((), (), False)
    assert not pods.row(raw(metadata=metadata, spec={**spec, "hostNetwork": True}, status={})).host_ports


def redirect(spec: dict[str, Any]) -> LocalRedirectRow:
    return redirects.row(raw(metadata={"name": "dns", "namespace": "kube-system"}, spec=spec))


BACKEND = {
    "localEndpointSelector": {
        "matchLabels": {"app": "cache"},
        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a"]}],
    },
    "toPorts": [{"port": "53", "protocol": "UDP", "name": "dns"}],
}


def test_a_redirect_of_a_service() -> None:
    matcher = {"namespace": "kube-system", "serviceName": "kube-dns"}
    spec = {
        "redirectFrontend": {"serviceMatcher": matcher},
        "redirectBackend": BACKEND,
        "skipRedirectFromBackend": True,
    }
    assert redirect(spec) == LocalRedirectRow(
        namespace="kube-system",
        name="dns",
        service="kube-dns",
        backend_labels={"app": "cache"},
        backend_expressions=({"key": "tier", "operator": "In", "values": ["a"]},),
        backend_ports=(RedirectPort(53, UDP, "dns"),),
        skip_from_backend=True,
    )


def test_a_redirect_of_an_address() -> None:
    ports = [{"port": "53", "protocol": "UDP", "name": "Dns"}]
    matcher = {"ip": "169.254.20.10", "toPorts": ports}
    row = redirect({"redirectFrontend": {"addressMatcher": matcher}, "redirectBackend": BACKEND})
    assert (row.address, row.frontend_ports, row.problem) == (
        "169.254.20.10",
        (RedirectPort(53, UDP, "dns"),),
        "",
    )


@pytest.mark.parametrize(
    ("frontend", "backend_ports", "path"),
    [
        ({"addressMatcher": {"ip": "127.0.0.1", "toPorts": []}}, None, "addressMatcher.ip"),
        ({"addressMatcher": {"ip": "192.0.2.1", "toPorts": []}}, None, "addressMatcher.toPorts"),
        ({"serviceMatcher": {"namespace": "shop", "serviceName": "db"}}, None, "serviceMatcher.namespace"),
        ({"serviceMatcher": {"namespace": "kube-system", "serviceName": ""}}, None, "serviceName"),
        ({}, None, "spec.redirectFrontend"),
        (
            {"serviceMatcher": {"namespace": "kube-system", "serviceName": "db"}},
            [],
            "redirectBackend.toPorts",
        ),
        (
            {"serviceMatcher": {"namespace": "kube-system", "serviceName": "db"}},
            [{"port": "1", "protocol": "TCP"}, {"port": "2", "protocol": "TCP"}],
            "redirectBackend.toPorts",
        ),
        (
            {
                "addressMatcher": {
                    "ip": "192.0.2.1",
                    "toPorts": [
                        {"port": "1", "protocol": "TCP", "name": "a"},
                        {"port": "2", "protocol": "TCP", "name": "b"},
                    ],
                }
            },
            [
                {"port": "1", "protocol": "TCP", "name": "a"},
                {"port": "2", "protocol": "UDP", "name": "b"},
            ],
            "no port is named 'b'",
        ),
        (
            {"serviceMatcher": {"namespace": "kube-system", "serviceName": "db"}},
            [{"port": "99999", "protocol": "TCP"}],
            "toPorts[0].port",
        ),
    ],
)
def test_redirects_that_make_no_sense(frontend: dict[str, Any], backend_ports: Any, path: str) -> None:
    backend = BACKEND if backend_ports is None else {**BACKEND, "toPorts": backend_ports}
    row = redirect({"redirectFrontend": frontend, "redirectBackend": backend})
    assert path in row.problem
