"""Who begins handshakes and ends none keeps only himself out."""

from __future__ import annotations

import asyncio
from typing import Any

from cilia.hubble.rpc.limits import ServerLimits
from cilia.hubble.rpc.server import Server


class Shaking:
    """A client amid its handshake."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def test_a_crowd_of_one_machine_makes_way_for_others() -> None:
    async def body() -> None:
        server: Any = Server({}, ServerLimits(handshakes=4))
        crowd = [Shaking(f"10.0.0.66:{port}") for port in range(6)]
        assert [server.handshaking(each) for each in crowd] == [True] * 4 + [False] * 2
        others = [Shaking(f"[fd00::7]:{port}") for port in range(3)]
        assert [server.handshaking(each) for each in others] == [True, True, False]
        assert [each.aborted for each in crowd[:4]] == [True, True, False, False]
        assert not any(each.aborted for each in others)
        for each in (*crowd, *others):
            server.handshaken(each, None)
        assert server.handshaking(Shaking("10.0.0.66:9"))

    asyncio.run(body())
