"""Event rings as numpy arrays: whole runs of records out of the kernel in a few vector operations.

A ring (BPF_MAP_TYPE_RINGBUF; kernel/bpf/ringbuf.c) is two pages of positions and the data, mapped twice
in a row so that a record never wraps. Every record here has one size, so the headers form a strided
column: the first busy one ends the run. Sequence numbers are taken per CPU and ring before the reserve,
so a gap is a loss and `LossCounter` counts it exactly.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, monotonic_ns, thread_time

import msgspec
import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map
from cilia.dataplane.maps.nodes import Settings
from cilia.dataplane.records import Records

HEADER_BYTES = 8
BUSY = np.uint32(1 << 31)
DISCARDED = np.uint32(1 << 30)

POLL_SECONDS = 0.020
CALM_SECONDS = 0.040
"""Between two polls of rings that fill slowly: what a poll costs hardly depends on how much it finds."""
CALM_PART = 16
"""A ring fills slowly when the first run of a poll is all there is, and less than one part of so many of the
ring."""
RUN, FIRST_RUN, SHORTEST_RUN = 8192, 512, 64
"""Events that are taken from a ring at once: at most, to begin with, and where each takes long, since all of
them are about strangers."""
QUICK_SECONDS, SLOW_SECONDS = 0.001, 0.002
"""Of work on a run that is followed by a longer or a shorter one."""
POLL_WORK_SECONDS = 0.006
"""Of work of a poll: it takes runs until then, or until there are no more."""
BREATH_SECONDS = 0.005
"""The least that others get of the loop before a poll takes what the last one left."""
IDLE_POLLS = 3
"""Empty polls in a row, all losses told, after which the reader goes to sleep."""

Taken = Callable[[], Sequence[Mapping[int, int]]]
"""The sequence numbers taken so far, by ring and CPU."""


class LostEvents(msgspec.Struct, frozen=True):
    """Events that found their ring full, between two that did not."""

    cpu: int
    ring: int
    count: int
    first_time: int
    """ktime (nanoseconds) of the last event before the gap."""
    last_time: int
    """ktime of the first event after it, or of when it was seen that none follows."""


class Batch(msgspec.Struct, frozen=True):
    """What one drain brought: events of both rings, each ring in its own order, and what was lost."""

    events: Array
    lost: tuple[LostEvents, ...]


class Ring:
    """One ring, mapped. Not thread-safe; one reader per ring."""

    def __init__(self, ring: Map, layout: abi.Layout) -> None:
        self.fd = ring.fd
        event = self._event = layout.dtype("event")
        self._records = Records(layout)
        self._size = ring.info.max_entries
        self._stride = HEADER_BYTES + (event.itemsize + 7) // 8 * 8
        page = mmap.PAGESIZE
        self._consumer_page = mmap.mmap(self.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._consumed = np.frombuffer(self._consumer_page, np.uint64, 1)
        self._pages = mmap.mmap(self.fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._produced = np.frombuffer(self._pages, np.uint64, 1)
        self._data = np.frombuffer(self._pages, np.uint8, offset=page)

    @property
    def calm(self) -> int:
        """So many records are few."""
        return int(self._size // self._stride // CALM_PART)

    @property
    def waiting(self) -> int:
        """Bytes between the reader and the newest reservation."""
        return int(self._produced[0]) - int(self._consumed[0])

    def read(self, limit: int | None = None) -> Array:
        """Complete events, copied out, oldest first: all, or as many as `limit` and what comes in the same
        record. An empty array when there are none."""
        consumed = int(self._consumed[0])
        count = (int(self._produced[0]) - consumed) // self._stride
        if limit is not None:
            count = min(count, limit)
        if count == 0:
            return np.zeros(0, self._event)
        start = consumed & (self._size - 1)
        run = self._data[start : start + count * self._stride].reshape(count, self._stride)
        headers = run[:, :4].copy().view(np.uint32)[:, 0]
        busy = (headers & BUSY) != 0
        if busy.any():
            count = int(busy.argmax())
            run = run[:count]
        records = run[:, HEADER_BYTES : HEADER_BYTES + self._event.itemsize].copy().reshape(-1)
        records = records.view(self._event)
        counts = self._records.counts(records)
        counts[(headers[:count] & DISCARDED) != 0] = 0
        if limit is not None and counts.sum() > limit:
            count = int(np.searchsorted(np.cumsum(counts), limit)) + 1
        self._consumed[0] = consumed + count * self._stride
        return self._records.events(records[:count], counts[:count])

    def close(self) -> None:
        """Unmap; the ring and what is unread stay."""
        del self._consumed, self._produced, self._data
        self._consumer_page.close()
        self._pages.close()


class Seen:
    """Sequence numbers of one CPU and ring."""

    __slots__ = ("after", "before", "expected", "missing", "received", "reported")

    def __init__(self, first: int) -> None:
        self.expected = first
        """The first sequence number that is this reader's; those before are another's."""
        self.received = 0
        self.reported = 0
        self.missing = 0
        """Gap after the last drain; only what is still missing after the next one is lost, since a program
        that was interrupted between taking a number and reserving writes its record a little late."""
        self.before = 0
        self.after = 0


class LossCounter:
    """Finds gaps in the sequence numbers of one ring."""

    def __init__(self, ring: int, begun: Mapping[int, int]) -> None:
        """`begun`: by CPU, the sequence numbers that were taken before reading began: those between them and
        a CPU's first record were lost. A first record that is older was left by another reader."""
        self._ring = ring
        self._begun = begun
        self._seen: dict[int, Seen] = {}
        self._highest: dict[int, tuple[int, int]] = {}

    def count(self, events: Array) -> list[LostEvents]:
        """Take note of a drain's events (it may be empty) and return the losses that are now certain."""
        self.note(events)
        return [lost for cpu, seen in self._seen.items() if (lost := self._settle(cpu, seen)) is not None]

    def note(self, events: Array) -> None:
        """Take note of events (there may be none)."""
        if len(events):
            cpus, sequences, times = events["cpu"], events["sequence"].astype(np.int64), events["time"]
            for cpu in np.flatnonzero(np.bincount(cpus)).tolist():
                mine = np.flatnonzero(cpus == cpu)
                self._note(cpu, sequences[mine], times[mine])

    def look(self, taken: Mapping[int, int], now: int) -> bool:
        """Take note of the sequence numbers that each CPU has taken when there was nothing left to drain, at
        ktime `now`; whether there were any that no record had. They are lost, unless the next drain has them:
        without this, losses at the end of a burst would wait for the next event of their CPU."""
        unseen = [cpu for cpu, number in taken.items() if number > self._known(cpu, number)]
        for cpu in unseen:
            seen = self._seen.get(cpu) or self._begin(cpu, self._begun[cpu])
            last_time = self._highest[cpu][1]
            if self._missing(cpu, seen) <= 0:
                seen.before = last_time
            seen.after = now
            self._highest[cpu] = (taken[cpu] - 1, last_time)
        return bool(unseen)

    def _known(self, cpu: int, number: int) -> int:
        """Up to which number a CPU's are accounted for: all, of one that nobody has told of."""
        return self._highest[cpu][0] + 1 if cpu in self._seen else self._begun.get(cpu, number)

    def _begin(self, cpu: int, expected: int) -> Seen:
        seen = self._seen[cpu] = Seen(expected)
        self._highest[cpu] = (expected - 1, 0)
        return seen

    def _note(self, cpu: int, sequences: Array, times: Array) -> None:
        if (np.diff(sequences) < 0).any():
            order = np.argsort(sequences, kind="stable")
            sequences, times = sequences[order], times[order]
        seen = self._seen.get(cpu)
        if seen is None:
            first = int(sequences[0])
            seen = self._begin(cpu, min(first, self._begun.get(cpu, first)))
        new_gap = self._missing(cpu, seen) <= 0
        seen.received += int((sequences >= seen.expected).sum())
        last, last_time = self._highest[cpu]
        steps = np.diff(np.concatenate(([last], sequences)))
        gaps = np.flatnonzero(steps > 1)
        if len(gaps):
            if new_gap:
                seen.before = int(times[gaps[0] - 1]) if gaps[0] else last_time
            seen.after = int(times[gaps[-1]])
        if sequences[-1] > last:
            self._highest[cpu] = (int(sequences[-1]), int(times[-1]))

    def _missing(self, cpu: int, seen: Seen) -> int:
        """Numbers up to the highest that no record had and no loss told of."""
        return self._highest[cpu][0] + 1 - seen.expected - seen.received - seen.reported

    def _settle(self, cpu: int, seen: Seen) -> LostEvents | None:
        missing = self._missing(cpu, seen)
        certain, seen.missing = min(missing, seen.missing), missing
        if certain <= 0:
            return None
        seen.reported += certain
        seen.missing -= certain
        return LostEvents(cpu, self._ring, certain, seen.before, seen.after)


class RingReader:
    """Drains both rings every 20 ms while events flow, every 40 ms while few do; asleep otherwise, woken by
    the next event. When more comes than a poll takes, it polls sooner, for half of the loop's time at most.

    `deliver` gets each batch, on the loop. Going to sleep: the flag is set first and the rings looked at
    once more, so that no event slips in between unseen.
    """

    def __init__(
        self,
        rings: Sequence[Map],
        settings: Settings,
        layout: abi.Layout,
        deliver: Callable[[Batch], None],
        taken: Taken | None = None,
    ) -> None:
        """`rings`: events_priority and events, in the order of enum event_ring. A CPU that `taken` does not
        tell of counts from its first record to its last."""
        self._rings = [Ring(ring, layout) for ring in rings]
        self._taken: Taken = taken or (lambda: [{}] * len(rings))
        self._losses = [LossCounter(at, begun) for at, begun in enumerate(self._taken())]
        self._settings = settings
        self._deliver = deliver
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._empty = 0
        self.pace = POLL_SECONDS
        """Seconds until the next poll while events flow."""
        self._run = FIRST_RUN
        self._watching = False
        self.received = 0
        self.lost = 0

    def start(self) -> None:
        """Begin to read, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._poll()

    def stop(self) -> None:
        """Read what is there and end; events stay in the rings from now on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()
        self.drain()
        for ring in self._rings:
            ring.close()

    def drain(self, limit: int | None = None) -> int:
        """Deliver what is there now, of each ring some `limit` events at most; how many."""
        parts = [ring.read(limit) for ring in self._rings]
        calm = all(len(part) < ring.calm for ring, part in zip(self._rings, parts, strict=True))
        self.pace = CALM_SECONDS if calm else POLL_SECONDS
        found = [losses.count(part) for losses, part in zip(self._losses, parts, strict=True)]
        return self._pass_on(parts, tuple(gap for gaps in found for gap in gaps))

    def _go_on(self, limit: int) -> int:
        """Deliver the next events of the same poll; how many. What is missing now is judged in the next poll,
        for a record may come a little late."""
        self.pace = POLL_SECONDS
        parts = [ring.read(limit) for ring in self._rings]
        for losses, part in zip(self._losses, parts, strict=True):
            losses.note(part)
        return self._pass_on(parts, ())

    def _pass_on(self, parts: Sequence[Array], lost: tuple[LostEvents, ...]) -> int:
        count = sum(map(len, parts))
        self.received += count
        self.lost += sum(gap.count for gap in lost)
        if count or lost:
            filled = [part for part in parts if len(part)]
            self._deliver(Batch(_joined(filled, parts[0]), lost))
        return count

    def _poll(self) -> None:
        loop = self._running_loop()
        start, worked, run = monotonic(), thread_time(), self._run
        count = self.drain(run)
        spent = self._adapt(worked)
        more = count >= run
        while more and spent < POLL_WORK_SECONDS:
            worked, run = thread_time(), self._run
            taken = self._go_on(run)
            spent += self._adapt(worked)
            count += taken
            more = taken >= run
        took = monotonic() - start
        self._empty = 0 if count or self._look() else self._empty + 1
        if self._empty < IDLE_POLLS:
            # In an overflow, answers get as much of the loop as the rings: else nobody sees what is read.
            pause = BREATH_SECONDS if more else self.pace
            self._timer = loop.call_later(max(took, pause), self._poll)
        else:
            self._sleep()

    def _look(self) -> bool:
        """Whether sequence numbers were taken that no record has had."""
        taken, now = self._taken(), monotonic_ns()
        unseen = [losses.look(numbers, now) for losses, numbers in zip(self._losses, taken, strict=True)]
        return any(unseen)

    def _adapt(self, since: float) -> float:
        """Take shorter or longer runs, by the seconds of this thread that the last took, and give them."""
        worked = thread_time() - since
        if worked > SLOW_SECONDS:
            self._run = max(SHORTEST_RUN, min(self._run // 2, int(self._run * SLOW_SECONDS / worked)))
        elif worked < QUICK_SECONDS:
            self._run = min(RUN, self._run * 2)
        return worked

    def _sleep(self) -> None:
        loop = self._running_loop()
        self._settings.reader_asleep = True
        if any(ring.waiting for ring in self._rings):
            self._woken()
            return
        self._timer = None
        self._watching = True
        for ring in self._rings:
            loop.add_reader(ring.fd, self._readable)

    def _readable(self) -> None:
        """Both rings may be readable in one turn of the loop: the first wakes."""
        if self._watching:
            self._woken()

    def _woken(self) -> None:
        self._wake()
        self._empty = 0
        self._timer = self._running_loop().call_later(POLL_SECONDS, self._poll)

    def _wake(self) -> None:
        if self._watching:
            self._watching = False
            for ring in self._rings:
                self._running_loop().remove_reader(ring.fd)
        self._settings.reader_asleep = False

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the ring reader was not started")
        return self._loop


def _joined(parts: list[Array], empty: Array) -> Array:
    """The parts in one array; np.concatenate of records would turn big-endian fields into native ones."""
    if len(parts) < 2:
        return parts[0] if parts else empty
    dtype = parts[0].dtype
    raw = f"V{dtype.itemsize}"
    return np.concatenate([part.view(raw) for part in parts]).view(dtype)
