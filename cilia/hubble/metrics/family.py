"""Series of one metric: counters by label values, few enough, and gone when nobody needs them.

    rows ─► kind's word ─┐
            side codes  ─┼─► index ─► place ─► counts[place], used[place]
                         │      │
                         │      └ a new set of label values: within the budget a series of its own,
                         └        beyond it the series whose open labels say `other`

Everything a row costs is vector steps; Python runs once per distinct key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from cilia.hubble.columns import Mask, Words
from cilia.hubble.filters import FlowMatcher
from cilia.hubble.metrics import exposition
from cilia.hubble.metrics.batch import Batch
from cilia.hubble.metrics.contexts import Called, PodName, Side
from cilia.hubble.metrics.exposition import Head
from cilia.hubble.metrics.index import LabelIndex, Labels
from cilia.hubble.metrics.kinds import DIRECTIONS, KINDS, OTHER
from cilia.hubble.metrics.options import MetricOptions
from cilia.hubble.store import FlowStore

DIRECTION_SHIFT = 56
"""Where traffic_direction stands in the word of a row."""

PRESSED_SECONDS = 60.0
"""Idle series go after so long where new ones find no room."""

IDLE, POD_GONE = "idle", "pod_gone"


class Keys(NamedTuple):
    """What selected rows are counted by: both sides and the word of a row; arrays of equal length."""

    pairs: Words
    words: Words

    def part(self, first: int, size: int) -> Keys:
        """Some of them."""
        return Keys(self.pairs[first : first + size], self.words[first : first + size])


class Limits(msgspec.Struct, frozen=True):
    """What bounds a metric."""

    series: int = 10_000
    """Series with label values of their own; 0: no bound."""
    expiry: float = 600.0
    """Seconds after which a series that nothing was added to is dropped; 0: never."""


class Family:
    """One metric: what it counts and what it has counted."""

    def __init__(
        self,
        store: FlowStore,
        options: MetricOptions,
        limits: Limits,
        sides: Callable[[Called], Side] | None = None,
    ) -> None:
        """`sides`: gives metrics that call their sides alike the same side."""
        self.options = options
        self.kind = KINDS[options.name](store, options)
        self.matcher: FlowMatcher | None = None
        """Which flows it is about; None: all."""
        self.limits = limits
        side = sides or (lambda called: Side(store, called))
        self.sides = (side(Called.of(options, "source")), side(Called.of(options, "destination")))
        self._renumbered = (0, 0)
        self._with_direction = "traffic_direction" in options.labels
        direction = ("traffic_direction",) if self._with_direction else ()
        self.side_labels = (*self.sides[0].called.labels, *self.sides[1].called.labels, *direction)
        self._series = LabelIndex(self._resolve)
        self._counts = np.zeros(64, np.int64)
        self._used = np.zeros(64, np.float64)
        self._open = np.zeros(64, np.bool_)
        """Which places say `other`."""
        self._budgeted: dict[Labels, tuple[PodName, ...]] = {}
        """Series within the budget, and the pods they name."""
        self._of_pod: dict[PodName, set[Labels]] = {}
        """Series that name a pod."""
        self._other: set[Labels] = set()
        self._other_noted = 0
        self._shown: list[str] = []
        """Name and labels as text, by place; made anew when places move."""
        self._pressed = False
        self.overflow = 0
        """Flows counted in series that say `other`, for want of room."""
        self.expired: Counter[str] = Counter()
        """Series dropped, by why."""

    # -- counting -----------------------------------------------------------------------------------------

    def take(self, batch: Batch, now: float) -> None:
        """Count rows; `now` in seconds of a clock that never goes back."""
        self.tidy()
        for keys in self.select(batch):
            self.add(keys, now)

    def tidy(self) -> None:
        """Between rows: forget sides when there were too many. Keys that were not added yet are void then."""
        for side in self.sides:
            side.tidy()
        renumbered = (self.sides[0].renumbered, self.sides[1].renumbered)
        if renumbered != self._renumbered:
            self._renumbered = renumbered
            self._series.forget()

    def select(self, batch: Batch) -> Iterator[Keys]:
        """The keys of what is to be counted; they outlive the rows."""
        if self.kind.select is None:
            return
        selected = None if self.matcher is None else self.matcher.mask(batch.rows)
        for mask, words in self.kind.select(batch):
            chosen = np.flatnonzero(mask if selected is None else mask & selected)
            if len(chosen):
                yield Keys(self._pairs(batch)[chosen], self._own(batch, words)[chosen])

    def add(self, keys: Keys, now: float) -> None:
        """Count keys of `select`."""
        found = np.bincount(self._series.find(keys.pairs, keys.words))
        self._make_room()
        self._counts[: len(found)] += found
        touched = np.flatnonzero(found)
        self._used[touched] = now
        if self._other:
            self.overflow += int(found[touched][self._open[touched]].sum())

    def _pairs(self, batch: Batch) -> Words:
        """Both sides' codes in one word; the same for all metrics with the same sides."""
        source, destination = self.sides
        found = batch.codes.get(self.sides)
        if found is None:
            found = source.codes(batch) << np.uint64(32) | destination.codes(batch)
            batch.codes[self.sides] = found
        return found

    def _own(self, batch: Batch, words: Words) -> Words:
        if not self._with_direction:
            return words
        return words | (batch.word((0, "direction")) & np.uint64(3)) << np.uint64(DIRECTION_SHIFT)

    def _make_room(self) -> None:
        """For places that are new since the last time."""
        missing = len(self._series.values) - len(self._counts)
        if missing > 0:
            room = missing + len(self._counts)
            self._counts = np.concatenate([self._counts, np.zeros(room, np.int64)])
            self._used = np.concatenate([self._used, np.zeros(room, np.float64)])
        if len(self._open) != len(self._counts) or self._other_noted != len(self._other):
            self._other_noted = len(self._other)
            self._open = np.zeros(len(self._counts), np.bool_)
            if self._other:
                self._open[: self.size] = [labels in self._other for labels in self._series.values]

    def _resolve(self, high: int, low: int) -> Labels:
        """The label values of a key: its own series, or that of the others."""
        first, second = self.sides
        source, destination = first.values[high >> 32], second.values[high & 0xFFFFFFFF]
        own = self.kind.labels(low & (1 << DIRECTION_SHIFT) - 1)
        direction: Labels = ()
        if self._with_direction:
            way = low >> DIRECTION_SHIFT
            direction = (DIRECTIONS[way] if way in DIRECTIONS and way else "unknown",)
        labels = (*own, *source.values, *destination.values, *direction)
        if labels in self._budgeted:
            return labels
        if self.limits.series and len(self._budgeted) >= self.limits.series:
            self._pressed = True
            sides = len(source.values) + len(destination.values)
            return self._overflowing((*self.kind.bounded(own), *(OTHER,) * sides, *direction))
        self._budgeted[labels] = pods = tuple({*source.pods, *destination.pods})
        for pod in pods:
            self._of_pod.setdefault(pod, set()).add(labels)
        return labels

    def _overflowing(self, labels: Labels) -> Labels:
        self._other.add(labels)
        return labels

    # -- forgetting ---------------------------------------------------------------------------------------

    def expire(self, now: float, gone: Collection[PodName] = ()) -> None:
        """Drop series nobody has added to for long, and those of pods that are no more."""
        patience = self.limits.expiry or float("inf")
        if self._pressed:
            patience = min(patience, PRESSED_SECONDS)
        idle = now - self._used[: self.size] > patience
        away = np.zeros(self.size, np.bool_)
        for pod in self._of_pod.keys() & set(gone):
            away[[self._series.place(labels) for labels in self._of_pod[pod]]] = True
        dead = idle | away
        if dead.any():
            self.expired[POD_GONE] += int(away.sum())
            self.expired[IDLE] += int((idle & ~away).sum())
            self._drop(dead)
            self._pressed = False

    def _drop(self, dead: Mask) -> None:
        for place in np.flatnonzero(dead).tolist():
            labels = self._series.values[place]
            self._other.discard(labels)
            for pod in self._budgeted.pop(labels, ()):
                self._of_pod[pod].discard(labels)
                if not self._of_pod[pod]:
                    del self._of_pod[pod]
        kept = np.flatnonzero(~dead)
        # Keys are forgotten, too: what was counted with the others may get a series of its own.
        self._series.keep(kept)
        self._shown = []
        for column in (self._counts, self._used, self._open):
            column[: len(kept)] = column[kept]
            column[len(kept) :] = 0
        self._other_noted = len(self._other)

    def pods(self) -> Collection[PodName]:
        """All pods that series name."""
        return self._of_pod.keys()

    # -- telling ------------------------------------------------------------------------------------------

    @property
    def label_names(self) -> Labels:
        """Of the one series that is counted."""
        return (*self.kind.series[0].labels, *self.side_labels)

    @property
    def size(self) -> int:
        """Series there are."""
        return len(self._series.values)

    def samples(self) -> Iterator[tuple[Labels, int]]:
        """Label values, in the order of `label_names`, with their counts, as of now."""
        return zip(list(self._series.values), self._counts[: self.size].tolist(), strict=True)

    def text(self, *, open_metrics: bool) -> Iterator[bytes]:
        """All series as Prometheus reads them, in pieces."""
        for number, series in enumerate(self.kind.series):
            head = Head(series.name, series.type, series.help)
            lines = self._lines(head) if number == 0 and self.kind.select is not None else iter(())
            yield from exposition.in_pieces(head, lines, open_metrics=open_metrics)

    def _lines(self, head: Head) -> Iterator[str]:
        """As of the first line; what stands before a number is put together once."""
        values, names = self._series.values, self.label_names
        shown, counts = self._shown, self._counts[: self.size].tolist()
        for place, (labels, count) in enumerate(zip(list(values), counts, strict=True)):
            if place == len(shown):
                shown.append(exposition.series(head, names, labels))
            yield f"{shown[place]} {count}"
