"""The root of the `cilia` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import typer

from cilia.cli.lazy import LazyCommand, LazyGroup

COMMANDS: dict[str, LazyCommand] = {
    "status": LazyCommand("cilia.cli.status", "status", "Show how this node is."),
    "observe": LazyCommand(
        "cilia.cli.observe", "observe", "Show flows: who talked to whom, and what decided."
    ),
    "flows": LazyCommand("cilia.cli.flows_sql", "app", "Ask about flows in SQL."),
    "list": LazyCommand("cilia.cli.observers", "list_app", "List Hubble's nodes, or namespaces with flows."),
    "watch": LazyCommand("cilia.cli.observers", "watch_app", "Watch Hubble's observers come and go."),
    "record": LazyCommand("cilia.cli.record", "record", "Write flows into a file."),
    "hubble": LazyCommand(
        "cilia.cli.hubble", "app", "Everything of Hubble under the words of `hubble`, and its certificates."
    ),
    "endpoint": LazyCommand("cilia.cli.endpoint", "app", "Show the pods of this node and their policy."),
    "identity": LazyCommand("cilia.cli.identity", "app", "Show security identities."),
    "ip": LazyCommand("cilia.cli.addresses", "app", "Show which identity is behind an address."),
    "policy": LazyCommand(
        "cilia.cli.policy", "app", "Show policies, explain verdicts, check changes, find a rule."
    ),
    "service": LazyCommand("cilia.cli.service", "app", "Show services, and write some by hand."),
    "lrp": LazyCommand("cilia.cli.redirects", "app", "Show local redirects."),
    "nat": LazyCommand("cilia.cli.nat", "app", "Show who uses the ports of translated sources."),
    "map": LazyCommand("cilia.cli.maps", "app", "Show the kernel's maps."),
    "bpf": LazyCommand("cilia.cli.bpf", "app", "Show maps under the names cilium-dbg has for them."),
    "verify": LazyCommand(
        "cilia.cli.verify", "verify", "Compare the kernel with what is intended, and repair it."
    ),
    "node": LazyCommand("cilia.cli.node", "app", "Show the nodes of the cluster."),
    "config": LazyCommand("cilia.cli.config", "config", "Show or change the agent's settings."),
    "metrics": LazyCommand("cilia.cli.node", "metrics_app", "Show the agent's metrics."),
    "version": LazyCommand("cilia.cli.node", "version", "Show versions."),
    "completion": LazyCommand("cilia.cli.completion", "completion", "Print a completion script for a shell."),
}


def build(more: Mapping[str, LazyCommand] | None = None) -> typer.Typer:
    """The root application; `more` are commands of other rooms."""
    table = COMMANDS | dict(more or {})
    kind = type("RootGroup", (LazyGroup,), {"table": table})
    application = typer.Typer(
        cls=kind,
        name="cilia",
        help="Look at what Cilia does on this node: connect, secure and observe containers.",
        no_args_is_help=True,
        add_completion=True,
        # Click says it already.
        suggest_commands=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @application.callback()
    def root() -> None:
        """Look at what Cilia does on this node: connect, secure and observe containers."""

    return application


def run(application: typer.Typer) -> int:
    """Run the command line of this process; returns its exit code."""
    try:
        application(prog_name="cilia", standalone_mode=True)
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else 1
    except BrokenPipeError:
        # The reader (head, less) has gone; silence the flush at exit, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        print(f"cilia: {sentence(error)}", file=sys.stderr)
        return 1
    return 0


def sentence(error: Exception) -> str:
    """What the user is told. Raises `error` again where it is a bug of ours."""
    # Imported late: help must not wait for the client.
    from cilia.api.client import AgentError
    from cilia.cli.errors import UserError
    from cilia.cli.output import printable

    if isinstance(error, AgentError | UserError):
        return printable(str(error))
    raise error
