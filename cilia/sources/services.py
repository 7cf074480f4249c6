"""Services into `services` and their EndpointSlices into `endpoint_slices`.

What can't be read of an object is left out and told in its row: the rest stands, or one bad port would take
a whole Service away.
"""

import sys
from collections.abc import Iterable, Iterator

import msgspec

from cilia.cluster.store import ENDPOINT_SLICES, SERVICES, Invalid, decode
from cilia.model.resources import core
from cilia.model.resources.base import AnyObject
from cilia.model.service import Protocol
from cilia.schema.rows import EndpointSliceRow, ServicePort, ServiceRow, SliceEndpoint, SlicePort
from cilia.sources import checks
from cilia.sources.reflector import Translation

SERVICE_NAME = "kubernetes.io/service-name"
"""The label by which a slice names its Service."""

WITHOUT_PODS = "ExternalName"
"""The type of a Service that is an alias of a DNS name: it has neither addresses nor backends."""

HEADLESS = "None"
"""The cluster IP of a Service that wants none."""

AFFINITY_SECONDS = 10_800
"""How long a client stays with its backend unless the Service says otherwise."""

RANGES_ANNOTATION = "service.beta.kubernetes.io/load-balancer-source-ranges"
"""Source ranges, separated by commas: read where the field is empty."""

RELEVANT = ("service.cilium.io/", "service.kubernetes.io/")
"""Annotations that mean something here: anybody may write others at any time."""


def services() -> Translation[tuple[str, str], ServiceRow]:
    """Translate all Services."""
    return Translation(SERVICES, service, key)


def endpoint_slices() -> Translation[tuple[str, str], EndpointSliceRow]:
    """Translate all EndpointSlices that belong to a Service."""
    return Translation(ENDPOINT_SLICES, endpoint_slice, key)


def key(any_object: AnyObject) -> tuple[str, str]:
    """Namespace and name."""
    return any_object.metadata.namespace, any_object.metadata.name


def service(raw: msgspec.Raw) -> ServiceRow | None:
    """Return the row of a Service; None for an alias of a DNS name."""
    found = decode(raw, core.Service)
    meta, spec = found.metadata, found.spec
    if spec.type == WITHOUT_PODS:
        return None
    problems: list[str] = []
    cluster_ips = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    wanted_ips = [text for text in cluster_ips if text != HEADLESS]
    balancers = [entry.ip for entry in found.status.load_balancer.ingress or () if _comes_here(entry)]
    return ServiceRow(
        namespace=meta.namespace,
        name=meta.name,
        created=meta.creation_timestamp or "",
        labels=meta.labels or {},
        annotations=_relevant(meta.annotations),
        selector=spec.selector or {},
        type=sys.intern(spec.type),
        headless=HEADLESS in cluster_ips,
        cluster_ips=_addresses("spec.clusterIPs", wanted_ips, problems),
        external_ips=_addresses("spec.externalIPs", spec.external_ips or (), problems),
        load_balancer_ips=_addresses("status.loadBalancer.ingress", balancers, problems),
        ports=tuple(_service_ports(spec.ports or (), problems)),
        external_local=spec.external_traffic_policy == "Local",
        internal_local=spec.internal_traffic_policy == "Local",
        affinity=_affinity(spec, problems),
        source_ranges=_source_ranges(spec, meta.annotations or {}),
        health_check_port=_port("spec.healthCheckNodePort", spec.health_check_node_port, problems),
        traffic_distribution=spec.traffic_distribution or "",
        problems=tuple(problems),
    )


def endpoint_slice(raw: msgspec.Raw) -> EndpointSliceRow | None:
    """Return the row of a slice; None for one that belongs to no Service.

    `addresses` are those of all endpoints, ready or not, so that a policy does not flap with their health.
    DNS names and what stands for no single host are left out.
    """
    found = decode(raw, core.EndpointSlice)
    meta = found.metadata
    owner = (meta.labels or {}).get(SERVICE_NAME)
    if not owner:
        return None
    problems: list[str] = []
    endpoints = () if found.address_type == "FQDN" else tuple(_endpoints(found.endpoints or (), problems))
    return EndpointSliceRow(
        namespace=meta.namespace,
        name=meta.name,
        service=owner,
        addresses=tuple(sorted({address for endpoint in endpoints for address in endpoint.addresses})),
        annotations=_relevant(meta.annotations, RELEVANT[:1]),
        ipv6=found.address_type == "IPv6",
        endpoints=endpoints,
        ports=tuple(_slice_ports(found.ports or (), problems)),
        problems=tuple(problems),
    )


# parts of a Service


def _comes_here(entry: core.LoadBalancerIngress) -> bool:
    """Whether packets for an address arrive at nodes; a proxy in front gives them others."""
    return bool(entry.ip) and entry.ip_mode in (None, "VIP")


def _relevant(annotations: dict[str, str] | None, prefixes: tuple[str, ...] = RELEVANT) -> dict[str, str]:
    return {name: value for name, value in (annotations or {}).items() if name.startswith(prefixes)}


def _service_ports(ports: Iterable[core.ServicePort], problems: list[str]) -> Iterator[ServicePort]:
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        number = _port(f"{path}.port", port.port, problems, optional=False)
        protocol = _protocol(path, port.protocol, problems)
        if number and protocol:
            node_port = _port(f"{path}.nodePort", port.node_port or 0, problems)
            yield ServicePort(sys.intern(port.name), number, protocol, node_port)


def _affinity(spec: core.ServiceSpec, problems: list[str]) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None:
        return AFFINITY_SECONDS
    if not 0 < seconds <= 86_400:
        path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        problems.append(f"{path}: {seconds} is not between 1 and 86400; {AFFINITY_SECONDS} is used")
        return AFFINITY_SECONDS
    return seconds


def _source_ranges(spec: core.ServiceSpec, annotations: dict[str, str]) -> tuple[str, ...]:
    texts = spec.load_balancer_source_ranges or [
        text for text in annotations.get(RANGES_ANNOTATION, "").split(",") if text.strip()
    ]
    return tuple(sorted({_range(text.strip()) for text in texts}))


def _range(text: str) -> str:
    try:
        return checks.block(text)
    except Invalid:
        return text


# parts of a slice


def _endpoints(endpoints: Iterable[core.SliceEndpoint], problems: list[str]) -> Iterator[SliceEndpoint]:
    for index, endpoint in enumerate(endpoints):
        addresses = _addresses(f"endpoints[{index}].addresses", endpoint.addresses, problems)
        if not addresses:
            continue
        conditions = endpoint.conditions or core.EndpointConditions()
        ready = conditions.ready is not False
        hints = endpoint.hints
        yield SliceEndpoint(
            addresses=addresses,
            ready=ready,
            serving=ready if conditions.serving is None else conditions.serving,
            terminating=conditions.terminating is True,
            node=sys.intern(endpoint.node_name or ""),
            zone=sys.intern(endpoint.zone or ""),
            hint_zones=_names(hints.for_zones) if hints else (),
            hint_nodes=_names(hints.for_nodes) if hints else (),
        )


def _names(hints: tuple[core.NamedHint, ...] | None) -> tuple[str, ...]:
    return tuple(sorted(sys.intern(hint.name) for hint in hints or () if hint.name))


def _slice_ports(ports: Iterable[core.EndpointPort], problems: list[str]) -> Iterator[SlicePort]:
    for index, port in enumerate(ports):
        if port.port is None:
            # All ports: of use to those who look at names only.
            continue
        path = f"ports[{index}]"
        number = _port(f"{path}.port", port.port, problems, optional=False)
        protocol = _protocol(path, port.protocol or "TCP", problems)
        if number and protocol:
            yield SlicePort(sys.intern(port.name or ""), number, protocol)


# fields of both


def _addresses(path: str, texts: Iterable[str], problems: list[str]) -> tuple[str, ...]:
    """What is the address of a host, once each and in its order; the rest is a problem."""
    passed: dict[str, None] = {}
    for text in texts:
        try:
            passed[checks.address(text)] = None
        except Invalid as error:
            problems.append(f"{path}: {error}")
    return tuple(passed)


def _port(path: str, number: int, problems: list[str], *, optional: bool = True) -> int:
    """The number, or 0 when it is none."""
    if 0 < number < 65536:
        return number
    if number or not optional:
        problems.append(f"{path}: {number} is no port")
    return 0


def _protocol(path: str, name: str, problems: list[str]) -> Protocol | None:
    try:
        return Protocol[name]
    except KeyError:
        problems.append(f"{path}.protocol: {name[:60]!r} can't be balanced: use TCP, UDP or SCTP")
        return None
