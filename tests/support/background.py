"""Work in a thread beside a test, for the length of a `with` block."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

PATIENCE = 60.0
"""Seconds that the thread has to end."""


class Background(ABC):
    """Runs `_run` until `_stopping` is set, then closes what it used."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE)
        self._close()

    @abstractmethod
    def _run(self) -> None:
        """What the thread does; it ends soon after `_stopping` is set."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of everything; the thread has ended."""
