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


def held_back(suppressed: Map, layout: Layout) -> dict[str, int]:
    """Events that token buckets kept out of the rings, by what they were: drops by the bucket of their
    endpoint and reason (drop_bucket), the others by the node's limit (drop, trace, verdict, socket).

    The map forgets rules that are long unused, so a number may become smaller.
    """
    kinds, of_ring = layout.enum("event_kind"), layout.value("BUCKET_EVENTS")
    keys, values = suppressed.dump()
    reasons, totals = keys["reason"], values.astype(np.int64)
    found = {"drop_bucket": int(totals[reasons & of_ring == 0].sum())}
    for kind in kinds:
        found[kind.name.removeprefix("EVENT_").lower()] = int(totals[reasons == of_ring | kind].sum())
    return found
