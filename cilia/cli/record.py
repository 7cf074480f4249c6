"""`cilia record FILE`: flows into a file that `cilia observe --input-file` reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from cilia.cli import filter_flags, flows
from cilia.cli.errors import UserError
from cilia.cli.flow_json import Writer
from cilia.cli.hubble_server import connected, server_options
from cilia.cli.live import LiveLine
from cilia.cli.output import printable_lines
from cilia.cli.request_filters import Allowlist, Denylist, set_filters
from cilia.cli.sections import Ordered, SectionedCommand
from cilia.cli.windows import Window, flag, window_options
from cilia.proto.observer import observer_pb2

OTHER = "Other"
BUFFER = 1 << 16
MODE = 0o600
"""Flows tell who talks to whom: a recording is its owner's."""


class RecordCommand(Ordered, SectionedCommand):
    """With filters and the flags of the server."""

    before = staticmethod(window_options)
    more = staticmethod(lambda: [*filter_flags.filter_options(), *server_options()])


record = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@record.command("record", cls=RecordCommand)
def write_flows(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where to; the file must be new.")],
    allowlist: Allowlist = None,
    denylist: Denylist = None,
    limit: Annotated[int, flag(OTHER, "--limit", "Stop after N flows.", min=1)] = sys.maxsize,
    append: Annotated[bool, flag(OTHER, "--append", "Go on in a file that is there.")] = False,
) -> None:
    """Write flows into a file, one line of JSON each; what is missing is written, too. Ctrl-C ends --follow.

    \b
    Examples:
      cilia record incident.json --since 10m -n shop
      cilia record drops.json --follow --verdict DROPPED
      cilia observe --input-file incident.json --to-port 443
    """
    request = observer_pb2.GetFlowsRequest()
    set_filters(request, ctx, allowlist or (), denylist or ())
    Window.typed(ctx).put(request, datetime.now(UTC).astimezone())
    style = flows.Style(zone=datetime.now(UTC).astimezone().tzinfo or UTC)
    counted = flows.AnswerCounts(style)
    how = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if append else os.O_EXCL)
    with connected(ctx) as client:
        save(client.get_flows(request), file, how, counted, limit)
    print(printable_lines(f"{file}: {counted.sentence()}"), file=sys.stderr)


def save(responses: Iterable[Any], file: Path, how: int, counted: flows.AnswerCounts, limit: int) -> None:
    """Until the answer ends, there are enough, or the user has enough (Ctrl-C); `how` to open the file.
    Raises UserError for a file that can't be written."""
    try:
        with os.fdopen(os.open(file, how, MODE), "w", buffering=BUFFER, encoding="utf-8") as out:
            write(responses, out, counted, limit)
    except FileExistsError:
        raise UserError(f"{file} is there already: choose another name, or --append") from None
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror}") from None


def write(responses: Iterable[Any], out: TextIO, counted: flows.AnswerCounts, limit: int) -> None:
    """One line for each response."""
    to_json = Writer()
    try:
        with LiveLine(lambda: counted.flows, counted.sentence, on=sys.stderr.isatty()):
            for response in responses:
                counted.add(response)
                out.write(to_json(response) + "\n")
                if counted.flows >= limit:
                    return
    except KeyboardInterrupt:
        return
