"""Putting it together: a state directory and sockets become a running server."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import uvicorn

from cilia.kit.clock import Clock, SystemClock
from cilia.kit.files import private_directory
from cilia.kit.tasks import TaskGroup

from . import crds
from .auth import Authenticator
from .builtins import KINDS
from .credentials import TOKENS, make_authority
from .engine import Engine
from .errors import ApiError
from .garbage import Collector
from .handlers import Handlers, follow_definitions
from .http import Application
from .registry import Registry
from .services import DEFAULT_NETWORKS, DEFAULT_PORTS, Allocator, Ranges, parse_ranges
from .storage import Content, Storage
from .writes import ALWAYS_THERE, Options, Writer

log = structlog.get_logger(__name__)

IDLE_SECONDS: Final = 120


class ListenError(Exception):
    """An address can't be listened on; the message says what to do."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What one server needs to know."""

    state_dir: Path
    """Where the store, the CA and the tokens live; 0700, one server at a time."""
    token_file: Path | None = None
    """Who may come in; ``tokens.json`` in the state directory by default. Read again when it changes."""
    tls_names: tuple[str, ...] = ()
    """Names and addresses of this server besides this machine's own, for its certificate."""
    certificate: Path | None = None
    """A certificate to present instead of the self-made one; needs ``key``."""
    key: Path | None = None
    """The private key of ``certificate``."""
    keep_history: int = 8192
    """How many versions back a watch may start, across restarts."""
    services: Ranges = parse_ranges(DEFAULT_NETWORKS, DEFAULT_PORTS)
    """Cluster IPs and node ports that Services are given."""


class _Server(uvicorn.Server):
    """uvicorn, with a word when it is ready, and watches ended before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, engine: Engine, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine = engine
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End in good order; uvicorn's own way raises the signal again before the store is closed."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.hang_up()
        await super().shutdown(sockets)


def listen(address: str) -> socket.socket:
    """A listening TCP socket for ``HOST:PORT`` or ``[HOST]:PORT``; raises ListenError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdigit() or int(port) > 65535:
        raise ListenError(f"--listen {address} is not HOST:PORT, such as 127.0.0.1:6443")
    try:
        (family, kind, protocol, _, where), *_ = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return _bound(family, kind, protocol, where)
    except OSError as error:
        raise ListenError(
            f"can't listen on {address}: {error.strerror or error}; stop what uses it or change --listen"
        ) from error


def _bound(family: int, kind: int, protocol: int, where: Any) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        sock.listen(512)
    except OSError:
        sock.close()
        raise
    return sock


def inherited(descriptor: int) -> socket.socket:
    """A listening socket that the parent process opened, perhaps in another network namespace."""
    try:
        sock = socket.socket(fileno=descriptor)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenError(f"--listen-fd {descriptor} is not an open socket: {error.strerror}") from error
    if not listening:
        raise ListenError(
            f"--listen-fd {descriptor} is not a listening socket; call listen() before passing it"
        )
    return sock


async def serve(
    config: Config,
    sockets: Iterable[socket.socket],
    ready: Callable[[], None],
    clock: Clock | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Raises StorageError, TokenFileError or OSError if it can't start."""
    clock = clock or SystemClock()
    private_directory(config.state_dir)
    storage = Storage(config.state_dir, keep_history=config.keep_history)
    try:
        certificate, key = _certificate(config)
        authenticator = Authenticator(config.token_file or config.state_dir / TOKENS)
        registry = Registry(KINDS)
        engine = Engine(storage, registry.fields)
        allocator = Allocator(engine, config.services)
        writer = Writer(engine, registry, clock.wall, allocator)
        follow_definitions(engine, registry)
        _restore(engine, registry, storage.load())
        allocator.rebuild()
        await _bootstrap(registry, writer)
        handlers = Handlers(engine, registry, writer, clock.monotonic)
        collector = Collector(engine, registry, writer, clock.monotonic)
        server = _Server(
            _uvicorn(Application(authenticator, handlers, engine), certificate, key), engine, ready
        )
        async with TaskGroup() as tasks:
            tasks.spawn("garbage", collector.run())
            await server.serve(sockets=list(sockets))
    finally:
        storage.close()


def _certificate(config: Config) -> tuple[Path, Path]:
    if config.certificate is not None and config.key is not None:
        return config.certificate, config.key
    authority = make_authority(config.state_dir, config.tls_names)
    return authority.certificate, authority.key


def _restore(engine: Engine, registry: Registry, content: Content) -> None:
    """Kinds first, so that their objects are indexed by the right fields."""
    for stored in content.objects:
        if stored.key.resource == crds.KEY:
            value = msgspec.json.decode(stored.body)
            if crds.established(value):
                registry.add(crds.kind_of(value))
    engine.start(content)


async def _bootstrap(registry: Registry, writer: Writer) -> None:
    kind = registry.get("", "namespaces")
    assert kind is not None
    for name in ALWAYS_THERE:
        with suppress(ApiError):
            await writer.create(kind, kind.versions[0], "", {"metadata": {"name": name}}, Options())


def _uvicorn(application: Application, certificate: Path, key: Path) -> uvicorn.Config:
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return uvicorn.Config(
        application,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=2,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        loop="none",
    )
