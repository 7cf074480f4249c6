"""The built-in kinds: schemas (light where Cilia does not look), checks, printed columns, selectable fields.

Source: the Kubernetes API reference (https://kubernetes.io/docs/reference/kubernetes-api/).
"""

from __future__ import annotations

import base64
import ipaddress
import re
from datetime import datetime
from typing import Any, Final

from .errors import FieldError, invalid, required, unsupported
from .printing import AGE, NAME, Cell, Column, age, dig, field, selector_text
from .registry import Kind, Value, Version
from .schema import Schema

# --- words for schemas -------------------------------------------------------------------------------------

_STR: Final[Schema] = {"type": "string"}
_INT: Final[Schema] = {"type": "integer"}
_INT32: Final[Schema] = {"type": "integer", "format": "int32"}
_BOOL: Final[Schema] = {"type": "boolean"}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_PORT: Final[Schema] = {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535}
_INT_OR_STR: Final[Schema] = {"x-kubernetes-int-or-string": True}
_ANY: Final[Schema] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _obj(*needed: str, **properties: Schema) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if needed:
        schema["required"] = list(needed)
    return schema


def _open(*needed: str, **properties: Schema) -> Schema:
    return {**_obj(*needed, **properties), "x-kubernetes-preserve-unknown-fields": True}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _choice(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _object(*needed: str, **properties: Schema) -> Schema:
    return _obj(*needed, apiVersion=_STR, kind=_STR, metadata={"type": "object"}, **properties)


_SELECTOR: Final = _obj(
    matchLabels=_map(_STR),
    matchExpressions=_list(
        _obj(
            "key",
            "operator",
            key=_STR,
            operator=_choice("In", "NotIn", "Exists", "DoesNotExist"),
            values=_list(_STR),
        )
    ),
)
_REFERENCE: Final = _obj(
    kind=_STR, namespace=_STR, name=_STR, uid=_STR, apiVersion=_STR, resourceVersion=_STR, fieldPath=_STR
)
_CONDITIONS: Final = _list(_open("type", "status", type=_STR, status=_choice("True", "False", "Unknown")))

_PROTOCOL: Final = _choice("TCP", "UDP", "SCTP")
_CONTAINER: Final = _open(
    "name",
    name=_STR,
    image=_STR,
    command=_list(_STR),
    args=_list(_STR),
    env=_list(_open("name", name=_STR)),
    ports=_list(
        _obj(
            "containerPort", name=_STR, containerPort=_PORT, protocol=_PROTOCOL, hostPort=_INT32, hostIP=_STR
        )
    ),
)
_NETWORK_PEER: Final = _obj(
    podSelector=_SELECTOR,
    namespaceSelector=_SELECTOR,
    ipBlock=_obj("cidr", **{"cidr": _STR, "except": _list(_STR)}),
)
_NETWORK_PORT: Final = _obj(protocol=_PROTOCOL, port=_INT_OR_STR, endPort=_INT32)
_EVENT_SERIES: Final = _open(count=_INT32)

# --- cells -------------------------------------------------------------------------------------------------


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


_POD_COLUMNS: Final = (
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
_NODE_COLUMNS: Final = (
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
_SERVICE_COLUMNS: Final = (
    NAME,
    Column("Type", field("spec", "type")),
    Column("Cluster-IP", field("spec", "clusterIP")),
    Column("External-IP", _external_ip),
    Column("Port(s)", _service_ports),
    AGE,
    Column("Selector", _labels_text("spec", "selector"), wide=True),
)
_EVENT_COLUMNS: Final = (
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

# --- checks ------------------------------------------------------------------------------------------------


def _check_policy(value: Value, old: Value | None) -> list[FieldError]:
    faults: list[FieldError] = []
    spec = value.get("spec") or {}
    for at, kind in enumerate(spec.get("policyTypes") or ()):
        if kind not in ("Ingress", "Egress"):
            faults.append(unsupported(f"spec.policyTypes[{at}]", kind, ["Egress", "Ingress"]))
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for at, rule in enumerate(spec.get(direction) or ()):
            path = f"spec.{direction}[{at}]"
            for number, port in enumerate(rule.get("ports") or ()):
                faults += _check_policy_port(port, f"{path}.ports[{number}]")
            for number, peer in enumerate(rule.get(peers) or ()):
                faults += _check_peer(peer, f"{path}.{peers}[{number}]")
    return faults


def _check_policy_port(port: Value, path: str) -> list[FieldError]:
    number, end = port.get("port"), port.get("endPort")
    faults: list[FieldError] = []
    if isinstance(number, int) and not 1 <= number <= 65535:
        faults.append(invalid(f"{path}.port", number, "must be between 1 and 65535, inclusive"))
    if isinstance(number, str) and not re.fullmatch(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*", number[:16]):
        faults.append(invalid(f"{path}.port", number, "must be a port number or an IANA service name"))
    if end is not None:
        if not isinstance(number, int):
            faults.append(invalid(f"{path}.endPort", end, "may not be specified without a numeric port"))
        elif not number <= end <= 65535:
            faults.append(
                invalid(f"{path}.endPort", end, "must be greater than or equal to `port` and at most 65535")
            )
    return faults


def _check_peer(peer: Value, path: str) -> list[FieldError]:
    block = peer.get("ipBlock")
    others = "podSelector" in peer or "namespaceSelector" in peer
    if not peer:
        return [required(path, "must specify a peer")]
    if block is None:
        return []
    if others:
        return [
            FieldError(
                "FieldValueForbidden", path, "Forbidden: may not specify both ipBlock and another peer"
            )
        ]
    outer = _network(block.get("cidr"))
    if outer is None:
        return [
            invalid(
                f"{path}.ipBlock.cidr", block.get("cidr"), "must be a valid CIDR value, (e.g. 10.9.8.0/24)"
            )
        ]
    faults: list[FieldError] = []
    for at, text in enumerate(block.get("except") or ()):
        inner, where = _network(text), f"{path}.ipBlock.except[{at}]"
        if inner is None:
            faults.append(invalid(where, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24)"))
        elif inner.version != outer.version or not inner.subnet_of(outer) or inner == outer:  # type: ignore[arg-type]
            faults.append(invalid(where, text, f"must be a strict subset of `cidr` {block['cidr']}"))
    return faults


def _network(text: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False) if isinstance(text, str) and "/" in text else None
    except ValueError:
        return None


def _check_service(value: Value, old: Value | None) -> list[FieldError]:
    faults: list[FieldError] = []
    spec = value.get("spec") or {}
    if not spec.get("ports") and spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None":
        faults.append(required("spec.ports"))
    names = [port.get("name") for port in spec.get("ports") or ()]
    if len(names) > 1:
        faults += [required(f"spec.ports[{at}].name") for at, name in enumerate(names) if not name]
    for at, text in enumerate(spec.get("externalIPs") or ()):
        if _network(f"{text}/32" if ":" not in str(text) else f"{text}/128") is None:
            faults.append(invalid(f"spec.externalIPs[{at}]", text, "must be a valid IP address"))
    return faults


def _check_pod(value: Value, old: Value | None) -> list[FieldError]:
    spec = value.get("spec") or {}
    faults = [] if spec.get("containers") else [required("spec.containers")]
    names = [dig(c, "name") for c in spec.get("containers") or ()]
    for at, name in enumerate(names):
        if name in names[:at]:
            faults.append(
                FieldError("FieldValueDuplicate", f"spec.containers[{at}].name", f'Duplicate value: "{name}"')
            )
    bound, wanted = dig(old, "spec", "nodeName"), spec.get("nodeName")
    if old is not None and bound and bound != wanted:
        faults.append(
            FieldError(
                "FieldValueForbidden", "spec.nodeName", "Forbidden: a pod that has a node can't change it"
            )
        )
    return faults


def _check_slice(value: Value, old: Value | None) -> list[FieldError]:
    family = {"IPv4": 4, "IPv6": 6}.get(value.get("addressType", ""))
    faults: list[FieldError] = []
    if old is not None and old.get("addressType") != value.get("addressType"):
        faults.append(invalid("addressType", value.get("addressType"), "field is immutable"))
    if family is None:
        return faults
    for at, endpoint in enumerate(value.get("endpoints") or ()):
        for number, text in enumerate(endpoint.get("addresses") or ()):
            parsed = _network(f"{text}/{32 if family == 4 else 128}")
            if parsed is None or parsed.version != family:
                path = f"endpoints[{at}].addresses[{number}]"
                faults.append(invalid(path, text, f"must be a valid IPv{family} address"))
    return faults


# --- completion (defaults that other programs rely on) -----------------------------------------------------


def _complete_namespace(value: Value) -> Value:
    value.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    value.setdefault("status", {}).setdefault("phase", "Active")
    labels = value["metadata"].setdefault("labels", {})
    labels["kubernetes.io/metadata.name"] = value["metadata"]["name"]
    return value


def _complete_pod(value: Value) -> Value:
    spec = value.setdefault("spec", {})
    for key, default in (
        ("restartPolicy", "Always"),
        ("dnsPolicy", "ClusterFirst"),
        ("terminationGracePeriodSeconds", 30),
        ("serviceAccountName", "default"),
        ("schedulerName", "default-scheduler"),
        ("enableServiceLinks", True),
    ):
        spec.setdefault(key, default)
    for container in spec.get("containers") or ():
        for port in container.get("ports") or ():
            port.setdefault("protocol", "TCP")
    value.setdefault("status", {}).setdefault("phase", "Pending")
    return value


def _complete_service(value: Value) -> Value:
    spec = value.setdefault("spec", {})
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
    if spec.get("clusterIP"):
        spec.setdefault("clusterIPs", [spec["clusterIP"]])
    value.setdefault("status", {}).setdefault("loadBalancer", {})
    return value


def _complete_policy(value: Value) -> Value:
    spec = value.get("spec")
    if isinstance(spec, dict):
        spec.setdefault("podSelector", {})
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
        for rule in (*(spec.get("ingress") or ()), *(spec.get("egress") or ())):
            for port in rule.get("ports") or ():
                port.setdefault("protocol", "TCP")
    return value


def _complete_secret(value: Value) -> Value:
    for key, text in (value.pop("stringData", None) or {}).items():
        value.setdefault("data", {})[key] = base64.b64encode(str(text).encode()).decode()
    value.setdefault("type", "Opaque")
    return value


# --- events.k8s.io/v1 over core/v1 -------------------------------------------------------------------------

_EVENT_NAMES: Final = (
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
)


def _event_inward(value: Value) -> Value:
    names = dict(_EVENT_NAMES)
    return {**{names.get(key, key): item for key, item in value.items()}, "apiVersion": "v1"}


def _event_outward(value: Value) -> Value:
    names = {core: new for new, core in _EVENT_NAMES}
    return {**{names.get(key, key): item for key, item in value.items()}, "apiVersion": "events.k8s.io/v1"}


# --- the table ---------------------------------------------------------------------------------------------


def _kind(
    group: str,
    version: Version,
    plural: str,
    kind: str,
    *,
    namespaced: bool = True,
    short: tuple[str, ...] = (),
    **more: Any,
) -> Kind:
    return Kind(
        group=group,
        versions=(version,),
        storage=version.name,
        plural=plural,
        singular=kind.lower(),
        kind=kind,
        list_kind=kind + "List",
        namespaced=namespaced,
        short_names=short,
        **more,
    )


def _v1(schema: Schema, columns: tuple[Column, ...] = (NAME, AGE), *, status: bool = False) -> Version:
    return Version("v1", schema, columns, status)


_POD: Final = _object(
    "spec",
    spec=_open(
        "containers",
        containers=_list(_CONTAINER),
        initContainers=_list(_CONTAINER),
        nodeName=_STR,
        nodeSelector=_map(_STR),
        hostNetwork=_BOOL,
        serviceAccountName=_STR,
        restartPolicy=_choice("Always", "OnFailure", "Never"),
        terminationGracePeriodSeconds=_INT,
        tolerations=_list(_open()),
    ),
    status=_open(
        phase=_choice("Pending", "Running", "Succeeded", "Failed", "Unknown"),
        podIP=_STR,
        podIPs=_list(_open(ip=_STR)),
        hostIP=_STR,
        conditions=_CONDITIONS,
    ),
)
_NODE: Final = _object(
    spec=_open(podCIDR=_STR, podCIDRs=_list(_STR), unschedulable=_BOOL, taints=_list(_open("key", "effect"))),
    status=_open(addresses=_list(_obj("type", "address", type=_STR, address=_STR)), conditions=_CONDITIONS),
)
_SERVICE: Final = _object(
    spec=_open(
        type=_choice("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
        clusterIP=_STR,
        clusterIPs=_list(_STR),
        selector=_map(_STR),
        sessionAffinity=_choice("None", "ClientIP"),
        ports=_list(
            _obj(
                "port",
                name=_STR,
                port=_PORT,
                targetPort=_INT_OR_STR,
                protocol=_PROTOCOL,
                nodePort=_INT32,
                appProtocol=_STR,
            )
        ),
    ),
    status=_open(loadBalancer=_open()),
)
_SLICE: Final = _object(
    "addressType",
    "endpoints",
    addressType=_choice("IPv4", "IPv6", "FQDN"),
    endpoints=_list(
        _obj(
            "addresses",
            addresses={**_list(_STR), "minItems": 1, "maxItems": 100},
            conditions=_obj(ready=_BOOL, serving=_BOOL, terminating=_BOOL),
            hostname=_STR,
            nodeName=_STR,
            zone=_STR,
            targetRef=_REFERENCE,
            hints=_open(),
            deprecatedTopology=_map(_STR),
        )
    ),
    ports=_list(_obj(name=_STR, protocol=_PROTOCOL, port=_INT32, appProtocol=_STR)),
)
_POLICY: Final = _object(
    spec=_obj(
        podSelector=_SELECTOR,
        policyTypes=_list(_STR),
        ingress=_list(_obj(ports=_list(_NETWORK_PORT), **{"from": _list(_NETWORK_PEER)})),
        egress=_list(_obj(ports=_list(_NETWORK_PORT), to=_list(_NETWORK_PEER))),
    )
)
_LEASE: Final = _object(
    spec=_obj(
        holderIdentity=_STR,
        leaseDurationSeconds={**_INT32, "minimum": 1},
        acquireTime=_TIME,
        renewTime=_TIME,
        leaseTransitions=_INT32,
        strategy=_STR,
        preferredHolder=_STR,
    )
)
_EVENT: Final = _object(
    "involvedObject",
    involvedObject=_REFERENCE,
    reason=_STR,
    message=_STR,
    type=_STR,
    source=_obj(component=_STR, host=_STR),
    firstTimestamp={**_TIME, "nullable": True},
    lastTimestamp={**_TIME, "nullable": True},
    eventTime={**_TIME, "nullable": True},
    count=_INT32,
    series=_EVENT_SERIES,
    action=_STR,
    related=_REFERENCE,
    reportingComponent=_STR,
    reportingInstance=_STR,
)
_NEW_EVENT: Final = _object(
    regarding=_REFERENCE,
    reason=_STR,
    note=_STR,
    type=_STR,
    eventTime={**_TIME, "nullable": True},
    series=_EVENT_SERIES,
    action=_STR,
    related=_REFERENCE,
    reportingController=_STR,
    reportingInstance=_STR,
    deprecatedSource=_open(),
    deprecatedFirstTimestamp={**_TIME, "nullable": True},
    deprecatedLastTimestamp={**_TIME, "nullable": True},
    deprecatedCount=_INT32,
)
_DEFINITION: Final = _object(
    "spec",
    spec=_open(
        "group",
        "names",
        "scope",
        "versions",
        group=_STR,
        names=_open("plural", "kind", plural=_STR, kind=_STR, singular=_STR, shortNames=_list(_STR)),
        scope=_choice("Cluster", "Namespaced"),
        versions={
            **_list(_open("name", "served", "storage", name=_STR, served=_BOOL, storage=_BOOL)),
            "minItems": 1,
        },
    ),
    status=_open(),
)

_EVENT_FIELDS: Final = (
    *(
        f"involvedObject.{name}"
        for name in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion")
    ),
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
)

KINDS: Final = (
    _kind(
        "",
        _v1(
            _object(spec=_open(), status=_open()),
            (NAME, Column("Status", field("status", "phase")), AGE),
            status=True,
        ),
        "namespaces",
        "Namespace",
        namespaced=False,
        short=("ns",),
        subresources=("finalize", "status"),
        fields=("status.phase",),
        complete=_complete_namespace,
        verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
    ),
    _kind(
        "",
        _v1(_NODE, _NODE_COLUMNS, status=True),
        "nodes",
        "Node",
        namespaced=False,
        short=("no",),
        subresources=("status",),
        fields=("spec.unschedulable",),
    ),
    _kind(
        "",
        _v1(_POD, _POD_COLUMNS, status=True),
        "pods",
        "Pod",
        short=("po",),
        categories=("all",),
        subresources=("binding", "status"),
        fields=(
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ),
        check=_check_pod,
        complete=_complete_pod,
    ),
    _kind(
        "",
        _v1(_SERVICE, _SERVICE_COLUMNS, status=True),
        "services",
        "Service",
        short=("svc",),
        categories=("all",),
        subresources=("status",),
        fields=("spec.clusterIP", "spec.type"),
        check=_check_service,
        complete=_complete_service,
    ),
    _kind(
        "",
        _v1(
            _object(
                secrets=_list(_open()), imagePullSecrets=_list(_open()), automountServiceAccountToken=_BOOL
            ),
            (NAME, Column("Secrets", _count("secrets"), type="string"), AGE),
        ),
        "serviceaccounts",
        "ServiceAccount",
        short=("sa",),
    ),
    _kind(
        "",
        _v1(
            _object(data=_map(_STR), binaryData=_map(_STR), immutable=_BOOL),
            (NAME, Column("Data", _count("data"), type="string"), AGE),
        ),
        "configmaps",
        "ConfigMap",
        short=("cm",),
    ),
    _kind(
        "",
        _v1(
            _object(data=_map({**_STR, "format": "byte"}), stringData=_map(_STR), type=_STR, immutable=_BOOL),
            (NAME, Column("Type", field("type")), Column("Data", _count("data"), type="string"), AGE),
        ),
        "secrets",
        "Secret",
        fields=("type",),
        complete=_complete_secret,
    ),
    _kind(
        "",
        _v1(_EVENT, _EVENT_COLUMNS),
        "events",
        "Event",
        short=("ev",),
        fields=_EVENT_FIELDS,
    ),
    _kind(
        "events.k8s.io",
        Version("v1", _NEW_EVENT, _EVENT_COLUMNS, inward=_event_inward, outward=_event_outward),
        "events",
        "Event",
        short=("ev",),
        resource="/events",
        fields=_EVENT_FIELDS,
    ),
    _kind(
        "discovery.k8s.io",
        _v1(
            _SLICE,
            (
                NAME,
                Column("AddressType", field("addressType")),
                Column("Ports", _slice_ports),
                Column("Endpoints", _slice_endpoints),
                AGE,
            ),
        ),
        "endpointslices",
        "EndpointSlice",
        check=_check_slice,
    ),
    _kind(
        "networking.k8s.io",
        _v1(_POLICY, (NAME, Column("Pod-Selector", _policy_selector), AGE)),
        "networkpolicies",
        "NetworkPolicy",
        short=("netpol",),
        check=_check_policy,
        complete=_complete_policy,
    ),
    _kind(
        "coordination.k8s.io",
        _v1(_LEASE, (NAME, Column("Holder", field("spec", "holderIdentity", empty="")), AGE)),
        "leases",
        "Lease",
    ),
    _kind(
        "apiextensions.k8s.io",
        _v1(_DEFINITION, (NAME, Column("Created At", _crd_created, type="date")), status=True),
        "customresourcedefinitions",
        "CustomResourceDefinition",
        namespaced=False,
        short=("crd", "crds"),
        categories=("api-extensions",),
        subresources=("status",),
    ),
)
