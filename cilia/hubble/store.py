"""The last 2^n events of this node as columns, with their meaning at that time.

A row's number counts from the start of the agent and never repeats. A reader holds a number, not a place:
when its number is older than `oldest`, what it missed is counted exactly. So slow readers cost no memory.

    append ─► ring of all rows ──(overwritten: drops and audits)────► ring of a quarter of its size

A flood of traces pushes out traces and allowed verdicts only: what was dropped, or noted by audit, leaves
when newer ones need its place. Readers see one store: `spans` gives the older rows first.
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
    blobs,
    check_layout,
    important,
    octets,
    service_key,
    translated,
)
from cilia.hubble.directory import Device, Directory, Party, Service, describe
from cilia.hubble.intern import Interner
from cilia.hubble.ring import Ring, together
from cilia.hubble.ring import Rows as Rows
from cilia.hubble.uuids import row_of
from cilia.model.address import address_text
from cilia.model.ids import Cookie
from cilia.model.policy import CookieRow

DEFAULT_CAPACITY = 65_536
KEPT_LOSSES = 1024
KEPT_SHARE = 4
"""The second ring has one of so many rows of the first."""
KEPT_MARKS = 8192
MARK_EVERY = 1_000_000_000
"""Nanoseconds between two marks."""


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


class Mark(NamedTuple):
    """When a number was given."""

    number: int
    wall: int
    """Nanoseconds since the Unix epoch."""


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
        """`dtype`: of `struct event`; `capacity`: flows kept, a power of two; drops and audits get a
        quarter more. Raises ValueError."""
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
        self.dtype = dtype
        """Of the records."""
        self._ring = Ring(dtype, capacity)
        self._kept = Ring(dtype, max(1, capacity // KEPT_SHARE))
        self._marks: deque[Mark] = deque(maxlen=KEPT_MARKS)

    # -- writing ------------------------------------------------------------------------------------------

    def append(self, batches: Iterable[Events], losses: Sequence[Loss] = (), *, offset: int = 0) -> None:
        """Store what both rings gave, merged by time.

        `batches`: arrays of the store's dtype, copied here; `offset`: wall clock minus ktime in
        nanoseconds, measured by the caller. Calls the listeners.
        """
        events = merged(list(batches), self.dtype)
        self._keep_losses(losses, offset, events["time"])
        if len(events):
            self._adopt_revision()
            self.metrics.count(events)
            self._write(events, offset)
            self._compact()
        if len(events) or losses:
            for listener in tuple(self.listeners):
                listener()

    def _write(self, events: Events, offset: int) -> None:
        """Fill the next slots. Of a batch larger than the ring the first part is as good as overwritten."""
        first = self.head
        self._mark(first, int(events["time"][0]) + offset)
        for rows in self._ring.oldest(max(0, len(self._ring) + len(events) - self.capacity)):
            self._keep(rows, important(rows.events))
        early = max(0, len(events) - self.capacity)
        if early:
            mask = important(events[:early])
            if mask.any():
                self._kept.write(self._rows(events[:early][mask], first + np.flatnonzero(mask), offset))
            self._ring.written += early
        late = self._rows(events[early:], np.arange(first + early, first + len(events)), offset)
        self._ring.write(late)
        self.head += len(events)
        self._note_seen(late)

    def _keep(self, rows: Rows, mask: Mask) -> None:
        places = np.flatnonzero(mask)
        if len(places):
            self._kept.write(rows.where(places))

    def _mark(self, number: int, wall: int) -> None:
        """Remember once a second when a number was given."""
        if not self._marks or wall - self._marks[-1].wall >= MARK_EVERY:
            self._marks.append(Mark(number, wall))

    def _rows(self, events: Events, numbers: Times, offset: int) -> Rows:
        return Rows(numbers, events, events["time"].astype(np.int64) + offset, **self._interned(events))

    def _interned(self, events: Events) -> dict[str, Refs]:
        count = len(events)
        parties = self.parties.find(party_keys(events))
        cookies = [events["egress_cookie"], events["ingress_cookie"]]
        rules = self.rules.find(np.concatenate(cookies).astype(np.uint64)[:, None])
        return {
            "source": parties[:count],
            "destination": parties[count:],
            "egress": rules[:count],
            "ingress": rules[count:],
            "device": self.devices.find(events["ifindex"].astype(np.uint64)[:, None]),
            "service": self._services_of(events),
        }

    def _services_of(self, events: Events) -> Refs:
        """Most batches on most nodes are about no service at all."""
        if events["service"].any() or (events["kind"] == KIND_DROP).any():
            return self.services.refs(service_key(events))
        return np.full(len(events), self.services.ref((0, 0, 0)), np.uint32)

    def _note_seen(self, rows: Rows) -> None:
        missing = len(self.parties.values) - len(self._last_seen)
        if missing > 0:
            self._last_seen = np.concatenate([self._last_seen, np.zeros(missing + 64, np.int64)])
        now = int(rows.wall[-1])
        self._last_seen[rows.source] = now
        self._last_seen[rows.destination] = now

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
            columns = [*self._ring.references(names), *self._kept.references(names)]
            used = np.unique(np.concatenate(columns))
            table = interner.compact(used)
            for column in columns:
                column[:] = table[column]
            if interner is self.parties:
                self._last_seen = self._last_seen[used]

    # -- resolving ----------------------------------------------------------------------------------------

    def _party(self, words: Sequence[int]) -> Party:
        address = address_text(words[0].to_bytes(8, "little") + words[1].to_bytes(8, "little"))
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
        address = address_text(words[0].to_bytes(8, "little") + words[1].to_bytes(8, "little"))
        anywhere = bool(words[2] >> 24 & 1)
        found = self._directory.service_at(address, port, words[2] & 0xFF, any_address=anywhere)
        return found or Service()

    # -- reading ------------------------------------------------------------------------------------------

    @property
    def oldest(self) -> int:
        """Number of the oldest row of the ring; older ones are drops and audits only."""
        return max(0, self.head - self.capacity)

    @property
    def first(self) -> int:
        """Number of the oldest row still here."""
        kept = self._kept.oldest(1)
        return int(kept[0].numbers[0]) if kept else self.oldest

    @property
    def kept(self) -> int:
        """Drops and audits that are here beyond the ring."""
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Memory of the columns."""
        return self._ring.nbytes + self._kept.nbytes

    def __len__(self) -> int:
        return self.head - self.oldest

    def missing(self, first: int, last: int, *, important_only: bool = False) -> int:
        """How many rows of [first, last) are gone; or at most how many drops and audits among them."""
        last = min(last, self.oldest)
        if first >= last:
            return 0
        low, high = np.searchsorted(self._kept.numbers(), (first, last)).tolist()
        gone = last - first - (high - low)
        if not important_only:
            return int(gone)
        return int(min(gone, self._kept.gone)) if first < self.first else 0

    def reach(self, first: int, limit: int) -> int:
        """The number after the `limit`-th row that is here from `first` on; at most `head`."""
        if first >= self.oldest:
            return min(self.head, first + limit)
        older = self._kept.numbers()
        older = older[np.searchsorted(older, first) :]
        if len(older) >= limit:
            return int(older[limit - 1]) + 1
        return min(self.head, self.oldest + limit - len(older))

    def number_at(self, wall: int) -> int:
        """The number of a row stored at or (by up to a second) before a moment, in nanoseconds since the
        epoch; 0 for moments nobody remembers."""
        return next((mark.number for mark in reversed(self._marks) if mark.wall <= wall), 0)

    def time_of(self, number: int) -> int:
        """When a row was stored, to a second; 0: nobody remembers."""
        return next((mark.wall for mark in reversed(self._marks) if mark.number <= number), 0)

    def row_of(self, uuid: str) -> int | None:
        """The row a UUID of this store names, which may be gone by now; None for others'."""
        return row_of(uuid, self.boot)

    def spans(self, first: int, last: int) -> list[Rows]:
        """Rows [first, last), as far as they are here: a few views into the rings, oldest first."""
        spans = []
        if first < self.oldest:
            low, high = np.searchsorted(self._kept.numbers(), (first, last)).tolist()
            spans += self._kept.between(self._kept.gone + low, self._kept.gone + high)
        return spans + self._ring.between(first, last)

    def present(self, numbers: Times) -> Mask:
        """Which rows are still here."""
        here: Mask = numbers >= self.oldest
        return here if here.all() else here | np.isin(numbers, self._kept.numbers())

    def take(self, numbers: Times) -> Rows:
        """A copy of some rows, in ascending order; all must be present."""
        split = int(np.searchsorted(numbers, self.oldest))
        late = self._ring.at(numbers[split:])
        if not split:
            return late
        places = self._kept.gone + np.searchsorted(self._kept.numbers(), numbers[:split])
        return together([self._kept.at(places), late])

    def namespaces(self, since: int) -> set[tuple[str, str]]:
        """(cluster, namespace) of everybody seen at or after a moment (nanoseconds since the epoch)."""
        known = len(self.parties.values)
        recent = np.flatnonzero(self._last_seen[:known] >= since)
        parties = [self.parties.values[index] for index in recent]
        return {(party.cluster, party.namespace) for party in parties if party.namespace}

    def rate(self, now: int, window: int = 60_000_000_000) -> float:
        """Flows per second over the last `window` nanoseconds, or over what is still here."""
        wall = self._ring.wall
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


def party_keys(events: Events) -> Words:
    """What makes a side distinct: address, identity and endpoint id, in three words; first all sources, then
    all destinations."""
    count = len(events)
    keys = np.empty((2 * count, 3), np.uint64)
    for side, part in (("source", keys[:count]), ("destination", keys[count:])):
        part[:, :2] = octets(events, side).view(np.uint64)
        part[:, 2] = events[f"{side}_identity"].astype(np.uint64) << np.uint64(16)
        part[:, 2] |= events[f"{side}_endpoint"]
    was = translated(events)
    if was.any():
        keys[:count, :2][was] = octets(events, "original_source").view(np.uint64)[was]
    return keys


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
