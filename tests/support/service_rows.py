"""Maps of services without a data path around them, and rows to put into them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cilia import abi
from cilia.dataplane.bpf import Map, MapType, create_map
from cilia.dataplane.maps.services import ServiceOptions, Services
from cilia.model.service import Algorithm, Backend, Frontend, FrontendKind, Protocol, ServiceEntry

SIZES = {
    "services": 4096,
    "frontends": 4096,
    "backends": 4096,
    "slots": 1 << 15,
    "affinity": 1024,
    "source_ranges": 1024,
    "skip_redirect": 256,
    "service_flows": 4096,
    "conntrack": 4096,
    "snat": 4096,
}


@contextmanager
def service_maps(sizes: Mapping[str, int] | None = None) -> Iterator[dict[str, Map]]:
    """The maps of services and of their flows, fresh and unpinned."""
    layout = abi.layout()
    maps: dict[str, Map] = {}
    try:
        for name, size in {**SIZES, **(sizes or {})}.items():
            spec = layout.maps[name]
            key, value = layout.dtype(spec.key), layout.dtype(spec.value)
            maps[name] = create_map(MapType(spec.type), key, value, size, flags=spec.flags, name=name)
        yield maps
    finally:
        for made in maps.values():
            made.close()


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def target(maps: Mapping[str, Map], clock: Clock | None = None, *, maglev: int = 251) -> Services:
    """The target over these maps, as an agent that just started has it."""
    return Services(maps, abi.layout(), ServiceOptions(maglev_size=maglev), clock or Clock())


def frontend(number: int, port: int = 80, protocol: Protocol = Protocol.TCP) -> Frontend:
    """A cluster address."""
    return Frontend(f"10.96.{number >> 8}.{number & 255}", port, protocol)


def backend(number: int, weight: int = 1, *, port: int = 8080, family: int = 4) -> Backend:
    """A pod."""
    address = f"10.0.{number >> 8}.{number & 255}" if family == 4 else f"fd00::{number + 1:x}"
    return Backend(address, port, Protocol.TCP, weight)


def entry(number: int, *backends: int, draining: tuple[int, ...] = (), **rest: object) -> ServiceEntry:
    """A service with backends by number, the same for clients in- and outside."""
    made = tuple(backend(at) for at in sorted(backends))
    row = {
        "frontend": frontend(number),
        "kind": FrontendKind.CLUSTER_IP,
        "internal": made,
        "external": made,
        "draining": tuple(backend(at) for at in sorted(draining)),
        **rest,
    }
    return ServiceEntry(**row)  # type: ignore[arg-type]


def random_entry(rng: random.Random, number: int, pods: int) -> ServiceEntry:
    """Any row: backends of a few pods, weights, both scopes alike or not, all kinds of flags."""
    some = sorted(
        {backend(rng.randrange(pods), rng.choice((0, 1, 1, 1, 3))) for _ in range(rng.randrange(6))}
    )
    candidates = tuple({(b.address, b.port): b for b in some}.values())
    outside = candidates if rng.random() < 0.6 else candidates[: len(candidates) // 2]
    return ServiceEntry(
        frontend=frontend(number),
        kind=rng.choice(list(FrontendKind)),
        internal=candidates,
        external=outside,
        draining=tuple(backend(rng.randrange(pods)) for _ in range(rng.randrange(2))),
        algorithm=rng.choice((Algorithm.RANDOM, Algorithm.RANDOM, Algorithm.MAGLEV)),
        affinity=rng.choice((0, 0, 10)),
        outside=rng.random() < 0.5,
        source_ranges=tuple(sorted(f"192.0.{rng.randrange(9)}.0/24" for _ in range(rng.choice((0, 0, 1))))),
        sources_denied=rng.random() < 0.5,
        reject=rng.random() < 0.5,
    )
