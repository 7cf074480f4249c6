"""The composition root of ``cilia-apiserver``: flags in, a running server out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
import uvloop

from cilia.cluster.embedded.auth import ROLES, TokenFileError
from cilia.cluster.embedded.credentials import issue_token, make_authority, write_kubeconfig
from cilia.cluster.embedded.server import Config, ListenError, inherited, listen, serve
from cilia.cluster.embedded.services import DEFAULT_NETWORKS, DEFAULT_PORTS, RangeError, parse_ranges
from cilia.cluster.embedded.storage import StorageError
from cilia.kit import log

app = typer.Typer(
    add_completion=False,
    help="The Kubernetes API that Cilia and kubectl need, on one machine, without Kubernetes.",
    pretty_exceptions_enable=False,
)
StateDir = Annotated[Path, typer.Option("--state-dir", help="Directory of the store, the CA and the tokens.")]
DEFAULT_STATE = Path("/var/lib/cilia/apiserver")


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"cilia-apiserver: {error}", err=True)
    return typer.Exit(1)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    state_dir: StateDir = DEFAULT_STATE,
    addresses: Annotated[
        list[str] | None, typer.Option("--listen", help="HOST:PORT to serve HTTPS on; repeatable.")
    ] = None,
    listen_fd: Annotated[
        list[int] | None, typer.Option(help="Number of an inherited, listening TCP socket; repeatable.")
    ] = None,
    tls_san: Annotated[
        list[str] | None, typer.Option(help="Another name or address for the certificate; repeatable.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate to present (PEM); needs --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of --tls-cert (PEM).")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Who may come in; tokens.json in the state directory by default.")
    ] = None,
    ready_fd: Annotated[
        int | None, typer.Option(help="Write a line to this descriptor when ready, instead of to stdout.")
    ] = None,
    keep_history: Annotated[
        int, typer.Option(min=16, help="How many versions back a watch may start.")
    ] = 8192,
    service_cluster_ip_range: Annotated[
        str, typer.Option(help="Prefixes that cluster IPs are given from; the first is the default family's.")
    ] = DEFAULT_NETWORKS,
    service_node_port_range: Annotated[
        str, typer.Option(help="FIRST-LAST: ports that node ports are given from.")
    ] = DEFAULT_PORTS,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Serve until SIGTERM or SIGINT."""
    context.obj = state_dir
    if context.invoked_subcommand is not None:
        return
    if (tls_cert is None) != (tls_key is None):
        raise _fail(ValueError("--tls-cert and --tls-key go together; give both or neither"))
    if log_level not in ("debug", "info", "warning", "error") or log_format not in ("text", "json"):
        raise _fail(ValueError("--log-level is debug, info, warning or error; --log-format is text or json"))
    try:
        ranges = parse_ranges(service_cluster_ip_range, service_node_port_range)
    except RangeError as error:
        raise _fail(error) from error
    style: Literal["text", "json"] = "json" if log_format == "json" else "text"
    log.configure(log_level, style)
    config = Config(
        state_dir=state_dir,
        token_file=token_file,
        tls_names=tuple(tls_san or ()),
        certificate=tls_cert,
        key=tls_key,
        keep_history=keep_history,
        services=ranges,
    )
    os.umask(0o077)
    try:
        sockets = [inherited(number) for number in listen_fd or ()]
        sockets += [listen(address) for address in addresses or ([] if sockets else ["127.0.0.1:6443"])]
        names = ", ".join("{}:{}".format(*sock.getsockname()[:2]) for sock in sockets)
        uvloop.run(serve(config, sockets, lambda: _say_ready(f"ready on {names}\n", ready_fd)))
    except (StorageError, TokenFileError, ListenError, OSError) as error:
        raise _fail(error) from error


def _say_ready(line: str, descriptor: int | None) -> None:
    os.write(sys.stdout.fileno() if descriptor is None else descriptor, line.encode())
    if descriptor is not None:
        os.close(descriptor)


@app.command()
def kubeconfig(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="Where to write the kubeconfig (0600).")],
    server: Annotated[
        str, typer.Option(help="URL under which clients reach the server.")
    ] = "https://127.0.0.1:6443",
    user: Annotated[str, typer.Option(help="Name of the user; its older tokens stop working.")] = "admin",
    role: Annotated[str, typer.Option(help="admin, operator, agent, lab or viewer.")] = "admin",
    node: Annotated[str, typer.Option(help="The node an agent is bound to.")] = "",
    state_dir: Annotated[
        Path | None, typer.Option(help="Directory of the server; as given before the command by default.")
    ] = None,
) -> None:
    """Issue a token and write a kubeconfig that carries it."""
    directory: Path = state_dir or context.obj
    if role not in ROLES:
        raise _fail(ValueError(f"--role {role} is not one of {', '.join(ROLES)}"))
    try:
        authority = make_authority(directory)
        token = issue_token(directory, user, role, node)
        write_kubeconfig(output, server, authority.ca, token, user)
    except (ValueError, OSError, TokenFileError) as error:
        raise _fail(error) from error
    typer.echo(f"export KUBECONFIG={output}")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
