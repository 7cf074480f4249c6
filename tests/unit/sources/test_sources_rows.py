"""Each kind becomes the row its readers expect."""

import json
from typing import Any

import msgspec
import pytest

from cilia.cluster.store import (
    CILIUM_CLUSTERWIDE_NETWORK_POLICIES,
    CILIUM_NETWORK_POLICIES,
    CLUSTER_NETWORK_POLICIES,
    Invalid,
)
from cilia.model.endpoint import NamedPort
from cilia.model.identity import Identity
from cilia.model.ids import IdentityId
from cilia.model.labels import Label, Labels
from cilia.model.node import Node
from cilia.model.policy import PolicyObject, PolicyProblem
from cilia.model.resources.base import AnyObject, ObjectMeta
from cilia.model.resources.cilium_policy import CiliumNetworkPolicy
from cilia.schema.rows import CidrGroupRow
from cilia.sources import cidr_groups, identities, nodes, pods
from cilia.sources.endpoints import endpoints
from cilia.sources.policies import policies
from cilia.sources.reflector import Translation


def raw(**fields: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(fields).encode())


def test_a_pod() -> None:
    row = pods.row(
        raw(
            metadata={
                "name": "web-7d9-x",
                "namespace": "shop",
                "uid": "u",
                "labels": {"app": "web", "pod-template-hash": "7d9"},
                "ownerReferences": [
                    {"kind": "ReplicaSet", "name": "web-7d9", "uid": "r", "controller": True}
                ],
            },
            spec={
                "nodeName": "n1",
                "containers": [{"ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}]}],
                "initContainers": [
                    {"ports": [{"name": "once", "containerPort": 1}]},
                    {
                        "restartPolicy": "Always",
                        "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}],
                    },
                ],
            },
            status={"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        )
    )
    assert (row.owner_kind, row.owner_name) == ("Deployment", "web")
    assert row.named_ports == (NamedPort("http", 80, "TCP"), NamedPort("dns", 53, "UDP"))
    assert (row.node, row.service_account, row.host_network) == ("n1", "default", False)


@pytest.mark.parametrize(
    ("owners", "workload"),
    [
        ([], ("Pod", "p")),
        ([{"kind": "Node", "name": "n"}], ("Pod", "p")),
        ([{"kind": "StatefulSet", "name": "db", "controller": True}], ("StatefulSet", "db")),
        ([{"kind": "ReplicaSet", "name": "bare", "controller": True}], ("ReplicaSet", "bare")),
    ],
)
def test_the_workload_behind_a_pod(owners: list[dict[str, Any]], workload: tuple[str, str]) -> None:
    meta = msgspec.convert({"name": "p", "ownerReferences": owners}, ObjectMeta)
    assert pods.workload(meta) == workload


def test_a_node() -> None:
    row = nodes.row(
        raw(
            metadata={"name": "n1", "labels": {"zone": "a"}},
            spec={
                "addresses": [
                    {"type": "InternalIP", "ip": "fd00::1"},
                    {"type": "ExternalIP", "ip": "192.0.2.1"},
                    {"type": "InternalIP", "ip": "10.1.0.1"},
                    {"type": "CiliumInternalIP", "ip": "10.0.0.1"},
                    {"type": "Hostname"},
                ],
                "ipam": {"podCIDRs": ["10.0.0.0/24", "fd01::/120"]},
                "health": {"ipv4": "10.0.0.9"},
                "bootid": "b",
            },
        )
    )
    assert row == Node(
        name="n1",
        addresses=("10.1.0.1", "192.0.2.1", "fd00::1"),
        router_addresses=("10.0.0.1",),
        pod_cidrs=("10.0.0.0/24", "fd01::/120"),
        health_addresses=("10.0.0.9",),
        labels={"zone": "a"},
        boot_id="b",
    )


def test_an_endpoint_of_another_node_and_one_of_this() -> None:
    translation = endpoints(frozenset({"10.1.0.1"}))
    status = {
        "id": 7,
        "identity": {"id": 300, "labels": ["k8s:app=web"]},
        "networking": {"node": "10.1.0.2", "addressing": [{"ipv4": "10.0.1.5", "ipv6": "fd01::5"}]},
        "named-ports": [{"name": "http", "port": 80}],
        "state": "ready",
    }
    metadata = {"name": "web", "namespace": "shop"}
    row = translation.row(raw(metadata=metadata, status=status))
    assert row is not None
    assert (row.identity, row.node_ip, row.addresses) == (300, "10.1.0.2", ("10.0.1.5", "fd01::5"))
    assert row.labels == Labels.of([Label("k8s", "app", "web")])
    assert row.named_ports == (NamedPort("http", 80, "TCP"),)
    status["networking"] = {"node": "10.1.0.1", "addressing": []}
    assert translation.row(raw(metadata=metadata, status=status)) is None
    assert translation.row(raw(metadata=metadata)) is None


def test_an_identity_and_numbers_that_are_none() -> None:
    labels = {"k8s:app": "web", "k8s:io.kubernetes.pod.namespace": "shop"}
    assert identities.row(raw(**{"metadata": {"name": "300"}, "security-labels": labels})) == Identity(
        IdentityId(300), Labels.from_security_labels(labels)
    )
    for name in ("1", "255", str(1 << 24), "web", "-3", "²", "00300", "+300", "9" * 253):
        with pytest.raises(Invalid, match="no identity number"):
            identities.row(raw(**{"metadata": {"name": name}, "security-labels": labels}))
        assert identities.key(AnyObject(metadata=ObjectMeta(name=name))) != 300


def policy(translation: Translation[tuple[str, str, str], PolicyObject], **fields: Any) -> PolicyObject:
    row = translation.row(raw(**fields))
    assert row is not None
    return row


def test_a_policy_goes_in_as_written() -> None:
    metadata = {"name": "p", "namespace": "n", "generation": 4, "resourceVersion": "9", "labels": {"a": "b"}}
    translation = policies(CILIUM_NETWORK_POLICIES)
    row = policy(translation, metadata=metadata, spec={"endpointSelector": {}})
    assert (
        row.key
        == ("CiliumNetworkPolicy", "n", "p")
        == translation.key(AnyObject(metadata=ObjectMeta(name="p", namespace="n")))
    )
    assert (row.generation, row.resource_version, row.labels, row.problem) == (4, "9", {"a": "b"}, None)
    assert isinstance(row.body, CiliumNetworkPolicy)
    assert row.body.spec is not None


def test_a_policy_nobody_understands_says_where() -> None:
    translation = policies(CILIUM_CLUSTERWIDE_NETWORK_POLICIES)
    row = policy(
        translation, metadata={"name": "p"}, spec={"endpointSelector": {}, "ingress": [{}, {"fromMoon": []}]}
    )
    assert row.body is None
    assert row.problem == PolicyProblem(
        "spec.ingress[1].fromMoon", "There is no field fromMoon here: correct its name, or remove it."
    )
    row = policy(translation, metadata={"name": "p"}, spec={})
    assert row.problem is not None
    assert (row.problem.path, "Exactly one of" in row.problem.sentence) == ("spec", True)


@pytest.mark.parametrize(
    "status", ["x", [], {"conditions": 7}, {"conditions": [{"type": 7}]}, {"nodes": {"n": 7}}, {"nodes": []}]
)
def test_a_status_nobody_understands_takes_no_policy_out_of_force(status: Any) -> None:
    translation = policies(CILIUM_NETWORK_POLICIES)
    metadata = {"name": "p", "namespace": "n", "generation": 4}
    spec: dict[str, Any] = {"endpointSelector": {}}
    row = policy(translation, metadata=metadata, spec=spec, status=status)
    sound = policy(translation, metadata=metadata, spec=spec)
    assert (row.body, row.problem) == (sound.body, None)
    broken = policy(translation, metadata=metadata, spec={"fromMoon": 1}, status=status)
    assert broken.body is None and broken.problem is not None


def test_metadata_nobody_understands_is_refused() -> None:
    with pytest.raises(Invalid):
        policies(CILIUM_NETWORK_POLICIES).row(raw(metadata={"name": 7}))


def test_of_a_policys_annotations_our_own_are_kept_and_tell_versions_apart() -> None:
    translation = policies(CILIUM_NETWORK_POLICIES)
    annotations = {"policy.cilia.io/audit": "true", "kubectl.kubernetes.io/last-applied-configuration": "{}"}
    metadata = {"name": "p", "namespace": "n", "generation": 1}
    plain = policy(translation, metadata=metadata, spec={"endpointSelector": {}})
    noted = policy(translation, metadata={**metadata, "annotations": annotations}, spec={})
    assert noted.annotations == {"policy.cilia.io/audit": "true"}
    noted = policy(translation, metadata={**metadata, "annotations": annotations}, spec=plain_spec())
    assert not translation.same(plain, noted)
    del annotations["policy.cilia.io/audit"]
    other = policy(translation, metadata={**metadata, "annotations": annotations}, spec=plain_spec())
    assert translation.same(plain, other)


def plain_spec() -> dict[str, Any]:
    return {"endpointSelector": {}}


def test_a_policy_of_the_administrator() -> None:
    translation = policies(CLUSTER_NETWORK_POLICIES)
    spec = {"tier": "Admin", "priority": 7, "subject": {"namespaces": {}}}
    row = policy(translation, metadata={"name": "p"}, spec=spec)
    assert (row.key, row.problem) == (("ClusterNetworkPolicy", "", "p"), None)
    row = policy(translation, metadata={"name": "p"}, spec={**spec, "priority": 1001})
    assert row.problem is not None
    assert row.problem.path == "spec.priority"


def test_a_group_of_prefixes() -> None:
    spec = {
        "externalCIDRs": ["10.1.0.0/16", "10.0.0.9/8", "::/0", "10.1.0.0/16", "moon", "::ffff:1.2.3.4/128"]
    }
    row = cidr_groups.row(raw(metadata={"name": "g", "labels": {"a": "b"}}, spec=spec))
    assert row == CidrGroupRow(name="g", labels={"a": "b"}, prefixes=("10.0.0.0/8", "10.1.0.0/16", "::/0"))
    with pytest.raises(Invalid, match="externalCIDRs"):
        cidr_groups.row(raw(metadata={"name": "g"}, spec={}))
