"""Namespaces and their labels into `namespaces`."""

import msgspec

from cilia.cluster.store import NAMESPACES, decode
from cilia.model.resources.base import AnyObject
from cilia.model.resources.core import Namespace
from cilia.schema.rows import NamespaceRow
from cilia.sources.reflector import Translation


def namespaces() -> Translation[str, NamespaceRow]:
    """Translate all namespaces."""
    return Translation(NAMESPACES, row, key)


def key(any_object: AnyObject) -> str:
    """The name."""
    return any_object.metadata.name


def row(raw: msgspec.Raw) -> NamespaceRow:
    """Return the row of a namespace."""
    meta = decode(raw, Namespace).metadata
    return NamespaceRow(name=meta.name, labels=meta.labels or {}, annotations=meta.annotations or {})
