"""Names of peers, Secrets and flags as Cilium's charts and relays have them; and fields that nobody fills."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from cilia.apps.agent.hubble_doors import DoorSettings, own_peer
from cilia.apps.agent.main import app as agent
from cilia.apps.relay.command import app as relay
from cilia.cli.certificate_set import roles
from cilia.hubble.convert import Converter, NodeFacts
from cilia.kit.tls import server_name
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.hubble import FILES, NODE, WALL, directory, store
from tests.support.hubble_slow import random_events

PAGE = Path(__file__).parents[3] / "docs" / "hubble.md"

AGENT_FLAGS = """
    hubble-event-buffer-capacity hubble-socket-path hubble-listen-address hubble-disable-tls
    hubble-tls-cert-file hubble-tls-key-file hubble-tls-client-ca-files hubble-lost-event-send-interval
    hubble-metrics hubble-metrics-server hubble-dynamic-metrics-config-path enable-hubble-open-metrics
    hubble-metrics-server-enable-tls hubble-metrics-server-tls-cert-file hubble-metrics-server-tls-key-file
    hubble-metrics-server-tls-client-ca-files hubble-flowlogs-config-path hubble-export-file-path
    hubble-export-file-max-size-mb hubble-export-file-max-backups hubble-export-file-compress
    hubble-export-allowlist hubble-export-denylist hubble-export-fieldmask hubble-export-fieldaggregate
    hubble-export-aggregation-interval hubble-redact-enabled hubble-redact-http-urlquery
    hubble-redact-http-userinfo hubble-redact-kafka-apikey hubble-redact-http-headers-allow
    hubble-redact-http-headers-deny hubble-drop-events hubble-drop-events-interval hubble-drop-events-reasons
    monitor-aggregation bpf-events-drop-enabled bpf-events-trace-enabled bpf-events-policy-verdict-enabled
    bpf-events-default-rate-limit bpf-events-default-burst-limit enable-hubble hubble-event-queue-size
    hubble-monitor-events hubble-prefer-ipv6 hubble-network-policy-correlation-enabled
    hubble-skip-unknown-cgroup-ids hubble-drop-events-extended hubble-drop-events-rate-limit
""".split()  # noqa: SIM905

RELAY_FLAGS = """
    cluster-name listen-address health-listen-address metrics-listen-address peer-service dial-timeout
    retry-timeout sort-buffer-len-max sort-buffer-drain-timeout tls-hubble-client-cert-file
    tls-hubble-client-key-file tls-hubble-server-ca-files disable-client-tls tls-relay-server-cert-file
    tls-relay-server-key-file tls-relay-client-ca-files disable-server-tls
""".split()  # noqa: SIM905


def flags(app: typer.Typer, *path: str) -> set[str]:
    """Flags of a command, without their dashes."""
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    return {option.removeprefix("--") for each in command.params for option in each.opts}


def test_flags_that_charts_set() -> None:
    assert set(AGENT_FLAGS) <= flags(agent)
    assert set(RELAY_FLAGS) <= flags(relay, "serve")


def test_names_of_servers_and_peers(tmp_path: Path) -> None:
    assert server_name("worker.1", "my.cluster") == "worker-1.my-cluster.hubble-grpc.cilium.io"
    secured = DoorSettings(
        socket=tmp_path / "hubble.sock", cert_file=tmp_path, key_file=tmp_path, client_ca_files=(tmp_path,)
    )
    peer = own_peer(secured, "worker-1", "default", ("192.0.2.1", "fd00::1"))
    assert (peer.name, peer.address) == ("default/worker-1", "192.0.2.1:4244")
    assert peer.tls_name == "worker-1.default.hubble-grpc.cilium.io"
    assert own_peer(secured, "b", "c", ("fd00::1",)).address == "[fd00::1]:4244"


def test_secrets_and_what_they_are_for() -> None:
    assert {role.secret: role.name for role in roles("my.cluster")} == {
        "hubble-server-certs": "*.my-cluster.hubble-grpc.cilium.io",
        "hubble-relay-client-certs": "*.hubble-relay.cilium.io",
        "hubble-relay-server-certs": "*.hubble-relay.cilium.io",
        "hubble-ui-client-certs": "*.hubble-ui.cilium.io",
    }


def test_fields_are_filled_or_the_page_says_why_not() -> None:
    (table,) = re.findall(r"\| Never filled \| Why \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE.read_text())
    excused = {
        name
        for line in table.splitlines()
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
        if name in flow_pb2.Flow.DESCRIPTOR.fields_by_name
    }
    held = store(capacity=4096, known=directory())
    held.append([random_events(4096, seed=1)], offset=WALL)
    node = NodeFacts(name=NODE.name, labels=NODE.labels, version="1.2.3", files=FILES)
    seen: set[str] = set()
    for rows in held.spans(0, held.head):
        for data in Converter(held, node).responses(rows):
            flow = observer_pb2.GetFlowsResponse.FromString(bytes(data)).flow
            seen |= {field.name for field, _ in flow.ListFields()}
    # Names come from a directory that has learned some; the one of the agent has not.
    learned = {"source_names", "destination_names"}
    assert set(flow_pb2.Flow.DESCRIPTOR.fields_by_name) - seen == excused - learned
