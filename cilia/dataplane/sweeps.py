"""One round of collection: flows that expired, translations that served them, numbers that nobody names.

    conntrack ──► service_flows ──► snat ──► numbers of frontends that are gone
        └────────────┴── flows that are left ──┘

The order matters: a translation is judged by the flows that were left before it, and a number is free when
all three maps were seen without it.

A flood of openings that nobody answers, or whose answers nobody takes, would fill the maps for a minute
each. So a map that is more than half full gives up such flows early, the oldest first, until it is down to
less than a third or only those of the present second are left. Flows that go on are never among them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map
from cilia.dataplane.maps.conntrack import Conntrack, Pick, keep
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
HEAVIEST = 30
"""Peers that a sample of the ports in use names."""


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

        spare = self._spare(SAMPLE)
        flows = self._early("conntrack", self._half_open, spare, now())
        service_flows = self._early("service_flows", self._half_open_service, spare, now())
        yield
        for _ in self.conntrack.sweep(now, self._see_flows, flows):
            yield
        for _ in self.service_flows.sweep(now, self._see_service_flows, service_flows):
            yield
        translations = self.translations.sweep(
            int(begun), now, self._alive, self._see_translations, hurried=bool(spare)
        )
        for _ in translations:
            yield
        self._services.forget(self._used, begun)
        yield
        self._before, self.ports = self.ports, self._ports.sample(clock(), self._node.nat_ports, HEAVIEST)
        self._alive, self._ports = FlowSet(0, 0), PortUsage(self._layout)

    @property
    def pressed(self) -> bool:
        """Whether a map is so full that the next round should not wait."""
        return bool(self._spare(GLANCE))

    def _spare(self, glance: int) -> dict[str, float]:
        """Elements that maps should have fewer, of those that are nearly full."""
        found = {}
        for name, held in self._maps.items():
            elements, places = held.sample(glance)[2], held.info.max_entries
            if elements > FULL * places:
                found[name] = elements - RELIEVED * places
        return found

    def _early(self, name: str, half_open: Pick, spare: dict[str, float], now: int) -> Pick:
        """Picks those half-open flows of a map that make room, in itself and among the translations, of which
        each flow may have two."""
        wanted = max(spare.get(name, 0.0), spare.get("snat", 0.0) / 2)
        if not wanted:
            return keep
        keys, values, elements = self._maps[name].sample(SAMPLE)
        began = np.sort(values["created"][half_open(keys, values)].astype(np.int64))
        share = wanted / max(elements, 1.0) * len(keys)
        last = min(int(began[min(int(share), len(began) - 1)]) if len(began) else now, now - 1)
        return lambda keys, values: half_open(keys, values) & (values["created"] <= last)

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
