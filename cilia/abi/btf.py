"""Reads the BPF Type Format: the types a compiled object carries about itself.

Wire format: kernel Documentation/bpf/btf.rst. Only what layouts need is kept; functions and tags are
walked over. Pure: bytes in, types out.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = 0xEB9F
HEADER = struct.Struct("<HBBIIIII")
TYPE = struct.Struct("<III")
MEMBER = struct.Struct("<III")
ENUMERATOR = struct.Struct("<Ii")
ENUMERATOR64 = struct.Struct("<III")
ARRAY = struct.Struct("<III")
WORD = struct.Struct("<I")
PAIR = struct.Struct("<II")


class BtfError(ValueError):
    """The bytes are not BTF, or a kind of it this reader does not know."""


class Kind(enum.IntEnum):
    """Kinds of types, numbered as in the wire format."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


TRANSPARENT = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
"""Kinds that only qualify the type behind them."""

TRAILER_PER_TYPE = {Kind.INT: 4, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
TRAILER_PER_ITEM = {
    Kind.STRUCT: 12,
    Kind.UNION: 12,
    Kind.ENUM: 8,
    Kind.FUNC_PROTO: 8,
    Kind.DATASEC: 12,
    Kind.ENUM64: 12,
}


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct (`offset` in bytes) or a variable of a section."""

    name: str
    type: int
    offset: int
    bitfield: bool = False


@dataclass(frozen=True, slots=True)
class Type:
    """One type. What a field means depends on the kind."""

    kind: Kind
    name: str
    size: int = 0
    """Bytes of INT, STRUCT, UNION, ENUM and DATASEC."""
    target: int = 0
    """The type behind a PTR, TYPEDEF, qualifier, ARRAY or VAR."""
    signed: bool = False
    length: int = 0
    """Elements of an ARRAY."""
    members: tuple[Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()


class Btf:
    """All types of an object, by number; number 0 is void."""

    def __init__(self, types: list[Type]) -> None:
        self.types = types

    def resolve(self, number: int) -> Type:
        """The type behind typedefs and qualifiers."""
        found = self.types[number]
        while found.kind in TRANSPARENT:
            found = self.types[found.target]
        return found

    def typedef_name(self, number: int) -> str:
        """The innermost name on the way to the type that begins with `__be`, else an empty string."""
        found = self.types[number]
        while found.kind in TRANSPARENT:
            if found.kind is Kind.TYPEDEF and found.name.startswith("__be"):
                return found.name
            found = self.types[found.target]
        return ""

    def of_kind(self, *kinds: Kind) -> Iterator[Type]:
        """All types of the given kinds, in order."""
        return (found for found in self.types if found.kind in kinds)


def parse(data: bytes) -> Btf:
    """All types in a `.BTF` section. Raises BtfError."""
    try:
        magic, _version, _flags, length, type_at, type_size, text_at, text_size = HEADER.unpack_from(data)
    except struct.error as error:
        raise BtfError("the BTF header is cut off") from error
    if magic != MAGIC:
        raise BtfError(f"not BTF: it begins with {magic:#06x}")
    text = data[length + text_at : length + text_at + text_size]
    body = data[length + type_at : length + type_at + type_size]
    types = [Type(Kind.VOID, "void")]
    at = 0
    try:
        while at < len(body):
            found, at = _type(body, at, text)
            types.append(found)
    except (struct.error, ValueError) as error:
        raise BtfError(f"type {len(types)} can't be read: {error}") from error
    return Btf(types)


def _name(text: bytes, offset: int) -> str:
    return text[offset : text.index(b"\0", offset)].decode()


def _type(body: bytes, at: int, text: bytes) -> tuple[Type, int]:
    """The type at `at` and where the next one begins."""
    name_at, info, size_or_type = TYPE.unpack_from(body, at)
    kind, count, bit = Kind(info >> 24 & 0x1F), info & 0xFFFF, bool(info >> 31)
    name = _name(text, name_at)
    rest = at + TYPE.size
    end = rest + TRAILER_PER_TYPE.get(kind, 0) + TRAILER_PER_ITEM.get(kind, 0) * count
    if end > len(body):
        raise ValueError("cut off")
    match kind:
        case Kind.INT:
            (encoding,) = WORD.unpack_from(body, rest)
            found = Type(kind, name, size=size_or_type, signed=bool(encoding >> 24 & 1))
        case Kind.ARRAY:
            target, _index, length = ARRAY.unpack_from(body, rest)
            found = Type(kind, name, target=target, length=length)
        case Kind.STRUCT | Kind.UNION:
            found = Type(kind, name, size=size_or_type, members=_members(body, rest, count, text, bit))
        case Kind.ENUM:
            found = Type(kind, name, size=size_or_type, values=_enumerators(body, rest, count, text, bit))
        case Kind.ENUM64:
            found = Type(kind, name, size=size_or_type, values=_enumerators64(body, rest, count, text, bit))
        case Kind.DATASEC:
            variables = tuple(Member("", *PAIR.unpack_from(body, rest + 12 * i)) for i in range(count))
            found = Type(kind, name, size=size_or_type, members=variables)
        case Kind.FLOAT | Kind.VOID:
            found = Type(kind, name, size=size_or_type)
        case _:
            found = Type(kind, name, target=size_or_type)
    return found, end


def _members(body: bytes, at: int, count: int, text: bytes, bitfields: bool) -> tuple[Member, ...]:
    members = []
    for i in range(count):
        name, target, offset = MEMBER.unpack_from(body, at + MEMBER.size * i)
        width = offset >> 24 if bitfields else 0
        bits = offset & 0xFFFFFF if bitfields else offset
        members.append(Member(_name(text, name), target, bits // 8, bitfield=bool(width or bits % 8)))
    return tuple(members)


def _enumerators(body: bytes, at: int, count: int, text: bytes, signed: bool) -> tuple[tuple[str, int], ...]:
    values = []
    for i in range(count):
        name, value = ENUMERATOR.unpack_from(body, at + ENUMERATOR.size * i)
        values.append((_name(text, name), value if signed else value & 0xFFFFFFFF))
    return tuple(values)


def _enumerators64(
    body: bytes, at: int, count: int, text: bytes, signed: bool
) -> tuple[tuple[str, int], ...]:
    values = []
    for i in range(count):
        name, low, high = ENUMERATOR64.unpack_from(body, at + ENUMERATOR64.size * i)
        value = high << 32 | low
        values.append((_name(text, name), value - (1 << 64) if signed and high >> 31 else value))
    return tuple(values)
