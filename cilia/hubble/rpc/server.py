"""A gRPC server on asyncio: sockets, clients and their bounds.

    socket ─► (Secured: TLS) ─► Connection: HTTP/2 ─► Stream: a call ─► handler

Handlers are handed in as a table of methods. What clients may take is bounded by `ServerLimits`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from cilia.hubble.rpc.calls import BlockSink, Call, Conversation, Handler, Methods, Sink
from cilia.hubble.rpc.connection import Connection, Transport
from cilia.hubble.rpc.limits import ServerLimits
from cilia.hubble.rpc.rounds import Gate, Rounds
from cilia.hubble.rpc.secure import Secured, address
from cilia.kit.tasks import TaskGroup
from cilia.kit.tls import ServerTls

__all__ = ["BlockSink", "Call", "Conversation", "Handler", "Methods", "Server", "Sink"]

log = structlog.get_logger(__name__)

KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""Seconds, seconds, times: a client whose machine is gone is noticed within a minute."""
TELL_INTERVAL = 10.0
"""Seconds between two lines about refused handshakes: strangers must not fill the log."""


class Server:
    """Listens on sockets and runs handlers."""

    def __init__(self, methods: Methods, limits: ServerLimits | None = None) -> None:
        self.methods = methods
        self.limits = limits or ServerLimits()
        self.tasks = TaskGroup()
        self.rounds = Rounds()
        """For what clients send."""
        self.gate = Gate()
        """For calls that begin, and for those that have room to write again."""
        self.calls = 0
        """Calls that run."""
        self.refused_handshakes = 0
        """Since the start."""
        self._connections: set[Connection] = set()
        self._arriving: set[Connection] = set()
        self._handshakes: dict[Secured, str] = {}
        """Whose they are, by machine; oldest first."""
        self._listeners: list[asyncio.Server] = []
        self._paths: list[Path] = []
        self._group: int | None = None
        self._untold = 0
        self._told = -TELL_INTERVAL

    @property
    def clients(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    async def listen_unix(self, path: Path, *, group: int | None = None) -> None:
        """Listen on a unix socket, replacing one that nobody serves.

        Root, the own user and members of `group` (a number) are served. Raises OSError with a sentence when
        somebody serves it, or when the group can't be given the socket.
        """
        remove_stale(path)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            path.chmod(0o600)
            if group is not None:
                os.chown(path, -1, group)
                path.chmod(0o660)
            server = await asyncio.get_running_loop().create_unix_server(
                lambda: Connection(self), sock=listener
            )
        except BaseException:
            listener.close()
            raise
        self._group = group
        self._listeners.append(server)
        self._paths.append(path)

    async def listen_tcp(self, host: str, port: int, tls: ServerTls | None = None) -> int:
        """Listen on TCP; gives the port (of use when it was 0). Raises OSError.

        `host`: empty: all addresses of both families. Without `tls` everybody who can connect is served.
        """
        factory: Callable[[], asyncio.Protocol] = lambda: Connection(self)  # noqa: E731
        if tls is not None:
            context = tls
            factory = lambda: Secured(  # noqa: E731
                self, context, self.limits.patience, lambda: Connection(self)
            )
        server = await asyncio.get_running_loop().create_server(factory, host or None, port)
        self._listeners.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, end all calls and connections, remove the sockets."""
        for listener in self._listeners:
            listener.close()
        for handshake in list(self._handshakes):
            handshake.abort()
        for connection in [*self._connections, *self._arriving]:
            connection.close()
        await self.tasks.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    # -- for connections ----------------------------------------------------------------------------------

    def arriving(self, connection: Connection) -> bool:
        """Whether there is room for one more that waits to be let in."""
        if len(self._arriving) >= self.limits.connections:
            return False
        self._arriving.add(connection)
        return True

    def admit(self, connection: Connection, transport: Transport) -> str:
        """Take a client in; the sentence that refuses it, or nothing."""
        self._arriving.discard(connection)
        peer = transport.get_extra_info("socket")
        if peer.family == socket.AF_UNIX:
            uid = peer_uid(peer)
            connection.peer = f"user {uid}"
            if uid not in (0, os.geteuid()) and not (
                self._group is not None and self._group in peer_groups(peer)
            ):
                return "this socket is for root, the agent and the socket's group: become one of them"
        else:
            connection.peer = address(transport.get_extra_info("peername"))
            keep_alive(peer)
        if len(self._connections) >= self.limits.connections and not self._make_room():
            return f"{self.limits.connections} clients are connected, all with calls: end one of them"
        self._connections.add(connection)
        return ""

    def forget(self, connection: Connection) -> None:
        """A client is gone."""
        self._arriving.discard(connection)
        self._connections.discard(connection)

    def _make_room(self) -> bool:
        """Close the connection that has been without a call for longest; False when all have one."""
        idle = [connection for connection in self._connections if connection.idle_since is not None]
        if not idle:
            return False
        longest = min(idle, key=lambda connection: connection.idle_since or 0.0)
        self.forget(longest)
        longest.close("others need the place: connect again")
        return True

    # -- for handshakes -----------------------------------------------------------------------------------

    def handshaking(self, secured: Secured) -> bool:
        """Whether one more handshake may begin."""
        machine = machine_of(secured.peer)
        if len(self._handshakes) >= self.limits.handshakes and not self._make_way(machine):
            self._refuse(secured, f"{self.limits.handshakes} handshakes are under way")
            return False
        self._handshakes[secured] = machine
        return True

    def _make_way(self, newcomer: str) -> bool:
        """End the oldest handshake of the machine that has most, if the newcomer's has fewer: one that begins
        many and ends none must not keep out the others."""
        machines = Counter(self._handshakes.values())
        crowd, most = machines.most_common(1)[0]
        if machines[newcomer] + 1 >= most:
            return False
        oldest = next(each for each, machine in self._handshakes.items() if machine == crowd)
        oldest.give_way()
        return True

    def handshaken(self, secured: Secured, failure: str | None) -> None:
        """A handshake is over; why it failed, or None when it did not."""
        self._handshakes.pop(secured, None)
        if failure is not None:
            self._refuse(secured, failure)

    def _refuse(self, secured: Secured, reason: str) -> None:
        """Count a refused client, and tell the first of each ten seconds."""
        self.refused_handshakes += 1
        now = asyncio.get_running_loop().time()
        if now - self._told < TELL_INTERVAL:
            self._untold += 1
            return
        log.warning("a TLS client is refused", client=secured.peer, reason=reason, more_before=self._untold)
        self._told = now
        self._untold = 0


def machine_of(peer: str) -> str:
    """Which machine an `address:port` is of: by the /64 of IPv6, all of whose addresses one machine may have
    (RFC 4862)."""
    host = peer.rpartition(":")[0]
    if not host.startswith("["):
        return host
    return str(ipaddress.ip_network((host[1:-1].partition("%")[0], 64), strict=False))


def keep_alive(peer: Any) -> None:
    """Let the kernel notice a client whose machine is gone."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        peer.setsockopt(socket.IPPROTO_TCP, option, value)


def peer_uid(peer: Any) -> int:
    """The user at the other end of a unix socket."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[1])


def peer_groups(peer: Any) -> set[int]:
    """All groups of the process at the other end of a unix socket."""
    primary = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[2]
    try:
        more = peer.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MAX_GROUPS)
    except OSError:
        return {primary}  # More than fit.
    return {primary, *struct.unpack(f"{len(more) // 4}I", more)}


SO_PEERGROUPS = 59
"""Of asm-generic/socket.h, since Linux 4.13; the socket module has no name for it."""
MAX_GROUPS = 1024
"""Bytes, four for each group: all that Python's getsockopt takes."""


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody serves. Raises OSError when it is served or is no socket."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(f"{path} is in the way and no socket: remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise FileExistsError(f"somebody serves {path} already: stop the other agent first")
