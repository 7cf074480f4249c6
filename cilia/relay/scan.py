"""What the relay reads of a GetFlowsResponse without parsing it, its time and whether it is a flow; and
whether it is a message at all.

Source: the encoding page of the Protocol Buffers documentation; fields 1 (flow), 1001 (time) of
observer.GetFlowsResponse, 1 (seconds) and 2 (nanos) of google.protobuf.Timestamp.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from cilia.proto.observer import observer_pb2

FLOW = 1
TIME = 1001

TIME_KEY = b"\xca\x3e"
"""Field 1001, length-delimited."""
SECOND = 1_000_000_000

FEW = 16
"""Messages for which a vector step does not pay."""
ENDING = 15
"""Bytes of a message that ends with the time, as its last field: key, length 12, and a Timestamp in full."""
WEIGHTS = 1 << np.arange(0, 35, 7, dtype=np.int64)


Bytes = npt.NDArray[np.uint8]
Moments = npt.NDArray[np.int64]
Truths = npt.NDArray[np.bool_]


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
        if len(messages) < FEW:
            return [self._time(message) for message in messages]
        endings = b"".join([message[-ENDING:] for message in messages])
        if len(endings) != ENDING * len(messages):
            return [self._time(message) for message in messages]
        table = np.frombuffer(endings, np.uint8).reshape(-1, ENDING)
        moments, usual = moments_of(table, 0)
        # The nanoseconds of a quarter of all moments take four bytes only, so everything is one byte later.
        later, shorter = moments_of(table, 1)
        times: list[int] = np.where(usual, moments, later).tolist()
        for index in np.flatnonzero(~(usual | shorter)).tolist():
            self._last = times[index - 1] if index else self._last
            times[index] = self._time(messages[index])
        self._last = times[-1]
        return times

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


def moments_of(table: Bytes, shift: int) -> tuple[Moments, Truths]:
    """Times of messages by their last bytes, and for which of them that is what these bytes mean.

    `table`: (messages, 15). `shift`: bytes the nanoseconds are shorter than five.
    """
    key, nanos = table[:, shift : shift + 10], table[:, shift + 10 :]
    fits = (key[:, 0] == TIME_KEY[0]) & (key[:, 1] == TIME_KEY[1]) & (key[:, 2] == 12 - shift)
    fits &= (key[:, 3] == 0x08) & (key[:, 8] < 0x80) & (key[:, 9] == 0x10) & (nanos[:, -1] < 0x80)
    seconds = (key[:, 4:9] & 0x7F) @ WEIGHTS
    rest = (nanos & 0x7F) @ WEIGHTS[: 5 - shift]
    return seconds * SECOND + rest, fits


def check(messages: Sequence[bytes]) -> None:
    """Raises ScanError when one is none: a client would end the whole call for it, which so many nodes share.

    Some 2 us each; what was parsed is thrown away.
    """
    parse = observer_pb2.GetFlowsResponse.FromString
    try:
        for message in messages:
            parse(message)
    except DecodeError:
        raise ScanError("a response is no message") from None


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
