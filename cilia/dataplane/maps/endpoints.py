"""Maps `endpoints` (address to endpoint) and `ifaces` (interface to sender).

An endpoint row becomes one element of `ifaces` and one of `endpoints` per address. The receiver's side
is written last and removed first: who can be reached can also answer. The host's row stands behind every
address of the node; which those are is told apart (`set_hosts`), since they come and go by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map
from cilia.dataplane.maps import packing
from cilia.dataplane.maps.packing import Content
from cilia.model.endpoint import HOST_ENDPOINT, EndpointEntry
from cilia.model.identity import HOST
from cilia.model.ids import EndpointId


class Traces(NamedTuple):
    """What one endpoint has in the kernel."""

    ifindexes: set[int]
    addresses: set[bytes]


class Endpoints:
    """Target of `Desired.endpoint_entries`."""

    def __init__(self, endpoints: Map, ifaces: Map, layout: abi.Layout) -> None:
        self._endpoints = endpoints
        self._ifaces = ifaces
        self._address = layout.dtype("address")
        self._host_flag = layout.value("ENDPOINT_HOST")
        self._present = self._read()
        self._host = self._adopt_host()
        self.host_judged: bool | None = None
        """Whether the host's policy is to be asked; None: nobody has said yet."""
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

    def contents(self, rows: Sequence[EndpointEntry]) -> list[Content[EndpointId]]:
        """What the maps have for the rows; the host's is not among them."""
        rows = [row for row in rows if not self._is_host(row)]
        return self._contents(rows, *self.desired(rows))

    def maps(self) -> list[Map]:
        """All that it writes."""
        return [self._ifaces, self._endpoints]

    def is_host(self, content: Array) -> Array:
        """Which values of `endpoints` are the node's own addresses."""
        own: Array = (content["flags"] & self._host_flag) != 0
        return own

    def host_content(self, texts: Iterable[str]) -> Content[EndpointId]:
        """What `endpoints` has for the node's own addresses."""
        keys = packing.addresses(texts, self._address)
        return Content(self._endpoints, keys, np.repeat(self._host, len(keys)), [HOST_ENDPOINT] * len(keys))

    def update(self, rows: Sequence[EndpointEntry]) -> dict[EndpointId, str]:
        """Write the rows; what an endpoint had before and has no longer goes."""
        failures = {row.id: why for row in rows if self._is_host(row) and (why := self._update_host(row))}
        rows = [row for row in rows if not self._is_host(row)]
        keys, values = self.desired(rows)
        self._remove_stale(rows, [row.id for row in rows])
        for row in rows:
            self._present[row.id] = Traces({row.ifindex}, _addresses(row))
        for content in self._contents(rows, keys, values):
            written = content.map.put(content.keys, content.values)
            sentences = packing.sentences(content.map, written)
            failures |= {content.owners[at]: why for at, why in sentences.items()}
        return failures

    def delete(self, keys: Sequence[EndpointId]) -> dict[EndpointId, str]:
        """Remove everything that carries one of the endpoint ids; the host only stops being judged."""
        if HOST_ENDPOINT in keys:
            self.host_judged = False
        self._remove_stale([], keys)
        return {}

    def prune(self, keep: Iterable[EndpointEntry]) -> int:
        """Remove all endpoints but these (and the node's own addresses)."""
        strangers = self.ours() - {row.id for row in keep}
        self._remove_stale([], strangers)
        return len(strangers)

    def ours(self) -> set[EndpointId]:
        """Ids of the endpoints in the kernel."""
        return set(self._present)

    def set_hosts(self, texts: Iterable[str]) -> None:
        """Make exactly these addresses the node's own (ENDPOINT_HOST); raises OSError."""
        keys, values = self._endpoints.dump()
        present = set(packing.raw_rows(keys[(values["flags"] & self._host_flag) != 0]))
        wanted = {packing.address_bytes(text) for text in texts}
        self._endpoints.remove(np.frombuffer(b"".join(present - wanted), self._address))
        fresh = np.frombuffer(b"".join(sorted(wanted)), self._address)
        for error in self._endpoints.put(fresh, np.repeat(self._host, len(fresh))).values():
            raise error

    def _contents(
        self, rows: Sequence[EndpointEntry], keys: Array, values: Array
    ) -> list[Content[EndpointId]]:
        """The sender's side first, then the receiver's."""
        owners: list[EndpointId] = []
        texts: list[str] = []
        positions: list[int] = []
        for at, row in enumerate(rows):
            for text in filter(None, (row.ipv4, row.ipv6)):
                owners.append(row.id)
                texts.append(text)
                positions.append(at)
        addresses = packing.addresses(texts, self._address)
        return [
            Content(self._ifaces, keys, values, [row.id for row in rows]),
            Content(self._endpoints, addresses, values["endpoint"][positions], owners),
        ]

    def _is_host(self, row: EndpointEntry) -> bool:
        return bool(row.flags & self._host_flag)

    def _update_host(self, row: EndpointEntry) -> str:
        """Give all addresses of the node the host's row; returns why one could not have it."""
        self._host = self._host_value(row.id, row.subject)
        keys, values = self._endpoints.dump()
        keys = keys[(values["flags"] & self._host_flag) != 0]
        failures = self._endpoints.put(keys, np.repeat(self._host, len(keys)))
        self.host_judged = row.judged
        return next(iter(packing.sentences(self._endpoints, failures).values()), "")

    def _host_value(self, number: int, subject: int) -> Array:
        value = self._endpoints.values(1)
        value["identity"], value["flags"] = HOST, self._host_flag
        value["id"], value["subject"] = number, subject
        return value

    def _adopt_host(self) -> Array:
        """The host's row as an earlier agent left it: its policy goes on."""
        _, values = self._endpoints.dump()
        hosts = values[(values["flags"] & self._host_flag) != 0]
        subject = int(hosts["subject"].max()) if len(hosts) else 0
        return self._host_value(HOST_ENDPOINT, subject)

    def _read(self) -> dict[EndpointId, Traces]:
        """What each endpoint has in the kernel: an earlier agent may have left it."""
        found: dict[EndpointId, Traces] = {}
        keys, values = self._endpoints.dump()
        guests = (values["flags"] & self._host_flag) == 0
        for raw, number in zip(packing.raw_rows(keys[guests]), values["id"][guests].tolist(), strict=True):
            found.setdefault(EndpointId(number), Traces(set(), set())).addresses.add(raw)
        numbers, senders = self._ifaces.dump()
        for index, number in zip(numbers.tolist(), senders["endpoint"]["id"].tolist(), strict=True):
            found.setdefault(EndpointId(number), Traces(set(), set())).ifindexes.add(index)
        return found

    def _remove_stale(self, rows: Sequence[EndpointEntry], ids: Iterable[EndpointId]) -> None:
        """Remove what the endpoints in `ids` have in the kernel and `rows` do not name."""
        addresses = {raw for row in rows for raw in _addresses(row)}
        ifindexes = {row.ifindex for row in rows}
        for number in ids:
            had = self._present.pop(number, Traces(set(), set()))
            for raw in had.addresses - addresses:
                key = np.frombuffer(raw, self._address)[0]
                value = self._endpoints.lookup(key)
                if value is not None and value["id"] == number:
                    self._endpoints.delete(key)
                    self.gone.append(packing.address_text(raw))
            for index in had.ifindexes - ifindexes:
                self._ifaces.delete(np.uint32(index))


def _addresses(row: EndpointEntry) -> set[bytes]:
    return {packing.address_bytes(text) for text in (row.ipv4, row.ipv6) if text}
