"""Lengths of time as people write them: `90`, `1.5`, `500ms`, `2m`, `2m0s`, `1h30m`, `7d`."""

from __future__ import annotations

import re

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ns|us|µs|ms|s|m|h|d)")
PLAIN = re.compile(r"\d{1,9}(?:\.\d{1,9})?")


def parse_duration(text: str) -> float:
    """Seconds; a number without a unit means seconds. Raises ValueError with a sentence."""
    if PLAIN.fullmatch(text):
        return float(text)
    if not text or PART.sub("", text):
        raise ValueError(f"{text!r} is no length of time: write 90, 2m or 1h30m")
    return sum(float(number) * UNITS[unit] for number, unit in PART.findall(text))
