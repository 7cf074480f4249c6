"""What peers that come and go leave behind: nothing, also when garbage collections come seldom."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from cilia.hubble.peer import Peer
from cilia.hubble.rpc.server import Server
from cilia.relay.pool import Link, Pool, PoolSettings
from tests.support.relay import Node, response

pytestmark = pytest.mark.timeout(60)

PEERS = 20


async def connected(pool: Pool) -> list[Link]:
    """All links, once each has a connection."""
    changed = asyncio.Event()
    pool.listeners.add(changed.set)
    async with asyncio.timeout(30):
        while not all(link.channel for link in pool.links()):
            await changed.wait()
            changed.clear()
    pool.listeners.discard(changed.set)
    return list(pool.links())


async def come_and_go(path: Path, rounds: int) -> list[weakref.ref[Any]]:
    """Connect to peers, ask them and drop them, round by round; what was made for them."""
    server = Server(Node("node", [response("node", moment) for moment in range(10)]).methods())
    await server.listen_unix(path)
    pool = Pool(PoolSettings(), lambda _name: None)
    made: list[weakref.ref[Any]] = []
    try:
        for number in range(rounds):
            pool.set_peers([Peer(f"{number}-{peer}", f"unix://{path}") for peer in range(PEERS)])
            for link in await connected(pool):
                assert link.channel is not None
                call = link.channel.call("/observer.Observer/GetFlows", b"")
                await call.read()
                made += [weakref.ref(each) for each in (link, link.channel, link.channel._h2, call)]
            del link, call
            pool.set_peers([])
            await asyncio.sleep(0.05)
    finally:
        await pool.close()
        await server.close()
    return made


def test_peers_that_go_take_all_with_them_without_a_garbage_collection(tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        made = asyncio.run(come_and_go(tmp_path / "node.sock", 3))
        left = [type(each()).__name__ for each in made if each() is not None]
    finally:
        gc.enable()
    assert len(made) == 3 * PEERS * 4
    assert left == []
