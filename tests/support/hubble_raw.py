"""A gRPC client that does on the wire what no decent client does."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from cilia.hubble.rpc.messages import Unframer, frame

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "x"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
GET_FLOWS = "/observer.Observer/GetFlows"
STATUS = "/observer.Observer/ServerStatus"


class Raw:
    """One connection; nothing is sent or read unless the test says so."""

    def __init__(self, path: Path, *, greet: bool = True, receive_buffer: int = 0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self.seen: list[h2.events.Event] = []
        self.closed = False
        if greet:
            self.h2.initiate_connection()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        """Send what is waiting. If the server has hung up, what it said before is still to read."""
        with suppress(OSError):
            self.socket.sendall(self.h2.data_to_send())

    def begin(self, method: str, more: list[tuple[str, str]] | None = None) -> int:
        """Send the headers of a call; its stream."""
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [*path(method), *(more or [])])
        self.flush()
        return stream

    def ask(self, method: str, request: bytes = b"") -> int:
        """Begin a call and say all of it."""
        stream = self.begin(method)
        self.h2.send_data(stream, frame([request]), end_stream=True)
        self.flush()
        return stream

    def read(self) -> list[h2.events.Event]:
        """What comes next, and send what it calls for; nothing when the server has hung up."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return []
        found: list[h2.events.Event] = self.h2.receive_data(data)
        self.seen += found
        self.flush()
        return found

    def until(self, kind: type[Any], stream: int | None = None) -> Any:
        """The first event of a kind, of a stream if one is named; None when the server hangs up before."""
        checked = 0
        while True:
            for event in self.seen[checked:]:
                if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)):
                    return event
            checked = len(self.seen)
            if self.closed:
                return None
            self.read()

    def status(self, stream: int) -> tuple[str, str]:
        """Code and sentence with which a call ends."""
        ended = self.until(h2.events.StreamEnded, stream)
        assert ended is not None, "the connection ended before the call"
        headers: dict[str, str] = {}
        for event in self.seen:
            kinds = h2.events.ResponseReceived | h2.events.TrailersReceived
            if isinstance(event, kinds) and event.stream_id == stream:
                headers.update({str(name): str(value) for name, value in event.headers or ()})
        return headers["grpc-status"], headers.get("grpc-message", "")

    def messages(self, stream: int) -> list[bytes]:
        """Those of a stream that have come."""
        unframer, found = Unframer(), []
        for event in self.seen:
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream:
                found += unframer.feed(event.data or b"")
        return found


def path(method: str) -> list[tuple[str, str]]:
    """The headers of a call; pseudo headers come first."""
    return [*HEADERS[:3], (":path", method), *HEADERS[3:]]
