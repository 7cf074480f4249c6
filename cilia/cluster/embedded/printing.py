"""Server-side tables: the columns and cells that ``kubectl get`` shows. Pure: ``now`` is an argument.

A column's cell comes from a function of the object; CRDs bring JSONPaths instead. Source: the Table kind of
``meta.k8s.io/v1`` (https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from . import jsonpath

Cell = str | int | float | bool | None
IncludeObject = Literal["None", "Metadata", "Object"]


class Column(msgspec.Struct, frozen=True):
    """One column. ``wide`` columns show with ``-o wide`` only; ``cell(object, now)`` gives the value."""

    name: str
    cell: Callable[[dict[str, Any], datetime], Cell]
    type: str = "string"
    format: str = ""
    description: str = ""
    wide: bool = False

    def definition(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description or self.name,
            "priority": 1 if self.wide else 0,
        }


def table(
    columns: Iterable[Column],
    objects: Iterable[dict[str, Any]],
    now: datetime,
    include: IncludeObject,
    metadata: dict[str, Any],
    *,
    headed: bool = True,
) -> dict[str, Any]:
    """A ``Table`` of objects; ``headed=False`` leaves the column definitions out (later rows of a watch)."""
    columns = list(columns)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": [column.definition() for column in columns] if headed else None,
        "rows": [_row(columns, value, now, include) for value in objects],
    }


def _row(
    columns: list[Column], value: dict[str, Any], now: datetime, include: IncludeObject
) -> dict[str, Any]:
    row: dict[str, Any] = {"cells": [column.cell(value, now) for column in columns]}
    if include == "Object":
        row["object"] = value
    elif include == "Metadata":
        row["object"] = partial_metadata(value)
    return row


def partial_metadata(value: dict[str, Any]) -> dict[str, Any]:
    """The object's ``PartialObjectMetadata``."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]}


# --- parts of cells ----------------------------------------------------------------------------------------


def dig(value: Any, *path: str | int) -> Any:
    """The value at a path of keys and indexes, or None."""
    for step in path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and -len(value) <= step < len(value) else None
    return value


def age(stamp: Any, now: datetime) -> str:
    """``3m5s`` since an RFC 3339 time, as kubectl rounds it."""
    if not isinstance(stamp, str):
        return "<unknown>"
    try:
        seconds = int((now - datetime.fromisoformat(stamp).astimezone(UTC)).total_seconds())
    except ValueError:
        return "<invalid>"
    return duration(seconds)


_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: int) -> str:
    """A length of time with two units where the first is small, as kubectl writes it."""
    if seconds < -1:
        return "<invalid>"
    seconds = max(seconds, 0)
    if seconds < 2 * _MINUTE:
        return f"{seconds}s"
    if seconds < 10 * _MINUTE:
        return _two(seconds, _MINUTE, "m", 1, "s")
    if seconds < 3 * _HOUR:
        return f"{seconds // _MINUTE}m"
    if seconds < 8 * _HOUR:
        return _two(seconds, _HOUR, "h", _MINUTE, "m")
    if seconds < 2 * _DAY:
        return f"{seconds // _HOUR}h"
    if seconds < 8 * _DAY:
        return _two(seconds, _DAY, "d", _HOUR, "h")
    if seconds < 2 * 365 * _DAY:
        return f"{seconds // _DAY}d"
    if seconds < 8 * 365 * _DAY:
        return _two(seconds, 365 * _DAY, "y", _DAY, "d")
    return f"{seconds // (365 * _DAY)}y"


def _two(seconds: int, unit: int, name: str, rest: int, rest_name: str) -> str:
    left = seconds % unit // rest
    return f"{seconds // unit}{name}" + (f"{left}{rest_name}" if left else "")


def created(value: dict[str, Any], now: datetime) -> str:
    """The AGE column."""
    return age(dig(value, "metadata", "creationTimestamp"), now)


def selector_text(selector: Any) -> str:
    """A label selector as kubectl prints it: ``app=web,tier in (a,b)``."""
    if not isinstance(selector, dict):
        return "<none>"
    terms = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for term in selector.get("matchExpressions") or ():
        terms.append(_expression(term))
    return ",".join(terms) or "<none>"


def _expression(term: dict[str, Any]) -> str:
    key, operator = term.get("key", ""), term.get("operator", "")
    match operator:
        case "Exists":
            return str(key)
        case "DoesNotExist":
            return f"!{key}"
    return f"{key} {str(operator).lower()} ({','.join(map(str, term.get('values') or ()))})"


def field(*path: str | int, empty: Cell = "<none>") -> Callable[[dict[str, Any], datetime], Cell]:
    """A cell that is the value at a path, or ``empty``."""

    def cell(value: dict[str, Any], now: datetime) -> Cell:
        found = dig(value, *path)
        return empty if found is None or found == "" else found

    return cell


NAME = Column("Name", field("metadata", "name"), format="name", description="Name of the object")
AGE = Column("Age", created, description="Time since the object was created")
DEFAULT = (
    NAME,
    Column(
        "Created At", field("metadata", "creationTimestamp"), type="date", description="When it was created"
    ),
)


# --- columns of custom resources ---------------------------------------------------------------------------


def custom_columns(definitions: Iterable[dict[str, Any]]) -> tuple[Column, ...]:
    """Columns from ``additionalPrinterColumns``; without any, name and age. Raises ValueError."""
    columns = [_custom(definition) for definition in definitions]
    return (NAME, *(columns or [AGE]))


def _custom(definition: dict[str, Any]) -> Column:
    path = jsonpath.compile_path(definition["jsonPath"])
    kind = definition["type"]

    def cell(value: dict[str, Any], now: datetime) -> Cell:
        return _custom_cell(kind, jsonpath.find(path, value), now)

    return Column(
        definition["name"],
        cell,
        type="string" if kind == "date" else kind,
        format=definition.get("format", ""),
        description=definition.get("description", ""),
        wide=bool(definition.get("priority")),
    )


def _custom_cell(kind: str, found: list[Any], now: datetime) -> Cell:
    if not found or found[0] is None:
        return None
    value = found[0]
    match kind:
        case "date":
            return age(value, now)
        case "integer":
            return int(value) if isinstance(value, int | float) else None
        case "number":
            return float(value) if isinstance(value, int | float) else None
        case "boolean":
            return value if isinstance(value, bool) else None
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
