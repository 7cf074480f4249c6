"""What goes when something else has gone: dependents of owners, content of namespaces and kinds, old events.

The collector is told of commits (:meth:`Collector.notice`), keeps a list of what to look at, and works in
the background through the same :class:`~.writes.Writer` as clients. A start looks at everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog

from . import crds
from .engine import Engine, Entry, Event
from .errors import ApiError
from .registry import Registry
from .storage import Key
from .writes import CRD_FINALIZER, FOREGROUND, NAMESPACES, ORPHAN, DeleteOptions, Options, Writer

log = structlog.get_logger(__name__)

EVENT_LIFE: Final = 3600.0
"""Seconds an Event object is kept, as the Kubernetes API server keeps it by default."""
_EVENT_SWEEP: Final = 60.0
_RETRY: Final = 1.0


class Collector:
    """The background work of deletion."""

    def __init__(
        self, engine: Engine, registry: Registry, writer: Writer, monotonic: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._writer = writer
        self._monotonic = monotonic
        self._suspects: dict[Key, None] = {}
        self._gone: dict[str, None] = {}
        self._wake = asyncio.Event()
        engine.observe(self.notice)

    def notice(self, events: list[Event]) -> None:
        """Remember what a commit may have left behind."""
        for event in events:
            entry = event.entry
            if event.type == "DELETED":
                self._gone[entry.uid] = None
                self._look_above(entry)
            elif entry.deleting or entry.owners:
                self._suspects[entry.key] = None
        if self._gone or self._suspects:
            self._wake.set()

    def _look_above(self, entry: Entry) -> None:
        """Something that waited for this object to go may be able to go now."""
        for key in (
            Key(NAMESPACES, "", entry.key.namespace),
            Key(crds.KEY, "", ".".join(reversed(entry.key.resource.split("/")))),
        ):
            above = self._engine.get(key)
            if above is not None and above.deleting:
                self._suspects[key] = None
        for uid in entry.owners:
            owner = self._engine.by_uid(uid)
            if owner is not None and owner.deleting:
                self._suspects[owner.key] = None

    async def run(self) -> None:
        """Work until cancelled."""
        for resource in self._engine.resources():
            for entry in self._engine.entries(resource):
                if entry.deleting or entry.owners:
                    self._suspects[entry.key] = None
        next_sweep = self._monotonic()
        while True:
            if self._monotonic() >= next_sweep:
                next_sweep = self._monotonic() + _EVENT_SWEEP
                await self._attempt(self._expire_events)
            await self._attempt(self._work)
            try:
                async with asyncio.timeout(max(next_sweep - self._monotonic(), 0.01)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except ApiError as error:
            log.warning("garbage collection is put off", error=error.message)
            await asyncio.sleep(_RETRY)
            self._wake.set()

    async def _work(self) -> None:
        while self._gone or self._suspects:
            for uid in list(self._gone):
                del self._gone[uid]
                self._suspects.update(dict.fromkeys(self._engine.owned_by(uid)))
            for key in list(self._suspects):
                del self._suspects[key]
                try:
                    await self._judge(key)
                except ApiError:
                    self._suspects[key] = None
                    raise

    async def _judge(self, key: Key) -> None:
        entry = self._engine.get(key)
        if entry is None:
            return
        if entry.deleting:
            await self._help_go(entry)
        elif entry.owners and not any(self._engine.by_uid(uid) for uid in entry.owners):
            await self._delete(key)

    async def _help_go(self, entry: Entry) -> None:
        key = entry.key
        finalizers = entry.decoded()["metadata"].get("finalizers") or ()
        if key.resource == NAMESPACES:
            await self._empty(
                [
                    each.key
                    for resource in self._engine.resources()
                    if resource != NAMESPACES
                    for each in self._engine.entries(resource, key.name)
                ]
            )
            left = any(self._engine.entries(r, key.name) for r in self._engine.resources() if r != NAMESPACES)
            if not left:
                await self._writer.finish(key, "kubernetes")
        if CRD_FINALIZER in finalizers:
            spec = entry.decoded()["spec"]
            resource = f"{spec['group']}/{spec['names']['plural']}"
            await self._empty([each.key for each in self._engine.entries(resource)])
            if not self._engine.entries(resource):
                await self._writer.finish(key, CRD_FINALIZER)
        if ORPHAN in finalizers:
            for dependent in self._engine.owned_by(entry.uid):
                await self._writer.disown(dependent, entry.uid)
            await self._writer.finish(key, ORPHAN)
        if FOREGROUND in finalizers:
            await self._empty(self._engine.owned_by(entry.uid))
            if not self._engine.owned_by(entry.uid):
                await self._writer.finish(key, FOREGROUND)

    async def _empty(self, keys: list[Key]) -> None:
        """Delete many at once, so that they share commits."""
        await asyncio.gather(*(self._delete(key) for key in keys))

    async def _delete(self, key: Key) -> None:
        kind = self._registry.by_key(key.resource)
        if kind is None:
            return
        try:
            await self._writer.delete(kind, key, DeleteOptions(propagationPolicy="Background"), Options())
        except ApiError as error:
            if error.code not in (403, 404):
                raise

    async def _expire_events(self) -> None:
        now = self._writer.now()
        await self._empty(
            [entry.key for entry in self._engine.entries("/events") if _seconds_old(entry, now) > EVENT_LIFE]
        )


def _seconds_old(event: Entry, now: datetime) -> float:
    value = event.decoded()
    stamp = value.get("lastTimestamp") or value["metadata"].get("creationTimestamp")
    try:
        return (now - datetime.fromisoformat(stamp)).total_seconds()
    except (TypeError, ValueError):
        return EVENT_LIFE + 1
