"""`cilia hubble ...`: everything about Hubble in one place, under the words `hubble` has for it."""

from __future__ import annotations

import typer

from cilia.cli.lazy import LazyCommand, LazyGroup

COMMANDS: dict[str, LazyCommand] = {
    "observe": LazyCommand("cilia.cli.observe", "observe", "Show flows and events."),
    "list": LazyCommand("cilia.cli.observers", "list_app", "List nodes or namespaces."),
    "watch": LazyCommand("cilia.cli.observers", "watch_app", "Watch observers come and go."),
    "status": LazyCommand("cilia.cli.observers", "status_app", "Show how a Hubble server is."),
    "record": LazyCommand("cilia.cli.record", "record", "Write flows into a file."),
    "certs": LazyCommand("cilia.cli.certs", "certs", "Make, renew and show certificates."),
    "metrics": LazyCommand("cilia.cli.hubble_metrics", "app", "See what metrics of flows would cost."),
    "config": LazyCommand("cilia.cli.hubble_config", "app", "Keep values of the flags about the server."),
    "completion": LazyCommand("cilia.cli.completion", "completion", "Print a completion script for a shell."),
    "version": LazyCommand("cilia.cli.node", "version", "Show versions."),
}

app = typer.Typer(
    cls=type("HubbleGroup", (LazyGroup,), {"table": COMMANDS}),
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def hubble() -> None:
    """Hubble: flows, observers and the certificates between them, under the words of `hubble`."""
