"""Flows beyond memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from cilia.kit.flags import period, size


@dataclass(frozen=True, kw_only=True)
class FlowHistorySettings:
    """Flows beyond memory."""

    hubble_history_dir: Annotated[
        Path | None,
        Option(
            readable=False,
            help="Keep flows beyond memory in sealed files there (extra history); relative to --state-"
            "dir. Default: nowhere.",
        ),
    ] = None
    hubble_history_max_bytes: Annotated[
        int,
        Option(
            parser=size,
            show_default="1Gi",
            help="Of these files together, such as 512Mi or 10Gi; the oldest go first.",
        ),
    ] = 1 << 30
    hubble_history_max_age: Annotated[
        float,
        Option(parser=period, show_default="7d", help="How long a flow is kept at most, such as 12h or 7d."),
    ] = 7 * 86_400.0
    hubble_history_interval: Annotated[
        float,
        Option(
            parser=period,
            show_default="60s",
            help="Until a flow is on disk: what a kill of the agent can cost. Such as 60s.",
        ),
    ] = 60.0
