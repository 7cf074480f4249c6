"""Pods of one node into `pods`."""

import msgspec

from cilia.cluster.store import PODS, decode
from cilia.model.endpoint import NamedPort
from cilia.model.resources.base import AnyObject, ObjectMeta
from cilia.model.resources.core import Pod, PodSpec
from cilia.schema.rows import PodRow
from cilia.sources import checks
from cilia.sources.reflector import Translation

TEMPLATE_HASH = "pod-template-hash"


def pods(node: str) -> Translation[tuple[str, str], PodRow]:
    """Translate the pods that are bound to `node`."""
    return Translation(PODS, row, key, field_selector=f"spec.nodeName={node}")


def key(any_object: AnyObject) -> tuple[str, str]:
    """Namespace and name."""
    return any_object.metadata.namespace, any_object.metadata.name


def row(raw: msgspec.Raw) -> PodRow:
    """Return the row of a pod."""
    pod = decode(raw, Pod)
    meta = pod.metadata
    owner_kind, owner_name = workload(meta)
    return PodRow(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        node=pod.spec.node_name,
        labels=meta.labels or {},
        service_account=pod.spec.service_account_name or "default",
        named_ports=named_ports(pod.spec),
        host_network=pod.spec.host_network,
        owner_kind=owner_kind,
        owner_name=owner_name,
    )


def named_ports(spec: PodSpec) -> tuple[NamedPort, ...]:
    """Return the ports that have names; init containers count when they keep running beside the others."""
    sidecars = [part for part in spec.init_containers or () if part.restart_policy == "Always"]
    return checks.named_ports(
        (port.name, port.container_port, port.protocol)
        for container in (*spec.containers, *sidecars)
        for port in container.ports or ()
    )


def workload(meta: ObjectMeta) -> tuple[str, str]:
    """Return kind and name of what runs the pod: rather the Deployment than its ReplicaSet."""
    owner = next((owner for owner in meta.owner_references or () if owner.controller), None)
    if owner is None:
        return "Pod", meta.name
    suffix = "-" + (meta.labels or {}).get(TEMPLATE_HASH, "")
    if owner.kind == "ReplicaSet" and len(suffix) > 1 and owner.name.endswith(suffix):
        return "Deployment", owner.name.removesuffix(suffix)
    return owner.kind, owner.name
