"""Keeps a table equal to a collection of objects: list, then watch, then list again after a gap.

The table's rows are a function of the objects that exist now. A list replaces all rows this reflector owns,
so whatever a gap hid is made up for; equal rows are not announced again.
"""

import asyncio
from collections.abc import Callable, Hashable
from contextlib import aclosing
from typing import Generic, TypeVar

import msgspec
import structlog

from cilia.cluster.store import Gone, Invalid, NotFound, Resource, Store, StoreError, WatchEvent, decode
from cilia.kit.backoff import Backoff
from cilia.model.resources.base import AnyObject
from cilia.tables.table import Table

log = structlog.get_logger(__name__)

MISSING_SECONDS = 0.25
"""Between two questions for a kind that does not exist: the operator may be defining it now."""

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


class Translation(msgspec.Struct, Generic[K, R], frozen=True):
    """How objects of one kind become rows."""

    resource: Resource
    row: Callable[[msgspec.Raw], R | None]
    """The row of an object, None when it has none; raises Invalid when it can't be understood."""
    key: Callable[[AnyObject], K]
    """The key of the row an object has, or would have."""
    owns: Callable[[R], bool] = lambda _row: True
    """Whether a row of the table comes from this kind, for tables that several kinds fill."""
    same: Callable[[R, R], bool] = lambda before, after: bool(before == after)
    """Whether a newer row of the same key means nothing new; the older one is then kept."""
    field_selector: str | None = None
    optional: bool = False
    """A cluster that does not know the kind has no objects of it, and that is complete knowledge."""


class Reflector(Generic[K, R]):
    """One collection and the table it fills. `run` never returns."""

    def __init__(self, store: Store, table: Table[K, R], translation: Translation[K, R]) -> None:
        self.synced = asyncio.Event()
        """Set when the first complete list is in the table."""
        self.error = ""
        """Why the store can't be heard right now; empty when it can."""
        self.lists = 0
        """How many complete lists were taken up: more than one after gaps."""
        self._store = store
        self._table = table
        self._translation = translation
        self._backoff = Backoff(limit=5.0)
        self._since: str | None = None
        self._refused: dict[tuple[str, str], str] = {}
        """By namespace and name: what is wrong with an object, told once until it changes."""

    @property
    def resource(self) -> Resource:
        """The kind that is reflected."""
        return self._translation.resource

    async def run(self) -> None:
        """Follow the collection for ever; errors of the store are waited out."""
        while True:
            try:
                if self._since is None:
                    self._since = await self._list()
                await self._follow(self._since)
            except Gone:
                self._since = None
                continue
            except NotFound as error:
                self._missing(error)
                await asyncio.sleep(MISSING_SECONDS)
                continue
            except StoreError as error:
                self._failed(error)
            await asyncio.sleep(self._backoff.next())

    async def _list(self) -> str:
        translation = self._translation
        listing = await self._store.list(translation.resource, field_selector=translation.field_selector)
        fresh: dict[K, None] = {}
        for raw in listing.items:
            key = self._put(raw)
            if key is not None:
                fresh[key] = None
        for key in list(self._table.keys()):
            row = self._table.get(key)
            if key not in fresh and row is not None and translation.owns(row):
                self._table.delete(key)
        self._heard()
        self.lists += 1
        self.synced.set()
        return listing.resource_version

    async def _follow(self, since: str) -> None:
        """Apply changes until the store ends the stream."""
        translation = self._translation
        watch = self._store.watch(
            translation.resource, since=since, field_selector=translation.field_selector
        )
        async with aclosing(watch) as events:
            async for event in events:
                self._apply(event)
                self._heard()

    def _apply(self, event: WatchEvent) -> None:
        """Bring one change into the table and note the version reached."""
        meta = self._metadata(event.object)
        if meta is None:
            return
        if event.type == "DELETED":
            self._table.delete(self._translation.key(meta))
            self._refused.pop((meta.metadata.namespace, meta.metadata.name), None)
        elif event.type != "BOOKMARK":
            self._put(event.object)
        self._since = meta.metadata.resource_version or self._since

    def _put(self, raw: msgspec.Raw) -> K | None:
        """Insert or replace the row of an object; returns its key, or None when it has no row."""
        meta = self._metadata(raw)
        if meta is None:
            return None
        key = self._translation.key(meta)
        try:
            row = self._translation.row(raw)
            self._refused.pop((meta.metadata.namespace, meta.metadata.name), None)
        except Invalid as error:
            self._ignored(str(error), meta)
            row = None
        except Exception as error:
            # Whatever we trip over in one object, even by a fault of ours, must not cost the others.
            self._ignored(_unexpected(error), meta)
            row = None
        if row is None:
            self._table.delete(key)
            return None
        before = self._table.get(key)
        if before is None or not self._translation.same(before, row):
            self._table.put(row)
        return key

    def _metadata(self, raw: msgspec.Raw) -> AnyObject | None:
        try:
            return decode(raw, AnyObject)
        except Invalid as error:
            log.error("object ignored", kind=self.resource.kind, error=str(error))
            return None

    def _ignored(self, why: str, meta: AnyObject) -> None:
        namespace, name = where = meta.metadata.namespace, meta.metadata.name
        if self._refused.get(where) != why:
            self._refused[where] = why
            path = f"{namespace}/{name}" if namespace else name
            log.error("object ignored", kind=self.resource.kind, name=path, error=why)

    def _missing(self, error: NotFound) -> None:
        """The kind is unknown. Rows known before stay: a server that starts may not know its kinds yet."""
        if self._translation.optional:
            self.synced.set()
        else:
            self._failed(error)

    def _heard(self) -> None:
        if self.error:
            log.info("heard again", kind=self.resource.kind)
        self.error = ""
        self._backoff.reset()

    def _failed(self, error: StoreError) -> None:
        if str(error) != self.error:
            log.warning("can't be heard", kind=self.resource.kind, error=str(error))
        self.error = str(error)


def _unexpected(error: Exception) -> str:
    return f"it can't be read ({type(error).__name__}: {error}): change the object, and please report it"
