"""History of one agent: its files, who writes them and who reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cilia.hubble.history.archive import Archive
from cilia.hubble.history.numbers import HistoryNumbers
from cilia.hubble.history.recorder import Recorder
from cilia.hubble.history.settings import HistoryError, HistorySettings
from cilia.hubble.history.shelf import Shelf
from cilia.hubble.past import Part, Question
from cilia.hubble.store import FlowStore
from cilia.kit import threads
from cilia.kit.clock import Clock
from cilia.kit.tasks import TaskGroup


class History:
    """What the observer takes for its past (`past.Past`)."""

    def __init__(self, store: FlowStore, node: str, settings: HistorySettings, clock: Clock) -> None:
        self._shelf = Shelf(settings.directory)
        self._recorder = Recorder(store, self._shelf, node, settings, clock)
        self._archive = Archive(self._shelf, store)
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Look at the files there are. Raises HistoryError."""
        try:
            await threads.start("open history", self._shelf.open)
        except OSError as error:
            raise HistoryError(
                f"the history directory {self._shelf.directory} can't be used ({error.strerror or error}): "
                "give it to the agent's user, or choose another --hubble-history-dir"
            ) from error

    def start(self, tasks: TaskGroup) -> None:
        """Record from now on."""
        self._task = tasks.spawn("record flows", self._recorder.run())

    async def close(self) -> None:
        """Seal what is there, and stop."""
        self._recorder.stop()
        if self._task is not None:
            await asyncio.wait([self._task])

    @property
    def reach(self) -> int:
        """Rows of the running agent below this number are sealed, or counted as lost."""
        return self._recorder.reach

    def read(self, question: Question) -> AsyncIterator[Part]:
        """As `past.Past.read`."""
        return self._archive.read(question)

    def numbers(self) -> HistoryNumbers:
        """How it stands."""
        return self._recorder.numbers()
