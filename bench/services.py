"""Services for the benchmarks: one that is asked, among many that are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.topologies import PREFIX, CiliaNode
from cilia.lab import cgroups
from cilia.model.service import Backend, Frontend, FrontendKind, Protocol, ServiceEntry

BACKENDS = 5
"""Of each service that nobody asks, if nothing else is said; the one that is asked has those that serve."""
ASKED = "10.96.200.200"
PORT = 80


def cluster_ip(number: int) -> str:
    """Address of one that nobody asks, below 25,600."""
    return f"10.96.{number >> 8}.{number & 255}"


def backends(number: int, count: int = BACKENDS) -> tuple[str, ...]:
    """Addresses of those behind it."""
    return tuple(f"10.{130 + place}.{number >> 8}.{number & 255}" for place in range(count))


def entry(
    address: str, port: int, *served: tuple[str, int], protocol: Protocol = Protocol.TCP, **changes: object
) -> ServiceEntry:
    """A frontend, the same for clients in- and outside."""
    behind = tuple(sorted(Backend(host, at, protocol) for host, at in served))
    row = {
        "frontend": Frontend(address, port, protocol),
        "kind": FrontendKind.CLUSTER_IP,
        "namespace": "bench",
        "name": address,
        "internal": behind,
        "external": behind,
        **changes,
    }
    return ServiceEntry(**row)  # type: ignore[arg-type]


def fill(node: CiliaNode, count: int, behind: int = BACKENDS) -> None:
    """Bring the node to `count` services, the asked one among them; all in the kernel afterwards.
    `behind`: backends of each that nobody asks."""
    standing = len(node.desired.service_entries)
    for number in range(standing, count):
        served = [(address, 8080) for address in backends(number, behind)]
        node.desired.service_entries.put(entry(cluster_ip(number), PORT, *served))
    node.apply()


@contextmanager
def control_group(tag: str) -> Iterator[Path]:
    """A control group for clients whose sockets are translated; gone afterwards."""
    path = cgroups.create(cgroups.find_mount() / f"{PREFIX}-{tag}-{os.getpid()}")
    try:
        yield path
    finally:
        cgroups.remove(path)


class Switch:
    """Whether the node's programs see that there are services: where there are none, they look none up."""

    def __init__(self, node: CiliaNode) -> None:
        self._settings = node.state.settings

    def on(self) -> None:
        """As the agent has it."""
        self._settings.follow_services(True, False)

    def off(self) -> None:
        """As before the first service."""
        self._settings.follow_services(False, False)
