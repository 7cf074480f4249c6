"""peer.Peer: tells a relay which observers there are.

The agent sets the whole list whenever its nodes change; every listener gets what is new for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from cilia.hubble.rpc.server import Methods, Sink
from cilia.proto.peer import peer_pb2


class Peer(msgspec.Struct, frozen=True):
    """An observer somewhere in the cluster."""

    name: str
    """`cluster/node`."""
    address: str
    """`host:port`."""
    tls_name: str = ""
    """Server name in its certificate; empty without TLS."""


class Peers:
    """The handlers of the service, and the list they tell."""

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self._peers = {peer.name: peer for peer in peers}
        self._listeners: set[asyncio.Event] = set()

    def methods(self) -> Methods:
        """By path, for `rpc.server.Server`."""
        return {"/peer.Peer/Notify": self.notify}

    def all(self) -> list[Peer]:
        """The list as it is now."""
        return list(self._peers.values())

    def update(self, peers: Iterable[Peer]) -> None:
        """Replace the list."""
        self._peers = {peer.name: peer for peer in peers}
        for listener in self._listeners:
            listener.set()

    async def notify(self, _data: bytes, sink: Sink) -> None:
        """Tell all peers, then every change, until the client goes away."""
        told: dict[str, Peer] = {}
        changed = asyncio.Event()
        self._listeners.add(changed)
        try:
            while True:
                current = self._peers
                await sink.send([message.SerializeToString() for message in changes(told, current)])
                told = current
                await changed.wait()
                changed.clear()
        finally:
            self._listeners.discard(changed)


def changes(before: dict[str, Peer], now: dict[str, Peer]) -> list[peer_pb2.ChangeNotification]:
    """What turns one list into the other, removals first, by name."""
    found = [notification(before[name], peer_pb2.PEER_DELETED) for name in sorted(before.keys() - now.keys())]
    for name in sorted(now):
        if name not in before:
            found.append(notification(now[name], peer_pb2.PEER_ADDED))
        elif before[name] != now[name]:
            found.append(notification(now[name], peer_pb2.PEER_UPDATED))
    return found


def notification(peer: Peer, kind: peer_pb2.ChangeNotificationType.ValueType) -> peer_pb2.ChangeNotification:
    """One change as a message."""
    message = peer_pb2.ChangeNotification(name=peer.name, address=peer.address, type=kind)
    if peer.tls_name:
        message.tls.server_name = peer.tls_name
    return message
