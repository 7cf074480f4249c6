"""What peers that come and go leave behind: nothing, also when garbage collections come seldom."""

from __future__ import annotations

import asyncio
import gc
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cilia.hubble.peer import Peer
from cilia.hubble.rpc.server import Server
from cilia.relay.pool import SHIFT, Link, Pool, PoolSettings
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


async def going(path: Path) -> list[int]:
    """Drop many peers together; how many are still connected at each turn of the loop from then on."""
    server = Server(Node("node").methods())
    await server.listen_unix(path)
    pool = Pool(PoolSettings(), lambda _name: None)
    try:
        pool.set_peers([Peer(f"{peer}", f"unix://{path}") for peer in range(3 * SHIFT)])
        links = await connected(pool)
        channels = [link.channel for link in links if link.channel]
        pool.set_peers([])
        assert list(pool.links()) == [], "nobody asks them any more, whether they are closed yet or not"
        left = [len(channels)]
        while left[-1] and len(left) < 100:
            await asyncio.sleep(0)
            left.append(sum(not channel.closed.is_set() for channel in channels))
        assert {channel.reason for channel in channels} == {"the peer is gone"}
        return left
    finally:
        await pool.close()
        await server.close()


def test_peers_that_go_together_are_closed_a_few_at_a_time(tmp_path: Path) -> None:
    left = asyncio.run(going(tmp_path / "node.sock"))
    assert left[-1] == 0
    assert max(before - after for before, after in pairwise(left)) == SHIFT


async def told_of(path: Path, peers: int) -> int:
    """How often listeners hear of peers that all are told at once and none of which can be reached."""
    pool = Pool(PoolSettings(), lambda _name: None)
    heard, done = [0], asyncio.Event()

    def hear() -> None:
        heard[0] += 1
        if not any(link.dialling for link in pool.links()):
            done.set()

    try:
        pool.listeners.add(hear)
        pool.set_peers([Peer(f"{peer}", f"unix://{path}") for peer in range(peers)])
        async with asyncio.timeout(30):
            await done.wait()
    finally:
        await pool.close()
    return heard[0]


def test_listeners_hear_once_of_what_happens_together(tmp_path: Path) -> None:
    assert asyncio.run(told_of(tmp_path / "nobody.sock", 4 * PEERS)) < 4 * PEERS


async def moving(path: Path) -> list[str]:
    """Peers that come, move and go before their turn has come; whom the pool is connected to in the end."""
    server = Server(Node("node").methods())
    await server.listen_unix(path)
    pool = Pool(PoolSettings(), lambda _name: None)
    try:
        names = [f"{peer:02}" for peer in range(PEERS)]
        pool.set_peers([Peer(name, "unix:///nowhere") for name in names])
        pool.set_peers([Peer(name, f"unix://{path}") for name in names])
        pool.set_peers([])
        pool.set_peers([Peer(name, f"unix://{path}") for name in names[:3]])
        found = [link.name for link in await connected(pool)]
        assert len(pool._running) == 3, "what has come and gone is not kept"
        return found
    finally:
        await pool.close()
        await server.close()


def test_the_last_list_holds_however_fast_lists_follow_each_other(tmp_path: Path) -> None:
    assert asyncio.run(moving(tmp_path / "node.sock")) == ["00", "01", "02"]
