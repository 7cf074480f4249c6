"""`cilia node`, `cilia metrics` and `cilia version`: the node and its agent."""

from __future__ import annotations

import re
from typing import Annotated

import typer

import cilia
from cilia.api.client import AgentError
from cilia.cli.options import AgentSocket, Output, UserError, connect, group
from cilia.cli.output import Format, print_data, print_table

app = group("Nodes of the cluster, as this node knows them.")
metrics_app = group("Metrics of this node's agent.")

SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?")
"""A sample line of Prometheus' text format: name, labels, value."""


@app.command("list")
def list_nodes(output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """List all nodes."""
    nodes = connect(socket).nodes()
    if output is not Format.TABLE:
        return print_data(nodes, output)
    return print_table(
        ("NODE", "ADDRESSES", "POD CIDRS", "ROUTER"),
        (
            (f"{n.name} (this node)" if n.local else n.name, n.addresses, n.pod_cidrs, n.router_addresses)
            for n in nodes
        ),
        empty="No nodes are known.",
    )


@metrics_app.command("list")
def list_metrics(
    pattern: Annotated[
        str, typer.Option("--match-pattern", "-p", help="Show metrics whose name matches this expression.")
    ] = "",
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """List the agent's metrics."""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{pattern!r} is not a regular expression ({error}); mend it.") from None
    samples = [s for s in parse_metrics(connect(socket).metrics()) if wanted.search(s[0])]
    if output is not Format.TABLE:
        return print_data(
            [{"name": name, "labels": labels, "value": value} for name, labels, value in samples], output
        )
    return print_table(("METRIC", "LABELS", "VALUE"), samples, empty="No metric matches.")


@metrics_app.callback()
def metrics_root() -> None:
    """Metrics of this node's agent."""


@app.callback()
def node_root() -> None:
    """Nodes of the cluster, as this node knows them."""


def parse_metrics(text: str) -> list[tuple[str, str, str]]:
    """Name, labels and value of each sample; what isn't a sample is left out."""
    found = (SAMPLE.fullmatch(line.strip()) for line in text.splitlines() if not line.startswith("#"))
    return [(m.group(1), m.group(2) or "", m.group(3)) for m in found if m is not None]


def version(output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """Show the versions of this command and of the agent."""
    try:
        agent = connect(socket, timeout=5.0).status().version
    except AgentError:
        agent = ""
    if output is not Format.TABLE:
        return print_data({"client": cilia.__version__, "agent": agent or None}, output)
    typer.echo(f"Client: {cilia.__version__}")
    typer.echo(f"Agent:  {agent or 'not running'}")
    return None
