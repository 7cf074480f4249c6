"""One call of a client, as its handler sees it: what arrived of the request, and room for the answer.

A handler writes when the client's flow-control window and the socket's buffer have room; it waits until
then, so a slow client holds one chunk in memory and no more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from cilia.hubble.rpc.limits import ServerLimits
from cilia.hubble.rpc.messages import Code, Unframer, frame, parse_timeout, trailers

RESPONSE_HEADERS = [
    (":status", "200"),
    ("content-type", "application/grpc"),
    ("grpc-accept-encoding", "identity"),
]
BURST = 128 << 10
"""Bytes sent at most before room is looked for again."""


class Line(Protocol):
    """What a call needs of the connection it came by."""

    limits: ServerLimits
    client: str
    peer: str

    async def turn(self) -> None:
        """Wait for one's turn among all calls."""
        ...

    async def room_for(self, stream: Stream, wanted: int) -> int:
        """Wait until something can be sent on a stream; how many bytes."""
        ...

    def write(self, stream_id: int, data: memoryview) -> None:
        """Send what there is room for."""
        ...

    def write_headers(self, stream_id: int, headers: list[tuple[str, str]], *, end: bool = False) -> None:
        """Send headers or trailers."""
        ...

    def stop_reading(self, stream_id: int) -> None:
        """Tell the client that the rest of its request is of no interest."""
        ...

    def give_up(self, stream: Stream) -> None:
        """End a call whose request does not arrive."""
        ...


class Stream:
    """One call: what arrived of its request, and its window. It is the `Call` that handlers get."""

    def __init__(self, line: Line, stream_id: int, headers: Mapping[str, str]) -> None:
        self._line = line
        self.id = stream_id
        self.headers = headers
        self.method = headers.get(":path", "")
        self.timeout = parse_timeout(headers["grpc-timeout"]) if "grpc-timeout" in headers else None
        self.unframer = Unframer(line.limits.request)
        self.messages: deque[bytes] = deque()
        self.complete = False
        """The client has said all."""
        self.impatience: asyncio.TimerHandle | None = None
        """Ends the call unless its request arrives."""
        self.task: asyncio.Task[None] | None = None
        self.room = asyncio.Event()
        self._arrived = asyncio.Event()
        self._opened = False

    @property
    def client(self) -> str:
        """Common name in the client's certificate."""
        return self._line.client

    @property
    def peer(self) -> str:
        """Where the client is."""
        return self._line.peer

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send serialised messages in full frames but for the last, waiting for window and socket."""
        start = 0
        while start < len(messages):
            size, end = 0, start
            while size < BURST and end < len(messages):
                size, end = size + len(messages[end]), end + 1
            await self.send_block(frame(messages[start:end]))
            start = end

    async def send_block(self, block: bytes) -> None:
        """The same for messages that are framed already."""
        self.open()
        rest = memoryview(block)
        while rest:
            size = await self._line.room_for(self, len(rest))
            self._line.write(self.id, rest[:size])
            rest = rest[size:]

    async def receive(self) -> bytes | None:
        """The next message of a conversation; None when the client has said all."""
        while not self.messages:
            if self.complete:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        await self._line.turn()
        return self.messages.popleft()

    def arrived(self) -> None:
        """Something came, or the end."""
        self._arrived.set()

    def open(self) -> None:
        """Send the response headers, once."""
        if not self._opened:
            self._opened = True
            self._line.write_headers(self.id, RESPONSE_HEADERS)

    def end(self, code: Code, sentence: str = "") -> None:
        """Send the trailers; without any answer before, headers and trailers in one."""
        headers = trailers(code, sentence)
        if not self._opened:
            headers = RESPONSE_HEADERS + headers
        self._opened = True
        self._line.write_headers(self.id, headers, end=True)
        if not self.complete:
            self._line.stop_reading(self.id)

    def be_patient(self, patient: bool) -> None:
        """Stop or start to wait for the rest of the request."""
        if self.impatience:
            self.impatience.cancel()
            self.impatience = None
        if not patient:
            self.impatience = asyncio.get_running_loop().call_later(
                self._line.limits.patience, self._line.give_up, self
            )
