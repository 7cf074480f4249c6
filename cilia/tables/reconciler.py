"""Carries a desired table to its target and knows how far it got.

A target has three idempotent verbs (`update`, `delete`, `prune`) and recognises its own (`ours`); this
module keeps what every target would otherwise keep itself: which rows are pending, done or failed and
since when, batching, and retries. Pure bookkeeping: the clock is an argument.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from cilia.tables.table import Table

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")
RIn = TypeVar("RIn", contravariant=True)
KBoth = TypeVar("KBoth", bound=Hashable)


class State(enum.StrEnum):
    """How far a row has got."""

    PENDING = "pending"
    DONE = "done"
    ERROR = "error"


class Status(msgspec.Struct, frozen=True):
    """A row's state, since when (seconds, monotonic), and the error's sentence."""

    state: State
    since: float
    error: str = ""
    attempts: int = 0


class Target(Protocol[KBoth, RIn]):
    """Where rows go: kernel maps, links, API objects. All verbs idempotent.

    `update` and `delete` return the failures by key; what is not named succeeded.
    """

    def update(self, rows: Sequence[RIn]) -> dict[KBoth, str]: ...

    def delete(self, keys: Sequence[KBoth]) -> dict[KBoth, str]: ...

    def prune(self, keep: Iterable[RIn]) -> int:
        """Remove what is ours and not in `keep`; returns how many were removed."""
        ...


class Reconciler(Generic[K, R]):
    """One desired table and its target."""

    def __init__(self, table: Table[K, R], target: Target[K, R], *, retry: float = 0.5, limit: float = 30.0):
        self.table = table
        self.target = target
        self.status: dict[K, Status] = {}
        self._cursor = table.cursor()
        self._retry_first = retry
        self._retry_limit = limit
        self._due: dict[K, float] = {}
        self._failed: dict[K, Status] = {}

    @property
    def pending(self) -> bool:
        """Whether a step has work that is not a retry."""
        return self._cursor.pending

    def step(self, now: float) -> None:
        """Bring all changed rows, and the failed ones whose pause is over, to the target."""
        self.step_deletes(now)
        self.step_updates(now)

    def step_deletes(self, now: float) -> None:
        """Only the removals of a step (for write orders that interleave tables)."""
        self._requeue(now)
        keys = self._cursor.take_deleted()
        if keys:
            self._settle(keys, self.target.delete(keys), now, gone=True)

    def step_updates(self, now: float, limit: int | None = None) -> int:
        """Only the writes of a step, of at most `limit` rows; how many rows there were."""
        self._requeue(now)
        rows, keys = self._cursor.take(limit)
        for key in keys:
            self._cursor.mark(key)
        if rows:
            self._settle([self.table._key(row) for row in rows], self.target.update(rows), now, gone=False)
        return len(rows)

    def next_retry(self) -> float | None:
        """When the next failed row wants another attempt (monotonic seconds), or None."""
        return min(self._due.values(), default=None)

    def mark(self, key: K) -> None:
        """Have the next step bring the row under `key` to the target again, or remove it if there is none."""
        self._cursor.mark(key)

    def done(self, key: K) -> bool:
        """Whether the row under `key` has reached the target in its present state."""
        status = self.status.get(key)
        return status is not None and status.state is State.DONE and key not in self._cursor._dirty

    def errors(self) -> dict[K, Status]:
        """The rows that failed, with why and since when; at the cost of these only."""
        return dict(self._failed)

    def prune(self) -> int:
        """Remove from the target what the complete table does not hold."""
        if not self.table.synced:
            raise RuntimeError(f"{self.table.name} is not complete: nothing may be pruned")
        return self.target.prune(list(self.table))

    def _requeue(self, now: float) -> None:
        for key in [key for key, due in self._due.items() if due <= now]:
            del self._due[key]
            self._cursor.mark(key)

    def _settle(self, keys: Sequence[K], failures: dict[K, str], now: float, *, gone: bool) -> None:
        for key in keys:
            error = failures.get(key)
            if error is None:
                self._failed.pop(key, None)
                if gone:
                    self.status.pop(key, None)
                else:
                    self.status[key] = Status(State.DONE, now)
                self._due.pop(key, None)
                continue
            before = self.status.get(key)
            attempts = before.attempts + 1 if before is not None else 1
            since = before.since if before is not None and before.state is State.ERROR else now
            self.status[key] = self._failed[key] = Status(State.ERROR, since, error, attempts)
            pause = min(self._retry_limit, self._retry_first * 2 ** min(attempts - 1, 10))
            self._due[key] = now + pause
