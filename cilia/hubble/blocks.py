"""Many flows in one run of bytes, framed as gRPC wants them: what is its own in every flow, made as columns.

    time of the    prefix  flow's   time, UUID,   rest of layer 4,  sockets   names, pair,     time of
    message before         length   ports         meaning                     node's name      this message
    ◄──────────────── own ──────────────────────► ◄─ remembered ──► ◄───────► ◄─ remembered ─► ◄─ next's own

So a flow costs three references to bytes, and all of them are joined once. Numbers that differ have a fixed
width: a base-128 number may end in zeros (encoding page of the Protocol Buffers documentation; every reader
takes them), and a field that is there with its default value means the same as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cilia.hubble.columns import Bytes, Events, Times
from cilia.hubble.columns import void as void
from cilia.hubble.encode import LENGTH, NANOSECONDS, VARINT, tag
from cilia.hubble.ring import Rows

FLOW_TAG, TIME_TAG = tag(1, LENGTH), tag(1001, LENGTH)
"""Of GetFlowsResponse."""

PREFIX_SIZE = 5
LENGTH_DIGITS, TIME_DIGITS, PORT_DIGITS = 4, 5, 3
"""Bytes of a flow's length, of seconds and of nanoseconds, and of a port."""

STAMP = tag(1, VARINT) + bytes(TIME_DIGITS) + tag(2, VARINT) + bytes(TIME_DIGITS)
"""A google.protobuf.Timestamp, zero."""
STAMP_SIZE = bytes((len(STAMP),))

HEX = np.frombuffer(b"".join(b"%02x" % value for value in range(256)), np.uint16)
"""The two digits of a byte."""
HEX_BYTES = 6
"""Bytes of a row's number that its UUID has."""


class Ports(NamedTuple):
    """What stands before and in the ports of flows, one of each per row."""

    key: Bytes
    """Key of the protocol in flow.Layer4; 0: it has no ports."""
    source: npt.NDArray[np.uint16]
    destination: npt.NDArray[np.uint16]
    rest: npt.NDArray[np.uint8]
    """Bytes of the protocol's header that follow the ports."""


class Own:
    """The part of each flow that no other flow has."""

    def __init__(self, uuid: bytes) -> None:
        """`uuid`: the field of the UUID up to the row's number."""
        parts = {
            "before": TIME_TAG + STAMP_SIZE,
            "ended": STAMP,
            "prefix": bytes(PREFIX_SIZE),
            "flow": FLOW_TAG,
            "length": bytes(LENGTH_DIGITS),
            "began": tag(1, LENGTH) + STAMP_SIZE,
            "time": STAMP,
            "uuid": uuid,
            "digits": bytes(2 * HEX_BYTES),
            "layer4": tag(6, LENGTH) + bytes(3),
            "source": tag(1, VARINT) + bytes(PORT_DIGITS),
            "destination": tag(2, VARINT) + bytes(PORT_DIGITS),
        }
        self._template = np.frombuffer(b"".join(parts.values()), np.uint8)
        ends = np.cumsum([0, *map(len, parts.values())]).tolist()
        self._places = {name: slice(*place) for name, place in zip(parts, pairwise(ends), strict=True)}
        self._closing = parts["before"]

    def pieces(self, rows: Rows, ports: Ports, others: Times, after: int) -> list[bytes]:
        """The part of each row, and the end of the last message: one more than there are rows.

        `others`: bytes of the flow that follow this part; `after`: bytes between flow and time. At least one
        row.
        """
        place = self._places
        begin = place["prefix"].start
        flow = place["length"].stop
        ported = ports.key != 0
        sizes = others + np.where(ported, len(self._template), place["layer4"].start) - flow
        stamps = timestamps(rows.wall)
        out = np.empty((len(sizes), len(self._template)), np.uint8)
        out[:] = self._template
        out[1:, place["ended"]] = stamps[:-1]
        out[:, place["prefix"]][:, 1:] = big_endian(sizes + (flow - PREFIX_SIZE + after))
        out[:, place["length"]] = padded(sizes, LENGTH_DIGITS)
        out[:, place["time"]] = stamps
        out[:, place["digits"]] = hex_digits(rows.numbers)
        if ported.any():
            self._write_ports(out, ports)
        pieces = void(out)
        for index in np.flatnonzero(~ported).tolist():
            pieces[index] = pieces[index][: place["layer4"].start]
        return [pieces[0][begin:], *pieces[1:], self._closing + stamps[-1].tobytes()]

    def _write_ports(self, out: Bytes, ports: Ports) -> None:
        layer4 = out[:, self._places["layer4"]]
        size = ports.rest + np.uint8(2 * (1 + PORT_DIGITS))
        layer4[:, 1], layer4[:, 2], layer4[:, 3] = size + np.uint8(2), ports.key, size
        for name, column in (("source", ports.source), ("destination", ports.destination)):
            out[:, self._places[name]][:, 1:] = padded(column, PORT_DIGITS)


class Packer:
    """Some fields of events, and some columns beside them, as one key per row."""

    def __init__(self, fields: Sequence[str], columns: Sequence[tuple[str, str]] = ()) -> None:
        """`columns`: name and dtype of each."""
        self._fields = fields
        self._columns = list(columns)
        self._dtype: np.dtype[np.void] | None = None

    def pack(self, events: Events, columns: Sequence[npt.NDArray[np.generic]] = ()) -> list[bytes]:
        """The keys; `columns` in the order of their names."""
        if events.dtype is not self._dtype:
            self._prepare(events.dtype)
        runs = events.view(self._runs)
        out = np.empty(len(events), self._key)
        for (name, _), column in zip(self._columns, columns, strict=True):
            out[name] = column
        for name in self._runs.names or ():
            out[name] = runs[name]
        return void(out.view(np.uint8).reshape(len(events), out.itemsize))

    def _prepare(self, dtype: np.dtype[np.void]) -> None:
        """Find which fields are neighbours: a run of them is copied at once."""
        assert dtype.fields is not None
        places = sorted((dtype.fields[name][1], dtype.fields[name][0].itemsize) for name in self._fields)
        runs: list[list[int]] = []
        for offset, size in places:
            if runs and sum(runs[-1]) == offset:
                runs[-1][1] += size
            else:
                runs.append([offset, size])
        names = [f"at {offset}" for offset, _ in runs]
        formats = [f"V{size}" for _, size in runs]
        self._runs = np.dtype(
            {
                "names": names,
                "formats": formats,
                "offsets": [offset for offset, _ in runs],
                "itemsize": dtype.itemsize,
            }
        )
        self._key = np.dtype([*self._columns, *zip(names, formats, strict=True)])
        self._dtype = dtype


def joined(own: Sequence[bytes], shared: Sequence[Sequence[bytes]]) -> bytes:
    """One run of all messages; `own` has one piece more than each column of `shared`."""
    return b"".join([*chain.from_iterable(zip(own, *shared, strict=False)), own[-1]])


def split(block: bytes) -> list[bytes]:
    """The messages of a run."""
    messages = []
    start = 0
    while start < len(block):
        start += PREFIX_SIZE
        end = start + int.from_bytes(block[start - 4 : start])
        messages.append(block[start:end])
        start = end
    return messages


def sizes_of(fragments: Sequence[bytes]) -> Times:
    """How long each is."""
    return np.fromiter(map(len, fragments), np.int64, len(fragments))


def timestamps(moments: Times) -> Bytes:
    """STAMPs of nanoseconds since the Unix epoch, at least 0: shape (n, 12)."""
    seconds, nanos = np.divmod(np.maximum(moments, 0), NANOSECONDS)
    out = np.empty((len(moments), len(STAMP)), np.uint8)
    out[:, 0], out[:, 1 + TIME_DIGITS] = STAMP[0], STAMP[1 + TIME_DIGITS]
    out[:, 1 : 1 + TIME_DIGITS] = padded(seconds, TIME_DIGITS)
    out[:, 2 + TIME_DIGITS :] = padded(nanos, TIME_DIGITS)
    return out


def padded(values: npt.NDArray[np.integer], digits: int) -> Bytes:
    """Base-128 numbers of one width: shape (n, digits)."""
    out: Bytes = (values[:, None] >> (7 * np.arange(digits, dtype=values.dtype))).astype(np.uint8)
    out[:, :-1] |= 0x80
    out[:, -1] &= 0x7F
    return out


def big_endian(values: Times) -> Bytes:
    """Numbers below 2^32: shape (n, 4)."""
    return values.astype(">u4").view(np.uint8).reshape(len(values), 4)


def hex_digits(numbers: Times) -> Bytes:
    """The last twelve digits of UUIDs: shape (n, 12)."""
    octets = numbers.astype(">u8").view(np.uint8).reshape(len(numbers), 8)
    digits: Bytes = HEX[octets[:, 8 - HEX_BYTES :]].view(np.uint8)
    return digits
