"""One round of collection: flows that expired, translations that served them, numbers that nobody names.

    conntrack ──► service_flows ──► snat ──► numbers of frontends that are gone
        └────────────┴── flows that are left ──┘

The order matters: a translation is judged by the flows that were left before it, and a number is free when
all three maps were seen without it.

A flood of openings that nobody answers, or whose answers nobody takes, would fill the maps for a minute
each, and before them the quota of the pod that is asked, or the ports towards it. So what is more than half
full gives up such flows early, the oldest first, until it is down to less than a third or only those of the
present second are left. Flows that go on are never among them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

import msgspec
import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map
from cilia.dataplane.maps.conntrack import OWNERS, Conntrack, Pick, keep
from cilia.dataplane.maps.nodes import Settings
from cilia.dataplane.maps.services import Services
from cilia.dataplane.maps.translations import (
    STREAMS,
    FlowSet,
    PortForecast,
    PortSample,
    PortUsage,
    ServiceFlows,
    Translations,
    forecast,
)

FULL, RELIEVED = 0.5, 0.3
"""Shares of a map: from where on it gives up half-open flows, and down to where."""
GLANCE, SAMPLE = 256, 4096
"""Elements by which it is told how full a map is, and how old its half-open flows are."""
OPENING = 250
"""Seconds: flows whose life was never meant to last so long since they began are not established. A
handshake is tried for 127 s at most, with 60 s more for the last try; what is established lasts from 300 s
on."""
ONCE = 62
"""The same for others, whose packets keep them for 60 s each: packets of one moment only."""
TICK = 0.02
"""Seconds that the programs' coarse clock may be behind."""
HEAVIEST = 30
"""Peers that a sample of the ports in use names."""


QUOTAS = {
    "conntrack": ("opened", "closed"),
    "service_flows": ("service_opened", "service_closed"),
}
"""Fields of `ct_quota` that count what endpoints have in a map."""


class Pressures(msgspec.Struct):
    """What is more than half full, and how many elements too many it has."""

    spare: dict[str, float] = {}
    """By map; of `snat` also where it is the ports towards one peer that run out."""
    owners: dict[str, dict[int, float]] = {}
    """By map and endpoint, of those whose quota is nearly used up."""

    @property
    def any(self) -> bool:
        """Whether there is anything to relieve."""
        return any(self.spare.values()) or any(self.owners.values())


class Sweeps:
    """Sweeps what flows leave behind."""

    def __init__(
        self,
        maps: Mapping[str, Map],
        layout: abi.Layout,
        conntrack: Conntrack,
        services: Services,
        node: Settings,
    ) -> None:
        self.conntrack = conntrack
        self.service_flows = ServiceFlows(maps["service_flows"], maps["ct_quota"])
        self.translations = Translations(maps["snat"], layout)
        self._maps = {name: maps[name] for name in ("conntrack", "service_flows", "snat")}
        self._quota = maps["ct_quota"].memory()
        self._reverse = layout.value("NAT_REVERSE")
        self._over = sum(map(layout.value, ("CT_CLOSING_ORIGINAL", "CT_CLOSING_REPLY", "CT_CLOSED")))
        self._answered = layout.value("CT_SEEN_REPLY")
        self._heard = layout.value("SERVICE_FLOW_SEEN_REPLY") | layout.value("SERVICE_FLOW_CLOSED")
        self._services = services
        self._node = node
        self._layout = layout
        self._frontends = maps["frontends"].info.max_entries
        self._flows = maps["conntrack"].info.max_entries + 3 * maps["service_flows"].info.max_entries
        self._used = np.zeros(0, bool)
        self._alive = FlowSet(0, 0)
        self._ports = PortUsage(layout)
        self._before: PortSample | None = None
        self.ports: PortSample | None = None
        """Ports in use as of the last whole sweep."""

    def collect(self, clock: Callable[[], float]) -> Iterator[None]:
        """A whole round; yields after each bounded step. `clock`: seconds of CLOCK_MONOTONIC."""
        begun = clock()
        self._used = np.zeros(self._frontends, bool)
        self._alive = FlowSet(self._flows, random.getrandbits(64))
        self._ports = PortUsage(self._layout)
        yield

        def now() -> int:
            return int(clock())

        pressures = self._pressures(SAMPLE)
        flows = self._early("conntrack", self._half_open, pressures, now())
        service_flows = self._early("service_flows", self._half_open_service, pressures, now())
        service_flows = _any_of(service_flows, self._left())
        yield
        for _ in self.conntrack.sweep(now, self._see_flows, flows):
            yield
        for _ in self.service_flows.sweep(now, self._see_service_flows, service_flows):
            yield
        since = int(begun - TICK) if pressures.any else int(begun)
        translations = self.translations.sweep(
            since, now, self._alive, self._see_translations, hurried=pressures.any
        )
        for _ in translations:
            yield
        self._services.forget(self._used, begun)
        yield
        self._before, self.ports = self.ports, self._ports.sample(clock(), self._node.nat_ports, HEAVIEST)
        self._alive, self._ports = FlowSet(0, 0), PortUsage(self._layout)

    @property
    def pressed(self) -> bool:
        """Whether something is so full that the next round should not wait, or flows have to find another
        backend. Costs next to nothing while there are fewer flows than anything could be full of."""
        if self._services.left:
            return True
        places = [held.info.max_entries // 2 for held in self._maps.values()]
        fewest = min(self._node.nat_ports, self._node.flow_quota or places[0], *places)
        flows = int(self._live("conntrack").sum()) + self._maps["service_flows"].sample(GLANCE)[2]
        flows = max(flows, self._maps["snat"].sample(GLANCE)[2] / 2)
        return flows > FULL * fewest and self._pressures(GLANCE).any

    def _live(self, name: str) -> Array:
        """How many flows each endpoint pays for."""
        opened, closed = QUOTAS[name]
        live: Array = (self._quota[opened] - self._quota[closed]).view(np.int64)
        return live

    def _pressures(self, glance: int) -> Pressures:
        """What is more than half full, by a glance at so many elements of each map."""
        found = Pressures()
        for name, held in self._maps.items():
            keys, _, elements = held.sample(glance)
            found.spare[name] = _above(elements, held.info.max_entries)
            if name == "snat" and len(keys):
                ports = _of_heaviest_peer(keys[keys["way"] == self._reverse]) / len(keys) * elements
                found.spare["snat"] = max(found.spare["snat"], 2 * _above(ports, self._node.nat_ports))
        allowed = self._node.flow_quota
        if allowed:
            for name in QUOTAS:
                live = self._live(name)
                found.owners[name] = {
                    owner: _above(float(live[owner]), allowed)
                    for owner in (live > FULL * allowed).nonzero()[0].tolist()
                }
        return found

    def _early(self, name: str, half_open: Pick, pressures: Pressures, now: int) -> Pick:
        """Picks those half-open flows of a map that make room: in itself, among the translations, of which
        each flow may have two, and in the quota of who pays for them."""
        if not pressures.any:
            return keep
        keys, values, elements = self._maps[name].sample(SAMPLE)
        owner, began = values["owner"], values["created"].astype(np.int64)
        half = half_open(keys, values)
        wanted = max(pressures.spare[name], pressures.spare["snat"] / 2)
        last = np.full(OWNERS, _last_of(began[half], wanted / max(elements, 1.0) * len(keys), now), np.int64)
        for number, surplus in pressures.owners.get(name, {}).items():
            mine = owner == number
            share = surplus / max(elements, 1.0) * len(keys)
            last[number] = max(last[number], _last_of(began[half & mine], share, now))
        if not (last >= 0).any():
            return keep
        return lambda keys, values: half_open(keys, values) & (values["created"] <= last[values["owner"]])

    def _half_open(self, keys: Array, values: Array) -> Array:
        """Tracked flows that are no more than an opening: of TCP and SCTP without the last word of their
        handshake, of others with one packet only."""
        stream = np.isin(keys["protocol"], STREAMS)
        lasts = values["expires"].astype(np.int64) - values["created"]
        lone = (values["packets"].sum(axis=1) <= 1) & (values["flags"] & self._answered == 0)
        found: Array = np.where(stream, lasts < OPENING, lone) & (values["flags"] & self._over == 0)
        return found

    def _half_open_service(self, keys: Array, values: Array) -> Array:
        """The same of flows of services. Those of clients outside say whether the client has spoken again."""
        lasts = values["expires"].astype(np.int64) - values["created"]
        limit = np.where(np.isin(keys["protocol"], STREAMS), OPENING, ONCE)
        found: Array = (lasts < limit) & (values["flags"] & self._heard == 0)
        return found

    def _left(self) -> Pick:
        """Picks flows towards a backend that their frontend does not lead to any more."""
        left, self._services.left = self._services.left, set()
        if not left:
            return keep
        pairs = np.array([service << 32 | backend for service, backend in left], np.uint64)
        return lambda keys, values: np.isin(
            values["service"].astype(np.uint64) << np.uint64(32) | values["backend"], pairs
        )

    def forecasts(self) -> list[PortForecast]:
        """Peers towards which the node uses most ports, and how long these last; most urgent first."""
        return forecast(self._before, self.ports) if self.ports is not None else []

    def _see_flows(self, keys: Array, values: Array) -> None:
        self._alive.add(keys["low"], keys["low_port"], keys["high"], keys["high_port"], keys["protocol"])
        self._note(values["service"])

    def _see_service_flows(self, keys: Array, values: Array) -> None:
        """A flow is translated by its own tuple, and on the way back by that with the backend; which end is
        the client's does not show."""
        protocol, backend, port = keys["protocol"], values["backend_address"], values["backend_port"]
        self._alive.add(keys["low"], keys["low_port"], keys["high"], keys["high_port"], protocol)
        self._alive.add(keys["low"], keys["low_port"], backend, port, protocol)
        self._alive.add(keys["high"], keys["high_port"], backend, port, protocol)
        self._note(values["service"])

    def _see_translations(self, keys: Array, values: Array) -> None:
        self._ports.look(keys, values)
        self._note(values["service"])

    def _note(self, services: Array) -> None:
        self._used[services[services < self._frontends]] = True


def _any_of(one: Pick, other: Pick) -> Pick:
    if keep in (one, other):
        return other if one is keep else one
    return lambda keys, values: one(keys, values) | other(keys, values)


def _above(held: float, places: int) -> float:
    """How many are to go from where `places` are nearly taken; 0: none."""
    return held - RELIEVED * places if held > FULL * places else 0.0


def _last_of(began: Array, wanted: float, now: int) -> int:
    """When the youngest began of those that have to go, if `wanted` of them do, oldest first; -1: none. What
    began in the present second is left alone."""
    if not wanted or not len(began):
        return -1
    return min(int(np.sort(began)[min(int(wanted), len(began) - 1)]), now - 1)


def _of_heaviest_peer(keys: Array) -> int:
    """How many ways back there are from the one address and port that has most."""
    peers = keys["source"]["lo"] * np.uint64(0x9E3779B97F4A7C15) + keys["source_port"]
    return int(np.unique(peers, return_counts=True)[1].max()) if len(keys) else 0
