"""Any map for people: its size and use, and its elements as plain data."""

from __future__ import annotations

from typing import Any

import msgspec

from cilia.dataplane.bpf import Map, MapType
from cilia.dataplane.maps import packing

COUNTED = frozenset({MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE})
"""Types whose elements come and go; the others are always full."""
UNREADABLE = frozenset({MapType.RINGBUF})


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


def use(found: Map) -> MapUse:
    """Describe a map and count its elements (a whole walk: milliseconds for large ones)."""
    used = sum(len(keys) for keys, _ in found.batches()) if found.type in COUNTED else None
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
        for at, key in enumerate(keys):
            mine = values[at * copies : (at + 1) * copies]
            if found.type not in COUNTED and not any(mine.tobytes()):
                continue
            value = packing.record(mine[0]) if copies == 1 else [packing.record(item) for item in mine]
            rows.append({"key": packing.record(key), "value": value})
            if len(rows) >= limit:
                return rows
    return rows
