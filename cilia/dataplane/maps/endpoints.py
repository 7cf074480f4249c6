"""Maps `endpoints` (address to endpoint) and `ifaces` (interface to sender).

An endpoint row becomes one element of `ifaces` and one of `endpoints` per address. The receiver's side
is written last and removed first: who can be reached can also answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map
from cilia.dataplane.maps import packing
from cilia.model.endpoint import EndpointEntry
from cilia.model.identity import HOST
from cilia.model.ids import EndpointId


class Endpoints:
    """Target of `Desired.endpoint_entries`."""

    def __init__(self, endpoints: Map, ifaces: Map, layout: abi.Layout) -> None:
        self._endpoints = endpoints
        self._ifaces = ifaces
        self._address = layout.dtype("address")
        self._host_flag = layout.value("ENDPOINT_HOST")
        self._hosts: set[bytes] = set()
        self.gone: list[str] = []
        """Addresses that no longer belong to an endpoint; whoever flushes conntrack takes them."""

    def desired(self, rows: Sequence[EndpointEntry]) -> tuple[Array, Array]:
        """Keys and values of `ifaces` for the rows, in their order."""
        values = self._ifaces.values(len(rows))
        endpoint = values["endpoint"]
        for name in ("ifindex", "identity", "id", "subject", "flags"):
            endpoint[name] = [getattr(row, name) for row in rows]
        endpoint["mac"] = packing.macs(row.mac for row in rows)
        endpoint["host_mac"] = packing.macs(row.host_mac for row in rows)
        values["ipv4"] = packing.addresses((row.ipv4 for row in rows), self._address)
        values["ipv6"] = packing.addresses((row.ipv6 for row in rows), self._address)
        return endpoint["ifindex"].astype(self._ifaces.key), values

    def update(self, rows: Sequence[EndpointEntry]) -> dict[EndpointId, str]:
        """Write the rows; what an endpoint had before and has no longer goes."""
        keys, values = self.desired(rows)
        self._remove_stale(rows, {row.id for row in rows})
        failures = {
            rows[at].id: why
            for at, why in packing.sentences(self._ifaces, self._ifaces.put(keys, values)).items()
        }
        owners: list[EndpointId] = []
        texts: list[str] = []
        positions: list[int] = []
        for at, row in enumerate(rows):
            for text in filter(None, (row.ipv4, row.ipv6)):
                owners.append(row.id)
                texts.append(text)
                positions.append(at)
        written = self._endpoints.put(packing.addresses(texts, self._address), values["endpoint"][positions])
        failures |= {owners[at]: why for at, why in packing.sentences(self._endpoints, written).items()}
        return failures

    def delete(self, keys: Sequence[EndpointId]) -> dict[EndpointId, str]:
        """Remove everything that carries one of the endpoint ids."""
        self._remove_stale([], set(keys))
        return {}

    def prune(self, keep: Iterable[EndpointEntry]) -> int:
        """Remove all endpoints but these (and the node's own addresses)."""
        ids = {row.id for row in keep}
        strangers = self.ours() - ids
        self._remove_stale([], strangers)
        return len(strangers)

    def ours(self) -> set[EndpointId]:
        """Ids of the endpoints in the kernel."""
        _, values = self._ifaces.dump()
        _, by_address = self._endpoints.dump()
        found = {*values["endpoint"]["id"].tolist(), *self._guests(by_address)["id"].tolist()}
        return {EndpointId(number) for number in found}

    def set_hosts(self, texts: Iterable[str]) -> None:
        """Make exactly these addresses the node's own (ENDPOINT_HOST); raises OSError."""
        keys, values = self._endpoints.dump()
        present = set(packing.raw_rows(keys[(values["flags"] & self._host_flag) != 0]))
        wanted = {packing.address_bytes(text) for text in texts}
        self._endpoints.remove(np.frombuffer(b"".join(present - wanted), self._address))
        fresh = np.frombuffer(b"".join(sorted(wanted)), self._address)
        value = self._endpoints.values(len(fresh))
        value["identity"], value["flags"] = HOST, self._host_flag
        for error in self._endpoints.put(fresh, value).values():
            raise error

    def _guests(self, values: Array) -> Array:
        guests: Array = values[(values["flags"] & self._host_flag) == 0]
        return guests

    def _remove_stale(self, rows: Sequence[EndpointEntry], ids: set[EndpointId]) -> None:
        """Remove elements of the endpoints in `ids` that `rows` do not name."""
        if not ids:
            return
        wanted = np.array(sorted(ids))
        keep = {packing.address_bytes(text) for row in rows for text in (row.ipv4, row.ipv6)}
        keys, values = self._endpoints.dump()
        mine = np.isin(values["id"], wanted) & ((values["flags"] & self._host_flag) == 0)
        stale = [raw for raw in packing.raw_rows(keys[mine]) if raw not in keep]
        if stale:
            self._endpoints.remove(np.frombuffer(b"".join(stale), self._address))
            self.gone += map(packing.address_text, stale)
        numbers, senders = self._ifaces.dump()
        interfaces = np.isin(senders["endpoint"]["id"], wanted)
        interfaces &= ~np.isin(numbers, [row.ifindex for row in rows])
        self._ifaces.remove(numbers[interfaces])
