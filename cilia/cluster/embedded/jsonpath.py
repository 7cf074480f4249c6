"""The JSONPath of ``additionalPrinterColumns``, compiled to steps. Pure.

Understood: ``.field``, ``.escaped\\.dots``, ``['field']``, ``[0]``, ``[-1]``, ``[*]``, ``.*`` and the filters
``[?(@.a.b=="text")]`` with ``==`` and ``!=`` over strings, numbers and booleans
(https://kubernetes.io/docs/reference/kubectl/jsonpath/).
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

_FIELD: Final = re.compile(r"\.((?:\\.|[^.\[\]\\\s])+)")
_QUOTED: Final = re.compile(r"\[\s*(?:'([^']*)'|\"([^\"]*)\")\s*\]")
_INDEX: Final = re.compile(r"\[\s*(-?[0-9]{1,9})\s*\]")
_WILD: Final = re.compile(r"\[\*\]|\.\*")
_FILTER: Final = re.compile(
    r"\[\?\(\s*@((?:\.(?:\\.|[^.\[\]\\\s=!])+)*)\s*(==|!=)\s*('[^']*'|\"[^\"]*\"|[-\w.]+)\s*\)\]"
)


class Field(msgspec.Struct, frozen=True, tag=True):
    """Step into a key."""

    name: str


class Index(msgspec.Struct, frozen=True, tag=True):
    """Step into one element."""

    at: int


class Every(msgspec.Struct, frozen=True, tag=True):
    """Step into all elements or values."""


class Where(msgspec.Struct, frozen=True, tag=True):
    """Step into the elements whose ``path`` equals (or does not equal) ``value``."""

    path: tuple[str, ...]
    equal: bool
    value: Any


Step = Field | Index | Every | Where
Path = tuple[Step, ...]


def compile_path(text: str) -> Path:
    """Compile; raises ValueError with the place that was not understood."""
    text = text.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    text = text.removeprefix("$")
    if text == ".":
        return ()
    steps: list[Step] = []
    at = 0
    while at < len(text):
        step, at = _step(text, at)
        steps.append(step)
    return tuple(steps)


def _step(text: str, at: int) -> tuple[Step, int]:
    if found := _WILD.match(text, at):
        return Every(), found.end()
    if found := _FIELD.match(text, at):
        return Field(_unescape(found.group(1))), found.end()
    if found := _QUOTED.match(text, at):
        return Field(found.group(1) if found.group(1) is not None else found.group(2)), found.end()
    if found := _INDEX.match(text, at):
        return Index(int(found.group(1))), found.end()
    if found := _FILTER.match(text, at):
        path = tuple(_unescape(part) for part in _FIELD.findall(found.group(1)))
        return Where(path, found.group(2) == "==", _literal(found.group(3))), found.end()
    raise ValueError(f"unrecognised JSONPath at {text[at:]!r}")


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _literal(text: str) -> Any:
    if text[0] in "'\"":
        return text[1:-1]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"unrecognised JSONPath literal {text!r}") from error


def find(path: Path, value: Any) -> list[Any]:
    """Every value the path leads to, in document order; a missing field leads nowhere."""
    found = [value]
    for step in path:
        found = [after for before in found for after in _follow(step, before)]
    return found


def _follow(step: Step, value: Any) -> list[Any]:
    match step:
        case Field(name):
            return [value[name]] if isinstance(value, dict) and name in value else []
        case Index(at):
            inside = isinstance(value, list) and -len(value) <= at < len(value)
            return [value[at]] if inside else []
        case Every():
            return _children(value)
        case Where(path, equal, wanted):
            return [item for item in _children(value) if (_dig(item, path) == wanted) == equal]


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _dig(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
