"""A Service and its slices into the frontends it asks for.

Clients of the cluster get any candidate at every address, even where externalTrafficPolicy is Local: that
binds clients from outside only. internalTrafficPolicy binds the cluster addresses only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cilia.control.services import written
from cilia.control.services.choice import (
    Asked,
    Backends,
    Bound,
    Choice,
    Gathered,
    Known,
    Readings,
    choose,
    gather,
)
from cilia.control.services.drafts import Draft
from cilia.control.services.settings import ServiceSettings
from cilia.control.services.standing import ANY_ADDRESS, Standing, is_ipv6
from cilia.model.service import Frontend, FrontendKind, HealthCheck, Protocol, ServiceEntry
from cilia.schema import EndpointSliceRow, ServiceRow
from cilia.schema.rows import ServicePort

WITH_NODE_PORTS = ("NodePort", "LoadBalancer")
TOLD_PORTS = 5
"""So many names of ports stand in one sentence."""

UNKNOWN_AGE = "~"
"""Sorts behind every time."""


class Sources(NamedTuple):
    """Who may come from outside."""

    ranges: tuple[str, ...] = ()
    denied: bool = False
    nobody: bool = False
    """Nothing of the list could be read: whom it lets in can't be told."""


class Answering(NamedTuple):
    """Who answers at a frontend: candidates for clients inside and outside, and who drains."""

    inside: Backends
    outside: Backends
    draining: Backends


class Shared(NamedTuple):
    """What all frontends of a port and family share."""

    cluster: Answering
    """At the cluster addresses."""
    elsewhere: Answering


class Offers(NamedTuple):
    """The ports of slices with ready endpoints."""

    ports: frozenset[tuple[str, Protocol]]
    told: str
    """The first of them."""
    ready: int
    """How many endpoints are ready, whether slices give them ports or not."""


class Address(NamedTuple):
    """Where a Service wants to be found, besides the port."""

    kind: FrontendKind
    text: str
    wildcard: bool = False


def is_served(row: ServiceRow, settings: ServiceSettings) -> bool:
    """Whether a Service is this load balancer's at all."""
    return row.labels.get(written.PROXY_NAME, "") == settings.proxy_name


def draft(
    row: ServiceRow,
    slices: Iterable[EndpointSliceRow],
    standing: Standing,
    settings: ServiceSettings,
    readings: Readings,
) -> Draft:
    """All that a Service asks for on this node. `readings`: of its slices, from the last time or empty."""
    if row.headless or row.type == "ExternalName" or written.HEADLESS in row.labels or not row.cluster_ips:
        return Draft(problems=row.problems)
    problems = list(row.problems)
    if not written.is_exposed(row.annotations, standing, problems):
        return Draft(problems=tuple(problems))
    made = _Drafting(row, sorted(slices, key=lambda row: row.name), standing, settings, readings, problems)
    entries = tuple(made.entries())
    health = made.health()
    return Draft(entries, tuple(dict.fromkeys(problems)), health, row.created or UNKNOWN_AGE)


class _Drafting:
    """One Service while its draft is made."""

    def __init__(
        self,
        row: ServiceRow,
        slices: Sequence[EndpointSliceRow],
        standing: Standing,
        settings: ServiceSettings,
        readings: Readings,
        problems: list[str],
    ) -> None:
        self._row = row
        self._slices = slices
        self._standing = standing
        self._settings = settings
        self._readings = readings
        self._problems = problems
        for told in slices:
            problems += (f"EndpointSlice {told.name}: {problem}" for problem in told.problems)
        self._only = written.only_kind(row.annotations, problems)
        self._algorithm = written.algorithm(row.annotations, problems) or settings.algorithm
        self._mode = written.mode(row.annotations, problems)
        self._weights = written.weights(slices, problems)
        self._sources = _sources(row, problems)
        self._families = frozenset(map(is_ipv6, row.cluster_ips))
        self._own = frozenset(row.cluster_ips)
        self._given_addresses = frozenset((*row.load_balancer_ips, *row.external_ips))
        self._choices: dict[bool, list[Choice]] = {}
        self._offers: dict[bool, Offers] = {}

    def entries(self) -> Iterator[ServiceEntry]:
        """One for each frontend; what asks for the same twice has the first."""
        seen: set[Frontend] = set()
        addresses = list(self._addresses())
        for place, port in enumerate(self._row.ports):
            node_port = self._node_port(place, port)
            shared = {ipv6: self._share(port, ipv6) for ipv6 in self._families}
            fresh: set[Frontend] = set()
            for address in addresses:
                number = node_port if address.kind is FrontendKind.NODE_PORT else port.port
                frontend = Frontend(address.text, number, port.protocol)
                if number and frontend not in fresh:
                    if frontend in seen:
                        self._twice(place, frontend)
                        continue
                    fresh.add(frontend)
                    yield self._entry(address, frontend, port, shared[is_ipv6(address.text)])
            seen |= fresh

    def health(self) -> HealthCheck | None:
        """The health-check node port, which only an external policy of Local has."""
        row = self._row
        asked = row.health_check_port and row.external_local and row.type == "LoadBalancer"
        if not asked or not self._settings.health_checks:
            return None
        return HealthCheck(
            port=row.health_check_port,
            namespace=row.namespace,
            name=row.name,
            local_endpoints=max((self._ready_here(ipv6) for ipv6 in self._families), default=0),
            addresses=row.load_balancer_ips if self._settings.health_checks_at_load_balancer else (),
        )

    def _ready_here(self, ipv6: bool) -> int:
        """Addresses of this node that are ready at some port."""
        return len(
            {
                one.backend.address
                for choice in self._choices.get(ipv6, ())
                for one in choice.known
                if one.is_ready and one.backend.node == self._standing.name
            }
        )

    # where

    def _addresses(self) -> Iterator[Address]:
        row = self._row
        if self._wants(FrontendKind.CLUSTER_IP):
            yield from (Address(FrontendKind.CLUSTER_IP, text) for text in row.cluster_ips)
        if self._wants(FrontendKind.NODE_PORT) and row.type in WITH_NODE_PORTS:
            yield from self._node_addresses()
        if self._wants(FrontendKind.LOAD_BALANCER) and row.type == "LoadBalancer":
            yield from self._given(
                FrontendKind.LOAD_BALANCER, row.load_balancer_ips, "status.loadBalancer.ingress"
            )
        if self._wants(FrontendKind.EXTERNAL_IP):
            yield from self._given(FrontendKind.EXTERNAL_IP, row.external_ips, "spec.externalIPs")

    def _wants(self, kind: FrontendKind) -> bool:
        return self._only is None or self._only is kind

    def _node_addresses(self) -> Iterator[Address]:
        for text in self._standing.addresses:
            if is_ipv6(text) in self._families:
                yield Address(FrontendKind.NODE_PORT, text)
        if not self._row.external_local:
            for ipv6 in sorted(self._families):
                yield Address(FrontendKind.NODE_PORT, ANY_ADDRESS[ipv6], wildcard=True)

    def _node_port(self, place: int, port: ServicePort) -> int:
        """The port's number at nodes; 0 if it has none, or one that this node keeps for others: sockets would
        share it, and packets to other nodes' addresses are not looked up at it."""
        first, last = self._settings.node_ports
        asked = (
            port.node_port if self._row.type in WITH_NODE_PORTS and self._wants(FrontendKind.NODE_PORT) else 0
        )
        if not asked or first <= asked <= last:
            return asked
        self._problems.append(
            f"spec.ports[{place}].nodePort: {asked} is none of this node's node ports ({first} to {last}, "
            f"--node-port-range); it has no effect here"
        )
        return 0

    def _given(self, kind: FrontendKind, texts: Iterable[str], path: str) -> Iterator[Address]:
        for text in texts:
            if is_ipv6(text) in self._families:
                yield Address(kind, text)
            else:
                family = "IPv6" if is_ipv6(text) else "IPv4"
                self._problems.append(
                    f"{path}: {text} has no effect, since the Service has no {family} among its ipFamilies"
                )

    def _twice(self, place: int, frontend: Frontend) -> None:
        self._problems.append(
            f"spec.ports[{place}]: {frontend} is another port of the Service already; it has no effect"
        )

    # who

    def _share(self, port: ServicePort, ipv6: bool) -> Shared:
        row, choice = self._row, self._choice(port, ipv6)
        inside = choice.local if row.internal_local else choice.cluster
        outside = choice.local if row.external_local else choice.cluster
        cluster = Answering(inside, inside, choice.draining(inside, local=row.internal_local))
        if not (row.internal_local or row.external_local):
            return Shared(cluster, cluster)
        draining = choice.draining(choice.cluster, outside, local=False)
        return Shared(cluster, Answering(choice.cluster, outside, draining))

    def _choice(self, port: ServicePort, ipv6: bool) -> Choice:
        """The candidates of a port."""
        asked = Asked(port, ipv6, self._own, self._given_addresses)
        bound = Bound(self._settings.max_backends, self._standing.name)
        gathered = gather(self._slices, asked, self._weights, bound, self._readings)
        self._problems += gathered.problems
        if not gathered.known:
            self._check_port(port, ipv6)
        choice = choose(
            self._bounded(gathered, port),
            self._standing,
            topology=self._settings.topology,
            distribution=self._row.traffic_distribution,
        )
        self._choices.setdefault(ipv6, []).append(choice)
        return choice

    def _check_port(self, port: ServicePort, ipv6: bool) -> None:
        """Endpoints that are ready, but not for this port, mean that it has been misspelt somewhere."""
        if ipv6 not in self._offers:
            self._offers[ipv6] = _offers(self._slices, ipv6)
        offers = self._offers[ipv6]
        path = f"spec.ports[{port.name or port.port}]"
        if not offers.ports and offers.ready:
            self._problems.append(
                f"{path}: {offers.ready} endpoints are ready, but their EndpointSlices give no port: if "
                f"targetPort is a name, a container of the pods must have a port of that name; it has no "
                f"backends until then"
            )
        elif offers.ports and (port.name, port.protocol) not in offers.ports:
            self._problems.append(
                f"{path}: no EndpointSlice has a port of this name and protocol, only {offers.told}; it has "
                f"no backends until one does"
            )

    def _bounded(self, gathered: Gathered, port: ServicePort) -> list[Known]:
        known, limit = gathered.known, self._settings.max_backends
        if len(known) <= limit:
            return known
        self._problems.append(
            f"spec.ports[{port.name or port.port}]: {gathered.told} endpoints are more than the {limit} that "
            f"one frontend may have; the others get nothing"
        )
        best = sorted(known, key=lambda one: (not one.is_ready, one.backend.node != self._standing.name))
        return sorted(best[:limit], key=lambda one: (one.backend.address, one.backend.port))

    # how

    def _sources_at(self, address: Address) -> Sources:
        """Those of the address's family; a list that has none of it lets nobody in."""
        sources, ipv6 = self._sources, is_ipv6(address.text)
        ranges = tuple(text for text in sources.ranges if is_ipv6(text) is ipv6)
        if ranges or not sources.ranges or sources.denied:
            return sources._replace(ranges=ranges, denied=sources.denied and bool(ranges))
        self._problems.append(
            f"spec.loadBalancerSourceRanges: none is of {address.text}'s family; it lets nobody outside in"
        )
        return Sources(nobody=True)

    def _entry(self, address: Address, frontend: Frontend, port: ServicePort, shared: Shared) -> ServiceEntry:
        row, settings = self._row, self._settings
        at_cluster = address.kind is FrontendKind.CLUSTER_IP
        outside = settings.external_cluster_ip if at_cluster else not address.wildcard
        guarded = outside and (
            address.kind in (FrontendKind.LOAD_BALANCER, FrontendKind.EXTERNAL_IP)
            or settings.source_ranges_everywhere
        )
        sources = self._sources_at(address) if guarded else Sources()
        answering = shared.cluster if at_cluster else shared.elsewhere
        outside = outside and not sources.nobody
        return ServiceEntry(
            frontend=frontend,
            kind=address.kind,
            namespace=row.namespace,
            name=row.name,
            port_name=port.name,
            internal=answering.inside,
            external=answering.outside if outside else (),
            draining=answering.draining,
            outside=outside,
            keeps_client=outside and row.external_local and not at_cluster,
            algorithm=self._algorithm,
            mode=self._mode or settings.mode.forwarding(port.protocol),
            affinity=row.affinity,
            source_ranges=sources.ranges,
            sources_denied=sources.denied,
            reject=settings.reject,
        )


def _offers(slices: Iterable[EndpointSliceRow], ipv6: bool) -> Offers:
    counts = [
        (sum(endpoint.ready for endpoint in row.endpoints), row.ports) for row in slices if row.ipv6 is ipv6
    ]
    ports = frozenset((port.name, port.protocol) for ready, offered in counts if ready for port in offered)
    told = sorted(f"{name or 'unnamed'}/{protocol.name}" for name, protocol in ports)
    words = ", ".join((*told[:TOLD_PORTS], *("..." for _ in told[TOLD_PORTS : TOLD_PORTS + 1])))
    return Offers(ports, words, sum(ready for ready, _ in counts))


def _sources(row: ServiceRow, problems: list[str]) -> Sources:
    if not row.source_ranges:
        return Sources()
    denied = written.are_sources_denied(row.annotations, problems)
    valid = tuple(text for text in row.source_ranges if written.is_prefix(text))
    problems += (
        f"spec.loadBalancerSourceRanges: {text!r} is no prefix; it has no effect"
        for text in sorted(set(row.source_ranges).difference(valid))
    )
    if not valid and not denied:
        problems.append(
            "spec.loadBalancerSourceRanges: none of them can be read; nobody outside is let in until one can"
        )
    return Sources(valid, denied and bool(valid), nobody=not valid and not denied)
