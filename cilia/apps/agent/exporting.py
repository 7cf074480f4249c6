"""What the agent's settings say of exporters and of what application records must not tell."""

from __future__ import annotations

import re

from cilia.api.types import ExporterStatus
from cilia.apps.agent.errors import StartError
from cilia.apps.agent.settings import AgentSettings
from cilia.hubble.convert import NodeFacts
from cilia.hubble.export.exporter import State
from cilia.hubble.export.exporters import Exporters
from cilia.hubble.export.settings import ExportError, ExportSettings, filters, interval
from cilia.hubble.redact import RedactSettings
from cilia.hubble.store import FlowStore
from cilia.kit.clock import Clock


def exporters(settings: AgentSettings, store: FlowStore, node: NodeFacts, clock: Clock) -> Exporters:
    """All exporters of the agent, not started. Raises StartError."""
    try:
        return Exporters(
            store, node, clock, static=static_export(settings), flow_logs=settings.hubble_flowlogs_config_path
        )
    except ExportError as error:
        raise StartError(
            f"the Hubble exporter can't do what its --hubble-export flags say: {error}"
        ) from None


def static_export(settings: AgentSettings) -> ExportSettings | None:
    """The exporter that flags describe; None: none. Raises ExportError."""
    if not settings.hubble_export_file_path:
        return None
    return ExportSettings(
        path=settings.hubble_export_file_path,
        max_size_mb=settings.hubble_export_file_max_size_mb,
        max_backups=settings.hubble_export_file_max_backups,
        compress=settings.hubble_export_file_compress,
        include=filters(settings.hubble_export_allowlist),
        exclude=filters(settings.hubble_export_denylist),
        mask=words(settings.hubble_export_fieldmask),
        aggregate=words(settings.hubble_export_fieldaggregate),
        interval=interval(settings.hubble_export_aggregation_interval),
    )


def redaction(settings: AgentSettings) -> RedactSettings:
    """What application records must not tell. Raises StartError."""
    try:
        return RedactSettings(
            enabled=settings.hubble_redact_enabled,
            http_url_query=settings.hubble_redact_http_urlquery,
            http_user_info=settings.hubble_redact_http_userinfo,
            kafka_api_key=settings.hubble_redact_kafka_apikey,
            http_headers_allow=words(settings.hubble_redact_http_headers_allow),
            http_headers_deny=words(settings.hubble_redact_http_headers_deny),
        )
    except ValueError as error:
        raise StartError(f"--hubble-redact-http-headers-allow and -deny: {error}") from None


def words(text: str) -> tuple[str, ...]:
    """The parts of a list with commas or spaces."""
    return tuple(filter(None, re.split(r"[\s,]+", text)))


def shown(exporters: Exporters) -> tuple[ExporterStatus, ...]:
    """For the agent's status."""
    return tuple(
        ExporterStatus(
            name=status.name,
            path=status.path,
            state=status.state,
            problem=status.problem,
            lines=status.lines,
            lost_events=status.lost,
            waiting=status.waiting,
            last_write=status.last_write,
        )
        for status in exporters.statuses()
    )


def trouble(exporters: Exporters) -> str:
    """What is wrong with exporters, in one sentence; empty: nothing."""
    if exporters.problem:
        return exporters.problem
    healthy = (State.ACTIVE.value, State.ENDED.value)
    wrong = (status for status in exporters.statuses() if status.state not in healthy)
    return next((f"exporter {status.name}: {status.problem}" for status in wrong), "")
