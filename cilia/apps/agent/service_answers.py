"""Services and translated sources as the kernel has them: what the API, status pages and metrics tell."""

from __future__ import annotations

import msgspec

from cilia.api.types import (
    Component,
    Health,
    KernelService,
    MapDifference,
    NatUse,
    OwnerUseView,
    PortUseView,
    ServiceList,
    ServiceView,
)
from cilia.api.views import PROTOCOLS
from cilia.dataplane.maps.translations import PortForecast
from cilia.dataplane.order import KernelState
from cilia.kit.clock import Clock
from cilia.model.ids import EndpointId
from cilia.model.service import Frontend, Protocol
from cilia.schema import Desired
from cilia.tables.reconciler import State

NEARLY_ALL = 0.8
"""From which share on of the ports towards a peer somebody should know."""
SOON = 600.0
"""Seconds until the last port is taken, at the present pace; the same."""
WORTH_A_FORECAST = 0.1
"""A growth that begins with less says nothing yet."""


class ServiceAnswers:
    """Reads the tables and the state of the kernel."""

    def __init__(self, desired: Desired, kernel: KernelState, clock: Clock, *, enabled: bool) -> None:
        self._desired = desired
        self._kernel = kernel
        self._clock = clock
        self._enabled = enabled

    def component(self) -> Component:
        """What is not usual about Services, for `cilia status`."""
        if not self._enabled:
            return Component(state=Health.DISABLED, msg="kube-proxy serves Services")
        failed = len(self._kernel.services.errors())
        wrong = sum(bool(row.problems) for row in self._desired.service_states)
        told = [
            (f"{failed} are not in the kernel", failed),
            (f"{wrong} objects have problems (`cilia service list`)", wrong),
        ]
        return Component(
            state=Health.WARNING if failed or wrong else Health.OK,
            msg=", ".join(words for words, number in told if number),
        )

    def realization(self, frontend: Frontend) -> tuple[str, str]:
        """How far a frontend is: a state, and the error's sentence."""
        status = self._kernel.services.status.get(frontend)
        if status is not None and status.state is State.ERROR:
            return "error", status.error
        return ("realized" if self._kernel.services.done(frontend) else "pending"), ""

    def with_kernel(self, found: ServiceList) -> ServiceList:
        """The same with what the kernel has of each frontend."""
        return msgspec.structs.replace(found, services=tuple(map(self._with_kernel, found.services)))

    def _with_kernel(self, view: ServiceView) -> ServiceView:
        address = view.spec.frontend_address
        frontend = Frontend(address.ip, address.port, Protocol[address.protocol])
        maps = self._kernel.service_maps
        row = maps.row(frontend)
        if row is None:
            return view
        different = maps.differences([frontend]) if view.status.state == "realized" else []
        kernel = KernelService(
            flags=tuple(row["flags"]),
            affinity=row["affinity"],
            internal=tuple(row["internal"]),
            external=tuple(row["external"]),
            differences=tuple(
                MapDifference(map=name, key=key, intended=intended, actual=actual)
                for _, name, key, intended, actual in different
            ),
        )
        return msgspec.structs.replace(view, status=msgspec.structs.replace(view.status, kernel=kernel))

    # ports for translated sources

    def nat(self) -> NatUse:
        """As of the last whole sweep."""
        sample, snat = self._kernel.sweeps.ports, self._kernel.map("snat").info
        if sample is None:
            return NatUse(size=snat.max_entries)
        return NatUse(
            limit=sample.limit,
            total=sample.total,
            entries=self._kernel.sweeps.translations.entries or 0,
            size=snat.max_entries,
            age=self._clock.monotonic() - sample.time,
            peers=tuple(map(_peer, self._kernel.sweeps.forecasts())),
            owners=tuple(
                OwnerUseView(endpoint=endpoint, pod=self._pod(endpoint), used=used)
                for used, endpoint in sample.owners
            ),
        )

    def saturation(self) -> dict[str, float]:
        """By family: the largest share, 0..1, of the ports that are taken towards one peer."""
        found = {"ipv4": 0.0, "ipv6": 0.0}
        for one in self._kernel.sweeps.forecasts():
            family = "ipv6" if ":" in one.use.peer else "ipv4"
            found[family] = max(found[family], one.share)
        return found

    def nat_component(self) -> Component:
        """A warning when ports run out towards somebody."""
        urgent = [one for one in self._kernel.sweeps.forecasts() if is_urgent(one)]
        if not urgent:
            return Component(state=Health.OK)
        first = _peer(urgent[0])
        others = f", and towards {len(urgent) - 1} others" if len(urgent) > 1 else ""
        return Component(
            state=Health.WARNING,
            msg=f"ports run out: {first.share:.0%} in use towards {_end(first)}{others} (`cilia nat top`)",
        )

    def _pod(self, endpoint: int) -> str:
        row = self._desired.endpoints.get(EndpointId(endpoint)) if endpoint else None
        return row.pod_name if row is not None else ""


def is_urgent(one: PortForecast) -> bool:
    """Whether somebody should know."""
    runs_out = one.seconds is not None and one.seconds < SOON and one.share > WORTH_A_FORECAST
    return one.share >= NEARLY_ALL or runs_out


def _peer(one: PortForecast) -> PortUseView:
    use = one.use
    return PortUseView(
        protocol=PROTOCOLS.get(use.protocol, str(use.protocol)),
        peer=use.peer,
        port=use.port,
        address=use.address,
        used=use.used,
        share=one.share,
        seconds=one.seconds,
    )


def _end(peer: PortUseView) -> str:
    host = f"[{peer.peer}]" if ":" in peer.peer else peer.peer
    return f"{host}:{peer.port}/{peer.protocol}" if peer.port else f"{host} ({peer.protocol})"
