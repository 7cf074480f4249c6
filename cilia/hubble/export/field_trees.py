"""Which fields of a flow a line shall have: paths as in google.protobuf.FieldMask, as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from cilia.hubble.masks import is_field

Tree: TypeAlias = "Mapping[str, Tree | None]"
"""Field names to what is wanted of them; None: everything."""


class MaskError(ValueError):
    """A path that no flow has; its text is a sentence for the user."""


def parse(paths: Iterable[str]) -> Tree | None:
    """The tree of some paths such as `source.pod_name`; None of none at all. Raises MaskError."""
    tree: dict[str, Tree | None] = {}
    for path in filter(None, (path.strip() for path in paths)):
        if not is_field(path):
            raise MaskError(f"no flow has the field {path!r}: see flow.proto for their names")
        _add(tree, path.split("."))
    return tree or None


def both(one: Tree | None, other: Tree | None) -> Tree | None:
    """What both trees have."""
    if one is None or other is None:
        return one if other is None else other
    found: dict[str, Tree | None] = {}
    for name in one.keys() & other.keys():
        below = both(one[name], other[name])
        if below is None or below:
            found[name] = below
    return found


def has(tree: Tree | None, name: str) -> bool:
    """Whether any of a field is wanted."""
    return tree is None or name in tree


def _add(tree: dict[str, Tree | None], names: list[str]) -> None:
    for name in names[:-1]:
        below = tree.setdefault(name, {})
        if below is None:
            return
        assert isinstance(below, dict)
        tree = below
    tree[names[-1]] = None
