"""The engine over real storage: order, group commit, failure, restart."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cilia.cluster.embedded.engine import Change, Engine, Event
from cilia.cluster.embedded.errors import ApiError
from cilia.cluster.embedded.storage import Key, Storage, StorageError


def fields(resource: str, value: dict[str, Any]) -> dict[str, str]:
    return {"metadata.name": value["metadata"]["name"]}


def value(name: str, uid: str = "", **meta: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Thing", "metadata": {"name": name, "uid": uid or name, **meta}}


def key(name: str) -> Key:
    return Key("/things", "", name)


class Ear:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def offer(self, events: list[Event]) -> None:
        self.heard += [(event.type, event.entry.key.name) for event in events]

    def close(self) -> None:
        self.heard.append(("CLOSED", ""))


def opened(directory: Path) -> tuple[Storage, Engine]:
    storage = Storage(directory)
    engine = Engine(storage, fields)
    engine.start(storage.load())
    return storage, engine


def test_writes_become_visible_only_when_they_are_on_disk(tmp_path: Path) -> None:
    async def story() -> None:
        storage, engine = opened(tmp_path)
        ear = Ear()
        engine.listen("/things", ear)
        (entry,), committed = engine.write([Change(key("a"), value("a"))])
        assert engine.get(key("a")) is None and engine.head(key("a")) is entry and ear.heard == []
        await committed
        assert engine.get(key("a")) is entry and ear.heard == [("ADDED", "a")]
        storage.close()

    asyncio.run(story())


def test_a_pending_deletion_hides_what_is_still_committed(tmp_path: Path) -> None:
    async def story() -> None:
        storage, engine = opened(tmp_path)
        engine.write([Change(key("a"), value("a"))])
        _, gone = engine.write([Change(key("a"), None)])
        assert engine.head(key("a")) is None
        await gone
        assert engine.get(key("a")) is None and engine.head(key("a")) is None
        assert [event.type for event in engine.since(0, "/things")] == ["ADDED", "DELETED"]
        storage.close()

    asyncio.run(story())


def test_many_writes_keep_the_order_of_their_versions(tmp_path: Path) -> None:
    async def story() -> None:
        storage, engine = opened(tmp_path)
        ear = Ear()
        engine.listen("/things", ear)
        futures = [engine.write([Change(key(f"n{n}"), value(f"n{n}"))])[1] for n in range(200)]
        await asyncio.gather(*futures)
        assert ear.heard == [("ADDED", f"n{n}") for n in range(200)]
        assert engine.version == 200
        storage.close()

    asyncio.run(story())


def test_a_restart_finds_everything(tmp_path: Path) -> None:
    async def write() -> None:
        storage, engine = opened(tmp_path)
        for name in "abc":
            await engine.write([Change(key(name), value(name, labels={"n": name}))])[1]
        await engine.write([Change(key("b"), None)])[1]
        storage.close()

    async def read() -> None:
        storage, engine = opened(tmp_path)
        assert [entry.key.name for entry in engine.entries("/things")] == ["a", "c"]
        assert engine.version == 4
        last = engine.since(3, "/things")[0]
        assert last.type == "DELETED" and last.before is not None and last.before.labels == {"n": "b"}
        storage.close()

    asyncio.run(write())
    asyncio.run(read())


def test_a_failed_commit_fails_what_was_built_on_it_and_nothing_else(tmp_path: Path) -> None:
    async def story() -> None:
        storage, engine = opened(tmp_path)
        await engine.write([Change(key("a"), value("a"))])[1]
        pages = storage._database.execute("PRAGMA page_count").fetchone()[0]
        storage._database.execute(f"PRAGMA max_page_count={pages}")
        big = value("b", annotations={"x": "y" * 100_000})
        _, first = engine.write([Change(key("b"), big)])
        _, second = engine.write([Change(key("b"), value("b"))])
        for future in (first, second):
            with pytest.raises(ApiError) as caught:
                await future
            assert caught.value.code in (500, 507)
        assert engine.head(key("b")) is None
        storage._database.execute("PRAGMA max_page_count=100000")
        await engine.write([Change(key("b"), value("b"))])[1]
        assert engine.get(key("b")) is not None
        storage.close()

    asyncio.run(story())


def test_owners_and_uids_are_indexed(tmp_path: Path) -> None:
    async def story() -> None:
        storage, engine = opened(tmp_path)
        owner = {"apiVersion": "v1", "kind": "Thing", "name": "a", "uid": "u1"}
        await engine.write([Change(key("a"), value("a", "u1"))])[1]
        await engine.write([Change(key("b"), value("b", "u2", ownerReferences=[owner]))])[1]
        assert engine.owned_by("u1") == [key("b")]
        found = engine.by_uid("u1")
        assert found is not None and found.key == key("a")
        await engine.write([Change(key("b"), value("b", "u2"))])[1]
        assert engine.owned_by("u1") == []
        storage.close()

    asyncio.run(story())


def test_future_and_compacted_versions_are_gone(tmp_path: Path) -> None:
    async def story() -> None:
        storage, engine = opened(tmp_path)
        await engine.write([Change(key("a"), value("a"))])[1]
        with pytest.raises(ApiError) as caught:
            engine.since(99, "/things")
        assert caught.value.code == 410
        storage.close()

    asyncio.run(story())


def test_one_directory_has_one_server(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with pytest.raises(StorageError, match="another API server uses"):
        Storage(tmp_path)
    storage.close()
    Storage(tmp_path).close()


def test_foreign_layouts_are_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "objects.db")
    database.execute("PRAGMA user_version=7")
    database.close()
    with pytest.raises(StorageError, match="has layout 7"):
        Storage(tmp_path)
