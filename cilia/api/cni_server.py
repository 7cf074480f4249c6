"""The CNI socket: reads the plugin's frames, decodes the calls, writes the answers.

One connection is one call. Calls for the same interface of the same container are served one after the
other, in order of arrival: a runtime that gave up on an ADD sends a DEL while the ADD still runs.
A call goes on when the plugin hangs up; the runtime repeats it or deletes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from cilia.api import sockets
from cilia.api.backend import CniBackend
from cilia.wire import cni

log = structlog.get_logger(__name__)

READ_SECONDS = 10.0
"""How long a plugin may take to send its frame: it has all of it before it connects."""
REFUSE_SECONDS = 1.0
CONNECTION_LIMIT = 256


class CniServer:
    """Serves `backend.cni` on a unix socket."""

    def __init__(self, backend: CniBackend, path: Path) -> None:
        self.path = path
        self._backend = backend
        self._users = sockets.trusted_users()
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}

    async def start(self) -> None:
        """Listen. Raises `sockets.SocketError`."""
        listener = sockets.bind_private(self.path)
        self._server = await asyncio.start_unix_server(self._connected, sock=listener)

    async def stop(self, grace: float = 5.0) -> None:
        """Listen no more, let running calls finish for `grace` seconds, then cancel them."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=grace)
            for call in late:
                call.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def serve(self, environment: bytes, stdin: bytes) -> cni.Answer:
        """Serve one call: environment block and standard input as in a frame. Never raises."""
        version = cni.version_of(stdin)
        request: cni.Request | None = None
        try:
            request = cni.parse_request(cni.parse_environment(environment), stdin)
            if isinstance(request, cni.Version):
                return cni.Answer(0, cni.encode_versions(request.version))
            result = await self._dispatch(request)
        except cni.CniError as error:
            log.warning("CNI call failed", code=int(error.code), reason=error.message, details=error.details)
            deferred = isinstance(request, cni.Delete) and error.code == cni.Code.NOT_AVAILABLE
            return cni.Answer(1, cni.encode_error(error, version), deferred)
        except Exception:
            log.exception("CNI call failed by a bug")
            sentence = "The Cilia agent failed to serve the call; its log has the trace."
            return cni.Answer(1, cni.encode_error(cni.CniError(cni.Code.INTERNAL, sentence), version))
        return cni.Answer(0, cni.encode_result(result, version) if result is not None else b"")

    async def _dispatch(
        self, request: cni.Add | cni.Delete | cni.Check | cni.CollectGarbage | cni.Status
    ) -> cni.Result | None:
        if request.network.log_level == "debug":
            log.info("CNI call", request=request)
        if isinstance(request, cni.Status | cni.CollectGarbage):
            return await self._backend.cni(request)
        async with self._turn((request.container_id, request.interface)):
            result = await self._backend.cni(request)
        if isinstance(request, cni.Add) and result is None:
            raise TypeError("the backend returned no result for an ADD")
        return result if isinstance(request, cni.Add) else None

    @asynccontextmanager
    async def _turn(self, key: tuple[str, str]) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            await self._connection(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._calls.discard(task)
            writer.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        descriptor = writer.get_extra_info("socket").fileno()
        if sockets.peer_of_descriptor(descriptor)[1] not in self._users:
            answer = await _refuse(reader, "Only root may call the Cilia agent; run the runtime as root.")
        elif len(self._calls) > CONNECTION_LIMIT:
            answer = await _refuse(reader, "The Cilia agent serves too many calls at once; try again later.")
        else:
            answer = await self._call(reader)
        if answer.deferred:
            return
        writer.write(bytes([answer.exit_code]) + answer.output)
        await writer.drain()

    async def _call(self, reader: asyncio.StreamReader) -> cni.Answer:
        try:
            async with asyncio.timeout(READ_SECONDS):
                header = await reader.readexactly(cni.HEADER_SIZE)
                environment_size, stdin_size = cni.parse_header(header)
                environment = await reader.readexactly(environment_size)
                stdin = await reader.readexactly(stdin_size)
        except cni.FrameError as error:
            return await _refuse(reader, f"{error} Use the cilia-cni that came with this agent.")
        except TimeoutError:
            return await _refuse(reader, "The call wasn't sent in time; try again.")
        return await self.serve(environment, stdin)


async def _refuse(reader: asyncio.StreamReader, sentence: str) -> cni.Answer:
    """A refusal; what was sent is read first, or closing the socket would throw the answer away."""
    try:
        async with asyncio.timeout(REFUSE_SECONDS):
            while await reader.read(65536):
                pass
    except TimeoutError:
        pass
    return cni.Answer(1, cni.encode_error(cni.CniError(cni.Code.TRY_AGAIN_LATER, sentence)))
