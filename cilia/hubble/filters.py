"""FlowFilter to masks over columns.

The fields of one filter are joined by AND, the values of a field by OR, filters of a list by OR; a flow is
answered when the whitelist (if there is one) matches and the blacklist does not. A field this version can't
evaluate is refused with a sentence, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cilia.hubble.columns import Mask
from cilia.hubble.filter_values import UnsupportedFilter
from cilia.hubble.predicates import FIELDS, NEEDS_L7, SIDE_FIELDS, Context, Predicate
from cilia.hubble.store import Rows
from cilia.proto.flow import flow_pb2

UNSUPPORTED = {
    "http_status_code": NEEDS_L7,
    "http_method": NEEDS_L7,
    "http_path": NEEDS_L7,
    "http_url": NEEDS_L7,
    "http_header": NEEDS_L7,
    "dns_query": NEEDS_L7,
    "trace_id": NEEDS_L7,
    "ip_trace_id": "IP option tracing is not recorded: leave the filter out",
    "experimental": "CEL expressions are not evaluated here: use the typed fields of the filter",
}
"""Fields that are refused, and what to do instead."""


class FlowMatcher:
    """A whitelist and a blacklist, compiled."""

    def __init__(
        self,
        context: Context,
        whitelist: Sequence[flow_pb2.FlowFilter] = (),
        blacklist: Sequence[flow_pb2.FlowFilter] = (),
    ) -> None:
        """Raises FilterError for a value that can't be read, UnsupportedFilter for a field not evaluated."""
        self._white = [compile_filter(context, each) for each in whitelist]
        self._black = [compile_filter(context, each) for each in blacklist]

    def mask(self, rows: Rows) -> Mask:
        """Which rows are answered: shape (n,)."""
        selected = any_of(self._white, rows) if self._white else np.ones(len(rows.wall), np.bool_)
        if self._black and selected.any():
            selected &= ~any_of(self._black, rows)
        return selected


def any_of(filters: Iterable[list[Predicate]], rows: Rows) -> Mask:
    """Rows that at least one filter matches."""
    selected = np.zeros(len(rows.wall), np.bool_)
    for predicates in filters:
        matched = np.ones(len(rows.wall), np.bool_)
        for predicate in predicates:
            matched &= predicate(rows)
            if not matched.any():
                break
        selected |= matched
    return selected


def compile_filter(context: Context, message: flow_pb2.FlowFilter) -> list[Predicate]:
    """The predicates of one filter; a filter without fields has none and matches everything."""
    predicates = []
    for descriptor, value in message.ListFields():
        name = descriptor.name
        if name in UNSUPPORTED:
            raise UnsupportedFilter(f"the filter field {name} is not supported: {UNSUPPORTED[name]}")
        side, _, rest = name.partition("_")
        if side in ("source", "destination") and rest in SIDE_FIELDS:
            predicates.append(SIDE_FIELDS[rest](context, side, list(value)))
        elif name in FIELDS:
            predicates.append(FIELDS[name](context, list(value)))
        else:
            raise UnsupportedFilter(f"the filter field {name} is not known here: leave it out")
    return predicates
