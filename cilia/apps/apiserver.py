"""The composition root of ``cilia-apiserver``: flags in, a running server out."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from typer import Option

from cilia.cli.sections import SectionedGroup
from cilia.cluster.embedded.auth import ROLES, TokenFileError
from cilia.cluster.embedded.credentials import issue_token, make_authority, write_kubeconfig
from cilia.cluster.embedded.server import Config, ListenError, inherited, listen, serve
from cilia.cluster.embedded.services import DEFAULT_NETWORKS, DEFAULT_PORTS, parse_ranges
from cilia.cluster.embedded.storage import StorageError
from cilia.kit import flags, log
from cilia.kit.log_settings import LogSettings

app = typer.Typer(
    add_completion=False,
    help="The Kubernetes API that Cilia and kubectl need, on one machine, without Kubernetes.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
DEFAULT_STATE = Path("/var/lib/cilia/apiserver")


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"cilia-apiserver: {error}", err=True)
    return typer.Exit(1)


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """What it keeps."""

    state_dir: Annotated[Path, Option(help="Directory of the store, the CA and the tokens.")] = DEFAULT_STATE
    keep_history: Annotated[int, Option(min=16, help="How many versions back a watch may start.")] = 8192


@dataclass(frozen=True, kw_only=True)
class DoorSettings:
    """Where clients ask, and who may."""

    listen: Annotated[list[str] | None, Option(help="HOST:PORT to serve HTTPS on; repeatable.")] = None
    listen_fd: Annotated[
        list[int] | None, Option(help="Number of an inherited, listening TCP socket; repeatable.")
    ] = None
    tls_san: Annotated[
        list[str] | None, Option(help="Another name or address for the certificate; repeatable.")
    ] = None
    tls_cert: Annotated[Path | None, Option(help="Certificate to present (PEM); needs --tls-key.")] = None
    tls_key: Annotated[Path | None, Option(help="Private key of --tls-cert (PEM).")] = None
    token_file: Annotated[
        Path | None, Option(help="Who may come in; tokens.json in the state directory by default.")
    ] = None
    ready_fd: Annotated[
        int | None, Option(help="Write a line to this descriptor when ready, instead of to stdout.")
    ] = None

    def sockets(self) -> list[socket.socket]:
        """Listening ones: those inherited, and those opened here. Raises ListenError."""
        found = [inherited(number) for number in self.listen_fd or ()]
        default = [] if found else ["127.0.0.1:6443"]
        return found + [listen(address) for address in self.listen or default]


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What Services are given."""

    service_cluster_ip_range: Annotated[
        str, Option(help="Prefixes that cluster IPs are given from; the first is the default family's.")
    ] = DEFAULT_NETWORKS
    service_node_port_range: Annotated[
        str, Option(help="FIRST-LAST: ports that node ports are given from.")
    ] = DEFAULT_PORTS


PARTS: tuple[tuple[str, type], ...] = (
    ("Store", StoreSettings),
    ("Doors", DoorSettings),
    ("Services", ServiceSettings),
    ("Log", LogSettings),
)
"""Each with its heading."""


@dataclass(frozen=True, kw_only=True)
class Settings(LogSettings, ServiceSettings, DoorSettings, StoreSettings):
    """All settings of a server; each is a flag and a variable, CILIA_APISERVER_<FIELD>."""

    def config(self) -> Config:
        """For the server. Raises ValueError with a sentence (RangeError, too)."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key go together; give both or neither")
        return Config(
            state_dir=self.state_dir,
            token_file=self.token_file,
            tls_names=tuple(self.tls_san or ()),
            certificate=self.tls_cert,
            key=self.tls_key,
            keep_history=self.keep_history,
            services=parse_ranges(self.service_cluster_ip_range, self.service_node_port_range),
        )


@app.callback(cls=SectionedGroup, invoke_without_command=True)
@flags.taking(PARTS, variables="CILIA_APISERVER_")
def run(context: typer.Context, **values: Any) -> None:
    """Serve until SIGTERM or SIGINT.

    Each flag has an environment variable, too, which its line names.
    """
    settings = Settings(**values)
    context.obj = settings.state_dir
    if context.invoked_subcommand is not None:
        return
    try:
        config = settings.config()
    except ValueError as error:
        raise _fail(error) from error
    log.configure(settings.log_level, settings.log_format)
    os.umask(0o077)
    try:
        sockets = settings.sockets()
        names = ", ".join("{}:{}".format(*sock.getsockname()[:2]) for sock in sockets)
        uvloop.run(serve(config, sockets, lambda: _say_ready(f"ready on {names}\n", settings.ready_fd)))
    except (StorageError, TokenFileError, ListenError, OSError) as error:
        raise _fail(error) from error


def _say_ready(line: str, descriptor: int | None) -> None:
    os.write(sys.stdout.fileno() if descriptor is None else descriptor, line.encode())
    if descriptor is not None:
        os.close(descriptor)


@app.command()
def kubeconfig(
    context: typer.Context,
    output: Annotated[Path, Option(help="Where to write the kubeconfig (0600).")],
    server: Annotated[
        str, Option(help="URL under which clients reach the server.")
    ] = "https://127.0.0.1:6443",
    user: Annotated[str, Option(help="Name of the user; its older tokens stop working.")] = "admin",
    role: Annotated[str, Option(help="admin, operator, agent, lab or viewer.")] = "admin",
    node: Annotated[str, Option(help="The node an agent is bound to.")] = "",
    state_dir: Annotated[
        Path | None, Option(help="Directory of the server; as given before the command by default.")
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
