"""Protobuf wire format, written by hand: what the fast path needs and no more.

Source: the encoding page of the Protocol Buffers documentation. Default values are left out, as proto3 does;
tests hold the result to the protobuf library's reading.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from cilia.hubble.columns import Times

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


remembered_varint = functools.lru_cache(1 << 16)(varint)
"""For numbers that come again and again: ports, lengths of messages."""


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
    """A google.protobuf.Timestamp of nanoseconds since the Unix epoch."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return number(1, seconds) + number(2, rest)


def timestamps(moments: Times) -> list[bytes]:
    """`timestamp` of many moments, each with its length in front; the digits are made in one vector step."""
    seconds, rest = np.divmod(moments, NANOSECONDS)
    digits = rest[:, None] >> SHIFTS
    longer = digits[:, 1:] != 0
    encoded = (digits & 0x7F).astype(np.uint8)
    encoded[:, :-1] |= longer.astype(np.uint8) << 7
    raw, lengths = encoded.tobytes(), (longer.sum(axis=1) + 1).tolist()
    heads = {second: number(1, second) + tag(2, VARINT) for second in set(seconds.tolist())}
    out = []
    for start, second, length in zip(range(0, len(raw), 5), seconds.tolist(), lengths, strict=True):
        head = heads[second]
        out.append(b"%c%b%b" % (len(head) + length, head, raw[start : start + length]))
    return out
