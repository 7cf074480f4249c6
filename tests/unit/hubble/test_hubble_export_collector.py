"""What a scrape tells of exporters."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from cilia.hubble.export.collector import ExportCollector
from cilia.hubble.export.exporters import Exporters
from cilia.hubble.export.settings import ExportSettings
from cilia.kit.clock import SystemClock
from tests.support.hubble import NODE, WALL, event, store


def test_exporters_are_told_by_name(tmp_path: Path) -> None:
    flows = store()
    exporters = Exporters(
        flows, NODE, SystemClock(), static=ExportSettings(path=str(tmp_path / "events.log"))
    )
    registry = CollectorRegistry()
    registry.register(ExportCollector(exporters))
    flows.append([event()], offset=WALL)

    async def body() -> str:
        over = ExportSettings(name="over", path=str(tmp_path / "over.log"), end=1.0)
        await exporters.apply({"over": over})
        await exporters._running["over"].run()
        waiting = generate_latest(registry).decode()
        await exporters.close()
        return waiting

    text = asyncio.run(body())
    for line in (
        'hubble_dynamic_exporter_exporters_total{status="active"} 1.0',
        'hubble_dynamic_exporter_exporters_total{status="inactive"} 1.0',
        'hubble_dynamic_exporter_up{name="static"} 1.0',
        'hubble_dynamic_exporter_up{name="over"} 0.0',
        'hubble_exporter_working{name="static"} 1.0',
        'hubble_exporter_waiting{name="static"} 1.0',
        'hubble_exporter_lines_total{name="static"} 0.0',
        'hubble_dynamic_exporter_reconfigurations_total{op="add"} 1.0',
        "hubble_dynamic_exporter_config_hash 0.0",
    ):
        assert line in text
