"""Kubernetes watch streams: bytes in, events out. Sans-I/O.

A watch answer is a sequence of JSON objects, one a line: `{"type": ..., "object": ...}`. Chunks end anywhere.
An object of type ERROR carries a Status and ends the watch.

Source: Kubernetes API concepts, "Efficient detection of changes".
"""

from typing import Literal

import msgspec

MAX_FRAME = 16 << 20
"""Bytes of one line. An API server refuses objects beyond 3 MiB, so more is not a watch stream."""


class WatchEvent(msgspec.Struct, frozen=True):
    """One change. A BOOKMARK carries only a newer `metadata.resourceVersion`."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: msgspec.Raw


class WatchFailure(msgspec.Struct, frozen=True):
    """The server ended the watch; code 410 means that the history is gone."""

    code: int = 0
    reason: str = ""
    message: str = ""


class ProtocolError(Exception):
    """The peer's bytes are not a watch stream."""


class _Frame(msgspec.Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


_FRAMES = msgspec.json.Decoder(_Frame)
_FAILURES = msgspec.json.Decoder(WatchFailure)


class WatchStream:
    """The framer of one watch: give it every chunk, in order."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[WatchEvent | WatchFailure]:
        """Return the events that `data` completes; raises ProtocolError."""
        searched = len(self._rest)
        self._rest += data
        end = self._rest.rfind(b"\n", searched)
        if end < 0:
            if len(self._rest) > MAX_FRAME:
                raise ProtocolError(f"a watch event is longer than {MAX_FRAME} bytes")
            return []
        whole = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return [_parse(line) for line in whole.split(b"\n") if line and not line.isspace()]


def _parse(line: bytes) -> WatchEvent | WatchFailure:
    try:
        frame = _FRAMES.decode(line)
        if frame.type == "ERROR":
            return _FAILURES.decode(frame.object)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a watch event: {error}") from error
    return WatchEvent(frame.type, frame.object)
