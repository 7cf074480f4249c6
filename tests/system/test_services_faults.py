"""Faults under services with traffic: a backend, a node, the agent, the API server; and wrong objects.

node-1: client, raw, here      node-2: two      node-3: three      outside: 203.0.113.2
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from cilia.lab import control, records
from tests.support.services_lab import (
    PATHS,
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
LONG = os.environ.get("CILIA_LONG") == "1"

NAME = "web"
PLACES = ("client", "packets:raw", "outside")
RATE = 100
"""New connections a second from each place."""
DRAIN = 5
"""Seconds that a pod serves on when it is told to end: longer than a busy node takes to hear of it."""
BACKENDS = {"here": "node-1", "two": "node-2", "three": "node-3"}


@pytest.fixture(scope="module")
def lab() -> Iterator[ServicesLab]:
    with services_lab("tsf", 3) as made:
        made.start_pods(
            client("client", "node-1"), client("raw", "node-1"), *(backend(name) for name in BACKENDS)
        )
        made.apply(service(NAME, {"app": "web"}, type="NodePort"))
        until(lambda: serves(made, *BACKENDS), "the service")
        yield made


def backend(name: str) -> Document:
    return server(name, 1 + list(BACKENDS).index(name), BACKENDS[name])


def kernel_backends(lab: ServicesLab, node: str, name: str = NAME) -> set[str]:
    """Addresses that new flows of a node may be given, as its kernel has them."""
    found = set()
    for view in lab.agents[node].service(f"default/{name}").services:
        if view.status.kernel is not None:
            found |= {text.rpartition(":")[0].strip("[]") for text in view.status.kernel.internal}
    return found


def is_known(lab: ServicesLab, node: str, name: str) -> bool:
    """Whether a node has heard of a Service."""
    return any(view.spec.flags.name == name for view in lab.agents[node].services().services)


def serves(lab: ServicesLab, *names: str, nodes: Sequence[str] = ()) -> bool:
    """Whether nodes (all, if none are named) give new flows to just these pods."""
    wanted = {address for name in names for address in lab.addresses(name)}
    return all(kernel_backends(lab, node) == wanted for node in nodes or lab.agents)


def frontend(lab: ServicesLab, where: str, protocol: str = "tcp") -> tuple[str, int]:
    """What to ask for from a place."""
    if where == "outside":
        return lab.plan.nodes[0].ipv4, lab.node_ports(NAME)[protocol]
    return lab.cluster_ips(NAME)[0], 80


@contextmanager
def traffic(lab: ServicesLab, places: Sequence[str] = PLACES) -> Iterator[dict[str, Any]]:
    """New connections from each place all the while; what came of them stands in the yielded dictionary
    when the block ends."""
    seen: dict[str, Any] = {}
    for where in places:
        asked = question("tcp", *frontend(lab, where))
        lab.at(where).request({"start": "load", "rate": RATE, **asked})
    try:
        yield seen
    finally:
        for where in places:
            seen[where] = lab.at(where).request({"stop": "load"})


def progress(lab: ServicesLab, where: str) -> tuple[int, int]:
    """Connections that were answered, and that failed, so far."""
    found = lab.at(where).request({"progress": "load"})
    return sum(found["counts"].values()), found["failed"]


def has_answers(lab: ServicesLab, where: str, least: int) -> bool:
    return progress(lab, where)[0] >= least


@contextmanager
def talks(lab: ServicesLab, protocol: str = "tcp", count: int = 6) -> Iterator[dict[tuple[str, str], str]]:
    """Connections, or sockets, that stay open from every place; who answers them at first."""
    partners: dict[tuple[str, str], str] = {}
    try:
        for where in PLACES:
            for number in range(count):
                made = question(protocol, *frontend(lab, where, protocol.partition("-")[0]))
                found = lab.at(where).request({"open": f"talk-{number}", **made})
                partners[where, f"talk-{number}"] = found["who"]
        yield partners
    finally:
        for where, name in partners:
            lab.at(where).request({"close": name})


def say(lab: ServicesLab, where: str, name: str, timeout: float = 20.0) -> Document:
    return lab.at(where).request({"say": name, "timeout": timeout})


def kill(lab: ServicesLab, pod: str) -> None:
    """End a pod's processes without a word."""
    os.kill(records.find_pod(lab.plan, "default", pod).pid, signal.SIGKILL)


def wait_gone(lab: ServicesLab, pod: str) -> None:
    """Delete a pod's object, and wait until it is gone."""
    lab.delete("Pod", pod, gracePeriodSeconds=0)
    lab.api.until_gone(f"{PATHS['Pod'][1].format('default')}/{pod}")


def revive(lab: ServicesLab, pod: str) -> None:
    """The pod anew, and served again."""
    lab.start_pods(backend(pod))
    until(lambda: serves(lab, *BACKENDS) and all_answer(lab), f"{pod} to serve again")


def all_answer(lab: ServicesLab) -> bool:
    """Whether no connection is refused: a pod is ready a moment before its process listens."""
    asked = {where: [question("tcp", *frontend(lab, where)) for _ in range(24)] for where in PLACES}
    return all("who" in found for where in PLACES for found in lab.at(where).ask_all(asked[where]))


# -- a backend, a node ---------------------------------------------------------------------------------------


def test_a_backend_is_killed_under_traffic(lab: ServicesLab) -> None:
    """What was meant for it in between is lost; all else goes on, and everybody finds another one."""
    with traffic(lab), talks(lab) as partners, talks_of_datagrams(lab) as askers:
        kill(lab, "two")
        wait_gone(lab, "two")
        until(lambda: serves(lab, "here", "three"), "the dead backend to go")
        for where in PLACES:
            asked = [question("tcp", *frontend(lab, where)) for _ in range(24)]
            assert {found.get("who") for found in lab.at(where).ask_all(asked)} == {"here", "three"}
        for (where, name), who in partners.items():
            found = say(lab, where, name, 20.0 if who != "two" else 0.3)
            assert found.get("who") == who if who != "two" else "error" in found, (where, name, who, found)
        for where, name in askers:
            found = say(lab, where, name)
            assert found.get("who") in ("here", "three"), (where, name, found)
    revive(lab, "two")


@contextmanager
def talks_of_datagrams(lab: ServicesLab) -> Iterator[list[tuple[str, str]]]:
    """UDP sockets with a port of their own, enough that each backend has some."""
    made = []
    try:
        for number in range(18):
            where, name = PLACES[number % 3], f"datagrams-{number}"
            asked = question("udp-each", *frontend(lab, where, "udp"), source_port=20_000 + number)
            found = lab.at(where).request({"open": name, **asked})
            assert "who" in found, (where, found)
            made.append((where, name))
        yield made
    finally:
        for where, name in made:
            lab.at(where).request({"close": name})


def readiness(lab: ServicesLab, pod: str, ready: bool) -> None:
    """Say of a pod what the node controller says when its node is lost or back."""
    path = f"{PATHS['Pod'][1].format('default')}/{pod}"
    conditions = lab.api.get(path).json["status"]["conditions"]
    for condition in conditions:
        if condition["type"] == "Ready":
            condition["status"] = "True" if ready else "False"
    answer = lab.api.merge(f"{path}/status", {"status": {"conditions": conditions}})
    assert answer.code == 200, answer.body


def test_a_node_is_lost_under_traffic(lab: ServicesLab) -> None:
    with traffic(lab) as seen, talks(lab) as partners:
        ip(lab.plan.fabric, "link set node-3 down")
        try:
            readiness(lab, "three", False)
            until(lambda: serves(lab, "here", "two", nodes=("node-1", "node-2")), "the lost node to go")
            before = {where: progress(lab, where)[0] for where in PLACES}
            for where in PLACES:
                until(partial(has_answers, lab, where, before[where] + RATE), f"more answers to {where}")
            for (where, name), who in partners.items():
                if who != "three":
                    assert say(lab, where, name).get("who") == who, (where, name)
        finally:
            ip(lab.plan.fabric, "link set node-3 up")
            readiness(lab, "three", True)
        for (where, name), who in partners.items():
            if who == "three":
                assert say(lab, where, name, 60.0).get("who") == who, (where, name)
        until(lambda: serves(lab, *BACKENDS), "the node to be back")
    assert all(seen[where]["counts"].get("three") for where in PLACES)


# -- the agent, the API server -------------------------------------------------------------------------------


def test_nothing_is_lost_while_the_agent_is_killed_and_comes_back(lab: ServicesLab) -> None:
    with traffic(lab) as seen, talks(lab) as partners:
        for _ in range(5 if LONG else 1):
            control.ask(lab.plan.control_socket, {"kill_agent": "node-1"})
            for where in PLACES:
                until(partial(has_answers, lab, where, progress(lab, where)[0] + RATE), f"answers to {where}")
            control.ask(lab.plan.control_socket, {"start_agent": "node-1"})
            until(lambda: lab.agents["node-1"].status().ready, "the agent to be ready")
        for (where, name), who in partners.items():
            assert say(lab, where, name).get("who") == who, (where, name)
    for where in PLACES:
        assert seen[where]["failed"] == 0, (where, seen[where])
        assert set(seen[where]["counts"]) == set(BACKENDS)
    until(lambda: serves(lab, *BACKENDS), "the agent to tell what is served")
    assert lab.agents["node-1"].verify().count == 0


def test_what_changed_while_the_agent_was_dead_is_caught_up(lab: ServicesLab) -> None:
    control.ask(lab.plan.control_socket, {"kill_agent": "node-1"})
    gone = lab.addresses("two")
    lab.delete("Pod", "two")
    lab.api.until_gone(f"{PATHS['Pod'][1].format('default')}/two")
    lab.apply(service("later", {"pod": "three"}))
    control.ask(lab.plan.control_socket, {"start_agent": "node-1"})
    until(lambda: serves(lab, "here", "three"), "the stale backend to go")
    assert not kernel_backends(lab, "node-1") & set(gone)
    until(lambda: lab.at("client").ask("tcp", lab.cluster_ips("later")[0], 80).get("who") == "three", "later")
    assert lab.agents["node-1"].verify().count == 0
    lab.delete("Service", "later")
    revive(lab, "two")


def cut_off(lab: ServicesLab) -> None:
    """Take the API server away from node-1: new connections go nowhere, those it has break."""
    node = lab.plan.nodes[0]
    ip(node.netns, f"route add blackhole {lab.plan.api_address}/32")
    command = ["nsenter", f"--net={node.netns}", "--", "ss", "-K", "dst", lab.plan.api_address]
    subprocess.run(command, check=True, capture_output=True)


def test_after_the_api_server_was_away_the_full_list_is_compared(lab: ServicesLab) -> None:
    """Pods go and come, a Service changes its selector and one vanishes, while a node hears nothing."""
    lab.apply(service("short", {"pod": "here"}))
    until(lambda: kernel_backends(lab, "node-1", "short"), "a Service that will go")
    with traffic(lab, ("client",)) as seen:
        cut_off(lab)
        try:
            lab.delete("Pod", "two")
            lab.api.until_gone(f"{PATHS['Pod'][1].format('default')}/two")
            lab.delete("Service", "short")
            until(lambda: serves(lab, "here", "three", nodes=("node-2",)), "another node to follow")
            assert not serves(lab, "here", "three", nodes=("node-1",))
        finally:
            ip(lab.plan.nodes[0].netns, f"route del blackhole {lab.plan.api_address}/32")
        until(lambda: serves(lab, "here", "three"), "the stale backend to go")
        until(lambda: not is_known(lab, "node-1", "short"), "the stale Service to go")
    assert seen["client"]["counts"]["here"] and seen["client"]["counts"]["three"]
    assert lab.agents["node-1"].verify().count == 0
    revive(lab, "two")


# -- rolling, and wrong objects ------------------------------------------------------------------------------


def rolled(name: str, generation: int) -> Document:
    """A pod of a deployment that says when it is ready and serves on for a while when it is told to end."""
    return server(
        f"{name}-{generation}",
        9,
        list(BACKENDS.values())[int(name.rpartition("-")[2]) % len(BACKENDS)],
        labels={"app": "rolled"},
        lifecycle={"preStop": {"sleep": {"seconds": DRAIN}}},
        readinessProbe={"tcpSocket": {"port": PORTS["tcp"]}, "periodSeconds": 1},
    )


def ready_names(lab: ServicesLab, name: str) -> set[str]:
    """Pods that a Service's slices list as ready."""
    items = lab.api.get(PATHS["EndpointSlice"][1].format("default")).json["items"]
    return {
        endpoint["targetRef"]["name"]
        for item in items
        if item["metadata"]["labels"].get("kubernetes.io/service-name") == name
        for endpoint in item["endpoints"] or ()
        if endpoint["conditions"]["ready"]
    }


def are_ready(lab: ServicesLab, pods: set[str]) -> bool:
    """Whether the slices list all of these."""
    return pods <= ready_names(lab, "rolled")


def have_all_answered(lab: ServicesLab, where: str, names: Sequence[str]) -> bool:
    """Whether each of the new pods has answered somebody there."""
    counts = lab.at(where).request({"progress": "rolling"})["counts"]
    return {f"{name}-2" for name in names} <= set(counts)


def test_rolling_a_deployment_fails_no_connection(lab: ServicesLab) -> None:
    """Each pod is replaced: the new one is ready before the old one is told to end."""
    size, rate = (10, 2000) if LONG else (4, 200)
    names = [f"rolled-{number}" for number in range(size)]
    lab.start_pods(*(rolled(name, 1) for name in names))
    lab.apply(service("rolled", {"app": "rolled"}))
    until(lambda: len(ready_names(lab, "rolled")) == size, "all pods to be ready")
    address = lab.cluster_ips("rolled")[0]
    until(lambda: lab.at("client").ask("tcp", address, 80).get("who"), "the service")
    load = question("tcp", address, 80)
    asking = ("client", "packets:raw") if not LONG else ("client", "node-2")
    for where in asking:
        lab.at(where).request({"start": "rolling", "rate": rate // len(asking), **load})
    stayed = {name: lab.at("client").request({"open": name, **load})["who"] for name in names}
    for at in range(0, size, 2):
        lab.apply(*(rolled(name, 2) for name in names[at : at + 2]))
        fresh = {f"{name}-2" for name in names[: at + 2]}
        until(partial(are_ready, lab, fresh), "the new pods to be ready")
        lab.delete("Pod", *(f"{name}-1" for name in names[at : at + 2]))
    old = f"{PATHS['Pod'][1].format('default')}/{names[-1]}-1"
    lab.api.until_gone(old)
    for where in asking:
        until(partial(have_all_answered, lab, where, names), "an answer of each new pod")
        found = lab.at(where).request({"stop": "rolling"})
        assert found["failed"] == 0, (where, found)
    for name in stayed:
        assert "error" in lab.at("client").request({"say": name}), "its pod has ended, and it with it"
        lab.at("client").request({"close": name})
    lab.delete("Service", "rolled")
    lab.delete("Pod", *(f"{name}-2" for name in names), gracePeriodSeconds=0)


def endpoint_slice(name: str, owner: str, addresses: Sequence[str], port: Document | None = None) -> Document:
    """A slice that somebody wrote by hand."""
    return manifest(
        "EndpointSlice",
        name,
        labels={"kubernetes.io/service-name": owner},
        addressType="IPv4",
        endpoints=[{"addresses": [text], "conditions": {"ready": True}} for text in addresses],
        ports=[{"name": "", "protocol": "TCP", "port": PORTS["tcp"], **(port or {})}],
    )


def problems(lab: ServicesLab, kind: str, name: str) -> str:
    """What a node says is wrong with an object."""
    found = lab.agents["node-1"].services().problems
    return " ".join(text for one in found if (one.kind, one.name) == (kind, name) for text in one.problems)


def test_wrong_objects_are_told_and_harm_nobody_else(lab: ServicesLab) -> None:
    single = {"ipFamilyPolicy": "SingleStack", "ports": [{"port": 80}]}
    lab.apply(service("itself", None, **single), service("nameless", None, **single))
    own = lab.get("Service", "itself")["spec"]["clusterIP"]
    lab.apply(
        endpoint_slice("orphan", "nobody-made-it", ["10.1.2.3"]),
        endpoint_slice("itself", "itself", [own], {"port": 80}),
        endpoint_slice("nameless", "nameless", ["10.1.2.3"], {"name": "http"}),
    )
    try:
        for kind, name, words in (
            ("EndpointSlice", "orphan", "nobody-made-it"),
            ("Service", "itself", own),
            ("Service", "nameless", "name"),
        ):
            until(partial(problems, lab, kind, name), f"{name} to be told")
            assert words in problems(lab, kind, name)
            until(partial(lab.events, name), f"an event of {name}")
        taken = lab.node_ports(NAME)["tcp"]
        clash = service("clash", None, type="NodePort", ports=[{"port": 80, "nodePort": taken}])
        answer = lab.api.post(PATHS["Service"][1].format("default"), clash)
        assert answer.code == 422 and f"default/{NAME}" in answer.json["message"]
        assert lab.at("client").ask("tcp", *frontend(lab, "client"))["who"] in BACKENDS
    finally:
        lab.delete("EndpointSlice", "orphan", "itself", "nameless")
        lab.delete("Service", "itself", "nameless")


def test_endpoints_by_the_thousand_in_one_service_leave_the_others_alone(lab: ServicesLab) -> None:
    """More than one frontend may have; the Service is told, and served with as many as may be."""
    slices, each = (100 if LONG else 17), 1000
    names = [f"huge-{number}" for number in range(slices)]
    lab.apply(service("huge", None, ipFamilyPolicy="SingleStack", ports=[{"port": 80}]))
    with traffic(lab, ("client",)) as seen:
        try:
            for number, name in enumerate(names):
                some = [
                    f"10.{100 + number // 50}.{number % 50 * 4 + n // 250}.{n % 250}" for n in range(each)
                ]
                lab.apply(endpoint_slice(name, "huge", some))
            until(lambda: f"{slices * each}" in problems(lab, "Service", "huge"), "the Service to be told")
            until(lambda: lab.events("huge"), "an event")
            assert lab.at("client").ask("tcp", *frontend(lab, "client"))["who"] in BACKENDS
        finally:
            lab.delete("Service", "huge")
            lab.delete("EndpointSlice", *names)
        until(lambda: not is_known(lab, "node-1", "huge"), "the Service to go")
    assert seen["client"]["failed"] == 0, seen
    assert serves(lab, *BACKENDS)
