"""`cilia map ...`: what the kernel's maps hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from cilia.cli.completing import complete_maps
from cilia.cli.options import AgentSocket, Output, connect, group
from cilia.cli.output import Format, print_data, print_table

Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="How many entries at most.")]
Raw = Annotated[bool, typer.Option("--raw", help="Numbers as the programs have them, where there are names.")]

app = group("The eBPF maps of this node.")


@app.command("list")
def list_maps(output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """List all maps."""
    maps = connect(socket).maps()
    if output is not Format.TABLE:
        return print_data(maps, output)
    return print_table(
        ("MAP", "TYPE", "ENTRIES", "SIZE", "KEY", "VALUE", "PIN"),
        ((m.name, m.type, m.entries, m.max_entries, m.key_size, m.value_size, m.path) for m in maps),
        empty="No maps are loaded.",
    )


@app.command("get")
def get_map(
    name: Annotated[
        str, typer.Argument(help="The map, as `cilia map list` calls it.", autocompletion=complete_maps)
    ],
    limit: Limit = 10_000,
    raw: Raw = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Dump a map: services, backends, conntrack, snat, affinity, ... in words where there are any.

    \b
    Examples:
      cilia map get services
      cilia map get conntrack --limit 100 -o json
      cilia map get slots --raw
    """
    show_map(socket, name, limit, raw=raw, output=output)


def show_map(
    socket: Path | None,
    name: str,
    limit: int,
    *,
    raw: bool = False,
    output: Format = Format.TABLE,
    which: Callable[[Any], bool] = lambda _: True,
    empty: str = "",
) -> None:
    """Print a map's elements; `which` says of a value whether it is shown, `empty` what to say of none."""
    dump = connect(socket).map(name, limit, raw=raw)
    dump = msgspec.structs.replace(dump, entries=tuple(e for e in dump.entries if which(e.value)))
    if output is not Format.TABLE:
        return print_data(dump, output)
    print_table(
        ("KEY", "VALUE"),
        ((flat(e.key), flat(e.value)) for e in dump.entries),
        empty=empty or f"The map {name} is empty.",
        below=("VALUE",),
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
