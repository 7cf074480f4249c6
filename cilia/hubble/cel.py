"""Filters as expressions in the Common Expression Language, over the flow a client would get.

    _flow.verdict == Verdict.DROPPED && _flow.destination.labels.exists(l, l.startsWith("k8s:app="))

`_flow` is the flow.Flow message, enums go by their names (`Verdict.DROPPED`, `flow.Verdict.DROPPED`). A field
that is not set reads as its default; where an expression uses has(), it is absent instead. What can't be
evaluated for a flow (a label that is not there, a comparison of a text with a number) does not match.

An evaluation takes some 10 µs, so there is one per distinct combination of the fragments that hold the fields
an expression mentions, not one per flow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from cilia.hubble.cel_limits import check, code_of
from cilia.hubble.columns import Mask
from cilia.hubble.convert import Converter, NodeFacts, whole
from cilia.hubble.cuts import FIELDS_OF
from cilia.hubble.filter_values import FilterError
from cilia.hubble.layer4 import PORTS, transports
from cilia.hubble.past import Meanings
from cilia.hubble.ring import Rows
from cilia.hubble.turns import Turn
from cilia.kit.documents import cut
from cilia.proto.flow import flow_pb2

if TYPE_CHECKING:
    import cel

REMEMBERED = 1 << 14
"""Combinations whose answer is remembered."""

FLOW = "_flow"
MENTIONED = re.compile(rf"\b{FLOW}\b(?:\s*\.\s*(\w+))?")
LAYER4 = re.compile(rf"\b{FLOW}\s*\.\s*l4((?:\s*\.\s*\w+)*)")
ABSENCE = re.compile(r"\bhas\s*\(")

ENUMS = {
    name: {member.name: member.number for member in enum.values}
    for name, enum in flow_pb2.DESCRIPTOR.enum_types_by_name.items()
}
"""Names of members to numbers, by the enum's name."""

WRAPPERS = {
    f"google.protobuf.{name}Value" for name in ("Bool", "Int32", "UInt32", "Int64", "UInt64", "String")
}


FAULTS = (TypeError, ValueError, IndexError, ArithmeticError)
"""What evaluating raises where the values of a flow don't suit: a division by a port that is 0, too."""


class Condition:
    """One expression, compiled; says whether a flow matches."""

    def __init__(self, text: str) -> None:
        """Raises FilterError for what is no boolean expression over a flow, or would take too long."""
        code = code_of(text)
        check(text, code)
        self._program = compiled(text)
        self._sparse = bool(ABSENCE.search(code))
        self._fields = mentioned(code)
        names = self._program.variables()
        self._constants: dict[str, Any] = {name: ENUMS[name] for name in names if name in ENUMS}
        if "flow" in names:
            self._constants["flow"] = ENUMS
        self._try(text)

    def matches(self, flow: flow_pb2.Flow) -> bool:
        """Whether it is true of a flow; an error while evaluating is no match."""
        try:
            return self._program.execute(self._variables(flow, sparse=self._sparse)) is True
        except (*FAULTS, KeyError, RuntimeError):
            return False

    def _variables(self, flow: flow_pb2.Flow, *, sparse: bool) -> dict[str, Any]:
        return {FLOW: as_map(flow, self._fields, sparse=sparse), **self._constants}

    def _try(self, text: str) -> None:
        """Evaluate once over an empty flow, which finds fields and functions that don't exist."""
        unknown = self._fields.difference(flow_pb2.Flow.DESCRIPTOR.fields_by_name)
        if unknown:
            raise FilterError(f"the CEL expression {cut(text)!r} names {min(unknown)!r}, which no flow has")
        try:
            answer = self._program.execute(self._variables(flow_pb2.Flow(), sparse=False))
        except KeyError as error:
            raise FilterError(f"the CEL expression {cut(text)!r} names {error}, which no flow has") from None
        except RuntimeError as error:
            if str(error).startswith("Undefined"):
                sentence = str(error).partition(". ")[0]
                raise FilterError(
                    f"the CEL expression {cut(text)!r} can't be evaluated: {sentence}"
                ) from None
            return
        except FAULTS:
            return
        if not isinstance(answer, bool):
            raise FilterError(
                f"the CEL expression {cut(text)!r} is not a condition: it must be true or false"
            )


class Expression(Condition):
    """One expression over rows: which of them match."""

    def __init__(self, text: str, meanings: Meanings, node: NodeFacts, turn: Turn | None = None) -> None:
        """Raises FilterError as a condition does. `turn`: ends evaluations over rows, by TurnOver."""
        super().__init__(text)
        self._turn = turn
        self._columns = [name for name, fields in FIELDS_OF.items() if fields & self._fields]
        self._ports = ports(code_of(text))
        self._converter = Converter(meanings, node)
        self._known: dict[tuple[bytes, ...], bool] = {}

    def __call__(self, rows: Rows) -> Mask:
        """Which rows match."""
        columns = [self._column(name, rows) for name in self._columns]
        keys = list(zip(*columns, strict=True)) if columns else [()] * len(rows.wall)
        known = self._known
        if len(known) > REMEMBERED:
            known.clear()
        for key in set(keys).difference(known):
            known[key] = self.matches(flow_pb2.Flow.FromString(b"".join(key)))
            if self._turn:
                self._turn.progressed()
        return np.fromiter(map(known.__getitem__, keys), np.bool_, len(keys))

    def _column(self, name: str, rows: Rows) -> list[bytes]:
        """Most flows differ in their ports only, so a port that is not asked for is left out."""
        if name == "transports":
            return whole(transports(rows.events, self._ports))
        return self._converter.column(name, rows)


def compiled(text: str) -> cel.Program:
    """The library's program. Raises FilterError.

    Imported when the first expression comes: it loads rich, which an agent that starts keeps out.
    """
    import cel

    try:
        return cel.compile(text)
    except ValueError as error:
        reason = str(error).partition("ERROR: ")[2].partition("\n")[0] or "it can't be read"
        # The library lists all that could have come instead.
        reason = reason.partition(" expecting {")[0]
        raise FilterError(f"the CEL expression {cut(text)!r} is wrong: {reason}") from None


def mentioned(code: str) -> frozenset[str]:
    """The fields of the flow that an expression (without its texts) reads; all, if that can't be told."""
    names = [match[1] for match in MENTIONED.finditer(code)]
    if all(names):
        return frozenset(names)
    return frozenset(flow_pb2.Flow.DESCRIPTOR.fields_by_name)


def ports(code: str) -> frozenset[str]:
    """Which of the ports an expression (without its texts) may read."""
    paths = [re.sub(r"\s", "", path).split(".") for path in LAYER4.findall(code)]
    plain = len(paths) == len(re.findall(r"\bl4\b", code)) and all(len(path) > 2 for path in paths)
    return frozenset(PORTS.intersection(path[2] for path in paths) if plain else PORTS)


def as_map(flow: Message, fields: frozenset[str], *, sparse: bool) -> dict[str, Any]:
    """Some fields of a message as the library takes them; `sparse`: only those that are set."""
    by_name = flow.DESCRIPTOR.fields_by_name
    return {
        name: value(flow, by_name[name], sparse=sparse)
        for name in fields
        if name in by_name and (not sparse or is_set(flow, by_name[name]))
    }


def is_set(message: Message, field: Any) -> bool:
    """What has() means: a message that is there, a list with members, a value other than the default."""
    if field.is_repeated:
        return bool(len(getattr(message, field.name)))
    if field.message_type is not None:
        return message.HasField(field.name)
    return bool(getattr(message, field.name) != field.default_value)


def value(message: Message, field: Any, *, sparse: bool) -> Any:
    """One field."""
    read = getattr(message, field.name)
    kind = field.message_type
    if kind is None:
        return list(read) if field.is_repeated else read
    if field.is_repeated:
        return [inner(each, kind, sparse=sparse) for each in read]
    if kind.full_name in WRAPPERS:
        return read.value if message.HasField(field.name) else None
    return inner(read, kind, sparse=sparse)


def inner(message: Message, kind: Descriptor, *, sparse: bool) -> Any:
    """A message inside of another."""
    special = SPECIAL.get(kind.full_name)
    if special is not None:
        return special(message)
    return as_map(message, frozenset(kind.fields_by_name), sparse=sparse)


SPECIAL: Mapping[str, Callable[[Any], Any]] = {
    "google.protobuf.Timestamp": lambda moment: moment.ToDatetime(),
    "google.protobuf.Any": lambda packed: {"type_url": packed.type_url},
}
"""Messages with a meaning of their own."""
