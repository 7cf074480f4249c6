"""The fields of a flow that a client wants: cut out of fragments, once per distinct fragment.

A fragment is itself a serialised flow with a few fields, so what is left of it under the mask is made by the
protobuf library and remembered; most fragments are wanted whole or not at all.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from google.protobuf import field_mask_pb2

from cilia.hubble.filter_values import FilterError
from cilia.proto.flow import flow_pb2


class Wanted(enum.Enum):
    """How much of a fragment is wanted."""

    WHOLE = enum.auto()
    PARTLY = enum.auto()
    NOTHING = enum.auto()


class FlowMask:
    """Paths of fields, such as `source.labels`."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Raises FilterError for a path that is none."""
        self._mask = field_mask_pb2.FieldMask(paths=sorted(set(paths)))
        for path in self._mask.paths:
            if not is_field(path):
                raise FilterError(f"the field mask names {path!r}, which no flow has")
        self._whole = {path for path in self._mask.paths if "." not in path}
        self._touched = {path.partition(".")[0] for path in self._mask.paths}

    def wants(self, fields: frozenset[str]) -> Wanted:
        """How much of a fragment that may have these fields of a flow."""
        if fields <= self._whole:
            return Wanted.WHOLE
        return Wanted.PARTLY if fields & self._touched else Wanted.NOTHING

    def cut(self, fragment: bytes) -> bytes:
        """What is left of a serialised flow."""
        whole, left = flow_pb2.Flow.FromString(fragment), flow_pb2.Flow()
        self._mask.MergeMessage(whole, left)
        return left.SerializeToString()


def is_field(path: str) -> bool:
    """Whether flows have what a path such as `source.labels` names."""
    return field_mask_pb2.FieldMask(paths=[path]).IsValidForDescriptor(flow_pb2.Flow.DESCRIPTOR)
