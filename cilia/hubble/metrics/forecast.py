"""How many series a metric would have, by the flows that are in the store: asked before it is enabled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from cilia.hubble.metrics.batch import Batch
from cilia.hubble.metrics.family import Family, Limits
from cilia.hubble.metrics.options import MetricConfig
from cilia.hubble.store import FlowStore

STEP = 1024


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What a metric would be like on this node."""

    metric: str
    series: int
    flows: int
    """Flows it would have counted."""
    seconds: float
    """Time from the first to the last flow that was looked at."""
    by_label: tuple[tuple[str, int], ...]
    """How many values each label has, most first: what to leave out when there are too many series."""


async def forecast(store: FlowStore, configs: Sequence[MetricConfig]) -> tuple[Forecast, ...]:
    """Look at all flows that are there now; others get their turn in between. Filters don't count."""
    families = [Family(store, config.options, Limits(series=0, expiry=0)) for config in configs]
    position, end = store.oldest, store.head
    first, last = 0, 0
    while position < end:
        for rows in store.spans(position, min(position + STEP, end)):
            first, last = first or int(rows.wall[0]), int(rows.wall[-1])
            batch = Batch(rows)
            for family in families:
                family.take(batch, 0.0)
        position = max(position + STEP, store.oldest)
        await asyncio.sleep(0)
    return tuple(_told(family, (last - first) / 1e9) for family in families)


def _told(family: Family, seconds: float) -> Forecast:
    samples = list(family.samples())
    columns = zip(*(labels for labels, _ in samples), strict=True)
    values = [(name, len(set(column))) for name, column in zip(family.label_names, columns, strict=False)]
    return Forecast(
        metric=family.options.name,
        series=len(samples),
        flows=sum(count for _, count in samples),
        seconds=max(0.0, seconds),
        by_label=tuple(sorted(values, key=lambda pair: (-pair[1], pair[0]))),
    )
