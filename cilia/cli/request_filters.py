"""Filters of a request for flows: those of flags, and those in JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from cilia.cli import filter_flags, flow_filters
from cilia.cli.errors import UserError
from cilia.cli.windows import flag
from cilia.proto.observer import observer_pb2

PANEL = "Raw filters"
Allowlist = Annotated[
    list[str] | None,
    flag(
        PANEL,
        "--allowlist",
        "Filters as JSON, as --print-raw-filters prints them.",
        envvar="HUBBLE_ALLOWLIST",
    ),
]
Denylist = Annotated[
    list[str] | None, flag(PANEL, "--denylist", "The same for what must not match.", envvar="HUBBLE_DENYLIST")
]


def set_filters(
    request: observer_pb2.GetFlowsRequest,
    ctx: typer.Context,
    allowlist: Iterable[str],
    denylist: Iterable[str],
) -> None:
    """Put all of them into a request. Raises UserError."""
    try:
        allow, deny = flow_filters.build(filter_flags.typed(ctx))
        request.whitelist.extend([*allow, *flow_filters.raw(allowlist, "allowlist")])
        request.blacklist.extend([*deny, *flow_filters.raw(denylist, "denylist")])
    except flow_filters.FlagError as error:
        raise UserError(str(error)) from None
