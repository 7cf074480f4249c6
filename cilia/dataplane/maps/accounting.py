"""What policy entries did: map `policy_counters`, and the flows that `conntrack` holds or held.

    policy_counters   packets that an entry judged, and those that dropped by what it had said: the hits
    conntrack         packets and bytes of the flows that an entry let pass, while they live ...
    closed            ... and in memory of those that a sweep removed since the agent started

The counters are pinned and outlive the agent. A key under direction 0, which no entry has, keeps the moment
they began. Keys of entries that are gone are removed by `prune`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator

import msgspec
import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map, Update, possible_cpus
from cilia.dataplane.maps.conntrack import CHUNK
from cilia.model.ids import Cookie, SubjectId
from cilia.model.policy import Direction, EntryKey

ENDPOINTS = 65536
DENIED = np.uint64(1) << np.uint64(63)
ICMP_PROTOCOLS = (1, 58)
"""Their policy port is the type of the request (ICMP, ICMPv6)."""
PROTOCOL_BITS = 8
PORT_BITS = 16
NOBODY = 0
"""No subject has this number."""


class Account(msgspec.Struct, frozen=True, order=True):
    """An entry of one subject under the cookie it had."""

    subject: SubjectId
    key: EntryKey
    cookie: Cookie


class Usage(msgspec.Struct, frozen=True):
    """What was done by an entry."""

    hits: int = 0
    """Packets it judged, or that dropped by what it had said."""
    packets: int = 0
    """Of its flows, in both directions; of a denial the hits."""
    bytes: int = 0
    last: int = 0
    """When a flow of it was last judged or a packet dropped by it: coarse seconds of CLOCK_MONOTONIC; 0: not
    known."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.hits + other.hits,
            self.packets + other.packets,
            self.bytes + other.bytes,
            max(self.last, other.last),
        )


Usages = dict[Account, Usage]


class Accounting:
    """Reads the counters; remembers closed flows."""

    def __init__(self, counters: Map, conntrack: Map, layout: abi.Layout) -> None:
        self._counters = counters
        self._conntrack = conntrack
        self._key = layout.dtype("policy_counter_key")
        self._initiator_high = layout.value("CT_INITIATOR_HIGH")
        self._type_mask = layout.value("CT_ICMP_TYPE_MASK")
        self._subjects = np.zeros(ENDPOINTS, np.uint16)
        self._closed: Usages = {}
        self.entries = 0
        """How many counters there were at the last `prune`."""

    def began(self, now: int) -> int:
        """When the counters began, in coarse monotonic seconds; noted as `now` if nobody did so before, and
        taken for `now` while the map is too full to note it."""
        mark = self._counters.keys(1)
        found = self._counters.lookup(mark)
        if found is not None:
            return int(found["last"].max())
        values = np.zeros(possible_cpus(), self._counters.value)
        values["last"] = now
        try:
            self._counters.update(mark, values, Update.ANY)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
        return now

    def follow(self, subjects: Iterable[tuple[int, int]]) -> None:
        """Learn the subject of each endpoint (pairs of numbers); flows know only endpoints."""
        table = np.zeros(ENDPOINTS, np.uint16)
        for endpoint, subject in subjects:
            table[endpoint] = subject
        self._subjects = table

    def close(self, keys: Array, values: Array) -> None:
        """Remember flows that are about to be removed."""
        for account, usage in self._of_flows(keys, values).items():
            self._closed[account] = self._closed.get(account, Usage()) + usage

    def usage(self) -> Usages:
        """What every entry did so far. Reads whole maps: not for the event loop."""
        found = dict(self._closed)
        for keys, values in self._conntrack.batches(CHUNK):
            for account, usage in self._of_flows(keys, values).items():
                found[account] = found.get(account, Usage()) + usage
        for account, counted in self._counted():
            flows = found.get(account, Usage())
            # The first packet of a flow is in both.
            found[account] = Usage(
                hits=counted.hits,
                packets=max(counted.packets, flows.packets),
                bytes=max(counted.bytes, flows.bytes),
                last=max(counted.last, flows.last),
            )
        return found

    def prune(self, stands: Callable[[Account], bool]) -> Iterator[int | None]:
        """Forget accounts that do not stand any more; yields None after each bounded step, the count at the
        end."""
        found = removed = 0
        for keys, _ in self._counters.batches(CHUNK):
            found += len(keys)
            gone = [
                at
                for at, account in enumerate(self._accounts(keys))
                if account.key.direction and not stands(account)
            ]
            removed += self._counters.remove(keys[gone])
            yield None
        for account in [account for account in self._closed if not stands(account)]:
            del self._closed[account]
        self.entries = found - removed
        yield removed

    def _counted(self) -> Iterator[tuple[Account, Usage]]:
        for keys, values in self._counters.batches(CHUNK):
            per_cpu = values.reshape(len(keys), -1)
            packets = per_cpu["packets"].sum(axis=1).tolist()
            octets = per_cpu["bytes"].sum(axis=1).tolist()
            last = per_cpu["last"].max(axis=1).tolist()
            for at, account in enumerate(self._accounts(keys)):
                if account.key.direction:
                    yield account, Usage(packets[at], packets[at], octets[at], last[at])

    def _accounts(self, keys: Array) -> list[Account]:
        columns = (
            keys[name].tolist() for name in ("subject", "direction", "peer", "protocol", "port", "bits")
        )
        return [
            Account(SubjectId(subject), EntryKey(direction, peer, protocol, port, bits), Cookie(cookie))
            for subject, direction, peer, protocol, port, bits, cookie in zip(
                *columns, keys["cookie"].tolist(), strict=True
            )
        ]

    def _of_flows(self, keys: Array, values: Array) -> Usages:
        """The packets and bytes of flows by the entries that allowed them, summed in vector steps."""
        found: Usages = {}
        for index, direction in ((0, Direction.EGRESS), (1, Direction.INGRESS)):
            side = values["side"][:, index]
            subjects = self._subjects[side["endpoint"]]
            mine = (side["judged"] != 0) & ((side["judged"] & DENIED) == 0) & (subjects != NOBODY)
            if mine.any():
                names = self._names(keys[mine], values[mine], index, direction, subjects[mine])
                unique, inverse = np.unique(names.view((np.void, self._key.itemsize)), return_inverse=True)
                packets = self._sums(values[mine]["packets"], inverse, len(unique))
                octets = self._sums(values[mine]["bytes"], inverse, len(unique))
                for at, account in enumerate(self._accounts(unique.view(self._key))):
                    found[account] = found.get(account, Usage()) + Usage(0, packets[at], octets[at])
        return found

    def _names(self, keys: Array, values: Array, index: int, direction: Direction, subjects: Array) -> Array:
        """The counter key of the entry that judged one side of each flow."""
        side = values["side"][:, index]
        bits = values["prefix"][:, index].astype(np.uint32)
        initiator_high = (values["flags"] & self._initiator_high) != 0
        port = np.where(initiator_high, keys["low_port"], keys["high_port"]).astype(np.uint32)
        icmp = np.isin(keys["protocol"], ICMP_PROTOCOLS)
        port = np.where(icmp, keys["high_port"] & self._type_mask, port)
        port_bits = np.clip(bits.astype(np.int64) - PROTOCOL_BITS, 0, PORT_BITS).astype(np.uint32)
        names = np.zeros(len(keys), self._key)
        names["subject"] = subjects
        names["direction"] = int(direction)
        names["peer"] = np.where(values["any_peer"][:, index] != 0, 0, side["judged"] & np.uint64(0xFFFFFFFF))
        names["protocol"] = np.where(bits >= PROTOCOL_BITS, keys["protocol"], 0)
        names["port"] = port & ~(np.uint32(0xFFFF) >> port_bits) & np.uint32(0xFFFF)
        names["bits"] = bits
        names["cookie"] = side["cookie"]
        return names

    @staticmethod
    def _sums(pairs: Array, inverse: Array, count: int) -> list[int]:
        totals = np.zeros(count, np.uint64)
        np.add.at(totals, inverse.reshape(-1), pairs.sum(axis=1))
        return [int(total) for total in totals]
