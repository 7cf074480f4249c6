"""Logging: one line per event, to standard error, as text or JSON."""

from __future__ import annotations

import logging
import re
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, WrappedLogger

SECRET_WORDS = ("token", "password", "secret", "authorization", "private_key", "client_key")


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys, and what turns text around."""


def spell_out(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Spell out what a terminal would obey: some of what is logged was written by others."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    return event


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the value of every key that names a secret."""
    for key in event:
        if any(word in key.lower() for word in SECRET_WORDS):
            event[key] = "(hidden)"
    return event


def configure(level: str = "info", style: Literal["text", "json"] = "text") -> None:
    """Set up structlog for a process. `level`: debug, info, warning or error."""
    rendering: list[structlog.typing.Processor]
    if style == "json":
        rendering = [structlog.processors.JSONRenderer()]
    else:
        rendering = [spell_out, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            hide_secrets,
            structlog.processors.format_exc_info,
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
