"""Length-prefixed messages, status codes and time-outs: gRPC without sockets."""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterable
from itertools import chain
from urllib.parse import quote, unquote

PREFIX = struct.Struct("!BI")
MAX_MESSAGE = 4 << 20
"""Bytes; what gRPC implementations accept by default."""

TIMEOUT = re.compile(r"^(\d{1,8})([HMSmun])$")
LONGEST = 365 * 86400.0
"""Seconds of the longest deadline: event loops count in milliseconds and have an end."""
UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Code(enum.IntEnum):
    """gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that ended with another status than OK."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class FramingError(Exception):
    """The peer's bytes are not gRPC messages; its text is a sentence."""

    def __init__(self, sentence: str, code: Code = Code.INTERNAL) -> None:
        super().__init__(sentence)
        self.code = code
        """What the call ends with."""


class Unframer:
    """Bytes in, messages out."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._wanted = PREFIX.size
        """Bytes the buffer needs before there is something to read in it."""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages completed by `data`. Raises FramingError for compressed or too large ones."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return []
            data = bytes(self._buffer)
        messages = []
        start, end = 0, len(data)
        self._wanted = PREFIX.size
        while end - start >= PREFIX.size:
            compressed, length = PREFIX.unpack_from(data, start)
            if compressed or length > self._limit:
                raise self._refusal(compressed, length)
            stop = start + PREFIX.size + length
            if stop > end:
                self._wanted = stop - start
                break
            messages.append(data[start + PREFIX.size : stop])
            start = stop
        self._buffer = bytearray(data[start:])
        return messages

    def _refusal(self, compressed: int, length: int) -> FramingError:
        if compressed:
            return FramingError(
                "compressed messages are not supported: send them as they are", Code.UNIMPLEMENTED
            )
        return FramingError(
            f"a message of {length} bytes is larger than {self._limit}: ask for less at once",
            Code.RESOURCE_EXHAUSTED,
        )

    @property
    def pending(self) -> int:
        """Bytes of a message that is not whole yet."""
        return len(self._buffer)


def frame(messages: Iterable[bytes]) -> bytes:
    """Messages with their prefixes, joined."""
    return b"".join(chain.from_iterable((PREFIX.pack(0, len(message)), message) for message in messages))


def parse_timeout(value: str) -> float:
    """Seconds of a grpc-timeout header. Raises FramingError."""
    match = TIMEOUT.match(value)
    if not match:
        raise FramingError(f"grpc-timeout {value!r} is not a number and a unit")
    return min(LONGEST, int(match[1]) * UNITS[match[2]])


def format_timeout(seconds: float) -> str:
    """A grpc-timeout header, in milliseconds; at most eight digits."""
    return f"{min(99_999_999, max(1, int(seconds * 1000)))}m"


def request_headers(
    method: str, timeout: float | None = None, more: Iterable[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """The headers that begin a call of a method, in seconds its time-out, then `more`."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "cilia"),
    ]
    if timeout is not None:
        headers.append(("grpc-timeout", format_timeout(timeout)))
    return [*headers, *more]


def trailers(code: Code, sentence: str = "") -> list[tuple[str, str]]:
    """The headers that end a call; the sentence is percent-encoded as the protocol says."""
    headers = [("grpc-status", str(int(code)))]
    if sentence:
        headers.append(("grpc-message", quote(sentence, safe=" !\"#$&'()*+,/:;<=>?@[\\]^_`{|}~")))
    return headers


def status_of(headers: dict[str, str]) -> RpcError | None:
    """The error a call's trailers tell, or None for OK."""
    number = headers.get("grpc-status", "")
    if number == "0":
        return None
    try:
        code = Code(int(number))
    except ValueError:
        code = Code.UNKNOWN
    default = f"the server answered HTTP status {headers.get(':status', 'none')} without a gRPC status"
    return RpcError(code, unquote(headers.get("grpc-message", "" if number else default)))
