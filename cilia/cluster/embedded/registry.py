"""Which kinds the server knows: the built-in ones and those that CustomResourceDefinitions add."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from .errors import FieldError
from .printing import DEFAULT, Column
from .schema import Schema

Value = dict[str, Any]

ALL_VERBS: Final = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")

META_FIELDS: Final = ("metadata.name", "metadata.namespace")


def _no_faults(value: Value, old: Value | None) -> list[FieldError]:
    return []


def _unchanged(value: Value) -> Value:
    return value


class Version(msgspec.Struct, frozen=True):
    """One served version of a kind.

    ``inward`` and ``outward`` translate to and from the stored version; most versions differ in name only.
    """

    name: str
    schema: Schema | None = None
    columns: tuple[Column, ...] = DEFAULT
    status: bool = False
    inward: Callable[[Value], Value] | None = None
    outward: Callable[[Value], Value] | None = None


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind. ``storage`` names the version in which objects are kept."""

    group: str
    versions: tuple[Version, ...]
    storage: str
    plural: str
    singular: str
    kind: str
    list_kind: str
    namespaced: bool
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    custom: bool = False
    resource: str = ""
    verbs: tuple[str, ...] = ALL_VERBS
    check: Callable[[Value, Value | None], list[FieldError]] = _no_faults
    complete: Callable[[Value], Value] = _unchanged
    definition_uid: str = ""

    @property
    def key(self) -> str:
        """Where its objects are kept; kinds that share a store name it in ``resource``."""
        return self.resource or f"{self.group}/{self.plural}"

    def version(self, name: str) -> Version | None:
        return next((version for version in self.versions if version.name == name), None)

    def api_version(self, version: str) -> str:
        return f"{self.group}/{version}" if self.group else version


class Registry:
    """Kinds by group and plural, in the order discovery lists them."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._kinds: dict[tuple[str, str], Kind] = {(kind.group, kind.plural): kind for kind in kinds}
        self.generation = 0

    def add(self, kind: Kind) -> None:
        self._kinds[kind.group, kind.plural] = kind
        self.generation += 1

    def remove(self, group: str, plural: str) -> None:
        if self._kinds.pop((group, plural), None) is not None:
            self.generation += 1

    def find(self, group: str, version: str, plural: str) -> tuple[Kind, Version] | None:
        kind = self._kinds.get((group, plural))
        served = kind.version(version) if kind else None
        return (kind, served) if kind and served else None

    def get(self, group: str, plural: str) -> Kind | None:
        return self._kinds.get((group, plural))

    def by_key(self, key: str) -> Kind | None:
        """The kind that owns a store; of kinds that share one, the owner of its name."""
        group, _, plural = key.partition("/")
        return self._kinds.get((group, plural))

    def kinds(self) -> list[Kind]:
        return list(self._kinds.values())

    def groups(self) -> dict[str, list[str]]:
        """Every named group with its versions, the preferred first."""
        groups: dict[str, list[str]] = {}
        for kind in self._kinds.values():
            for version in kind.versions:
                names = groups.setdefault(kind.group, [])
                if version.name not in names:
                    names.append(version.name)
        groups.pop("", None)
        return {group: sorted(names, key=_preference) for group, names in groups.items()}

    def of_version(self, group: str, version: str) -> list[tuple[Kind, Version]]:
        return [
            (kind, served)
            for kind in self._kinds.values()
            if kind.group == group
            for served in kind.versions
            if served.name == version
        ]

    def fields(self, key: str, value: Value) -> dict[str, str]:
        """What field selectors see of an object."""
        kind = self.by_key(key)
        paths = META_FIELDS + (kind.fields if kind else ())
        return {path: _text(value, path) for path in paths}


def _preference(name: str) -> tuple[int, int, int, str]:
    """Stable before beta before alpha, higher numbers first."""
    found = re.fullmatch(r"v([0-9]+)(?:(alpha|beta)([0-9]+))?", name)
    if found is None:
        return (3, 0, 0, name)
    stage = {None: 0, "beta": 1, "alpha": 2}[found.group(2)]
    return (stage, -int(found.group(1)), -int(found.group(3) or 0), name)


def _text(value: Any, path: str) -> str:
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
