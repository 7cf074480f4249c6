"""Metric families as Prometheus reads them: the text format 0.0.4 and OpenMetrics 1.0.

Source: the pages "Exposition formats" of Prometheus and "OpenMetrics 1.0". They differ in the names of
counters in the comments, and in OpenMetrics' last line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

LINES = 2000
"""Lines in one piece: a millisecond or two."""

ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Head(NamedTuple):
    """What is said of a family before its samples."""

    name: str
    """Without the ending _total of counters."""
    type: str
    help: str


class Sample(NamedTuple):
    """One number of a family."""

    labels: tuple[str, ...]
    value: float
    suffix: str = ""
    """After the family's name, where it is not that of its type: _bucket, _sum, _count."""


def pieces(
    head: Head, names: tuple[str, ...], samples: Iterable[Sample], *, open_metrics: bool
) -> Iterator[bytes]:
    """A family as text, in pieces of at most LINES samples."""
    lines = (
        f"{series(head, names, sample.labels, sample.suffix)} {number(sample.value)}" for sample in samples
    )
    return in_pieces(head, lines, open_metrics=open_metrics)


def in_pieces(head: Head, lines: Iterable[str], *, open_metrics: bool) -> Iterator[bytes]:
    """The lines of a family after what is said of it, in pieces of at most LINES."""
    shown = head.name if open_metrics else head.name + ending(head)
    yield joined([f"# HELP {shown} {head.help}", f"# TYPE {shown} {head.type}"])
    rest = iter(lines)
    while piece := list(islice(rest, LINES)):
        yield joined(piece)


def ending(head: Head) -> str:
    """What the names of samples have after the family's."""
    return "_total" if head.type == "counter" else ""


def series(head: Head, names: tuple[str, ...], labels: tuple[str, ...], suffix: str = "") -> str:
    """What stands before the number of a sample."""
    return f"{head.name}{suffix or ending(head)}{labelled(zip(names, labels, strict=False))}"


def labelled(pairs: Iterable[tuple[str, str]]) -> str:
    """`{name="value",...}`, or nothing."""
    inside = ",".join(f'{name}="{value.translate(ESCAPES)}"' for name, value in pairs)
    return f"{{{inside}}}" if inside else ""


def number(value: float) -> str:
    """Whole numbers without a point, as they are counted."""
    return str(int(value)) if value == int(value) else repr(float(value))


def joined(lines: list[str]) -> bytes:
    """Lines, each with its end."""
    return ("\n".join(lines) + "\n").encode()


def wants_open_metrics(headers: Mapping[str, str]) -> bool:
    """Whether a scraper asked for OpenMetrics; header names in lower case."""
    return "application/openmetrics-text" in headers.get("accept", "")
