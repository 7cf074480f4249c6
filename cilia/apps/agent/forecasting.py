"""What metrics of flows would cost on this node, before somebody switches them on."""

from __future__ import annotations

import msgspec

from cilia.api.backend import ApiError
from cilia.api.types import MetricForecast
from cilia.hubble.store import FlowStore


class Forecaster:
    """Answers `cilia hubble metrics forecast`, one at a time."""

    def __init__(self, store: FlowStore) -> None:
        self._store = store
        self._busy = False

    async def forecast(self, metrics: str) -> list[MetricForecast]:
        """By the flows in memory; `metrics` as --hubble-metrics has them. Raises ApiError 400 for what can't
        be meant, 429 while another forecast is made."""
        # Imported late: an agent without metrics has no use for it.
        from cilia.hubble.metrics.forecast import forecast
        from cilia.hubble.metrics.options import MetricsError, parse

        try:
            wanted = parse(metrics)
        except MetricsError as error:
            raise ApiError(400, f"{error}.") from None
        if self._busy:
            raise ApiError(429, "Another forecast is made; try again when it is done.")
        self._busy = True
        try:
            told = await forecast(self._store, wanted)
        finally:
            self._busy = False
        return msgspec.convert(told, list[MetricForecast], from_attributes=True)
