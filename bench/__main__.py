"""`python -m bench`: every measurement, as a table and as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench import (
    agent,
    datapath,
    hubble_export,
    hubble_flows,
    hubble_history,
    hubble_metrics,
    hubble_relay,
    hubble_watching,
    netbench,
    policy,
    policy_load,
    rings,
    services_engine,
    services_load,
    services_nodeport,
    services_rolling,
    services_sockets,
    services_xdp,
    sweeps,
)
from cilia.kit import log

app = typer.Typer(add_completion=False)
GROUPS = {
    "same-node": datapath.same_node,
    "across-nodes": datapath.across_nodes,
    "events": datapath.events_on,
    "rings": rings.drain,
    "attach": agent.attach,
    "policy": agent.change,
    "restart": agent.restart,
    "rest": agent.rest,
    "policy-engine": policy.engine,
    "policy-load": policy_load.measure,
    "sweeps": sweeps.stalls,
    "hubble-export": hubble_export.measure,
    "services-engine": services_engine.engine,
    "services-sockets": services_sockets.sockets,
    "services-nodeport": services_nodeport.node_ports,
    "services-xdp": services_xdp.packets,
    "services-kube-proxy": services_sockets.against_kube_proxy,
    "services-load": services_load.measure,
    "hubble-history": hubble_history.measure,
    "hubble-metrics": hubble_metrics.measure,
    "hubble-flows": hubble_flows.measure,
    "hubble-relay": hubble_relay.measure,
    "hubble-watching": hubble_watching.measure,
    "services-rolling": services_rolling.roll,
}


@app.command()
def bench(
    only: Annotated[list[str] | None, typer.Option(help=f"One of: {', '.join(GROUPS)}.")] = None,
    quick: Annotated[bool, typer.Option(help="Few short rounds: a look, not a measurement.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the JSON here as well.")] = None,
) -> None:
    """Measure Cilia against plain kernel networking in one run."""
    # Agents start many times: each would compile every module again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Parts that run inside this process log too; stdout is the JSON's.
    log.configure("warning")
    console = Console(stderr=True, width=150)
    netbench.build()
    rows: list[dict[str, Any]] = []
    for name in only or GROUPS:
        with console.status(f"measuring {name}"):
            rows += GROUPS[name](quick)
    table = Table("group", "test", "path", "against", "ratio", "±", "reach", "baseline", "measured")
    for row in rows:
        reach = row["reach"]
        colour = "" if reach is None else "green" if row["ratio"] >= reach else "red"
        ratio = f"[{colour}]{row['ratio']}[/]" if colour else str(row["ratio"])
        table.add_row(
            row["group"], row["test"], row["path"], row["against"], ratio, str(row["spread"]),
            "" if reach is None else f"≥ {reach}", str(row["baseline"]), str(row["measured"]),
        )  # fmt: skip
    console.print(table)
    text = json.dumps(rows, indent=1)
    if output is not None:
        output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(app())
