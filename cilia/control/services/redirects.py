"""Local redirect policies: traffic to an address or a Service goes to pods of this node.

While no pod of the node is ready to take it, a Service keeps its own backends, and an address is left alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cilia.control.services.drafts import Draft
from cilia.control.services.selectors import read_object
from cilia.control.services.settings import ServiceSettings
from cilia.control.services.standing import Standing, is_ipv6
from cilia.model.service import Backend, Frontend, FrontendKind, ServiceEntry
from cilia.schema import LocalRedirectRow, PodRow, ServiceRow
from cilia.schema.rows import RedirectPort

OFF = "local redirect policies are off on this node; switch on enable-local-redirect-policy"


class Redirected(NamedTuple):
    """A frontend that is caught, and the port of the pods it goes to."""

    frontend: Frontend
    port: int
    name: str = ""


def draft(
    row: LocalRedirectRow,
    service: ServiceRow | None,
    pods: Iterable[PodRow],
    standing: Standing,
    settings: ServiceSettings,
) -> Draft:
    """All that a redirect asks for. `service`: the one it names, if there is one; `pods`: this node's."""
    problem = row.problem or ("" if settings.local_redirects else OFF)
    if problem:
        return Draft(problems=(problem,))
    try:
        caught = list(_caught(row, service, settings))
        selector = read_object(row.backend_labels, row.backend_expressions)
    except ValueError as error:
        return Draft(problems=(str(error),))
    selected = sorted(
        (pod for pod in pods if pod.namespace == row.namespace and selector.selects(pod.labels)),
        key=lambda pod: pod.name,
    )
    entries = {
        entry.frontend: entry
        for each in caught
        if (entry := _entry(row, each, selected, standing, settings)) is not None
    }
    return Draft(tuple(entries.values()))


def _entry(
    row: LocalRedirectRow,
    caught: Redirected,
    pods: Sequence[PodRow],
    standing: Standing,
    settings: ServiceSettings,
) -> ServiceEntry | None:
    frontend = caught.frontend
    ready = _backends((pod for pod in pods if _takes(pod)), caught, standing)
    rest = _backends((pod for pod in pods if not _takes(pod)), caught, standing)
    by_address = bool(row.address)
    if not ready and not (by_address and rest):
        return None
    return ServiceEntry(
        frontend=frontend,
        kind=FrontendKind.LOCAL_REDIRECT,
        namespace=row.namespace,
        name=row.name,
        port_name=caught.name,
        internal=ready,
        draining=rest,
        reject=settings.reject,
        loose=by_address,
        skip=_addresses(pods) if row.skip_from_backend else (),
    )


def _takes(pod: PodRow) -> bool:
    return pod.ready and not pod.terminating


def _backends(pods: Iterable[PodRow], caught: Redirected, standing: Standing) -> tuple[Backend, ...]:
    frontend = caught.frontend
    return tuple(
        sorted(
            Backend(address, caught.port, frontend.protocol, node=standing.name, zone=standing.zone)
            for address in {address for pod in pods for address in pod.addresses}
            if is_ipv6(address) == is_ipv6(frontend.address)
        )
    )


def _addresses(pods: Iterable[PodRow]) -> tuple[str, ...]:
    return tuple(sorted({address for pod in pods for address in pod.addresses}))


def _caught(
    row: LocalRedirectRow, service: ServiceRow | None, settings: ServiceSettings
) -> Iterator[Redirected]:
    """The frontends of a redirect. Raises ValueError with a sentence that names the field."""
    if row.address:
        _check_prefix(row.address, settings)
        path = "spec.redirectFrontend.addressMatcher.toPorts"
        pairs = _pairs(row, row.frontend_ports, path)
        addresses: tuple[str, ...] = (row.address,)
    else:
        path = "spec.redirectFrontend.serviceMatcher"
        if service is None:
            raise ValueError(f"{path}: there is no Service {row.namespace}/{row.service}; create it")
        if service.headless or not service.cluster_ips:
            raise ValueError(f"{path}: Service {row.namespace}/{row.service} has no cluster address to catch")
        pairs = _pairs(row, _service_ports(row, service, path), f"{path}.toPorts")
        addresses = service.cluster_ips
    for address in addresses:
        for front, back in pairs:
            yield Redirected(Frontend(address, front.port, front.protocol), back.port, front.name)


def _check_prefix(address: str, settings: ServiceSettings) -> None:
    networks = [ipaddress.ip_network(prefix) for prefix in settings.redirect_prefixes]
    if networks and not any(ipaddress.ip_address(address) in network for network in networks):
        raise ValueError(
            f"spec.redirectFrontend.addressMatcher.ip: {address} is in none of the prefixes that "
            f"redirects may name ({', '.join(settings.redirect_prefixes)})"
        )


def _service_ports(row: LocalRedirectRow, service: ServiceRow, path: str) -> tuple[RedirectPort, ...]:
    """The ports of the Service that are caught: those the redirect lists, or all."""
    ports = tuple(RedirectPort(port.port, port.protocol, port.name) for port in service.ports)
    if not row.frontend_ports:
        return ports
    offered = {(port.port, port.protocol): port for port in ports}
    for wanted in row.frontend_ports:
        found = offered.get((wanted.port, wanted.protocol))
        if found is None or (wanted.name and wanted.name != found.name):
            raise ValueError(
                f"{path}.toPorts: Service {service.namespace}/{service.name} has no port {_told(wanted)}"
            )
    return row.frontend_ports


def _pairs(
    row: LocalRedirectRow, fronts: Sequence[RedirectPort], path: str
) -> list[tuple[RedirectPort, RedirectPort]]:
    """Each port that is caught with the one it goes to: the only one there is, else that of the same name."""
    backs = row.backend_ports
    if not backs:
        raise ValueError("spec.redirectBackend.toPorts: it is empty; name the port of the pods")
    if len(backs) == 1 and len(fronts) == 1:
        _check_protocol(fronts[0], backs[0])
        return [(fronts[0], backs[0])]
    if len(backs) == 1 and not row.frontend_ports:
        return [(front, backs[0]) for front in fronts if front.protocol is backs[0].protocol]
    named = {back.name: back for back in backs if back.name}
    pairs = []
    for front in fronts:
        back = named.get(front.name) if front.name else None
        if back is None:
            if row.frontend_ports:
                raise ValueError(
                    f"{path}: {_told(front)} has no port of its name in spec.redirectBackend.toPorts; "
                    f"of several ports each needs a name that stands in both"
                )
            continue
        _check_protocol(front, back)
        pairs.append((front, back))
    if not pairs:
        raise ValueError("spec.redirectBackend.toPorts: none of them has the name of a port of the Service")
    return pairs


def _check_protocol(front: RedirectPort, back: RedirectPort) -> None:
    if front.protocol is not back.protocol:
        raise ValueError(
            f"spec.redirectBackend.toPorts: {_told(back)} has another protocol than {_told(front)}, "
            f"which is caught for it"
        )


def _told(port: RedirectPort) -> str:
    name = f" ({port.name})" if port.name else ""
    return f"{port.port}/{port.protocol.name}{name}"
