"""Label and field selectors, parsed once and matched often. Pure.

Grammar: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors
(equality ``a=b,a!=b`` and sets ``a in (b,c),a notin (b),a,!a``) and
https://kubernetes.io/docs/concepts/overview/working-with-objects/field-selectors/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from .errors import ApiError

_TOKEN: Final = re.compile(r"\s*(==|!=|=|>|<|!|\(|\)|,|[A-Za-z0-9_./-]+)")
_KEY: Final = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_VALUE: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")

Operator = Literal["in", "notin", "exists", "absent", "gt", "lt"]


class Requirement(msgspec.Struct, frozen=True):
    """One comma-separated term of a label selector."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels satisfy this term; ``!=`` and ``notin`` accept an absent key."""
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value in self.values
            case "notin":
                return value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None
            case _:
                return _compare(value, self.operator, next(iter(self.values)))


def _compare(value: str | None, operator: str, bound: str) -> bool:
    try:
        number = int(value or "")
    except ValueError:
        return False
    return number > int(bound) if operator == "gt" else number < int(bound)


class LabelSelector(msgspec.Struct, frozen=True):
    """All terms must match; no terms match everything."""

    terms: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(term.matches(labels) for term in self.terms)


class FieldTerm(msgspec.Struct, frozen=True):
    """``field=value`` or ``field!=value``."""

    field: str
    value: str
    equal: bool


class FieldSelector(msgspec.Struct, frozen=True):
    """All terms must match; an absent field has the empty value."""

    terms: tuple[FieldTerm, ...] = ()

    def matches(self, fields: Mapping[str, str]) -> bool:
        return all((fields.get(term.field, "") == term.value) == term.equal for term in self.terms)

    def exact(self, field: str) -> str | None:
        """The value that ``field`` must equal, if one term says so."""
        return next((t.value for t in self.terms if t.field == field and t.equal), None)


def parse_labels(text: str) -> LabelSelector:
    """Parse a label selector; raises a 400 that quotes what was not understood."""
    tokens = _tokens(text)
    terms: list[Requirement] = []
    at = 0
    while at < len(tokens):
        term, at = _term(text, tokens, at)
        terms.append(term)
        if at < len(tokens):
            if tokens[at] != "," or at + 1 == len(tokens):
                raise _bad(text, f"found {tokens[at]!r}, expected ',' and another requirement")
            at += 1
    return LabelSelector(tuple(terms))


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise _bad(text, f"unexpected character {text[at]!r}")
        tokens.append(found.group(1))
        at = found.end()
    return tokens


def _term(text: str, tokens: list[str], at: int) -> tuple[Requirement, int]:
    if tokens[at] == "!":
        return Requirement(_key(text, tokens, at + 1), "absent"), at + 2
    key = _key(text, tokens, at)
    operator = tokens[at + 1] if at + 1 < len(tokens) else ","
    match operator:
        case ",":
            return Requirement(key, "exists"), at + 1
        case "=" | "==" | "!=":
            value, end = _value(text, tokens, at + 2)
            return Requirement(key, "notin" if operator == "!=" else "in", frozenset({value})), end
        case ">" | "<":
            value, end = _value(text, tokens, at + 2)
            if not re.fullmatch(r"-?[0-9]{1,18}", value):
                raise _bad(text, f"{operator} needs an integer, not {value!r}")
            return Requirement(key, "gt" if operator == ">" else "lt", frozenset({value})), end
        case "in" | "notin":
            values, end = _set(text, tokens, at + 2)
            return Requirement(key, "in" if operator == "in" else "notin", values), end
    raise _bad(text, f"found {operator!r}, expected an operator (=, !=, in, notin)")


def _key(text: str, tokens: list[str], at: int) -> str:
    if at >= len(tokens) or not _KEY.fullmatch(tokens[at]):
        raise _bad(text, f"{tokens[at] if at < len(tokens) else ''!r} is not a label key")
    return tokens[at]


def _value(text: str, tokens: list[str], at: int) -> tuple[str, int]:
    if at >= len(tokens) or tokens[at] == ",":
        return "", at
    if not _VALUE.fullmatch(tokens[at]):
        raise _bad(text, f"{tokens[at]!r} is not a label value")
    return tokens[at], at + 1


def _set(text: str, tokens: list[str], at: int) -> tuple[frozenset[str], int]:
    if at >= len(tokens) or tokens[at] != "(":
        raise _bad(text, "expected '(' after in or notin")
    values: set[str] = set()
    at += 1
    while True:
        value, at = _value(text, tokens, at)
        values.add(value)
        if at < len(tokens) and tokens[at] == ")":
            return frozenset(values), at + 1
        if at >= len(tokens) or tokens[at] != ",":
            raise _bad(text, "expected ',' or ')' in a set of values")
        at += 1


def parse_fields(text: str, known: frozenset[str]) -> FieldSelector:
    """Parse a field selector over the ``known`` fields; raises a 400 for any other."""
    terms: list[FieldTerm] = []
    for part in filter(None, re.split(r"(?<!\\),", text)):
        found = re.fullmatch(r"\s*([^=!\s]+)\s*(==|!=|=)(.*)", part, re.DOTALL)
        if found is None:
            raise ApiError(400, f"invalid field selector {part!r}: expected field=value or field!=value")
        field, operator, value = found.groups()
        if field not in known:
            raise ApiError(
                400, f"field label not supported: {field}; supported are {', '.join(sorted(known))}"
            )
        terms.append(FieldTerm(field, re.sub(r"\\([,=\\])", r"\1", value.strip()), operator != "!="))
    return FieldSelector(tuple(terms))


def _bad(text: str, why: str) -> ApiError:
    return ApiError(400, f"unable to parse label selector {text!r}: {why}")
