"""Lengths of time as flags have them."""

from __future__ import annotations

import pytest

from cilia.kit.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("1.5", 1.5),
        ("2m0s", 120),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1d", 86400),
        ("2µs", 2e-6),
    ],
)
def test_lengths(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1 m", "m", "2x", "1m2", "1e3", "nan"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="no length of time"):
        parse_duration(text)
