"""Protobuf wire format, written by hand: what the fast path needs and no more.

Source: the encoding page of the Protocol Buffers documentation. Default values are left out, as proto3 does;
tests hold the result to the protobuf library's reading.
"""

from __future__ import annotations

from collections.abc import Iterable

VARINT = 0
LENGTH = 2

NANOSECONDS = 1_000_000_000


def varint(value: int) -> bytes:
    """A base-128 number; `value` is not negative."""
    if value < 0x80:
        return bytes((value,))
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
    """A google.protobuf.Timestamp of nanoseconds since the Unix epoch."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return number(1, seconds) + number(2, rest)
