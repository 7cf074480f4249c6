"""Maps `counters`, `event_state` and `suppressed`: sums over CPUs, read for metrics."""

from __future__ import annotations

import msgspec
import numpy as np

from cilia.abi import Layout
from cilia.dataplane.bpf import Map, possible_cpus

DIRECTIONS = 4
"""index = reason * 4 + direction (bpf/abi/event.h, struct counter)"""


class Count(msgspec.Struct, frozen=True):
    """Packets and bytes of one reason (0: forwarded) and direction."""

    reason: int
    direction: int
    packets: int
    bytes: int


def counts(counters: Map) -> list[Count]:
    """All counters that are not zero, summed over CPUs."""
    keys, values = counters.dump()
    per_cpu = values.reshape(len(keys), possible_cpus())
    packets, octets = per_cpu["packets"].sum(axis=1), per_cpu["bytes"].sum(axis=1)
    return [
        Count(int(keys[at]) // DIRECTIONS, int(keys[at]) % DIRECTIONS, int(packets[at]), int(octets[at]))
        for at in np.flatnonzero(packets)
    ]


def lost_events(event_state: Map) -> tuple[int, int]:
    """Events that found their ring full since the maps were made: (priority, normal)."""
    values = event_state.lookup(np.uint32(0))
    if values is None:
        return (0, 0)
    lost = values["lost"].sum(axis=0)
    return int(lost[0]), int(lost[1])


def events_taken(event_state: Map) -> tuple[dict[int, int], dict[int, int]]:
    """Sequence numbers taken since the maps were made, by CPU: (priority, normal)."""
    values = event_state.lookup(np.uint32(0))
    if values is None:
        return {}, {}
    taken = values["sequence"].reshape(-1, 2)
    return dict(enumerate(taken[:, 0].tolist())), dict(enumerate(taken[:, 1].tolist()))


class HeldBack:
    """Events that token buckets kept out of the rings, by what they were: drops by the bucket of their
    endpoint and reason (drop_bucket), the others by the node's limit (drop, trace, verdict, socket).

    The map forgets rules that are long unused; what was read of them stays in the sums.
    """

    def __init__(self, suppressed: Map, layout: Layout) -> None:
        self._suppressed = suppressed
        of_ring = layout.value("BUCKET_EVENTS")
        self._kinds = {
            of_ring | kind: kind.name.removeprefix("EVENT_").lower() for kind in layout.enum("event_kind")
        }
        """By the reason of a key."""
        self._last: dict[tuple[int, int, int], int] = {}
        """What the map had of each cookie, endpoint and reason."""
        self._sums = dict.fromkeys(("drop_bucket", *self._kinds.values()), 0)

    def read(self) -> dict[str, int]:
        """Sums that only grow."""
        keys, values = self._suppressed.dump()
        columns = (keys[name].tolist() for name in ("cookie", "endpoint", "reason"))
        found = dict(zip(zip(*columns, strict=True), values.tolist(), strict=True))
        for key, count in found.items():
            before = self._last.get(key, 0)
            # Less than before: forgotten in between, and counted from the beginning.
            self._sums[self._kinds.get(key[2], "drop_bucket")] += count - before if count >= before else count
        self._last = found
        return dict(self._sums)
