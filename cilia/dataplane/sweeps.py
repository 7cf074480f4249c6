"""One round of collection: flows that expired, translations that served them, numbers that nobody names.

    conntrack ──► service_flows ──► snat ──► numbers of frontends that are gone
        └────────────┴── flows that are left ──┘

The order matters: a translation is judged by the flows that were left before it, and a number is free when
all three maps were seen without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map
from cilia.dataplane.maps.conntrack import Conntrack
from cilia.dataplane.maps.nodes import Settings
from cilia.dataplane.maps.services import Services
from cilia.dataplane.maps.translations import (
    FlowSet,
    PortForecast,
    PortSample,
    PortUsage,
    ServiceFlows,
    Translations,
    forecast,
)

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
        self.service_flows = ServiceFlows(maps["service_flows"])
        self.translations = Translations(maps["snat"], layout)
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

        for _ in self.conntrack.sweep(now, self._see_flows):
            yield
        for _ in self.service_flows.sweep(now, self._see_service_flows):
            yield
        for _ in self.translations.sweep(int(begun), now, self._alive, self._see_translations):
            yield
        self._services.forget(self._used, begun)
        yield
        self._before, self.ports = self.ports, self._ports.sample(clock(), self._node.nat_ports, HEAVIEST)
        self._alive, self._ports = FlowSet(0, 0), PortUsage(self._layout)

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
