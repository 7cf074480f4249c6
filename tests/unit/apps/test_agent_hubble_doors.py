"""How an agent opens Hubble's doors, and whom it tells of."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cilia.apps.agent import hubble_doors
from cilia.apps.agent.errors import StartError
from cilia.apps.agent.hubble_doors import Doors, DoorSettings, PeerList, group_number, own_peer
from cilia.hubble.client import Client
from cilia.hubble.health import Health
from cilia.hubble.peer import Peer, Peers
from cilia.hubble.rpc.messages import RpcError
from cilia.kit.tasks import TaskGroup
from cilia.kit.tls import ClientTls
from cilia.model.node import Node
from cilia.tables.table import Table
from tests.support.hubble_tls import SERVER_NAME, Authority
from tests.support.machine import free_port
from tests.support.waiting import until_async

pytestmark = pytest.mark.timeout(120)

TLS: dict[str, Any] = {"cert_file": Path("c"), "key_file": Path("k"), "client_ca_files": (Path("a"),)}


def settings(**fields: Any) -> DoorSettings:
    return DoorSettings(**{"socket": Path("/nowhere/hubble.sock"), **fields})


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"listen_address": ":4244"}, "--hubble-disable-tls"),
        ({"cert_file": Path("c")}, "belong together"),
        ({**TLS, "disable_tls": True}, "contradicts"),
        ({"disable_tls": True, "listen_address": "4244"}, "like :4244"),
        ({"disable_tls": True, "listen_address": "fd00::1:80"}, "like :4244"),
        ({"disable_tls": True, "listen_address": ":70000"}, "like :4244"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(StartError, match=word):
        settings(**fields)


def test_no_port_without_certificates() -> None:
    assert settings().address == ""
    assert settings(disable_tls=True).address == ""
    assert settings(**TLS).address == ":4244"


def test_how_others_reach_this_node() -> None:
    def own(**fields: Any) -> Peer:
        return own_peer(settings(**fields), "n.1", "eu", ("192.0.2.1", "fd00::1"))

    assert own() == Peer("eu/n.1", "unix:///nowhere/hubble.sock")
    assert own(**TLS) == Peer("eu/n.1", "192.0.2.1:4244", "n-1.eu.hubble-grpc.cilium.io")
    assert own(**TLS, listen_address="[fd00::9]:99").address == "[fd00::9]:99"
    assert own(disable_tls=True, listen_address=":99") == Peer("eu/n.1", "192.0.2.1:99")


def test_groups() -> None:
    assert group_number("") is None
    assert group_number("7") == 7
    assert group_number("root") == 0
    with pytest.raises(StartError, match="no group of this machine"):
        group_number("no-such-group")


def test_a_closed_directory_is_named(tmp_path: Path) -> None:
    hubble_doors.let_in(tmp_path / "made", os.getgid())
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o750
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(StartError, match="closed to the group"):
        hubble_doors.let_in(tmp_path / "closed", os.getgid())


def run(story: Callable[[TaskGroup, AsyncExitStack], Awaitable[None]]) -> None:
    async def within() -> None:
        async with AsyncExitStack() as stack:
            await story(await stack.enter_async_context(TaskGroup()), stack)

    asyncio.run(within())


def test_the_port_opens_when_its_certificates_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubble_doors, "RETRY_INTERVAL", 0.01)
    authority, port = Authority(), free_port()
    files = authority.write(tmp_path / "client", authority.client())
    doors = Doors(
        DoorSettings(
            socket=tmp_path / "hubble.sock",
            listen_address=f"127.0.0.1:{port}",
            cert_file=tmp_path / "server" / "tls.crt",
            key_file=tmp_path / "server" / "tls.key",
            client_ca_files=(tmp_path / "server" / "ca.crt",),
        ),
        Health([]).methods(),
    )

    def ask() -> bytes:
        context = ClientTls(files).context()
        with Client(f"127.0.0.1:{port}", tls=context, server_name=SERVER_NAME) as client:
            return client.unary("/grpc.health.v1.Health/Check", b"")

    async def story(tasks: TaskGroup, stack: AsyncExitStack) -> None:
        await doors.open(stack)
        doors.start(tasks)
        with capture_logs() as logs:
            await until_async(lambda: logs, "the line")
            await asyncio.sleep(0.1)
        assert [line["event"] for line in logs] == ["Hubble's TCP port waits for its certificates"]
        assert doors.troubled and "can't be read" in doors.sentence
        with pytest.raises(RpcError):
            await asyncio.to_thread(ask)
        authority.write(tmp_path / "server", authority.server(days=20))
        with capture_logs() as logs:
            await until_async(lambda: logs, "the port to open")
        assert [line["event"] for line in logs] == ["Hubble is served"]
        assert not doors.troubled and "days left" in doors.sentence
        assert 19 < (doors.certificate_seconds or 0) / 86400 < 20
        assert await asyncio.to_thread(ask) == b"\x08\x01"

    run(story)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        doors = Doors(
            DoorSettings(socket=tmp_path / "hubble.sock", listen_address=address, disable_tls=True), {}
        )

        async def story(_tasks: TaskGroup, stack: AsyncExitStack) -> None:
            with pytest.raises(StartError, match="another --hubble-listen-address"):
                await doors.open(stack)

        run(story)


def test_peers_follow_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubble_doors, "SETTLE", 0.0)
    nodes: Table[str, Node] = Table("nodes", lambda row: row.name)
    own = own_peer(settings(**TLS), "a", "default", ("192.0.2.1",))

    def told(peers: Peers) -> dict[str, tuple[str, str]]:
        return {peer.name: (peer.address, peer.tls_name) for peer in peers.all()}

    async def story(tasks: TaskGroup, _stack: AsyncExitStack) -> None:
        peers = Peers()
        tasks.spawn("peers", PeerList(peers, nodes, own, cluster="default", port=4244).run())
        nodes.put(Node(name="a", addresses=("192.0.2.99",)))
        nodes.put(Node(name="b", addresses=("fd00::2",)))
        nodes.put(Node(name="homeless"))
        both = {
            "default/a": ("192.0.2.1:4244", "a.default.hubble-grpc.cilium.io"),
            "default/b": ("[fd00::2]:4244", "b.default.hubble-grpc.cilium.io"),
        }
        await until_async(lambda: told(peers) == both, "two peers")
        nodes.put(Node(name="b", addresses=("192.0.2.2",)))
        nodes.delete("homeless")
        await until_async(lambda: told(peers)["default/b"][0] == "192.0.2.2:4244", "the new address")

    run(story)


@pytest.mark.parametrize(("ipv6", "address"), [(False, "192.0.2.2"), (True, "[fd00::2]")])
def test_of_two_families_one_is_preferred(ipv6: bool, address: str) -> None:
    nodes: Table[str, Node] = Table("nodes", lambda row: row.name)
    nodes.put(Node(name="b", addresses=("192.0.2.2", "fd00::2")))
    nodes.put(Node(name="c", addresses=("192.0.2.3",)))
    own = own_peer(settings(**TLS), "a", "default", ("192.0.2.1", "fd00::1"), ipv6=ipv6)
    assert own.address == f"{'[fd00::1]' if ipv6 else '192.0.2.1'}:4244"

    async def story(tasks: TaskGroup, _stack: AsyncExitStack) -> None:
        peers = Peers()
        made = PeerList(peers, nodes, own, cluster="default", port=4244, ipv6=ipv6)
        tasks.spawn("peers", made.run())
        await until_async(lambda: len(peers.all()) == 3, "three peers")
        told = {peer.name: peer.address for peer in peers.all()}
        assert told["default/b"] == f"{address}:4244"
        assert told["default/c"] == "192.0.2.3:4244"

    run(story)


def test_without_a_port_only_this_node_is_told() -> None:
    nodes: Table[str, Node] = Table("nodes", lambda row: row.name)
    nodes.put(Node(name="b", addresses=("192.0.2.2",)))
    own = own_peer(settings(), "a", "default", ("192.0.2.1",))

    async def story(tasks: TaskGroup, _stack: AsyncExitStack) -> None:
        peers = Peers()
        tasks.spawn("peers", PeerList(peers, nodes, own, cluster="default", port=0).run())
        await until_async(peers.all, "the first list")
        assert [peer.address for peer in peers.all()] == ["unix:///nowhere/hubble.sock"]

    run(story)
