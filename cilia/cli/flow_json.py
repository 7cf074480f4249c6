"""Flows as lines of JSON and back: what google.protobuf.json_format does, done once for each distinct part.

Most flows share all but time, UUID and ports with others. The library takes some 0.3 ms for a flow each way;
here a part (an end, the rules, ...) that was seen before costs a look into a dictionary. Everything that is
not common (gaps, states of nodes, what can't be read) is left to the library.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2

Response = observer_pb2.GetFlowsResponse
REMEMBERED = 20_000
"""Parts; more are forgotten all at once."""
TIMESTAMP = "google.protobuf.Timestamp"


def to_json(message: Message) -> str:
    """One line of JSON as Hubble writes it, by the library."""
    return dumped(json_format.MessageToDict(message, preserving_proto_field_name=True))


def dumped(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Writer:
    """Responses to lines of JSON."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, object], str] = {}

    def __call__(self, response: Response) -> str:
        if not response.HasField("flow"):
            return to_json(response)
        parts = [f'"{field.name}":{self._text(field, value)}' for field, value in response.flow.ListFields()]
        text = f'{{"flow":{{{",".join(parts)}}}'
        if response.node_name:
            text += f',"node_name":{dumped(response.node_name)}'
        if response.HasField("time"):
            text += f',"time":"{response.time.ToJsonString()}"'
        return text + "}"

    def _text(self, field: FieldDescriptor, value: Any) -> str:
        if field.is_repeated:
            key: object = tuple(
                each.SerializeToString() if isinstance(each, Message) else each for each in value
            )
        elif isinstance(value, str):
            return dumped(value)
        elif not isinstance(value, Message):
            key = value
        elif value.DESCRIPTOR.full_name == TIMESTAMP:
            return f'"{value.ToJsonString()}"'  # type: ignore[attr-defined]
        else:
            key = value.SerializeToString()
        found = self._known.get((field.number, key))
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._known[field.number, key] = self._by_library(field, value)
        return found

    def _by_library(self, field: FieldDescriptor, value: Any) -> str:
        alone = flow_pb2.Flow()
        if field.is_repeated:
            getattr(alone, field.name).extend(value)
        elif isinstance(value, Message):
            getattr(alone, field.name).SetInParent()
            getattr(alone, field.name).CopyFrom(value)
        else:
            setattr(alone, field.name, value)
        told = json_format.MessageToDict(alone, preserving_proto_field_name=True)
        return dumped(told[field.name])


class Reader:
    """Lines of JSON to responses."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], bytes] = {}
        self._decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

    def __call__(self, line: str) -> Response:
        """A GetFlowsResponse, or a flow alone. Raises json_format.ParseError."""
        try:
            return self._quick(line)
        except (msgspec.DecodeError, msgspec.ValidationError, json_format.ParseError, DecodeError, KeyError):
            return by_library(line)

    def _quick(self, line: str) -> Response:
        """Raises KeyError for what is no response with a flow."""
        told = self._decoder.decode(line)
        flow = self._decoder.decode(told.pop("flow"))
        response = Response()
        parts = [self._part(name, bytes(raw)) for name, raw in flow.items()]
        response.flow.MergeFromString(b"".join(parts))
        response.flow.SetInParent()
        rest = {name: msgspec.json.decode(raw) for name, raw in told.items()}
        return json_format.ParseDict(rest, response, ignore_unknown_fields=True)

    def _part(self, name: str, raw: bytes) -> bytes:
        """One field of a flow, serialised."""
        found = self._known.get((name, raw))
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            value = msgspec.json.decode(raw)
            alone = json_format.ParseDict({name: value}, flow_pb2.Flow(), ignore_unknown_fields=True)
            found = self._known[name, raw] = alone.SerializeToString()
        return found


def by_library(line: str) -> Response:
    """The same, slowly. Raises json_format.ParseError."""
    response = json_format.Parse(line, Response(), ignore_unknown_fields=True)
    if not response.WhichOneof("response_types"):
        json_format.Parse(line, response.flow, ignore_unknown_fields=True)
        if not response.flow.ListFields():
            raise json_format.ParseError("it has nothing of a flow")
        response.time.CopyFrom(response.flow.time)
        response.node_name = response.flow.node_name
    return response
