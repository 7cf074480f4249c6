"""A table of flows, in the form one likes to work with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

    from cilia.hubble.client import Client
    from cilia.hubble.frames.decode import Missing
    from cilia.proto.observer import observer_pb2

METHOD = "/observer.Observer/GetFlows"
BATCH = 8192
"""Responses decoded in one step."""
DEFAULT_LIMIT = 5_000_000
"""Flows of one frame: some 1.5 GB."""


class FrameError(Exception):
    """A frame can't be made; the text says what to do."""


class Frame:
    """Flows, or what a query made of them: one row each, columns as `schema.SCHEMA`."""

    def __init__(self, table: pyarrow.Table, completeness: Missing) -> None:
        self._table = table
        self.completeness = completeness
        """What the servers said is missing."""

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {', '.join(self._table.column_names)}>"

    def arrow(self) -> pyarrow.Table:
        """As Arrow has it, without a copy."""
        return self._table

    def pandas(self) -> pandas.DataFrame:
        """For pandas; names are categories. Raises FrameError without it."""
        require("pandas")
        return self._table.to_pandas()

    def polars(self) -> polars.DataFrame:
        """For polars; names are categories. Raises FrameError without it."""
        require("polars")
        import polars

        frame = polars.from_arrow(self._table)
        assert isinstance(frame, polars.DataFrame)
        return frame

    def sql(self, statement: str, **bounds: Any) -> Frame:
        """The answer of one SELECT over this frame, which it calls `flows`; `bounds` as of `sql.query`.

        Raises FrameError without DuckDB, sql.QueryError for a query that can't be answered.
        """
        require("duckdb")
        from cilia.hubble.frames.sql import query

        return Frame(query(self._table, statement, **bounds), self.completeness)


def require(*packages: str) -> None:
    """Raise FrameError when a package is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        extra = (
            "pandas and polars are installed by themselves; the others come with pip install 'cilia[history]'"
        )
        raise FrameError(f"this needs {' and '.join(missing)}, which is not installed: {extra}")


def fetch(
    client: Client,
    request: observer_pb2.GetFlowsRequest,
    *,
    limit: int = DEFAULT_LIMIT,
    progress: Callable[[int], None] | None = None,
) -> Frame:
    """All flows that answer a request; `progress` is told now and then how many have come.

    Raises RpcError, and FrameError where there are more than `limit` or the extra is not installed.
    """
    require("pyarrow")
    from google.protobuf.message import DecodeError

    from cilia.hubble.frames.decode import Decoder

    decoder = Decoder()
    try:
        for batch in batches(client.stream(METHOD, request.SerializeToString())):
            decoder.add(batch)
            if progress is not None:
                progress(decoder.count)
            if decoder.count > limit:
                raise FrameError(
                    f"more than {limit} flows answer this: narrow it with since, until or filters, or raise "
                    "the limit"
                )
    except (ValueError, DecodeError) as error:
        raise FrameError(f"the server's answer can't be read: {error}") from None
    return Frame(decoder.table(), decoder.completeness)


def batches(responses: Iterable[bytes]) -> Iterator[list[bytes]]:
    """In pieces of BATCH."""
    responses = iter(responses)
    while batch := list(islice(responses, BATCH)):
        yield batch
