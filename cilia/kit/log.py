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


def shorten_faults(record: logging.LogRecord) -> bool:
    """Makes a line of the traceback that event loops tell of a connection that breaks; a logging filter."""
    error = record.exc_info[1] if record.exc_info else None
    if record.getMessage().startswith("Fatal error on ") and error is not None:
        record.msg, record.args = f"A connection broke: {error}", None
        record.exc_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def configure(level: str = "info", style: Literal["text", "json"] = "text") -> None:
    """Set up structlog for a process, and what libraries tell by `logging` from warnings on: both come out
    as the same lines. `level`: debug, info, warning or error. Whoever has set up `logging` before keeps it.
    """
    rendering: list[structlog.typing.Processor]
    if style == "json":
        rendering = [structlog.processors.JSONRenderer()]
    else:
        rendering = [spell_out, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    steps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*steps, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    libraries = logging.StreamHandler(sys.stderr)
    libraries.addFilter(shorten_faults)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=steps,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[libraries], level=max(logging.WARNING, getattr(logging, level.upper())))
