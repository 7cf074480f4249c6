"""A gRPC client on asyncio: one connection, many calls at a time, messages as bytes.

    channel = await Channel.open("unix:///var/run/cilia/hubble.sock")
    call = channel.call("/observer.Observer/GetFlows", request)
    while batch := await call.read():
        ...

Who does not read holds one window of its call in memory and no more: a stream's window is given back only as
its messages are taken. The connection's own window is given back at once, so that a call that nobody reads
does not stop its neighbours.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from typing import cast

import h2.errors
import h2.events
import h2.exceptions
import hyperframe.frame

from cilia.hubble.rpc.http2 import client_side, release
from cilia.hubble.rpc.messages import (
    MAX_MESSAGE,
    Code,
    FramingError,
    RpcError,
    Unframer,
    frame,
    request_headers,
    status_of,
)
from cilia.hubble.rpc.targets import host_and_port, socket_path

SMALLEST_WINDOW = 16 << 10
"""Bytes: what every call may have under way; the least HTTP/2 frame that must be taken."""
CONNECTION_WINDOW = 4 << 20
MAX_FRAME = 256 << 10
"""Bytes: fewer, larger frames; a frame, not a byte, is what costs."""
HEALTH_CHECK = "/grpc.health.v1.Health/Check"

# h2 spells out each frame it receives, all its bytes, for a log that nobody keeps: as costly as reading it.
hyperframe.frame.DataFrame._body_repr = lambda self: ""  # type: ignore[method-assign]

Headers = Iterable[tuple[str, str]]


class Call:
    """One call: what arrived of its answer."""

    def __init__(self, channel: Channel, stream_id: int, window: int) -> None:
        self._channel = channel
        self._window = window
        self.id = stream_id
        self._unframer = Unframer(MAX_MESSAGE)
        self._ready: list[bytes] = []
        self._held = 0
        """Bytes received whose window was not given back."""
        self._bell = asyncio.Event()
        self._ended = False
        self._error: RpcError | None = None

    async def read(self) -> list[bytes]:
        """The messages that have arrived, at least one; none: the call ended well. Raises RpcError."""
        await self.arrival()
        if not self._ready:
            if self._error:
                raise self._error
            return []
        batch, self._ready = self._ready, []
        self._give_back()
        return batch

    async def arrival(self) -> None:
        """Until there is something to read, be it the end."""
        while not self._ready and not self._ended:
            self._bell.clear()
            await self._bell.wait()

    def cancel(self) -> None:
        """Stop the call, if it still runs; nothing more arrives."""
        if not self._ended:
            self._channel.reset(self.id)
            self.finish(RpcError(Code.CANCELLED, "the call was cancelled"))

    # -- the channel's side -------------------------------------------------------------------------------

    def feed(self, data: bytes, size: int) -> None:
        """Take what arrived; `size` is what it took of the window. Raises FramingError."""
        self._held += size
        self._ready += self._unframer.feed(data)
        if self._ready:
            self._bell.set()
        elif self._held * 2 >= self._window:
            # A message larger than the window: without more room it would never be whole.
            self._give_back()

    def finish(self, error: RpcError | None) -> None:
        """The call is over."""
        if self._ended:
            return
        if error is None and self._unframer.pending:
            error = RpcError(Code.INTERNAL, f"{self._channel.called} cut off a message")
        self._ended, self._error = True, error
        self._bell.set()

    def _give_back(self) -> None:
        if self._held * 2 >= self._window and not self._ended:
            self._channel.give_back(self.id, self._held)
            self._held = 0


class Channel(asyncio.Protocol):
    """One connection to a server. Make it by `open`."""

    def __init__(self, target: str, called: str = "") -> None:
        self.target = target
        self.called = called or target
        """What sentences name it."""
        self.closed = asyncio.Event()
        """Set when the connection is gone; `reason` says why."""
        self.reason = ""
        self.received = 0
        """Bytes so far: a sign of life."""
        self._h2 = client_side(SMALLEST_WINDOW, CONNECTION_WINDOW, MAX_FRAME)
        self._calls: dict[int, Call] = {}
        self._unsent: dict[int, bytes] = {}
        """By call, what the server had no room for yet of the request."""
        self._unacknowledged = 0
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(
        cls,
        target: str,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        timeout: float = 5.0,
        called: str = "",
    ) -> Channel:
        """Connect to `unix:///path` or `host:port`; `server_name` is what the certificate must be for.

        `called`: what sentences about a call name the server; the target if empty.

        Raises RpcError(UNAVAILABLE) when that does not succeed within `timeout` seconds.
        """
        loop = asyncio.get_running_loop()
        channel = cls(target, called)
        try:
            async with asyncio.timeout(timeout):
                path = socket_path(target)
                if path is not None:
                    await loop.create_unix_connection(lambda: channel, path)
                else:
                    host, port = host_and_port(target)
                    name = (server_name or host) if tls else None
                    await loop.create_connection(lambda: channel, host, port, ssl=tls, server_hostname=name)
        except TimeoutError:
            sentence = f"{target} did not answer within {timeout:g} s: is it running, and may it be reached?"
            raise RpcError(Code.UNAVAILABLE, sentence) from None
        except ssl.SSLCertVerificationError as error:
            sentence = f"the certificate of {target} is not accepted: {error.verify_message}"
            raise RpcError(Code.UNAVAILABLE, sentence) from None
        except (OSError, ValueError) as error:
            raise RpcError(Code.UNAVAILABLE, f"{target} can't be reached: {error}") from None
        if tls and channel.protocol != "h2":
            channel.close()
            raise RpcError(
                Code.UNAVAILABLE, f"{target} does not speak HTTP/2 over TLS: is it a Hubble server?"
            )
        return channel

    @property
    def protocol(self) -> str | None:
        """What TLS agreed on."""
        layer = self._transport.get_extra_info("ssl_object") if self._transport else None
        return layer.selected_alpn_protocol() if layer else None

    # -- calls --------------------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        request: bytes,
        *,
        window: int = SMALLEST_WINDOW,
        timeout: float | None = None,
        headers: Headers = (),
    ) -> Call:
        """Begin a call. `window`: bytes of the answer to hold; `timeout`: seconds. Raises RpcError."""
        if self.closed.is_set() or self._transport is None:
            raise self._broken()
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, request_headers(method, timeout, headers))
            if window > SMALLEST_WINDOW:
                self._h2.increment_flow_control_window(window - SMALLEST_WINDOW, stream_id)
        except h2.exceptions.ProtocolError as error:
            raise RpcError(Code.UNAVAILABLE, f"{self.called} takes no more calls: {error}") from None
        call = Call(self, stream_id, max(window, SMALLEST_WINDOW))
        self._calls[stream_id] = call
        self._unsent[stream_id] = frame([request])
        self._send_unsent()
        self._flush()
        return call

    async def unary(self, method: str, request: bytes, *, timeout: float, headers: Headers = ()) -> bytes:
        """The one answer of a call. Raises RpcError."""
        call = self.call(method, request, timeout=timeout, headers=headers)
        answers: list[bytes] = []
        try:
            async with asyncio.timeout(timeout):
                while batch := await call.read():
                    answers += batch
        except TimeoutError:
            sentence = f"{self.called} did not answer within {timeout:g} s"
            raise RpcError(Code.DEADLINE_EXCEEDED, sentence) from None
        finally:
            call.cancel()
        if len(answers) != 1:
            raise RpcError(Code.INTERNAL, f"{self.called} sent {len(answers)} answers to a call that has one")
        return answers[0]

    async def check(self, timeout: float) -> None:
        """Ask for a sign of life. Raises RpcError when none comes within `timeout` seconds.

        By a call, not by a ping of HTTP/2: gRPC servers take more than a ping in five minutes for an attack.
        """
        try:
            await self.unary(HEALTH_CHECK, b"", timeout=timeout)
        except RpcError as error:
            if error.code is Code.DEADLINE_EXCEEDED:
                sentence = f"{self.called} hangs: no sign of life within {timeout:g} s"
                raise RpcError(Code.UNAVAILABLE, sentence) from None
            if self.closed.is_set():
                raise

    def close(self, reason: str = "") -> None:
        """Close the connection; what still runs ends with UNAVAILABLE."""
        if not self.closed.is_set():
            self._end(reason or f"the connection to {self.called} was closed")

    # -- for calls ----------------------------------------------------------------------------------------

    def give_back(self, stream_id: int, size: int) -> None:
        """Let the server send as many bytes more on a call."""
        try:
            self._h2.increment_flow_control_window(size, stream_id)
        except (h2.exceptions.ProtocolError, KeyError):
            return  # The stream has ended meanwhile.
        self._flush()

    def reset(self, stream_id: int) -> None:
        """Tell the server that nobody wants the answer any more."""
        self._calls.pop(stream_id, None)
        self._unsent.pop(stream_id, None)
        try:
            self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
        except (h2.exceptions.ProtocolError, KeyError):
            return
        self._flush()

    # -- the socket's side --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        try:
            for event in self._h2.receive_data(data):
                self._handle(event)
        except (h2.exceptions.ProtocolError, UnicodeDecodeError, ValueError, KeyError) as error:
            self._end(f"{self.called} does not speak gRPC: {error}")
            return
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        reason = getattr(error, "strerror", None) or str(error or "the other side closed it")
        if isinstance(error, ssl.SSLError):
            # Imported late: most channels are to sockets, and never need it.
            from cilia.kit.tls import refusal

            reason = refusal(error)
        self._end(f"the connection to {self.called} broke: {reason}")

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                self._receive(event)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self._read_headers(event.stream_id, event.headers or ())
            case h2.events.StreamEnded():
                self._finish(
                    event.stream_id, RpcError(Code.INTERNAL, f"{self.called} ended a call without a status")
                )
            case h2.events.StreamReset():
                self._finish(event.stream_id, RpcError(Code.UNAVAILABLE, f"{self.called} ended the call"))
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._send_unsent()
            case h2.events.ConnectionTerminated():
                self._end(f"{self.called} is shutting down")

    def _receive(self, event: h2.events.DataReceived) -> None:
        size = event.flow_controlled_length or 0
        self._unacknowledged += size
        if self._unacknowledged * 4 >= CONNECTION_WINDOW:
            self._h2.increment_flow_control_window(self._unacknowledged)
            self._unacknowledged = 0
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        try:
            call.feed(event.data, size)
        except FramingError as error:
            self.reset(event.stream_id)
            call.finish(RpcError(Code.INTERNAL, f"{self.called} sent what is no message: {error}"))

    def _read_headers(self, stream_id: int, headers: Sequence[tuple[str | bytes, str | bytes]]) -> None:
        found = {str(name): str(value) for name, value in headers}
        if "grpc-status" in found or found.get(":status", "200") != "200":
            self._finish(stream_id, status_of(found))

    def _send_unsent(self) -> None:
        """Send of all requests what the server has room for."""
        for stream_id, rest in list(self._unsent.items()):
            self._unsent[stream_id] = rest = self._send_request(stream_id, rest)
            if not rest:
                del self._unsent[stream_id]

    def _send_request(self, stream_id: int, data: bytes) -> bytes:
        """Send as much as there is room for; what is left."""
        try:
            while data:
                room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
                if room <= 0:
                    break
                self._h2.send_data(stream_id, data[:room], end_stream=room >= len(data))
                data = data[room:]
        except (h2.exceptions.ProtocolError, KeyError):
            return b""  # The stream has ended: its answer says why.
        return data

    def _finish(self, stream_id: int, error: RpcError | None) -> None:
        self._unsent.pop(stream_id, None)
        call = self._calls.pop(stream_id, None)
        if call:
            call.finish(error)

    def _end(self, reason: str) -> None:
        if self.closed.is_set():
            return
        self.reason = reason
        self.closed.set()
        calls, self._calls = self._calls, {}
        self._unsent.clear()
        for call in calls.values():
            call.finish(self._broken())
        release(self._h2)
        if self._transport:
            self._transport.abort()
            self._transport = None

    def _broken(self) -> RpcError:
        return RpcError(Code.UNAVAILABLE, self.reason or f"there is no connection to {self.called}")

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport and not self._transport.is_closing():
            self._transport.write(data)
