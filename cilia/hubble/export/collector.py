"""Metrics of exporters, under the names of Hubble's dynamic exporter where it has one.

Source of the names: Cilium's metrics reference, section on Hubble's dynamic exporter.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cilia.hubble.export.exporter import State
from cilia.hubble.export.exporters import Exporters

ENDED = State.ENDED.value


class ExportCollector(Collector):
    """Reads the counters when somebody asks."""

    def __init__(self, exporters: Exporters) -> None:
        self._exporters = exporters

    def collect(self) -> Iterator[Metric]:
        yield from self._states()
        yield from self._counters()
        yield from self._configuration()

    def _states(self) -> Iterator[Metric]:
        statuses = self._exporters.statuses()
        total = GaugeMetricFamily(
            "hubble_dynamic_exporter_exporters_total", "Configured exporters", labels=["status"]
        )
        ended = sum(status.state == ENDED for status in statuses)
        total.add_metric(["active"], len(statuses) - ended)
        total.add_metric(["inactive"], ended)
        yield total
        up = GaugeMetricFamily(
            "hubble_dynamic_exporter_up", "Whether the time of an exporter is not over", labels=["name"]
        )
        working = GaugeMetricFamily(
            "hubble_exporter_working", "Whether what an exporter wrote last went well", labels=["name"]
        )
        behind = GaugeMetricFamily(
            "hubble_exporter_waiting", "Flows stored that an exporter has not looked at", labels=["name"]
        )
        last = GaugeMetricFamily(
            "hubble_exporter_last_write_seconds", "When it wrote last, since the epoch", labels=["name"]
        )
        for status in statuses:
            up.add_metric([status.name], status.state != ENDED)
            working.add_metric([status.name], status.state == State.ACTIVE.value)
            behind.add_metric([status.name], status.waiting)
            last.add_metric([status.name], status.last_write)
        yield from (up, working, behind, last)

    def _counters(self) -> Iterator[Metric]:
        families = {
            "lines": CounterMetricFamily("hubble_exporter_lines", "Lines written", labels=["name"]),
            "bytes": CounterMetricFamily("hubble_exporter_bytes", "Bytes written", labels=["name"]),
            "lost": CounterMetricFamily(
                "hubble_exporter_lost_events", "Events gone before they could be looked at", labels=["name"]
            ),
            "failures": CounterMetricFamily(
                "hubble_exporter_write_failures", "Writes that failed and were tried again", labels=["name"]
            ),
            "restarts": CounterMetricFamily(
                "hubble_exporter_restarts",
                "Times it stopped by itself and was started again",
                labels=["name"],
            ),
        }
        for status in self._exporters.statuses():
            for field, family in families.items():
                family.add_metric([status.name], getattr(status, field))
        yield from families.values()

    def _configuration(self) -> Iterator[Metric]:
        changes = CounterMetricFamily(
            "hubble_dynamic_exporter_reconfigurations", "Exporters changed by the file", labels=["op"]
        )
        for operation, number in self._exporters.reconfigurations.items():
            changes.add_metric([operation], number)
        yield changes
        for name, text, value in (
            ("config_hash", "Hash of the file that is followed", self._exporters.config_hash),
            ("config_last_applied", "When it was, since the epoch", self._exporters.config_applied),
        ):
            family = GaugeMetricFamily(f"hubble_dynamic_exporter_{name}", text)
            family.add_metric([], value)
            yield family
