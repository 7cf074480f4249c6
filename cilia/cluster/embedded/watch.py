"""One watch: committed events in, framed lines out.

An event is encoded once per representation and shared by all watchers that want it so. A watcher that doesn't
read is cut off when :data:`MAX_PENDING` bytes wait for it; it resumes from its last resourceVersion.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import msgspec

from .engine import Engine, Entry, Event, View, encode
from .printing import IncludeObject, partial_metadata, table
from .registry import Kind, Version
from .selectors import FieldSelector, LabelSelector

MAX_PENDING: Final = 16 << 20
BOOKMARK_SECONDS: Final = 60.0
INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"


class Filter(msgspec.Struct, frozen=True):
    """Which objects of a kind a list or watch is about."""

    namespace: str = ""
    labels: LabelSelector = LabelSelector()
    fields: FieldSelector = FieldSelector()

    def admits(self, entry: Entry) -> bool:
        return (not self.namespace or entry.key.namespace == self.namespace) and self.selects(entry.view)

    def selects(self, view: View) -> bool:
        return self.labels.matches(view.labels) and self.fields.matches(view.fields)


class Shape(msgspec.Struct, frozen=True):
    """How objects of a kind leave the server. ``name`` is ``""``, ``Table`` or ``PartialObjectMetadata``."""

    kind: Kind
    version: Version
    name: str = ""
    include: IncludeObject = "Metadata"

    @property
    def plain(self) -> bool:
        """Whether the stored bytes can be sent as they are."""
        return not self.name and self.version.outward is None and self.version.name == self.kind.storage

    @property
    def cache_key(self) -> tuple[str, str, str]:
        return (self.kind.group + self.version.name, self.name, self.include)

    def value(self, entry: Entry) -> dict[str, Any]:
        """The object in the version asked for."""
        value = entry.decoded()
        if self.version.outward is not None:
            value = self.version.outward(value)
        value["apiVersion"] = self.kind.api_version(self.version.name)
        return value

    def body(self, entry: Entry) -> bytes:
        """One object as bytes; not for tables."""
        if self.plain:
            return entry.body
        value = self.value(entry)
        return encode(partial_metadata(value) if self.name else value)


class Watcher:
    """A listener with a buffer; the HTTP side drains it."""

    def __init__(self, shape: Shape, chosen: Filter, now: Callable[[], datetime]) -> None:
        self._shape = shape
        self._filter = chosen
        self._now = now
        self._headed = shape.name == "Table"
        self._lines: list[bytes] = []
        self._size = 0
        self._wake = asyncio.Event()
        self.overrun = False
        self.closed = False

    def offer(self, events: list[Event]) -> None:
        for event in events:
            if self._filter.namespace and event.entry.key.namespace != self._filter.namespace:
                continue
            kind = self._kind(event)
            if kind:
                self._push(self._line(kind, event))

    def _kind(self, event: Event) -> str:
        """What the event is in this watcher's view; empty if nothing."""
        before = event.before is not None and self._filter.selects(event.before)
        after = event.type != "DELETED" and self._filter.selects(event.entry.view)
        if after:
            return "MODIFIED" if before else "ADDED"
        return "DELETED" if before else ""

    def _line(self, kind: str, event: Event) -> bytes:
        key = (kind, self._shape.cache_key)
        if self._headed:
            return self._encode(kind, event.entry)
        line = event.cache.get(key)
        if line is None:
            line = event.cache[key] = self._encode(kind, event.entry)
        return line

    def _encode(self, kind: str, entry: Entry) -> bytes:
        if self._shape.name == "Table":
            body = self._table([self._shape.value(entry)], str(entry.version))
        else:
            body = self._shape.body(entry)
        return b'{"type":"%s","object":%s}\n' % (kind.encode(), body)

    def _table(self, values: list[dict[str, Any]], version: str) -> bytes:
        headed, self._headed = self._headed, False
        metadata = {"resourceVersion": version}
        return encode(
            table(
                self._shape.version.columns, values, self._now(), self._shape.include, metadata, headed=headed
            )
        )

    def begin(self, entries: list[Entry]) -> None:
        """Present what is there already as ADDED."""
        for entry in entries:
            self._push(self._encode("ADDED", entry))

    def bookmark(self, version: int, *, initial_end: bool = False) -> None:
        """Tell the client how far it has come."""
        metadata: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
        if initial_end:
            metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
        kind = self._shape.kind
        mark: dict[str, Any]
        if self._shape.name == "Table":
            mark = {
                "kind": "Table",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "columnDefinitions": None,
                "rows": [],
            }
        elif self._shape.name:
            mark = {"kind": self._shape.name, "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
        else:
            mark = {
                "kind": kind.kind,
                "apiVersion": kind.api_version(self._shape.version.name),
                "metadata": metadata,
            }
        self._push(b'{"type":"BOOKMARK","object":%s}\n' % encode(mark))

    def _push(self, line: bytes) -> None:
        if self._size + len(line) > MAX_PENDING and self._lines:
            self.overrun = True
            self._wake.set()
            return
        self._lines.append(line)
        self._size += len(line)
        self._wake.set()

    def close(self) -> None:
        """End the watch: the server stops, the client went, or the kind is gone."""
        self.closed = True
        self._wake.set()

    async def drain(self, timeout: float) -> bytes:
        """All lines that wait, joined; empty after ``timeout`` seconds without one, or when closed."""
        if not self._lines and not self.closed:
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                return b""
        self._wake.clear()
        joined = b"".join(self._lines)
        self._lines.clear()
        self._size = 0
        return joined


async def run(
    watcher: Watcher,
    send: Callable[[bytes], Any],
    engine: Engine,
    monotonic: Callable[[], float],
    *,
    timeout: float,
    bookmarks: bool,
) -> None:
    """Pump a watcher into ``send`` until its time is over, it is closed or it fell too far behind."""
    end = monotonic() + timeout
    mark = monotonic() + min(BOOKMARK_SECONDS, max(timeout - 2.0, 0.5))
    while not watcher.closed and not watcher.overrun:
        now = monotonic()
        if now >= end:
            return
        data = await watcher.drain(min(end, mark if bookmarks else end) - now)
        if data:
            await send(data)
        if bookmarks and monotonic() >= mark:
            watcher.bookmark(engine.version)
            mark = monotonic() + BOOKMARK_SECONDS
