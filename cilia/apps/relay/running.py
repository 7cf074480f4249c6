"""Builds a relay of its settings, and runs it until it is told to stop.

peers (a list, or the peer service) ─► pool of connections ─► observer ─► doors
                                         └─► health, metrics
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from cilia import __version__
from cilia.apps.relay.doors import (
    StartError,
    client_tls,
    listen,
    listen_for_scrapes,
    server_tls,
    split_addresses,
)
from cilia.apps.relay.settings import Settings
from cilia.cluster.kube.client import KubeStore
from cilia.cluster.kube.kubeconfig import ConfigError
from cilia.hubble.health import Health
from cilia.hubble.peer import Peer
from cilia.hubble.rpc.reflection import Reflection
from cilia.hubble.rpc.server import Server
from cilia.hubble.rpc.targets import is_local
from cilia.kit import startup
from cilia.kit.clock import SystemClock
from cilia.kit.tasks import TaskGroup
from cilia.kit.tls import ClientTls, ServerTls, TlsError, TlsFiles
from cilia.proto.health import health_pb2
from cilia.proto.observer import observer_pb2
from cilia.relay.access import Access, AccessSettings
from cilia.relay.answer import AnswerSettings
from cilia.relay.merge import MergeSettings
from cilia.relay.numbers import Numbers
from cilia.relay.observer import RelayObserver, RelaySettings
from cilia.relay.peers import PeerListError, PeerService, TlsFor, parse_peers
from cilia.relay.pool import Pool, PoolSettings
from cilia.relay.tally import Tally
from cilia.relay.tidy import Tidy, give_back

FAULTS = (StartError, PeerListError, TlsError, ConfigError)
"""What can be wrong with settings or the machine; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class RelayOptions:
    """What a relay is made of: settings as the parts have them, and TLS that was read."""

    cluster_name: str
    listen_address: str
    """`unix:///path`, `host:port` or `:port`; several with commas."""
    health_listen_address: str
    """Where probes ask in plain text, `host:port`; empty: nowhere but at the door for clients."""
    metrics_listen_address: str
    """Where Prometheus asks in plain text, `host:port`; empty: nowhere."""
    peers: list[Peer]
    """A fixed list; empty: the peer service is followed."""
    peer_service: str
    peer_service_tls_server_name: str
    client_tls: ClientTls | None
    """For the way to nodes; None: plain text."""
    server_tls: ServerTls | None
    """For the way from clients; None: plain text."""
    pool: PoolSettings
    answer: AnswerSettings
    reviews: KubeStore | None
    """Who is asked what a viewer may see; None: everybody who can connect sees everything."""
    access: AccessSettings


def tls_for(tls: ClientTls | None) -> TlsFor:
    """A context for each connection to a node, of what the files hold then."""

    def context(_server_name: str) -> ssl.SSLContext | None:
        return tls.context() if tls else None

    return context


def options_of(settings: Settings) -> RelayOptions:
    """What settings mean. Raises one of FAULTS."""
    peers = parse_peers(settings.peers)
    return RelayOptions(
        cluster_name=settings.cluster_name,
        listen_address=settings.listen_address,
        health_listen_address=settings.health_listen_address,
        metrics_listen_address=settings.metrics_listen_address,
        peers=peers,
        peer_service=settings.peer_service,
        peer_service_tls_server_name=settings.peer_service_tls_server_name,
        client_tls=client_tls(
            TlsFiles(
                settings.tls_hubble_client_cert_file,
                settings.tls_hubble_client_key_file,
                tuple(settings.tls_hubble_server_ca_files or ()) or None,
            ),
            disabled=settings.disable_client_tls,
            local=bool(peers) and all(is_local(peer.address) for peer in peers),
        ),
        server_tls=server_tls(
            TlsFiles(
                settings.tls_relay_server_cert_file,
                settings.tls_relay_server_key_file,
                tuple(settings.tls_relay_client_ca_files or ()) or None,
            ),
            disabled=settings.disable_server_tls,
            local=all(map(is_local, split_addresses(settings.listen_address))),
            tokens=settings.require_tokens,
        ),
        pool=PoolSettings(dial_timeout=settings.dial_timeout, retry_timeout=settings.retry_timeout),
        answer=AnswerSettings(
            merge=MergeSettings(
                limit=settings.sort_buffer_len_max, patience=settings.sort_buffer_drain_timeout
            ),
            gather=settings.error_aggregation_window,
        ),
        reviews=(
            KubeStore.discover(settings.kubeconfig, os.environ, user_agent="hubble-relay")
            if settings.require_tokens
            else None
        ),
        access=AccessSettings(
            audience=settings.token_audience,
            remember=settings.token_cache_ttl,
            mask_addresses=settings.mask_foreign_addresses,
        ),
    )


class Relay:
    """The parts of one relay, connected; nothing is open yet."""

    def __init__(self, options: RelayOptions) -> None:
        self.options = options
        self.clock = SystemClock()
        self.numbers = Numbers()
        self.pool = Pool(options.pool, tls_for(options.client_tls))
        self.health = Health(["observer.Observer"])
        self.access = Access(options.reviews, options.access, self.clock) if options.reviews else None
        said = RelaySettings(
            version=__version__,
            node_name=f"{options.cluster_name}/{socket.gethostname()}",
            answer=options.answer,
        )
        observer = RelayObserver(self.pool, said, self.clock, self.numbers, self.access)
        reflection = Reflection([observer_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR])
        self.server = Server({**observer.methods(), **self.health.methods(), **reflection.methods()})
        self.probes = Server(self.health.methods())
        self.tally = Tally(self.pool)
        self.tidy = Tidy(self.pool, give_back)
        self.pool.listeners |= {self._tell_health, self.tally.changed, self.tidy.changed}
        self._tell_health()

    def _tell_health(self) -> None:
        self.health.set(any(link.channel for link in self.pool.links()), "", "observer.Observer")

    def closing(self, stack: AsyncExitStack) -> None:
        """Close all of it with the stack, doors first."""
        stack.callback(self.tally.close)
        stack.callback(self.tidy.close)
        stack.push_async_callback(self.pool.close)
        if self.access:
            stack.push_async_callback(self.access.close)
        stack.push_async_callback(self.server.close)
        stack.push_async_callback(self.probes.close)

    async def listen(self, stack: AsyncExitStack) -> int:
        """Open the doors; the last port of that for clients. Raises StartError."""
        options = self.options
        for address in split_addresses(options.listen_address):
            port = await listen(self.server, address, options.server_tls, "listen-address")
        if options.health_listen_address:
            await listen(self.probes, options.health_listen_address, None, "health-listen-address")
        if options.metrics_listen_address:
            metrics = await listen_for_scrapes(
                options.metrics_listen_address, self.pool, self.numbers, self.clock
            )
            stack.push_async_callback(metrics.stop)
        return port

    def find_nodes(self, tasks: TaskGroup) -> None:
        """Connect to the nodes of the list, or to those that the peer service tells of, from now on."""
        options = self.options
        if options.peers:
            self.pool.set_peers(options.peers)
            return
        service = PeerService(
            options.peer_service,
            self.pool.set_peers,
            tls_for(options.client_tls),
            options.peer_service_tls_server_name,
        )
        tasks.spawn("peer service", service.run())


class Serving(NamedTuple):
    """A relay that runs."""

    port: int
    """The last one it listens on; 0 on a unix socket."""
    failed: tuple[asyncio.Event, ...]
    """One is set when something ended that must go on: nodes would no longer be found, or asked."""


@asynccontextmanager
async def relaying(options: RelayOptions) -> AsyncIterator[Serving]:
    """A relay that serves while the context lasts. Raises StartError, and at the end what has failed."""
    relay = Relay(options)
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(TaskGroup())
        if options.reviews:
            await stack.enter_async_context(options.reviews)
        relay.closing(stack)
        port = await relay.listen(stack)
        relay.find_nodes(tasks)
        yield Serving(port, (tasks.failed, relay.pool.failed))


async def serve(options: RelayOptions) -> None:
    """Serve until SIGTERM or SIGINT, or until a part fails: whoever started the relay starts it anew."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with relaying(options) as serving:
        startup.started()
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, *serving.failed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
