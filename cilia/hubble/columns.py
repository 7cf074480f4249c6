"""How this room sees a batch of events: the fields it needs, and fast views of them.

The layout is `struct event` of bpf/abi/event.h; whoever hands in batches takes the dtype from the compiled
object. Only names matter here, not offsets.
"""

from __future__ import annotations

from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

Events: TypeAlias = npt.NDArray[np.void]
"""Shape (n,), contiguous, of a dtype with at least FIELDS."""

Words: TypeAlias = npt.NDArray[np.uint64]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Refs: TypeAlias = npt.NDArray[np.uint32]
"""Indexes into an interner's values."""

Mask: TypeAlias = npt.NDArray[np.bool_]
Times: TypeAlias = npt.NDArray[np.int64]
"""Nanoseconds since the Unix epoch."""

FIELDS = tuple(
    """
    time sequence source destination original_source original_destination tunnel socket_cookie cgroup
    egress_cookie ingress_cookie source_identity destination_identity source_endpoint destination_endpoint
    source_port destination_port original_source_port original_destination_port proxy_port line length
    ifindex vni suppressed cpu vlan source_mac destination_mac kind point verdict reason file protocol
    icmp_type icmp_code tcp_flags direction state flags egress_match ingress_match auth ring service
    """.split()  # noqa: SIM905
)

KIND_DROP = 1
KIND_TRACE = 2
KIND_VERDICT = 3
KIND_SOCKET = 4

VERDICT_FORWARDED = 1
VERDICT_DROPPED = 2
VERDICT_AUDIT = 4
VERDICT_REDIRECTED = 5
"""Of flow.Verdict."""

REASON_NO_BACKEND = 158
"""A packet or a socket asked for a service that nobody serves (flow.DropReason)."""

PRE_REVERSE = 3
"""From this point on socket events are about what comes back to the socket
(flow.SocketTranslationPoint)."""

FLAG_REPLY = 1
FLAG_IPV6 = 2
FLAG_ENCRYPTED = 4
FLAG_JUDGED_APART = 32
"""Of a trace: what was judged is told by events of its own."""

INGRESS = 1
EGRESS = 2


def check_layout(dtype: np.dtype[np.void]) -> None:
    """Raise ValueError when a field this room needs is missing."""
    missing = [name for name in FIELDS if name not in (dtype.names or ())]
    if missing:
        raise ValueError(f"the event layout lacks {', '.join(missing)}: rebuild the eBPF object")


def octets(events: Events, name: str) -> Bytes:
    """The raw bytes of a field: shape (n, size), a view."""
    dtype, offset = events.dtype.fields[name][:2]  # type: ignore[index]
    flat = events.view(np.uint8).reshape(len(events), events.dtype.itemsize)
    return flat[:, offset : offset + dtype.itemsize]


def void(rows: Bytes) -> list[bytes]:
    """Each row of a contiguous array as bytes."""
    return cast(list[bytes], rows.view(np.dtype((np.void, rows.shape[1]))).ravel().tolist())


def blobs(events: Events) -> Events:
    """The same memory as opaque records: numpy copies those whole, and structured ones field by field."""
    return events.view(np.dtype((np.void, events.dtype.itemsize)))


def address_words(events: Events, name: str) -> tuple[Words, Words]:
    """The two halves of an address as raw words: good for equality and masks, not for order."""
    words = octets(events, name).view(np.uint64)
    return words[:, 0], words[:, 1]


def equal(events: Events, name: str, value: int) -> Mask:
    """Where a column has a value."""
    return np.asarray(events[name] == value, np.bool_)


def flagged(events: Events, flag: int) -> Mask:
    """Where a bit of `flags` is set."""
    return np.asarray((events["flags"] & flag) != 0, np.bool_)


def important(events: Events) -> Mask:
    """Drops, what else ended here, and what audit let pass: what is worth keeping when traces and allowed
    connections flood the ring."""
    kind, verdict = events["kind"], events["verdict"]
    denied = (kind == KIND_VERDICT) & (verdict != VERDICT_FORWARDED) & (verdict != VERDICT_REDIRECTED)
    return np.asarray((kind == KIND_DROP) | denied | (verdict == VERDICT_DROPPED))


def translated(events: Events) -> Mask:
    """Which packets left with another source than their sender gave them."""
    high, low = address_words(events, "original_source")
    return np.asarray((high | low) != 0, np.bool_)


def service_is_source(events: Events) -> Mask:
    """Where the service that the initiator asked for stands on the source's side."""
    socket = events["kind"] == KIND_SOCKET
    return np.where(socket, events["point"] >= PRE_REVERSE, flagged(events, FLAG_REPLY))


def service_key(events: Events) -> list[Words]:
    """What names the service of a flow, in three words: the frontend's number; of packets that ended before
    they were translated where they went, and whether any address of the node will do."""
    high, low = address_words(events, "destination")
    numbered = events["service"] != 0
    asked = ~numbered & (events["kind"] == KIND_DROP)
    port = events["destination_port"].astype(np.uint64) << np.uint64(8) | events["protocol"]
    port |= (events["reason"] == REASON_NO_BACKEND).astype(np.uint64) << np.uint64(24)
    zero = np.uint64(0)
    word = np.where(asked, port, events["service"].astype(np.uint64) << np.uint64(32))
    return [np.where(asked, high, zero), np.where(asked, low, zero), word]


def sender_words(events: Events) -> tuple[Words, Words]:
    """The address the sender used: of a translated packet the original source."""
    high, low = address_words(events, "source")
    was = translated(events)
    if not was.any():
        return high, low
    before_high, before_low = address_words(events, "original_source")
    return np.where(was, before_high, high), np.where(was, before_low, low)
