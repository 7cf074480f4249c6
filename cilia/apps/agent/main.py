"""The command line of cilia-agent."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any

import typer

from cilia import __version__
from cilia.apps.agent.settings import AgentSettings, SettingsError
from cilia.apps.agent.settings.agent import PARTS
from cilia.cli.sections import SectionedCommand
from cilia.kit import flags, startup

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cilia-agent {__version__}")
        raise typer.Exit


@app.command(cls=SectionedCommand)
@flags.taking(PARTS, variables="CILIA_")
def run(
    context: typer.Context,
    cleanup: Annotated[
        bool, typer.Option("--cleanup", help="Remove everything this agent left on the node, then end.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    **values: Any,
) -> None:
    """Own this node's network: attach pods, enforce policy, report flows.

    Each flag has an environment variable, too, which its line names.
    """
    try:
        settings = AgentSettings(**values, sources=flags.sources(context)).completed()
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from error
    raise typer.Exit(clean_up(settings) if cleanup else start(settings))


def start(settings: AgentSettings) -> int:
    """Run an agent until it is told to stop; returns the exit code."""
    # numpy would start a thread for each core, to multiply matrices that nobody here has.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # structlog would load rich for tracebacks in colour, which a log has no use for.
    with startup.importing(without=["rich"]):
        import uvloop

        from cilia.apps.agent.errors import StartError
        from cilia.apps.agent.runtime import Runtime
        from cilia.kit import log

    log.configure(settings.log_level, "json" if settings.log_format == "json" else "text")
    os.umask(0o077)
    startup.switch_often()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Runtime(settings).run())
    except StartError as error:
        typer.echo(f"cilia-agent: {error}", err=True)
        return 1
    return 0


def clean_up(settings: AgentSettings) -> int:
    """Take away links, programs, maps, the CNI configuration and the state; returns the exit code.

    Pods that still run lose their network. Repeatable.
    """
    from cilia.apps.agent.cleanup import remove_everything
    from cilia.dataplane.bpf import BpfError

    try:
        for line in remove_everything(settings):
            typer.echo(line)
    except (BpfError, OSError) as error:
        typer.echo(f"cilia-agent: {error}", err=True)
        return 1
    return 0


def main() -> None:
    """Entry point of the executable."""
    app()
