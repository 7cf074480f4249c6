"""All exporters of an agent: the one of its flags, and those of the file of flow logs, which is followed.

    file of flow logs ─► read_file ─► wanted ─┬─ new: added
                                              ├─ changed: replaced, from the same place on, with its counts
                                              ├─ same: left alone
                                              └─ gone: ended

A file that can't be read, or is wrong, changes nothing and is told once.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import structlog

from cilia.hubble.convert import Converter, NodeFacts
from cilia.hubble.export.exporter import Exporter, ExportStatus, State
from cilia.hubble.export.settings import LONGEST_FILE, STATIC, ExportError, ExportSettings, read_file
from cilia.hubble.store import FlowStore
from cilia.kit import threads
from cilia.kit.backoff import Backoff
from cilia.kit.clock import Clock
from cilia.kit.files import Stamp, read_regular, stamp
from cilia.kit.tasks import TaskGroup

log = structlog.get_logger(__name__)

LOOK_INTERVAL = 1.0
"""Seconds between two looks at the file of flow logs."""


class Exporters:
    """Starts, replaces, ends and restarts exporters."""

    def __init__(
        self,
        store: FlowStore,
        node: NodeFacts,
        clock: Clock,
        *,
        static: ExportSettings | None = None,
        flow_logs: Path | None = None,
    ) -> None:
        """`static`: of the flags; `flow_logs`: the file to follow. Raises ExportError."""
        self._store = store
        self._node = node
        self._clock = clock
        self._converter = Converter(store, node)
        self._flow_logs = flow_logs
        self._running: dict[str, Exporter] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._seen: Stamp | None = None
        """Of the file of flow logs when it was read last."""
        self._changing: Stamp | None = None
        """Of the same when it was last looked at."""
        self._group: TaskGroup | None = None
        self.problem = ""
        """Why the file of flow logs is not followed; one sentence."""
        self.reconfigurations: Counter[str] = Counter()
        """By what was done: add, update, remove."""
        self.config_hash = 0
        """Of the file of flow logs that is followed; 0: none."""
        self.config_applied = 0.0
        """When it was read, in seconds since the epoch; 0: never."""
        if static is not None:
            self._running[STATIC] = self._make(static)

    def start(self, tasks: TaskGroup) -> None:
        """Export until the group is closed; then call `close`."""
        self._group = tasks
        for name in self._running:
            self._spawn(name)
        if self._flow_logs is not None:
            tasks.spawn("follow flow logs", self._follow(self._flow_logs))

    async def close(self) -> None:
        """Stop all; each writes what has come."""
        await asyncio.gather(*map(self._stop, tuple(self._running)))

    def statuses(self) -> list[ExportStatus]:
        """Of each exporter, by name."""
        return [self._running[name].status() for name in sorted(self._running)]

    async def apply(self, wanted: Mapping[str, ExportSettings]) -> None:
        """Have exactly these exporters beside the static one. When it raises ExportError, nothing changed."""
        static = self._running.get(STATIC)
        for settings in wanted.values():
            if static is not None and settings.place == static.settings.place:
                raise ExportError(f"{settings.path} is the static exporter's: give each its own file")
        ours = {name: exporter for name, exporter in self._running.items() if name != STATIC}
        changed = {
            name: self._make(settings, ours.get(name))
            for name, settings in wanted.items()
            if name not in ours or ours[name].settings != settings
        }
        for name in ours.keys() - wanted.keys():
            await self._stop(name)
            self._count("remove", name)
        for name in ours.keys() & changed.keys():
            await self._stop(name)
        for name, exporter in changed.items():
            self._count("update" if name in ours else "add", name)
            self._running[name] = exporter
            self._spawn(name)

    # -- following the file -------------------------------------------------------------------------------

    async def _follow(self, path: Path) -> None:
        while True:
            await self.look(path)
            await asyncio.sleep(LOOK_INTERVAL)

    async def look(self, path: Path) -> None:
        """Follow the file if it changed, and is the same in two looks: half of it would end exporters that
        the other half names."""
        # The path of a mounted ConfigMap is a link whose target is replaced.
        seen = stamp(path)
        if seen is not None and seen == self._seen:
            self._changing = seen
            return
        settled, self._changing = seen == self._changing, seen
        if self.config_applied and not settled:
            return
        self._seen = seen
        try:
            content, wanted = await threads.start("read flow logs", read, path)
            await self.apply(wanted)
        except (ExportError, OSError) as error:
            self._note_problem(f"{path} is not followed: {error}")
            return
        self.problem = ""
        self.config_hash, self.config_applied = zlib.crc32(content), self._clock.wall()

    def _note_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            log.error("exporters stay as they are: mend the file", problem=problem)

    def _count(self, operation: str, name: str) -> None:
        self.reconfigurations[operation] += 1
        log.info("exporter changed", exporter=name, operation=operation)

    # -- running ------------------------------------------------------------------------------------------

    def _make(self, settings: ExportSettings, before: Exporter | None = None) -> Exporter:
        return Exporter(
            settings,
            self._store,
            self._node,
            self._converter,
            self._clock,
            place=before.place if before is not None else None,
            counts=before.counts if before is not None else None,
        )

    def _spawn(self, name: str) -> None:
        if self._group is not None:
            exporter = self._running[name]
            self._tasks[name] = self._group.spawn(f"export flows: {name}", self._watch(exporter))

    async def _watch(self, exporter: Exporter) -> None:
        """Run an exporter; start it again when it stops by itself."""
        backoff = Backoff(first=0.5, limit=30.0)
        while exporter.state is not State.ENDED:
            try:
                await exporter.run()
            except Exception as error:
                exporter.counts.restarts += 1
                log.exception("exporter failed and is started again", exporter=exporter.settings.name)
                exporter.state, exporter.problem = (
                    State.FAILING,
                    f"it failed ({error!r}) and is started again",
                )
                await asyncio.sleep(backoff.next())

    async def _stop(self, name: str) -> None:
        exporter, task = self._running.pop(name), self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        if exporter.state is not State.ENDED:
            await exporter.finish()


def read(path: Path) -> tuple[bytes, dict[str, ExportSettings]]:
    """What a file of flow logs has, and what that means. Raises ExportError."""
    try:
        content = read_regular(path, LONGEST_FILE)
    except OSError as error:
        raise ExportError(f"it can't be read ({error.strerror})") from error
    return content, read_file(content)
