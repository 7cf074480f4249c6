"""A line at the bottom of a terminal that says how fast flows come, while they scroll by above it.

Drawn by hand: rich's live displays would add a third of a second to the start of `cilia observe --follow`.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

INTERVAL = 0.5
"""Seconds between two drawings."""
WINDOW = 5.0
"""Seconds over which a rate is taken."""
CLEAR = "\r\x1b[2K"


class Rate:
    """How many things came in the last few seconds."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def __call__(self, now: float, total: int) -> float:
        """Things per second, by the count of all so far; call it now and then."""
        self._marks.append((now, total))
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW:
            self._marks.popleft()
        first, count = self._marks[0]
        return (total - count) / (now - first) if now > first else 0.0


class LiveLine:
    """Draws the line from a thread, so that it falls to 0 when nothing comes.

    with LiveLine(lambda: counted.flows, counted.sentence, on=sys.stderr.isatty()) as line:
        line.print(lambda: print("a flow"))
    """

    def __init__(
        self, total: Callable[[], int], told: Callable[[], str], *, on: bool, out: TextIO | None = None
    ) -> None:
        """`on`: whether to draw at all, which only a terminal likes."""
        self._total = total
        self._told = told
        self._on = on
        self._out = out or sys.stderr
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live line", daemon=True)
        self._drawn = False
        self._text = ""

    def __enter__(self) -> Self:
        if self._on:
            self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if not self._on:
            return
        self._ended.set()
        self._thread.join()
        with self._lock:
            self._clear()

    def print(self, write: Callable[[], None]) -> None:
        """Call `write` while the line is not there; it comes back with the next drawing."""
        with self._lock:
            self._clear()
            write()

    def _run(self) -> None:
        rate = Rate()
        while not self._ended.wait(INTERVAL):
            with self._lock:
                self._draw(rate(time.monotonic(), self._total()))

    def _draw(self, rate: float) -> None:
        width = shutil.get_terminal_size().columns - 1
        text = f"{rate:,.1f} flows/s; {self._told()}"[:width]
        if self._drawn and text == self._text:
            return
        self._text = text
        self._out.write(f"{CLEAR}\x1b[2m{text}\x1b[0m")
        self._out.flush()
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._out.write(CLEAR)
            self._out.flush()
            self._drawn = False
