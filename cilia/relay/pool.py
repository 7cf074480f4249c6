"""A connection to every peer, kept up: dialled again with growing pauses, asked for signs of life."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog

from cilia.hubble.peer import Peer
from cilia.hubble.rpc.channel import Channel
from cilia.hubble.rpc.messages import RpcError
from cilia.kit.backoff import Backoff
from cilia.kit.tasks import TaskGroup
from cilia.relay.peers import TlsFor
from cilia.relay.turns import Turns

log = structlog.get_logger(__name__)

DIALS = 256
"""Peers dialled at a time: who does not answer holds up only so many others."""
DIAL_PATIENCE = 0.1
"""Seconds after which a peer that has not answered holds up the next dial no longer. A TLS handshake takes
some 2 ms of CPU: a thousand at once would hold up everything else for as many."""

SHIFT = 16
"""Peers that come or go before others get their turn: some 2 ms."""

SOUND_SECONDS = 5.0
"""A connection that held for so long is worth dialling again at once; a shorter one is not."""

REASONS = 3
"""Peers of which it is told why they are away; the others are counted."""


class PoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How connections are kept."""

    dial_timeout: float = 5.0
    """Seconds until a peer that does not answer is given up for now."""
    retry_timeout: float = 30.0
    """Seconds: the longest pause between attempts; the first is half a second."""
    check_interval: float = 15.0
    """Seconds of silence after which a peer is asked for a sign of life."""
    check_timeout: float = 10.0
    """Seconds a peer may take for one; then its connection is closed."""


class Link:
    """One peer and the connection to it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.channel: Channel | None = None
        self.problem = "not connected yet"
        """Why there is no connection; one sentence."""
        self.dialling = True
        """An attempt to connect is under way, or about to begin."""
        self.gone = False
        """The peer was removed, or its address has changed."""

    @property
    def name(self) -> str:
        """Of the peer: `cluster/node`."""
        return self.peer.name

    @property
    def state(self) -> str:
        """Of the connection, in gRPC's words."""
        if self.channel is not None:
            return "READY"
        return "CONNECTING" if self.dialling else "TRANSIENT_FAILURE"

    @property
    def secured(self) -> bool:
        """Whether the connection is encrypted."""
        return self.channel is not None and self.channel.protocol is not None


class Pool:
    """Links by name. Start it with `start`, end it with `close`."""

    def __init__(self, settings: PoolSettings, tls: TlsFor) -> None:
        self._settings = settings
        self._tls = tls
        self._links: dict[str, Link] = {}
        self._running: dict[Link, asyncio.Task[None]] = {}
        self._shifted: deque[Link] = deque()
        """Links that have come or gone, and are not yet kept or still are."""
        self._shifting: asyncio.Task[None] | None = None
        self._telling: asyncio.Handle | None = None
        """Tells the listeners, once it is their turn."""
        self._tasks = TaskGroup()
        self.failed = self._tasks.failed
        """Set when a peer's connection is no longer kept."""
        self._dialling = asyncio.Semaphore(DIALS)
        self._dials = Turns(patience=DIAL_PATIENCE)
        self.turns = Turns()
        """For all that is asked of peers."""
        self.ended = 0
        """Connections that are over, and attempts that came to nothing."""
        self.listeners: set[Callable[[], None]] = set()
        """Called when links have appeared, connected, broken or gone: once for all that did so together."""

    def links(self) -> Sequence[Link]:
        """All peers, by name."""
        return [self._links[name] for name in sorted(self._links)]

    def get(self, name: str) -> Link | None:
        """The link to a peer."""
        return self._links.get(name)

    def set_peers(self, peers: Iterable[Peer]) -> None:
        """Take the list of all peers; links to others end, links to moved ones begin anew."""
        wanted = {peer.name: peer for peer in peers}
        for name, link in list(self._links.items()):
            if wanted.get(name) != link.peer:
                del self._links[name]
                link.gone = True
                link.problem = "the peer is gone" if name not in wanted else "the peer has moved"
                self._shifted.append(link)
        for name, peer in wanted.items():
            if name not in self._links:
                link = self._links[name] = Link(peer)
                self._shifted.append(link)
        if self._shifted and (self._shifting is None or self._shifting.done()):
            self._shifting = self._tasks.spawn("peers that come and go", self._shift())
        self._tell()

    async def close(self) -> None:
        """Close all connections; nobody is told any more."""
        self.listeners.clear()
        links, self._links = self._links, {}
        for link in links.values():
            link.gone, link.problem = True, "the relay is stopping"
            self._end(link)
        await self._tasks.close()

    async def _shift(self) -> None:
        """Keep links that have come and end those that have gone, a few at a time."""
        while self._shifted:
            for _ in range(min(SHIFT, len(self._shifted))):
                link = self._shifted.popleft()
                if link.gone:
                    self._end(link)
                else:
                    self._running[link] = self._tasks.spawn(f"peer {link.name}", self._keep(link))
            await asyncio.sleep(0)

    def _end(self, link: Link) -> None:
        running = self._running.pop(link, None)
        if running:
            running.cancel()
        if link.channel:
            link.channel.close(link.problem)

    async def _keep(self, link: Link) -> None:
        pauses = Backoff(0.5, self._settings.retry_timeout)
        while True:
            link.dialling = True
            try:
                channel = await self._dial(link.peer)
            except RpcError as error:
                self.ended += 1
                self._lost(link, error.sentence)
            else:
                since = asyncio.get_running_loop().time()
                link.channel, link.problem, link.dialling = channel, "", False
                log.debug("peer connected", peer=link.name, address=link.peer.address)
                self._tell()
                try:
                    await self._watch(channel)
                finally:
                    channel.close()
                    link.channel = None
                    self.ended += 1
                    self._tell()
                self._lost(link, channel.reason)
                if asyncio.get_running_loop().time() - since > SOUND_SECONDS:
                    pauses.reset()
            await asyncio.sleep(pauses.next())

    async def _dial(self, peer: Peer) -> Channel:
        """A connection on which the peer has answered. Raises RpcError."""
        local = peer.address.startswith(("unix:", "/"))
        timeout = self._settings.dial_timeout
        async with self._dialling, self._dials.turn():
            channel = await Channel.open(
                peer.address,
                tls=None if local else self._tls(peer.tls_name),
                server_name=peer.tls_name or None,
                timeout=timeout,
                called="the node",
            )
            try:
                # With TLS 1.3 a server refuses a client only after the handshake; and some only listen.
                await channel.check(timeout)
            except BaseException:
                channel.close()
                raise
        return channel

    async def _watch(self, channel: Channel) -> None:
        """Until the connection is gone."""
        received = -1
        while not channel.closed.is_set():
            try:
                async with asyncio.timeout(self._settings.check_interval):
                    await channel.closed.wait()
            except TimeoutError:
                if channel.received == received:
                    try:
                        await channel.check(self._settings.check_timeout)
                    except RpcError as error:
                        channel.close(error.sentence)
                received = channel.received

    def _lost(self, link: Link, reason: str) -> None:
        if link.gone:
            return
        if link.problem != reason:
            log.debug("peer unavailable", peer=link.name, reason=reason)
        link.problem, link.dialling = reason, False
        self._tell()

    def _tell(self) -> None:
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self._tell_listeners)

    def _tell_listeners(self) -> None:
        self._telling = None
        for listener in list(self.listeners):
            listener()


def reasons(away: Sequence[Link]) -> str:
    """`worker-7: it can't be reached; worker-9: it hangs; and 40 more`."""
    words = [f"{link.name}: {link.problem}" for link in away[:REASONS]]
    if len(away) > REASONS:
        words.append(f"and {len(away) - REASONS:,} more")
    return "; ".join(words)
