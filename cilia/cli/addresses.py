"""`cilia ip ...`: which identity is behind an address."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import typer

from cilia.api.types import IpEntry
from cilia.cli.options import AgentSocket, Output, UserError, connect, group
from cilia.cli.output import Format, print_data, print_table

app = group("The ipcache: prefixes, the identity behind each, and the node they are on.")


@app.command("list")
def list_addresses(output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """List all prefixes."""
    _print(connect(socket).addresses(), output)


@app.command("get")
def get_address(
    address: Annotated[str, typer.Argument(help="An address.")],
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Show the entry that decides for an address: the one with the longest prefix."""
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        raise UserError(f"{address!r} is not an address; write one such as 10.0.0.7.") from None
    found: tuple[int, IpEntry] | None = None
    for entry in connect(socket).addresses():
        network = ipaddress.ip_network(entry.cidr, strict=False)
        if wanted in network and (found is None or network.prefixlen > found[0]):
            found = (network.prefixlen, entry)
    if found is None:
        raise UserError(f"No prefix of the ipcache holds {address}; `cilia ip list` shows them all.")
    _print([found[1]], output)


def _print(entries: list[IpEntry], output: Format) -> None:
    if output is not Format.TABLE:
        return print_data(entries, output)
    return print_table(
        ("PREFIX", "IDENTITY", "NODE", "POD"),
        (
            (
                e.cidr,
                e.identity,
                e.host_ip,
                f"{e.metadata.namespace}/{e.metadata.name}" if e.metadata.name else "",
            )
            for e in entries
        ),
        empty="The ipcache is empty.",
    )
