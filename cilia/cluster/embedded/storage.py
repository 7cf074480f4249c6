"""SQLite: objects, a bounded history of events, and one writer thread that commits in groups.

Every job that :class:`Storage` reports as done is on disk (WAL, ``synchronous=FULL``: SQLite calls fsync in
each commit). While one commit waits for the disk, later jobs queue; the next transaction takes them all. When
it fails, everything submitted under its epoch fails with it, because a later write may have been judged
against an earlier one that now never happened.
"""

from __future__ import annotations

import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

EventType = Literal["ADDED", "MODIFIED", "DELETED"]

_LAYOUT: Final = 1
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    version INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
    version INTEGER PRIMARY KEY, type TEXT NOT NULL,
    resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    before BLOB NOT NULL, body BLOB NOT NULL);
"""


class StorageError(Exception):
    """The store can't be opened or written; the message says what to do. ``full``: the disk has no room."""

    def __init__(self, message: str, *, full: bool = False) -> None:
        super().__init__(message)
        self.full = full


class Key(msgspec.Struct, frozen=True, order=True):
    """Where an object lives. ``resource`` is ``group/plural``; cluster-wide kinds have no ``namespace``."""

    resource: str
    namespace: str
    name: str


class Row(msgspec.Struct, frozen=True):
    """One write, which is also one event: the object as it is now (for DELETED: as it last was).

    ``before`` is JSON of the labels and fields the object had, so that a watcher with a selector can be told
    that an object left its view; empty if there was none.
    """

    version: int
    type: EventType
    key: Key
    body: bytes
    before: bytes


class Stored(msgspec.Struct, frozen=True):
    """One object as found on disk."""

    version: int
    key: Key
    body: bytes


class Content(msgspec.Struct, frozen=True):
    """Everything a restarted server begins with."""

    last_version: int
    compacted: int
    objects: list[Stored]
    history: list[Row]


class Job(msgspec.Struct, frozen=True):
    """Rows that commit together. ``ticket`` is the submitter's own name for them."""

    ticket: int
    epoch: int
    rows: Sequence[Row]


# (jobs of one transaction, None or why it failed)
Committed = Callable[[list[Job], StorageError | None], None]


class Storage:
    """One state directory, locked for this process."""

    def __init__(self, directory: Path, *, keep_history: int = 8192) -> None:
        self._directory = directory
        self._keep = keep_history
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._failed_epoch = -1
        self._writes_until_compaction = keep_history // 4
        self._thread: threading.Thread | None = None
        self._lock = _lock(directory)
        try:
            self._database = _open(directory / "objects.db")
        except BaseException:
            os.close(self._lock)
            raise

    def load(self) -> Content:
        """Read everything; once, before :meth:`start`."""
        try:
            objects = [
                Stored(version, Key(resource, namespace, name), body)
                for resource, namespace, name, version, body in self._database.execute(
                    "SELECT resource, namespace, name, version, body FROM objects"
                )
            ]
            history = [
                Row(version, kind, Key(resource, namespace, name), body, before)
                for version, kind, resource, namespace, name, before, body in self._database.execute(
                    "SELECT version, type, resource, namespace, name, before, body"
                    " FROM history ORDER BY version"
                )
            ]
            meta = dict(self._database.execute("SELECT name, value FROM meta"))
        except sqlite3.Error as error:
            raise _opening(self._directory / "objects.db", error) from error
        last = max([meta.get("last", 0), *(row.version for row in history), *(o.version for o in objects)])
        return Content(last, meta.get("compacted", 0), objects, history)

    def start(self, committed: Committed) -> None:
        """Start the writer thread; it calls ``committed`` (in the thread) after every transaction."""
        self._thread = threading.Thread(target=self._run, args=(committed,), name="storage", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; it is handed back to ``committed`` with its outcome."""
        self._jobs.put(job)

    def close(self) -> None:
        """Write what is queued, then let go of the directory."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
        self._database.close()
        os.close(self._lock)

    def _run(self, committed: Committed) -> None:
        while True:
            jobs, last = self._next()
            live = [job for job in jobs if job.epoch > self._failed_epoch]
            stale = [job for job in jobs if job.epoch <= self._failed_epoch]
            if stale:
                committed(
                    stale, StorageError("an earlier write failed, and this one was based on it; try again")
                )
            if live:
                error = self._commit([row for job in live for row in job.rows])
                if error is not None:
                    self._failed_epoch = max(job.epoch for job in live)
                committed(live, error)
            if last:
                return

    def _next(self) -> tuple[list[Job], bool]:
        jobs: list[Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _commit(self, rows: list[Row]) -> StorageError | None:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            for row in rows:
                self._write(row)
            self._compact(rows)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            if self._database.in_transaction:
                self._database.rollback()
            return _writing(error)
        return None

    def _write(self, row: Row) -> None:
        key = (row.key.resource, row.key.namespace, row.key.name)
        if row.type == "DELETED":
            self._database.execute("DELETE FROM objects WHERE resource=? AND namespace=? AND name=?", key)
        else:
            self._database.execute(
                "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", (*key, row.version, row.body)
            )
        self._database.execute(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.version, row.type, *key, row.before, row.body),
        )

    def _compact(self, rows: list[Row]) -> None:
        self._writes_until_compaction -= len(rows)
        if self._writes_until_compaction > 0:
            return
        self._writes_until_compaction = self._keep // 4
        last = rows[-1].version
        horizon = last - self._keep
        self._database.execute("INSERT OR REPLACE INTO meta VALUES ('last', ?)", (last,))
        if horizon > 0:
            self._database.execute("DELETE FROM history WHERE version <= ?", (horizon,))
            self._database.execute("INSERT OR REPLACE INTO meta VALUES ('compacted', ?)", (horizon,))


def _lock(directory: Path) -> int:
    try:
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"the state directory {directory} can't be used: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise StorageError(
            f"another API server uses {directory}; stop it, or give this one its own --state-dir"
        ) from error
    return handle


def _open(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("PRAGMA cache_size=-2048")
        layout = database.execute("PRAGMA user_version").fetchone()[0]
        if layout not in (0, _LAYOUT):
            raise StorageError(
                f"{path} has layout {layout}, this server knows {_LAYOUT}; use another --state-dir"
            )
        database.executescript(_TABLES)
        database.execute(f"PRAGMA user_version={_LAYOUT}")
    except sqlite3.Error as error:
        raise _opening(path, error) from error
    return database


def _opening(path: Path, error: sqlite3.Error) -> StorageError:
    if "locked" in str(error):
        return StorageError(f"{path} is in use by another process; stop it, or use another --state-dir")
    if "malformed" in str(error) or "not a database" in str(error):
        return StorageError(f"{path} is damaged ({error}); move it away or restore a copy, then start again")
    return StorageError(f"{path} can't be opened ({error}); check the disk and the directory's permissions")


def _writing(error: sqlite3.Error) -> StorageError:
    if error.sqlite_errorname == "SQLITE_FULL":
        return StorageError(
            "the disk of the API server is full; nothing was changed; free some space", full=True
        )
    return StorageError(
        f"the API server can't write its store ({error}); nothing was changed; check its disk"
    )
