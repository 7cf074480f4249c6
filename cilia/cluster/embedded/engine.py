"""The objects in memory: a committed state for readers, a head for writers, and the history for watchers.

All methods run on the event loop; only :class:`~.storage.Storage` has a thread. A write reads
:meth:`Engine.head` and calls :meth:`Engine.write` without awaiting in between, so that it needs no lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

import msgspec

from .errors import ApiError, expired
from .storage import Content, EventType, Job, Key, Row, Storage, StorageError

HISTORY_BYTES: Final = 8 << 20
"""How many bytes of history stay in memory; older events are answered with 410 and a new list."""
HISTORY_EVENTS: Final = 4096
"""How many events of history stay in memory."""

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


class View(msgspec.Struct, frozen=True):
    """What selectors look at."""

    labels: dict[str, str]
    fields: dict[str, str]


class Entry(msgspec.Struct, frozen=True):
    """One version of one object: the bytes that are sent, and what is asked of it often."""

    key: Key
    version: int
    uid: str
    body: bytes
    view: View
    owners: tuple[str, ...]
    deleting: bool

    def decoded(self) -> dict[str, Any]:
        """A fresh copy of the object, free to change."""
        value: dict[str, Any] = decode(self.body)
        return value


class Event:
    """One committed change. ``cache`` holds its encodings, by representation, made when first asked for."""

    __slots__ = ("before", "cache", "entry", "type", "version")

    def __init__(self, kind: EventType, entry: Entry, before: View | None) -> None:
        self.type = kind
        self.version = entry.version
        self.entry = entry
        self.before = before
        self.cache: dict[Any, bytes] = {}


class Listener(Protocol):
    """A watcher, as the engine sees it."""

    def offer(self, events: list[Event]) -> None:
        """Take the events of one commit, all of the resource listened to."""

    def close(self) -> None:
        """Nothing will come any more."""


class Change(msgspec.Struct, frozen=True):
    """A wish: ``value`` is the whole new object, or None to remove it."""

    key: Key
    value: dict[str, Any] | None


class _Pending(msgspec.Struct, frozen=True):
    entries: list[Entry]
    future: asyncio.Future[None]


Fields = Callable[[str, dict[str, Any]], dict[str, str]]


class Engine:
    """The state of the API server."""

    def __init__(self, storage: Storage, fields: Fields) -> None:
        self._storage = storage
        self._fields = fields
        self._committed: dict[str, dict[tuple[str, str], Entry]] = {}
        self._owned: dict[str, set[Key]] = {}
        self._uids: dict[str, Key] = {}
        self._head: dict[Key, tuple[int, Entry | None]] = {}
        self._epoch = 0
        self._history: deque[Event] = deque()
        self._history_bytes = 0
        self._listeners: dict[str, set[Listener]] = {}
        self._observers: list[Callable[[list[Event]], None]] = []
        self._mourners: list[Callable[[], None]] = []
        self._pending: dict[int, _Pending] = {}
        self._version = 0
        self._assigned = 0
        self._compacted = 0
        self._ticket = 0

    def start(self, content: Content) -> None:
        """Take over what was on disk and begin to accept writes."""
        for stored in content.objects:
            self._place(self.entry(stored.key, stored.version, stored.body))
        self._version = self._assigned = content.last_version
        self._compacted = content.compacted
        for row in content.history:
            before = msgspec.json.decode(row.before, type=View) if row.before else None
            self._remember(Event(row.type, self.entry(row.key, row.version, row.body), before))
        loop = asyncio.get_running_loop()

        def committed(jobs: list[Job], error: StorageError | None) -> None:
            loop.call_soon_threadsafe(self._settle, jobs, error)

        self._storage.start(committed)

    # --- reading -----------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The resourceVersion of the newest committed write."""
        return self._version

    def get(self, key: Key) -> Entry | None:
        """The committed object."""
        return self._committed.get(key.resource, {}).get((key.namespace, key.name))

    def head(self, key: Key) -> Entry | None:
        """The object as the next write must see it: pending writes included."""
        pending = self._head.get(key)
        return pending[1] if pending is not None else self.get(key)

    def entries(self, resource: str, namespace: str = "") -> list[Entry]:
        """All committed objects of a kind (in one namespace), by namespace and name."""
        objects = self._committed.get(resource, {})
        return [objects[at] for at in sorted(objects) if not namespace or at[0] == namespace]

    def resources(self) -> list[str]:
        """Kinds of which objects exist."""
        return [resource for resource, objects in self._committed.items() if objects]

    def by_uid(self, uid: str) -> Entry | None:
        """The committed object with this UID."""
        key = self._uids.get(uid)
        return self.get(key) if key is not None else None

    def owned_by(self, uid: str) -> list[Key]:
        """Committed objects that name this owner."""
        return sorted(self._owned.get(uid, ()))

    def since(self, version: int, resource: str) -> list[Event]:
        """Events of a kind after ``version``; raises 410 if they are not kept or never happened here."""
        if version < self._compacted:
            raise expired(f"too old resource version: {version} ({self._compacted})")
        if version > self._version:
            raise expired(
                f"resource version {version} is newer than this server's {self._version}; list again"
            )
        return [e for e in self._history if e.version > version and e.entry.key.resource == resource]

    def index_again(self, resource: str) -> None:
        """Look at the fields of a kind's objects again, because others are selectable now."""
        for entry in self.entries(resource):
            self._place(self.entry(entry.key, entry.version, entry.body))

    # --- listening ---------------------------------------------------------------------------------------

    def listen(self, resource: str, listener: Listener) -> Callable[[], None]:
        """Offer future events of a kind to ``listener``, until the returned function is called."""
        self._listeners.setdefault(resource, set()).add(listener)
        return lambda: self._listeners[resource].discard(listener)

    def hang_up(self, resource: str = "") -> None:
        """End the watches of one kind, or all."""
        for name, listeners in self._listeners.items():
            if resource in ("", name):
                for listener in listeners:
                    listener.close()

    def observe(self, observer: Callable[[list[Event]], None]) -> None:
        """Call ``observer`` with every commit's events, before watchers and writers hear of them."""
        self._observers.append(observer)

    def when_failed(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when pending writes will never be, and the head is what is committed."""
        self._mourners.append(callback)

    # --- writing -----------------------------------------------------------------------------------------

    def write(self, changes: Iterable[Change]) -> tuple[list[Entry], asyncio.Future[None]]:
        """Stamp versions, move the head and queue the commit.

        The future is done when the changes are on disk and visible; it raises ApiError 507 or 500 if they
        never will be. Removing an object yields its last state under the new version.
        """
        rows: list[Row] = []
        entries: list[Entry] = []
        for change in changes:
            entry, row = self._stamp(change)
            entries.append(entry)
            rows.append(row)
        self._ticket += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending[self._ticket] = _Pending(entries, future)
        self._storage.submit(Job(self._ticket, self._epoch, rows))
        return entries, future

    async def settled(self) -> None:
        """Wait until everything written so far is on disk; raises as :meth:`write` does."""
        pending = self._pending.get(self._ticket)
        if pending is not None:
            await asyncio.shield(pending.future)

    def _stamp(self, change: Change) -> tuple[Entry, Row]:
        old = self.head(change.key)
        self._assigned += 1
        version = self._assigned
        value = change.value
        if value is None:
            if old is None:
                raise KeyError(change.key)
            value = old.decoded()
        value["metadata"]["resourceVersion"] = str(version)
        entry = self.entry(change.key, version, encode(value), value)
        kind: EventType = "DELETED" if change.value is None else "ADDED" if old is None else "MODIFIED"
        self._head[change.key] = (version, None if change.value is None else entry)
        return entry, Row(version, kind, change.key, entry.body, encode(old.view) if old else b"")

    def entry(self, key: Key, version: int, body: bytes, value: dict[str, Any] | None = None) -> Entry:
        """Describe encoded bytes; ``value`` saves decoding them."""
        value = decode(body) if value is None else value
        meta = value["metadata"]
        return Entry(
            key=key,
            version=version,
            uid=meta.get("uid", ""),
            body=body,
            view=View(meta.get("labels") or {}, self._fields(key.resource, value)),
            owners=tuple(owner["uid"] for owner in meta.get("ownerReferences") or ()),
            deleting="deletionTimestamp" in meta,
        )

    # --- after the commit --------------------------------------------------------------------------------

    def _settle(self, jobs: list[Job], error: StorageError | None) -> None:
        if error is not None and any(job.epoch == self._epoch for job in jobs):
            # Whatever is pending was judged against a head that will never be.
            self._head.clear()
            self._epoch += 1
            for callback in self._mourners:
                callback()
        for job in jobs:
            pending = self._pending.pop(job.ticket)
            if error is None:
                self._publish(job.rows, pending.entries)
            if pending.future.done():
                continue
            if error is None:
                pending.future.set_result(None)
            else:
                pending.future.set_exception(ApiError(507 if error.full else 500, str(error)))

    def _publish(self, rows: Sequence[Row], entries: list[Entry]) -> None:
        events: list[Event] = []
        for row, entry in zip(rows, entries, strict=True):
            old = self.get(row.key)
            events.append(Event(row.type, entry, old.view if old else None))
            if old is not None:
                self._unplace(old)
            if row.type != "DELETED":
                self._place(entry)
            if (head := self._head.get(row.key)) is not None and head[0] <= row.version:
                del self._head[row.key]
            self._version = row.version
        for event in events:
            self._remember(event)
        for observer in self._observers:
            observer(events)
        for resource in {event.entry.key.resource for event in events}:
            offered = [event for event in events if event.entry.key.resource == resource]
            for listener in list(self._listeners.get(resource, ())):
                listener.offer(offered)

    def _place(self, entry: Entry) -> None:
        key = entry.key
        self._committed.setdefault(key.resource, {})[key.namespace, key.name] = entry
        self._uids[entry.uid] = key
        for uid in entry.owners:
            self._owned.setdefault(uid, set()).add(key)

    def _unplace(self, entry: Entry) -> None:
        key = entry.key
        del self._committed[key.resource][key.namespace, key.name]
        self._uids.pop(entry.uid, None)
        for uid in entry.owners:
            owned = self._owned.get(uid, set())
            owned.discard(key)
            if not owned:
                self._owned.pop(uid, None)

    def _remember(self, event: Event) -> None:
        self._history.append(event)
        self._history_bytes += len(event.entry.body)
        while self._history_bytes > HISTORY_BYTES or len(self._history) > HISTORY_EVENTS:
            oldest = self._history.popleft()
            self._history_bytes -= len(oldest.entry.body)
            self._compacted = oldest.version
