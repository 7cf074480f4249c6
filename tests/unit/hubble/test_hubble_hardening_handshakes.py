"""Who begins handshakes and ends none keeps only himself out."""

from __future__ import annotations

import asyncio
from typing import Any

from cilia.hubble.rpc.limits import ServerLimits
from cilia.hubble.rpc.server import Server


class Shaking:
    """A client amid its handshake."""

    def __init__(self, server: Any, peer: str) -> None:
        self.server = server
        self.peer = peer
        self.gave_way = False

    def give_way(self) -> None:
        self.server.handshaken(self, "others came")
        self.gave_way = True


def test_a_crowd_of_one_machine_makes_way_for_others() -> None:
    async def body() -> None:
        server: Any = Server({}, ServerLimits(handshakes=4))
        crowd = [Shaking(server, f"10.0.0.66:{port}") for port in range(6)]
        assert [server.handshaking(each) for each in crowd] == [True] * 4 + [False] * 2
        others = [Shaking(server, f"[fd00::7]:{port}") for port in range(3)]
        assert [server.handshaking(each) for each in others] == [True, True, False]
        assert [each.gave_way for each in crowd[:4]] == [True, True, False, False]
        assert not any(each.gave_way for each in others)
        for each in (*crowd, *others):
            server.handshaken(each, None)
        assert server.handshaking(Shaking(server, "10.0.0.66:9"))

    asyncio.run(body())


def test_all_addresses_of_a_network_of_ipv6_are_one_machine() -> None:
    async def body() -> None:
        server: Any = Server({}, ServerLimits(handshakes=4))
        crowd = [Shaking(server, f"[2001:db8:0:7::{host:x}]:443") for host in range(4)]
        assert all(server.handshaking(each) for each in crowd)
        assert server.handshaking(Shaking(server, "[2001:db8:0:8::1]:443"))
        assert [each.gave_way for each in crowd] == [True, False, False, False]
        assert not server.handshaking(Shaking(server, "[2001:db8:0:7::99]:443"))

    asyncio.run(body())
