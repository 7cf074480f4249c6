"""`cilia verify`: whether the kernel has what it should."""

from __future__ import annotations

from typing import Annotated

import typer

from cilia.api.types import VerifyReport
from cilia.cli.options import AgentSocket, Output, connect
from cilia.cli.output import Format, print_data, print_table


def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what differs.")] = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Compare services, backends, policies, ipcache, endpoints, nodes and routes in the kernel with what is
    intended. Exit code 1 when something differs and is not put right.

    \b
    Examples:
      cilia verify
      cilia verify --repair -o json
    """
    report = connect(socket).verify(repair=repair)
    if output is not Format.TABLE:
        print_data(report, output)
    else:
        _print(report)
    if report.count > report.repaired:
        raise typer.Exit(1)


def _print(report: VerifyReport) -> None:
    if not report.count:
        typer.echo("The kernel is as intended.")
        return
    print_table(
        ("MAP", "KEY", "INTENDED", "ACTUAL"),
        ((one.map, one.key, one.intended, one.actual) for one in report.differences),
        below=("INTENDED", "ACTUAL"),
    )
    kinds = ", ".join(f"{number} in {name}" for name, number in sorted(report.by_map.items()))
    typer.echo(f"\n{report.count} differences ({kinds}).", nl=False)
    if report.repaired:
        typer.echo(f" {report.repaired} put right.")
    else:
        typer.echo(" cilia verify --repair puts them right.")
