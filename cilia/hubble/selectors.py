"""Label selectors as Hubble's filters take them: Kubernetes' syntax, with an optional label source.

`app=web,tier!=db`, `env in (a, b)`, `env notin (c)`, `app`, `!app`; a key may carry its source
(`k8s:app`, `reserved:host`), else any source will do. Source: the label selector page of Kubernetes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

SET = re.compile(r"^(?P<key>\S+)\s+(?P<word>in|notin)\s*\((?P<values>[^()]*)\)$")
EQUALS = re.compile(r"^(?P<key>[^\s=!]+)\s*(?P<sign>==|=|!=)\s*(?P<value>[^\s=!]*)$")
EXISTS = re.compile(r"^(?P<not>!?)\s*(?P<key>[^\s=!(),]+)$")
SEPARATOR = re.compile(r",(?![^(]*\))")


class SelectorError(ValueError):
    """A selector that can't be read; its text is a sentence for the user."""


class Requirement(msgspec.Struct, frozen=True):
    """One term: the label's value is (or is not) among `values`; without values its presence counts."""

    key: str
    values: frozenset[str] | None
    wanted: bool

    def matches(self, labels: dict[str, str]) -> bool:
        """`labels`: values by `source:key` and by bare key."""
        value = labels.get(self.key)
        present = value is not None and (self.values is None or value in self.values)
        return present is self.wanted


class Selector(msgspec.Struct, frozen=True):
    """All requirements must hold."""

    requirements: tuple[Requirement, ...]

    def matches(self, labels: Iterable[str]) -> bool:
        """Whether a label set, given as `source:key=value` strings, is selected."""
        return self.holds(by_key(labels))

    def holds(self, values: dict[str, str]) -> bool:
        """Whether a label set as `by_key` gives it is selected."""
        return all(requirement.matches(values) for requirement in self.requirements)


def by_key(labels: Iterable[str]) -> dict[str, str]:
    """Values under `source:key` and, for selectors without a source, under the bare key."""
    values = {}
    for label in labels:
        name, _, value = label.partition("=")
        values[name] = value
        values[name.partition(":")[2] or name] = value
    return values


def parse(text: str) -> Selector:
    """Read a selector. Raises SelectorError."""
    terms = [term.strip() for term in SEPARATOR.split(text)]
    if not any(terms):
        raise SelectorError("an empty label selector selects nothing useful: give key=value or a key")
    return Selector(tuple(requirement(term, text) for term in terms))


def requirement(term: str, selector: str) -> Requirement:
    """Read one term of `selector`."""
    if match := SET.match(term):
        values = frozenset(value.strip() for value in match["values"].split(","))
        return Requirement(bare(match["key"]), values, match["word"] == "in")
    if match := EQUALS.match(term):
        return Requirement(bare(match["key"]), frozenset({match["value"]}), match["sign"] != "!=")
    if match := EXISTS.match(term):
        return Requirement(bare(match["key"]), None, not match["not"])
    raise SelectorError(
        f"label selector {selector!r}: can't read {term!r}; write key=value, key!=value, key in (a,b) or key"
    )


def bare(key: str) -> str:
    """The key without the source `any`, which stands for all sources."""
    return key.removeprefix("any:")
