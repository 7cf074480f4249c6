"""What keeps a server from starting, and what its history promises."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from cilia.cluster.embedded.auth import TokenFileError
from cilia.cluster.embedded.engine import Change, Engine
from cilia.cluster.embedded.errors import ApiError
from cilia.cluster.embedded.server import Config, ListenError, inherited, listen, serve
from cilia.cluster.embedded.storage import Key, Storage, StorageError


def start(directory: Path) -> None:
    asyncio.run(serve(Config(state_dir=directory), [], lambda: pytest.fail("it started")))


def test_a_directory_in_use(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with pytest.raises(StorageError, match="another API server uses"):
        start(tmp_path)
    storage.close()


def test_a_damaged_store(tmp_path: Path) -> None:
    (tmp_path / "objects.db").write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(StorageError, match="is damaged"):
        start(tmp_path)


def test_a_token_file_that_others_can_read(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text("{}")
    tokens.chmod(0o644)
    with pytest.raises(TokenFileError, match="chmod 600"):
        start(tmp_path)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", "127.0.0.1:99999", "[::1]:x"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ListenError, match="is not HOST:PORT"):
        listen(address)


def test_addresses_in_use() -> None:
    with listen("127.0.0.1:0") as taken:
        address = "{}:{}".format(*taken.getsockname())
        with pytest.raises(ListenError, match=f"can't listen on {address}"):
            listen(address)


def test_descriptors_that_do_not_listen() -> None:
    with pytest.raises(ListenError, match="not an open socket"):
        inherited(987)
    with socket.socket() as plain:
        number = plain.fileno()
        with pytest.raises(ListenError, match="not a listening socket"):
            inherited(number)
        plain.detach()


def test_history_on_disk_is_bounded(tmp_path: Path) -> None:
    key = Key("/things", "", "a")

    def opened() -> tuple[Storage, Engine]:
        storage = Storage(tmp_path, keep_history=16)
        engine = Engine(storage, lambda resource, value: {})
        engine.start(storage.load())
        return storage, engine

    async def write() -> None:
        storage, engine = opened()
        for number in range(40):
            value = {"metadata": {"name": "a", "uid": "u", "labels": {"n": str(number)}}}
            await engine.write([Change(key, value)])[1]
        storage.close()

    async def read() -> None:
        storage, engine = opened()
        assert engine.version == 40
        assert len(engine.since(30, "/things")) == 10
        with pytest.raises(ApiError) as caught:
            engine.since(20, "/things")
        assert (caught.value.code, caught.value.reason) == (410, "Expired")
        storage.close()

    asyncio.run(write())
    asyncio.run(read())
