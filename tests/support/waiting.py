"""Waiting for what comes true by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from cilia.api.client import AgentError

PATIENCE = 90.0
PAUSE = 0.01
"""Seconds."""


def until(holds: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait for something to come true; an agent that does not answer counts as not yet."""
    deadline = time.monotonic() + patience
    reason = ""
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except (AgentError, OSError) as error:
            reason = f": {error}"
        time.sleep(PAUSE)
    raise AssertionError(f"waited in vain for {what}{reason}")


async def until_async(holds: Callable[[], object], what: str = "it", patience: float = PATIENCE) -> None:
    """The same on an event loop, which goes on meanwhile; what `holds` raises is the caller's."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(PAUSE / 5)
