"""What a peer service may say of peers, and what must not end the relay: names, addresses, numbers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from pathlib import Path

import pytest

from cilia.hubble.peer import Peer, Peers
from cilia.hubble.rpc.server import Server
from cilia.relay import peers as relay_peers
from cilia.relay.peers import LONGEST, PeerService
from cilia.relay.pool import Pool, PoolSettings
from tests.support.waiting import until_async

pytestmark = pytest.mark.timeout(120)

ODD = [
    Peer("nul", "192.0.2.1:4244", "a\0b"),
    Peer("line\nbreak", "192.0.2.1:4244"),
    Peer("escape", "192.0.2.1:4244\x1b[2J"),
    Peer("n" * (LONGEST + 1), "192.0.2.1:4244"),
    Peer("long", "a" * (1 << 20)),
    Peer("", "192.0.2.1:4244"),
    Peer("nowhere", ""),
]
GOOD = Peer("default/worker-1", "192.0.2.1:4244", "worker-1.default.hubble-grpc.cilium.io")


async def heard(path: Path, *steps: tuple[list[Peer], list[Peer]]) -> list[list[Peer]]:
    """The lists that a follower of a peer service gets.

    The service tells of the peers of one step after the other, each when the follower has the list that the
    step before must lead to: what is told at once may come in parts.
    """
    service = Peers([])
    server = Server(service.methods())
    await server.listen_unix(path)
    lists: list[list[Peer]] = []

    def changed(peers: Iterable[Peer]) -> None:
        lists.append(list(peers))

    following = asyncio.ensure_future(PeerService(f"unix://{path}", changed, lambda _name: None).run())
    try:
        for told, wanted in steps:
            service.update(told)
            await until_async(lambda: set(lists[-1] if lists else ()) == set(wanted), "the list")  # noqa: B023
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await server.close()
    return lists


def test_what_can_be_no_peer_is_left_out_and_the_others_are_taken(tmp_path: Path) -> None:
    lists = asyncio.run(heard(tmp_path / "peers.sock", ([*ODD, GOOD], [GOOD])))
    assert {peer for each in lists for peer in each} == {GOOD}


def test_peers_beyond_a_bound_are_left_out_until_others_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_peers, "MOST", 3)
    crowd = [Peer(f"{number}", "192.0.2.1:4244") for number in range(5)]
    moved = [Peer(f"{number}", "192.0.2.2:4244") for number in range(3)]
    fresh = Peer("fresh", "192.0.2.9:4244")
    steps = (
        (crowd, crowd[:3]),
        # Known ones may move, and new ones have the place of gone ones.
        ([*moved[1:], *crowd[3:], fresh], [*moved[1:], fresh]),
    )
    assert max(map(len, asyncio.run(heard(tmp_path / "peers.sock", *steps)))) == 3


def test_peers_that_a_new_connection_does_not_tell_of_are_forgotten_once_it_has_told_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_peers, "SETTLE_SECONDS", 1.0)
    path = tmp_path / "peers.sock"
    stays, moves, goes = (Peer(name, "192.0.2.1:4244") for name in ("stays", "moves", "goes"))
    moved, fresh = Peer("moves", "192.0.2.2:4244"), Peer("fresh", "192.0.2.3:4244")
    lists: list[set[Peer]] = [set()]

    async def story() -> None:
        follower = PeerService(f"unix://{path}", lambda peers: lists.append(set(peers)), lambda _name: None)
        following = asyncio.ensure_future(follower.run())
        try:
            for told in ([stays, moves, goes], [stays, moved, fresh]):
                server = Server(Peers(told).methods())
                await server.listen_unix(path)
                await until_async(lambda: lists[-1] == set(told), "the list")  # noqa: B023
                await server.close()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(story())
    assert {stays, moved, goes, fresh} in lists, "until then nobody is taken for gone"


ADDRESSES = ["", ":", "a:-1", "[::1", "\0", "..:1", ".a:1", "é:1", "unix:", "unix:///\0", "/", "x" * 300]
NAMES = [".foo", "a" * 300, "ü", "*", "a..b", "-", "xn--zzzz", "127.0.0.1"]


async def problems(addresses: list[str], names: list[str]) -> list[str]:
    """What the pool says of peers with such addresses, or behind TLS with such names."""

    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listener = await asyncio.start_server(close, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    pool = Pool(PoolSettings(dial_timeout=10.0), lambda _name: context)
    tried = asyncio.Event()
    pool.listeners.add(lambda: None if any(link.dialling for link in pool.links()) else tried.set())
    peers = [Peer(f"address-{number}", address) for number, address in enumerate(addresses)]
    peers += [Peer(f"name-{number}", f"127.0.0.1:{port}", name) for number, name in enumerate(names)]
    try:
        pool.set_peers(peers)
        async with asyncio.timeout(50):
            while not (tried.is_set() or pool.failed.is_set()):
                await asyncio.wait(
                    [asyncio.ensure_future(each.wait()) for each in (tried, pool.failed)],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        assert not pool.failed.is_set()
        return [link.problem for link in pool.links()]
    finally:
        listener.close()
        await pool.close()


def test_no_address_and_no_name_ends_the_relay() -> None:
    found = asyncio.run(problems(ADDRESSES, NAMES))
    assert len(found) == len(ADDRESSES) + len(NAMES)
    assert all("can't be reached" in problem or "not accepted" in problem for problem in found), found
