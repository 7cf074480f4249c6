"""What the built-in kinds demand and fill in, beyond their schemas; and the two faces of events. Pure."""

from __future__ import annotations

import base64
import ipaddress
import re
from functools import lru_cache
from typing import Any, Final

from .errors import FieldError, invalid, required, show, unsupported
from .printing import dig
from .registry import Value
from .services import HEADLESS, is_reachable_outside
from .services import defaults as service_defaults

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


Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LONGEST = 64
"""Characters of a network; longer ones are none, and not worth remembering."""


def _network(text: Any) -> Network | None:
    return _parsed(text) if isinstance(text, str) and "/" in text and len(text) <= LONGEST else None


@lru_cache(maxsize=16_384)
def _parsed(text: str) -> Network | None:
    """The same addresses come in each version of a slice."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def check_service(value: Value, old: Value | None) -> list[FieldError]:
    """The rules of a Service that don't depend on others; what is allocated is judged by its allocator."""
    spec = value.get("spec") or {}
    before = (old or {}).get("spec") or {}
    faults = [
        *_check_service_ports(spec),
        *_check_cluster_ips(spec, before),
        *_check_outside(spec),
        *_check_ingress(value),
    ]
    if spec.get("sessionAffinity") == "ClientIP":
        seconds = dig(spec, "sessionAffinityConfig", "clientIP", "timeoutSeconds")
        if isinstance(seconds, int) and not 0 < seconds <= 86_400:
            path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
            faults.append(invalid(path, seconds, "must be greater than 0 and at most 86400"))
    return faults


def _check_service_ports(spec: Value) -> list[FieldError]:
    kind, ports = spec.get("type"), spec.get("ports") or ()
    faults: list[FieldError] = []
    if not ports and kind != "ExternalName" and spec.get("clusterIP") != HEADLESS:
        faults.append(required("spec.ports"))
    names = [port.get("name") for port in ports]
    if len(names) > 1:
        faults += [required(f"spec.ports[{at}].name") for at, name in enumerate(names) if not name]
    keys = [(port.get("port"), port.get("protocol")) for port in ports]
    outer = [(port["nodePort"], port.get("protocol")) if port.get("nodePort") else None for port in ports]
    for at, port in enumerate(ports):
        path = f"spec.ports[{at}]"
        if names[at] and names[at] in names[:at]:
            faults.append(_duplicate(f"{path}.name", names[at]))
        if keys[at] in keys[:at]:
            faults.append(_duplicate(path, port))
        if outer[at] and outer[at] in outer[:at]:
            faults.append(_duplicate(f"{path}.nodePort", port["nodePort"]))
        if port.get("nodePort") and kind in ("ClusterIP", "ExternalName"):
            faults.append(_forbidden(f"{path}.nodePort", f"may not be used when `type` is '{kind}'"))
        target = port.get("targetPort")
        if isinstance(target, int) and not 0 < target < 65536:
            faults.append(invalid(f"{path}.targetPort", target, "must be between 1 and 65535, inclusive"))
    return faults


def _check_cluster_ips(spec: Value, before: Value) -> list[FieldError]:
    kind, given = spec.get("type"), spec.get("clusterIPs") or []
    if kind == "ExternalName":
        faults = [] if spec.get("externalName") else [required("spec.externalName")]
        if given:
            faults.append(_forbidden("spec.clusterIPs", "may not be set when `type` is 'ExternalName'"))
        return faults
    faults = []
    if given and spec.get("clusterIP", "") != given[0]:
        faults.append(invalid("spec.clusterIP", spec.get("clusterIP"), "must be the first of clusterIPs"))
    if HEADLESS in given:
        if len(given) > 1:
            faults.append(invalid("spec.clusterIPs", given, "'None' stands alone"))
        if kind != "ClusterIP":
            faults.append(invalid("spec.clusterIPs[0]", HEADLESS, f"may not be 'None' for {kind} services"))
    for at, text in enumerate(given):
        if text != HEADLESS and _single_address(text) is None:
            faults.append(invalid(f"spec.clusterIPs[{at}]", text, "must be a valid IP address"))
    had = before.get("clusterIPs") or []
    for at, (old, new) in enumerate(zip(had, given, strict=False)):
        if old != new and before.get("type") != "ExternalName":
            faults.append(invalid(f"spec.clusterIPs[{at}]", given, "may not change once set"))
    return faults


def _check_outside(spec: Value) -> list[FieldError]:
    """External addresses, traffic from outside, source ranges."""
    faults: list[FieldError] = []
    for at, text in enumerate(spec.get("externalIPs") or ()):
        found = _single_address(text)
        if found is None:
            faults.append(invalid(f"spec.externalIPs[{at}]", text, "must be a valid IP address"))
        elif found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified:
            faults.append(invalid(f"spec.externalIPs[{at}]", text, "must be the address of a host"))
    if spec.get("externalTrafficPolicy") and not is_reachable_outside(spec):
        text = "may only be set for externally-accessible services"
        faults.append(invalid("spec.externalTrafficPolicy", spec["externalTrafficPolicy"], text))
    balancer = spec.get("type") == "LoadBalancer"
    for at, text in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        path = f"spec.loadBalancerSourceRanges[{at}]"
        if not balancer:
            faults.append(_forbidden(path, "may only be used when `type` is 'LoadBalancer'"))
        elif _network(text.strip()) is None:
            faults.append(invalid(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24)"))
    if spec.get("healthCheckNodePort") and not (balancer and spec.get("externalTrafficPolicy") == "Local"):
        text = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        faults.append(invalid("spec.healthCheckNodePort", spec["healthCheckNodePort"], text))
    return faults


def _check_ingress(value: Value) -> list[FieldError]:
    faults = []
    for at, entry in enumerate(dig(value, "status", "loadBalancer", "ingress") or ()):
        path = f"status.loadBalancer.ingress[{at}]"
        if entry.get("ip") and _single_address(entry["ip"]) is None:
            faults.append(invalid(f"{path}.ip", entry["ip"], "must be a valid IP address"))
        if entry.get("ipMode") and not entry.get("ip"):
            faults.append(_forbidden(f"{path}.ipMode", "may not be specified when `ip` is not set"))
    return faults


def _single_address(text: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text) if isinstance(text, str) and "%" not in text else None
    except ValueError:
        return None


def _duplicate(path: str, value: Any) -> FieldError:
    return FieldError("FieldValueDuplicate", path, f"Duplicate value: {show(value)}")


def _forbidden(path: str, text: str) -> FieldError:
    return FieldError("FieldValueForbidden", path, f"Forbidden: {text}")


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
    service_defaults(value.setdefault("spec", {}))
    balancer = value.setdefault("status", {}).setdefault("loadBalancer", {})
    for entry in balancer.get("ingress") or ():
        if entry.get("ip"):
            entry.setdefault("ipMode", "VIP")
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
