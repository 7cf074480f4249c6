"""Which endpoints of a Service's slices are candidates, as kube-proxy has it.

Those that are ready; where none is, those that still serve while they terminate (KEP-1669). Under a Local
policy only this node's are looked at. Hints narrow the ready ones to this node or zone, but only if every
ready endpoint has a hint and one of them is for here (KEP-2433, KEP-3015). A weight of 0 is never a
candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cilia.control.services.standing import Standing, is_ipv6
from cilia.model.service import Backend, Protocol
from cilia.schema import EndpointSliceRow
from cilia.schema.rows import ServicePort, SliceEndpoint

Backends = tuple[Backend, ...]

NOWHERE = ("127.", "169.254.", "224.", "0.", "fe8", "fe9", "fea", "feb", "ff", "::ffff:")
"""How addresses begin that are no endpoint's for all nodes: loopback, link-local, multicast, IPv4 in IPv6."""
ITSELF = ("::", "::1")


class Known(NamedTuple):
    """An endpoint at one port."""

    backend: Backend
    endpoint: SliceEndpoint
    is_ready: bool

    @property
    def still_serves(self) -> bool:
        """Of use where nobody is ready."""
        return self.endpoint.serving and self.endpoint.terminating and self.backend.weight > 0

    @property
    def worth(self) -> int:
        """How much a slice makes of it."""
        return 2 * self.endpoint.ready + (self.endpoint.serving and self.endpoint.terminating)


Place = tuple[str, int]
"""Address and port."""


class Asked(NamedTuple):
    """What is looked for in slices."""

    port: ServicePort
    ipv6: bool
    own: frozenset[str]
    """The Service's cluster addresses, which can't be its backends."""
    given: frozenset[str]
    """Its other addresses: backends only of those who are on a node, whose own address it then is."""


class Reading(NamedTuple):
    """What one slice says about one port, sorted."""

    row: EndpointSliceRow
    number: int
    weight: int
    asked: Asked
    found: dict[Place, Known]
    problems: tuple[str, ...]


class Readings:
    """What the slices of one Service said: those that did not change need not be read again."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, ServicePort, bool], Reading] = {}
        self._now: dict[tuple[str, ServicePort, bool], Reading] = {}
        self._numbers: dict[str, dict[tuple[str, Protocol], int]] = {}

    def turn(self) -> None:
        """What was not asked for since the last time is forgotten."""
        self._last, self._now = self._now, {}
        self._numbers.clear()

    def number(self, row: EndpointSliceRow, port: ServicePort) -> int:
        """What number a slice gives a port of the Service, by name and protocol; 0: it has no such port."""
        numbers = self._numbers.get(row.name)
        if numbers is None:
            numbers = {(offered.name, offered.protocol): offered.port for offered in reversed(row.ports)}
            self._numbers[row.name] = numbers
        return numbers.get((port.name, port.protocol), 0)

    def read(self, row: EndpointSliceRow, number: int, weight: int, asked: Asked) -> Reading:
        """What a slice says."""
        key = row.name, asked.port, asked.ipv6
        last = self._last.get(key)
        if (
            last is None
            or last.row is not row
            or (last.number, last.weight, last.asked) != (number, weight, asked)
        ):
            last = _read(row, number, weight, asked)
        self._now[key] = last
        return last


class Choice(NamedTuple):
    """All endpoints of one port and family, sorted, and the candidates among them."""

    known: tuple[Known, ...]
    cluster: Backends
    """Under a Cluster policy."""
    local: Backends
    """Under a Local policy."""
    node: str

    def draining(self, *candidates: Backends, local: bool) -> Backends:
        """Those that are no candidates, but may have flows; `local`: only this node's ever had any."""
        if any(len(backends) == len(self.known) for backends in candidates):
            return ()
        distinct = {id(backends): backends for backends in candidates}
        taken = {id(backend) for backends in distinct.values() for backend in backends}
        return tuple(
            backend
            for backend, _, _ in self.known
            if id(backend) not in taken and (not local or backend.node == self.node)
        )


class Bound(NamedTuple):
    """How many endpoints are taken; those of this node are, whatever their number."""

    most: int
    node: str


class Gathered(NamedTuple):
    """The endpoints of all slices of a Service at one port."""

    known: list[Known]
    """Sorted; more than the bound by those of one slice, and those of this node."""
    told: int
    """How many the slices tell of."""
    problems: list[str]


def gather(
    slices: Iterable[EndpointSliceRow],
    asked: Asked,
    weights: dict[str, int],
    bound: Bound,
    readings: Readings,
) -> Gathered:
    """The endpoints of slices, in their order, at a port of the Service, by its name and protocol."""
    merged: dict[Place, Known] = {}
    problems: list[str] = []
    told = 0
    for row in slices:
        number = readings.number(row, asked.port) if row.ipv6 is asked.ipv6 else 0
        if not number:
            continue
        reading = readings.read(row, number, weights.get(row.name, 1), asked)
        problems += reading.problems
        found = reading.found
        told += len(found)
        if len(merged) >= bound.most:
            found = {place: known for place, known in found.items() if known.backend.node == bound.node}
        if merged.keys().isdisjoint(found):
            merged.update(found)
        else:
            merged |= {place: _better(merged.get(place), known) for place, known in found.items()}
    return Gathered([merged[place] for place in sorted(merged)], told, problems)


def _better(before: Known | None, known: Known) -> Known:
    """Of two slices that tell of the same endpoint the one that makes more of it, else the first."""
    return before if before is not None and before.worth >= known.worth else known


def _read(row: EndpointSliceRow, number: int, weight: int, asked: Asked) -> Reading:
    port, ipv6 = asked.port, asked.ipv6
    problems: list[str] = []
    found: dict[Place, Known] = {}
    for endpoint in row.endpoints:
        address = endpoint.addresses[0]
        itself = address in asked.own or (address in asked.given and not endpoint.node)
        if itself or is_ipv6(address) is not ipv6 or _is_nowhere(address):
            problems.append(_unusable(row, address, itself=itself, ipv6=ipv6))
            continue
        backend = Backend(address, number, port.protocol, weight, endpoint.node, endpoint.zone)
        known = Known(backend, endpoint, endpoint.ready and weight > 0)
        found[address, number] = _better(found.get((address, number)), known)
    return Reading(row, number, weight, asked, found, tuple(problems))


def _is_nowhere(address: str) -> bool:
    return address.startswith(NOWHERE) or address in ITSELF


def _unusable(row: EndpointSliceRow, address: str, *, itself: bool, ipv6: bool) -> str:
    start = f"EndpointSlice {row.name}: endpoints: {address}"
    if itself:
        return f"{start} is an address of the Service itself, so that it would serve itself; it is left out"
    if is_ipv6(address) is not ipv6:
        return f"{start} is not of the slice's family (addressType); it is left out"
    return f"{start} is not an address that other nodes can reach; it is left out"


def choose(known: Sequence[Known], standing: Standing, *, topology: bool, distribution: str) -> Choice:
    """The candidates; `distribution`: what the Service says of nearness, for slices without hints."""
    ready = [one for one in known if one.is_ready]
    here = [one for one in known if one.backend.node == standing.name]
    near = nearest(ready, standing, distribution) if topology else ready
    return Choice(tuple(known), _candidates(near, known), _candidates(_ready(here), here), standing.name)


def _ready(known: Iterable[Known]) -> list[Known]:
    return [one for one in known if one.is_ready]


def _candidates(ready: Sequence[Known], known: Sequence[Known]) -> Backends:
    return tuple(one.backend for one in (ready or [one for one in known if one.still_serves]))


def nearest(ready: list[Known], standing: Standing, distribution: str) -> list[Known]:
    """The ready endpoints that hints mean for this node, else for its zone, else all."""
    nodes, zones = _hints(ready, distribution)
    for wanted, told in ((standing.name, nodes), (standing.zone, zones)):
        if not ready or not told(ready[0]):
            continue
        found = [one for one in ready if wanted in told(one)]
        if found and all(map(told, ready)):
            return found
    return ready


Told = Callable[[Known], tuple[str, ...]]


def _hints(ready: Iterable[Known], distribution: str) -> tuple[Told, Told]:
    """What endpoints say of nodes and zones. Where no slice says anything, they are told what the controller
    of slices would write for the Service's distribution."""
    if not distribution or any(one.endpoint.hint_zones or one.endpoint.hint_nodes for one in ready):
        return lambda one: one.endpoint.hint_nodes, lambda one: one.endpoint.hint_zones
    same_node = distribution == "PreferSameNode"
    return (
        lambda one: (one.endpoint.node,) if same_node and one.endpoint.node else (),
        lambda one: (one.endpoint.zone,) if one.endpoint.zone else (),
    )
