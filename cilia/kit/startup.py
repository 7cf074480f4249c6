"""How Python runs a process of ours: no garbage is looked for among what its start made, threads give way."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SELDOM = (2_000, 5, 2_000)
"""Thresholds of the collector's generations once a process has started. With Python's own (700, 10, 10), one
change in a hundred waited for a full collection, which takes longer than the change: of one identity among
ten thousand the 99th percentile was three times as high. The younger generations stay small: to give back
ten thousand objects at once, which connections and filters leave behind, held the event loop for 14 ms."""

SWITCH = 0.0005
"""For so long (seconds) a thread that computes may keep the event loop from each of its steps; Python's own
is ten times as long."""


def started() -> None:
    """Say that what stands now stands for good, and that collections may come seldom from here on."""
    gc.freeze()
    gc.set_threshold(*SELDOM)


def switch_often() -> None:
    """Let threads that compute beside the event loop interrupt each other often, for its sake."""
    sys.setswitchinterval(SWITCH)


@contextmanager
def importing(without: Sequence[str] = ()) -> Iterator[None]:
    """Run a block of imports without collecting garbage among what they make, then or later.

    In an agent, a quarter of the time of its imports would go into collections. `without` names optional
    modules that others would load if they could and this process has no use for; importing them in the
    block fails as if they were not installed.
    """
    hidden = [name for name in without if name not in sys.modules]
    collecting = gc.isenabled()
    gc.disable()
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        if collecting:
            gc.enable()
