"""The fields of a flow that a client wants: cut out of fragments, once per distinct fragment.

A fragment is itself a serialised flow with a few fields, so what is left of it under the mask are some of its
bytes, and no message is made; most fragments are wanted whole or not at all. (The protobuf library would take
a millisecond for a mask of a hundred paths.)
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from google.protobuf import field_mask_pb2
from google.protobuf.descriptor import Descriptor

from cilia.hubble.encode import LENGTH, VARINT, block
from cilia.hubble.filter_values import FilterError
from cilia.proto.flow import flow_pb2

FIXED64 = 1
"""A wire type, beside those of `encode` and FIXED32."""


class Wish:
    """What is wanted of a message."""

    def __init__(self) -> None:
        self.fields: dict[int, Wish | None] = {}
        """By the numbers of fields, what of them; None: all."""
        self.stays = False
        """Whether the message is to be there though nothing of it is: a field of it is wanted, which
        has its default."""

    def add(self, message: Descriptor | None, path: list[str]) -> None:
        """Want a field of a message as well, by the names that lead to it."""
        assert message is not None
        first, *rest = path
        field = message.fields_by_name[first]
        if not rest:
            self.fields[field.number] = None
            self.stays |= not field.has_presence
            return
        inner = self.fields.setdefault(field.number, Wish())
        if inner is not None:
            inner.add(field.message_type, rest)


class Wanted(enum.Enum):
    """How much of a fragment is wanted."""

    WHOLE = enum.auto()
    PARTLY = enum.auto()
    NOTHING = enum.auto()


class FlowMask:
    """Paths of fields, such as `source.labels`."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Raises FilterError for a path that is none."""
        self._wish = Wish()
        distinct = set(paths)
        for path in sorted(distinct):
            if not is_field(path):
                raise FilterError(f"the field mask names {path!r}, which no flow has")
            self._wish.add(flow_pb2.Flow.DESCRIPTOR, path.split("."))
        self._whole = {path for path in distinct if "." not in path}
        self._touched = {path.partition(".")[0] for path in distinct}

    def wants(self, fields: frozenset[str]) -> Wanted:
        """How much of a fragment that may have these fields of a flow."""
        if fields <= self._whole:
            return Wanted.WHOLE
        return Wanted.PARTLY if fields & self._touched else Wanted.NOTHING

    def cut(self, fragment: bytes) -> bytes:
        """What is left of a serialised flow."""
        return kept(fragment, self._wish)


def is_field(path: str) -> bool:
    """Whether flows have what a path such as `source.labels` names."""
    return field_mask_pb2.FieldMask(paths=[path]).IsValidForDescriptor(flow_pb2.Flow.DESCRIPTOR)


def kept(message: bytes, wish: Wish) -> bytes:
    """What is wanted of a serialised message."""
    parts = []
    at = 0
    while at < len(message):
        start = at
        key, at = varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            _, end = varint(message, at)
        elif wire == LENGTH:
            size, at = varint(message, at)
            end = at + size
        else:
            end = at + (8 if wire == FIXED64 else 4)
        if number in wish.fields:
            inner = wish.fields[number]
            if inner is None:
                parts.append(message[start:end])
            elif (content := kept(message[at:end], inner)) or inner.stays:
                parts.append(block(number, content))
        at = end
    return b"".join(parts)


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The base-128 number at a place, and where it ends."""
    value = shift = 0
    while True:
        digit = data[at]
        at += 1
        value |= (digit & 0x7F) << shift
        if digit < 0x80:
            return value, at
        shift += 7
