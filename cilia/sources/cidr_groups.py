"""CiliumCIDRGroups into `cidr_groups`."""

from collections.abc import Iterable

import msgspec
import structlog

from cilia.cluster.store import CILIUM_CIDR_GROUPS, Invalid, decode
from cilia.model.resources.base import AnyObject
from cilia.model.resources.cilium_cidr_group import CiliumCIDRGroup
from cilia.schema.rows import CidrGroupRow
from cilia.sources import checks
from cilia.sources.reflector import Translation

log = structlog.get_logger(__name__)


def cidr_groups() -> Translation[str, CidrGroupRow]:
    """Translate all groups; a cluster without the kind has none."""
    return Translation(CILIUM_CIDR_GROUPS, row, key, optional=True)


def key(any_object: AnyObject) -> str:
    """The name."""
    return any_object.metadata.name


def row(raw: msgspec.Raw) -> CidrGroupRow:
    """Return the row of a group. What is no prefix is left out and told: the others stand, or a group of
    denied addresses would fall away whole."""
    group = decode(raw, CiliumCIDRGroup)
    meta = group.metadata
    return CidrGroupRow(
        name=meta.name, labels=meta.labels or {}, prefixes=_usable(meta.name, group.spec.external_cidrs)
    )


def _usable(group: str, texts: Iterable[str]) -> tuple[str, ...]:
    passed: set[str] = set()
    for text in texts:
        try:
            passed.add(checks.block(text))
        except Invalid as error:
            log.error("part of an object ignored", kind=CILIUM_CIDR_GROUPS.kind, name=group, error=str(error))
    return tuple(sorted(passed))
