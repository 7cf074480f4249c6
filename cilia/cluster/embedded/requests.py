"""What an HTTP request asks for: the grammar of Kubernetes paths and query strings. Pure.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-uris.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from .errors import ApiError

MAX_DEPTH: Final = 100
"""How deep JSON may nest; Kubernetes objects stay under thirty."""


class Target(msgspec.Struct, frozen=True):
    """The resource a path names. ``name`` is empty for a collection."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def parse_path(path: str) -> Target | None:
    """The target of ``/api/...`` or ``/apis/...``; None for paths that name no resource."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    if not all(rest) or len(rest) > 5:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    if len(rest) > 3:
        return None
    name, subresource = (*rest[1:], "", "")[:2]
    return Target(group, version, rest[0], namespace, name, subresource)


class Query:
    """Query parameters with their types; a malformed one raises a 400."""

    def __init__(self, raw: str) -> None:
        try:
            self._values = dict(parse_qsl(raw, keep_blank_values=True, max_num_fields=64))
        except ValueError as error:
            raise ApiError(400, f"the query string can't be read: {error}") from error

    def text(self, name: str) -> str:
        return self._values.get(name, "")

    def flag(self, name: str) -> bool:
        return self.text(name).lower() in ("true", "1")

    def number(self, name: str) -> int | None:
        """A non-negative integer, or None if absent or empty."""
        text = self.text(name)
        if not text:
            return None
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise ApiError(400, f"{name} must be a non-negative integer, not {text[:40]!r}")
        return int(text)

    @property
    def dry_run(self) -> bool:
        value = self.text("dryRun")
        if value not in ("", "All"):
            raise ApiError(400, f"dryRun must be All, not {value[:40]!r}")
        return value == "All"


def decode_object(body: bytes) -> dict[str, Any]:
    """A JSON object; raises a 400 that says what is wrong with it."""
    value = decode_json(body)
    if not isinstance(value, dict):
        raise ApiError(400, "the body of the request must be a JSON object")
    return value


def decode_json(body: bytes) -> Any:
    """Any JSON value within :data:`MAX_DEPTH`."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body of the request is not JSON: {error}") from error
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ApiError(400, f"the body of the request nests deeper than {MAX_DEPTH} levels")
    return value


def _depth(value: Any) -> int:
    depth = 0
    level = [value] if isinstance(value, dict | list) else []
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [child for item in level for child in _children(item) if isinstance(child, dict | list)]
    return depth


def _children(item: Any) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item


def representation(accept: str) -> str:
    """``""``, ``Table`` or ``PartialObjectMetadata``, from an Accept header; 406 if nothing fits."""
    if not accept:
        return ""
    for part in accept.split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        named = dict(piece.split("=", 1) for piece in parameters if "=" in piece)
        shape = named.get("as", "").removesuffix("List")
        if media not in ("application/json", "application/*", "*/*"):
            continue
        if not shape:
            return ""
        if shape in ("Table", "PartialObjectMetadata") and named.get("v", "v1") == "v1":
            return shape
    raise ApiError(406, "only application/json is served here; send Accept: application/json")
