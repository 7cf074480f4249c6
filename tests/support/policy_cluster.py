"""The cluster that the documentation's examples are about, and what becomes of packets in it.

All pods of examples/policies/cluster.yaml are on this node; node-2 has none, the API server is outside, and a
pod `app: web` of cluster west has the address 10.246.0.9. Both the compiled entries and the oracle are asked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
import yaml

from cilia.cluster import store
from cilia.control.graph import ControlGraph, GraphConfig
from cilia.control.policy.entries.resolve import decide
from cilia.control.policy.facts import Party
from cilia.control.policy.reasons import oracle
from cilia.control.policy.rules import ICMP, ICMPV6, SCTP, TCP, UDP
from cilia.model.endpoint import Attachment, Endpoint, RemoteEndpoint
from cilia.model.identity import HOST, WORLD_IPV4, WORLD_IPV6, Identity
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.labels import Labels
from cilia.model.node import Node
from cilia.model.policy import Direction, EntryFlags
from cilia.schema import Desired, Inputs
from cilia.sources.cidr_groups import cidr_groups
from cilia.sources.namespaces import namespaces
from cilia.sources.pods import pods
from cilia.sources.policies import policies
from cilia.sources.services import endpoint_slices, services
from tests.support.policy_examples import CLUSTER, Statement
from tests.support.reachability import identity_of

PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}
NODES = (
    Node(name="node-1", addresses=("172.18.0.11",), labels={"role": "worker"}),
    Node(name="node-2", addresses=("172.18.0.12",), labels={"role": "edge"}),
)
API_SERVER = "172.18.0.1"
WEST = "10.246.0.9"
SEVERITY = ("allowed", "audited", "denied")


class End(NamedTuple):
    """One end of a packet: its identity, and the endpoint if it lives on this node."""

    identity: IdentityId
    endpoint: Endpoint | None


class Cluster:
    """See the module."""

    def __init__(self, documents: Iterable[dict[str, Any]]) -> None:
        self.inputs, self.desired = Inputs(), Desired()
        config = GraphConfig(
            node="node-1", own=NODES[0], host_firewall=True, apiserver_addresses=(API_SERVER,)
        )
        self.graph = ControlGraph(self.inputs, self.desired, config)
        for node in NODES:
            self.inputs.nodes.put(node)
        for document in [*yaml.safe_load_all(CLUSTER.read_text()), *documents]:
            self._put(document)
        self._attach()
        self._name_identities()
        for table in self.inputs.tables():
            table.synced = True
        self.graph.step(1.0)

    def outcome(self, statement: Statement) -> str:
        """What becomes of a packet: allowed, denied or audited."""
        ends = self._end(statement.source), self._end(statement.destination)
        found = [self._both(*ends, *packet) for packet in _packets(statement)]
        return max(found, key=SEVERITY.index)

    def _both(self, source: End, destination: End, protocol: int, port: int) -> str:
        egress = self._side(source, destination, Direction.EGRESS, protocol, port)
        ingress = self._side(destination, source, Direction.INGRESS, protocol, port)
        return max(egress, ingress, key=SEVERITY.index)

    def _side(self, own: End, peer: End, direction: Direction, protocol: int, port: int) -> str:
        """What one side says, as entries and oracle agree."""
        if own.endpoint is None:
            return "allowed"
        entry = self.desired.endpoint_entries.get(own.endpoint.id)
        subject = self.desired.subjects.get(entry.subject) if entry is not None else None
        if subject is None:
            assert own.identity == HOST, "a pod without a subject"
            return "allowed"
        hit = decide(subject.entries, peer.identity, direction, protocol, port)
        assert hit is not None
        audited = bool(hit[1].flags & EntryFlags.AUDIT)
        compiled = "allowed" if hit[1].allow else "audited" if audited else "denied"
        packet = (direction, protocol, port)
        verdict = oracle.judge(self.graph.policy.facts(), self._party(own), self._party(peer), *packet)
        told = "audited" if verdict.audited else "allowed" if verdict.allow else "denied"
        assert compiled == told, "entries and oracle differ"
        return told

    def _party(self, end: End) -> Party:
        identity = self.desired.identities.get(end.identity)
        assert identity is not None
        if end.endpoint is None:
            return Party(identity=identity.id, labels=identity.labels)
        ports, audit = end.endpoint.named_ports, end.endpoint.audit
        return Party(identity=identity.id, labels=identity.labels, named_ports=ports, audit=audit)

    def _end(self, name: str) -> End:
        if name == "host":
            (host,) = [one for one in self.desired.endpoints if one.identity == HOST]
            return End(HOST, host)
        for endpoint in self.desired.endpoints:
            if endpoint.pod_name == name:
                return End(endpoint.identity, endpoint)
        (address,) = [node.addresses[0] for node in NODES if node.name == name] or [name]
        world = WORLD_IPV6 if ipaddress.ip_address(address).version == 6 else WORLD_IPV4
        return End(IdentityId(identity_of(self.desired, address) or world), None)

    # making it

    def _put(self, document: dict[str, Any]) -> None:
        tables: dict[str, Any] = {
            "Namespace": (self.inputs.namespaces, namespaces()),
            "Pod": (self.inputs.pods, pods("node-1")),
            "Service": (self.inputs.services, services()),
            "EndpointSlice": (self.inputs.endpoint_slices, endpoint_slices()),
            "CiliumCIDRGroup": (self.inputs.cidr_groups, cidr_groups()),
        }
        kind = document["kind"]
        if kind == "Namespace":
            # As the API server does.
            name = {"kubernetes.io/metadata.name": document["metadata"]["name"]}
            document["metadata"]["labels"] = document["metadata"].get("labels", {}) | name
        if kind.endswith("NetworkPolicy"):
            (resource,) = [one for one in store.RESOURCES if one.kind == kind]
            tables[kind] = (self.inputs.policies, policies(resource))
        table, translation = tables[kind]
        row = translation.row(msgspec.Raw(msgspec.json.encode(document)))
        assert row is not None
        table.put(row)

    def _attach(self) -> None:
        for number, row in enumerate(self.inputs.pods, 1):
            self.inputs.attachments.put(
                Attachment(
                    id=EndpointId(number),
                    container_id=str(number),
                    interface="eth0",
                    netns="",
                    host_interface=f"lxc{number}",
                    ifindex=number,
                    mac=f"02:00:00:00:00:{number:02x}",
                    host_mac=f"02:00:00:00:01:{number:02x}",
                    ipv4=f"10.244.1.{number}",
                    ipv6=f"fd00:10:244::1{number:02x}",
                    namespace=row.namespace,
                    pod=row.name,
                )
            )

    def _name_identities(self) -> None:
        labels = [self.graph.endpoints.labels_of(row.namespace, row) for row in self.inputs.pods]
        far = Labels.kubernetes("shop", {"app": "web"}, {"kind": "tenant"}, "default", "west")
        for number, found in enumerate(dict.fromkeys([*labels, far]), 1000):
            self.inputs.cluster_identities.put(Identity(IdentityId(number), found))
        self.inputs.remote_endpoints.put(
            RemoteEndpoint(
                namespace="shop",
                name="west-web",
                identity=IdentityId(number),
                node_ip="172.18.0.12",
                addresses=(WEST,),
            )
        )


def _packets(statement: Statement) -> Iterator[tuple[int, int]]:
    """Protocol and port; a ping is asked for over each family that the ends have."""
    number, _, protocol = statement.port.partition("/")
    if number != "ping":
        yield (PROTOCOLS[protocol], int(number)) if protocol != "ip" else (int(number), 0)
        return
    ends = f"{statement.source} {statement.destination}"
    if ":" not in ends:
        yield ICMP, 8
    if "." not in ends:
        yield ICMPV6, 128
