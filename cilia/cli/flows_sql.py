"""`cilia flows sql`: questions about flows in SQL."""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cilia.cli.flow_frames import read
from cilia.cli.hubble_server import connected, server_options
from cilia.cli.live import LiveLine
from cilia.cli.options import UserError, group
from cilia.cli.output import print_table, printable_json, printable_lines
from cilia.cli.sections import SectionedCommand
from cilia.hubble.frames.frame import DEFAULT_LIMIT, Frame, FrameError

if TYPE_CHECKING:
    import pyarrow

app = group("Ask about flows in SQL.")


class Form(enum.StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


Texts = list[str] | None


class SqlCommand(SectionedCommand):
    """With the flags of the server but --timeout, which is the query's here."""

    more = staticmethod(lambda: [each for each in server_options() if each.name != "timeout"])


@app.callback()
def flows() -> None:
    """Ask about flows in SQL."""


@app.command("sql", cls=SqlCommand)
def ask(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(help="One SELECT over the table flows.")],
    since: Annotated[
        str, typer.Option(help="Flows since 5m, 14:05, yesterday, 2026-11-23T04:20:00Z.")
    ] = "1h",
    until: Annotated[str, typer.Option(help="Until then; as --since.")] = "",
    last: Annotated[int | None, typer.Option(min=1, help="The newest N flows instead.")] = None,
    namespace: Annotated[Texts, typer.Option("--namespace", "-n", help="Namespace, either side.")] = None,
    pod: Annotated[Texts, typer.Option("--pod", help="[NAMESPACE/]POD prefix, either side.")] = None,
    verdict: Annotated[Texts, typer.Option("--verdict", help="FORWARDED, DROPPED, AUDIT, ...")] = None,
    node_name: Annotated[Texts, typer.Option("--node-name", help="[CLUSTER/]NODE, * for anything.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Flows that are read at most.")] = DEFAULT_LIMIT,
    memory: Annotated[str, typer.Option(help="What the query may take.")] = "1GB",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds the query may take.")] = 60.0,
    output: Annotated[Form, typer.Option("--output", "-o", help="How the answer is printed.")] = Form.TABLE,
) -> None:
    """Ask about flows in SQL: those in a node's memory and history, or through a relay those of all nodes.

    The table is called flows; `describe` it with: select column_name, column_type from (describe flows)

    \b
    Examples:
      cilia flows sql "select source_pod, count(*) from flows where verdict = 'DROPPED' group by all"
      cilia flows sql --since 1d "select policies, count(*) from flows group by all order by 2 desc"
      cilia flows sql -o parquet "from flows" > flows.parquet
    """
    if output is Form.PARQUET and sys.stdout.isatty():
        raise UserError("parquet is no text: send it into a file with > flows.parquet")
    # Imported late: DuckDB and pyarrow are an extra.
    from cilia.hubble.frames.sql import QueryError

    filters: dict[str, Any] = {"namespace": namespace, "pod": pod, "verdict": verdict, "node_name": node_name}
    window = {"since": None if last is not None else since, "until": until or None, "last": last}
    try:
        frame = fetched(ctx, limit, {**window, **{name: told for name, told in filters.items() if told}})
        answer = frame.sql(query, memory=memory, seconds=timeout)
    except (FrameError, QueryError, ValueError) as error:
        raise UserError(str(error)) from None
    print_answer(answer.arrow(), output)
    sys.stdout.flush()
    print(completeness(frame), file=sys.stderr)


def fetched(ctx: typer.Context, limit: int, asked: Mapping[str, Any]) -> Frame:
    """The flows that are asked for, as arguments of `read`; how many have come is shown meanwhile. Raises
    UserError, and what `read` raises."""
    counted = Counted()
    line = LiveLine(lambda: counted.flows, counted.sentence, on=sys.stderr.isatty())
    with connected(ctx) as client, line:
        return read(client=client, limit=limit, progress=counted.take, **asked)


class Counted:
    """How many flows have come so far, for the live line."""

    def __init__(self) -> None:
        self.flows = 0

    def take(self, flows: int) -> None:
        """All until now."""
        self.flows = flows

    def sentence(self) -> str:
        """In words."""
        return f"{self.flows:,} flows read"


def completeness(frame: Frame) -> str:
    """How much was asked, and what is missing."""
    told = frame.completeness
    lost = f"{told.lost:,} lost" if told.lost else "none lost"
    away = f"; no answer from {', '.join(told.unavailable)}" if told.unavailable else ""
    return f"{len(frame):,} flows, {lost}{away}"


def print_answer(table: pyarrow.Table, form: Form) -> None:
    """Print the rows of an answer."""
    match form:
        case Form.TABLE:
            print_rows(table)
        case Form.JSON:
            print_json(table)
        case Form.CSV:
            print_csv(table)
        case Form.PARQUET:
            import pyarrow.parquet

            pyarrow.parquet.write_table(table, sys.stdout.buffer, compression="zstd")


def print_rows(table: pyarrow.Table) -> None:
    """For people."""
    columns = [list(map(shown, column.to_pylist())) for column in plain(table).columns]
    print_table(table.column_names, list(zip(*columns, strict=True)), empty="(no rows)")


def shown(value: Any) -> Any:
    """A value in a cell."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else value


def print_json(table: pyarrow.Table) -> None:
    """One object a line."""
    import msgspec

    for batch in plain(table).to_batches(max_chunksize=4096):
        lines = msgspec.json.Encoder(enc_hook=str).encode_lines(batch.to_pylist())
        sys.stdout.write(printable_json(lines.decode()))


def print_csv(table: pyarrow.Table) -> None:
    """With a header."""
    import io

    import pyarrow.csv

    out = io.BytesIO()
    pyarrow.csv.write_csv(plain(table), out)
    text = out.getvalue().decode()
    sys.stdout.write(printable_lines(text) if sys.stdout.isatty() else text)


def plain(table: pyarrow.Table) -> pyarrow.Table:
    """Without dictionaries, and with times as text to the nanosecond."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for place, field in enumerate(table.schema):
        column = table.column(place)
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, column.cast(field.type.value_type))
        elif pa.types.is_timestamp(field.type):
            zone = "Z" if field.type.tz else ""
            table = table.set_column(place, field.name, pc.strftime(column, f"%Y-%m-%dT%H:%M:%S{zone}"))
    return table
