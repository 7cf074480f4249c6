"""Moments as people type them: `5m`, `2 hours ago`, `yesterday`, `14:05`, `2026-11-23T04:20:00Z`, and as
`cilia observe` prints them in each of its time formats."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from cilia.kit.durations import parse_duration

WORDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0, "week": 604800.0}
AGO = re.compile(r"(\d+|an?)\s+(second|minute|hour|day|week)s?(?:\s+ago)?")


def parse_moment(value: str, now: datetime) -> datetime:
    """The moment meant by `value`; `now` has a zone, and times without one are in it.

    Raises ValueError with a sentence.
    """
    text = value.strip()
    days = {"now": 0, "today": 0, "yesterday": 1}
    if text.lower() in days:
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return now if text.lower() == "now" else midnight - timedelta(days=days[text.lower()])
    seconds = parse_ago(text.lower())
    if seconds is not None:
        try:
            return now - timedelta(seconds=seconds)
        except OverflowError:
            raise ValueError(f"{text!r} is before all calendars: give a moment there was") from None
    return parse_calendar(text, now)


def parse_ago(text: str) -> float | None:
    """Seconds of a duration such as `1h30m` or `5 minutes ago`; None when it is none."""
    match = AGO.fullmatch(text)
    if match:
        return (1 if match[1].startswith("a") else int(match[1])) * WORDS[match[2]]
    if not text[-1:].isalpha():
        return None  # A bare number may be a date.
    try:
        return parse_duration(text.removeprefix("-"))
    except ValueError:
        return None


def parse_calendar(text: str, now: datetime) -> datetime:
    """A date, a time of today, or both as RFC 3339 says. Raises ValueError with a sentence."""
    printed = parse_printed(text, now)
    if printed:
        return printed
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text):
            text = f"{now.date().isoformat()}T{text.zfill(len(text) + (text[1] == ':'))}"
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a time: use a duration (5m, 1h30m), 14:05, or 2026-11-23T04:20:00Z"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo or UTC)


def parse_printed(text: str, now: datetime) -> datetime | None:
    """`Nov 23 14:02:11.004` (the newest one that has been), `Mon, 23 Nov 2026 14:02:11 +0000`; else None."""
    try:
        return datetime.strptime(text, "%a, %d %b %Y %H:%M:%S %z")
    except ValueError:
        pass
    match = re.fullmatch(r"([A-Z][a-z]{2}) +(\d{1,2}) (\d{2}:\d{2}:\d{2})(\.\d{1,6})?", text)
    if not match:
        return None
    for year in (now.year, now.year - 1):
        try:
            whole = f"{year} {match[1]} {match[2]} {match[3]}{match[4] or '.0'}"
            moment = datetime.strptime(whole, "%Y %b %d %H:%M:%S.%f").replace(tzinfo=now.tzinfo)
        except ValueError:
            continue
        if moment <= now:
            return moment
    return None
