"""One sentence about Hubble, for `cilia status` and health pages."""

from __future__ import annotations

import msgspec

from cilia.hubble.store import FlowStore, LossSource


class HubbleStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of a store."""

    current_flows: int
    max_flows: int
    seen_flows: int
    lost_events: int
    """Between kernel and store."""
    overwritten: int
    """Rows followers did not read in time."""
    suppressed: int
    """Events the data path held back on purpose."""
    flows_per_second: float

    def sentence(self) -> str:
        """`4096/65536 flows (6.2 %), 12.3 flows/s, none lost`."""
        share = 100 * self.current_flows / self.max_flows
        lost = f"{self.lost_events} lost" if self.lost_events else "none lost"
        held = f", {self.suppressed} held back" if self.suppressed else ""
        return (
            f"{self.current_flows}/{self.max_flows} flows ({share:.1f} %), "
            f"{self.flows_per_second:.1f} flows/s, {lost}{held}"
        )


def status(store: FlowStore, now: int) -> HubbleStatus:
    """The store's counters; `now` in nanoseconds since the Unix epoch."""
    return HubbleStatus(
        current_flows=len(store),
        max_flows=store.capacity,
        seen_flows=store.head,
        lost_events=store.metrics.lost[LossSource.PERF_EVENT_RING_BUFFER],
        overwritten=store.metrics.lost[LossSource.HUBBLE_RING_BUFFER],
        suppressed=store.metrics.suppressed,
        flows_per_second=store.rate(now),
    )
