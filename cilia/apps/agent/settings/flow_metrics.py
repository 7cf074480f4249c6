"""What is counted of flows, and where it is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from cilia.kit.flags import duration


@dataclass(frozen=True, kw_only=True)
class FlowMetricSettings:
    """What is counted of flows, and where it is served."""

    hubble_metrics: Annotated[
        str,
        Option(
            help='What Hubble counts for Prometheus, such as "drop:sourceContext=pod flow"; empty: nothing.'
        ),
    ] = ""
    hubble_dynamic_metrics_config_path: Annotated[
        Path | None, Option(readable=False, help="YAML that says it instead, followed.")
    ] = None
    hubble_metrics_server: Annotated[
        str, Option(help="[HOST]:PORT of these metrics; empty: :9965 where there are any.")
    ] = ""
    enable_hubble_open_metrics: Annotated[bool, Option(help="Serve OpenMetrics to those who ask for it.")] = (
        False
    )
    hubble_metrics_server_enable_tls: Annotated[bool, Option(help="Serve them by TLS.")] = False
    hubble_metrics_server_tls_cert_file: Annotated[
        Path | None, Option(readable=False, help="PEM, followed.")
    ] = None
    hubble_metrics_server_tls_key_file: Annotated[
        Path | None, Option(readable=False, help="PEM; the key of that certificate.")
    ] = None
    hubble_metrics_server_tls_client_ca_files: Annotated[
        str, Option(help="PEM files with commas: authorities of scrapers. Empty: anybody may scrape.")
    ] = ""
    hubble_metrics_max_series: Annotated[
        int, Option(min=0, help="Series a metric may have, others are counted together; 0: no bound.")
    ] = 10_000
    hubble_metrics_expiry: Annotated[
        float,
        Option(parser=duration, show_default="10m", help="Series without a flow for so long go; 0: never."),
    ] = 600.0
