"""How much a request may ask: what no client needs is refused before anything is computed.

A server's own bounds (bytes, calls, connections) are in `rpc.limits`; these are about what a request means.
What an expression may ask is in `cel_limits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cilia.hubble.cel_limits import MAX_LENGTH
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.hubble.turns import unhurried
from cilia.proto.observer import observer_pb2

MAX_FILTERS = 1000
"""In each of the two lists: each is evaluated over all flows."""
MAX_VALUES = 1000
"""In one field of a filter."""
MAX_ALL_VALUES = 2000
"""In all filters of a request."""
MAX_FILTER_BYTES = 128 << 10
"""Of all filters of a request."""
MAX_BYTES = 256 << 10
"""Of a request for flows as it comes: what is larger would take long to read, only to be refused."""
MAX_TEXT = 1024
"""Characters of a name, a pattern, a regular expression or a label selector."""
MAX_EXPRESSIONS = 16
"""In all filters of a request."""
MAX_PATHS = 500
"""In a field mask; a flow has about 300 fields."""
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799
"""Of google.protobuf.Timestamp: the years 1 to 9999."""


class Bounded(Protocol):
    """What the requests of all event streams have."""

    @property
    def since(self) -> Timestamp: ...
    @property
    def until(self) -> Timestamp: ...


def check_size(data: bytes) -> None:
    """Raise RpcError for a serialised request that is larger than any that is answered."""
    if len(data) > MAX_BYTES:
        raise _too_many("bytes of a request for flows", len(data), MAX_BYTES)


def check(request: observer_pb2.GetFlowsRequest) -> None:
    """Raise RpcError for a request that asks too much, or for a time that is none."""
    check_times(request)
    if len(request.field_mask.paths) > MAX_PATHS:
        raise _too_many("paths in the field mask", len(request.field_mask.paths), MAX_PATHS)
    for name, count in (("allow", len(request.whitelist)), ("deny", len(request.blacklist))):
        if count > MAX_FILTERS:
            raise _too_many(f"{name} filters", count, MAX_FILTERS)
    filters = [*request.whitelist, *request.blacklist]
    expressions = sum(len(one.experimental.cel_expression) for one in filters)
    if expressions > MAX_EXPRESSIONS:
        raise _too_many("CEL expressions", expressions, MAX_EXPRESSIONS)
    size = sum(one.ByteSize() for one in filters)
    if size > MAX_FILTER_BYTES:
        raise _too_many("bytes of filters", size, MAX_FILTER_BYTES)
    values = sum(_values(one) for one in unhurried(filters))
    if values > MAX_ALL_VALUES:
        raise _too_many("values in all filters", values, MAX_ALL_VALUES)


def check_times(request: Bounded) -> None:
    """Raise RpcError for times outside of what a Timestamp may be."""
    for name, moment in (("since", request.since), ("until", request.until)):
        if not FIRST_SECOND <= moment.seconds <= LAST_SECOND or not 0 <= moment.nanos < 10**9:
            raise RpcError(Code.INVALID_ARGUMENT, f"`{name}` is no time between the years 1 and 9999")


def _values(message: Message) -> int:
    """How many values a filter has. Raises RpcError where a field has too many, or too long ones."""
    count = 0
    for field, value in message.ListFields():
        items: Sequence[object] = value if field.is_repeated else [value]
        if len(items) > MAX_VALUES:
            raise _too_many(f"values of {field.name} in one filter", len(items), MAX_VALUES)
        count += len(items)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            count += sum(_values(item) for item in items if isinstance(item, Message))
        elif field.type == FieldDescriptor.TYPE_STRING:
            _lengths(field.name, items, MAX_LENGTH if field.name == "cel_expression" else MAX_TEXT)
    return count


def _lengths(name: str, texts: Iterable[object], limit: int) -> None:
    longest = max(len(str(text)) for text in texts)
    if longest > limit:
        raise RpcError(
            Code.INVALID_ARGUMENT,
            f"a value of {name} has {longest} characters, more than {limit}: write it shorter",
        )


def _too_many(what: str, count: int, limit: int) -> RpcError:
    return RpcError(
        Code.RESOURCE_EXHAUSTED, f"{count} {what} are more than {limit}: ask for less, or ask several times"
    )
