"""A real denial is counted where Prometheus asks, and told where the pod's owner looks."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cilia.lab import kernel
from tests.support.policy_lab import PolicyLab, pod, policy, policy_lab
from tests.support.policy_truth import Peer
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

CLIENT = Peer("default", "client", {"app": "client"})
SERVER = Peer("default", "server", {"app": "server"})
PORT = 8080
FLAGS = (
    "--hubble-metrics=drop:sourceContext=pod;destinationContext=pod flow tcp policy port-distribution",
    "--hubble-drop-events",
    "--hubble-drop-events-interval=1s",
    "--hubble-metrics-server=127.0.0.1:9965",
)
DENIED = policy(
    "CiliumNetworkPolicy",
    "only-9090",
    {
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"toPorts": [{"ports": [{"port": "9090", "protocol": "TCP"}]}]}],
    },
    "default",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    with policy_lab(f"thc{os.getpid() % 1000000}", nodes=1, flags=FLAGS) as made:
        made.start_pods([pod(one, "node-1", [("TCP", PORT)]) for one in (CLIENT, SERVER)])
        yield made


def knock(lab: PolicyLab) -> bool:
    """Whether the client reaches the server."""
    address = next(ip for ip in lab.record(SERVER).ips if "." in ip)
    with kernel.inside_network(lab.record(CLIENT).netns):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with client:
        client.settimeout(0.3)
        try:
            client.connect((address, PORT))
        except OSError:
            return False
        return True


def scrape(lab: PolicyLab) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """Numbers by metric and labels."""
    with kernel.inside_network(lab.plan.nodes[0].netns):
        door = socket.create_connection(("127.0.0.1", 9965), 5)
    with door:
        door.sendall(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n")
        answer = b"".join(iter(lambda: door.recv(65536), b""))
    text = answer.partition(b"\r\n\r\n")[2].decode()
    return {
        family.name: {frozenset(sample.labels.items()): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(text)
    }


def test_a_denial_is_counted_and_told(lab: PolicyLab) -> None:
    lab.replace_all(())
    until(lambda: knock(lab), "the server to answer")
    lab.replace_all([DENIED])
    assert not knock(lab)
    who = {
        "reason": "POLICY_DENIED",
        "protocol": "TCP",
        "source": "default/client",
        "destination": "default/server",
    }
    until(lambda: frozenset(who.items()) in scrape(lab)["hubble_drop"], "the drop to be counted")
    numbers = scrape(lab)
    dropped = {"direction": "ingress", "match": "none", "action": "dropped"}
    assert numbers["hubble_policy_verdicts"][frozenset(dropped.items())] >= 1
    asked = frozenset({"protocol": "TCP", "port": str(PORT)}.items())
    assert numbers["hubble_port_distribution"][asked] >= 1
    assert numbers["hubble_tcp_flags"][frozenset({"flag": "SYN", "family": "IPv4"}.items())] >= 1
    assert sum(numbers["hubble_metrics_missed_flows"].values()) == 0

    def told() -> list[str]:
        listed = lab.api.get("/api/v1/namespaces/default/events").json["items"]
        return [one["message"] for one in listed if one["reason"] == "PacketDrop"]

    until(lambda: bool(told()), "the drop to be told")
    (message,) = {one.split(" (10.")[0] + one[one.index(") TCP") :] for one in told()}
    assert message == (
        "Incoming packet dropped (policy_denied) from default/client) TCP/8080: no rule of "
        "CiliumNetworkPolicy default/only-9090 allows it"
    )
