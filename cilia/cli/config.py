"""`cilia config`: the agent's settings, and changes of those that may change while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from cilia.api.types import OptionChange, Setting
from cilia.cli.completing import complete_changes
from cilia.cli.options import AgentSocket, Output, UserError, connect
from cilia.cli.output import Format, print_data, print_table

Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OPTION=VALUE]...",
        help="What to change; nothing: show the settings.",
        autocompletion=complete_changes,
    ),
]
Reset = Annotated[bool, typer.Option("--reset", help="Undo live changes: of the options named, or of all.")]


def config(
    changes: Changes = None,
    reset: Reset = False,
    every: Annotated[bool, typer.Option("--all", help="After a change show all settings.")] = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Show the agent's settings and where each comes from, or change some.

    A change is in force for every endpoint when the command returns, and stays in force over restarts of the
    agent until it is reset.

    \b
    What may be changed:
      PolicyEnforcement          default, always, never   who is isolated
      PolicyAuditMode            Enabled, Disabled        denials pass, and are noted
      PolicyDenyResponse         none, icmp               answers to pods that were denied
      DropNotification           Enabled, Disabled        dropped packets are reported
      TraceNotification          Enabled, Disabled        forwarded packets are reported
      PolicyVerdictNotification  Enabled, Disabled        new flows that policy lets begin are reported
      TraceSockNotification      Enabled, Disabled        translations of sockets are reported
      MonitorAggregationLevel    none, low, medium        how many packets of a flow are reported
      MonitorAggregationInterval such as 5s               between two reports of a flow
      MonitorAggregationFlags    such as syn,fin,rst      TCP flags whose first sight is reported
      EventsRateLimit            such as 1000; 0: none    events per second at most
      EventsBurstLimit           such as 5000             events at once; goes with the limit per second

    \b
    Examples:
      cilia config
      cilia config PolicyAuditMode=Enabled PolicyDenyResponse=icmp
      cilia config TraceNotification=Disabled
      cilia config --reset PolicyAuditMode
    """
    client = connect(socket)
    if not changes and not reset:
        settings = shown = client.settings()
    else:
        wanted = (changes or live_options(client.settings())) if reset else changes or []
        settings = client.change_settings(read_changes(wanted, reset)) if wanted else client.settings()
        shown = settings if every else [row for row in settings if row.option]
    if output is not Format.TABLE:
        return print_data(shown, output)
    return print_settings(shown)


def live_options(settings: Sequence[Setting]) -> list[str]:
    """The options that were changed live."""
    return [row.option for row in settings if row.option and row.source == "live"]


def read_changes(words: Sequence[str], reset: bool) -> OptionChange:
    """OPTION=VALUE, or OPTION alone where it is reset. Raises UserError."""
    if reset:
        for word in words:
            if "=" in word:
                raise UserError(f"{word!r} gives a value to what is to be reset; name the option alone.")
        return OptionChange(reset=tuple(words))
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UserError(f"{word!r} is not OPTION=VALUE; write for example PolicyAuditMode=Enabled.")
        if name in options:
            raise UserError(f"{name} is named twice; name it once.")
        options[name] = value
    return OptionChange(options=options)


def print_settings(settings: Sequence[Setting]) -> None:
    """A table for people."""
    print_table(
        ("SETTING", "VALUE", "SOURCE", "CHANGED LIVE BY"),
        ((row.name, value_text(row.value), row.source, row.option) for row in settings),
    )


def value_text(value: object) -> str:
    """A value as a flag would have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
