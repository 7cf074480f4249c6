"""Whatever stands in the cluster's objects: it becomes rows the kernel can hold, or is refused as Invalid."""

from __future__ import annotations

import asyncio
import copy
import ipaddress
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from cilia.cluster.store import (
    CILIUM_CIDR_GROUPS,
    CILIUM_CLUSTERWIDE_NETWORK_POLICIES,
    CILIUM_ENDPOINTS,
    CILIUM_IDENTITIES,
    CILIUM_LOCAL_REDIRECT_POLICIES,
    CILIUM_NETWORK_POLICIES,
    CILIUM_NODES,
    CLUSTER_NETWORK_POLICIES,
    ENDPOINT_SLICES,
    NAMESPACES,
    NETWORK_POLICIES,
    PODS,
    SERVICES,
    Invalid,
    Resource,
)
from cilia.control.graph import ControlGraph, GraphConfig
from cilia.dataplane.maps import packing
from cilia.kit.tasks import TaskGroup
from cilia.model.endpoint import Attachment
from cilia.model.ids import EndpointId, IdentityId
from cilia.schema import Desired, Inputs
from cilia.sources import checks, nodes
from cilia.sources.cluster import Sources
from cilia.sources.endpoints import endpoints
from cilia.sources.reflector import Reflector
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until_async

U32, U16 = 1 << 32, 1 << 16

OBJECTS: dict[Resource, dict[str, Any]] = {
    NAMESPACES: {"metadata": {"name": "shop", "labels": {"team": "a"}}},
    PODS: {
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "labels": {"app": "web"}},
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80}]}],
        },
    },
    CILIUM_IDENTITIES: {
        "metadata": {"name": "300"},
        "security-labels": {
            "k8s:app": "web",
            "k8s:io.kubernetes.pod.namespace": "shop",
            "k8s:io.cilium.k8s.namespace.labels.team": "a",
            "k8s:io.cilium.k8s.policy.serviceaccount": "default",
            "k8s:io.cilium.k8s.policy.cluster": "default",
        },
    },
    CILIUM_NODES: {
        "metadata": {"name": "n2"},
        "spec": {
            "addresses": [
                {"type": "InternalIP", "ip": "192.0.2.2"},
                {"type": "CiliumInternalIP", "ip": "10.0.1.1"},
            ],
            "ipam": {"podCIDRs": ["10.0.1.0/24", "fd01::/120"]},
        },
    },
    CILIUM_ENDPOINTS: {
        "metadata": {"name": "far", "namespace": "shop"},
        "status": {
            "id": 7,
            "identity": {"id": 300, "labels": ["k8s:app=web"]},
            "networking": {"node": "192.0.2.2", "addressing": [{"ipv4": "10.0.1.5", "ipv6": "fd01::5"}]},
            "named-ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    },
    NETWORK_POLICIES: {
        "metadata": {"name": "np", "namespace": "shop", "generation": 1},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [{"ipBlock": {"cidr": "10.9.0.0/16", "except": ["10.9.1.0/24"]}}],
                    "ports": [{"port": "http"}, {"port": 90, "endPort": 99, "protocol": "UDP"}],
                }
            ],
        },
    },
    CILIUM_NETWORK_POLICIES: {
        "metadata": {"name": "cnp", "namespace": "shop", "generation": 1},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "web"}},
            "ingress": [
                {
                    "fromEndpoints": [
                        {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}
                    ],
                    "toPorts": [{"ports": [{"port": "80", "endPort": 90, "protocol": "TCP"}]}],
                }
            ],
            "egress": [
                {
                    "toCIDRSet": [
                        {"cidr": "10.9.0.0/16", "except": ["10.9.1.0/24"]},
                        {"cidrGroupRef": "offices"},
                    ]
                },
                {
                    "toServices": [{"k8sService": {"serviceName": "db"}}],
                    "toPorts": [{"ports": [{"port": "web"}]}],
                },
                {"toNodes": [{"matchLabels": {"zone": "a"}}]},
            ],
            "log": {"value": "by order"},
            "audit": False,
        },
    },
    CILIUM_CLUSTERWIDE_NETWORK_POLICIES: {
        "metadata": {"name": "ccnp", "generation": 1},
        "spec": {"endpointSelector": {}, "ingressDeny": [{"fromEntities": ["world"]}]},
    },
    CILIUM_CIDR_GROUPS: {
        "metadata": {"name": "offices", "labels": {"kind": "office"}},
        "spec": {"externalCIDRs": ["10.8.0.0/16", "2001:db8::/32"]},
    },
    SERVICES: {
        "metadata": {"name": "db", "namespace": "shop", "labels": {"tier": "back"}},
        "spec": {
            "selector": {"app": "web"},
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.1", "fd00:10:96::1"],
            "externalIPs": ["192.0.2.1"],
            "ports": [{"name": "web", "port": 80, "nodePort": 30080, "targetPort": "web"}],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "healthCheckNodePort": 32000,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.4", "ipMode": "VIP"}]}},
    },
    ENDPOINT_SLICES: {
        "metadata": {
            "name": "db-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "outside"},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["203.0.113.9"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": "n1",
                "zone": "a",
                "hints": {"forZones": [{"name": "a"}]},
            }
        ],
        "ports": [{"name": "web", "port": 80, "protocol": "TCP"}],
    },
    CILIUM_LOCAL_REDIRECT_POLICIES: {
        "metadata": {"name": "dns", "namespace": "shop"},
        "spec": {
            "redirectFrontend": {
                "addressMatcher": {"ip": "169.254.20.10", "toPorts": [{"port": "53", "protocol": "UDP"}]}
            },
            "redirectBackend": {
                "localEndpointSelector": {"matchLabels": {"app": "web"}},
                "toPorts": [{"port": "53", "protocol": "UDP"}],
            },
        },
    },
    CLUSTER_NETWORK_POLICIES: {
        "metadata": {"name": "admin", "generation": 1},
        "spec": {
            "tier": "Admin",
            "priority": 10,
            "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}},
            "egress": [
                {
                    "name": "keep out",
                    "action": "Deny",
                    "to": [{"networks": ["10.7.0.0/16"]}, {"nodes": {"matchLabels": {"zone": "a"}}}],
                    "protocols": [{"tcp": {"destinationPort": {"range": {"start": 80, "end": 90}}}}],
                }
            ],
        },
    },
}
"""One good object of each kind."""

ABSURD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from([0, -1, 65535, 65536, 1, 2, 16777216, 4294967296, 1.5]),
    st.sampled_from(
        [
            "",
            "0.0.0.0/0",
            "::/0",
            "10.0.1.5/33",
            "10.0.1.77/24",
            "192.0.2.0/24",
            "300.1.2.3",
            "fe80::1%eth0",
            "::ffff:10.0.1.5",
            "::",
            "224.0.0.1",
            "127.0.0.1",
            "010.1.1.1",
            "http",
            "99999",
            "a" * 300,
            "k8s:",
            ":=:",
            "=",
            "\x00",
            "é\udcff".encode("utf-8", "ignore").decode(),
        ]
    ),
    st.text(max_size=20),
    st.lists(st.text(max_size=5), max_size=2),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document that can hold something else."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Resource, dict[str, Any]]:
    """A good object with one to three absurd places."""
    resource = draw(st.sampled_from(list(OBJECTS)))
    document = copy.deepcopy(OBJECTS[resource])
    for _ in range(draw(st.integers(1, 3))):
        options = [
            path for path in places(document) if path[0] != "metadata" or path[-1] in ("labels", "name")
        ]
        path = draw(st.sampled_from(options or [("spec",)]))
        target = document
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = draw(ABSURD)
    return resource, document


def brain() -> tuple[Desired, ControlGraph, dict[Resource, Reflector[Any, Any]]]:
    """A graph with one local endpoint and all good objects in its tables."""
    inputs, desired = Inputs(), Desired()
    sources = Sources(MemoryStore(), inputs, node="n1", own_addresses=frozenset({"192.0.2.1"}))
    reflectors = {reflector.resource: reflector for reflector in sources.reflectors}
    own = {
        "metadata": {"name": "n1"},
        "spec": {
            "addresses": [{"type": "InternalIP", "ip": "192.0.2.1"}],
            "ipam": {"podCIDRs": ["10.0.0.0/24"]},
        },
    }
    put(reflectors, CILIUM_NODES, own)
    for resource, document in OBJECTS.items():
        put(reflectors, resource, document)
    inputs.attachments.put(
        Attachment(
            id=EndpointId(1),
            container_id="c",
            interface="eth0",
            netns="/n",
            host_interface="lxc1",
            ifindex=9,
            mac="02:00:00:00:00:01",
            host_mac="02:00:00:00:00:02",
            ipv4="10.0.0.2",
            namespace="shop",
            pod="web",
        )
    )
    for table in inputs.tables():
        table.synced = True
    return desired, ControlGraph(inputs, desired, GraphConfig(node="n1")), reflectors


def put(reflectors: dict[Resource, Reflector[Any, Any]], resource: Resource, document: Any) -> None:
    reflectors[resource]._put(msgspec.Raw(msgspec.json.encode(document)))


def packable(desired: Desired) -> None:
    """Every number and address of the desired tables fits where the kernel keeps it."""
    for entry in desired.ipcache:
        ipaddress.ip_network(entry.prefix)
        packing.address_bytes(entry.tunnel_endpoint)
        assert 0 <= entry.identity < U32
    for address in desired.node_addresses:
        packing.address_bytes(address.address)
    for route in desired.routes:
        assert ipaddress.ip_network(route.prefix).prefixlen
        packing.address_bytes(route.source)
    for subject in desired.subjects:
        for key, value in subject.entries.items():
            assert 0 <= key.peer < U32
            assert 0 <= key.port < U16
            assert 0 <= key.protocol < 256
            assert 0 <= key.bits <= 24
            assert 0 <= value.precedence < U32


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(mutated(), min_size=1, max_size=4))
def test_absurd_objects_never_stop_the_brain(changes: list[tuple[Resource, dict[str, Any]]]) -> None:
    desired, graph, reflectors = brain()
    graph.step(0)
    good = desired.endpoint_entries.get(EndpointId(1))
    assert good is not None
    with capture_logs():
        for resource, document in changes:
            put(reflectors, resource, document)
            graph.step(0)
            packable(desired)
        for resource, document in OBJECTS.items():
            put(reflectors, resource, document)
    graph.step(0)
    assert desired.endpoint_entries.get(EndpointId(1)) == good


@pytest.mark.parametrize(
    "text",
    ["", "x", "10.0.0.1/24", "010.0.0.1", "fe80::1%2", "::ffff:10.0.0.1", "::", "0.0.0.0", "ff02::1", "::1"],
)
def test_addresses_of_no_host(text: str) -> None:
    with pytest.raises(Invalid):
        checks.address(text)


@pytest.mark.parametrize("text", ["", "x", "0.0.0.0/0", "::/0", "10.0.0.0/33", "127.0.0.0/8", "ff00::/8"])
def test_prefixes_of_no_pods(text: str) -> None:
    with pytest.raises(Invalid):
        checks.prefix(text)


def test_one_spelling() -> None:
    assert checks.address("FD00:0::1") == "fd00::1"
    assert checks.prefix("10.0.1.77/24") == "10.0.1.0/24"


def endpoint(**networking: Any) -> msgspec.Raw:
    document = copy.deepcopy(OBJECTS[CILIUM_ENDPOINTS])
    document["status"]["networking"] |= networking
    return msgspec.Raw(msgspec.json.encode(document))


@pytest.mark.parametrize(
    "bad",
    [
        endpoint(node="moon"),
        endpoint(addressing=[{"ipv4": "10.0.1.5"}, {"ipv6": "nonsense"}]),
        endpoint(addressing=[{"ipv4": "::ffff:10.0.1.5"}]),
    ],
)
def test_a_garbage_endpoint_is_refused_whole(bad: msgspec.Raw) -> None:
    with pytest.raises(Invalid):
        endpoints(frozenset()).row(bad)


@pytest.mark.parametrize("number", [1, 2, 6, 7, 9, -300, 1 << 24, 1 << 40])
def test_an_endpoint_that_claims_to_be_a_host_or_the_world_is_refused(number: int) -> None:
    document = copy.deepcopy(OBJECTS[CILIUM_ENDPOINTS])
    document["status"]["identity"]["id"] = number
    with pytest.raises(Invalid, match="no identity an endpoint can have"):
        endpoints(frozenset()).row(msgspec.Raw(msgspec.json.encode(document)))


def test_a_node_keeps_what_is_good_and_says_what_is_not() -> None:
    document = copy.deepcopy(OBJECTS[CILIUM_NODES])
    document["spec"]["addresses"] += [{"type": "InternalIP", "ip": "nowhere"}]
    document["spec"]["ipam"]["podCIDRs"] = ["0.0.0.0/0", "10.0.1.0/24", "10.0.1.0/44"]
    with capture_logs() as said:
        row = nodes.row(msgspec.Raw(msgspec.json.encode(document)))
    assert (row.addresses, row.pod_cidrs) == (("192.0.2.2",), ("10.0.1.0/24",))
    assert len(said) == 3


def follow(story: Callable[[MemoryStore, Inputs], Any]) -> list[Any]:
    """Run a story against reflectors of everything; what was logged."""

    async def main() -> None:
        memory, inputs = MemoryStore(), Inputs()
        sources = Sources(memory, inputs, node="n1", own_addresses=frozenset())
        async with TaskGroup() as tasks:
            sources.start(tasks)
            await sources.wait_synced()
            await story(memory, inputs)

    with capture_logs() as said:
        asyncio.run(main())
    return [line for line in said if line["log_level"] == "error"]


def test_a_bad_object_is_told_once_and_taken_when_it_is_mended() -> None:
    bad = copy.deepcopy(OBJECTS[CILIUM_ENDPOINTS])
    bad["status"]["networking"]["node"] = "moon"

    async def story(memory: MemoryStore, inputs: Inputs) -> None:
        for state in ("creating", "ready", "ready-again"):
            bad["status"]["state"] = state
            await memory.put(CILIUM_ENDPOINTS, bad)
        good = copy.deepcopy(OBJECTS[CILIUM_ENDPOINTS])
        good["metadata"]["name"] = "other"
        await memory.put(CILIUM_ENDPOINTS, good)
        await until_async(lambda: ("shop", "other") in inputs.remote_endpoints)
        assert ("shop", "far") not in inputs.remote_endpoints
        await memory.put(CILIUM_ENDPOINTS, OBJECTS[CILIUM_ENDPOINTS])
        await until_async(lambda: ("shop", "far") in inputs.remote_endpoints)

    said = follow(story)
    assert [(line["event"], line["name"]) for line in said] == [("object ignored", "shop/far")]


def test_an_object_under_another_spelling_takes_nothing_away() -> None:
    async def story(memory: MemoryStore, inputs: Inputs) -> None:
        await memory.put(CILIUM_IDENTITIES, OBJECTS[CILIUM_IDENTITIES])
        await memory.put(CILIUM_IDENTITIES, {"metadata": {"name": "00300"}, "security-labels": {}})
        await memory.delete(CILIUM_IDENTITIES, "00300")
        await memory.put(NAMESPACES, {"metadata": {"name": "last"}})
        await memory.put(CILIUM_IDENTITIES, {"metadata": {"name": "301"}, "security-labels": {"k8s:a": "b"}})
        await until_async(lambda: IdentityId(301) in inputs.cluster_identities)
        assert IdentityId(300) in inputs.cluster_identities

    assert len(follow(story)) == 1
