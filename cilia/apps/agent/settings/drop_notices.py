"""Drops that owners of pods are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import Option

from cilia.kit.flags import duration


@dataclass(frozen=True, kw_only=True)
class DropNoticeSettings:
    """Drops that owners of pods are told."""

    hubble_drop_events: Annotated[bool, Option(help="Write drops of pods as Events, too.")] = False
    hubble_drop_events_interval: Annotated[
        float, Option(parser=duration, show_default="2m", help="Between two writes about the same drops.")
    ] = 120.0
    hubble_drop_events_reasons: Annotated[
        str, Option(help="Names of drop reasons, with blanks or commas.")
    ] = "auth_required policy_denied policy_deny"
    hubble_drop_events_extended: Annotated[
        bool, Option(help="Name the place in the YAML of each policy, too.")
    ] = False
    hubble_drop_events_rate_limit: Annotated[
        int, Option(min=0, help="Writes per second at most, the rest waits; 0: no limit.")
    ] = 20
