"""What the built-in kinds demand and fill in, beyond their schemas; and the two faces of events. Pure."""

from __future__ import annotations

import base64
import ipaddress
import re
from typing import Any, Final

from .errors import FieldError, invalid, required, unsupported
from .printing import dig
from .registry import Value

# --- checks ------------------------------------------------------------------------------------------------


def check_policy(value: Value, old: Value | None) -> list[FieldError]:
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


def check_service(value: Value, old: Value | None) -> list[FieldError]:
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


def check_pod(value: Value, old: Value | None) -> list[FieldError]:
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


def check_slice(value: Value, old: Value | None) -> list[FieldError]:
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


def complete_namespace(value: Value) -> Value:
    value.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    value.setdefault("status", {}).setdefault("phase", "Active")
    labels = value["metadata"].setdefault("labels", {})
    labels["kubernetes.io/metadata.name"] = value["metadata"]["name"]
    return value


def complete_pod(value: Value) -> Value:
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


def complete_service(value: Value) -> Value:
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


def complete_policy(value: Value) -> Value:
    spec = value.get("spec")
    if isinstance(spec, dict):
        spec.setdefault("podSelector", {})
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
        for rule in (*(spec.get("ingress") or ()), *(spec.get("egress") or ())):
            for port in rule.get("ports") or ():
                port.setdefault("protocol", "TCP")
    return value


def complete_secret(value: Value) -> Value:
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


def event_inward(value: Value) -> Value:
    names = dict(_EVENT_NAMES)
    return {**{names.get(key, key): item for key, item in value.items()}, "apiVersion": "v1"}


def event_outward(value: Value) -> Value:
    names = {core: new for new, core in _EVENT_NAMES}
    return {**{names.get(key, key): item for key, item in value.items()}, "apiVersion": "events.k8s.io/v1"}
