"""Lines of whole flows, many in one run of bytes: what is its own in every flow is made as columns.

    end of the line   time, UUID   meaning, flags   ports   sockets   names, pair
    before
    ◄─────────── own ────────────► ◄─ remembered ─► ◄─own─► ◄───────► ◄─ remembered ─► ◄─ next's own

So a line costs a few references to bytes, and all of them are joined once (as `hubble.blocks` does for
messages). What is remembered is made of the texts of fragments, so what differs in one of them is soon there.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt

from cilia.hubble.blocks import HEX_DIGITS, Packer, hex_digits, joined
from cilia.hubble.columns import Times
from cilia.hubble.convert import END_COLUMNS, MEANING_FIELDS, PAIR_FIELDS, Converter, end_columns, whole
from cilia.hubble.encode import NANOSECONDS
from cilia.hubble.export.texts import Texts, heads, port_texts, ports_shown, some
from cilia.hubble.meaning import has_sockets
from cilia.hubble.past import Meanings
from cilia.hubble.remembered import Remembered
from cilia.hubble.store import Rows

REMEMBERED = 1 << 13
"""Texts of each kind."""
SECOND = np.dtype("V19")
STAMP = np.dtype(
    [("second", SECOND), ("point", "u1"), ("first", "u1"), ("middle", "=u4"), ("last", "=u4"), ("zone", "u1")]
)
"""A moment with all nine digits of its second."""
TEXT = np.dtype(f"V{STAMP.itemsize}")
"""The same, opaque."""
FOUR_DIGITS = 10_000
DIGITS = np.frombuffer(b"".join(b"%04d" % number for number in range(FOUR_DIGITS)), np.uint32)
"""Of a number below that."""


class WholeLines:
    """Makes lines of rows, with all fields of their flows."""

    def __init__(
        self, meanings: Meanings, converter: Converter, texts: Mapping[str, Texts], run: bytes, tail: bytes
    ) -> None:
        """`texts`: by the name of a column of fragments; `run`: a UUID but the row's number; `tail`: what
        stands between flow and time."""
        self._meanings = meanings
        self._converter = converter
        self._texts = texts
        self._own = Own(run, tail)
        self._keys_of_meanings = Packer(MEANING_FIELDS, [("shown", "?")])
        self._keys_of_ends = Packer(PAIR_FIELDS, END_COLUMNS)
        self._known_meanings: Remembered[bytes, bytes] = Remembered(REMEMBERED, len)
        self._known_ends: Remembered[bytes, bytes] = Remembered(REMEMBERED, len)
        self._generations: tuple[int, ...] = ()

    def block(self, rows: Rows) -> bytes:
        """The lines of rows, in their order."""
        if not len(rows.wall):
            return b""
        self._forget_compacted()
        events = rows.events
        ports = ports_shown(events)
        keys = self._keys_of_meanings.pack(events, [some(ports)])
        parts = [self._known_meanings.find(keys, rows, self._meanings_to_ports), port_texts(ports)]
        if has_sockets(events):
            parts.append(self._column("sockets", rows))
        keys = self._keys_of_ends.pack(events, end_columns(rows))
        parts.append(self._known_ends.find(keys, rows, self._ends))
        return joined(self._own.pieces(rows), parts)

    def _meanings_to_ports(self, rows: Rows) -> list[bytes]:
        """What a flow says of itself, its ports last."""
        return whole([self._column("meanings", rows), heads(rows.events)])

    def _ends(self, rows: Rows) -> list[bytes]:
        """Both sides, the service and the pair."""
        return whole(self._column(name, rows) for name in ("sources", "destinations", "services", "pairs"))

    def _column(self, name: str, rows: Rows) -> list[bytes]:
        return self._texts[name].of(self._converter.column(name, rows))

    def _forget_compacted(self) -> None:
        known = self._meanings
        interners = (known.parties, known.rules, known.devices, known.services)
        generations = tuple(interner.generation for interner in interners)
        if generations != self._generations:
            self._generations = generations
            self._known_ends.clear()


class Own:
    """The part of each line that no other line has."""

    def __init__(self, run: bytes, tail: bytes) -> None:
        parts = {
            "tail": tail,
            "before": bytes(STAMP.itemsize),
            "begin": b'"}\n{"flow":{"time":"',
            "time": bytes(STAMP.itemsize),
            "run": run,
            "digits": bytes(HEX_DIGITS),
            "end": b'"',
        }
        self._layout = np.dtype([(name, f"V{len(part)}") for name, part in parts.items()])
        self._template = np.frombuffer(b"".join(parts.values()), f"V{self._layout.itemsize}")
        self._start = len(tail) + STAMP.itemsize + len(b'"}\n')
        self._tail = tail

    def pieces(self, rows: Rows) -> list[bytes]:
        """The part of each row, and the end of the last line: one more than there are rows."""
        stamps = stamp_digits(rows.wall)
        out = np.repeat(self._template, len(stamps)).view(self._layout)
        out["before"][1:] = stamps[:-1]
        out["time"] = stamps
        out["digits"] = hex_digits(rows.numbers).view(out.dtype["digits"]).ravel()
        pieces = out.view(self._template.dtype).tolist()
        pieces.append(b"".join((self._tail, stamps[-1].tobytes(), b'"}\n')))
        pieces[0] = pieces[0][self._start :]
        for index in np.flatnonzero(rows.wall % 1_000 == 0).tolist():
            digits, short = stamps[index].tobytes(), timestamp(int(rows.wall[index]))
            for near in (index, index + 1):
                pieces[near] = pieces[near].replace(b'"%b"' % digits, b'"%b"' % short)
        return cast(list[bytes], pieces)


def stamp_digits(moments: Times) -> npt.NDArray[np.void]:
    """Moments (at least one) in nanoseconds since the epoch as RFC 3339 in UTC, with nine digits: shape
    (n,), 30 bytes each."""
    stamps = np.empty(len(moments), STAMP)
    second = int(moments[0]) // NANOSECONDS
    nanos = moments - second * NANOSECONDS
    if nanos.min() >= 0 and nanos.max() < NANOSECONDS:
        stamps["second"] = np.frombuffer(of_second(second), SECOND)
    else:
        seconds, nanos = np.divmod(moments, NANOSECONDS)
        distinct, place = np.unique(seconds, return_inverse=True)
        heads = b"".join(map(of_second, distinct.tolist()))
        stamps["second"] = np.frombuffer(heads, SECOND)[place]
    upper = nanos // FOUR_DIGITS
    first = upper // FOUR_DIGITS
    stamps["point"], stamps["zone"] = ord("."), ord("Z")
    stamps["first"] = first + ord("0")
    stamps["middle"] = DIGITS[upper - first * FOUR_DIGITS]
    stamps["last"] = DIGITS[nanos - upper * FOUR_DIGITS]
    return stamps.view(TEXT)


def timestamps(moments: Times) -> list[bytes]:
    """`timestamp` of many moments; the digits are made in a few vector steps."""
    if not len(moments):
        return []
    out = cast(list[bytes], stamp_digits(moments).tolist())
    for index in np.flatnonzero(moments % 1_000 == 0).tolist():
        out[index] = timestamp(int(moments[index]))
    return out


def timestamp(moment: int) -> bytes:
    """A moment in nanoseconds since the epoch as RFC 3339 in UTC, with 0, 3, 6 or 9 digits of a second."""
    seconds, rest = divmod(moment, NANOSECONDS)
    second = of_second(seconds)
    if rest % 1_000:
        return b"%b.%09dZ" % (second, rest)
    if rest % 1_000_000:
        return b"%b.%06dZ" % (second, rest // 1_000)
    if rest:
        return b"%b.%03dZ" % (second, rest // 1_000_000)
    return second + b"Z"


@functools.lru_cache(256)
def of_second(seconds: int) -> bytes:
    """A second of the epoch, without its zone."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
