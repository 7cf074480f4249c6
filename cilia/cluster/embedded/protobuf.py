"""Kubernetes' protobuf bodies, read into the JSON form. Pure.

``kubectl create`` and ``kubectl auth`` send protobuf for the kinds they know by type, whatever the server
prefers (custom resources and everything from files come as JSON). Only what those commands send is here;
answers are always JSON, which they accept. Sources: the envelope,
https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding, and the field numbers in the
``generated.proto`` files of https://github.com/kubernetes/api.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from .errors import ApiError

CONTENT_TYPE: Final = "application/vnd.kubernetes.protobuf"
_MAGIC: Final = b"k8s\x00"
_MAX_DEPTH: Final = 20

# A message is {number: (name, type)}; a type is a word, a message, [type] if repeated, or ("map", word).
Message = dict[int, tuple[str, Any]]

_TIME: Final[Message] = {1: ("seconds", "int"), 2: ("nanos", "int")}
_INT_OR_STRING: Final[Message] = {1: ("type", "int"), 2: ("intVal", "int"), 3: ("strVal", "str")}
_OWNER: Final[Message] = {
    1: ("kind", "str"),
    3: ("name", "str"),
    4: ("uid", "str"),
    5: ("apiVersion", "str"),
    6: ("controller", "bool"),
    7: ("blockOwnerDeletion", "bool"),
}
_META: Final[Message] = {
    1: ("name", "str"),
    2: ("generateName", "str"),
    3: ("namespace", "str"),
    5: ("uid", "str"),
    6: ("resourceVersion", "str"),
    8: ("creationTimestamp", "time"),
    9: ("deletionTimestamp", "time"),
    11: ("labels", ("map", "str")),
    12: ("annotations", ("map", "str")),
    13: ("ownerReferences", [_OWNER]),
    14: ("finalizers", ["str"]),
}
_NAME: Final[Message] = {1: ("name", "str")}
_PORT: Final[Message] = {
    1: ("name", "str"),
    2: ("protocol", "str"),
    3: ("port", "int"),
    4: ("targetPort", "int-or-string"),
    5: ("nodePort", "int"),
    6: ("appProtocol", "str"),
}
_SERVICE_SPEC: Final[Message] = {
    1: ("ports", [_PORT]),
    2: ("selector", ("map", "str")),
    3: ("clusterIP", "str"),
    4: ("type", "str"),
    5: ("externalIPs", ["str"]),
    7: ("sessionAffinity", "str"),
    8: ("loadBalancerIP", "str"),
    9: ("loadBalancerSourceRanges", ["str"]),
    10: ("externalName", "str"),
    11: ("externalTrafficPolicy", "str"),
    17: ("ipFamilyPolicy", "str"),
    18: ("clusterIPs", ["str"]),
    19: ("ipFamilies", ["str"]),
    21: ("loadBalancerClass", "str"),
    22: ("internalTrafficPolicy", "str"),
}
_ATTRIBUTES: Final[Message] = {
    1: ("namespace", "str"),
    2: ("verb", "str"),
    3: ("group", "str"),
    4: ("version", "str"),
    5: ("resource", "str"),
    6: ("subresource", "str"),
    7: ("name", "str"),
}
_ACCESS: Final[Message] = {
    1: ("resourceAttributes", _ATTRIBUTES),
    2: ("nonResourceAttributes", {1: ("path", "str"), 2: ("verb", "str")}),
}
_REFERENCE: Final[Message] = {1: ("kind", "str"), 2: ("namespace", "str"), 3: ("name", "str")}

_MESSAGES: Final[dict[str, Message]] = {
    "Namespace": {1: ("metadata", _META), 2: ("spec", {1: ("finalizers", ["str"])})},
    "ConfigMap": {
        1: ("metadata", _META),
        2: ("data", ("map", "str")),
        3: ("binaryData", ("map", "bytes")),
        4: ("immutable", "bool"),
    },
    "Secret": {
        1: ("metadata", _META),
        2: ("data", ("map", "bytes")),
        3: ("type", "str"),
        4: ("stringData", ("map", "str")),
        5: ("immutable", "bool"),
    },
    "ServiceAccount": {
        1: ("metadata", _META),
        2: ("secrets", [_REFERENCE]),
        3: ("imagePullSecrets", [_NAME]),
        4: ("automountServiceAccountToken", "bool"),
    },
    "Service": {1: ("metadata", _META), 2: ("spec", _SERVICE_SPEC)},
    "Binding": {1: ("metadata", _META), 2: ("target", _REFERENCE)},
    "SelfSubjectAccessReview": {1: ("metadata", _META), 2: ("spec", _ACCESS)},
    "SelfSubjectRulesReview": {1: ("metadata", _META), 2: ("spec", {1: ("namespace", "str")})},
    "SelfSubjectReview": {1: ("metadata", _META)},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", "int"),
        2: ("preconditions", {1: ("uid", "str"), 2: ("resourceVersion", "str")}),
        3: ("orphanDependents", "bool"),
        4: ("propagationPolicy", "str"),
        5: ("dryRun", ["str"]),
    },
}
# Fields in which zero means something; elsewhere zero and "" are what Go sends for "not set".
_ZERO_COUNTS: Final = frozenset({"gracePeriodSeconds", "controller", "blockOwnerDeletion", "immutable"})


def decode_body(body: bytes) -> dict[str, Any]:
    """The object in a protobuf request; raises 400 for garbage and 415 for kinds that must come as JSON."""
    if not body.startswith(_MAGIC):
        raise ApiError(
            400, "the body of the request is not Kubernetes protobuf: it does not begin with k8s\\0"
        )
    envelope = dict(_fields(body[len(_MAGIC) :]))
    typed = {number: _text(value) for number, value in _fields(_bytes(envelope.get(1, b"")))}
    api_version, kind = typed.get(1, ""), typed.get(2, "")
    message = _MESSAGES.get(kind)
    if message is None:
        raise ApiError(415, f"{kind[:60] or 'this kind'} is read as application/json only on this server")
    return {"apiVersion": api_version, "kind": kind, **_message(message, _bytes(envelope.get(2, b"")), 0)}


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field: int for varints, bytes for what has a length."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
                yield tag >> 3, value
            case 2:
                size, at = _varint(data, at)
                if size > len(data) - at:
                    raise _garbage()
                yield tag >> 3, data[at : at + size]
                at += size
            case 1 | 5 as fixed:
                at += 8 if fixed == 1 else 4
            case _:
                raise _garbage()


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if not byte & 0x80:
            return value & (1 << 64) - 1, at
    raise _garbage()


def _garbage() -> ApiError:
    return ApiError(400, "the body of the request is not well-formed protobuf")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _garbage()
    return value


def _text(value: int | bytes) -> str:
    try:
        return _bytes(value).decode()
    except UnicodeDecodeError as error:
        raise _garbage() from error


def _message(message: Message, data: bytes, depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise _garbage()
    found: dict[str, Any] = {}
    for number, raw in _fields(data):
        if number not in message:
            continue
        name, kind = message[number]
        if isinstance(kind, list):
            found.setdefault(name, []).append(_value(kind[0], raw, depth))
        elif isinstance(kind, tuple):
            key, value = _entry(kind[1], _bytes(raw))
            found.setdefault(name, {})[key] = value
        else:
            found[name] = _value(kind, raw, depth)
    return {
        name: value
        for name, value in found.items()
        if value not in (None, "", 0) or isinstance(value, dict | list) or name in _ZERO_COUNTS
    }


def _entry(kind: str, data: bytes) -> tuple[str, str]:
    pair = dict(_fields(data))
    value = pair.get(2, b"")
    return _text(pair.get(1, b"")), _value(kind, value, 0)


def _value(kind: Any, raw: int | bytes, depth: int) -> Any:
    if isinstance(kind, dict):
        return _message(kind, _bytes(raw), depth + 1)
    match kind:
        case "str":
            return _text(raw)
        case "bytes":
            return base64.b64encode(_bytes(raw)).decode()
        case "time":
            return _time(_bytes(raw))
        case "int-or-string":
            choice = _message(_INT_OR_STRING, _bytes(raw), depth + 1)
            return choice.get("strVal") if choice.get("type") else choice.get("intVal")
    if not isinstance(raw, int):
        raise _garbage()
    if kind == "bool":
        return bool(raw)
    return raw - (1 << 64) if raw >= 1 << 63 else raw


def _time(data: bytes) -> str | None:
    seconds = _message(_TIME, data, 0).get("seconds")
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else None
    except (ValueError, OverflowError, OSError) as error:
        raise _garbage() from error
