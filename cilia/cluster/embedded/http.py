"""The ASGI application: bytes in, bytes out, and nothing a client sends may raise past it.

It is a bare ASGI callable: the paths of this API are a grammar (:mod:`.requests`), not a table of routes, and
a watch writes frames that a framework's response object would only hand through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import quote

import structlog

from cilia.kit.tasks import TaskGroup

from . import watch
from .auth import Authenticator
from .engine import Engine, encode
from .errors import ApiError
from .handlers import Handlers, Reply, Request, Stream
from .requests import Query, parse_path

log = structlog.get_logger(__name__)

MAX_BODY: Final = 3 << 20
BODY_SECONDS: Final = 30.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Application:
    """The API server as ASGI sees it."""

    def __init__(self, authenticator: Authenticator, handlers: Handlers, engine: Engine) -> None:
        self._authenticator = authenticator
        self._handlers = handlers
        self._engine = engine

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            answer = await self._answer(scope, receive)
        except ApiError as error:
            answer = Reply(error.code, encode(error.status()))
        except _Disconnected:
            return
        except Exception:
            # The request's own text stays out of the log: it may be a Secret.
            log.exception("request failed", method=scope["method"], path=scope["path"])
            fault = ApiError(500, "an internal error of the API server; its log has the details")
            answer = Reply(fault.code, encode(fault.status()))
        if isinstance(answer, Stream):
            await self._stream(answer, receive, send)
        else:
            await _reply(answer, send)

    async def _answer(self, scope: Message, receive: Receive) -> Reply | Stream:
        headers = {name: value for name, value in scope["headers"] if name in _HEADERS}
        user = self._authenticator.user(headers.get(b"authorization", b"").decode("latin-1"))
        body = await _body(headers, receive)
        content_type = headers.get(b"content-type", b"").decode("latin-1").split(";")[0].strip().lower()
        request = Request(
            method=scope["method"],
            path=scope["path"],
            query=Query(scope["query_string"].decode("latin-1")),
            accept=headers.get(b"accept", b"").decode("latin-1"),
            content_type=content_type,
            body=body,
            user=user,
        )
        return await self._handlers.answer(request, parse_path(request.path))

    async def _stream(self, stream: Stream, receive: Receive, send: Send) -> None:
        async def hang_up() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            stream.watcher.close()

        async def emit(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": [_JSON]})
            await emit(b"")
            async with TaskGroup() as tasks:
                tasks.spawn("watch-hang-up", hang_up())
                await watch.run(
                    stream.watcher,
                    emit,
                    self._engine,
                    self._handlers.monotonic,
                    timeout=stream.timeout,
                    bookmarks=stream.bookmarks,
                )
            await send({"type": "http.response.body", "body": b""})
        finally:
            stream.stop()


_HEADERS: Final = frozenset({b"authorization", b"accept", b"content-type", b"content-length"})
_JSON: Final = (b"content-type", b"application/json")


class _Disconnected(Exception):
    """The client went away while it was sending."""


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > MAX_BODY:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(receive)
    except TimeoutError as error:
        raise ApiError(408, f"the request's body did not arrive within {BODY_SECONDS:.0f} s") from error


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise _too_large()
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large() -> ApiError:
    return ApiError(413, f"Request entity too large: limit is {MAX_BODY} bytes")


async def _reply(reply: Reply, send: Send) -> None:
    headers = [(b"content-type", reply.content_type), (b"content-length", str(len(reply.body)).encode())]
    if reply.code == 401:
        headers.append((b"www-authenticate", b'Bearer realm="cilia-apiserver"'))
    for warning in reply.warnings:
        headers.append((b"warning", f'299 - "{_header_text(warning)}"'.encode("ascii")))
    await send({"type": "http.response.start", "status": reply.code, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _header_text(text: str) -> str:
    """Text for a quoted header value."""
    return quote(text[:200], safe=" !#$%&'()*+,-./:;<=>?@[]^_`{|}~").replace("%22", '\\"')
