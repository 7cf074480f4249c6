"""A table: rows by key, with a revision, indexes and cursors over its changes.

Plain dictionaries. One writer per table (the schema page names it); readers keep a `Cursor` and ask it
which keys changed since they last looked. A cursor coalesces: a key that changed ten times is one
change, and what counts is the row's present state, so readers can't depend on the path taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


class Cursor(Generic[K, R]):
    """One reader's place in a table's history."""

    def __init__(self, table: Table[K, R]) -> None:
        self._table = table
        self._dirty: dict[K, None] = dict.fromkeys(table.keys())

    def __bool__(self) -> bool:
        raise TypeError("ask cursor.pending, not the cursor")

    @property
    def pending(self) -> bool:
        """Whether there are changes to take."""
        return bool(self._dirty)

    def take(self, limit: int | None = None) -> tuple[list[R], list[K]]:
        """Rows put and keys deleted since the last call, in order of first change; at most `limit`."""
        put: list[R] = []
        deleted: list[K] = []
        taken = list(itertools.islice(self._dirty, limit))
        for key in taken:
            row = self._table.get(key)
            if row is None:
                deleted.append(key)
            else:
                put.append(row)
        if len(taken) == len(self._dirty):
            self._dirty.clear()
        else:
            for key in taken:
                del self._dirty[key]
        return put, deleted

    def take_deleted(self) -> list[K]:
        """Keys deleted since the last call, in order of first change; rows put wait."""
        deleted = [key for key in self._dirty if self._table.get(key) is None]
        for key in deleted:
            del self._dirty[key]
        return deleted

    def mark(self, key: K) -> None:
        """Hand `key` out again at the next `take` (used to retry)."""
        self._dirty[key] = None

    def _changed(self, key: K) -> None:
        self._dirty[key] = None


class Table(Generic[K, R]):
    """Rows of one type under unique keys.

    `key` derives a row's key; each entry of `indexes` derives the values under which `by()` finds it.
    `synced` is set by the writer when the table is known complete; nothing is pruned before.
    """

    def __init__(
        self,
        name: str,
        key: Callable[[R], K],
        indexes: Mapping[str, Callable[[R], Iterable[Hashable]]] | None = None,
    ) -> None:
        self.name = name
        self.revision = 0
        self.synced = False
        self._key = key
        self._rows: dict[K, R] = {}
        self._derive = dict(indexes or {})
        self._index: dict[str, dict[Hashable, dict[K, None]]] = {i: {} for i in self._derive}
        self._cursors: list[Cursor[K, R]] = []
        self._listeners: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __bool__(self) -> bool:
        raise TypeError(f"ask len({self.name}) or its rows, not the table")

    def __contains__(self, key: K) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[R]:
        return iter(self._rows.values())

    def keys(self) -> Iterable[K]:
        """The keys, in order of insertion."""
        return self._rows.keys()

    def get(self, key: K) -> R | None:
        """The row under `key`, or None."""
        return self._rows.get(key)

    def by(self, index: str, value: Hashable) -> list[R]:
        """All rows that `index` files under `value`."""
        return [self._rows[key] for key in self._index[index].get(value, ())]

    def put(self, row: R) -> bool:
        """Insert or replace; returns whether anything changed (an equal row is no change)."""
        key = self._key(row)
        old = self._rows.get(key)
        if old is not None:
            if old == row:
                return False
            self._unfile(key, old)
        self._rows[key] = row
        for name, derive in self._derive.items():
            for value in derive(row):
                self._index[name].setdefault(value, {})[key] = None
        self._announce(key)
        return True

    def delete(self, key: K) -> bool:
        """Remove the row under `key`; deleting the absent is no change and no error."""
        old = self._rows.pop(key, None)
        if old is None:
            return False
        self._unfile(key, old)
        self._announce(key)
        return True

    def replace(self, rows: Iterable[R]) -> None:
        """Make the table hold exactly `rows`; what did not change is not announced."""
        fresh = {self._key(row): row for row in rows}
        for key in [key for key in self._rows if key not in fresh]:
            self.delete(key)
        for row in fresh.values():
            self.put(row)

    def cursor(self) -> Cursor[K, R]:
        """A new reader that first sees every present row."""
        cursor = Cursor(self)
        self._cursors.append(cursor)
        return cursor

    def listen(self, callback: Callable[[], None]) -> None:
        """Call `callback` after every change (it must only note that there is work)."""
        self._listeners.append(callback)

    def _unfile(self, key: K, row: R) -> None:
        for name, derive in self._derive.items():
            filed = self._index[name]
            for value in derive(row):
                keys = filed.get(value)
                if keys is not None:
                    keys.pop(key, None)
                    if not keys:
                        del filed[value]

    def _announce(self, key: K) -> None:
        self.revision += 1
        for cursor in self._cursors:
            cursor._changed(key)
        for callback in self._listeners:
            callback()
