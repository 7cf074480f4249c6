"""Where the relay listens, and what TLS it speaks there and to nodes: addresses and files in, doors out."""

from __future__ import annotations

from pathlib import Path

from cilia.hubble.metrics.server import MetricsServer, MetricsServerSettings
from cilia.hubble.rpc.server import Server
from cilia.hubble.rpc.targets import host_and_port, socket_path
from cilia.kit.clock import Clock
from cilia.kit.tls import ClientTls, ServerTls, TlsFiles
from cilia.relay.numbers import Numbers, RelayText
from cilia.relay.pool import Pool


class StartError(Exception):
    """The relay can't start; its text is a sentence."""


def split_addresses(text: str) -> list[str]:
    """Addresses with commas between. Raises StartError when there is none."""
    addresses = [address.strip() for address in text.split(",") if address.strip()]
    if not addresses:
        raise StartError("--listen-address is empty: give HOST:PORT, unix:///PATH, or both with a comma")
    return addresses


async def listen(server: Server, address: str, tls: ServerTls | None, flag: str) -> int:
    """Open a door; its port. Raises StartError."""
    try:
        path = socket_path(address)
        if path is not None:
            await server.listen_unix(Path(path))
            return 0
        host, port = host_and_port(address)
        return await server.listen_tcp(host, port, tls)
    except (OSError, ValueError) as error:
        raise StartError(f"{address} can't be listened on ({error}): choose another --{flag}") from None


async def listen_for_scrapes(address: str, pool: Pool, numbers: Numbers, clock: Clock) -> MetricsServer:
    """Answer Prometheus. Raises StartError."""
    try:
        host, port = host_and_port(address)
        text = RelayText(pool, numbers)
        server = MetricsServer(
            MetricsServerSettings(host=host, port=port, open_metrics=True), text.pieces, clock
        )
        await server.start()
    except (OSError, ValueError) as error:
        raise StartError(
            f"{address} can't be listened on ({error}): choose another --metrics-listen-address"
        ) from None
    return server


def client_tls(files: TlsFiles, *, disabled: bool, local: bool) -> ClientTls | None:
    """TLS to nodes, unless all are unix sockets or plain text was asked for. Raises StartError, TlsError."""
    if disabled:
        if files.paths():
            raise StartError(
                "--disable-client-tls and --tls-hubble-* exclude each other: leave one of them out"
            )
        return None
    if local and not files.paths():
        return None
    if files.certificate is None or not files.bundles:
        raise StartError(
            "nodes are reached by TLS: give --tls-hubble-client-cert-file, --tls-hubble-client-key-file and "
            "--tls-hubble-server-ca-files (`cilia hubble certs` makes them), or ask for plain text with "
            "--disable-client-tls"
        )
    return ClientTls(files)


def server_tls(files: TlsFiles, *, disabled: bool, local: bool, tokens: bool) -> ServerTls | None:
    """TLS for clients, unless they come by a unix socket or plain text was asked for.

    With `tokens`, clients need no certificate. Raises StartError, TlsError.
    """
    if disabled:
        if files.paths():
            raise StartError(
                "--disable-server-tls and --tls-relay-* exclude each other: leave one of them out"
            )
        if tokens and not local:
            raise StartError(
                "tokens must not travel in plain text: leave out --disable-server-tls, or listen on a "
                "unix socket"
            )
        return None
    if local:
        return None
    if files.certificate is None:
        raise StartError(
            "clients are served by TLS: give --tls-relay-server-cert-file, --tls-relay-server-key-file and "
            "--tls-relay-client-ca-files, or ask for plain text with --disable-server-tls"
        )
    if not files.bundles and not tokens:
        raise StartError(
            "without --tls-relay-client-ca-files anybody could read all flows: give the authority of the "
            "clients' certificates, or ask for tokens with --require-tokens"
        )
    return ServerTls(files, admit_all=tokens)
