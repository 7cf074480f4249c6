"""Host ports of this node's pods, as frontends at the node's addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from cilia.control.services.drafts import Draft
from cilia.control.services.settings import ServiceSettings
from cilia.control.services.standing import ANY_ADDRESS, Standing, is_ipv6
from cilia.model.service import Backend, Frontend, FrontendKind, ServiceEntry
from cilia.schema import PodRow
from cilia.schema.rows import HostPort

LEAVING = "~"
"""A pod that stays has a port before one that terminates."""


def wants_any(pod: PodRow) -> bool:
    """Whether somebody must open ports for the pod; one on the host's network opens its own."""
    return bool(pod.host_ports) and not pod.host_network


def draft(pod: PodRow, standing: Standing, settings: ServiceSettings) -> Draft:
    """All that a pod asks for. Its ports stay until it is gone: it may end what it has begun."""
    problems: list[str] = []
    entries: dict[Frontend, ServiceEntry] = {}
    for wanted in pod.host_ports:
        first, last = settings.node_ports
        if first <= wanted.port <= last:
            problems.append(
                f"spec.containers[].ports[].hostPort: {wanted.port} is a node port ({first} to {last}); "
                f"it has no effect"
            )
            continue
        for entry in _entries(pod, wanted, standing, settings):
            entries.setdefault(entry.frontend, entry)
    return Draft(tuple(entries.values()), tuple(problems), age=LEAVING if pod.terminating else "")


def _entries(
    pod: PodRow, wanted: HostPort, standing: Standing, settings: ServiceSettings
) -> Iterator[ServiceEntry]:
    for text, outside in _where(wanted.address, standing):
        backend = next(
            (
                Backend(
                    address, wanted.container_port, wanted.protocol, node=standing.name, zone=standing.zone
                )
                for address in pod.addresses
                if is_ipv6(address) == is_ipv6(text)
            ),
            None,
        )
        if backend is None:
            continue
        yield ServiceEntry(
            frontend=Frontend(text, wanted.port, wanted.protocol),
            kind=FrontendKind.HOST_PORT,
            namespace=pod.namespace,
            name=pod.name,
            internal=(backend,),
            external=(backend,) if outside else (),
            outside=outside,
            keeps_client=outside,
            reject=settings.reject,
        )


def _where(host_ip: str, standing: Standing) -> Iterator[tuple[str, bool]]:
    """The addresses meant, and whether clients outside may use them. The zero address of a family is what the
    node's own sockets find at its loopback."""
    if not host_ip:
        yield from ((text, True) for text in standing.addresses)
        yield from ((text, False) for text in ANY_ADDRESS.values())
    elif ipaddress.ip_address(host_ip).is_loopback:
        yield ANY_ADDRESS[is_ipv6(host_ip)], False
    else:
        yield host_ip, True
