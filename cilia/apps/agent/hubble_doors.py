"""The doors to Hubble of one agent: a unix socket, a TCP port with TLS, and what other nodes' doors are.

    methods ─► server ─┬─ unix socket: root, the agent, one group
                       └─ TCP: who has a certificate of the authority; opened once the files are there

Certificates come and go in files: a port whose files are not there yet opens when they are, as with a Secret
that is made after the agent.
"""

from __future__ import annotations

import asyncio
import grp
import os
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from cilia.apps.agent.errors import StartError
from cilia.hubble.peer import Peer, Peers
from cilia.hubble.rpc.server import Methods, Server
from cilia.kit import threads
from cilia.kit.tasks import TaskGroup
from cilia.kit.tls import ServerTls, TlsError, TlsFiles, server_name
from cilia.model.node import Node
from cilia.tables.table import Table

log = structlog.get_logger(__name__)

DEFAULT_ADDRESS = ":4244"
RETRY_INTERVAL = 5.0
"""Seconds between two looks for certificates that are not there yet."""
LOOK_INTERVAL = 60.0
"""Seconds between two looks at certificates that are, for the sake of metrics and warnings."""
WARN_INTERVAL = 86400.0
"""Seconds between two warnings about one certificate."""
SETTLE = 0.1
"""Seconds that changes of nodes are gathered."""


@dataclass(frozen=True, kw_only=True)
class DoorSettings:
    """What an operator may set about the doors. Raises StartError for what makes no sense together."""

    socket: Path
    socket_group: str = ""
    """Whose members may connect, too; empty: nobody but root and the agent's user."""
    listen_address: str = ""
    """Of the TCP port, `[host]:port`; empty: :4244 with certificates, none without."""
    disable_tls: bool = False
    """Serve everybody who can connect, in plain text."""
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_files: tuple[Path, ...] = ()
    """Authorities of those who are served."""

    def __post_init__(self) -> None:
        given = [bool(self.cert_file), bool(self.key_file), bool(self.client_ca_files)]
        flags = "--hubble-tls-cert-file, --hubble-tls-key-file and --hubble-tls-client-ca-files"
        if self.disable_tls and any(given):
            raise StartError(f"--hubble-disable-tls contradicts {flags}: leave one or the other out")
        if any(given) and not all(given):
            raise StartError(f"{flags} belong together: give all three, or none")
        if self.listen_address and not self.disable_tls and not any(given):
            raise StartError(
                f"--hubble-listen-address {self.listen_address} needs certificates: give {flags}, "
                "or serve everybody in plain text with --hubble-disable-tls"
            )
        if self.address:
            split_address(self.address)

    @property
    def address(self) -> str:
        """Where to listen on TCP; empty: nowhere."""
        return self.listen_address or (DEFAULT_ADDRESS if self.cert_file else "")


class Doors:
    """Opens them, and says how they are."""

    def __init__(self, settings: DoorSettings, methods: Methods) -> None:
        self._settings = settings
        self._server = Server(methods)
        self._tls: ServerTls | None = None
        self._problem = ""

    async def open(self, stack: AsyncExitStack) -> None:
        """Answer clients until the stack closes. Raises StartError."""
        settings = self._settings
        stack.push_async_callback(self._server.close)
        group = group_number(settings.socket_group)
        try:
            if group is not None:
                let_in(settings.socket.parent, group)
            await self._server.listen_unix(settings.socket, group=group)
        except OSError as error:
            raise StartError(
                f"the Hubble socket {settings.socket} can't be opened ({error.strerror or error}): "
                "stop the agent that serves it, or choose another --hubble-socket"
            ) from error
        if settings.disable_tls and settings.address:
            await self._listen()
            log.warning("Hubble is served in plain text to everybody who can connect", at=settings.address)

    def start(self, tasks: TaskGroup) -> None:
        """Open the port with TLS as soon as its certificates are there, and watch them."""
        if self._settings.cert_file:
            tasks.spawn("Hubble's certificates", self._serve_tls())

    @property
    def sentence(self) -> str:
        """For `cilia status`: what is wrong with the TCP port or near its end, or nothing."""
        if self._tls is None:
            return self._problem
        unread = f"; its replacement is not in force: {self._tls.problem}" if self._tls.problem else ""
        return f"certificate {self._tls.sentence()}{unread}"

    @property
    def troubled(self) -> bool:
        """Whether clients on TCP can't be served, or soon won't be."""
        left = self.certificate_seconds
        unread = self._tls is not None and self._tls.problem
        return bool(self._problem or unread) or (left is not None and left <= 0)

    @property
    def certificate_seconds(self) -> float | None:
        """Until the certificate ends; None: there is none."""
        return self._tls.seconds_left() if self._tls else None

    @property
    def refused_handshakes(self) -> int:
        """TLS clients refused since the start."""
        return self._server.refused_handshakes

    async def _serve_tls(self) -> None:
        self._tls = await self._certificates()
        await self._listen()
        log.info("Hubble is served", at=self._settings.address, certificate=self._tls.sentence())
        loop = asyncio.get_running_loop()
        warned = loop.time()
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            self._tls.look()
            if loop.time() - warned >= WARN_INTERVAL:
                warned = loop.time()
                self._tls.warn()

    async def _certificates(self) -> ServerTls:
        """Wait until the files are there and good."""
        settings = self._settings
        files = TlsFiles(settings.cert_file, settings.key_file, settings.client_ca_files)
        while True:
            try:
                # In a thread: what reads certificates takes a quarter of a second to import.
                tls = await threads.start("certificates", ServerTls, files)
            except TlsError as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    log.warning("Hubble's TCP port waits for its certificates", error=self._problem)
                await asyncio.sleep(RETRY_INTERVAL)
            else:
                self._problem = ""
                return tls

    async def _listen(self) -> None:
        address = self._settings.address
        host, port = split_address(address)
        try:
            await self._server.listen_tcp(host, port, self._tls)
        except OSError as error:
            raise StartError(
                f"Hubble's port {address} can't be opened ({error.strerror or error}): "
                "stop who has it, or choose another --hubble-listen-address"
            ) from error


class PeerList:
    """Tells the peer service of every node in the cluster, as the table of nodes has them."""

    def __init__(
        self, peers: Peers, nodes: Table[str, Node], own: Peer, *, cluster: str, port: int, ipv6: bool = False
    ) -> None:
        """`port`: of all observers in the cluster; 0: only this one is told, for it has no port. `ipv6`: that
        address of nodes which have one."""
        self._peers = peers
        self._nodes = nodes
        self._own = own
        self._cluster = cluster
        self._port = port
        self._ipv6 = ipv6
        self._changed = asyncio.Event()
        nodes.listen(self._changed.set)

    async def run(self) -> None:
        """For ever: a moment after nodes changed, the whole list."""
        while True:
            self._peers.update(self._all())
            await self._changed.wait()
            await asyncio.sleep(SETTLE)
            self._changed.clear()

    def _all(self) -> Iterable[Peer]:
        yield self._own
        if not self._port:
            return
        for node in self._nodes:
            name = f"{self._cluster}/{node.name}"
            if name != self._own.name and node.addresses:
                secured = server_name(node.name, self._cluster) if self._own.tls_name else ""
                yield Peer(name, at(preferred(node.addresses, self._ipv6), self._port), secured)


def preferred(addresses: tuple[str, ...], ipv6: bool) -> str:
    """The first of the wanted family, or the first there is."""
    return next((address for address in addresses if (":" in address) == ipv6), addresses[0])


def own_peer(
    settings: DoorSettings, node: str, cluster: str, addresses: tuple[str, ...], *, ipv6: bool = False
) -> Peer:
    """How other nodes reach this observer; without a port, how this node does."""
    name = f"{cluster}/{node}"
    if not settings.address:
        return Peer(name, f"unix://{settings.socket}")
    host, port = split_address(settings.address)
    reachable = host if host not in ("", "0.0.0.0", "::") else preferred(addresses, ipv6)
    return Peer(name, at(reachable, port), server_name(node, cluster) if settings.cert_file else "")


def at(address: str, port: int) -> str:
    """`10.0.0.7:4244` or `[fd00::7]:4244`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def split_address(text: str) -> tuple[str, int]:
    """Host (empty: all) and port of `host:port`, `:port` or `[v6]:port`. Raises StartError."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or not 0 < int(port) < 65536 or (":" in host and host[0] != "["):
        raise StartError(f"--hubble-listen-address {text!r} is none: write [HOST]:PORT, like :4244")
    return host.strip("[]"), int(port)


def let_in(directory: Path, group: int) -> None:
    """Make a directory that a group may enter. Raises StartError for one that keeps it out, and OSError."""
    if not directory.exists():
        directory.mkdir(parents=True)
        os.chown(directory, -1, group)
        directory.chmod(0o750)
    status = directory.stat()
    if not (status.st_mode & 0o001 or (status.st_mode & 0o010 and status.st_gid == group)):
        raise StartError(
            f"{directory} is closed to the group of --hubble-socket-group: choose a --hubble-socket elsewhere"
        )


def group_number(name: str) -> int | None:
    """The number of a group by name or number; None: none is named. Raises StartError."""
    if not name or name.isdecimal():
        return int(name) if name else None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise StartError(
            f"--hubble-socket-group {name!r} is no group of this machine: make it, or leave the flag out"
        ) from None
