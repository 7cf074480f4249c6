"""Structural schemas (the OpenAPI v3 subset of CustomResourceDefinitions): prune, default, validate. Pure.

Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema.
CEL rules (``x-kubernetes-validations``) are carried but not evaluated.
"""

from __future__ import annotations

import copy
import ipaddress
import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from .errors import FieldError, invalid, required, show, unsupported

Schema = dict[str, Any]

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_META: Final = ("apiVersion", "kind", "metadata")
_MAX_FAULTS: Final = 20


# --- pruning -----------------------------------------------------------------------------------------------


def prune(schema: Schema, value: Any) -> list[str]:
    """Remove fields the schema does not know, in place; return their paths. Type and metadata stay."""
    unknown: list[str] = []
    if isinstance(value, dict):
        kept = {key: value[key] for key in _META if key in value}
        rest = {key: item for key, item in value.items() if key not in _META}
        _prune(schema, rest, "", unknown)
        value.clear()
        value.update(kept | rest)
    return unknown


def _prune(schema: Schema, value: Any, path: str, unknown: list[str]) -> None:
    if isinstance(value, list):
        items = schema.get("items")
        for at, item in enumerate(value):
            if isinstance(items, dict):
                _prune(items, item, f"{path}[{at}]", unknown)
    elif isinstance(value, dict):
        _prune_map(schema, value, path, unknown)


def _prune_map(schema: Schema, value: dict[str, Any], path: str, unknown: list[str]) -> None:
    if schema.get("x-kubernetes-embedded-resource"):
        schema = {**schema, "properties": {**dict.fromkeys(_META, _OPEN), **schema.get("properties", {})}}
    properties = schema.get("properties") or {}
    additional = schema.get("additionalProperties")
    preserve = schema.get("x-kubernetes-preserve-unknown-fields") is True
    for key in list(value):
        where = f"{path}.{key}" if path else key
        if key in properties:
            _prune(properties[key], value[key], where, unknown)
        elif isinstance(additional, dict):
            _prune(additional, value[key], where, unknown)
        elif additional is not True and not preserve:
            del value[key]
            unknown.append(where)


_OPEN: Final[Schema] = {"x-kubernetes-preserve-unknown-fields": True}


# --- defaulting --------------------------------------------------------------------------------------------


def apply_defaults(schema: Schema, value: Any) -> None:
    """Fill in ``default`` values, in place, from the outside in."""
    if isinstance(value, dict):
        for key, child in (schema.get("properties") or {}).items():
            absent = key not in value or (value[key] is None and not child.get("nullable"))
            if absent and "default" in child:
                value[key] = copy.deepcopy(child["default"])
            if key in value:
                apply_defaults(child, value[key])
        additional = schema.get("additionalProperties")
        if isinstance(additional, dict):
            for key in value.keys() - (schema.get("properties") or {}).keys():
                apply_defaults(additional, value[key])
    elif isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        for item in value:
            apply_defaults(items, item)


# --- validation --------------------------------------------------------------------------------------------


def validate(schema: Schema, value: Any, path: str = "") -> list[FieldError]:
    """Every fault of ``value``, at most twenty; an empty list means valid."""
    faults: list[FieldError] = []
    _validate(schema, value, path, faults)
    return faults[:_MAX_FAULTS]


def _validate(schema: Schema, value: Any, path: str, faults: list[FieldError]) -> None:
    if len(faults) >= _MAX_FAULTS:
        return
    if value is None:
        if not schema.get("nullable") and "type" in schema:
            faults.append(invalid(path, None, f"must be of type {schema['type']}, not null"))
        return
    if not _check_type(schema, value, path, faults):
        return
    choices = schema.get("enum")
    if choices is not None and not any(_equal(choice, value) for choice in choices):
        faults.append(unsupported(path, value, choices))
    if isinstance(value, str):
        _check_string(schema, value, path, faults)
    elif isinstance(value, bool):
        pass
    elif isinstance(value, int | float):
        _check_number(schema, value, path, faults)
    elif isinstance(value, list):
        _check_list(schema, value, path, faults)
    elif isinstance(value, dict):
        _check_map(schema, value, path, faults)
    _check_logic(schema, value, path, faults)


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _check_type(schema: Schema, value: Any, path: str, faults: list[FieldError]) -> bool:
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, str | int) and not isinstance(value, bool):
            return True
        faults.append(invalid(path, value, "must be an integer or a string"))
        return False
    wanted = schema.get("type")
    if not wanted:
        return True
    fits = isinstance(value, _TYPES.get(wanted, (object,))) and (
        wanted == "boolean" or not isinstance(value, bool)
    )
    if not fits and wanted == "integer" and isinstance(value, float) and value.is_integer():
        fits = True
    if not fits:
        text = f"{path} in body must be of type {wanted}: {show(_type_name(value))}"
        faults.append(
            FieldError("FieldValueTypeInvalid", path, f"Invalid value: {show(_type_name(value))}: {text}")
        )
    return fits


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return next((name for name, types in _TYPES.items() if isinstance(value, types)), "null")


def _check_string(schema: Schema, value: str, path: str, faults: list[FieldError]) -> None:
    if (least := schema.get("minLength")) is not None and len(value) < least:
        faults.append(invalid(path, value, f"{path} in body should be at least {least} chars long"))
    if (most := schema.get("maxLength")) is not None and len(value) > most:
        faults.append(FieldError("FieldValueTooLong", path, f"Too long: may not be more than {most} bytes"))
    if (pattern := schema.get("pattern")) is not None and not compiled(pattern).search(value):
        faults.append(invalid(path, value, f"{path} in body should match '{pattern}'"))
    check = _FORMATS.get(schema.get("format", ""))
    if check is not None and not check(value):
        faults.append(invalid(path, value, f"{path} in body must be of type {schema['format']}"))


@lru_cache(maxsize=2048)
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern in Go's RE2 dialect as Python understands it (``\\z``, POSIX classes)."""
    for name, chars in (("alnum", "0-9A-Za-z"), ("alpha", "A-Za-z"), ("digit", "0-9")):
        pattern = pattern.replace(f"[:{name}:]", chars)
    # In RE2 an unescaped final ``$`` is the very end; Python's also matches before a newline.
    if pattern.endswith("$") and not pattern.endswith("\\$"):
        pattern = pattern[:-1] + r"\Z"
    return re.compile(pattern.replace(r"\z", r"\Z"))


def _check_number(schema: Schema, value: float, path: str, faults: list[FieldError]) -> None:
    if (least := schema.get("minimum")) is not None:
        strict = schema.get("exclusiveMinimum") is True
        if value < least or (strict and value == least):
            than = "greater than" if strict else "greater than or equal to"
            faults.append(invalid(path, value, f"{path} in body should be {than} {least}"))
    if (most := schema.get("maximum")) is not None:
        strict = schema.get("exclusiveMaximum") is True
        if value > most or (strict and value == most):
            than = "less than" if strict else "less than or equal to"
            faults.append(invalid(path, value, f"{path} in body should be {than} {most}"))
    step = schema.get("multipleOf")
    if step and value % step:
        faults.append(invalid(path, value, f"{path} in body should be a multiple of {step}"))
    bits = {"int32": 31, "int64": 63}.get(schema.get("format", ""))
    if bits is not None and not -(1 << bits) <= value < (1 << bits):
        faults.append(invalid(path, value, f"{path} in body must fit {schema['format']}"))


def _check_list(schema: Schema, value: list[Any], path: str, faults: list[FieldError]) -> None:
    if (least := schema.get("minItems")) is not None and len(value) < least:
        faults.append(invalid(path, len(value), f"{path} in body should have at least {least} items"))
    if (most := schema.get("maxItems")) is not None and len(value) > most:
        text = f"Too many: {len(value)}: must have at most {most} items"
        faults.append(FieldError("FieldValueTooMany", path, text))
        return
    if schema.get("x-kubernetes-list-type") in ("set", "map") or schema.get("uniqueItems"):
        _check_unique(schema, value, path, faults)
    if isinstance(items := schema.get("items"), dict):
        for at, item in enumerate(value):
            _validate(items, item, f"{path}[{at}]", faults)


def _check_unique(schema: Schema, value: list[Any], path: str, faults: list[FieldError]) -> None:
    keys = schema.get("x-kubernetes-list-map-keys") or []
    seen: set[str] = set()
    for at, item in enumerate(value):
        identity = {key: item.get(key) for key in keys} if keys and isinstance(item, dict) else item
        text = show(identity)
        if text in seen:
            faults.append(FieldError("FieldValueDuplicate", f"{path}[{at}]", f"Duplicate value: {text}"))
        seen.add(text)


def _check_map(schema: Schema, value: dict[str, Any], path: str, faults: list[FieldError]) -> None:
    for name in schema.get("required") or ():
        if name not in value:
            faults.append(required(f"{path}.{name}" if path else name))
    if (least := schema.get("minProperties")) is not None and len(value) < least:
        faults.append(invalid(path, len(value), f"{path} in body should have at least {least} properties"))
    if (most := schema.get("maxProperties")) is not None and len(value) > most:
        text = f"Too many: {len(value)}: must have at most {most} items"
        faults.append(FieldError("FieldValueTooMany", path, text))
        return
    properties = schema.get("properties") or {}
    additional = schema.get("additionalProperties")
    for key, item in value.items():
        child = properties.get(key, additional if isinstance(additional, dict) else None)
        if child is not None:
            _validate(child, item, f"{path}.{key}" if path else key, faults)


def _check_logic(schema: Schema, value: Any, path: str, faults: list[FieldError]) -> None:
    for part in schema.get("allOf") or ():
        _validate(part, value, path, faults)
    if (choices := schema.get("anyOf")) and not schema.get("x-kubernetes-int-or-string"):
        failures = [validate(part, value, path) for part in choices]
        if all(failures):
            faults.append(invalid(path, value, f"{_where(path)} must validate at least one schema (anyOf)"))
            closest = min(failures, key=len)
            faults.extend(closest)
    if choices := schema.get("oneOf"):
        outcomes = [validate(part, value, path) for part in choices]
        passed = outcomes.count([])
        if passed != 1:
            said = "one and only one schema (oneOf)" + (f"; {passed} fit" if passed else "")
            faults.append(invalid(path, value, f"{_where(path)} must validate {said}"))
    if (banned := schema.get("not")) is not None and not validate(banned, value, path):
        faults.append(invalid(path, value, f"{_where(path)} must not validate the schema (not)"))


def _where(path: str) -> str:
    return f'"{path}"' if path else '"<root>"'


# --- formats -----------------------------------------------------------------------------------------------


def _parses(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def check(value: str) -> bool:
        try:
            parse(value)
        except ValueError:
            return False
        return True

    return check


def _cidr(value: str) -> None:
    if "/" not in value:
        raise ValueError("no prefix length")
    ipaddress.ip_interface(value)


def _timestamp(value: str) -> None:
    if "T" not in value.upper():
        raise ValueError("no time")
    datetime.fromisoformat(value)


_FORMATS: Final[dict[str, Callable[[str], bool]]] = {
    "cidr": _parses(_cidr),
    "ipv4": _parses(ipaddress.IPv4Address),
    "ipv6": _parses(ipaddress.IPv6Address),
    "date-time": _parses(_timestamp),
    "date": _parses(lambda value: datetime.strptime(value, "%Y-%m-%d")),
    "uuid": lambda value: bool(
        compiled("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$").search(value)
    ),
    "byte": lambda value: bool(compiled("^[A-Za-z0-9+/=\\s]*$").search(value)),
    "duration": lambda value: bool(compiled(r"^([0-9.]+(h|ms|us|µs|ns|m|s))+$|^0$").search(value)),
}


# --- is the schema itself structural -----------------------------------------------------------------------


def check_structure(schema: Any, path: str, depth: int = 0) -> list[FieldError]:
    """Faults that make a CRD's schema unusable: bad types, bad patterns, no type where one is needed."""
    if not isinstance(schema, dict):
        return [invalid(path, schema, "must be a schema object")]
    if depth > 40:
        return [
            FieldError("FieldValueInvalid", path, "Invalid value: the schema is nested deeper than 40 levels")
        ]
    faults: list[FieldError] = []
    open_type = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    if "type" not in schema and not open_type:
        faults.append(required(f"{path}.type", "must not be empty for specified object fields"))
    elif "type" in schema and schema["type"] not in _TYPES:
        faults.append(unsupported(f"{path}.type", schema["type"], sorted(_TYPES)))
    try:
        compiled(str(schema.get("pattern", "")))
    except re.error as error:
        faults.append(
            invalid(f"{path}.pattern", schema["pattern"], f"must be a valid regular expression: {error}")
        )
    properties = schema.get("properties") or {}
    if not isinstance(properties, dict):
        return [*faults, invalid(f"{path}.properties", properties, "must be an object")]
    for key, child in properties.items():
        faults += check_structure(child, f"{path}.properties[{key}]", depth + 1)
    for key in ("items", "additionalProperties"):
        if isinstance(child := schema.get(key), dict):
            faults += check_structure(child, f"{path}.{key}", depth + 1)
    return faults[:_MAX_FAULTS]
