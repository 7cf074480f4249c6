"""Who is there: a list on the command line, or what a peer service tells and goes on telling."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable

import structlog
from google.protobuf.message import DecodeError

from cilia.hubble.peer import Peer
from cilia.hubble.rpc.channel import Channel
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.kit.backoff import Backoff
from cilia.proto.peer import peer_pb2

log = structlog.get_logger(__name__)

NOTIFY = "/peer.Peer/Notify"
SETTLE_SECONDS = 5.0
"""After a new connection to the peer service, the list is taken for whole after so long without news: the
protocol has no mark at its end."""
CHECK_SECONDS = 20.0
CHECK_PATIENCE = 10.0

LONGEST = 1024
"""Characters of a peer's name, address or server name: what no host's and no socket's has."""
MOST = 10_000
"""Peers taken of a peer service: twice as many as the largest clusters have."""

TlsFor = Callable[[str], ssl.SSLContext | None]
"""A context for a server of that name; None: plain text."""


class PeerListError(ValueError):
    """The list on the command line is wrong; its text is a sentence."""


def parse_peers(text: str) -> list[Peer]:
    """Peers of `name=address,...`; an address is `host:port` or `unix:///path`. Raises PeerListError."""
    peers: dict[str, Peer] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, address = part.partition("=")
        if not separator or not name or not address:
            raise PeerListError(f"peer {part!r} is not NAME=ADDRESS: write worker-1=192.0.2.1:4244")
        if name in peers:
            raise PeerListError(f"peer {name!r} is listed twice: give each node a name of its own")
        peers[name] = Peer(name, address)
    return list(peers.values())


class PeerService:
    """Follows the peer service and keeps a list."""

    def __init__(
        self, target: str, changed: Callable[[Iterable[Peer]], None], tls: TlsFor, server_name: str = ""
    ) -> None:
        """`changed` gets the whole list whenever it changes."""
        self._target = target
        self._changed = changed
        self._tls = tls
        self._server_name = server_name
        self._known: dict[str, Peer] = {}
        self._left_out = False
        """Whether it was said that peers of this connection are left out."""
        self.problem = "the peer service was not reached yet"
        """Why the list may be old; empty while it is followed."""

    async def run(self) -> None:
        """Follow for ever, over any number of connections."""
        pauses = Backoff(0.2, 15.0)
        while True:
            try:
                await self._follow(pauses)
            except RpcError as error:
                if self.problem != error.sentence:
                    log.warning("the peer service can't be followed", reason=error.sentence)
                self.problem = error.sentence
            await asyncio.sleep(pauses.next())

    async def _follow(self, pauses: Backoff) -> None:
        local = self._target.startswith(("unix:", "/"))
        tls = None if local else self._tls(self._server_name)
        channel = await Channel.open(self._target, tls=tls, server_name=self._server_name or None)
        try:
            call = channel.call(NOTIFY, b"")
            # Not the names that it tells of: there is no end to these.
            untold = set(self._known)
            self._left_out = False
            settled = False
            while True:
                try:
                    async with asyncio.timeout(CHECK_SECONDS if settled else SETTLE_SECONDS):
                        batch = await call.read()
                except TimeoutError:
                    if settled:
                        await channel.check(CHECK_PATIENCE)
                    else:
                        settled = True
                        self._forget(untold)
                    continue
                if not batch:
                    raise RpcError(Code.UNAVAILABLE, f"the peer service {self._target} ended its answer")
                untold.difference_update(map(self._apply, batch))
                self.problem = ""
                pauses.reset()
                self._changed(list(self._known.values()))
        finally:
            channel.close()

    def _apply(self, data: bytes) -> str:
        """Take one change; the name it is about. Raises RpcError for what is none."""
        try:
            change = peer_pb2.ChangeNotification.FromString(data)
        except DecodeError:
            sentence = f"the peer service {self._target} sent what is no change of a peer"
            raise RpcError(Code.INTERNAL, sentence) from None
        if change.type == peer_pb2.PEER_DELETED:
            self._known.pop(change.name, None)
        elif change.name and change.address:
            self._take(Peer(change.name, change.address, change.tls.server_name))
        return change.name

    def _take(self, peer: Peer) -> None:
        """Know a peer, if it can be one: whom the peer service can name may have named itself."""
        reason = ""
        if not all(is_word(text) for text in (peer.name, peer.address, peer.tls_name)):
            reason = f"a name or address is longer than {LONGEST} characters or not printable"
        elif peer.name not in self._known and len(self._known) >= MOST:
            reason = f"there are more than {MOST:,}"
        if not reason:
            self._known[peer.name] = peer
        elif not self._left_out:
            self._left_out = True
            log.warning("peers are left out", first=peer.name[:64], reason=reason)

    def _forget(self, names: set[str]) -> None:
        """Forget peers that a new connection did not tell again."""
        gone = self._known.keys() & names
        for name in gone:
            del self._known[name]
        if gone:
            self._changed(list(self._known.values()))


def is_word(text: str) -> bool:
    """Whether a text can name something, and be told in a sentence."""
    return len(text) <= LONGEST and text.isprintable()
