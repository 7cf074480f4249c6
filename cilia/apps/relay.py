"""The composition root of `hubble-relay`: flags in, a relay that serves out."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
import uvloop

from cilia import __version__
from cilia.apps.relay_doors import (
    StartError,
    client_tls,
    listen,
    listen_for_scrapes,
    server_tls,
    split_addresses,
)
from cilia.cluster.kube.client import KubeStore
from cilia.cluster.kube.kubeconfig import ConfigError
from cilia.hubble.health import Health
from cilia.hubble.peer import Peer
from cilia.hubble.rpc.reflection import Reflection
from cilia.hubble.rpc.server import Server
from cilia.hubble.rpc.targets import is_local
from cilia.kit import log as logs
from cilia.kit.clock import SystemClock
from cilia.kit.durations import parse_duration
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

app = typer.Typer(
    add_completion=False,
    help="Answers for all nodes: asks every Hubble server and merges what they say by time.",
    pretty_exceptions_enable=False,
)

DEFAULT_PEER_SERVICE = "unix:///var/run/cilia/hubble.sock"


@dataclass(frozen=True, kw_only=True)
class RelayOptions:
    """All settings of the relay; each is a flag and an environment variable CILIA_RELAY_<NAME>."""

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


def duration(text: str, flag: str) -> float:
    """Seconds of `500ms`, `1s`, `2m` or a bare number of seconds."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise StartError(f"--{flag}: {error}") from None
    if not seconds:
        raise StartError(f"--{flag} is 0: write a length of time such as 500ms, 1s or 2m")
    return seconds


def tls_for(tls: ClientTls | None) -> TlsFor:
    """A context for each connection to a node, of what the files hold then."""

    def context(_server_name: str) -> ssl.SSLContext | None:
        return tls.context() if tls else None

    return context


@asynccontextmanager
async def relaying(options: RelayOptions) -> AsyncIterator[int]:
    """A relay that serves while the context lasts; gives its last port (0 on a unix socket). Raises
    StartError."""
    clock = SystemClock()
    pool = Pool(options.pool, tls_for(options.client_tls))
    settings = RelaySettings(
        version=__version__,
        node_name=f"{options.cluster_name}/{socket.gethostname()}",
        answer=options.answer,
    )
    access = Access(options.reviews, options.access, clock) if options.reviews else None
    numbers = Numbers()
    observer = RelayObserver(pool, settings, clock, numbers, access)
    health = Health(["observer.Observer"])
    reflection = Reflection([observer_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR])
    server = Server({**observer.methods(), **health.methods(), **reflection.methods()})
    probes = Server(health.methods())

    def tell_health() -> None:
        health.set(any(link.channel for link in pool.links()), "", "observer.Observer")

    tell_health()
    tally = Tally(pool)
    pool.listeners |= {tell_health, tally.changed}
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(TaskGroup())
        if options.reviews:
            await stack.enter_async_context(options.reviews)
        stack.callback(tally.close)
        stack.push_async_callback(pool.close)
        stack.push_async_callback(server.close)
        stack.push_async_callback(probes.close)
        for address in split_addresses(options.listen_address):
            port = await listen(server, address, options.server_tls, "listen-address")
        if options.health_listen_address:
            await listen(probes, options.health_listen_address, None, "health-listen-address")
        if options.metrics_listen_address:
            metrics = await listen_for_scrapes(options.metrics_listen_address, pool, numbers, clock)
            stack.push_async_callback(metrics.stop)
        if options.peers:
            pool.set_peers(options.peers)
        else:
            service = PeerService(
                options.peer_service,
                pool.set_peers,
                tls_for(options.client_tls),
                options.peer_service_tls_server_name,
            )
            tasks.spawn("peer service", service.run())
        yield port


async def serve(options: RelayOptions) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with relaying(options):
        await stop.wait()


def _env(name: str) -> str:
    return f"CILIA_RELAY_{name.upper()}"


@app.callback()
def relay() -> None:
    """Only so that `serve` is a command of its own, as users of Hubble's relay type it."""


@app.command("serve")
def run(
    cluster_name: Annotated[
        str, typer.Option(envvar=_env("cluster_name"), help="Name of this cluster.")
    ] = "default",
    listen_address: Annotated[
        str,
        typer.Option(
            envvar=_env("listen_address"), help="HOST:PORT or unix:///PATH for clients; commas between."
        ),
    ] = ":4245",
    health_listen_address: Annotated[
        str,
        typer.Option(
            envvar=_env("health_listen_address"), help="HOST:PORT of gRPC health in plain text; empty: none."
        ),
    ] = ":4222",
    metrics_listen_address: Annotated[
        str,
        typer.Option(
            envvar=_env("metrics_listen_address"), help="HOST:PORT of metrics for Prometheus; empty: none."
        ),
    ] = "",
    peers: Annotated[
        str,
        typer.Option(envvar=_env("peers"), help="NAME=HOST:PORT,... instead of the peer service."),
    ] = "",
    peer_service: Annotated[
        str, typer.Option(envvar=_env("peer_service"), help="Who knows the nodes: HOST:PORT or unix:///PATH.")
    ] = DEFAULT_PEER_SERVICE,
    peer_service_tls_server_name: Annotated[
        str,
        typer.Option(
            envvar=_env("peer_service_tls_server_name"),
            help="Name in the peer service's certificate, if not its host.",
        ),
    ] = "",
    dial_timeout: Annotated[
        str, typer.Option(envvar=_env("dial_timeout"), help="Until a node that does not answer is given up.")
    ] = "5s",
    retry_timeout: Annotated[
        str, typer.Option(envvar=_env("retry_timeout"), help="Longest pause between attempts to connect.")
    ] = "30s",
    sort_buffer_len_max: Annotated[
        int,
        typer.Option(
            envvar=_env("sort_buffer_len_max"),
            min=1,
            help="Flows a follower's merge holds back before it lets the oldest go.",
        ),
    ] = 100,
    sort_buffer_drain_timeout: Annotated[
        str,
        typer.Option(
            envvar=_env("sort_buffer_drain_timeout"), help="How long the merge waits for a silent node."
        ),
    ] = "1s",
    error_aggregation_window: Annotated[
        str,
        typer.Option(
            envvar=_env("error_aggregation_window"), help="How long equal errors wait to be told together."
        ),
    ] = "1s",
    tls_hubble_client_cert_file: Annotated[
        Path | None,
        typer.Option(
            envvar=_env("tls_hubble_client_cert_file"), help="The relay's certificate for nodes (PEM)."
        ),
    ] = None,
    tls_hubble_client_key_file: Annotated[
        Path | None, typer.Option(envvar=_env("tls_hubble_client_key_file"), help="Its private key (PEM).")
    ] = None,
    tls_hubble_server_ca_files: Annotated[
        list[Path] | None,
        typer.Option(
            envvar=_env("tls_hubble_server_ca_files"),
            help="Authorities of the nodes' certificates; repeatable.",
        ),
    ] = None,
    disable_client_tls: Annotated[
        bool, typer.Option(envvar=_env("disable_client_tls"), help="Speak plain text to nodes.")
    ] = False,
    tls_relay_server_cert_file: Annotated[
        Path | None,
        typer.Option(
            envvar=_env("tls_relay_server_cert_file"), help="The relay's certificate for clients (PEM)."
        ),
    ] = None,
    tls_relay_server_key_file: Annotated[
        Path | None, typer.Option(envvar=_env("tls_relay_server_key_file"), help="Its private key (PEM).")
    ] = None,
    tls_relay_client_ca_files: Annotated[
        list[Path] | None,
        typer.Option(
            envvar=_env("tls_relay_client_ca_files"), help="Authorities of clients' certificates; repeatable."
        ),
    ] = None,
    disable_server_tls: Annotated[
        bool, typer.Option(envvar=_env("disable_server_tls"), help="Serve plain text.")
    ] = False,
    require_tokens: Annotated[
        bool,
        typer.Option(
            envvar=_env("require_tokens"),
            help="Let in only who brings a Kubernetes token; what it may see decides RBAC.",
        ),
    ] = False,
    token_audience: Annotated[
        str, typer.Option(envvar=_env("token_audience"), help="What tokens must be made for.")
    ] = "",
    token_cache_ttl: Annotated[
        str, typer.Option(envvar=_env("token_cache_ttl"), help="How long an answer about a token holds.")
    ] = "60s",
    mask_foreign_addresses: Annotated[
        bool,
        typer.Option(
            envvar=_env("mask_foreign_addresses"),
            help="Hide addresses, not only names, of peers a viewer may not see.",
        ),
    ] = False,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(envvar="KUBECONFIG", help="How to reach the API server; else the pod's account."),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(envvar=_env("log_level"), help="The least that is logged."),
    ] = "info",
    log_format: Annotated[
        Literal["text", "json"], typer.Option(envvar=_env("log_format"), help="How log lines look.")
    ] = "text",
) -> None:
    """Serve until SIGTERM or SIGINT."""
    try:
        fixed = parse_peers(peers)
        local = all(is_local(address) for address in ([p.address for p in fixed] or [peer_service]))
        options = RelayOptions(
            cluster_name=cluster_name,
            listen_address=listen_address,
            health_listen_address=health_listen_address,
            metrics_listen_address=metrics_listen_address,
            peers=fixed,
            peer_service=peer_service,
            peer_service_tls_server_name=peer_service_tls_server_name,
            client_tls=client_tls(
                TlsFiles(
                    tls_hubble_client_cert_file,
                    tls_hubble_client_key_file,
                    tuple(tls_hubble_server_ca_files or ()) or None,
                ),
                disabled=disable_client_tls,
                local=local and bool(fixed),
            ),
            server_tls=server_tls(
                TlsFiles(
                    tls_relay_server_cert_file,
                    tls_relay_server_key_file,
                    tuple(tls_relay_client_ca_files or ()) or None,
                ),
                disabled=disable_server_tls,
                local=all(map(is_local, split_addresses(listen_address))),
                tokens=require_tokens,
            ),
            pool=PoolSettings(
                dial_timeout=duration(dial_timeout, "dial-timeout"),
                retry_timeout=duration(retry_timeout, "retry-timeout"),
            ),
            answer=AnswerSettings(
                merge=MergeSettings(
                    limit=sort_buffer_len_max,
                    patience=duration(sort_buffer_drain_timeout, "sort-buffer-drain-timeout"),
                ),
                gather=duration(error_aggregation_window, "error-aggregation-window"),
            ),
            reviews=(
                KubeStore.discover(kubeconfig, os.environ, user_agent="hubble-relay")
                if require_tokens
                else None
            ),
            access=AccessSettings(
                audience=token_audience,
                remember=duration(token_cache_ttl, "token-cache-ttl"),
                mask_addresses=mask_foreign_addresses,
            ),
        )
        logs.configure(log_level, log_format)
        os.umask(0o077)
        uvloop.run(serve(options))
    except (StartError, PeerListError, TlsError, ConfigError) as error:
        typer.echo(f"hubble-relay: {error}", err=True)
        raise typer.Exit(1) from None


def main() -> None:
    """Entry point of the `hubble-relay` command."""
    app(prog_name="hubble-relay")


if __name__ == "__main__":
    main()
