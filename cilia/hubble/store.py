"""The columnar ring: the last 2^n events of this node, with their meaning at that time.

A row's number counts from the start of the agent and never repeats; number N lives in slot N mod capacity.
A reader holds a number, not a place: when its number is older than `oldest`, the difference is exactly what
it missed. So slow readers cost no memory and every gap is counted.
"""

from __future__ import annotations

import enum
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from cilia.hubble.columns import (
    KIND_DROP,
    Events,
    Mask,
    Refs,
    Times,
    Words,
    address_words,
    blobs,
    check_layout,
    sender_words,
    service_key,
)
from cilia.hubble.directory import Device, Directory, Party, Service, describe
from cilia.hubble.intern import Interner
from cilia.model.address import unpack
from cilia.model.ids import Cookie
from cilia.model.policy import CookieRow

DEFAULT_CAPACITY = 65_536
KEPT_LOSSES = 1024


class LossSource(enum.IntEnum):
    """Hubble's LostEventSource."""

    PERF_EVENT_RING_BUFFER = 1
    OBSERVER_EVENTS_QUEUE = 2
    HUBBLE_RING_BUFFER = 3


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Events the kernel could not hand over: a gap in the sequence of one CPU and ring."""

    count: int
    cpu: int
    ring: int = 0
    first: int = 0
    """bpf_ktime_get_ns of the last event before the gap; 0 when there was none."""
    last: int = 0
    """bpf_ktime_get_ns of the first event after the gap."""


class LossRow(msgspec.Struct, frozen=True, kw_only=True):
    """A gap as the store keeps it."""

    serial: int
    """Counts the gaps of this store."""
    position: int
    """Number of the row before which it belongs."""
    source: LossSource
    count: int
    cpu: int | None
    first: int
    """Nanoseconds since the Unix epoch."""
    last: int


class Rows(NamedTuple):
    """Some rows of the store, as columns of equal length."""

    numbers: Times
    events: Events
    wall: Times
    source: Refs
    destination: Refs
    egress: Refs
    """Index of the rules the egress cookie stands for."""
    ingress: Refs
    device: Refs
    service: Refs
    """Index of the service that the initiator asked for."""

    def where(self, mask: Mask) -> Rows:
        """A copy with the rows the mask selects."""
        refs = (column[mask] for column in self[3:])
        return Rows(self.numbers[mask], self.events[mask], self.wall[mask], *refs)


class Rules(NamedTuple):
    """The rules behind one side's verdict."""

    row: CookieRow
    revision: int
    """Policy revision of this node when the flow was stored; 0: unknown."""


class Metrics:
    """Plain counters for the agent's /metrics."""

    def __init__(self) -> None:
        self.processed: Counter[tuple[int, int]] = Counter()
        """hubble_flows_processed_total: (event kind, verdict) to number of flows."""
        self.drops: Counter[int] = Counter()
        """hubble_drop_total: reason to number of flows."""
        self.lost: Counter[LossSource] = Counter()
        """hubble_lost_events_total: by source."""
        self.suppressed = 0
        """Events the data path's token buckets held back."""

    def count(self, events: Events) -> None:
        """Add a batch."""
        pairs = np.bincount(events["kind"].astype(np.int64) * 16 + (events["verdict"] & 15))
        for pair in np.flatnonzero(pairs):
            self.processed[(int(pair) // 16, int(pair) % 16)] += int(pairs[pair])
        reasons = np.bincount(events["reason"][events["kind"] == KIND_DROP])
        for reason in np.flatnonzero(reasons):
            self.drops[int(reason)] += int(reasons[reason])
        self.suppressed += int(events["suppressed"].sum(dtype=np.int64))


class FlowStore:
    """The ring and the interners its columns point into."""

    def __init__(
        self, dtype: np.dtype[np.void], directory: Directory, *, capacity: int = DEFAULT_CAPACITY
    ) -> None:
        """`dtype`: of `struct event`; `capacity`: flows kept, a power of two. Raises ValueError."""
        if capacity < 1 or capacity & (capacity - 1):
            raise ValueError(f"the flow capacity must be a power of two, not {capacity}: try 65536")
        check_layout(dtype)
        self.capacity = capacity
        self.boot = secrets.randbits(64) & ~0xF000 | 0x4000
        """First half of the UUID of every row: another store's rows have another."""
        self.head = 0
        """Number of the next row."""
        self.gaps = 0
        """Serial of the next gap."""
        self.metrics = Metrics()
        self.losses: deque[LossRow] = deque(maxlen=KEPT_LOSSES)
        self.listeners: set[Callable[[], None]] = set()
        """Called after each append."""
        self._directory = directory
        self._revision = directory.revision()
        self._service_revision = directory.service_revision()
        self.parties: Interner[Party] = Interner(3, self._party)
        self.rules: Interner[Rules] = Interner(1, self._rules)
        self.devices: Interner[Device] = Interner(1, self._device, bits=10)
        self.services: Interner[Service] = Interner(3, self._service)
        self._last_seen = np.zeros(0, np.int64)
        self._events = np.zeros(capacity, dtype)
        self._blobs = blobs(self._events)
        self._wall = np.zeros(capacity, np.int64)
        self._refs = {name: np.zeros(capacity, np.uint32) for name in Rows._fields[3:]}

    # -- writing ------------------------------------------------------------------------------------------

    def append(self, batches: Iterable[Events], losses: Sequence[Loss] = (), *, offset: int = 0) -> None:
        """Store what both rings gave, merged by time.

        `batches`: arrays of the store's dtype, copied here; `offset`: wall clock minus ktime in
        nanoseconds, measured by the caller. Calls the listeners.
        """
        events = merged(list(batches), self._events.dtype)
        self._keep_losses(losses, offset, events["time"])
        if len(events):
            self._adopt_revision()
            self.metrics.count(events)
            self._write(events[-self.capacity :], len(events), offset)
            self._compact()
        if len(events) or losses:
            for listener in tuple(self.listeners):
                listener()

    def _write(self, events: Events, seen: int, offset: int) -> None:
        """Fill the next slots; `seen` counts rows that a batch larger than the ring left out, too."""
        wall = events["time"].astype(np.int64) + offset
        columns = self._interned(events)
        self.head += seen - len(events)
        start = self.head & (self.capacity - 1)
        room = min(self.capacity - start, len(events))
        targets = [self._blobs, self._wall, *(self._refs[name] for name in columns)]
        for target, values in zip(targets, [blobs(events), wall, *columns.values()], strict=True):
            target[start : start + room] = values[:room]
            target[: len(events) - room] = values[room:]
        self.head += len(events)
        self._note_seen(columns, int(wall[-1]))

    def _interned(self, events: Events) -> dict[str, Refs]:
        return {
            "source": self.parties.refs(party_key(events, "source")),
            "destination": self.parties.refs(party_key(events, "destination")),
            "egress": self.rules.refs([events["egress_cookie"].astype(np.uint64)]),
            "ingress": self.rules.refs([events["ingress_cookie"].astype(np.uint64)]),
            "device": self.devices.refs([events["ifindex"].astype(np.uint64)]),
            "service": self._services_of(events),
        }

    def _services_of(self, events: Events) -> Refs:
        """Most batches on most nodes are about no service at all."""
        if events["service"].any() or (events["kind"] == KIND_DROP).any():
            return self.services.refs(service_key(events))
        return np.repeat(self.services.refs([np.zeros(1, np.uint64)] * 3), len(events))

    def _note_seen(self, columns: dict[str, Refs], now: int) -> None:
        missing = len(self.parties.values) - len(self._last_seen)
        if missing > 0:
            self._last_seen = np.concatenate([self._last_seen, np.zeros(missing + 64, np.int64)])
        self._last_seen[columns["source"]] = now
        self._last_seen[columns["destination"]] = now

    def _keep_losses(self, losses: Sequence[Loss], offset: int, times: Words) -> None:
        """File gaps before the first event after them; `times`: ktime of the batch they came with."""
        for loss in sorted(losses, key=lambda loss: loss.last):
            self.metrics.lost[LossSource.PERF_EVENT_RING_BUFFER] += loss.count
            last = loss.last + offset
            row = LossRow(
                serial=self.gaps,
                position=self.head + int(np.searchsorted(times, loss.last)),
                source=LossSource.PERF_EVENT_RING_BUFFER,
                count=loss.count,
                cpu=loss.cpu,
                first=loss.first + offset if loss.first else last,
                last=last,
            )
            if len(self.losses) == self.losses.maxlen:
                self.losses[1] = fold(self.losses[0], self.losses[1])
            self.losses.append(row)
            self.gaps += 1

    def _adopt_revision(self) -> None:
        revision = self._directory.revision()
        if revision != self._revision:
            self._revision = revision
            for interner in (self.parties, self.rules, self.devices):
                interner.forget()
        revision = self._directory.service_revision()
        if revision != self._service_revision:
            self._service_revision = revision
            self.services.forget()

    def _compact(self) -> None:
        """Forget meanings no row points at, before they outgrow the ring."""
        for interner, names in (
            (self.parties, ("source", "destination")),
            (self.rules, ("egress", "ingress")),
            (self.devices, ("device",)),
            (self.services, ("service",)),
        ):
            if len(interner.values) <= 2 * self.capacity + 1024:
                continue
            live = slice(0, min(self.head, self.capacity))
            used = np.unique(np.concatenate([self._refs[name][live] for name in names]))
            table = interner.compact(used)
            for name in names:
                self._refs[name][live] = table[self._refs[name][live]]
            if interner is self.parties:
                self._last_seen = self._last_seen[used]

    # -- resolving ----------------------------------------------------------------------------------------

    def _party(self, words: Sequence[int]) -> Party:
        address = str(unpack(words[0].to_bytes(8, "little") + words[1].to_bytes(8, "little")))
        return describe(self._directory, address, words[2] >> 16 & 0xFFFFFFFF, words[2] & 0xFFFF)

    def _rules(self, words: Sequence[int]) -> Rules:
        cookie = Cookie(words[0])
        row = self._directory.rules(cookie) if cookie else None
        if row is None:
            return Rules(CookieRow(cookie, ()), 0)
        return Rules(row, self._directory.policy_revision())

    def _device(self, words: Sequence[int]) -> Device:
        return Device(words[0], self._directory.device(words[0])) if words[0] else Device()

    def _service(self, words: Sequence[int]) -> Service:
        number, port = words[2] >> 32, words[2] >> 8 & 0xFFFF
        if number:
            return self._directory.service(number) or Service()
        if not words[2]:
            return Service()
        address = str(unpack(words[0].to_bytes(8, "little") + words[1].to_bytes(8, "little")))
        anywhere = bool(words[2] >> 24 & 1)
        found = self._directory.service_at(address, port, words[2] & 0xFF, any_address=anywhere)
        return found or Service()

    # -- reading ------------------------------------------------------------------------------------------

    @property
    def oldest(self) -> int:
        """Number of the oldest row still here."""
        return max(0, self.head - self.capacity)

    def __len__(self) -> int:
        return self.head - self.oldest

    def row_of(self, uuid: str) -> int | None:
        """The row a UUID of this store names, which may be gone by now; None for others'."""
        digits = uuid.replace("-", "").lower()
        try:
            boot, row = int(digits[:16], 16), int(digits[16:], 16)
        except ValueError:
            return None
        if len(digits) != 32 or boot != self.boot or row >> 48 != 0x8000:
            return None
        return row & (1 << 48) - 1

    def spans(self, first: int, last: int) -> list[Rows]:
        """Rows [first, last), clipped to what is here: one or two views into the ring."""
        first, last = max(first, self.oldest), min(last, self.head)
        spans = []
        while first < last:
            start = first & (self.capacity - 1)
            count = min(self.capacity - start, last - first)
            spans.append(self._rows(slice(start, start + count), np.arange(first, first + count)))
            first += count
        return spans

    def take(self, numbers: Times) -> Rows:
        """A copy of some rows; every number must lie within [oldest, head)."""
        return self._rows(numbers & (self.capacity - 1), numbers)

    def _rows(self, where: slice | Times, numbers: Times) -> Rows:
        events = self._blobs[where].view(self._events.dtype)
        return Rows(numbers, events, self._wall[where], *(refs[where] for refs in self._refs.values()))

    def namespaces(self, since: int) -> set[tuple[str, str]]:
        """(cluster, namespace) of everybody seen at or after a moment (nanoseconds since the epoch)."""
        known = len(self.parties.values)
        recent = np.flatnonzero(self._last_seen[:known] >= since)
        parties = [self.parties.values[index] for index in recent]
        return {(party.cluster, party.namespace) for party in parties if party.namespace}

    def rate(self, now: int, window: int = 60_000_000_000) -> float:
        """Flows per second over the last `window` nanoseconds, or over what is still here."""
        wall = self._wall[: len(self)]
        recent = wall[wall >= now - window]
        if not len(recent):
            return 0.0
        covered = window if len(recent) < len(self) or len(self) < self.capacity else now - int(recent.min())
        return len(recent) * 1e9 / max(covered, 1)


def merged(batches: list[Events], dtype: np.dtype[np.void]) -> Events:
    """One array in order of time; the order within one ring is kept among equal times."""
    for batch in batches:
        if batch.dtype != dtype:
            raise ValueError("a batch of events has another layout than the store: take both from cilia.abi")
    events = batches[0] if len(batches) == 1 else joined(batches, dtype)
    times = events["time"]
    if (times[1:] >= times[:-1]).all():
        return events
    return blobs(events)[np.argsort(times, kind="stable")].view(dtype)


def joined(batches: list[Events], dtype: np.dtype[np.void]) -> Events:
    """All batches in one array. (np.concatenate of records would put them into the machine's byte order.)"""
    whole = [np.zeros(0, (np.void, dtype.itemsize)), *map(blobs, batches)]
    return np.concatenate(whole).view(dtype)


def party_key(events: Events, side: str) -> list[Words]:
    """What makes a side distinct: address, identity and endpoint id, in three words."""
    high, low = sender_words(events) if side == "source" else address_words(events, side)
    who = events[f"{side}_identity"].astype(np.uint64) << np.uint64(16)
    return [high, low, who | events[f"{side}_endpoint"]]


def fold(older: LossRow, newer: LossRow) -> LossRow:
    """Two gaps as one, where there is no room for both; the CPU is then unknown."""
    return LossRow(
        serial=newer.serial,
        position=newer.position,
        source=newer.source,
        count=older.count + newer.count,
        cpu=older.cpu if older.cpu == newer.cpu else None,
        first=min(older.first, newer.first),
        last=max(older.last, newer.last),
    )
