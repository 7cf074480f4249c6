"""`cilia identity ...`: who a packet can speak for."""

from __future__ import annotations

from typing import Annotated

import typer

from cilia.api.types import IdentityView
from cilia.cli.options import AgentSocket, Output, connect, group
from cilia.cli.output import Format, print_data, print_table

app = group("Security identities known to this node.")

LOCAL_CIDR_FIRST = 1 << 24
LOCAL_NODE_FIRST = 2 << 24


def scope(number: int) -> str:
    """Where a number means the same: everywhere, in the cluster, or on this node only."""
    if number < 256:
        return "reserved"
    if number < LOCAL_CIDR_FIRST:
        return "cluster"
    return "cidr, this node" if number < LOCAL_NODE_FIRST else "node, this node"


@app.command("list")
def list_identities(output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """List all identities and their labels."""
    _print(connect(socket).identities(), output)


@app.command("get")
def get_identity(
    number: Annotated[int, typer.Argument(min=0, help="The identity.")],
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Show one identity."""
    identity = connect(socket).identity(number)
    if output is not Format.TABLE:
        return print_data(identity, output)
    return _print([identity], output)


def _print(identities: list[IdentityView], output: Format) -> None:
    if output is not Format.TABLE:
        return print_data(identities, output)
    return print_table(
        ("IDENTITY", "SCOPE", "LABELS"),
        ((i.id, scope(i.id), i.labels) for i in identities),
        empty="This node knows no identities.",
    )
