"""Maps `service_flows` and `snat`: flows that are translated on their way, swept and counted.

A translation lives as long as what it serves. A sweep of `conntrack` and of `service_flows` notes the flows
that are left (`FlowSet`); one of `snat` then keeps the entries of these flows, and those used since the round
began, whose flow may have come since. Generators all, one bounded run of entries per step.

Ports of the node are used up towards one peer at a time, since a translation's way back is known by the
peer's address and port, too: `PortUsage` finds the peers that use most.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map
from cilia.dataplane.maps import packing
from cilia.dataplane.maps.conntrack import CHUNK, GRACE, OWNERS, Look, Pick, ignore, keep, mend

FRESH = 60
"""Seconds a translation stays after its last use, whether its flow was seen or not: it may serve answers that
go on without a word of the client. Not of TCP and SCTP, whose clients always say something: with a minute
more for each connection, no more than a thousand could be opened in a second."""
FRESH_TOLD = 300
"""The same for TCP and SCTP, of what a backend was told: the node itself, as a backend, has no other flow."""
STREAMS = (socket.IPPROTO_TCP, socket.IPPROTO_SCTP)
PINGS = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)
TABLE_SHARE = 16
"""Places of a flow set per flow: of flows that are gone, one in so many is taken for one that is not."""
TABLE_LIMIT = 1 << 24
PEERS = 1 << 16
"""Peers whose ports are counted; with more, the smallest counts are dropped now and then."""
MULTIPLIERS = tuple(np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


class FlowSet:
    """Flows, whichever way round: by a hash that differs from set to set, so that no two flows are taken
    for one in every sweep. `flows`: about how many there may be."""

    def __init__(self, flows: int, salt: int) -> None:
        size = min(TABLE_LIMIT, 1 << max(10, (flows * TABLE_SHARE - 1).bit_length()))
        self._table = np.zeros(size, bool)
        self._shift = np.uint64(64 - (size.bit_length() - 1))
        self._salt = np.uint64(salt | 1)

    def add(self, one: Array, one_port: Array, other: Array, other_port: Array, protocol: Array) -> None:
        """Remember flows between two ends (struct address, port); of pings `one_port` is the identifier, and
        `other_port` does not count."""
        self._table[self._places(one, one_port, other, other_port, protocol)] = True

    def has(self, one: Array, one_port: Array, other: Array, other_port: Array, protocol: Array) -> Array:
        """Which of the flows were (probably) added."""
        found: Array = self._table[self._places(one, one_port, other, other_port, protocol)]
        return found

    def _places(self, one: Array, one_port: Array, other: Array, other_port: Array, protocol: Array) -> Array:
        ping = np.isin(protocol, PINGS)
        first, second = one_port.astype(np.uint64), other_port.astype(np.uint64)
        sides = self._end(one, np.where(ping, 0, first)) + self._end(other, np.where(ping, 0, second))
        sides += np.where(ping, first, 0).astype(np.uint64) * MULTIPLIERS[1]
        sides += protocol.astype(np.uint64) * MULTIPLIERS[2]
        return (_stir(sides) * self._salt) >> self._shift

    def _end(self, address: Array, port: Array) -> Array:
        return _stir(
            (address["hi"] * MULTIPLIERS[0] ^ address["lo"]) * MULTIPLIERS[1] + port.astype(np.uint64)
        )


def _stir(numbers: Array) -> Array:
    numbers = (numbers ^ numbers >> np.uint64(29)) * MULTIPLIERS[2]
    stirred: Array = numbers ^ numbers >> np.uint64(32)
    return stirred


class ServiceFlows:
    """Flows that are translated packet by packet towards a service. Those of pods are paid for, as tracked
    flows are."""

    def __init__(self, flows: Map, quota: Map) -> None:
        self._map = flows
        self._quota = quota.memory()
        self.entries: int | None = None
        """Left by the last whole sweep."""

    def sweep(
        self, now: Callable[[], int], look: Look = ignore, unwanted: Pick = keep
    ) -> Iterator[int | None]:
        """Remove what expired or is unwanted; yields None per step, the count at the end. `now`: coarse
        seconds; `look` is shown the flows that are left."""
        opened, closed = self._quota["service_opened"], self._quota["service_closed"]
        before, owned = opened.copy(), np.zeros(OWNERS, np.int64)
        removed = left = 0
        for keys, values in self._map.batches(CHUNK):
            old = (values["expires"].astype(np.int64) + GRACE < now()) | unwanted(keys, values)
            if old.any():
                removed += self._map.remove(keys[old])
                np.add.at(closed, values["owner"][old & (values["owner"] > 0)], np.uint64(1))
                keys, values = keys[~old], values[~old]
            left += len(keys)
            np.add.at(owned, values["owner"][values["owner"] > 0], 1)
            look(keys, values)
            yield None
        mend(before, owned, opened, closed)
        self.entries = left
        yield removed


class Translations:
    """Map `snat`."""

    def __init__(self, snat: Map, layout: abi.Layout) -> None:
        self._map = snat
        self._reverse, self._told = layout.value("NAT_REVERSE"), layout.value("NAT_DSR")
        self.entries: int | None = None
        """Left by the last whole sweep."""

    def sweep(
        self,
        begun: int,
        now: Callable[[], int],
        alive: FlowSet,
        look: Look = ignore,
        *,
        hurried: bool = False,
    ) -> Iterator[int | None]:
        """Remove translations whose flow is not alive and that were not used for a while, or, hurried, for a
        moment; yields None per step, the count at the end. `begun`: when flows were looked at first, and
        `now`, both in coarse seconds; `look` is shown the translations that are left."""
        grace = 0 if hurried else GRACE
        removed = left = 0
        for keys, values in self._map.batches(CHUNK):
            stream = np.isin(keys["protocol"], STREAMS)
            fresh = np.where(stream, np.where(keys["way"] == self._told, FRESH_TOLD, 0), FRESH)
            used = values["seen"].astype(np.int64)
            old = (used + fresh < now()) & (used + grace < begun)
            if old.any():
                old[old] = ~self._serves(keys[old], values[old], alive)
                removed += self._map.remove(keys[old])
                keys, values = keys[~old], values[~old]
            left += len(keys)
            look(keys, values)
            yield None
        self.entries = left
        yield removed

    def _serves(self, keys: Array, values: Array, alive: FlowSet) -> Array:
        """Which entries belong to a flow that is alive. The way there and what a backend's node was told are
        known by the flow itself; the way back says in its value whose it is."""
        back = keys["way"] == self._reverse
        one = keys["source"].copy()
        one[back] = values["address"][back]
        peer = keys["destination"].copy()
        peer[back] = keys["source"][back]
        one_port = np.where(back, values["port"], keys["source_port"])
        peer_port = np.where(back, keys["source_port"], keys["destination_port"])
        return alive.has(one, one_port, peer, peer_port, keys["protocol"])


class PortUse(msgspec.Struct, frozen=True, order=True):
    """Ports of this node in use towards one address and port of the outside."""

    used: int
    protocol: int
    peer: str
    port: int
    """0 for pings, which have none."""
    address: str
    """Of this node."""


class PortSample(msgspec.Struct, frozen=True):
    """What one whole sweep of `snat` found."""

    time: float
    """Seconds, monotonic."""
    limit: int
    """Ports there are, towards each peer."""
    heaviest: tuple[PortUse, ...] = ()
    """Most used first."""
    total: int = 0
    """Translations with a port of this node."""
    owners: tuple[tuple[int, int], ...] = ()
    """(translations, endpoint) of those who hold most, most first; endpoint 0: clients outside, of services
    with a backend on another node, and the node itself."""


class PortForecast(msgspec.Struct, frozen=True):
    """A peer towards which ports may run out."""

    use: PortUse
    limit: int
    share: float
    """Of the limit, 0..1."""
    seconds: float | None
    """Until none is left at the present pace; None: not in sight."""


def forecast(before: PortSample | None, after: PortSample) -> list[PortForecast]:
    """How long ports last towards the heaviest peers, by what two sweeps found; most urgent first."""
    elapsed = after.time - before.time if before is not None else 0.0
    former = {_peer(use): use.used for use in before.heaviest} if before is not None else {}
    found = []
    for use in after.heaviest:
        growth = use.used - former.get(_peer(use), use.used)
        left = max(0, after.limit - use.used)
        seconds = 0.0 if not left else left * elapsed / growth if growth > 0 and elapsed > 0 else None
        found.append(PortForecast(use, after.limit, use.used / max(1, after.limit), seconds))
    return sorted(
        found, key=lambda one: (one.seconds if one.seconds is not None else float("inf"), -one.share)
    )


def _peer(use: PortUse) -> tuple[Any, ...]:
    return use.protocol, use.peer, use.port, use.address


class PortUsage:
    """Counts the ways back among translations, chunk by chunk, in bounded memory: when there are too many
    peers, the lower half of them is dropped and begins anew when it comes again."""

    def __init__(self, layout: abi.Layout) -> None:
        self._reverse = layout.value("NAT_REVERSE")
        address = layout.dtype("address")
        self._group = np.dtype([("peer", address), ("own", address), ("port", "<u2"), ("protocol", "<u2")])
        self._counts: Counter[bytes] = Counter()
        self._owners = np.zeros(1 << 16, np.int64)
        self.total = 0

    def look(self, keys: Array, values: Array) -> None:
        """Count translations."""
        back = keys["way"] == self._reverse
        keys = keys[back]
        if not len(keys):
            return
        self._owners += np.bincount(values["endpoint"][back], minlength=len(self._owners))
        groups = np.zeros(len(keys), self._group)
        groups["peer"], groups["own"] = keys["source"], keys["destination"]
        groups["port"] = np.where(np.isin(keys["protocol"], PINGS), 0, keys["source_port"])
        groups["protocol"] = keys["protocol"]
        self.total += len(groups)
        self._counts.update(packing.raw_rows(groups))
        if len(self._counts) > PEERS:
            self._drop_small()

    def sample(self, time: float, limit: int, top: int) -> PortSample:
        """What was counted, with the `top` heaviest peers."""
        rows = [(np.frombuffer(raw, self._group)[0], used) for raw, used in self._counts.most_common(top)]
        uses = [
            PortUse(
                used,
                int(row["protocol"]),
                packing.address_text(row["peer"].tobytes()),
                int(row["port"]),
                packing.address_text(row["own"].tobytes()),
            )
            for row, used in rows
        ]
        owners = np.argsort(self._owners)[: -top - 1 : -1].tolist()
        held = tuple((int(self._owners[owner]), owner) for owner in owners if self._owners[owner])
        return PortSample(time, limit, tuple(sorted(uses, reverse=True)), self.total, held)

    def _drop_small(self) -> None:
        used = np.fromiter(self._counts.values(), np.int64, len(self._counts))
        least = np.partition(used, len(used) // 2)[len(used) // 2]
        self._counts = Counter({raw: used for raw, used in self._counts.items() if used > least})
