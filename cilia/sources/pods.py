"""Pods of one node into `pods`."""

import ipaddress

import msgspec

from cilia.cluster.store import PODS, Invalid, decode
from cilia.model.endpoint import NamedPort
from cilia.model.resources.base import AnyObject, ObjectMeta
from cilia.model.resources.core import Container, ContainerPort, Pod, PodSpec, PodStatus
from cilia.model.service import Protocol
from cilia.schema.rows import HostPort, PodRow
from cilia.sources import checks
from cilia.sources.reflector import Translation

TEMPLATE_HASH = "pod-template-hash"

FINAL = ("Succeeded", "Failed")
"""Phases of a pod that runs no more: its addresses may be another's."""


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
    over = pod.status.phase in FINAL
    conditions = pod.status.conditions or ()
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
        addresses=() if over else addresses(pod.status),
        host_ports=() if over or pod.spec.host_network else host_ports(pod.spec),
        ready=not over and any(item.type == "Ready" and item.status == "True" for item in conditions),
        terminating=meta.deletion_timestamp is not None,
    )


def addresses(status: PodStatus) -> tuple[str, ...]:
    """Return a pod's addresses; what is none is left out."""
    texts = [entry.ip for entry in status.pod_ips or ()] or [status.pod_ip]
    found: dict[str, None] = {}
    for text in texts:
        try:
            found[checks.address(text)] = None
        except Invalid:
            continue
    return tuple(found)


def host_ports(spec: PodSpec) -> tuple[HostPort, ...]:
    """Return the ports of the node that containers want; what is no port, address or known protocol wants
    nothing."""
    ports = (port for container in running_containers(spec) for port in container.ports or ())
    return tuple(found for port in ports if (found := _host_port(port)) is not None)


def _host_port(port: ContainerPort) -> HostPort | None:
    """What a container's port wants of the node, at loopback perhaps; the zero address is any."""
    protocol = Protocol.__members__.get(port.protocol)
    wanted = port.host_port or 0
    try:
        address = _host_ip(port.host_ip or "0.0.0.0")
    except (ValueError, Invalid):
        return None
    if protocol is None or not (0 < wanted < 65536 and 0 < port.container_port < 65536):
        return None
    return HostPort(wanted, port.container_port, protocol, address)


def _host_ip(text: str) -> str:
    """The address in its one spelling; empty: any. Nobody has looked at it before: one in disguise would be
    another's. Raises ValueError and Invalid."""
    found = ipaddress.ip_address(text)
    if found.is_unspecified:
        return ""
    return (
        str(found) if found.is_loopback and not getattr(found, "ipv4_mapped", None) else checks.address(text)
    )


def named_ports(spec: PodSpec) -> tuple[NamedPort, ...]:
    """Return the ports that have names."""
    return checks.named_ports(
        (port.name, port.container_port, port.protocol)
        for container in running_containers(spec)
        for port in container.ports or ()
    )


def running_containers(spec: PodSpec) -> tuple[Container, ...]:
    """Return the containers, and the init containers that keep running beside them."""
    sidecars = [part for part in spec.init_containers or () if part.restart_policy == "Always"]
    return (*spec.containers, *sidecars)


def workload(meta: ObjectMeta) -> tuple[str, str]:
    """Return kind and name of what runs the pod: rather the Deployment than its ReplicaSet."""
    owner = next((owner for owner in meta.owner_references or () if owner.controller), None)
    if owner is None:
        return "Pod", meta.name
    suffix = "-" + (meta.labels or {}).get(TEMPLATE_HASH, "")
    if owner.kind == "ReplicaSet" and len(suffix) > 1 and owner.name.endswith(suffix):
        return "Deployment", owner.name.removesuffix(suffix)
    return owner.kind, owner.name
