"""`cilia map ...`: what the kernel's maps hold."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cilia.cli.options import AgentSocket, Output, connect, group
from cilia.cli.output import Format, print_json, print_table

app = group("The eBPF maps of this node.")


@app.command("list")
def list_maps(output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """List all maps."""
    maps = connect(socket).maps()
    if output is Format.JSON:
        return print_json(maps)
    return print_table(
        ("MAP", "TYPE", "ENTRIES", "SIZE", "KEY", "VALUE", "PIN"),
        ((m.name, m.type, m.entries, m.max_entries, m.key_size, m.value_size, m.path) for m in maps),
        empty="No maps are loaded.",
    )


@app.command("get")
def get_map(
    name: Annotated[str, typer.Argument(help="The map, as `cilia map list` calls it.")],
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many entries at most.")] = 10_000,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Dump a map."""
    dump = connect(socket).map(name, limit)
    if output is Format.JSON:
        return print_json(dump)
    print_table(
        ("KEY", "VALUE"),
        ((flat(e.key), flat(e.value)) for e in dump.entries),
        empty=f"The map {name} is empty.",
    )
    if dump.truncated:
        typer.echo(f"More than {limit} entries; see more with --limit.", err=True)
    return None


def flat(value: Any) -> str:
    """A structure on one line: `field=value field=value`."""
    if isinstance(value, dict):
        return " ".join(
            f"{name}=({flat(part)})" if isinstance(part, dict) else f"{name}={flat(part)}"
            for name, part in value.items()
        )
    if isinstance(value, list):
        return ",".join(flat(part) for part in value)
    return str(value)
