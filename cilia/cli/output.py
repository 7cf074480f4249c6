"""Tables for people, JSON and YAML for programs.

A table goes to the terminal's width; into a pipe or file it is as wide as its content, without colours,
so that `grep` and `awk` find whole values: lists are joined by commas there, and stand on lines of their
own in a terminal. Where a terminal is too narrow for all columns, the long ones go below their rows. A
missing value is a dash.
"""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

HEALTH_STYLE = {"Ok": "green", "Warning": "yellow", "Failure": "bold red", "Disabled": "dim"}
STATE_STYLE = {
    "ready": "green",
    "valid": "green",
    "invalid": "bold red",
    "allow": "green",
    "deny": "red",
    "realized": "green",
    "pending": "yellow",
    "error": "bold red",
}
PIPE_WIDTH = 10_000
"""Columns of what is not a terminal."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys, and what turns text around."""
_COLOUR = r"\x1b\[(?:[012](?:;(?:0|3[1-6]))?|3[1-6])m"
"""One of ours: plain, bold or dim, alone or with a colour."""
_CONTROL_BESIDE_COLOURS = re.compile(rf"(?P<ours>{_COLOUR}|\n)|{_CONTROL.pattern}")


class Format(enum.StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def printable(text: str) -> str:
    """Text on one line, with what a terminal would obey spelt out: names, labels and the words of policies
    are written by others."""
    return _CONTROL.sub(_spelt, text)


def printable_lines(text: str) -> str:
    """The same for lines that we have coloured."""
    return _CONTROL_BESIDE_COLOURS.sub(lambda found: found["ours"] or _spelt(found), text)


def _spelt(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def print_data(value: object, form: Format) -> None:
    """Print `value` as indented JSON, or as YAML."""
    if form is Format.YAML:
        import yaml

        # In ASCII, what a terminal would obey is spelt out.
        plain = msgspec.to_builtins(value, str_keys=True)
        sys.stdout.write(yaml.dump(plain, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=False))
        return
    sys.stdout.write(
        printable_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode()) + "\n"
    )


def printable_json(text: str) -> str:
    """The same JSON in what a terminal does not obey: within strings JSON allows some of that."""
    return _CONTROL.sub(lambda found: "\n" if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def console() -> Any:
    """A rich console for standard output (rich is imported only for tables)."""
    from rich.console import Console

    plain = Console(highlight=False, soft_wrap=False, emoji=False)
    return plain if plain.is_terminal else Console(highlight=False, emoji=False, width=PIPE_WIDTH)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "", below: Sequence[str] = ()
) -> None:
    """Print rows under a header; without rows the sentence `empty`. `below` are the columns that go below
    their row in a narrow terminal."""
    from rich.measure import Measurement

    out = console()
    rows = list(rows)
    if not rows and empty:
        sys.stdout.write(empty + "\n")
        return
    if not out.is_terminal:
        _print_plain(columns, rows)
        return
    table = _table(columns, rows)
    if below and Measurement.get(out, out.options.update(max_width=PIPE_WIDTH), table).maximum > out.width:
        _print_narrow(out, columns, rows, below)
    else:
        out.print(table)


def _print_plain(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """For pipes and files: tens of thousands of rows take a moment, not a minute."""
    from rich.cells import cell_len

    lines = [list(columns), *([_plain(value) for value in row] for row in rows)]
    sizes = [[len(text) if text.isascii() else cell_len(text) for text in line] for line in lines]
    widths = [max(column) for column in zip(*sizes, strict=True)]
    for line, size in zip(lines, sizes, strict=True):
        padded = (text + " " * (width - own) for text, width, own in zip(line, widths, size, strict=True))
        sys.stdout.write("   ".join(padded).rstrip() + "\n")


def _plain(value: object) -> str:
    """The text of a cell."""
    if value is None or value == "" or value == ():
        return "-"
    if isinstance(value, tuple | list):
        return ",".join(printable(str(item)) for item in value)
    return printable(str(value))


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    return table


def _print_narrow(
    out: Any, columns: Sequence[str], rows: Sequence[Sequence[object]], below: Sequence[str]
) -> None:
    """Each row on one line, and under it what is long, by the name of its column."""
    from rich.text import Text

    beside = [number for number, column in enumerate(columns) if column not in below]
    lines = [[Text(columns[number], "bold") for number in beside]]
    lines += [[cell(row[number], ", ") for number in beside] for row in rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(beside))]
    under = [[(column, row[columns.index(column)]) for column in below] for row in rows]
    for line, details in zip(lines, [[], *under], strict=True):
        for text, width in zip(line, widths, strict=True):
            text.pad_right(width - len(text) + 2)
        out.print(Text.assemble(*line), soft_wrap=True)
        for column, value in details:
            for text in _details(value, out.width):
                out.print(Text.assemble((f"    {column.lower()}  ", "dim"), text), soft_wrap=True)


def _details(value: object, width: int) -> Iterator[Any]:
    """A value's lines: a list on one line where it fits."""
    if value is None or value == "" or value == ():
        return
    whole = cell(value, ", ")
    if isinstance(value, tuple) and len(whole) > width:
        yield from map(cell, value)
    else:
        yield whole


def cell(value: object, joiner: str = "\n") -> Any:
    """A value as text with its colour; the parts of a list are joined by `joiner`."""
    from rich.text import Text

    if value is None or value == "" or value == ():
        return Text("-", style="dim")
    if isinstance(value, tuple | list):
        return Text(joiner.join(printable(str(item)) for item in value))
    text = printable(str(value))
    return Text(text, style=STATE_STYLE.get(text, ""))


def end(ip: str, port: int, protocol: str = "") -> str:
    """An address and a port as one types them."""
    text = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    return f"{text}/{protocol}" if protocol else text


def health(state: str, message: str = "") -> Any:
    """A component's state in colour, and its sentence."""
    from rich.text import Text

    return Text.assemble((f"{state:<9}", HEALTH_STYLE.get(state, "")), printable(message))
