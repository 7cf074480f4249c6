"""Maps `ipcache` (prefixes, a trie) and `ipcache_hosts` (whole addresses, a hash asked first)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map
from cilia.dataplane.maps import packing
from cilia.dataplane.maps.packing import Content
from cilia.model.node import IpcacheEntry


class Ipcache:
    """Target of `Desired.ipcache`."""

    def __init__(self, prefixes: Map, hosts: Map, layout: abi.Layout) -> None:
        self._prefixes = prefixes
        self._hosts = hosts
        self._address = layout.dtype("address")
        self._fixed_bits = layout.value("IPCACHE_FIXED_BITS")
        self._host_bits = layout.value("IPCACHE_HOST_PREFIX")
        self._clusters: dict[str, int] = {}

    def desired(self, rows: Sequence[IpcacheEntry]) -> tuple[Array, Array]:
        """Keys (of either map) and values for the rows, in their order."""
        keys = self._keys([row.prefix for row in rows], [row.cluster for row in rows])
        values = self._hosts.values(len(rows))
        values["identity"] = [row.identity for row in rows]
        values["flags"] = [row.flags for row in rows]
        values["tunnel_endpoint"] = packing.addresses((row.tunnel_endpoint for row in rows), self._address)
        return keys, values

    def contents(self, rows: Sequence[IpcacheEntry]) -> list[Content[str]]:
        """What the maps have for the rows."""
        keys, values = self.desired(rows)
        return [
            Content(target, keys[at], values[at], [rows[position].prefix for position in at.tolist()])
            for target, at in self._split(keys)
        ]

    def maps(self) -> list[Map]:
        """All that it writes."""
        return [self._prefixes, self._hosts]

    def update(self, rows: Sequence[IpcacheEntry]) -> dict[str, str]:
        """Write the rows, each map in one batch."""
        keys, values = self.desired(rows)
        self._clusters.update({row.prefix: row.cluster for row in rows if row.cluster})
        failures: dict[str, str] = {}
        for target, positions in self._split(keys):
            written = target.put(keys[positions], values[positions])
            for at, why in packing.sentences(target, written).items():
                failures[rows[int(positions[at])].prefix] = why
        return failures

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        """Remove prefixes; absent ones are no error."""
        packed = self._keys(keys, [self._clusters.pop(prefix, 0) for prefix in keys])
        for target, positions in self._split(packed):
            target.remove(packed[positions])
        return {}

    def prune(self, keep: Iterable[IpcacheEntry]) -> int:
        """Remove everything that is not in `keep`."""
        rows = list(keep)
        keys = self._keys([row.prefix for row in rows], [row.cluster for row in rows])
        wanted = set(packing.raw_rows(keys))
        removed = 0
        for target in (self._prefixes, self._hosts):
            stale = [raw for raw in packing.raw_rows(target.dump()[0]) if raw not in wanted]
            removed += target.remove(np.frombuffer(b"".join(stale), target.key))
        return removed

    def ours(self) -> set[str]:
        """Prefixes in the kernel, as text."""
        return {self._prefix(key) for target in (self._prefixes, self._hosts) for key in target.dump()[0]}

    def _keys(self, prefixes: Sequence[str], clusters: Sequence[int]) -> Array:
        keys = self._hosts.keys(len(prefixes))
        raw, bits, families = [], [], []
        for prefix in prefixes:
            address, _, length = prefix.partition("/")
            family = 6 if ":" in address else 4
            whole = 128 if family == 6 else 32
            raw.append(address)
            families.append(family)
            bits.append(self._host_bits - whole + (int(length) if length else whole))
        keys["address"] = packing.addresses(raw, self._address)
        keys["family"] = families
        keys["prefixlen"] = bits
        keys["cluster"] = clusters
        return keys

    def _split(self, keys: Array) -> list[tuple[Map, Array]]:
        """Which map each key goes to: (map, positions), empty parts left out."""
        host = keys["prefixlen"] == self._host_bits
        parts = ((self._prefixes, np.flatnonzero(~host)), (self._hosts, np.flatnonzero(host)))
        return [(target, positions) for target, positions in parts if len(positions)]

    def _prefix(self, key: Array) -> str:
        bits = int(key["prefixlen"]) - self._fixed_bits - (96 if key["family"] == 4 else 0)
        raw = key["address"].tobytes()
        address = packing.address_text(raw) or "::"
        return f"{address}/{bits}"
