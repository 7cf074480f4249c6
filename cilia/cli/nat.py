"""`cilia nat ...`: who uses the ports of translated sources, and how long they last."""

from __future__ import annotations

from typing import Annotated

import typer

from cilia.api.types import NatUse, OwnerUseView, PortUseView
from cilia.cli.options import AgentSocket, Output, connect, group
from cilia.cli.output import Format, end, print_data, print_table
from cilia.cli.status import duration

app = group("Translated sources: ports of this node that stand for pods and outside clients.")


@app.callback()
def nat() -> None:
    """Translated sources: ports of this node that stand for pods and outside clients."""


@app.command("top", short_help="Show who uses most ports.")
def top(
    number: Annotated[int, typer.Option("--number", "-N", min=1, help="How many of each.")] = 10,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Show towards whom most ports of this node are in use, who uses them, and when they run out.

    Ports are taken per peer: a port towards one address and port is free towards all others. The numbers are
    those of the last sweep, some seconds ago.

    \b
    Examples:
      cilia nat top
      cilia nat top -o json
    """
    found = connect(socket).nat()
    if output is not Format.TABLE:
        return print_data(found, output)
    return _print(found, number)


def _print(found: NatUse, number: int) -> None:
    if not found.limit:
        typer.echo("Ports are not counted yet; ask again in some seconds.")
        return
    typer.echo(
        f"{found.total} sources are translated; the map holds {found.entries} of {found.size} entries. "
        f"Towards each peer there are {found.limit} ports. Counted {duration(found.age)} ago.\n"
    )
    print_table(
        ("PEER", "PROTOCOL", "NODE ADDRESS", "PORTS", "SHARE", "LAST"),
        (
            (_end(one), one.protocol, one.address, one.used, f"{one.share:.1%}", _lasting(one))
            for one in found.peers[:number]
        ),
        empty="No source is translated.",
    )
    if found.owners:
        typer.echo()
        print_table(
            ("POD", "ENDPOINT", "PORTS"),
            ((_owner(one), one.endpoint or None, one.used) for one in found.owners[:number]),
        )


def _end(one: PortUseView) -> str:
    """Pings have no port."""
    return end(one.peer, one.port) if one.port else one.peer


def _owner(one: OwnerUseView) -> str:
    return one.pod or ("" if one.endpoint else "clients outside, the node")


def _lasting(one: PortUseView) -> str:
    if one.seconds is None:
        return "in use, not growing"
    return "none left" if one.seconds <= 0 else f"{duration(one.seconds)} at this pace"
