"""Tables for people, JSON for programs.

A table goes to the terminal's width; into a pipe or file it is as wide as its content, without colours,
so that `grep` and `awk` find whole values: lists are joined by commas there, and stand on lines of their
own in a terminal. A missing value is a dash.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

HEALTH_STYLE = {"Ok": "green", "Warning": "yellow", "Failure": "bold red", "Disabled": "dim"}
STATE_STYLE = {"ready": "green", "valid": "green", "invalid": "bold red", "allow": "green", "deny": "red"}
PIPE_WIDTH = 10_000


class Format(enum.StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"


def print_json(value: object) -> None:
    """Print `value` as indented JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def console() -> Any:
    """A rich console for standard output (rich is imported only for tables)."""
    from rich.console import Console

    plain = Console(highlight=False, soft_wrap=False, emoji=False)
    return plain if plain.is_terminal else Console(highlight=False, emoji=False, width=PIPE_WIDTH)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Print rows under a header; without rows the sentence `empty`."""
    from rich.table import Table

    out = console()
    joiner = "\n" if out.is_terminal else ","
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell(value, joiner) for value in row))
    if table.row_count == 0 and empty:
        sys.stdout.write(empty + "\n")
        return
    out.print(table)


def cell(value: object, joiner: str = "\n") -> Any:
    """A value as text with its colour; the parts of a list are joined by `joiner`."""
    from rich.text import Text

    if value is None or value == "" or value == ():
        return Text("-", style="dim")
    if isinstance(value, tuple | list):
        return Text(joiner.join(str(item) for item in value))
    text = str(value)
    return Text(text, style=STATE_STYLE.get(text, ""))


def health(state: str, message: str = "") -> Any:
    """A component's state in colour, and its sentence."""
    from rich.text import Text

    return Text.assemble((f"{state:<9}", HEALTH_STYLE.get(state, "")), message)
