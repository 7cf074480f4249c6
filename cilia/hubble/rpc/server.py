"""A gRPC server on asyncio: one connection is one h2 state machine and some tasks.

A handler writes when the client's flow-control window and the socket's buffer have room; it waits until
then, so a slow client holds one chunk in memory and no more. Whatever a connection does wrong ends that
connection only.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import structlog

from cilia.hubble.rpc.messages import (
    Code,
    FramingError,
    RpcError,
    Unframer,
    frame,
    parse_timeout,
    trailers,
)
from cilia.kit.tasks import TaskGroup

log = structlog.get_logger(__name__)

MAX_STREAMS = 64
MAX_CONNECTIONS = 256
MAX_RESETS = 1000
"""Streams a client may cancel on one connection before it is taken for a flood."""
MAX_UNREAD = 1 << 20
"""Bytes of answers (to pings, settings) a client may leave unread while it goes on asking."""
RESPONSE_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]


class Sink(Protocol):
    """Where a handler puts its answers."""

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send serialised messages in as few frames as possible; returns when there is room again."""
        ...


Handler = Callable[[bytes, Sink], Awaitable[None]]
"""Gets the serialised request; raises RpcError to end with another status than OK."""

Methods = Mapping[str, Handler]
"""By path: `/package.Service/Method`."""


class Stream:
    """One call: what arrived of its request, and its window."""

    def __init__(self, connection: Connection, stream_id: int, method: str, timeout: float | None) -> None:
        self._connection = connection
        self.id = stream_id
        self.method = method
        self.timeout = timeout
        self.unframer = Unframer()
        self.messages: list[bytes] = []
        self.task: asyncio.Task[None] | None = None
        self.room = asyncio.Event()
        self._opened = False

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send serialised messages, waiting for the window and the socket."""
        self.open()
        data = memoryview(frame(messages))
        while data:
            size = await self._connection.room_for(self, len(data))
            self._connection.write(self.id, bytes(data[:size]))
            data = data[size:]

    def open(self) -> None:
        """Send the response headers, once."""
        if not self._opened:
            self._opened = True
            self._connection.write_headers(self.id, RESPONSE_HEADERS)

    def end(self, code: Code, sentence: str = "") -> None:
        """Send the trailers; without any answer before, headers and trailers in one."""
        headers = trailers(code, sentence)
        if not self._opened:
            headers = RESPONSE_HEADERS + headers
        self._opened = True
        self._connection.write_headers(self.id, headers, end=True)


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self._streams: dict[int, Stream] = {}
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._resets = 0

    # -- the socket's side --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if not self._server.admit(self, transport.get_extra_info("socket")):
            self._transport.abort()
            return
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS})
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._h2.receive_data(data):
                self._handle(event)
        except (h2.exceptions.ProtocolError, FramingError, UnicodeDecodeError, ValueError) as error:
            log.info("closing a client that does not speak gRPC", error=str(error))
            self.close()
            return
        self._flush()
        if self._transport and self._transport.get_write_buffer_size() > MAX_UNREAD + self._server.high_water:
            log.info("closing a client that asks without reading")
            self._transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._server.forget(self)
        for stream in list(self._streams.values()):
            self._cancel(stream)

    def close(self) -> None:
        """Say goodbye (if that is still possible) and close."""
        try:
            self._h2.close_connection()
        except h2.exceptions.ProtocolError:
            pass
        self._flush()
        if self._transport:
            self._transport.close()

    # -- the protocol's side ------------------------------------------------------------------------------

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._begin(event.stream_id, {str(name): str(value) for name, value in event.headers})
        elif isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._feed(event.stream_id, event.data)
        elif isinstance(event, h2.events.StreamEnded):
            self._start(event.stream_id)
        elif isinstance(event, h2.events.WindowUpdated):
            self._wake(event.stream_id)
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self._wake(0)
        elif isinstance(event, h2.events.StreamReset):
            self._reset(event.stream_id)
        elif isinstance(event, h2.events.ConnectionTerminated) and self._transport:
            self._transport.close()

    def _begin(self, stream_id: int, headers: dict[str, str]) -> None:
        if headers.get(":method") != "POST" or not headers.get("content-type", "").startswith(
            "application/grpc"
        ):
            self._h2.send_headers(stream_id, [(":status", "415")], end_stream=True)
            return
        timeout = parse_timeout(headers["grpc-timeout"]) if "grpc-timeout" in headers else None
        self._streams[stream_id] = Stream(self, stream_id, headers.get(":path", ""), timeout)

    def _feed(self, stream_id: int, data: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        try:
            stream.messages += stream.unframer.feed(data)
        except FramingError as error:
            self._fail(stream, Code.RESOURCE_EXHAUSTED, str(error))

    def _start(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        handler = self._server.methods.get(stream.method)
        if handler is None:
            self._fail(stream, Code.UNIMPLEMENTED, f"there is no method {stream.method} here")
        elif len(stream.messages) != 1 or stream.unframer.pending:
            self._fail(stream, Code.INTERNAL, "a call takes exactly one message")
        else:
            stream.task = self._server.tasks.spawn(f"rpc {stream.method}", self._run(stream, handler))

    async def _run(self, stream: Stream, handler: Handler) -> None:
        code, sentence = Code.OK, ""
        try:
            async with asyncio.timeout(stream.timeout):
                await handler(stream.messages[0], stream)
        except TimeoutError:
            code, sentence = Code.DEADLINE_EXCEEDED, "the deadline of the call has passed"
        except RpcError as error:
            code, sentence = error.code, error.sentence
        except Exception as error:
            log.error("a handler failed", method=stream.method, error=repr(error), exc_info=error)
            code, sentence = Code.INTERNAL, "the server failed to answer; its log says why"
        if self._streams.pop(stream.id, None) and self._transport:
            stream.end(code, sentence)

    def _fail(self, stream: Stream, code: Code, sentence: str) -> None:
        self._streams.pop(stream.id, None)
        stream.end(code, sentence)

    def _reset(self, stream_id: int) -> None:
        self._resets += 1
        if self._resets > MAX_RESETS:
            raise FramingError("too many cancelled calls on one connection")
        stream = self._streams.get(stream_id)
        if stream:
            self._cancel(stream)

    def _cancel(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)
        if stream.task:
            stream.task.cancel()

    def _wake(self, stream_id: int) -> None:
        for stream in [self._streams.get(stream_id)] if stream_id else list(self._streams.values()):
            if stream:
                stream.room.set()

    # -- writing ------------------------------------------------------------------------------------------

    async def room_for(self, stream: Stream, wanted: int) -> int:
        """Wait until something can be sent on a stream; how many bytes (one frame at most)."""
        while True:
            await self._writable.wait()
            stream.room.clear()
            window = self._h2.local_flow_control_window(stream.id)
            if window > 0:
                return min(wanted, window, self._h2.max_outbound_frame_size)
            await stream.room.wait()

    def write(self, stream_id: int, data: bytes) -> None:
        """Send one DATA frame."""
        self._h2.send_data(stream_id, data)
        self._flush()

    def write_headers(self, stream_id: int, headers: list[tuple[str, str]], *, end: bool = False) -> None:
        """Send headers or trailers."""
        self._h2.send_headers(stream_id, headers, end_stream=end)
        self._flush()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport and not self._transport.is_closing():
            self._transport.write(data)


class Server:
    """Listens on sockets and runs handlers."""

    def __init__(self, methods: Methods) -> None:
        self.methods = methods
        self.tasks = TaskGroup()
        self.high_water = 256 << 10
        """Bytes in a socket's buffer at which handlers wait."""
        self._connections: set[Connection] = set()
        self._listeners: list[asyncio.Server] = []
        self._paths: list[Path] = []

    async def listen_unix(self, path: Path, *, mode: int = 0o600) -> None:
        """Listen on a unix socket, replacing one that nobody serves.

        Only root and the own user are served. Raises OSError with a sentence when somebody serves it.
        """
        remove_stale(path)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            path.chmod(mode)
            server = await asyncio.get_running_loop().create_unix_server(
                lambda: Connection(self), sock=listener
            )
        except BaseException:
            listener.close()
            raise
        self._listeners.append(server)
        self._paths.append(path)

    async def listen_tcp(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen on TCP; gives the port (of use when it was 0). Raises OSError."""
        if tls:
            tls.set_alpn_protocols(["h2"])
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self), host, port, ssl=tls)
        self._listeners.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, end all calls and connections, remove the sockets."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.close()
        await self.tasks.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def admit(self, connection: Connection, peer: socket.socket) -> bool:
        """Whether a client may stay."""
        if len(self._connections) >= MAX_CONNECTIONS:
            log.warning("too many clients", limit=MAX_CONNECTIONS)
            return False
        if peer.family == socket.AF_UNIX and peer_uid(peer) not in (0, os.geteuid()):
            log.warning("refusing a client of another user", uid=peer_uid(peer))
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: Connection) -> None:
        """A client is gone."""
        self._connections.discard(connection)


def peer_uid(peer: socket.socket) -> int:
    """The user at the other end of a unix socket."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[1])


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
