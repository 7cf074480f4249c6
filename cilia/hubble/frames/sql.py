"""SQL over one table of flows, and over nothing else.

DuckDB runs in memory, with its doors shut before the query is read: no files, no network, no extensions, no
variables of this process, a bound on memory and none of it on disk. The query is one statement that reads.
"""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pyarrow as pa

TABLE = "flows"
DEFAULT_MEMORY = "1GB"
DEFAULT_SECONDS = 60.0

CLOSED: dict[str, str] = {
    "enable_external_access": "false",
    "allow_community_extensions": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "allow_persistent_secrets": "false",
    "temp_directory": "",
}
"""DuckDB's settings that let a query out of the table."""


class QueryError(Exception):
    """A query that can't be answered; the text says why."""


def query(
    table: pa.Table, statement: str, *, memory: str = DEFAULT_MEMORY, seconds: float = DEFAULT_SECONDS
) -> pa.Table:
    """The answer of one SELECT over the table `flows`. Raises QueryError."""
    import duckdb

    try:
        config: dict[str, Any] = {**CLOSED, "memory_limit": memory, "threads": "2"}
        with closing(duckdb.connect(":memory:", config=config)) as engine:
            engine.execute("SET TimeZone = 'UTC'")
            engine.execute("SET lock_configuration = true")
            engine.register(TABLE, table)
            check(duckdb, engine, statement)
            return timed(engine, statement, seconds)
    except duckdb.Error as error:
        raise QueryError(sentence(error)) from None


def check(duckdb: Any, engine: Any, statement: str) -> None:
    """Refuse what is not one statement that reads. Raises QueryError."""
    statements = engine.extract_statements(statement)
    readers = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
    if len(statements) != 1 or statements[0].type not in readers:
        raise QueryError(f"only one SELECT is answered: the flows are the table {TABLE}")


def timed(engine: Any, statement: str, seconds: float) -> pa.Table:
    """Run a statement for so long at most. Raises QueryError."""
    late = threading.Event()

    def interrupt() -> None:
        late.set()
        engine.interrupt()

    timer = threading.Timer(seconds, interrupt)
    timer.start()
    try:
        return engine.sql(statement).to_arrow_table()
    except Exception:
        if late.is_set():
            raise QueryError(
                f"the query ran for more than {seconds:g} seconds: narrow it, or ask for fewer flows"
            ) from None
        raise
    finally:
        timer.cancel()


def sentence(error: Exception) -> str:
    """DuckDB's first lines without the picture and the list of candidates; and what helps."""
    text, _, _ = str(error).partition("\n\n")
    told, _, _ = " ".join(text.split()).partition(" Candidate functions:")
    told, _, _ = told.partition(" Did you mean")
    return f"the query can't be answered: {told}{hint(told)}"


def hint(told: str) -> str:
    """What to write instead, for what people run into."""
    if "TIMESTAMPTZ_NS" in told:
        return (
            "; times have nanoseconds, which few functions of SQL know: write time::timestamptz, as in "
            "time::timestamptz > now() - interval 5 minute"
        )
    if "Table with name" in told:
        return f" The flows are the table {TABLE}."
    if 'Referenced column "' in told:
        return f"; all columns: select column_name from (describe {TABLE})"
    return ""
