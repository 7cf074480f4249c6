"""What the relay reads of a GetFlowsResponse without parsing it: its time and whether it is a flow.

Source: the encoding page of the Protocol Buffers documentation; fields 1 (flow), 1001 (time) of
observer.GetFlowsResponse, 1 (seconds) and 2 (nanos) of google.protobuf.Timestamp.
"""

from __future__ import annotations

from collections.abc import Sequence

FLOW = 1
TIME = 1001

FLOW_KEY = 0x0A
TIME_KEY = b"\xca\x3e"
"""Field 1001, length-delimited."""
SECOND = 1_000_000_000


class ScanError(ValueError):
    """The bytes are not a message; its text is a sentence."""


class Scanner:
    """Reads the messages of one peer."""

    def __init__(self) -> None:
        self._seconds: dict[bytes, int] = {}
        self._last = 0

    def times(self, messages: Sequence[bytes]) -> list[int]:
        """Nanoseconds since the Unix epoch of each message; of one without, the time of the one before.

        Raises ScanError.
        """
        return [self._time(message) for message in messages]

    def _time(self, message: bytes) -> int:
        # What servers write: the time is the last field, its seconds take five bytes (1978 to 3058).
        start = message.rfind(TIME_KEY)
        length = len(message) - start - 3
        if start < 0 or not 8 <= length <= 12 or message[start + 2] != length:
            return self._slow(message)
        head = message[start + 3 : start + 10]
        seconds = self._seconds.get(head)
        if seconds is None:
            if head[0] != 0x08 or head[6] != 0x10 or head[5] & 0x80:
                return self._slow(message)
            if len(self._seconds) > 64:
                self._seconds.clear()
            seconds = self._seconds[head] = digits(head[1:6]) * SECOND
        self._last = seconds + digits(message[start + 10 :])
        return self._last

    def _slow(self, message: bytes) -> int:
        for field, value in fields(message):
            if field == TIME and isinstance(value, bytes):
                parts = dict(fields(value))
                seconds, nanos = parts.get(1, 0), parts.get(2, 0)
                if not isinstance(seconds, int) or not isinstance(nanos, int) or nanos >= SECOND:
                    raise ScanError("a time is not seconds and nanoseconds")
                if seconds < 1 << 62:
                    self._last = seconds * SECOND + nanos
        return self._last


def is_flow(message: bytes) -> bool:
    """Whether a response carries a flow (and not a gap or a node's state)."""
    if message[:1] == b"\n":
        return True
    return any(field == FLOW for field, _ in fields(message))


def digits(varint: bytes) -> int:
    """A base-128 number of at most five bytes."""
    raw = int.from_bytes(varint, "little")
    return (
        raw & 0x7F | raw >> 1 & 0x3F80 | raw >> 2 & 0x1FC000 | raw >> 3 & 0xFE00000 | raw >> 4 & 0x7F0000000
    )


def fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """Number and value of each top-level field. Raises ScanError."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(message):
        key, at = number(message, at)
        value: int | bytes
        match key & 7:
            case 0:
                value, at = number(message, at)
            case 1:
                value, at = message[at : at + 8], at + 8
            case 2:
                size, at = number(message, at)
                value, at = message[at : at + size], at + size
            case 5:
                value, at = message[at : at + 4], at + 4
            case wire:
                raise ScanError(f"wire type {wire} is none that is used")
        if at > len(message) or key < 8:
            raise ScanError("a field goes beyond the message")
        found.append((key >> 3, value))
    return found


def number(message: bytes, at: int) -> tuple[int, int]:
    """A base-128 number and where it ends. Raises ScanError."""
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ScanError("a number does not end")
