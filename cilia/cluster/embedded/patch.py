"""JSON patch (RFC 6902) and JSON merge patch (RFC 7386) over decoded JSON. Pure: inputs are never changed.

A patch that can't be applied raises :class:`~.errors.ApiError` 422 (or 400 if it isn't a patch at all).
"""

from __future__ import annotations

import copy
from typing import Any, Final

from .errors import ApiError

MAX_OPERATIONS: Final = 10_000


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386 section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902: apply all operations, or none."""
    if not isinstance(operations, list):
        raise ApiError(400, "a JSON patch must be a list of operations")
    if len(operations) > MAX_OPERATIONS:
        raise ApiError(413, f"a JSON patch may have at most {MAX_OPERATIONS} operations")
    result = copy.deepcopy(target)
    for operation in operations:
        result = _apply(result, operation)
    return result


def _apply(document: Any, operation: Any) -> Any:
    if not isinstance(operation, dict) or not isinstance(operation.get("op"), str):
        raise ApiError(400, 'each operation of a JSON patch needs a string "op"')
    path = _pointer(operation, "path")
    match operation["op"]:
        case "add":
            return _add(document, path, copy.deepcopy(_value(operation)))
        case "remove":
            return _remove(document, path)
        case "replace":
            _get(document, path)
            return _replace(document, path, copy.deepcopy(_value(operation)))
        case "move":
            return _move(document, _pointer(operation, "from"), path)
        case "copy":
            return _add(document, path, copy.deepcopy(_get(document, _pointer(operation, "from"))))
        case "test":
            if not same(_get(document, path), _value(operation)):
                raise _refused(f"testing value {operation['path']} failed")
            return document
    raise ApiError(400, f"unknown JSON patch operation {operation['op'][:40]!r}")


def same(left: Any, right: Any) -> bool:
    """JSON equality: true is not 1, however deep."""
    if left != right:
        return False
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _value(operation: dict[str, Any]) -> Any:
    if "value" not in operation:
        raise ApiError(400, f'JSON patch operation "{operation["op"]}" needs a value')
    return operation["value"]


def _pointer(operation: dict[str, Any], field: str) -> list[str]:
    text = operation.get(field)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise ApiError(
            400, f'"{field}" of a JSON patch operation must be a JSON pointer such as /metadata/labels'
        )
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _get(document: Any, path: list[str]) -> Any:
    for part in path:
        if isinstance(document, dict) and part in document:
            document = document[part]
        elif isinstance(document, list):
            document = document[_index(document, part, len(document) - 1, path)]
        else:
            raise _missing(path)
    return document


def _index(items: list[Any], part: str, last: int, path: list[str]) -> int:
    plain = part.isascii() and part.isdigit() and len(part) < 10 and (part == "0" or part[0] != "0")
    if not plain or int(part) > last:
        raise _missing(path)
    return int(part)


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _get(document, path[:-1])
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif isinstance(parent, list):
        at = len(parent) if path[-1] == "-" else _index(parent, path[-1], len(parent), path)
        parent.insert(at, value)
    else:
        raise _missing(path)
    return document


def _remove(document: Any, path: list[str]) -> Any:
    _get(document, path)
    if not path:
        return None
    parent = _get(document, path[:-1])
    del parent[path[-1] if isinstance(parent, dict) else int(path[-1])]
    return document


def _replace(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _get(document, path[:-1])
    parent[path[-1] if isinstance(parent, dict) else int(path[-1])] = value
    return document


def _move(document: Any, source: list[str], path: list[str]) -> Any:
    if path[: len(source)] == source and len(path) > len(source):
        raise _refused("a value can't be moved into itself")
    value = _get(document, source)
    return _add(_remove(document, source), path, value)


def _missing(path: list[str]) -> ApiError:
    return _refused(f"the path /{'/'.join(path)[:200]} is missing in the object")


def _refused(why: str) -> ApiError:
    return ApiError(422, f"the server rejected our request due to an error in our request: {why}")
