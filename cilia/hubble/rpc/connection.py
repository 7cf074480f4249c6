"""One client of a gRPC server: an h2 state machine, and a task for each call (`stream`).

Whatever a connection does wrong ends that connection only.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import structlog

from cilia.hubble.rpc.calls import Conversation, Handler, Methods
from cilia.hubble.rpc.http2 import release
from cilia.hubble.rpc.limits import ServerLimits
from cilia.hubble.rpc.messages import (
    Code,
    FramingError,
    RpcError,
    trailers,
)
from cilia.hubble.rpc.rounds import Gate, Rounds
from cilia.hubble.rpc.stream import BURST, RESPONSE_HEADERS, Stream
from cilia.kit.tasks import TaskGroup

log = structlog.get_logger(__name__)

DATA_HEAD = struct.Struct("!IBI")
"""Of a DATA frame: length and type, which is 0; flags; stream."""
CONTENT_TYPE = re.compile(r"application/grpc(\+proto)?( *;.*)?")
LINGER = 5.0
"""Seconds a client has to read the goodbye."""
PREFACE_BYTES, FRAME_HEAD_BYTES = 24, 9
"""Of RFC 9113, 3.4 and 4.1."""
PIECE = 16 << 10
"""Bytes of a frame that are read in one step of a round at most; of small frames, which are dear, one."""
MOST_UNREAD = 16 << 10
"""Bytes that may wait for their turn before nothing more is taken from the socket."""


class Transport(Protocol):
    """What a connection needs of the way to its client: asyncio's transports, and TLS over them."""

    def write(self, data: bytes, /) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def get_write_buffer_size(self) -> int: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


class Host(Protocol):
    """What a connection needs of its server."""

    methods: Methods
    limits: ServerLimits
    tasks: TaskGroup
    calls: int
    rounds: Rounds
    """For what clients send."""
    gate: Gate
    """For calls that begin, and for those that have room to write again."""

    def arriving(self, connection: Connection) -> bool:
        """Whether there is room for one more that waits to be let in."""
        ...

    def admit(self, connection: Connection, transport: Transport) -> str:
        """Take a client in; the sentence that refuses it, or nothing."""
        ...

    def forget(self, connection: Connection) -> None:
        """A client is gone."""
        ...


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: Host) -> None:
        self._server = server
        self.limits = server.limits
        self._h2: h2.connection.H2Connection
        """From when it is this client's turn for the first time."""
        self._streams: dict[int, Stream] = {}
        self._transport: Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._open = False
        """Admitted, and not told goodbye: only then anything is read."""
        self._greeted = False
        self._unread = bytearray()
        """What arrived and waits for its turn."""
        self._frame = PREFACE_BYTES
        """Bytes until the next frame begins."""
        self._waiting = False
        """For a turn."""
        self._paused = False
        """Nothing more is taken from the socket."""
        self._timer: asyncio.TimerHandle | None = None
        self._cancels = 0.0
        self._cancelled = 0.0
        self.client = ""
        self.peer = ""
        self.idle_since: float | None = 0.0
        """When the last call ended; None while one runs."""

    # -- the socket's side --------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if self._server.arriving(self):
            self._server.rounds.add(self._arrive, self._abort)
        else:
            transport.abort()

    def _arrive(self) -> None:
        """Greet a client, or refuse it."""
        if self._transport is None or self._transport.is_closing():
            self._server.forget(self)
            return
        self.idle_since = asyncio.get_running_loop().time()
        refusal = self._server.admit(self, self._transport)
        self._h2 = state_machine(self.limits)
        self._h2.initiate_connection()
        if refusal:
            log.warning("a client is refused", client=self.peer, reason=refusal)
            self.close(refusal)
            return
        self._open = True
        self._flush()
        self._timer = asyncio.get_running_loop().call_later(self.limits.patience, self._must_have_greeted)
        self._wait_for_turn()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        """Have the next piece read, when it is its turn."""
        readable = self._frame > 0 < len(self._unread) or len(self._unread) >= FRAME_HEAD_BYTES
        if self._open and readable and not self._waiting:
            self._waiting = True
            self._server.rounds.add(self._take_turn, self._abort)
        self._pause(len(self._unread) > MOST_UNREAD)

    def _take_turn(self) -> None:
        """Read a frame. A socket's buffer full of small ones takes a second."""
        self._waiting = False
        if self._open and self._transport and not self._transport.is_closing():
            self._read(self._piece())
        if not self._open or self._transport is None or self._transport.is_closing():
            self._unread.clear()
        self._wait_for_turn()

    def _piece(self) -> bytes:
        """Take a frame out of what is unread, or of a large one what is there."""
        if not self._frame:
            self._frame = FRAME_HEAD_BYTES + int.from_bytes(self._unread[:3])
        piece = bytes(self._unread[: min(self._frame, PIECE)])
        del self._unread[: len(piece)]
        self._frame -= len(piece)
        return piece

    def _pause(self, paused: bool) -> None:
        """Stop or go on to take from the socket."""
        if paused is self._paused:
            return
        self._paused = paused
        if self._transport and not self._transport.is_closing():
            (self._transport.pause_reading if paused else self._transport.resume_reading)()

    def _read(self, data: bytes) -> None:
        try:
            for event in self._h2.receive_data(data):
                self._handle(event)
        except (h2.exceptions.ProtocolError, FramingError, UnicodeDecodeError, ValueError) as error:
            reason = without_bytes(error)
            log.info("closing a client that does not speak gRPC", client=self.peer, error=reason)
            self.close(reason)
            return
        self._flush()
        if self._transport and self._transport.get_write_buffer_size() > self.limits.unread:
            log.info("closing a client that asks without reading", client=self.peer)
            self._transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, _error: Exception | None) -> None:
        self._open = False
        self._transport = None
        self._forget_timer()
        self._server.forget(self)
        self._cancel_all()
        if hasattr(self, "_h2"):
            release(self._h2)

    def close(self, sentence: str = "") -> None:
        """Say goodbye (if that is still possible), end all calls and close."""
        self._cancel_all()
        self._forget_timer()
        if self._open or sentence:
            self._say_goodbye(sentence)
        self._open = False
        if self._transport and not self._transport.is_closing():
            self._transport.close()
            self._timer = asyncio.get_running_loop().call_later(LINGER, self._transport.abort)

    def _say_goodbye(self, sentence: str) -> None:
        code = h2.errors.ErrorCodes.ENHANCE_YOUR_CALM if sentence else h2.errors.ErrorCodes.NO_ERROR
        try:
            self._h2.close_connection(code, sentence.encode()[:500])
        except h2.exceptions.ProtocolError:
            pass
        self._flush()

    def _abort(self) -> None:
        """End it without a word."""
        if self._transport:
            self._transport.abort()

    def _must_have_greeted(self) -> None:
        if not self._greeted:
            log.info("closing a client that says nothing", client=self.peer)
            self.close("say something within 10 seconds")

    def _forget_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    # -- the protocol's side ------------------------------------------------------------------------------

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._begin(event.stream_id, {str(name): str(value) for name, value in event.headers})
        elif isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            self._feed(event.stream_id, event.data or b"")
        elif isinstance(event, h2.events.StreamEnded):
            self._complete(event.stream_id)
        elif isinstance(event, h2.events.WindowUpdated):
            self._wake(event.stream_id)
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self._greeted = True
            self._wake(0)
        elif isinstance(event, h2.events.StreamReset):
            self._reset(event.stream_id)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.close()

    def _begin(self, stream_id: int, headers: dict[str, str]) -> None:
        if headers.get(":method") != "POST" or not CONTENT_TYPE.fullmatch(headers.get("content-type", "")):
            self.write_headers(stream_id, [(":status", "415")], end=True)
            return
        try:
            stream = Stream(self, stream_id, headers)
        except FramingError as error:
            self.write_headers(
                stream_id, RESPONSE_HEADERS + trailers(Code.INVALID_ARGUMENT, str(error)), end=True
            )
            return
        self._streams[stream_id] = stream
        self._server.calls += 1
        self.idle_since = None
        method = self._server.methods.get(stream.method)
        if method is None:
            self._fail(stream, Code.UNIMPLEMENTED, f"there is no method {stream.method} here")
        elif self._server.calls > self.limits.calls:
            self._fail(
                stream,
                Code.RESOURCE_EXHAUSTED,
                f"{self.limits.calls} calls run here already: end one, or try again later",
            )
        elif isinstance(method, Conversation):
            self._spawn(stream, lambda: method.talk(stream))
        else:
            stream.be_patient(False)

    def _feed(self, stream_id: int, data: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        try:
            stream.messages += stream.unframer.feed(data)
            self._check(stream)
        except FramingError as error:
            self._fail(stream, error.code, str(error))
            return
        stream.arrived()

    def _check(self, stream: Stream) -> None:
        """Raise FramingError for what no client needs to send."""
        if stream.task is None and len(stream.messages) > 1:
            raise FramingError("a call takes exactly one message")
        if len(stream.messages) > self.limits.waiting:
            raise FramingError("read answers before you send more", Code.RESOURCE_EXHAUSTED)
        unfinished = sum(other.unframer.pending for other in self._streams.values())
        if unfinished > self.limits.unfinished:
            raise FramingError(
                f"requests of more than {self.limits.unfinished} bytes are under way: finish them first",
                Code.RESOURCE_EXHAUSTED,
            )

    def _complete(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.complete = True
        stream.be_patient(True)
        if stream.task is not None:
            stream.arrived()
        elif len(stream.messages) != 1 or stream.unframer.pending:
            self._fail(stream, Code.INTERNAL, "a call takes exactly one message")
        else:
            handler: Handler = self._server.methods[stream.method]  # type: ignore[assignment]
            self._spawn(stream, lambda: handler(stream.messages.popleft(), stream))

    def _spawn(self, stream: Stream, begin: Callable[[], Awaitable[None]]) -> None:
        stream.task = self._server.tasks.spawn(f"rpc {stream.method}", self._run(stream, begin))
        stream.task.add_done_callback(lambda _: self._ended(stream))

    def _ended(self, stream: Stream) -> None:
        self._drop(stream)
        self._server.calls -= 1
        # A cancelled task holds its frames, and these the stream: collections of such rings come seldom.
        stream.task = None

    async def _run(self, stream: Stream, begin: Callable[[], Awaitable[None]]) -> None:
        code, sentence = Code.OK, ""
        try:
            async with asyncio.timeout(stream.timeout):
                await self._server.gate.turn()
                await begin()
        except TimeoutError:
            code, sentence = Code.DEADLINE_EXCEEDED, "the deadline of the call has passed"
        except RpcError as error:
            code, sentence = error.code, error.sentence
        except Exception as error:
            log.error("a handler failed", method=stream.method, error=repr(error), exc_info=error)
            code, sentence = Code.INTERNAL, "the server failed to answer; its log says why"
        if self._drop(stream) and self._transport:
            stream.end(code, sentence)

    def give_up(self, stream: Stream) -> None:
        """End a call whose request does not arrive."""
        if not stream.complete and self._transport:
            sentence = f"the request did not arrive whole within {self.limits.patience:g} s: send it at once"
            self._fail(stream, Code.DEADLINE_EXCEEDED, sentence)

    def _fail(self, stream: Stream, code: Code, sentence: str) -> None:
        if not self._drop(stream):
            return
        if stream.task:
            stream.task.cancel()
        stream.end(code, sentence)

    def _drop(self, stream: Stream) -> bool:
        """Take a call off the list; False when it was already. It counts as long as its task runs: who opens
        calls and leaves must not have more of them wait for their end than may run."""
        if self._streams.pop(stream.id, None) is None:
            return False
        stream.be_patient(True)
        if stream.task is None:
            self._server.calls -= 1
        if not self._streams:
            self.idle_since = asyncio.get_running_loop().time()
        return True

    def _reset(self, stream_id: int) -> None:
        now = asyncio.get_running_loop().time()
        self._cancels = max(0.0, self._cancels - (now - self._cancelled) * self.limits.forgiven) + 1
        self._cancelled = now
        if self._cancels > self.limits.cancels:
            raise FramingError("too many cancelled calls on one connection")
        stream = self._streams.get(stream_id)
        if stream:
            self._cancel(stream)

    def _cancel(self, stream: Stream) -> None:
        self._drop(stream)
        if stream.task:
            stream.task.cancel()

    def _cancel_all(self) -> None:
        """One in a round: hundreds may follow on a connection, or leave together."""
        for stream in list(self._streams.values()):
            self._drop(stream)
            if stream.task:
                self._server.gate.add(stream.task.cancel)

    def _wake(self, stream_id: int) -> None:
        for stream in [self._streams.get(stream_id)] if stream_id else list(self._streams.values()):
            if stream:
                stream.room.set()

    # -- writing ------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Wait for one's turn among all calls."""
        await self._server.gate.turn()

    async def room_for(self, stream: Stream, wanted: int) -> int:
        """Wait until something can be sent on a stream; how many bytes."""
        while True:
            if self._writable.is_set():
                stream.room.clear()
                window = self._h2.local_flow_control_window(stream.id)
                if window > 0:
                    return min(wanted, window, BURST)
                await stream.room.wait()
            else:
                await self._writable.wait()
            await self._server.gate.turn()

    def write(self, stream_id: int, data: memoryview) -> None:
        """Send what there is room for, in as few DATA frames as the client takes it."""
        if not self._open:
            return
        # Frames of flows are written by hand: h2 needs longer for one than we for all that is in it. What h2
        # must know of them is how much of the windows they took (RFC 9113, 5.2 and 6.1).
        largest = self._h2.max_outbound_frame_size
        parts: list[bytes | memoryview] = []
        for start in range(0, len(data), largest):
            content = data[start : start + largest]
            parts += DATA_HEAD.pack(len(content) << 8, 0, stream_id), content
        self._h2.streams[stream_id].outbound_flow_control_window -= len(data)
        self._h2.outbound_flow_control_window -= len(data)
        self._flush()
        if self._transport and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def write_headers(self, stream_id: int, headers: list[tuple[str, str]], *, end: bool = False) -> None:
        """Send headers or trailers, unless the client has cancelled the call or is gone."""
        if not self._open:
            return
        try:
            self._h2.send_headers(stream_id, headers, end_stream=end)
        except h2.exceptions.StreamClosedError:
            return
        self._flush()

    def stop_reading(self, stream_id: int) -> None:
        """Tell a client that the rest of its request is of no interest."""
        if not self._open:
            return
        try:
            self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
        except h2.exceptions.StreamClosedError:
            return  # All of it came meanwhile.
        self._flush()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport and not self._transport.is_closing():
            self._transport.write(data)


def state_machine(limits: ServerLimits) -> h2.connection.H2Connection:
    """HTTP/2, as a server that has these limits."""
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    made.local_settings = h2.settings.Settings(
        client=False,
        initial_values={
            h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
            h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: limits.headers,
        },
    )
    made.decoder.max_header_list_size = limits.headers
    return made


def without_bytes(error: Exception) -> str:
    """What went wrong, without the bytes that h2 quotes: they may be a token."""
    return re.split(r"""\s*\bb?['"]""", str(error), maxsplit=1)[0]
