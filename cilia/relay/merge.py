"""The sorted merge: lanes of messages in, one sequence by time out. Pure; time is an argument.

    node a  ─► lane ─┐  in time: all that is not newer than the newest of the slowest lane
    node b  ─► lane ─┼─► in turn: what has waited for `patience` seconds, whoever is still silent
    node c  ─► lane ─┘  in need: the oldest, when more than `limit` wait (following only)

A history is merged exactly: a lane is waited for until it has something or has ended, or was silent for
`patience`. Followers can't wait for nodes where nothing happens: there, a message is held for `patience` at
most. So a node that hangs, or whose clock is ten minutes off, holds up nobody for longer than that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from heapq import merge as merged
from itertools import islice
from operator import itemgetter

import msgspec

Item = tuple[int, bytes]
"""Nanoseconds since the Unix epoch, and the message."""

SLICE = 2048
"""Messages of many lanes that are put in order at a time, in some 10 ms; more is left for the next time."""

by_time = itemgetter(0)


class MergeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how much the merge holds back."""

    patience: float = 1.0
    """Seconds. Longer gives a better order when nodes report late, and a later answer."""
    limit: int = 100
    """Messages a follower's merge holds before the oldest must go; histories are bounded by their lanes."""


class Batch:
    """Messages that arrived together, by time."""

    __slots__ = ("arrived", "messages", "start", "times")

    def __init__(self, times: list[int], messages: list[bytes], arrived: float) -> None:
        """`times` is sorted."""
        self.times = times
        self.messages = messages
        self.arrived = arrived
        self.start = 0
        """Where those begin that have not gone out."""

    def take(self, end: int) -> list[Item]:
        """All up to, not including, a place."""
        start, self.start = self.start, end
        return list(zip(self.times[start:end], self.messages[start:end], strict=True))


class Lane:
    """What has come from one node and not gone out."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.ended = False
        self.size = 0
        """Bytes held."""
        self.asked = True
        """Whether it is the node that is silent; else it waits to be asked, however long that takes."""
        self.quiet_since = now
        self.newest = 0
        """The greatest time of any message so far."""
        self._batches: deque[Batch] = deque()

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def arrived(self) -> float:
        """When the oldest batch came; the lane is not empty."""
        return self._batches[0].arrived

    def put(self, batch: Batch) -> None:
        """Take a batch, which is not empty."""
        self.newest = max(self.newest, batch.times[-1])
        self._batches.append(batch)
        self.size += sum(map(len, batch.messages))

    def take_until(self, moment: int, now: float) -> list[Item]:
        """Everything up to and including a time."""
        taken: list[Item] = []
        while self._batches:
            batch = self._batches[0]
            if batch.times[-1] > moment:
                end = bisect_right(batch.times, moment, batch.start)
                if end > batch.start:
                    taken += batch.take(end)
                break
            taken += self._take_first(now)
        self.size -= sum([len(message) for _, message in taken])
        return taken

    def take_arrived(self, before: float, now: float) -> list[Item]:
        """Everything that came before or at a moment of this machine's clock."""
        taken: list[Item] = []
        while self._batches and self._batches[0].arrived <= before:
            taken += self._take_first(now)
        self.size -= sum([len(message) for _, message in taken])
        return taken

    def times(self) -> list[int]:
        """Of all messages held."""
        return [time for batch in self._batches for time in batch.times[batch.start :]]

    def steps(self, size: int) -> Iterator[int]:
        """Moments until which `take_until` takes `size` messages more each, or fewer."""
        so_far = 0
        for batch in self._batches:
            for last in range(batch.start + size - 1, len(batch.times) + size - 1, size):
                so_far = max(so_far, batch.times[min(last, len(batch.times) - 1)])
                yield so_far

    def _take_first(self, now: float) -> list[Item]:
        """All of the oldest batch."""
        batch = self._batches.popleft()
        if not self._batches:
            self.quiet_since = now
        return batch.take(len(batch.times))


class Merge:
    """All lanes of one answer."""

    def __init__(self, settings: MergeSettings, *, follow: bool) -> None:
        self._settings = settings
        self._follow = follow
        self._lanes: dict[str, Lane] = {}
        self._held = 0
        """Messages in all lanes."""

    def __len__(self) -> int:
        return self._held

    def open(self, name: str, now: float) -> Lane:
        """Begin a lane; one of that name that has ended goes on (what it holds stays)."""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, now)
        lane.ended, lane.quiet_since = False, now
        return lane

    def put(self, lane: Lane, times: list[int], messages: list[bytes], now: float) -> None:
        """Take messages of a node in the order it sent them."""
        if not messages:
            return
        ordered = sorted(times)
        if ordered != times:
            # The sort is stable: what has the same time keeps its order.
            messages = [message for _, message in sorted(zip(times, messages, strict=True), key=by_time)]
        lane.put(Batch(ordered, messages, now))
        self._held += len(messages)

    def hold(self, lane: Lane) -> None:
        """A node is not asked for more before `ask`: it is not its fault when nothing comes."""
        lane.asked = False

    def ask(self, lane: Lane, now: float) -> None:
        """A node is asked for more."""
        lane.asked, lane.quiet_since = True, now

    def end(self, lane: Lane) -> None:
        """Nothing more comes on a lane."""
        lane.ended = True

    def take(self, now: float) -> list[Item]:
        """What may go out now, by time."""
        taken: list[Item] = []
        waited_for = [lane for lane in self._lanes.values() if not lane and self._waits_for(lane, now)]
        full = [lane for lane in self._lanes.values() if lane]
        if not waited_for and full:
            taken = self._take_merged(full, now)
        if self._follow:
            taken += self._take_surplus(full, now)
            taken += self._take_overdue(full, now)
        for name in [name for name, lane in self._lanes.items() if lane.ended and not lane]:
            del self._lanes[name]
        taken.sort(key=by_time)
        return taken

    def wake_at(self, now: float) -> float | None:
        """When `take` may give more though nothing came; None: only when something comes."""
        patience = self._settings.patience
        if not self._held:
            return None
        if self._follow:
            return min(lane.arrived for lane in self._lanes.values() if lane) + patience
        waited_for = [lane for lane in self._lanes.values() if not lane and self._waits_for(lane, now)]
        if not waited_for or not all(lane.asked for lane in waited_for):
            return None
        return max(lane.quiet_since for lane in waited_for) + patience

    def _waits_for(self, lane: Lane, now: float) -> bool:
        if lane.ended:
            return False
        return self._follow or not lane.asked or now - lane.quiet_since < self._settings.patience

    def _take_merged(self, full: list[Lane], now: float) -> list[Item]:
        """What is not newer than the last that each running lane has sent."""
        running = [lane.newest for lane in full if not lane.ended]
        moment = min(running) if running else max(lane.newest for lane in full)
        return self._take_slice(full, moment, now)

    def _take_slice(self, full: list[Lane], moment: int, now: float) -> list[Item]:
        """The oldest of what is not newer than a moment: all of it, unless that would take long."""
        if self._held > 2 * SLICE:
            size = max(1, SLICE // len(full))
            steps = merged(*[lane.steps(size) for lane in full])
            moment = min(moment, next(islice(steps, SLICE // size, None), moment))
        taken: list[Item] = []
        for lane in full:
            taken += lane.take_until(moment, now)
        self._held -= len(taken)
        return taken

    def _take_surplus(self, full: list[Lane], now: float) -> list[Item]:
        """The oldest of more than may be held."""
        surplus = self._held - self._settings.limit
        if surplus <= 0:
            return []
        if surplus > 4 * SLICE:
            # More than one slice, whichever it is: all times need not be looked at.
            return self._take_slice(full, max(lane.newest for lane in full), now)
        times = sorted([time for lane in full for time in lane.times()])
        return self._take_slice(full, times[surplus - 1], now)

    def _take_overdue(self, full: list[Lane], now: float) -> list[Item]:
        before = now - self._settings.patience
        taken: list[Item] = []
        for lane in full:
            taken += lane.take_arrived(before, now)
        self._held -= len(taken)
        return taken
