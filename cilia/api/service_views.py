"""From frontends and the objects behind them to what the REST API answers. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cilia.api.types import (
    ServiceAddress,
    ServiceBackend,
    ServiceFlags,
    ServiceProblem,
    ServiceRealization,
    ServiceSpec,
    ServiceView,
)
from cilia.model.service import Backend, Frontend, FrontendKind, ServiceEntry, ServiceState
from cilia.schema import Inputs
from cilia.schema.rows import EndpointSliceRow


class Surroundings(Protocol):
    """What is known around the rows."""

    def number(self, frontend: Frontend) -> int:
        """The kernel's number of a frontend; 0: none."""
        ...

    def pod(self, address: str) -> str:
        """namespace/name of the pod at an address, or empty."""
        ...

    def realization(self, frontend: Frontend) -> tuple[str, str]:
        """realized, pending or error; and the error's sentence."""
        ...


def service_view(
    entry: ServiceEntry, around: Surroundings, why_none: str = "", problems: tuple[str, ...] = ()
) -> ServiceView:
    """One frontend."""
    state, error = around.realization(entry.frontend)
    return ServiceView(
        spec=ServiceSpec(
            id=around.number(entry.frontend),
            frontend_address=ServiceAddress(
                ip=entry.frontend.address,
                port=entry.frontend.port,
                protocol=entry.frontend.protocol.name,
                scope="external" if entry.outside else "internal",
            ),
            backend_addresses=tuple(backend_views(entry, around)),
            flags=ServiceFlags(
                type=entry.kind.value,
                namespace=entry.namespace,
                name=entry.name,
                port_name=entry.port_name,
                ext_traffic_policy="Local" if entry.keeps_client else "Cluster" if entry.outside else "",
                algorithm=entry.algorithm.value,
                mode=entry.mode.value if entry.outside else "",
                affinity=entry.affinity,
                source_ranges=entry.source_ranges,
                sources_denied=entry.sources_denied,
                without_backends="pass" if entry.loose else "reject" if entry.reject else "drop",
                skip=entry.skip,
            ),
        ),
        status=ServiceRealization(state=state, error=error, problems=problems, why_none=why_none),
    )


def backend_views(entry: ServiceEntry, around: Surroundings) -> Iterable[ServiceBackend]:
    """Candidates, inside before outside, and then those that drain."""
    inside, outside = dict.fromkeys(entry.internal), dict.fromkeys(entry.external if entry.outside else ())
    for backend in dict.fromkeys((*inside, *outside)):
        only = ""
        if entry.outside and (backend in inside) != (backend in outside):
            only = "internal" if backend in inside else "external"
        yield _backend(backend, "active" if backend.weight > 0 else "maintenance", only, around)
    for backend in entry.draining:
        yield _backend(backend, "terminating" if backend.weight > 0 else "maintenance", "", around)


def _backend(backend: Backend, state: str, only: str, around: Surroundings) -> ServiceBackend:
    return ServiceBackend(
        ip=backend.address,
        port=backend.port,
        protocol=backend.protocol.name,
        state=state,
        weight=backend.weight,
        node_name=backend.node,
        zone=backend.zone,
        pod=around.pod(backend.address),
        only=only,
    )


def problem_view(state: ServiceState) -> ServiceProblem:
    """What is wrong with an object."""
    return ServiceProblem(
        kind=state.kind, namespace=state.namespace, name=state.name, problems=state.problems
    )


def is_served(backends: Iterable[Backend]) -> bool:
    """Whether new flows get a backend."""
    for backend in backends:  # noqa: SIM110 - a generator costs more, and this is asked of all frontends
        if backend.weight > 0:
            return True
    return False


def why_none(entry: ServiceEntry, inputs: Inputs) -> str:
    """Why clients of a frontend get no backend, in a few words; empty: they all do."""
    if not is_served(entry.internal):
        return _why(entry, entry.internal, inputs)
    if entry.outside and not is_served(entry.external):
        return f"outside clients: {_why(entry, entry.external, inputs, outside=True)}"
    return ""


def _why(entry: ServiceEntry, candidates: tuple[Backend, ...], inputs: Inputs, outside: bool = False) -> str:
    if candidates or (entry.draining and not is_served(entry.draining)):
        return "all backends are in maintenance (weight 0)"
    if entry.draining:
        return "the last backends are terminating"
    match entry.kind:
        case FrontendKind.LOCAL_REDIRECT:
            return "no pod on this node that the policy selects is ready"
        case FrontendKind.HOST_PORT:
            return "the pod is not ready"
        case FrontendKind.STANDALONE:
            return "no backend on this node serves it" if entry.keeps_client else "it has no backends"
    slices = inputs.endpoint_slices.by("service", (entry.namespace, entry.name))
    return _why_of_slices(entry, slices, inputs, outside)


def _why_of_slices(entry: ServiceEntry, slices: list[EndpointSliceRow], inputs: Inputs, outside: bool) -> str:
    service = inputs.services.get((entry.namespace, entry.name))
    selects = service is not None and bool(service.selector)
    family = [row for row in slices if row.ipv6 == (":" in entry.frontend.address)]
    endpoints = [endpoint for row in family for endpoint in row.endpoints]
    if not slices:
        return "no EndpointSlice names the Service" + ("" if selects else "; it has no selector")
    if not endpoints:
        pods = ": no pod has the labels it selects" if selects else ""
        return f"its EndpointSlices list no endpoints{pods}"
    ready = sum(endpoint.ready for endpoint in endpoints)
    if not ready:
        return f"none of its {len(endpoints)} endpoints is ready"
    offering = (row for row in family if any(endpoint.ready for endpoint in row.endpoints))
    names = {port.name for row in offering for port in row.ports}
    if not names:
        return f"its {ready} ready endpoints have no port: targetPort may be a name that no container has"
    if entry.port_name not in names:
        named = f"named {entry.port_name!r}" if entry.port_name else "without a name"
        return f"no endpoint has a port {named}"
    policy = "externalTrafficPolicy" if outside else "internalTrafficPolicy"
    return f"none of its {ready} ready endpoints is on this node ({policy}: Local)"
