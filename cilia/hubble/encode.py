"""Protobuf wire format, written by hand: what the fast path needs and no more.

Source: the encoding page of the Protocol Buffers documentation. Default values are left out, as proto3 does;
tests hold the result to the protobuf library's reading.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cilia.hubble.columns import Bytes, Times

VARINT = 0
LENGTH = 2

NANOSECONDS = 1_000_000_000

SMALL = [bytes((value,)) for value in range(0x80)]
SHIFTS = np.arange(0, 35, 7)
"""Of the base-128 digits of a number below 2^35."""


def varint(value: int) -> bytes:
    """A base-128 number; `value` is not negative."""
    if value < 0x80:
        return SMALL[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x200000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(field: int, wire: int) -> bytes:
    """The key in front of a field's value."""
    return varint(field << 3 | wire)


def number(field: int, value: int) -> bytes:
    """An unsigned, enum or bool field; nothing for 0."""
    return tag(field, VARINT) + varint(value) if value else b""


def block(field: int, content: bytes) -> bytes:
    """A length-delimited field, also when empty: a present message."""
    return tag(field, LENGTH) + varint(len(content)) + content


def text(field: int, value: str) -> bytes:
    """A string field; nothing for the empty string."""
    return block(field, value.encode()) if value else b""


def texts(field: int, values: Iterable[str]) -> bytes:
    """A repeated string field."""
    return b"".join(block(field, value.encode()) for value in values)


def timestamp(nanoseconds: int) -> bytes:
    """A google.protobuf.Timestamp of nanoseconds since the Unix epoch, at least 0."""
    seconds, rest = divmod(max(nanoseconds, 0), NANOSECONDS)
    return number(1, seconds) + number(2, rest)


def timestamps(moments: Times) -> list[bytes]:
    """`timestamp` of many moments, each with its length in front, made in one vector step."""
    seconds, rest = np.divmod(moments, NANOSECONDS)
    if not ((seconds >= 1 << 28) & (seconds < 1 << 35)).all():
        return [varint(len(each)) + each for each in map(timestamp, moments.tolist())]
    digits, sizes = base128(rest)
    out = np.empty((len(moments), 13), np.uint8)
    out[:, 1], out[:, 7] = tag(1, VARINT)[0], tag(2, VARINT)[0]
    out[:, 2:7], out[:, 8:] = base128(seconds)[0], digits
    sizes = np.where(rest == 0, 7, 8 + sizes)
    out[:, 0] = sizes - 1
    raw = out.tobytes()
    return [
        raw[start : start + size] for start, size in zip(range(0, len(raw), 13), sizes.tolist(), strict=True)
    ]


def base128(values: Times) -> tuple[Bytes, Times]:
    """The five bytes of numbers below 2^35, and how many of them count."""
    digits = values[:, None] >> SHIFTS
    longer = digits[:, 1:] != 0
    encoded = (digits & 0x7F).astype(np.uint8)
    encoded[:, :-1] |= longer.astype(np.uint8) << 7
    return encoded, longer.sum(axis=1) + 1
