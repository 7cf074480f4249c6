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
from itertools import pairwise
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
HEX_WORDS = np.stack([np.repeat(HEX, 256), np.tile(HEX, 256)], axis=1).view("=u4").ravel()
"""The four digits of a number of two bytes."""
HEX_PLACES = (32, 16, 0)
"""Bits of a row's number above which the digits stand that its UUID has."""
HEX_DIGITS = 4 * len(HEX_PLACES)

MORE = 0x80808080
"""In each byte of a word the bit that says that a base-128 number goes on."""


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
            "compressed": bytes(1),
            "message": bytes(PREFIX_SIZE - 1),
            "flow": FLOW_TAG,
            "length": bytes(LENGTH_DIGITS),
            "began": tag(1, LENGTH) + STAMP_SIZE,
            "time": STAMP,
            "uuid": uuid,
            "digits": bytes(HEX_DIGITS),
            "layer4": tag(6, LENGTH) + bytes(3),
            "source": tag(1, VARINT) + bytes(PORT_DIGITS),
            "destination": tag(2, VARINT) + bytes(PORT_DIGITS),
        }
        words = {"message": ">u4", **dict.fromkeys(("length", "layer4", "source", "destination"), "<u4")}
        self._layout = np.dtype([(name, words.get(name, f"V{len(part)}")) for name, part in parts.items()])
        self._template = np.frombuffer(b"".join(parts.values()), self._layout)
        ends = np.cumsum([0, *map(len, parts.values())]).tolist()
        self._places = {name: slice(*place) for name, place in zip(parts, pairwise(ends), strict=True)}
        self._closing = parts["before"]

    def pieces(self, rows: Rows, ports: Ports, others: Times, after: int) -> list[bytes]:
        """The part of each row, and the end of the last message: one more than there are rows.

        `others`: bytes of the flow that follow this part; `after`: bytes between flow and time. At least one
        row.
        """
        place = self._places
        begin = place["compressed"].start
        flow = place["length"].stop
        ported = ports.key != 0
        all_ported = bool(ported.all())
        size = self._layout.itemsize
        sizes = others + ((size if all_ported else np.where(ported, size, place["layer4"].start)) - flow)
        stamps = timestamps(rows.wall)
        out = np.repeat(self._template.view(f"V{size}"), len(sizes)).view(self._layout)
        out["ended"][1:] = stamps[:-1]
        out["message"] = sizes + (flow - PREFIX_SIZE + after)
        out["length"] = base128(sizes) | (MORE >> 8)
        out["time"] = stamps
        out["digits"] = hex_digits(rows.numbers).view(f"V{HEX_DIGITS}").ravel()
        self._write_ports(out, ports)
        pieces = void(out.view(np.uint8).reshape(len(out), size))
        if not all_ported:
            for index in np.flatnonzero(~ported).tolist():
                pieces[index] = pieces[index][: place["layer4"].start]
        return [pieces[0][begin:], *pieces[1:], self._closing + stamps[-1].tobytes()]

    def _write_ports(self, out: Events, ports: Ports) -> None:
        size = ports.rest + np.uint32(2 * (1 + PORT_DIGITS))
        template = self._template[0]
        # Key and length of the header, then those of the protocol in it: a byte each.
        out["layer4"] = (
            size * (1 << 24 | 1 << 8) + ports.key * np.uint32(1 << 16) + (template["layer4"] + 0x200)
        )
        out["source"] = PORT_WORDS[ports.source] + template["source"]
        out["destination"] = PORT_WORDS[ports.destination] + template["destination"]


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
    width = 1 + len(shared)
    pieces = [b""] * (len(own) * width - len(shared))
    pieces[::width] = own
    for place, column in enumerate(shared, 1):
        pieces[place::width] = column
    return b"".join(pieces)


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


def timestamps(moments: Times) -> npt.NDArray[np.void]:
    """STAMPs of nanoseconds since the Unix epoch, at least 0: shape (n,), 12 bytes each. At least one."""
    moments = np.maximum(moments, 0)
    second = int(moments[0]) // NANOSECONDS
    nanos = moments - second * NANOSECONDS
    out = np.empty(len(moments), [("head", "<u4"), ("tail", "<u8")])
    if nanos.min() >= 0 and nanos.max() < NANOSECONDS:
        _write_stamps(out, np.array([second]), nanos)
    else:
        _write_stamps(out, *np.divmod(moments, NANOSECONDS))
    return out.view(f"V{len(STAMP)}")


def _write_stamps(out: Events, seconds: Times, nanos: Times) -> None:
    """From the lowest byte on: the key of seconds, their five digits, the key of nanoseconds, theirs."""
    head = base128(seconds) | MORE
    out["head"] = head << 8 & 0xFFFFFFFF | STAMP[0]
    rest = (head >> 24) | STAMP[1 + TIME_DIGITS] << 16
    out["tail"] = (base128(nanos) | MORE) << 24 | rest


def base128(values: Times) -> Times:
    """The digits of numbers below 2^35, one in each byte from the lowest on."""
    words = values + (values >> 14) * 0xC000
    words = words + (words >> 7 & 0x3FFF007F) * 0x80
    digits: Times = words + (values >> 28 << 31)
    return digits


PORT_WORDS = ((base128(np.arange(1 << 16)) | 0x8080) << 8).astype(np.uint32)
"""Three digits of a port, and room for a key below them."""


def hex_digits(numbers: Times) -> Bytes:
    """The last twelve digits of UUIDs: shape (n, 12)."""
    words = np.empty((len(numbers), len(HEX_PLACES)), np.uint32)
    for column, place in enumerate(HEX_PLACES):
        words[:, column] = HEX_WORDS[numbers >> place & 0xFFFF]
    return words.view(np.uint8)
