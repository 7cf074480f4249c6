"""JSON lines over unix sockets: between commands and the lab's daemon, and to the probers in the pods."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
LINE_LIMIT = 1 << 20


class ControlError(Exception):
    """The other side is not there or refused; the message is one sentence."""


async def serve(path: str, answer: Answer) -> None:
    """Answer requests on a unix socket (0600) for ever; a failed request is answered with its error."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(msgspec.json.encode(await _answer_line(line, answer)) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    Path(path).unlink(missing_ok=True)
    server = await asyncio.start_unix_server(connected, path, limit=LINE_LIMIT)
    Path(path).chmod(0o600)
    async with server:
        await server.serve_forever()


async def _answer_line(line: bytes, answer: Answer) -> dict[str, Any]:
    try:
        return await answer(msgspec.json.decode(line, type=dict[str, Any]))
    except asyncio.CancelledError:
        raise
    except Exception as error:
        # The caller is told; the daemon must not end for one bad request.
        return {"error": str(error)}


class Channel:
    """A blocking connection: one request, one answer, in turn."""

    def __init__(self, path: str, timeout: float = 60.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise ControlError(f"nobody answers on {path}: {error.strerror or error}") from error
        self._lines = self._socket.makefile("rb")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer; raises ControlError."""
        try:
            self._socket.sendall(msgspec.json.encode(request) + b"\n")
            line = self._lines.readline(LINE_LIMIT)
            answer = msgspec.json.decode(line, type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise ControlError(f"no whole answer came back: {error}") from error
        if "error" in answer:
            raise ControlError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ask(path: str, request: dict[str, Any], timeout: float = 60.0) -> dict[str, Any]:
    """Ask one question; raises ControlError."""
    with Channel(path, timeout) as channel:
        return channel.ask(request)
