"""The way to a Hubble server: the flags and variables of `hubble`, and a client made of them.

A command gets the flags by its class (`ServerCommand`) and a client by `connected(ctx)`. Flags of a group
count for its commands, too; who repeats one overrides it.
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer
from typer.core import TyperOption

from cilia.cli import hubble_file
from cilia.cli.errors import UserError
from cilia.cli.sections import SectionedCommand, SectionedGroup, option
from cilia.hubble.rpc.targets import is_local

if TYPE_CHECKING:
    from cilia.hubble.client import Client
    from cilia.hubble.rpc.messages import RpcError

DEFAULT_SERVER = "unix:///run/cilia/hubble.sock"
SERVER_VARIABLES = ["HUBBLE_SERVER", "CILIA_HUBBLE_SOCKET"]
NODES_ONLY = ("relay", "no method", "unknown method", "unknown service")
"""Words of servers that do not know a call."""
META = "cilia.server"
PANEL = "Server"


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is and how to talk to it."""

    server: str = DEFAULT_SERVER
    timeout: float = 5.0
    """Seconds to connect."""
    request_timeout: float = 12.0
    """Seconds for an answer to a question that has one."""
    tls: bool = False
    tls_allow_insecure: bool = False
    tls_ca_cert_files: tuple[str, ...] = ()
    tls_client_cert_file: str = ""
    tls_client_key_file: str = ""
    tls_server_name: str = ""
    basic_auth_username: str = ""
    basic_auth_password: str = ""
    token_file: str = ""
    port_forward: bool = False
    """Reach the relay through kubectl; `server` does not count then."""
    port_forward_port: int = 4245
    """Port on this machine; 0: any that is free."""
    kube_context: str = ""
    kube_namespace: str = "kube-system"
    kubeconfig: str = ""

    @property
    def local(self) -> bool:
        """Whether the server is behind a socket of this machine."""
        return is_local(self.server)

    @property
    def encrypted(self) -> bool:
        """Whether TLS is asked for, by a flag or by what only TLS needs."""
        files = self.tls_ca_cert_files or self.tls_client_cert_file or self.tls_client_key_file
        asked = self.tls or self.tls_allow_insecure or self.tls_server_name
        return bool(files or asked) or self.server.startswith("tls://")


FOR_TCP = ("tls", "basic_auth", "token", "port_forward")
"""How the names of settings begin that a socket of this machine has no use for."""
DEFAULTS = {name: getattr(ServerSettings(), name) for name in ServerSettings.__struct_fields__}


def keep(ctx: typer.Context, parameter: Any, value: Any) -> None:
    """Put what was typed, or what the environment has, where `settings` finds it."""
    if ctx.get_parameter_source(parameter.name).name != "DEFAULT":  # type: ignore[union-attr]
        ctx.meta.setdefault(META, {})[parameter.name] = value


def keep_seconds(ctx: typer.Context, parameter: Any, value: str | None) -> None:
    """A duration: `5s`, `1m30s`, or a number of seconds."""
    if value is None:
        return
    try:
        keep(ctx, parameter, hubble_file.seconds(value))
    except ValueError as error:
        raise typer.BadParameter(str(error), ctx, parameter) from None


def keep_port(ctx: typer.Context, parameter: Any, value: str | None) -> None:
    """A number of a port."""
    if value is None:
        return
    try:
        keep(ctx, parameter, hubble_file.port(value))
    except ValueError as error:
        raise typer.BadParameter(str(error), ctx, parameter) from None


def keep_files(ctx: typer.Context, parameter: Any, value: tuple[str, ...]) -> None:
    """Files, separated by commas or given one by one."""
    keep(ctx, parameter, tuple(name.strip() for text in value for name in text.split(",") if name.strip()))


def keep_place(_ctx: typer.Context, _parameter: Any, value: str | None) -> None:
    """Where the file is, for all who ask: the variable says the same."""
    if value:
        os.environ[hubble_file.VARIABLE] = value


def variable(name: str) -> str:
    """The environment variable of a flag, as `hubble` has it."""
    return f"HUBBLE_{name.removeprefix('--').replace('-', '_').upper()}"


def server_options() -> list[TyperOption]:
    """The flags of all commands that ask a Hubble server."""

    def flag(name: str, text: str, keeper: Callable[..., None] = keep, **more: Any) -> TyperOption:
        names = name.split()
        return option(PANEL, names, text, keep=keeper, **{"envvar": variable(names[0]), **more})

    return [
        flag("--server", f"unix:///path or host:port ({DEFAULT_SERVER}).", envvar=SERVER_VARIABLES),
        flag("--timeout", "Time to connect (5s).", keep_seconds),
        flag("--request-timeout", "Time for an answer that is no stream (12s).", keep_seconds),
        flag("--tls", "Speak TLS; so do tls://host:port and all --tls-* flags.", switch=True),
        flag("--tls-allow-insecure", "Trust any server; for trials only.", switch=True),
        flag("--tls-ca-cert-files", "Authorities of the server, PEM.", keep_files, multiple=True),
        flag("--tls-client-cert-file", "Own certificate, PEM."),
        flag("--tls-client-key-file", "Its key, PEM."),
        flag("--tls-server-name", "Name in the server's certificate, if not the host's."),
        flag("--basic-auth-username", "Name for a proxy in front of the server."),
        flag("--basic-auth-password", "Its password."),
        flag("--token-file", "File with a bearer token, for a relay that asks who you are."),
        flag("--port-forward -P", "Reach the relay by kubectl port-forward.", switch=True),
        flag("--port-forward-port", "Port for that on this machine, 0 for any (4245).", keep_port),
        flag("--kube-context", "Context of the kubeconfig for that."),
        flag("--kube-namespace", "Namespace of hubble-relay (kube-system)."),
        flag("--kubeconfig", "The kubeconfig for that."),
        flag("--config", "File with lasting values of these flags.", keep_place),
    ]


class ServerCommand(SectionedCommand):
    """A command with the flags of the server."""

    more = staticmethod(server_options)


class ServerGroup(SectionedGroup):
    """A group with the flags of the server."""

    more = staticmethod(server_options)


def settings(ctx: typer.Context) -> ServerSettings:
    """What flags, environment and file say. Raises UserError for a file that can't be used."""
    return ServerSettings(**{**lasting(ctx), **ctx.meta.get(META, {})})


def lasting(ctx: typer.Context) -> dict[str, Any]:
    """What the file says that counts beside flags and environment. Raises UserError."""
    told: dict[str, Any] = ctx.meta.get(META, {})
    kept = hubble_file.values(hubble_file.place(), DEFAULTS)
    if is_local(str(told.get("server", ""))):
        # Certificates in the file are for the server in the file.
        kept = {name: value for name, value in kept.items() if not name.startswith(FOR_TCP)}
    if "server" in told:
        # Who names a server means that one, whichever way the file knows to another.
        kept.pop("port_forward", None)
    return kept


def client(chosen: ServerSettings) -> Client:
    """A connection. Raises UserError for settings that make none, RpcError when nobody answers."""
    # Imported late: completion of values needs no client.
    from cilia.hubble.client import Client

    return Client(
        chosen.server,
        timeout=chosen.timeout,
        tls=tls_context(chosen),
        server_name=chosen.tls_server_name,
        authorization=authorization(chosen),
        patience=chosen.request_timeout,
    )


@contextmanager
def connected(ctx: typer.Context) -> Iterator[Client]:
    """A client for the time of a command; errors of server and connection become the user's."""
    from cilia.hubble.rpc.messages import RpcError

    with reached(settings(ctx)) as chosen:
        try:
            with client(chosen) as connection:
                yield connection
        except RpcError as error:
            raise UserError(sentence(error, chosen)) from None


@contextmanager
def reached(chosen: ServerSettings) -> Iterator[ServerSettings]:
    """Settings with an address at which the server can be asked meanwhile. Raises UserError."""
    if not chosen.port_forward:
        yield chosen
        return
    from cilia.cli.port_forward import forwarded

    with forwarded(
        namespace=chosen.kube_namespace,
        context=chosen.kube_context,
        kubeconfig=chosen.kubeconfig,
        port=chosen.port_forward_port,
        timeout=chosen.timeout,
    ) as address:
        yield msgspec.structs.replace(chosen, server=address)


def sentence(error: RpcError, chosen: ServerSettings) -> str:
    """What went wrong, and what else to do about it."""
    told, more = error.sentence, hint(error, chosen)
    return told + ("." if more and told[-1] not in ".?!" else "") + more


def hint(error: RpcError, chosen: ServerSettings) -> str:
    """The flags that may help."""
    match error.code.name:
        case "UNAUTHENTICATED" if not chosen.token_file:
            return " Name a file with your token by --token-file or $HUBBLE_TOKEN_FILE."
        case "UNIMPLEMENTED" if any(word in error.sentence for word in NODES_ONLY):
            node = os.environ.get(SERVER_VARIABLES[1]) or DEFAULT_SERVER
            told = "" if "relay" in error.sentence else " It may be a relay, which knows less than a node."
            return f"{told} On a node, ask --server {node}."
        case "DEADLINE_EXCEEDED":
            return f" It had {chosen.request_timeout:g} seconds: give it more with --request-timeout."
        case "UNAVAILABLE" if chosen.encrypted and "trust" in error.sentence:
            return " The flags are --tls-ca-cert-files, --tls-client-cert-file and --tls-server-name."
        case "UNAVAILABLE" if chosen.encrypted and is_silent(error.sentence):
            return " If it speaks no TLS, leave out tls:// and all --tls flags."
        case "UNAVAILABLE" if not (chosen.local or chosen.encrypted) and is_cut(error.sentence):
            return " If it speaks TLS, add --tls and --tls-ca-cert-files."
        case "UNAVAILABLE":
            return f" Name another server with --server or ${SERVER_VARIABLES[0]}."
    return ""


def is_silent(sentence: str) -> bool:
    """Whether a server said nothing, as one does that waits for plain text."""
    return "closed the connection" in sentence or "did not answer" in sentence


def is_cut(sentence: str) -> bool:
    """Whether a server that was reached ended the connection, as it does with one who does not speak TLS."""
    return "closed the connection" in sentence or "broke" in sentence


def tls_context(chosen: ServerSettings) -> ssl.SSLContext | None:
    """None for plain text. Raises UserError."""
    if not chosen.encrypted:
        return None
    if chosen.local:
        raise UserError("a socket of this machine takes no TLS: name the server by --server host:port")
    from cilia.kit.tls import ClientTls, TlsError, TlsFiles

    files = TlsFiles(
        Path(chosen.tls_client_cert_file) if chosen.tls_client_cert_file else None,
        Path(chosen.tls_client_key_file) if chosen.tls_client_key_file else None,
        tuple(map(Path, chosen.tls_ca_cert_files)) or None,
    )
    try:
        context = ClientTls(files, chosen.tls_server_name).context()
    except TlsError as error:
        raise UserError(str(error)) from None
    if chosen.tls_allow_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def authorization(chosen: ServerSettings) -> str:
    """The header that says who asks, or an empty string. Raises UserError."""
    name, password, file = chosen.basic_auth_username, chosen.basic_auth_password, chosen.token_file
    if not (name or password or file):
        return ""
    if file and (name or password):
        raise UserError("--token-file and --basic-auth-* exclude each other: keep one")
    if not (chosen.local or chosen.encrypted):
        raise UserError("this would send a password or token in plain text: add --tls")
    if file:
        return f"Bearer {read_token(file)}"
    if not (name and password):
        raise UserError("--basic-auth-username and --basic-auth-password belong together: give both")
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def read_token(file: str) -> str:
    """A token of one line. Raises UserError."""
    try:
        token = Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "it is no text"
        raise UserError(f"{file} can't be read ({reason}): name a file with a token") from None
    if not token or len(token.split()) != 1:
        raise UserError(f"{file} has no token in it: it must be one word")
    return token
