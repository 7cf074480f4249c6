"""Hubble of real agents: the TCP port with certificates, peers, and what the agents say they did."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.api.types import Health
from cilia.hubble.client import Client
from cilia.hubble.rpc.messages import RpcError
from cilia.kit import certificates
from cilia.kit.tls import ClientTls, TlsFiles, server_name
from cilia.lab.kernel import inside_network
from cilia.lab.plan import NodePlan
from cilia.proto.flow import flow_pb2
from cilia.proto.flow.flow_pb2 import AgentEvent
from cilia.proto.observer.observer_pb2 import GetAgentEventsRequest, GetAgentEventsResponse
from cilia.proto.peer import peer_pb2
from tests.support.hubble_tls import Authority
from tests.support.policy_lab import PolicyLab, pod, policy, policy_lab
from tests.support.policy_truth import Peer
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

WEB = Peer(name="web", namespace="default", labels={"app": "web"})
CLUSTER_NAME = "*.default.hubble-grpc.cilium.io"


class Secured:
    """A lab whose agents serve TCP, and somebody with a certificate."""

    def __init__(self, lab: PolicyLab, authority: Authority, server: Path, client: TlsFiles) -> None:
        self.lab = lab
        self.authority = authority
        self.server = server
        self.client_files = client

    def connect(self, node: NodePlan, files: TlsFiles | None = None) -> Client:
        """From the other node, over the network."""
        other = next(one for one in self.lab.plan.nodes if one.name != node.name)
        context = ClientTls(files or self.client_files).context()
        with inside_network(other.netns):
            return Client(
                f"tls://{node.ipv4}:4244", tls=context, server_name=server_name(node.name, "default")
            )


def issue(authority: Authority, directory: Path, days: float) -> TlsFiles:
    """A certificate of all nodes, into files."""
    return authority.write(directory, authority.server(days=days, name=CLUSTER_NAME))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("certs")
    authority = Authority()
    files = issue(authority, directory / "server", 30)
    client = authority.write(directory / "client", authority.client())
    flags = (
        f"hubble-tls-cert-file={files.certificate}",
        f"hubble-tls-key-file={files.key}",
        f"hubble-tls-client-ca-files={files.bundles[0]}",
    )
    with policy_lab(f"hts{os.getpid() % 1000000}", flags=flags) as lab:
        yield Secured(lab, authority, directory / "server", client)


def test_nodes_serve_each_other_with_certificates_and_nobody_without(secured: Secured) -> None:
    for node in secured.lab.plan.nodes:
        with secured.connect(node) as client:
            (found,) = client.get_nodes().nodes
            assert found.name == f"default/{node.name}"
            assert found.address == f"{node.ipv4}:4244"
            assert found.tls.server_name == server_name(node.name, "default")
    with (
        pytest.raises(RpcError),
        secured.connect(node, TlsFiles(None, None, secured.client_files.bundles)) as nobody,
    ):
        nobody.server_status()


def test_status_tells_how_long_the_certificate_holds(secured: Secured) -> None:
    agent = secured.lab.agents[0]
    hubble = agent.status().hubble
    assert hubble.state is Health.OK
    assert CLUSTER_NAME in hubble.msg and "days left" in hubble.msg


def test_each_node_tells_of_all(secured: Secured) -> None:
    wanted = {
        f"default/{node.name}": (f"{node.ipv4}:4244", server_name(node.name, "default"))
        for node in secured.lab.plan.nodes
    }
    with Client(secured.lab.plan.nodes[0].hubble_socket) as client:
        told: dict[str, tuple[str, str]] = {}
        for change in client.peers():
            assert change.type in (peer_pb2.PEER_ADDED, peer_pb2.PEER_UPDATED)
            told[change.name] = (change.address, change.tls.server_name)
            if told == wanted:
                break


def agent_events(node: NodePlan) -> list[AgentEvent]:
    with Client(node.hubble_socket) as client:
        request = GetAgentEventsRequest().SerializeToString()
        return [
            GetAgentEventsResponse.FromString(data).agent_event
            for data in client.stream("/observer.Observer/GetAgentEvents", request)
        ]


def test_agents_say_what_they_did(secured: Secured) -> None:
    one, two = secured.lab.plan.nodes
    assert agent_events(one)[0].type == flow_pb2.AGENT_STARTED
    secured.lab.start_pods([pod(WEB, one.name, [("TCP", 8080)])])
    spec = {"endpointSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"fromEntities": ["world"]}]}
    document = policy("CiliumNetworkPolicy", "web-in", spec, "default")
    secured.lab.apply(document)
    secured.lab.settle()

    def kinds() -> list[int]:
        return [event.type for event in agent_events(one)]

    until(lambda: kinds().count(flow_pb2.ENDPOINT_REGENERATE_SUCCESS) >= 2, "regenerations")
    found = agent_events(one)
    (created,) = [event for event in found if event.type == flow_pb2.ENDPOINT_CREATED]
    assert (created.endpoint_update.namespace, created.endpoint_update.pod_name) == ("default", "web")
    assert not [event for event in found if event.type == flow_pb2.ENDPOINT_REGENERATE_FAILURE]
    (updated,) = [event for event in found if event.type == flow_pb2.POLICY_UPDATED]
    assert "k8s:io.cilium.k8s.policy.name=web-in" in updated.policy_update.labels
    assert (updated.policy_update.rule_count, updated.policy_update.revision > 0) == (1, True)
    until(
        lambda: [
            event
            for event in agent_events(two)
            if event.ipcache_update.pod_name == "web" and event.ipcache_update.host_ip == one.ipv4
        ],
        "the pod's address on the other node",
    )
    secured.lab.delete(document)
    until(lambda: flow_pb2.POLICY_DELETED in kinds(), "the policy's end")


def shown(secured: Secured, node: NodePlan) -> float:
    """Days that the certificate holds which a node shows."""
    with secured.connect(node) as client:
        connection = client._socket
        assert isinstance(connection, ssl.SSLSocket)
        pem = ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")
    (facts,) = certificates.read(pem.encode())
    return (facts.until - facts.since) / 86400


def test_certificates_are_replaced_without_a_restart(secured: Secured) -> None:
    node = secured.lab.plan.nodes[0]
    assert 29 < shown(secured, node) < 31
    with secured.connect(node) as before:
        issue(secured.authority, secured.server, 60)
        until(lambda: 59 < shown(secured, node) < 61, "the new certificate")
        assert before.server_status().max_flows
    (secured.server / "tls.key").write_text("broken")

    def troubled() -> bool:
        """The server looks at its files when somebody connects."""
        with secured.connect(node) as after:
            assert after.server_status().max_flows
        hubble = secured.lab.agents[0].status().hubble
        return hubble.state is Health.WARNING and "replacement is not in force" in hubble.msg

    until(troubled, "a word about the broken key")
