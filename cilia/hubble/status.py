"""One sentence about Hubble, for `cilia status` and health pages; and how complete its answers are.

ServerStatusResponse has no field for that. It travels as a message of a standard type in a field that other
clients skip: number 150000, which Flow and GetFlowsRequest have for extensions, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec
from google.protobuf import any_pb2, struct_pb2
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from cilia.hubble.encode import block
from cilia.hubble.store import FlowStore, LossSource
from cilia.proto.observer import observer_pb2


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


EXTENSIONS = 150_000
"""Field number of `extensions` (google.protobuf.Any) in Hubble's messages."""


class Completeness(msgspec.Struct, frozen=True, kw_only=True):
    """How much of what the data path reported this node has seen, and how far back its answers go."""

    seen: int
    """Flows since the agent's start."""
    lost: int
    """Events the kernel could not hand over."""
    held_back: int
    """Events that token buckets held back on purpose."""
    oldest: int
    """Nanoseconds since the Unix epoch: from here on all flows are kept. 0: nobody remembers, as below."""
    oldest_important: int
    """From here on drops and audits are kept."""
    lost_since: int = 0
    """When the first of the events was lost; 0: none is remembered."""

    @property
    def percent(self) -> float:
        """Of what the data path reported, rounded down to hundredths."""
        total = self.seen + self.lost
        return 10_000 * self.seen // total / 100 if total else 100.0

    def sentence(self) -> str:
        """`99.7 % complete, missing <= 12 events`."""
        return f"{self.percent} % complete, missing <= {self.lost} events" if self.lost else "complete"

    def extension(self) -> bytes:
        """A field to append to a serialised ServerStatusResponse."""
        told = struct_pb2.Struct()
        # Doubles hold integers up to 2^53 only; times in nanoseconds are longer.
        told.update({name: str(number) for name, number in msgspec.structs.asdict(self).items()})
        packed = any_pb2.Any()
        packed.Pack(told)
        return block(EXTENSIONS, packed.SerializeToString())


def completeness(store: FlowStore) -> Completeness:
    """The store's."""
    first = store.losses[0].first if store.losses else 0
    return Completeness(
        seen=store.head,
        lost=store.metrics.lost[LossSource.PERF_EVENT_RING_BUFFER],
        held_back=store.metrics.suppressed,
        oldest=store.time_of(store.oldest),
        oldest_important=store.time_of(store.first),
        lost_since=first,
    )


def completeness_of(response: observer_pb2.ServerStatusResponse) -> Completeness | None:
    """What a server told of itself; None from servers that don't, or not in these words."""
    for field in cast(Iterable[Any], UnknownFieldSet(response)):
        if field.field_number == EXTENSIONS and isinstance(field.data, bytes):
            told, packed = struct_pb2.Struct(), any_pb2.Any()
            with suppress(DecodeError, msgspec.ValidationError):
                packed.ParseFromString(field.data)
                if packed.Unpack(told):
                    return msgspec.convert(dict(told), Completeness, strict=False)
    return None


def together(told: Sequence[Completeness]) -> Completeness:
    """Of several nodes, at least one: all counted, and kept from when on each of them keeps it."""
    since = [each.lost_since for each in told if each.lost_since]
    return Completeness(
        seen=sum(each.seen for each in told),
        lost=sum(each.lost for each in told),
        held_back=sum(each.held_back for each in told),
        oldest=max(each.oldest for each in told),
        oldest_important=max(each.oldest_important for each in told),
        lost_since=min(since, default=0),
    )
