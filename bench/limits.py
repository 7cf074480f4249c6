"""Rows about what has no second system to compare with: the baseline is the limit it must keep."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any


def row(
    group: str,
    test: str,
    unit: str,
    limit: float,
    samples: Sequence[float],
    summary: Callable[[Sequence[float]], float],
    **extra: Any,
) -> dict[str, Any]:
    """A row of the table. `limit` is the most the design allows; the spread is in parts of it. A hundred
    times better than it is as much as is said, also of what is there before it was asked for."""
    value = summary(samples)
    quartiles = statistics.quantiles(samples, n=4) if len(samples) > 1 else [value] * 3
    return {
        "group": group,
        "test": f"{test} ({unit})",
        "path": "cilia",
        "against": "limit",
        "ratio": round(limit / max(value, limit / 100), 2),
        "spread": round((quartiles[2] - quartiles[0]) / 2 / limit, 2),
        "reach": 1.0,
        "baseline": limit,
        "measured": round(value, 3),
        "best": round(min(samples), 3),
        "samples": len(samples),
        "load": round(os.getloadavg()[0], 1),
        **extra,
    }


def p99(samples: Sequence[float]) -> float:
    """The 99th percentile: the largest of fewer than a hundred."""
    return sorted(samples)[max(0, -(-len(samples) * 99 // 100) - 1)]
