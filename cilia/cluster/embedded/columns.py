"""The columns of the built-in kinds, as ``kubectl get`` users know them. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from .printing import AGE, NAME, Cell, Column, age, dig, field, selector_text
from .registry import Value


def _text(value: Any) -> str:
    return str(value) if value not in (None, "") else "<none>"


def _count(*path: str) -> Any:
    def cell(value: Value, now: datetime) -> Cell:
        return len(dig(value, *path) or ())

    return cell


def _pod_ready(value: Value, now: datetime) -> Cell:
    statuses = dig(value, "status", "containerStatuses") or []
    ready = sum(1 for status in statuses if dig(status, "ready") is True)
    return f"{ready}/{len(dig(value, 'spec', 'containers') or ())}"


def _pod_status(value: Value, now: datetime) -> Cell:
    reason = dig(value, "status", "reason") or dig(value, "status", "phase") or "Pending"
    for status in dig(value, "status", "containerStatuses") or ():
        waiting = dig(status, "state", "waiting", "reason")
        ended = dig(status, "state", "terminated", "reason")
        reason = waiting or ended or reason
    if dig(value, "metadata", "deletionTimestamp"):
        return "Terminating"
    return str(reason)


def _pod_restarts(value: Value, now: datetime) -> Cell:
    statuses = dig(value, "status", "containerStatuses") or ()
    return str(sum(status.get("restartCount", 0) for status in statuses if isinstance(status, dict)))


def _readiness_gates(value: Value, now: datetime) -> Cell:
    gates = dig(value, "spec", "readinessGates") or ()
    met = {dig(c, "type") for c in dig(value, "status", "conditions") or () if dig(c, "status") == "True"}
    return f"{sum(1 for g in gates if dig(g, 'conditionType') in met)}/{len(gates)}" if gates else "<none>"


def _node_status(value: Value, now: datetime) -> Cell:
    ready = [c for c in dig(value, "status", "conditions") or () if dig(c, "type") == "Ready"]
    text = "Unknown" if not ready else "Ready" if dig(ready[0], "status") == "True" else "NotReady"
    return text + (",SchedulingDisabled" if dig(value, "spec", "unschedulable") else "")


def _node_roles(value: Value, now: datetime) -> Cell:
    prefix = "node-role.kubernetes.io/"
    labels = dig(value, "metadata", "labels") or {}
    return ",".join(sorted(key[len(prefix) :] for key in labels if key.startswith(prefix))) or "<none>"


def _node_address(kind: str) -> Any:
    def cell(value: Value, now: datetime) -> Cell:
        addresses = dig(value, "status", "addresses") or ()
        return next((_text(dig(a, "address")) for a in addresses if dig(a, "type") == kind), "<none>")

    return cell


def _info(name: str) -> Any:
    return field("status", "nodeInfo", name, empty="<unknown>")


def _external_ip(value: Value, now: datetime) -> Cell:
    addresses = [str(ip) for ip in dig(value, "spec", "externalIPs") or ()]
    for ingress in dig(value, "status", "loadBalancer", "ingress") or ():
        addresses.append(str(dig(ingress, "ip") or dig(ingress, "hostname") or ""))
    pending = "<pending>" if dig(value, "spec", "type") == "LoadBalancer" else "<none>"
    return ",".join(filter(None, addresses)) or pending


def _service_ports(value: Value, now: datetime) -> Cell:
    parts = []
    for port in dig(value, "spec", "ports") or ():
        node_port = f":{port['nodePort']}" if dig(port, "nodePort") else ""
        parts.append(f"{dig(port, 'port')}{node_port}/{dig(port, 'protocol') or 'TCP'}")
    return ",".join(parts) or "<none>"


def _labels_text(*path: str) -> Any:
    def cell(value: Value, now: datetime) -> Cell:
        labels = dig(value, *path) or {}
        return ",".join(f"{key}={text}" for key, text in sorted(labels.items())) or "<none>"

    return cell


def _slice_ports(value: Value, now: datetime) -> Cell:
    ports = [str(dig(port, "port") or "*") for port in dig(value, "ports") or ()]
    return _shortened(ports) if ports else "<unset>"


def _slice_endpoints(value: Value, now: datetime) -> Cell:
    addresses = [str(a) for e in dig(value, "endpoints") or () for a in dig(e, "addresses") or ()]
    return _shortened(addresses) if addresses else "<unset>"


def _shortened(items: list[str]) -> str:
    more = f" + {len(items) - 3} more..." if len(items) > 3 else ""
    return ",".join(items[:3]) + more


def _policy_selector(value: Value, now: datetime) -> Cell:
    return selector_text(dig(value, "spec", "podSelector"))


def _last_seen(value: Value, now: datetime) -> Cell:
    stamps = (
        dig(value, "series", "lastObservedTime"),
        dig(value, "lastTimestamp"),
        dig(value, "eventTime"),
        dig(value, "metadata", "creationTimestamp"),
    )
    return age(next((stamp for stamp in stamps if stamp), None), now)


def _event_object(value: Value, now: datetime) -> Cell:
    kind = str(dig(value, "involvedObject", "kind") or "").lower()
    return f"{kind}/{dig(value, 'involvedObject', 'name') or ''}"


def _event_message(value: Value, now: datetime) -> Cell:
    return str(dig(value, "message") or "").strip()


def _crd_created(value: Value, now: datetime) -> Cell:
    return str(dig(value, "metadata", "creationTimestamp") or "")


POD: Final = (
    NAME,
    Column("Ready", _pod_ready),
    Column("Status", _pod_status),
    Column("Restarts", _pod_restarts),
    AGE,
    Column("IP", field("status", "podIP"), wide=True),
    Column("Node", field("spec", "nodeName"), wide=True),
    Column("Nominated Node", field("status", "nominatedNodeName"), wide=True),
    Column("Readiness Gates", _readiness_gates, wide=True),
)
NODE: Final = (
    NAME,
    Column("Status", _node_status),
    Column("Roles", _node_roles),
    AGE,
    Column("Version", _info("kubeletVersion")),
    Column("Internal-IP", _node_address("InternalIP"), wide=True),
    Column("External-IP", _node_address("ExternalIP"), wide=True),
    Column("OS-Image", _info("osImage"), wide=True),
    Column("Kernel-Version", _info("kernelVersion"), wide=True),
    Column("Container-Runtime", _info("containerRuntimeVersion"), wide=True),
)
SERVICE: Final = (
    NAME,
    Column("Type", field("spec", "type")),
    Column("Cluster-IP", field("spec", "clusterIP")),
    Column("External-IP", _external_ip),
    Column("Port(s)", _service_ports),
    AGE,
    Column("Selector", _labels_text("spec", "selector"), wide=True),
)
EVENT: Final = (
    Column("Last Seen", _last_seen),
    Column("Type", field("type", empty="")),
    Column("Reason", field("reason", empty="")),
    Column("Object", _event_object),
    Column("Subobject", field("involvedObject", "fieldPath", empty=""), wide=True),
    Column("Source", field("source", "component", empty=""), wide=True),
    Column("Message", _event_message),
    Column("First Seen", lambda value, now: age(dig(value, "firstTimestamp"), now), wide=True),
    Column("Count", field("count", empty=1), type="integer", wide=True),
    Column("Name", field("metadata", "name"), format="name", wide=True),
)
NAMESPACE: Final = (NAME, Column("Status", field("status", "phase")), AGE)
SERVICE_ACCOUNT: Final = (NAME, Column("Secrets", _count("secrets"), type="string"), AGE)
CONFIG_MAP: Final = (NAME, Column("Data", _count("data"), type="string"), AGE)
SECRET: Final = (NAME, Column("Type", field("type")), Column("Data", _count("data"), type="string"), AGE)
ENDPOINT_SLICE: Final = (
    NAME,
    Column("AddressType", field("addressType")),
    Column("Ports", _slice_ports),
    Column("Endpoints", _slice_endpoints),
    AGE,
)
NETWORK_POLICY: Final = (NAME, Column("Pod-Selector", _policy_selector), AGE)
LEASE: Final = (NAME, Column("Holder", field("spec", "holderIdentity", empty="")), AGE)
DEFINITION: Final = (NAME, Column("Created At", _crd_created, type="date"))
