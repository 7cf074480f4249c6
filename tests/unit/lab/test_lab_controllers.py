"""The lab's decisions: where a pod goes, what runs in it, which pods stand behind a service."""

from __future__ import annotations

import msgspec

from cilia.kit.clock import ManualClock
from cilia.lab import objects, plan, scheduler, slices
from cilia.lab.objects import LabContainer, LabPod, LabPodSpec
from cilia.model.resources.base import Condition, ObjectMeta
from cilia.model.resources.core import ContainerPort, Node, NodeSpec, NodeStatus, PodIP, PodStatus


def node(name: str, *, ready: bool = True, cordoned: bool = False, **labels: str) -> Node:
    condition = Condition(type="Ready", status="True" if ready else "False")
    return Node(
        metadata=ObjectMeta(name=name, labels={"kubernetes.io/hostname": name, **labels}),
        spec=NodeSpec(unschedulable=cordoned),
        status=NodeStatus(conditions=(condition,)),
    )


def pod(name: str, on: str = "", selector: dict[str, str] | None = None, phase: str = "") -> LabPod:
    return LabPod(
        metadata=ObjectMeta(namespace="shop", name=name, uid=f"uid-{name}", labels={"app": "web"}),
        spec=LabPodSpec(node_name=on, node_selector=selector),
        status=PodStatus(phase=phase),
    )


def choose(wanted: LabPod, nodes: list[Node], others: list[LabPod]) -> str | None:
    return scheduler.choose(
        wanted, {item.metadata.name: item for item in nodes}, {item.key: item for item in others}
    )


def test_pods_spread_over_the_nodes() -> None:
    nodes, placed = [node("node-1"), node("node-2")], list[LabPod]()
    for number in range(4):
        name = choose(pod(f"p{number}"), nodes, placed)
        assert name is not None
        placed.append(pod(f"p{number}", on=name))
    assert [item.spec.node_name for item in placed] == ["node-1", "node-2", "node-1", "node-2"]


def test_finished_pods_take_no_place() -> None:
    nodes = [node("node-1"), node("node-2")]
    assert choose(pod("new"), nodes, [pod("old", on="node-1", phase="Succeeded")]) == "node-1"


def test_selectors_and_readiness_are_honoured() -> None:
    nodes = [node("node-1", ready=False), node("node-2", disk="ssd"), node("node-3", cordoned=True)]
    assert choose(pod("any"), nodes, []) == "node-2"
    assert choose(pod("picky", selector={"disk": "ssd"}), nodes, []) == "node-2"
    assert choose(pod("stuck", selector={"disk": "tape"}), nodes, []) is None


def test_a_pod_without_command_serves_its_ports() -> None:
    ports = (ContainerPort(container_port=9000), ContainerPort(container_port=53, protocol="UDP"))
    spec = LabPodSpec(containers=(LabContainer(image="cilia.io/lab/server:1", ports=ports),))
    assert objects.workload(LabPod(spec=spec)).serve == (("tcp", 9000), ("udp", 53))


def test_a_pod_without_ports_serves_8080() -> None:
    spec = LabPodSpec(containers=(LabContainer(image="nginx"),))
    assert objects.workload(LabPod(spec=spec)).serve == (("tcp", 8080), ("udp", 8080))


def test_clients_and_commands_serve_nothing() -> None:
    client = LabPodSpec(containers=(LabContainer(image="cilia.io/lab/client"),))
    assert objects.workload(LabPod(spec=client)).serve == ()
    command = LabPodSpec(containers=(LabContainer(command=("sleep",), args=("9",)),))
    assert objects.workload(LabPod(spec=command)).command == ("sleep", "9")
    assert objects.workload(LabPod(spec=command)).serve == ()


def service(port: objects.ServicePort) -> objects.Service:
    meta = ObjectMeta(namespace="shop", name="web", uid="u")
    return objects.Service(metadata=meta, spec=objects.ServiceSpec(selector={"app": "web"}, ports=(port,)))


def running(name: str, *ips: str, port: int = 8080, ready: bool = True, ending: bool = False) -> LabPod:
    ports = (ContainerPort(container_port=port, name="http"),)
    condition = Condition(type="Ready", status="True" if ready else "False")
    return LabPod(
        metadata=ObjectMeta(
            namespace="shop",
            name=name,
            labels={"app": "web"},
            deletion_timestamp="2026-01-01T00:00:00Z" if ending else None,
        ),
        spec=LabPodSpec(node_name="node-1", containers=(LabContainer(ports=ports),)),
        status=PodStatus(phase="Running", pod_ips=tuple(PodIP(ip=ip) for ip in ips), conditions=(condition,)),
    )


def test_a_slice_holds_the_running_pods_of_its_family() -> None:
    wanted = service(objects.ServicePort(port=80, target_port="http"))
    pods = [running("b", "10.0.0.2", "fd00::2"), running("a", "10.0.0.1"), pod("c")]
    chosen = slices.selected(wanted, pods)
    (four,) = slices.slice_objects(wanted, "IPv4", chosen, {"node-1": "zone-1"})
    assert [item["addresses"] for item in four["endpoints"]] == [["10.0.0.1"], ["10.0.0.2"]]
    assert {(item["nodeName"], item["zone"]) for item in four["endpoints"]} == {("node-1", "zone-1")}
    assert four["ports"] == [{"name": "", "protocol": "TCP", "port": 8080}]
    (six,) = slices.slice_objects(wanted, "IPv6", chosen, {})
    assert [item["addresses"] for item in six["endpoints"]] == [["fd00::2"]]


def conditions(wanted: objects.Service, item: LabPod) -> tuple[bool, bool, bool]:
    (found,) = slices.slice_objects(wanted, "IPv4", [item], {})
    said = found["endpoints"][0]["conditions"]
    return said["ready"], said["serving"], said["terminating"]


def test_the_conditions_of_an_endpoint() -> None:
    wanted = service(objects.ServicePort(port=80))
    assert conditions(wanted, running("a", "10.0.0.1")) == (True, True, False)
    assert conditions(wanted, running("a", "10.0.0.1", ready=False)) == (False, False, False)
    assert conditions(wanted, running("a", "10.0.0.1", ending=True)) == (False, True, True)
    spec = msgspec.structs.replace(wanted.spec, publish_not_ready_addresses=True)
    early = msgspec.structs.replace(wanted, spec=spec)
    assert conditions(early, running("a", "10.0.0.1", ready=False)) == (True, False, False)


def test_hints_follow_the_distribution_that_is_asked_for() -> None:
    wanted = service(objects.ServicePort(port=80))
    for distribution, hints in (
        (None, None),
        ("PreferClose", {"forZones": [{"name": "z"}]}),
        ("PreferSameNode", {"forZones": [{"name": "z"}], "forNodes": [{"name": "node-1"}]}),
    ):
        spec = msgspec.structs.replace(wanted.spec, traffic_distribution=distribution)
        asked = msgspec.structs.replace(wanted, spec=spec)
        (found,) = slices.slice_objects(asked, "IPv4", [running("a", "10.0.0.1")], {"node-1": "z"})
        assert found["endpoints"][0].get("hints") == hints


def test_pods_that_number_a_port_differently_have_slices_of_their_own() -> None:
    wanted = service(objects.ServicePort(port=80, target_port="http"))
    pods = [running("a", "10.0.0.1"), running("b", "10.0.0.2", port=9090), running("c", "10.0.0.3")]
    found = slices.slice_objects(wanted, "IPv4", pods, {})
    assert [(item["metadata"]["name"], item["ports"][0]["port"]) for item in found] == [
        ("web-ipv4", 8080),
        ("web-ipv4-2", 9090),
    ]
    assert [len(item["endpoints"]) for item in found] == [2, 1]


def test_a_slice_has_a_limit() -> None:
    wanted = service(objects.ServicePort(port=80))
    pods = [running(f"p{number}", f"10.0.{number // 250}.{number % 250 + 1}") for number in range(250)]
    found = slices.slice_objects(wanted, "IPv4", pods, {})
    assert [len(item["endpoints"]) for item in found] == [100, 100, 50]
    assert len(slices.slice_objects(wanted, "IPv4", [], {})) == 1


def test_a_pod_says_how_it_ends_and_how_it_is_asked() -> None:
    spec = {
        "containers": [
            {
                "name": "c",
                "lifecycle": {"preStop": {"sleep": {"seconds": 4}}},
                "readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1},
                "ports": [{"name": "http", "containerPort": 81}],
            }
        ]
    }
    found = msgspec.convert({"metadata": {"name": "a"}, "spec": spec}, LabPod)
    assert (found.pause, found.port("http"), found.port(9), found.port("none")) == (4, 81, 9, 0)
    assert found.probe is not None
    assert found.probe.period_seconds == 1


def test_a_service_without_selector_is_left_alone() -> None:
    bare = objects.Service(metadata=ObjectMeta(namespace="shop", name="web"))
    assert slices.selected(bare, [running("a", "10.0.0.1")]) == []


def test_nodes_turn_ready_with_their_agent() -> None:
    made = plan.make_plan("trial", 1).nodes[0]
    clock = ManualClock()
    for ready, status in ((False, "False"), (True, "True")):
        conditions = objects.node_object(made, clock, ready=ready)["status"]["conditions"]
        assert [(item["type"], item["status"]) for item in conditions] == [("Ready", status)]
