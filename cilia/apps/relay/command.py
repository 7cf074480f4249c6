"""The command line of hubble-relay."""

from __future__ import annotations

from typing import Any

import typer

from cilia.apps.relay.settings import PARTS, Settings
from cilia.cli.sections import SectionedCommand
from cilia.kit import flags

app = typer.Typer(
    add_completion=False,
    help="Answers for all nodes: asks every Hubble server and merges what they say by time.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def relay() -> None:
    """Only so that `serve` is a command of its own, as users of Hubble's relay type it."""


@app.command("serve", cls=SectionedCommand)
@flags.taking(PARTS, variables="CILIA_RELAY_")
def run(**values: Any) -> None:
    """Serve until SIGTERM or SIGINT.

    Each flag has an environment variable, too, which its line names.
    """
    raise typer.Exit(start(Settings(**values)))


def start(settings: Settings) -> int:
    """Run a relay until it is told to stop; returns the exit code."""
    import os

    import uvloop

    from cilia.apps.relay.running import FAULTS, options_of, serve
    from cilia.kit import log

    try:
        options = options_of(settings)
        log.configure(settings.log_level, settings.log_format)
        os.umask(0o077)
        uvloop.run(serve(options))
    except FAULTS as error:
        typer.echo(f"hubble-relay: {error}", err=True)
        return 1
    return 0
