"""From the kernel's rings into Hubble's store."""

from __future__ import annotations

import time

from cilia.apps.agent.socket_owners import SocketOwners
from cilia.dataplane.ringbuf import Batch
from cilia.hubble.store import FlowStore, Loss


def clock_offset() -> int:
    """Wall clock minus the kernel's monotonic clock, in nanoseconds: the closest of a few readings."""
    best, width = 0, 1 << 62
    for _ in range(5):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        wall = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if after - before < width:
            best, width = wall - (before + after) // 2, after - before
    return best


class FlowPump:
    """Appends what the rings give; measures the clocks' distance anew now and then."""

    def __init__(self, store: FlowStore, owners: SocketOwners | None = None) -> None:
        """`owners`: who finds out whose sockets are spoken of."""
        self._store = store
        self._owners = owners
        self._offset = clock_offset()
        self._measured = time.monotonic()

    def take(self, batch: Batch) -> None:
        """Store one drain of both rings."""
        now = time.monotonic()
        if now - self._measured > 10.0:
            self._offset, self._measured = clock_offset(), now
        self._store.append(
            [batch.events if self._owners is None else self._owners.tell(batch.events)],
            [
                Loss(cpu=gap.cpu, ring=gap.ring, count=gap.count, first=gap.first_time, last=gap.last_time)
                for gap in batch.lost
            ],
            offset=self._offset,
        )
