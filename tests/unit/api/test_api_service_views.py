"""What the API tells of services: backends with their states, and why nobody serves."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from cilia.api.backend import ApiError
from cilia.api.service_views import why_none
from cilia.api.table_backend import TableBackend
from cilia.api.types import ServiceList, ServiceView
from cilia.model.node import IpcacheEntry
from cilia.model.service import Backend, Frontend, FrontendKind, Protocol, ServiceEntry, ServiceState
from cilia.schema import Desired, EndpointSliceRow, Inputs, ServiceRow
from cilia.schema.rows import SliceEndpoint, SlicePort

TCP, UDP = Protocol.TCP, Protocol.UDP
NEAR, FAR = Backend("10.0.0.7", 8080, TCP, node="n1"), Backend("10.0.1.3", 8080, TCP, node="n2", zone="b")
IDLE, LEAVING = Backend("10.0.1.4", 8080, TCP, weight=0), Backend("10.0.1.5", 8080, TCP)
VIP = Frontend("10.96.0.7", 80, TCP)


def entry(frontend: Frontend = VIP, **fields: object) -> ServiceEntry:
    known = {"kind": FrontendKind.CLUSTER_IP, "namespace": "shop", "name": "web", "port_name": "http"}
    return ServiceEntry(frontend=frontend, **{**known, **fields})  # type: ignore[arg-type]


class Node(TableBackend):
    """The tables of a node with some services."""

    def __init__(self, *entries: ServiceEntry) -> None:
        super().__init__(Inputs(), Desired(), "n1")
        for row in entries:
            self.desired.service_entries.put(row)
        self.desired.ipcache.put(
            IpcacheEntry(prefix="10.0.0.7/32", identity=300, namespace="shop", pod="web-0")
        )

    def wrong(self, kind: str, namespace: str, name: str, *problems: str) -> Node:
        self.desired.service_states.put(
            ServiceState(kind=kind, namespace=namespace, name=name, problems=problems)
        )
        return self

    def list(self) -> ServiceList:
        return asyncio.run(self.services())

    def get(self, reference: str) -> ServiceList:
        return asyncio.run(self.service(reference))


def states(view: ServiceView) -> list[tuple[str, str, str]]:
    return [(one.ip, one.state, one.only) for one in view.spec.backend_addresses]


def test_backends_have_states_and_clients() -> None:
    node = Node(entry(internal=(NEAR, FAR, IDLE), external=(NEAR,), draining=(LEAVING,), outside=True))
    (view,) = node.list().services
    assert states(view) == [
        ("10.0.0.7", "active", ""),
        ("10.0.1.3", "active", "internal"),
        ("10.0.1.4", "maintenance", "internal"),
        ("10.0.1.5", "terminating", ""),
    ]
    assert view.spec.frontend_address.scope == "external"
    assert view.spec.backend_addresses[0].pod == "shop/web-0"
    assert (view.status.state, view.status.why_none) == ("realized", "")


def test_clients_outside_count_only_where_they_are_served() -> None:
    (view,) = Node(entry(internal=(NEAR,))).list().services
    assert states(view) == [("10.0.0.7", "active", "")]
    assert view.spec.flags.ext_traffic_policy == view.spec.flags.mode == ""


def test_a_backend_by_hand_without_weight_is_in_maintenance() -> None:
    (view,) = Node(entry(kind=FrontendKind.STANDALONE, draining=(IDLE,))).list().services
    assert states(view) == [("10.0.1.4", "maintenance", "")]
    assert "maintenance" in view.status.why_none


def test_services_are_found_by_name_and_by_address() -> None:
    six = Frontend("fd00::7", 80, TCP)
    node = Node(
        entry(internal=(NEAR,)),
        entry(six),
        entry(Frontend("10.96.0.7", 80, UDP), name="dns"),
        entry(Frontend("10.96.0.8", 80, TCP), namespace="default", name="plain"),
        entry(Frontend("192.0.2.1", 80, TCP), kind=FrontendKind.STANDALONE, namespace="", name="edge"),
    )
    for reference, found in (
        ("shop/web", ["10.96.0.7", "fd00::7"]),
        ("10.96.0.7:80", ["10.96.0.7", "10.96.0.7"]),
        ("10.96.0.7:80/udp", ["10.96.0.7"]),
        ("[fd00::7]:80/TCP", ["fd00::7"]),
        ("plain", ["10.96.0.8"]),
        ("edge", ["192.0.2.1"]),
    ):
        assert [view.spec.frontend_address.ip for view in node.get(reference).services] == found
    for reference in ("shop/none", "10.96.0.7:81", "web", "", ":", "/"):
        with pytest.raises(ApiError, match="cilia service list") as refused:
            node.get(reference)
        assert refused.value.status == 404


def test_problems_are_told_with_and_without_frontends() -> None:
    node = Node(entry(internal=(NEAR,))).wrong("Service", "shop", "web", "spec.externalIPs[0]: No.")
    node.wrong("EndpointSlice", "shop", "orphan", "It has no Service.").wrong("Service", "shop", "fine")
    found = node.list()
    assert [one.name for one in found.problems] == ["orphan", "web"]
    assert found.services[0].status.problems == ("spec.externalIPs[0]: No.",)
    assert [one.name for one in node.get("shop/web").problems] == ["web"]
    orphan = node.get("shop/orphan")
    assert (orphan.services, orphan.problems[0].kind) == ((), "EndpointSlice")


def of_slices(*endpoints: SliceEndpoint, name: str = "http", selector: bool = True) -> Inputs:
    inputs = Inputs()
    inputs.services.put(ServiceRow(namespace="shop", name="web", selector={"a": "b"} if selector else {}))
    inputs.endpoint_slices.put(
        EndpointSliceRow(
            namespace="shop",
            name="web-1",
            service="web",
            endpoints=endpoints,
            ports=(SlicePort(name, 8080, TCP),),
        )
    )
    return inputs


READY, UNREADY = SliceEndpoint(("10.0.1.3",), node="n2"), SliceEndpoint(("10.0.1.4",), ready=False)


def test_ports_of_slices_without_ready_endpoints_do_not_count() -> None:
    """The controller of slices keeps an empty one with the Service's port where its selector finds nobody."""
    inputs = of_slices(READY, name="other")
    empty = msgspec.structs.replace(
        next(iter(inputs.endpoint_slices)), name="web-2", endpoints=(), ports=(SlicePort("http", 8080, TCP),)
    )
    inputs.endpoint_slices.put(empty)
    assert why_none(entry(), inputs) == "no endpoint has a port named 'http'"
    inputs.endpoint_slices.put(msgspec.structs.replace(empty, name="web-1", endpoints=(READY,), ports=()))
    assert "targetPort may be a name that no container has" in why_none(entry(), inputs)


@pytest.mark.parametrize(
    ("row", "inputs", "words"),
    [
        (entry(), Inputs(), "no EndpointSlice names the Service; it has no selector"),
        (entry(), of_slices(), "no pod has the labels"),
        (entry(), of_slices(selector=False), "list no endpoints"),
        (entry(), of_slices(UNREADY, UNREADY), "none of its 2 endpoints is ready"),
        (entry(), of_slices(READY, name="other"), "no endpoint has a port named 'http'"),
        (entry(), of_slices(READY), "none of its 1 ready endpoints is on this node (internalTrafficPolicy"),
        (entry(internal=(FAR,), outside=True), of_slices(READY), "outside clients: none of its 1 ready"),
        (entry(internal=(IDLE,)), Inputs(), "maintenance"),
        (entry(draining=(LEAVING,)), Inputs(), "terminating"),
        (entry(kind=FrontendKind.LOCAL_REDIRECT), Inputs(), "no pod on this node"),
        (entry(kind=FrontendKind.HOST_PORT), Inputs(), "the pod is not ready"),
        (entry(kind=FrontendKind.STANDALONE), Inputs(), "it has no backends"),
        (entry(Frontend("fd00::7", 80, TCP)), of_slices(READY), "list no endpoints"),
        (entry(internal=(FAR,)), Inputs(), ""),
    ],
)
def test_why_nobody_serves(row: ServiceEntry, inputs: Inputs, words: str) -> None:
    told = why_none(row, inputs)
    assert words in told
    assert bool(told) == bool(words)
