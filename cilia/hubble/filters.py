"""FlowFilter to masks over columns.

The fields of one filter are joined by AND, the values of a field by OR, filters of a list by OR; a flow is
answered when the whitelist (if there is one) matches and the blacklist does not. A field this version does
not know is refused with a sentence, never ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.unknown_fields import UnknownFieldSet

from cilia.hubble.columns import KIND_DROP, KIND_VERDICT, Mask, Times
from cilia.hubble.filter_values import FilterError, UnsupportedFilter
from cilia.hubble.meaning import EVENT_TYPES
from cilia.hubble.predicates import APPLICATION_FIELDS, FIELDS, SIDE_FIELDS, Context, Predicate
from cilia.hubble.store import Rows
from cilia.hubble.turns import TurnOver, unhurried
from cilia.model.drop_reasons import BY_POLICY
from cilia.proto.flow import flow_pb2

FEW = 8
"""One row in so many is few: copying those costs less than looking at all."""

MOST_BEGUN = 8
"""Runs of rows of one question whose masks are remembered: the store has four at most."""

APPLICATION_RECORD = 129
"""Message type of application records."""

IMPORTANT_VERDICTS = {flow_pb2.DROPPED, flow_pb2.AUDIT}
IMPORTANT_TYPES = {EVENT_TYPES[KIND_DROP]}

DENIALS = tuple(
    flow_pb2.EventTypeFilter(type=EVENT_TYPES[KIND_DROP], match_sub_type=True, sub_type=reason)
    for reason in BY_POLICY
)


def with_denials(message: flow_pb2.FlowFilter) -> flow_pb2.FlowFilter:
    """A filter that asks for policy verdicts, so that it gets denials, too: they are told once, as drops.

    Of what is asked for only; who leaves policy verdicts out still wants the drops.
    """
    verdict = EVENT_TYPES[KIND_VERDICT]
    if not any(each.type == verdict and not each.match_sub_type for each in message.event_type):
        return message
    wider = flow_pb2.FlowFilter()
    wider.CopyFrom(message)
    wider.event_type.extend(DENIALS)
    return wider


def wants_important_only(whitelist: Sequence[flow_pb2.FlowFilter]) -> bool:
    """Whether only drops and what audit let pass can match, which the store keeps longer."""
    return bool(whitelist) and all(
        (each.verdict and IMPORTANT_VERDICTS.issuperset(each.verdict))
        or each.drop_reason_desc
        or (each.event_type and IMPORTANT_TYPES.issuperset(kind.type for kind in each.event_type))
        for each in whitelist
    )


class Begun(NamedTuple):
    """Rows that some filters have been asked about."""

    numbers: Times
    """Of the rows: a ring may hold others at their places by now."""
    done: int
    """Filters."""
    matched: Mask
    """Which rows they answer so far."""


class FlowMatcher:
    """A whitelist and a blacklist, compiled."""

    def __init__(
        self,
        context: Context,
        whitelist: Sequence[flow_pb2.FlowFilter] = (),
        blacklist: Sequence[flow_pb2.FlowFilter] = (),
    ) -> None:
        """Raises FilterError for a value that can't be read, UnsupportedFilter for a field not known."""
        self._white = [compile_filter(context, with_denials(each)) for each in unhurried(whitelist)]
        self._black = [compile_filter(context, each) for each in unhurried(blacklist)]
        self._turn = context.turn
        self._begun: dict[int, Begun] = {}
        """By the number of the first row."""
        self.slow = any(each.HasField("experimental") for each in (*whitelist, *blacklist))
        """Whether a row may take long: to be asked about few at a time."""
        self.values = sum(map(count, (*whitelist, *blacklist)))
        """In all filters: each may be compared with every row."""

    def mask(self, rows: Rows) -> Mask:
        """Which rows are answered: shape (n,). Raises TurnOver; asked the same again, it goes on with the
        filter that was next."""
        if not len(rows.wall):
            return np.ones(0, np.bool_)
        first, done, matched = int(rows.numbers[0]), 0, np.full(len(rows.wall), not self._white)
        begun = self._begun.get(first)
        if begun and np.array_equal(begun.numbers, rows.numbers):
            _, done, matched = begun
        try:
            while done < len(self._white) + len(self._black):
                matched = self._asked(done, matched, rows)
                done += 1
                if self._turn:
                    self._turn.progressed()
        except TurnOver:
            self._remember(first, Begun(rows.numbers.copy(), done, matched))
            raise
        if self._begun:
            # Another run of rows may not be done: this one is asked again with it.
            self._remember(first, Begun(rows.numbers.copy(), done, matched))
        return matched

    def _asked(self, place: int, matched: Mask, rows: Rows) -> Mask:
        """What rows are answered after one more filter."""
        if place < len(self._white):
            return matched | all_of(self._white[place], rows)
        return matched & ~all_of(self._black[place - len(self._white)], rows) if matched.any() else matched

    def _remember(self, first: int, begun: Begun) -> None:
        self._begun.pop(first, None)
        self._begun[first] = begun
        if len(self._begun) > MOST_BEGUN:
            del self._begun[next(iter(self._begun))]


def count(message: flow_pb2.FlowFilter) -> int:
    """How many values a filter has."""
    return sum(len(value) if field.is_repeated else 1 for field, value in message.ListFields())


def all_of(predicates: list[Predicate], rows: Rows) -> Mask:
    """Rows that all predicates match. Where few are left, only those are looked at."""
    matched = np.ones(len(rows.wall), np.bool_)
    for position, predicate in enumerate(predicates):
        if position:
            left = int(matched.sum())
            if not left:
                break
            if left * FEW < len(matched):
                matched[matched] = all_of(predicates[position:], rows.where(matched))
                break
        matched &= predicate(rows)
    return matched


def compile_filter(context: Context, message: flow_pb2.FlowFilter) -> list[Predicate]:
    """The predicates of one filter; a filter without fields has none and matches everything."""
    refuse_unknown(message)
    predicates = []
    # In order of their numbers, so expressions, which are slow, come last.
    for descriptor, value in sorted(message.ListFields(), key=lambda field: field[0].number):
        name = descriptor.name
        values = list(value) if descriptor.is_repeated else [value]
        if name in APPLICATION_FIELDS and any(each.type != APPLICATION_RECORD for each in message.event_type):
            raise FilterError(f"the filter field {name} speaks of l7 events: leave other event types out")
        side, _, rest = name.partition("_")
        if side in ("source", "destination") and rest in SIDE_FIELDS:
            predicates.append(SIDE_FIELDS[rest](context, side, values))
        else:
            predicates.append(FIELDS[name](context, values))
    return predicates


def refuse_unknown(message: flow_pb2.FlowFilter) -> None:
    """Newer clients may know more fields. Raises UnsupportedFilter."""
    for part in (message, message.experimental):
        unknown: Any = UnknownFieldSet(part)  # its stub lacks what makes it a sequence
        if len(unknown):
            number = unknown[0].field_number
            raise UnsupportedFilter(f"the filter field with number {number} is not known: leave it out")
