"""`cilia bpf ...`: maps under the names that users of cilium-dbg type."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from cilia.cli.maps import Limit, Raw, show_map
from cilia.cli.options import AgentSocket, Output, group
from cilia.cli.output import Format

app = group("The kernel's maps, as cilium-dbg bpf calls them; cilia map shows all.")
balancing = group("Load balancing.")
maglev = group("Tables of services with Maglev.")
flows = group("Tracked connections.")
translations = group("Translated sources.")
app.add_typer(balancing, name="lb")
app.add_typer(flows, name="ct")
app.add_typer(translations, name="nat")
balancing.add_typer(maglev, name="maglev")


class Tables(enum.StrEnum):
    """What `ct list` takes: there is one table."""

    GLOBAL = "global"


def _flag(name: str, text: str) -> object:
    return typer.Option(name, help=text)


@balancing.command("list", short_help="List services, backends or what answers leave as.")
def list_balancing(
    backends: Annotated[bool, _flag("--backends", "Only backends.")] = False,
    frontends: Annotated[bool, _flag("--frontends", "Only frontends.")] = False,
    reverse: Annotated[bool, _flag("--revnat", "What answers are given back as, by number.")] = False,
    ranges: Annotated[bool, _flag("--source-ranges", "Clients that services are open or closed to.")] = False,
    limit: Limit = 10_000,
    raw: Raw = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """List frontends with their backends, as the kernel has them.

    \b
    Examples:
      cilia bpf lb list
      cilia bpf lb list --backends
    """
    chosen = [
        name
        for name, wanted in (
            ("services", frontends),
            ("backends", backends),
            ("frontends", reverse),
            ("source_ranges", ranges),
        )
        if wanted
    ]
    for name in chosen or ["services"]:
        show_map(socket, name, limit, raw=raw, output=output)


@maglev.command("list", short_help="List tables.")
def list_tables(limit: Limit = 10_000, output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """List services whose backends are found by a Maglev table, with its place among the slots.

    \b
    Examples:
      cilia bpf lb maglev list
    """
    _show_tables(socket, limit, output)


@maglev.command("get", short_help="Show the table of one service.")
def get_table(
    number: Annotated[int, typer.Argument(metavar="SERVICE", help="Its number, as service list has it.")],
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Show the Maglev table of one service; cilia map get slots shows the slots themselves.

    \b
    Examples:
      cilia bpf lb maglev get 7
    """
    _show_tables(socket, 1_000_000, output, number)


def _show_tables(socket: Path | None, limit: int, output: Format, number: int | None = None) -> None:
    def is_shown(value: dict[str, object]) -> bool:
        flags = value["flags"]
        return isinstance(flags, list) and "MAGLEV" in flags and number in (None, value["id"])

    show_map(socket, "services", limit, output=output, which=is_shown, empty="There is no such table.")


@flows.command("list", short_help="List tracked connections.")
def list_flows(
    table: Annotated[Tables, typer.Argument(help="There is one.")] = Tables.GLOBAL,
    limit: Limit = 10_000,
    raw: Raw = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """List tracked connections, with what each side's policy said.

    \b
    Examples:
      cilia bpf ct list global
    """
    show_map(socket, "conntrack", limit, raw=raw, output=output)


@translations.command("list", short_help="List translated sources.")
def list_translations(
    limit: Limit = 10_000, raw: Raw = False, output: Output = Format.TABLE, socket: AgentSocket = None
) -> None:
    """List translated sources, both ways; cilia nat top tells who has most.

    \b
    Examples:
      cilia bpf nat list
    """
    show_map(socket, "snat", limit, raw=raw, output=output)
