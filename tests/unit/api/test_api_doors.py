"""Whether the doors can be opened is known before anything is changed."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from cilia.api import sockets
from cilia.api.server import check_addresses
from cilia.api.sockets import SocketError


def test_addresses_that_are_free_and_one_that_is_not() -> None:
    asyncio.run(check_addresses("", "127.0.0.1:0"))
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(SocketError, match=f"can't listen on {address}.*; stop what uses the port"):
            asyncio.run(check_addresses("127.0.0.1:0", address))


def test_a_path_is_cleared_of_remains_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "agent.sock"
    sockets.clear(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        holder.bind(str(path))
        holder.listen()
        with pytest.raises(SocketError, match="Another process answers"):
            sockets.clear(path)
    sockets.clear(path)
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(SocketError, match="is not a socket"):
        sockets.clear(path)
    assert path.read_text() == "precious"
