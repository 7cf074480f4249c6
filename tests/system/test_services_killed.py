"""The agent is killed at any moment while endpoints change by the hundred under traffic: connections go on,
and whatever it was doing, the next one finds nothing wrong and leaves nothing wrong.

node-1: client, raw, one, two, three      outside: 203.0.113.2
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cilia.lab import control
from tests.support.api_client import Client
from tests.support.services_lab import (
    PATHS,
    Document,
    ServicesLab,
    client,
    manifest,
    question,
    server,
    service,
    services_lab,
)
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

KILLS = 20 if os.environ.get("CILIA_LONG") == "1" else 3
SERVICES = 80
WRITERS = 2
RATE = 60
"""New connections a second from each place."""
PLACES = ("client", "packets:raw", "outside")
SLICES = PATHS["EndpointSlice"][1].format("default")


@pytest.fixture(scope="module")
def lab() -> Iterator[ServicesLab]:
    with services_lab("tsk", 1) as made:
        names = ("one", "two", "three")
        made.start_pods(
            client("client", "node-1"),
            client("raw", "node-1"),
            *(server(name, number, "node-1") for number, name in enumerate(names)),
        )
        made.apply(service("web", None, type="NodePort"))
        made.apply(*slices_of_web(made, ready=True))
        plain = {"ports": [{"port": 80}]}
        for number in range(SERVICES):
            made.apply(manifest("Service", f"c-{number}", plain), changing(number, random.Random(number)))
        until(lambda: len(made.agents["node-1"].services().services) > SERVICES, "all services")
        yield made


def endpoint_slice(
    name: str, owner: str, family: str, endpoints: list[Document], ports: list[Document]
) -> Document:
    labels = {"kubernetes.io/service-name": owner}
    return manifest(
        "EndpointSlice", name, labels=labels, addressType=family, endpoints=endpoints, ports=ports
    )


def slices_of_web(lab: ServicesLab, *, ready: bool) -> list[Document]:
    """All three live; the last may be said not to be ready, and then serves those who have it."""
    ports = [{"name": one, "protocol": one.upper(), "port": 8080} for one in ("tcp", "udp")]
    found = []
    for place, family in enumerate(("IPv4", "IPv6")):
        endpoints = [
            {
                "addresses": [lab.addresses(name)[place]],
                "nodeName": "node-1",
                "conditions": {"ready": is_ready},
            }
            for name, is_ready in (("one", True), ("two", True), ("three", ready))
        ]
        found.append(endpoint_slice(f"web-{family.lower()}", "web", family, endpoints, ports))
    return found


def changing(number: int, rng: random.Random) -> Document:
    """Endpoints that nobody asks for: some come, some go, some drain."""
    endpoints = [
        {
            "addresses": [f"10.77.{number}.{host}"],
            "conditions": {"ready": rng.random() < 0.7, "serving": True, "terminating": rng.random() < 0.3},
        }
        for host in rng.sample(range(1, 40), rng.randrange(1, 9))
    ]
    return endpoint_slice(f"c-{number}-x", f"c-{number}", "IPv4", endpoints, [{"name": "", "port": 8080}])


@contextmanager
def changes(lab: ServicesLab) -> Iterator[None]:
    """Slices that change as fast as the API server takes them."""
    stop = threading.Event()
    failures: list[str] = []

    def write(seed: int) -> None:
        rng, api = random.Random(seed), Client(Path(lab.plan.kubeconfig))
        while not stop.is_set():
            some = [changing(rng.randrange(SERVICES), rng) for _ in range(15)]
            for document in (*some, *slices_of_web(lab, ready=rng.random() < 0.5)):
                answer = api.merge(f"{SLICES}/{document['metadata']['name']}", document)
                if answer.code >= 300:
                    failures.append(str(answer.body))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(WRITERS)]
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:3]


@contextmanager
def traffic(lab: ServicesLab) -> Iterator[dict[str, Document]]:
    """New connections from each place all the while; what came of them, when the block ends."""
    seen: dict[str, Document] = {}
    targets = {
        "client": (lab.cluster_ips("web")[0], 80),
        "packets:raw": (lab.cluster_ips("web")[1], 80),
        "outside": (lab.plan.nodes[0].ipv4, lab.node_ports("web")["tcp"]),
    }
    for where in PLACES:
        asked = question("tcp", *targets[where])
        lab.at(where).request({"start": "load", "rate": RATE, **asked})
    try:
        yield seen
    finally:
        for where in PLACES:
            seen[where] = lab.at(where).request({"stop": "load"})


@pytest.mark.timeout(120 + 60 * KILLS)
def test_killed_at_any_moment(lab: ServicesLab) -> None:
    rng, agent = random.Random(4), lab.agents["node-1"]
    with traffic(lab) as seen:
        for turn in range(KILLS):
            with changes(lab):
                time.sleep(rng.uniform(0.05, 0.6))
                control.ask(lab.plan.control_socket, {"kill_agent": "node-1"})
                time.sleep(rng.uniform(0.0, 0.5))
                control.ask(lab.plan.control_socket, {"start_agent": "node-1"})
                if turn % 2:
                    # Also while it takes over: killed once more before it is ready.
                    time.sleep(rng.uniform(0.3, 1.2))
                    control.ask(lab.plan.control_socket, {"kill_agent": "node-1"})
                    control.ask(lab.plan.control_socket, {"start_agent": "node-1"})
                until(lambda: agent.status().ready, "the agent to be ready")
                amid = agent.verify()
            assert amid.count == 0, (turn, "while endpoints change", amid.differences[:5])
            report = agent.verify()
            assert report.count == 0, (turn, report.differences[:5])
    for where in PLACES:
        assert seen[where]["failed"] == 0, (where, seen[where])
        assert {"one", "two"} <= set(seen[where]["counts"]), (where, seen[where])
    assert "damaged" not in (Path(lab.plan.log_dir) / "agent-node-1.log").read_text(errors="replace")
