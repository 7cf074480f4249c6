"""Decoding errors told to the author of an object: the path as kubectl shows it, and what to write instead.

The decoder's own messages speak of types and patterns; its path ends where it looked, which for an unknown or
a missing field is the part around it, and for an entry of a map says nothing of its key.
"""

import difflib
import functools
import re
from collections.abc import Iterable
from typing import Any, get_type_hints

import msgspec
from msgspec import inspect

_MESSAGE = re.compile(
    r"^(?:not a valid \w+: )?(?P<said>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?$", re.DOTALL
)
_STEP = re.compile(r"\[(?P<index>\d*)(?P<key>\.\.\.)?\]|(?P<field>[^.\[\]]+)")

_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number with a fraction",
    "int": "a whole number",
    "null": "nothing",
    "object": "fields",
    "str": "text",
}

SHOWN_CHOICES = 12
"""Possible values that are told; of more only the nearest."""


def explain(message: str, model: type[msgspec.Struct], raw: msgspec.Raw | bytes = b"") -> tuple[str, str]:
    """Return path and sentence of a decoding error of `model`; `raw` is what was decoded."""
    found = _MESSAGE.match(message)
    said, path = (found["said"], found["path"] or "") if found else (message, "")
    steps = list(_STEP.finditer(path))
    part = _part(_type_info(model), steps)
    if (unknown := re.match(r"Object contains unknown field `(.*)`", said, re.DOTALL)) is not None:
        return f"{path}.{unknown[1][:60]}".lstrip("."), _unknown(unknown[1], part)
    if (missing := re.match(r"Object missing required field `(.*)`", said)) is not None:
        return f"{path}.{missing[1]}".lstrip("."), "This field is required: give it a value."
    if path.endswith("[...]"):
        path = path.removesuffix("[...]") + _key(model, steps, raw)
    return path, _sentence(said, part)


def _sentence(said: str, part: inspect.Type | None) -> str:
    """What to write instead of a value."""
    if (choice := re.match(r"Invalid enum value '?(.*?)'?$", said, re.DOTALL)) is not None:
        return _choices(choice[1], part)
    if (kinds := re.match(r"Expected `([^`]*)`, got `([^`]*)`", said)) is not None:
        return _kinds(kinds[1].split(" | "), kinds[2])
    if "matching regex" in said:
        described = _description(part) or "another text"
        return f"This text does not fit here: write {described[0].lower()}{described[1:].rstrip('.')}."
    if (bound := re.match(r"Expected `(\w+)`(?: of length)? (<=|>=|<|>) (\S+)", said)) is not None:
        return _bound(bound[1], bound[2], bound[3])
    if (one_of := re.match(r"exactly one of (.*) must be set, found (.*)", said)) is not None:
        given = "none is given" if one_of[2] == "none" else f"{one_of[2]} are given"
        return f"Exactly one of {one_of[1]} stands here, but {given}: keep or add one."
    return f"{said[:1].upper()}{said[1:200].rstrip('.')}: correct this part."


def _unknown(name: str, part: inspect.Type | None) -> str:
    known = [field.encode_name for field in part.fields] if isinstance(part, inspect.StructType) else []
    near = difflib.get_close_matches(name[:60], known, n=1)
    hint = f"write {near[0]}" if near else "correct its name"
    return f"There is no field {name[:60]} here: {hint}, or remove it."


def _choices(value: str, part: inspect.Type | None) -> str:
    known = [str(one) for one in part.values] if isinstance(part, inspect.LiteralType) else []
    if len(known) > SHOWN_CHOICES:
        known = difflib.get_close_matches(value[:60], known, n=3, cutoff=0.3)
    listed = _listed(known) if known else "another value"
    return f"{value[:60]!r} is not possible here: write {listed}."


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _kinds(wanted: list[str], got: str) -> str:
    if "str" in wanted and "int" not in wanted and got in ("int", "float", "bool"):
        return "Text is expected here: put it in quotes."
    kinds = _listed([_WORDS.get(kind, kind) for kind in wanted if kind != "null"] or ["nothing"])
    return f"This is {_WORDS.get(got, got)}: write {kinds}."


def _bound(kind: str, relation: str, number: str) -> str:
    what, unit = {"array": ("list", " entries"), "str": ("text", " characters")}.get(kind, ("number", ""))
    if relation.startswith("<"):
        big = "large" if what == "number" else "long"
        return f"The {what} is too {big}: write at most {number}{unit}."
    small = "small" if what == "number" else "short"
    return f"The {what} is too {small}: write at least {number}{unit}."


# -- the type at a path --------------------------------------------------------------------------------------


@functools.cache
def _type_info(model: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(model)


def _bare(part: inspect.Type) -> inspect.Type:
    """A type without its description and without null."""
    while True:
        if isinstance(part, inspect.Metadata):
            part = part.type
        elif isinstance(part, inspect.UnionType):
            others = [one for one in part.types if not isinstance(one, inspect.NoneType)]
            if len(others) != 1:
                return part
            part = others[0]
        else:
            return part


def _part(part: inspect.Type, steps: Iterable[re.Match[str]]) -> inspect.Type | None:
    """The type at the end of a path, bare; None where the path leaves the model."""
    last = part
    for step in steps:
        bare = _bare(last)
        if step["field"] is not None and isinstance(bare, inspect.StructType):
            found = [field.type for field in bare.fields if field.encode_name == step["field"]]
            if not found:
                return None
            last = found[0]
        elif isinstance(bare, inspect.DictType):
            last = bare.value_type
        elif isinstance(bare, inspect.VarTupleType | inspect.ListType):
            last = bare.item_type
        else:
            return None
    return last if _description(last) else _bare(last)


def _description(part: inspect.Type | None) -> str:
    """What the model says of a value."""
    found: list[str] = []
    pending = [part]
    while pending:
        one = pending.pop()
        if isinstance(one, inspect.Metadata):
            found.append((one.extra_json_schema or {}).get("description", ""))
            pending.append(one.type)
        elif isinstance(one, inspect.UnionType):
            pending.extend(one.types)
    return next((text for text in found if text), "")


# -- the key of a map ----------------------------------------------------------------------------------------


def _key(model: type[msgspec.Struct], steps: list[re.Match[str]], raw: msgspec.Raw | bytes) -> str:
    """`[key]` of the first entry of a map that its type does not take."""
    *way, field, _ = steps
    owner = _part(_type_info(model), way)
    try:
        value: Any = msgspec.json.decode(raw)
        for step in (*way, field):
            value = value[step["field"] if step["field"] is not None else int(step["index"])]
        assert isinstance(owner, inspect.StructType)
        name = next(f.name for f in owner.fields if f.encode_name == field["field"])
        kind = get_type_hints(owner.cls, include_extras=True)[name]
        return next(f"[{key}]" for key, one in value.items() if not _fits({key: one}, kind))
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, StopIteration, AssertionError):
        return "[...]"


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True
