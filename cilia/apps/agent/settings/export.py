"""Flows in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option


@dataclass(frozen=True, kw_only=True)
class FlowExportSettings:
    """Flows in files."""

    hubble_export_file_path: Annotated[
        str, Option(help="File that all flows are written to as lines of JSON, or stdout; empty: none.")
    ] = ""
    hubble_export_file_max_size_mb: Annotated[
        int, Option(min=1, help="MiB after which that file is set aside and a new one begun.")
    ] = 10
    hubble_export_file_max_backups: Annotated[
        int, Option(min=0, help="Files set aside that are kept; 0: all.")
    ] = 5
    hubble_export_file_compress: Annotated[bool, Option(help="Compress files that were set aside.")] = False
    hubble_export_allowlist: Annotated[
        str,
        Option(
            help="Flow filters in JSON, one after the other: export what one of them matches. Empty: "
            "everything."
        ),
    ] = ""
    hubble_export_denylist: Annotated[
        str, Option(help="The same: of that, leave out what one of these matches.")
    ] = ""
    hubble_export_fieldmask: Annotated[
        str,
        Option(
            help="Paths of fields with commas, such as source.pod_name: all that lines have. Empty: "
            "everything."
        ),
    ] = ""
    hubble_export_fieldaggregate: Annotated[
        str,
        Option(
            help="Paths of fields: one line tells of all flows of an interval that agree in them. "
            "Empty: a line each."
        ),
    ] = ""
    hubble_export_aggregation_interval: Annotated[str, Option(help="That interval, such as 30s.")] = "0s"
    hubble_flowlogs_config_path: Annotated[
        Path | None, Option(readable=False, help="YAML of further exporters, followed while the agent runs.")
    ] = None
