"""Label selectors as Kubernetes writes them: in one line, or as matchLabels and matchExpressions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

_KEY = r"[A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_TERM = re.compile(
    rf"\s*(?:(?P<absent>!)\s*(?P<missing>{_KEY})"
    rf"|(?P<key>{_KEY})\s*(?:(?P<sign>==|=|!=)\s*(?P<value>{_VALUE})"
    rf"|(?P<word>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)"
)
_WHOLE_VALUE = re.compile(_VALUE)


class Requirement(msgspec.Struct, frozen=True):
    """What one key must be. A label that is absent satisfies NotIn."""

    key: str
    operator: str
    """In, NotIn, Exists or DoesNotExist."""
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy it."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


class Selector(msgspec.Struct, frozen=True):
    """All of the requirements; without any it selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy every requirement."""
        return all(requirement.holds(labels) for requirement in self.requirements)


def read_line(text: str) -> Selector:
    """A selector in one line: `a=b,c!=d,e in (f,g),h notin (i),j,!k`. Raises ValueError with a sentence."""
    found, at = [], 0
    while at < len(text):
        term = _TERM.match(text, at)
        if term is None or not term.group().strip(" ,"):
            raise ValueError(
                f"{text[at:]!r} is no label requirement: write key=value, key in (a,b), key or !key"
            )
        found.append(_requirement(term))
        at = term.end()
    return Selector(tuple(found))


def _requirement(term: re.Match[str]) -> Requirement:
    if term["absent"]:
        return Requirement(term["missing"], "DoesNotExist")
    key = term["key"]
    if term["sign"]:
        return Requirement(key, "NotIn" if term["sign"] == "!=" else "In", (term["value"],))
    if term["word"]:
        values = tuple(value.strip() for value in term["values"].split(","))
        for value in values:
            if not _WHOLE_VALUE.fullmatch(value):
                raise ValueError(f"{value!r} is no label value: use letters, digits, '-', '_' and '.'")
        return Requirement(key, "In" if term["word"] == "in" else "NotIn", values)
    return Requirement(key, "Exists")


def read_object(labels: Mapping[str, str], expressions: Iterable[Mapping[str, object]]) -> Selector:
    """A selector from matchLabels and matchExpressions. Raises ValueError with a sentence."""
    found = [Requirement(key, "In", (value,)) for key, value in sorted(labels.items())]
    return Selector((*found, *map(_expression, expressions)))


def _expression(written: Mapping[str, object]) -> Requirement:
    key, operator, values = written.get("key"), written.get("operator"), written.get("values") or ()
    if not isinstance(key, str) or not key:
        raise ValueError("a match expression has no key: name the label")
    if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
        raise ValueError(f"{operator!r} is no operator: use In, NotIn, Exists or DoesNotExist")
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"the values of {key} are no list of texts")
    if operator in ("In", "NotIn") and not values:
        raise ValueError(f"{operator} without values for {key}: name at least one")
    return Requirement(key, str(operator), tuple(values))
