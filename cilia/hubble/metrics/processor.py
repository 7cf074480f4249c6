"""Flows to metrics: follows the store at its own pace and keeps the families.

A step is as many rows as take a few milliseconds, then others get their turn. Rows that the ring has
overwritten before they were counted are a number of their own, `hubble_metrics_missed_flows_total`: counters
that are wrong say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from cilia.hubble.convert import NodeFacts
from cilia.hubble.cursor import Cursor
from cilia.hubble.filter_values import FilterError, UnsupportedFilter
from cilia.hubble.filters import FlowMatcher
from cilia.hubble.metrics import exposition
from cilia.hubble.metrics.batch import Batch
from cilia.hubble.metrics.contexts import Called, PodName, Side
from cilia.hubble.metrics.exposition import Head, Sample
from cilia.hubble.metrics.family import Family, Keys, Limits
from cilia.hubble.metrics.options import Filters, MetricConfig, MetricsError
from cilia.hubble.predicates import Context
from cilia.hubble.store import FlowStore, LossSource
from cilia.kit.clock import Clock

SMALLEST_STEP, LARGEST_STEP = 512, 8192
"""Rows counted before other tasks of the agent get their turn."""

QUICK, SLOW = 0.004, 0.01
"""Seconds: the next step is twice or half as large after one that took less or more."""

CHUNK = 1024
"""Keys counted in one go, of which all may be new."""

PRESSING = 8192
"""Rows that wait before they are counted ahead of time."""

INTERVAL = 1.0
"""Seconds between two looks at what came."""

HOUSEKEEPING = 15.0
"""Seconds between two looks for series nobody needs."""

POD_GRACE = 60.0
"""Seconds the series of a pod outlive it, so that its last numbers are scraped."""

LOST = Head("hubble_lost_events", "counter", "Number of lost events")
MISSED = Head("hubble_metrics_missed_flows", "counter", "Flows overwritten before they were counted")
CONFIG_VALID = Head(
    "hubble_metrics_config_valid", "gauge", "Whether the configuration in force is the one given"
)
SERIES = Head("hubble_metrics_series", "gauge", "Series of a metric")
SERIES_LIMIT = Head("hubble_metrics_series_limit", "gauge", "Series a metric may have; 0: no bound")
OVERFLOW = Head("hubble_metrics_overflow", "counter", "Flows counted as `other` for want of room")
EXPIRED = Head("hubble_metrics_series_expired", "counter", "Series dropped, by why")


class FlowMetrics:
    """All metrics about flows of one agent."""

    def __init__(
        self,
        store: FlowStore,
        node: NodeFacts,
        clock: Clock,
        limits: Limits | None = None,
        pods: Callable[[], Collection[PodName]] | None = None,
    ) -> None:
        """`pods`: all that exist in the cluster, as far as is known; without it series only go when idle."""
        self._store = store
        self._node = node
        self._clock = clock
        self._limits = limits or Limits()
        self._pods = pods
        self._families: dict[str, Family] = {}
        self._configs: dict[str, MetricConfig] = {}
        self._missing: dict[PodName, float] = {}
        """Pods that series name and nobody knows, and since when."""
        self._step = SMALLEST_STEP
        self._pressed = asyncio.Event()
        self.missed = 0
        """Rows that were overwritten before they were counted."""
        self.config_valid = True
        """Whether the dynamic configuration was read when it changed last."""

    # -- configuration ------------------------------------------------------------------------------------

    @property
    def families(self) -> tuple[Family, ...]:
        """All metrics."""
        return tuple(self._families.values())

    def configure(self, configs: Sequence[MetricConfig]) -> None:
        """Count these metrics from now on. Raises MetricsError, and then nothing has changed.

        A metric whose options are as before keeps its counts, also when its filters are others.
        """
        families, matchers = {}, {}
        sides: dict[Called, Side] = {side.called: side for family in self.families for side in family.sides}

        def shared(called: Called) -> Side:
            if called not in sides:
                sides[called] = Side(self._store, called)
            return sides[called]

        for config in configs:
            name = config.options.name
            known = self._configs.get(name)
            if known is not None and known.options == config.options:
                families[name] = self._families[name]
            else:
                families[name] = Family(self._store, config.options, self._limits, shared)
            matchers[name] = self._matcher(name, config.filters)
        for name, family in families.items():
            family.matcher = matchers[name]
        self._families = families
        self._configs = {config.options.name: config for config in configs}

    def _matcher(self, name: str, filters: Filters) -> FlowMatcher | None:
        include, exclude = filters.messages()
        if not include and not exclude:
            return None
        try:
            return FlowMatcher(Context(self._store, self._node), include, exclude)
        except (FilterError, UnsupportedFilter) as error:
            raise MetricsError(f"a filter of the metric {name} can't be used: {error}") from error

    # -- counting -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Count what comes, for ever."""
        self._store.listeners.add(self._look)
        try:
            with Cursor(self._store) as cursor:
                self._cursor = cursor
                due = self._clock.monotonic() + HOUSEKEEPING
                while True:
                    await cursor.wait(max(0.0, due - self._clock.monotonic()))
                    await self._pause()
                    await self.catch_up(cursor)
                    if self._clock.monotonic() >= due:
                        await self.housekeep()
                        due = self._clock.monotonic() + HOUSEKEEPING
        finally:
            self._store.listeners.discard(self._look)

    def _look(self) -> None:
        if self._store.head - self._cursor.position >= PRESSING:
            self._pressed.set()

    async def _pause(self) -> None:
        """Let rows gather: many at once cost less than one by one."""
        try:
            async with asyncio.timeout(INTERVAL):
                await self._pressed.wait()
        except TimeoutError:
            return
        finally:
            self._pressed.clear()

    async def catch_up(self, cursor: Cursor) -> None:
        """Count all rows there are."""
        while not cursor.waiting:
            arrived = cursor.step(self._step)
            self.missed += arrived.overwritten
            began = self._clock.monotonic()
            for family in self.families:
                family.tidy()
            # The rows hold until the next append, the keys for ever; each new key costs some microseconds.
            found = [
                (family, keys)
                for rows in self._store.spans(arrived.first, arrived.end)
                for batch in (Batch(rows),)
                for family in self.families
                for keys in family.select(batch)
            ]
            self._fit(self._clock.monotonic() - began)
            await self._add(found, began)

    async def _add(self, found: list[tuple[Family, Keys]], began: float) -> None:
        """Count, and let others have their turn every few milliseconds."""
        since = began
        for family, keys in found:
            for first in range(0, len(keys.words), CHUNK):
                family.add(keys.part(first, CHUNK), began)
                if self._clock.monotonic() - since > QUICK:
                    await asyncio.sleep(0)
                    since = self._clock.monotonic()
        await asyncio.sleep(0)

    def _fit(self, took: float) -> None:
        """Choose the size of the next step by what this one took, in seconds."""
        if took < QUICK:
            self._step = min(2 * self._step, LARGEST_STEP)
        elif took > SLOW:
            self._step = max(self._step // 2, SMALLEST_STEP)

    async def housekeep(self) -> None:
        """Drop series that nobody needs any more."""
        now = self._clock.monotonic()
        gone = self._gone(now)
        for family in self.families:
            family.expire(now, gone)
            await asyncio.sleep(0)

    def _gone(self, now: float) -> frozenset[PodName]:
        """Pods that are named by series and were not there for POD_GRACE."""
        if self._pods is None:
            return frozenset()
        named = set().union(*(family.pods() for family in self.families))
        missing = named.difference(self._pods())
        self._missing = {pod: self._missing.get(pod, now) for pod in missing}
        return frozenset(pod for pod, since in self._missing.items() if now - since >= POD_GRACE)

    # -- telling ------------------------------------------------------------------------------------------

    def text(self, *, open_metrics: bool = False) -> Iterator[bytes]:
        """All families in pieces that take a millisecond or two each, without the end of OpenMetrics."""
        for family in self.families:
            yield from family.text(open_metrics=open_metrics)
        for head, names, samples in self.own():
            yield from exposition.pieces(head, names, samples, open_metrics=open_metrics)

    def own(self) -> Iterable[tuple[Head, tuple[str, ...], list[Sample]]]:
        """Families about the counting itself, each with the names of its labels."""
        lost, families = self._store.metrics.lost, self.families

        def each(value: Callable[[Family], float]) -> list[Sample]:
            return [Sample((family.options.name,), value(family)) for family in families]

        yield (
            LOST,
            ("source",),
            [Sample((source.name.lower(),), lost.get(source, 0)) for source in LossSource],
        )
        yield MISSED, (), [Sample((), self.missed)]
        yield CONFIG_VALID, (), [Sample((), int(self.config_valid))]
        yield SERIES, ("metric",), each(lambda family: family.size)
        yield SERIES_LIMIT, ("metric",), each(lambda family: family.limits.series)
        yield OVERFLOW, ("metric",), each(lambda family: family.overflow)
        expired = [
            Sample((family.options.name, reason), count)
            for family in families
            for reason, count in sorted(family.expired.items())
        ]
        yield EXPIRED, ("metric", "reason"), expired
