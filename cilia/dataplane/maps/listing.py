"""Any map for people: its size and use, and its elements as plain data."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from cilia.dataplane.bpf import Map, MapType
from cilia.dataplane.maps import packing

COUNTED = frozenset({MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE})
"""Types whose elements come and go; the others are always full."""
LARGE = 1 << 16
"""More elements that forget each other are not worth a walk: such a map is never too full."""
UNREADABLE = frozenset({MapType.RINGBUF, MapType.SK_STORAGE})


class MapUse(msgspec.Struct, frozen=True):
    """A map in `cilia map list`."""

    name: str
    type: str
    key_size: int
    value_size: int
    max_entries: int
    used: int | None
    """Elements present; None where the question makes no sense."""

    @property
    def pressure(self) -> float | None:
        """How full, 0..1: the metric cilia_bpf_map_pressure."""
        return None if self.used is None else self.used / max(self.max_entries, 1)


def use(found: Map, used: int | None = None) -> MapUse:
    """Describe a map; elements are counted unless `used` says how many (a walk: slow for large maps)."""
    forgets = found.type is MapType.LRU_HASH and found.info.max_entries > LARGE
    if used is None and found.type in COUNTED and not forgets:
        used = sum(len(keys) for keys, _ in found.batches())
    info = found.info
    return MapUse(found.name, found.type.name.lower(), info.key_size, info.value_size, info.max_entries, used)


def dump(found: Map, limit: int = 1 << 20) -> list[dict[str, Any]]:
    """The elements as {"key": ..., "value": ...}; per-CPU maps have a list of values; zero elements of
    arrays are left out."""
    if found.type in UNREADABLE:
        return []
    rows: list[dict[str, Any]] = []
    for keys, values in found.batches():
        copies = len(values) // len(keys)
        if found.type not in COUNTED:
            filled = values.view(np.uint8).reshape(len(keys), -1).any(axis=1)
            keys, values = keys[filled], values[np.repeat(filled, copies)]
        mine = packing.records(values)
        for at, key in enumerate(packing.records(keys)):
            value = mine[at] if copies == 1 else mine[at * copies : (at + 1) * copies]
            rows.append({"key": key, "value": value})
        if len(rows) >= limit:
            break
    return rows[:limit]
