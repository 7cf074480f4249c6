"""How a program logs, as flags: for `log.configure`, and without what that needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typer import Option


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What is logged, and how it looks."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option(help="The least that is logged.")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Option(help="How log lines look.")] = "text"
