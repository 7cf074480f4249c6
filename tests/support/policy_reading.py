"""Policies read from YAML as their authors write them, and whom they let through."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from cilia.control.policy.dialects.parse import parse
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.reasons.oracle import judge
from cilia.control.policy.rules import TCP, Parsed
from cilia.model import identity as ids
from cilia.model.endpoint import NamedPort
from cilia.model.identity import Identity, reserved_identities
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.policy import Direction, PolicyObject
from cilia.model.resources.cilium_policy import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from cilia.model.resources.cluster_network_policy import ClusterNetworkPolicy
from cilia.model.resources.network_policy import NetworkPolicy

KINDS: dict[str, Any] = {
    "NetworkPolicy": NetworkPolicy,
    "CiliumNetworkPolicy": CiliumNetworkPolicy,
    "CiliumClusterwideNetworkPolicy": CiliumClusterwideNetworkPolicy,
    "ClusterNetworkPolicy": ClusterNetworkPolicy,
}
NAMESPACED = frozenset({"NetworkPolicy", "CiliumNetworkPolicy"})


def pod(
    number: int, namespace: str, app: str, *, cluster: str = "default", **namespace_labels: str
) -> Identity:
    """The identity of pods with a label `app`."""
    labels = Labels.kubernetes(namespace, {"app": app}, namespace_labels, cluster=cluster)
    return Identity(IdentityId(number), labels)


IN, OUT = Direction.INGRESS, Direction.EGRESS
WEB = pod(300, "red", "web", team="r")
DB = pod(301, "red", "db", team="r")
JOB = pod(302, "blue", "job", team="b")
FAR = pod(303, "red", "web", cluster="far", team="r")
RESERVED = {identity.id: identity for identity in reserved_identities()}
HOST, WORLD4, WORLD6 = RESERVED[ids.HOST], RESERVED[ids.WORLD_IPV4], RESERVED[ids.WORLD_IPV6]
NODE, API = RESERVED[ids.REMOTE_NODE], RESERVED[ids.KUBE_APISERVER]
USUAL = (WEB, DB, JOB, HOST, WORLD4)
PREFIX = {
    text: Identity(IdentityId((1 << 24) + n), Labels.parse([f"cidr:{text}", "reserved:world"]))
    for n, text in enumerate(("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"), 1)
}


def node(number: int, *labels: str, kind: str = "remote-node") -> Identity:
    """The identity of a node with labels such as `zone=a`."""
    texts = [f"reserved:{kind}", *(f"k8s:{text}" for text in labels)]
    return Identity(IdentityId(number), Labels.parse(texts))


def written(kind: str, spec: Any, namespace: str = "red", **annotations: str) -> PolicyObject:
    """A policy object called p from its spec, decoded as the API server's answer is."""
    metadata = {
        "name": "p",
        "namespace": namespace if kind in NAMESPACED else "",
        "annotations": {key.replace("_", "/"): value for key, value in annotations.items()},
    }
    return decoded({"kind": kind, "metadata": metadata, "spec": spec})


def decoded(document: dict[str, Any]) -> PolicyObject:
    """A whole object as the API server gives it."""
    kind = document["kind"]
    body = msgspec.json.decode(msgspec.json.encode(document), type=KINDS[kind])
    return PolicyObject(
        kind=kind,
        namespace=body.metadata.namespace,
        name=body.metadata.name,
        resource_version="7",
        annotations=body.metadata.annotations or {},
        body=body,
    )


def read(kind: str, text: str, **options: Any) -> Parsed:
    """What the YAML of a spec means."""
    return parse(written(kind, yaml.safe_load(text)), **options)


def netpol(text: str) -> Parsed:
    """A NetworkPolicy of namespace red."""
    return read("NetworkPolicy", text)


def cnp(text: str) -> Parsed:
    """A CiliumNetworkPolicy of namespace red."""
    return read("CiliumNetworkPolicy", text)


def ccnp(text: str, *, host_firewall: bool = True) -> Parsed:
    """A CiliumClusterwideNetworkPolicy."""
    return read("CiliumClusterwideNetworkPolicy", text, host_firewall=host_firewall)


def admin(text: str) -> Parsed:
    """A ClusterNetworkPolicy."""
    return read("ClusterNetworkPolicy", text)


def allows(
    parsed: Parsed,
    peer: Identity,
    port: int = 80,
    *,
    subject: Identity = WEB,
    direction: Direction = IN,
    protocol: int = TCP,
    subject_ports: tuple[NamedPort, ...] = (),
    peer_ports: tuple[NamedPort, ...] = (),
    peer_addresses: tuple[str, ...] = (),
) -> bool:
    """Whether a packet passes, with nothing else in force."""
    assert not parsed.problems
    facts = Facts(
        sections=parsed.sections,
        identities={identity.id: identity.labels for identity in (subject, peer)},
        port_names={peer.id: frozenset(peer_ports)},
        addresses={peer.id: frozenset(peer_addresses)},
        allow_localhost=False,
    )
    verdict = judge(
        facts,
        Party(identity=subject.id, labels=subject.labels, named_ports=subject_ports),
        Party(identity=peer.id, labels=peer.labels),
        direction,
        protocol,
        port,
    )
    return verdict.allow


def who(parsed: Parsed, peers: tuple[Identity, ...] = USUAL, **asked: Any) -> list[Identity]:
    """Which peers get through."""
    return [peer for peer in peers if allows(parsed, peer, **asked)]
