"""`cilia hubble metrics forecast`: how many series a metric of flows would have, before it is switched on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from cilia.api.types import MetricForecast
from cilia.cli.options import AgentSocket, Output, UserError, connect, group
from cilia.cli.output import Format, print_data, print_table

app = group("See what metrics of flows would cost.")


@app.callback()
def metrics() -> None:
    """See what metrics of flows would cost."""


@app.command("forecast")
def forecast(
    metrics: Annotated[
        list[str], typer.Argument(help="As --hubble-metrics of the agent takes them.", show_default=False)
    ],
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Count the series that metrics would have by the flows in this node's memory; nothing is switched on.

    The last column says which labels have many values: leave such out where there are too many series.

    \b
    Examples:
      cilia hubble metrics forecast drop flow
      cilia hubble metrics forecast "flow:sourceContext=pod;destinationContext=pod" port-distribution
    """
    text = " ".join(metrics).strip()
    if not text:
        raise UserError("name a metric, such as drop or flow")
    found = connect(socket).metrics_forecast(text)
    if output is not Format.TABLE:
        print_data(found, output)
        return
    print_table(("METRIC", "SERIES", "FLOWS", "VALUES OF LABELS"), map(row, found))
    typer.echo(looked_at(found), err=True)


def row(told: MetricForecast) -> tuple[str, str, str, str]:
    """Cells of a metric."""
    labels = ", ".join(f"{name} {count:,}" for name, count in told.by_label)
    return told.metric, f"{told.series:,}", f"{told.flows:,}", labels


def looked_at(found: Sequence[MetricForecast]) -> str:
    """Of how much time this is."""
    seconds = max((told.seconds for told in found), default=0.0)
    return f"By what is in this node's memory, which spans {seconds:,.3g} s; more time may bring more series."
