"""Host ports of this node's pods, as frontends at the node's addresses."""

from __future__ import annotations

from collections.abc import Iterator

from cilia.control.services.drafts import Draft
from cilia.control.services.settings import ServiceSettings
from cilia.control.services.standing import Standing, is_ipv6
from cilia.model.service import Backend, Frontend, FrontendKind, ServiceEntry
from cilia.schema import PodRow
from cilia.schema.rows import HostPort

ANYWHERE = ("", "0.0.0.0", "::")
"""As hostIP: every address of the node."""

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
    at = standing.addresses if wanted.address in ANYWHERE else (wanted.address,)
    for text in at:
        backends = tuple(
            Backend(address, wanted.container_port, wanted.protocol, node=standing.name, zone=standing.zone)
            for address in pod.addresses
            if is_ipv6(address) == is_ipv6(text)
        )[:1]
        if backends and wanted.address in ("", text, "0.0.0.0" if not is_ipv6(text) else "::"):
            yield ServiceEntry(
                frontend=Frontend(text, wanted.port, wanted.protocol),
                kind=FrontendKind.HOST_PORT,
                namespace=pod.namespace,
                name=pod.name,
                internal=backends,
                external=backends,
                outside=True,
                keeps_client=True,
                reject=settings.reject,
            )
