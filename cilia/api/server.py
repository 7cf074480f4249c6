"""The HTTP doors: the REST API on a unix socket, health and metrics on TCP.

    ApiServer(backend, settings).start()
        unix api_socket   /v1/...  and /metrics      root and the agent's own user only
        tcp  health       /healthz                   200 while the node serves, else 503
        tcp  metrics      /metrics

Uvicorn's protocol does the HTTP; its server is left out, because it wakes ten times a second and each
agent would have three. A request that is late, too big or unknown gets one sentence.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from cilia.api import sockets
from cilia.api.backend import ApiError, Backend, Caller, Question, parse_reference
from cilia.api.types import CheckRequest, Fault, LocalService, OptionChange

log = structlog.get_logger(__name__)

ANSWER_SECONDS = 20.0
WAIT_SECONDS_LIMIT = 300.0
IDLE_SECONDS = 15.0
HEADER_LIMIT = 16 * 1024
CONNECTION_LIMIT = 128
MAP_ENTRIES = 10_000
MAP_ENTRIES_LIMIT = 1_000_000
BODY_LIMIT = 64 * 1024
"""Bytes of a request's body, unless a route says otherwise."""
CHECK_LIMIT = 16 << 20
"""Bytes of policies to check."""
SERVICE_LIMIT = 4 << 20
"""Bytes of a service with all its backends."""
EXPLAIN_SECONDS = 50.0
CHECK_SECONDS = 140.0
VERIFY_SECONDS = 60.0
NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the agent's doors are."""

    socket: Path = Path("/run/cilia/agent.sock")
    """REST API. Its directory must not be writable by others."""
    health: str = "127.0.0.1:9879"
    """HOST:PORT of /healthz for probes; empty: none."""
    metrics: str = ":9962"
    """HOST:PORT of /metrics for Prometheus, all addresses by default; empty: none."""


async def check_addresses(*addresses: str) -> None:
    """Raise `sockets.SocketError` when one of these HOST:PORT can't be listened on; empty ones are skipped.

    For those who would rather know before they change anything.
    """
    for address in filter(None, addresses):
        server = await _listen(address, asyncio.Protocol)
        server.close()


async def _listen(address: str, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
    host, port = parse_listen(address)
    try:
        return await asyncio.get_running_loop().create_server(protocol, host or None, port)
    except OSError as error:
        raise sockets.SocketError(
            f"The agent can't listen on {address} ({error.strerror or error}); "
            "stop what uses the port or choose another."
        ) from error


class ApiServer:
    """All HTTP listeners of an agent."""

    def __init__(self, backend: Backend, settings: ApiSettings) -> None:
        self.settings = settings
        self._backend = backend
        self._listeners: list[Listener] = []

    async def start(self) -> None:
        """Open every door, or none. Raises `sockets.SocketError`."""
        try:
            api = Listener(api_application(self._backend))
            self._listeners.append(api)
            await api.listen_unix(self.settings.socket)
            for address, application in (
                (self.settings.health, health_application),
                (self.settings.metrics, metrics_application),
            ):
                if address:
                    listener = Listener(application(self._backend))
                    self._listeners.append(listener)
                    await listener.listen_tcp(address)
        except sockets.SocketError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close all doors; repeatable."""
        for listener in self._listeners:
            await listener.stop()
        self._listeners.clear()


class Listener:
    """One listening socket and the application behind it."""

    def __init__(self, application: Starlette) -> None:
        self._config = uvicorn.Config(
            application,
            interface="asgi3",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=CONNECTION_LIMIT,
            h11_max_incomplete_event_size=HEADER_LIMIT,
            timeout_keep_alive=int(IDLE_SECONDS),
        )
        self._config.load()
        self._state = ServerState()
        self._server: asyncio.AbstractServer | None = None
        self._path: Path | None = None
        self.address: tuple[str, int] | None = None
        """What a TCP listener is bound to."""

    async def listen_unix(self, path: Path) -> None:
        """Listen on a private unix socket and check who calls."""
        listener = sockets.bind_private(path)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._private_protocol, sock=listener)
        self._path = path

    async def listen_tcp(self, address: str) -> None:
        """Listen on HOST:PORT; an empty host means all addresses of both families."""
        server = await _listen(address, self._protocol)
        self._server = server
        self.address = server.sockets[0].getsockname()[:2]

    async def stop(self) -> None:
        """Listen no more and close all connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        for task in list(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        for connection in list(self._state.connections):
            connection.transport.close()

    def _protocol(self) -> Connection:
        return Connection(self._config, self._state, {})

    def _private_protocol(self) -> PrivateConnection:
        return PrivateConnection(self._config, self._state, {})


class Connection(H11Protocol):
    """Uvicorn's protocol, but a connection without a running request is closed after a while."""

    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch = self.loop.call_later(IDLE_SECONDS, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(IDLE_SECONDS, self._close_if_idle)


class PrivateConnection(Connection):
    """The same for a unix socket, of root or the agent's own user."""

    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        descriptor = transport.get_extra_info("socket").fileno()
        process, user = sockets.peer_of_descriptor(descriptor)
        self._refused = user not in sockets.trusted_users()
        # Each request finds it in `request.state`.
        self.app_state["caller"] = Caller(pid=process, uid=user)

    def data_received(self, data: bytes) -> None:
        # Refused only now: closing a socket with unread bytes in it would throw the answer away.
        if not self._refused:
            super().data_received(data)
            return
        body = msgspec.json.encode(Fault(error="Only root may use the agent's API; try again as root."))
        self.transport.write(
            b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        self.transport.close()


def parse_listen(address: str) -> tuple[str, int]:
    """`HOST:PORT`, `[V6]:PORT` or `:PORT`. Raises `sockets.SocketError`."""
    host, colon, port = address.rpartition(":")
    if not colon or not NUMBER.fullmatch(port) or int(port) > 65535:
        raise sockets.SocketError(f"{address!r} is not an address to listen on; write HOST:PORT.")
    return host.removeprefix("[").removesuffix("]"), int(port)


# --- applications -------------------------------------------------------------------------------------


def api_application(backend: Backend) -> Starlette:
    """The REST API."""

    async def endpoint(request: Request) -> Any:
        reference, part = _split_reference(request.path_params["reference"])
        answers = {
            "": backend.endpoint,
            "policy": backend.endpoint_policy,
            "config": backend.endpoint_settings,
        }
        return await answers[part](parse_reference(reference))

    async def change_endpoint(request: Request) -> Any:
        reference, part = _split_reference(request.path_params["reference"])
        if part != "config":
            raise ApiError(405, "Of an endpoint only its config can be changed; PATCH .../config.")
        change = await _body(request, OptionChange)
        return await backend.change_endpoint(parse_reference(reference), change, request.state.caller)

    async def change_settings(request: Request) -> Any:
        return await backend.change_settings(await _body(request, OptionChange), request.state.caller)

    async def wait_policy(request: Request) -> Any:
        revision = _integer(request, "revision")
        timeout = _seconds(request, "timeout", 30.0)
        return await backend.wait_policy(revision, timeout)

    async def explain(request: Request) -> Any:
        return await backend.explain(_question(request))

    async def check(request: Request) -> Any:
        return await backend.check(await _body(request, CheckRequest, CHECK_LIMIT))

    async def identity(request: Request) -> Any:
        return await backend.identity(_number(request.path_params["number"], "an identity"))

    async def cookie(request: Request) -> Any:
        return await backend.cookie(_number(request.path_params["number"], "a rule cookie"))

    async def forecast(request: Request) -> Any:
        return await backend.metrics_forecast(request.query_params.get("metrics", ""))

    async def map_dump(request: Request) -> Any:
        limit = _integer(request, "limit", MAP_ENTRIES)
        raw = request.query_params.get("raw") == "true"
        return await backend.map(request.path_params["name"], min(limit, MAP_ENTRIES_LIMIT), raw=raw)

    async def verify(request: Request) -> Any:
        return await backend.verify(repair=request.query_params.get("repair") == "true")

    async def service(request: Request) -> Any:
        return await backend.service(request.path_params["reference"])

    async def put_local_service(request: Request) -> Any:
        service = await _body(request, LocalService, SERVICE_LIMIT)
        return await backend.put_local_service(service, request.state.caller)

    async def delete_local_service(request: Request) -> Any:
        return await backend.delete_local_service(request.path_params["frontend"], request.state.caller)

    routes: list[tuple[str, Callable[[Request], Awaitable[Any]], float]] = [
        ("/v1/healthz", lambda _: backend.status(), ANSWER_SECONDS),
        ("/v1/endpoint", lambda _: backend.endpoints(), ANSWER_SECONDS),
        ("/v1/endpoint/{reference:path}", endpoint, ANSWER_SECONDS),
        ("/v1/identity", lambda _: backend.identities(), ANSWER_SECONDS),
        ("/v1/identity/{number}", identity, ANSWER_SECONDS),
        ("/v1/ip", lambda _: backend.addresses(), ANSWER_SECONDS),
        ("/v1/policy", lambda _: backend.policies(), ANSWER_SECONDS),
        ("/v1/policy/usage", lambda _: backend.policy_usage(), ANSWER_SECONDS),
        ("/v1/policy/selectors", lambda _: backend.selectors(), ANSWER_SECONDS),
        ("/v1/policy/explain", explain, EXPLAIN_SECONDS),
        ("/v1/policy/wait", wait_policy, WAIT_SECONDS_LIMIT + ANSWER_SECONDS),
        ("/v1/cookie/{number}", cookie, ANSWER_SECONDS),
        ("/v1/hubble/metrics/forecast", forecast, ANSWER_SECONDS),
        ("/v1/map", lambda _: backend.maps(), ANSWER_SECONDS),
        ("/v1/map/{name}", map_dump, ANSWER_SECONDS),
        ("/v1/node", lambda _: backend.nodes(), ANSWER_SECONDS),
        ("/v1/config", lambda _: backend.settings(), ANSWER_SECONDS),
        ("/v1/service", lambda _: backend.services(), ANSWER_SECONDS),
        ("/v1/service/{reference:path}", service, ANSWER_SECONDS),
        ("/v1/nat", lambda _: backend.nat(), ANSWER_SECONDS),
        ("/v1/local-service", lambda _: backend.local_services(), ANSWER_SECONDS),
    ]
    changes: list[tuple[str, str, Callable[[Request], Awaitable[Any]], float]] = [
        ("PATCH", "/v1/endpoint/{reference:path}", change_endpoint, ANSWER_SECONDS),
        ("PATCH", "/v1/config", change_settings, ANSWER_SECONDS),
        ("POST", "/v1/policy/check", check, CHECK_SECONDS),
        ("POST", "/v1/verify", verify, VERIFY_SECONDS),
        ("PUT", "/v1/local-service", put_local_service, ANSWER_SECONDS),
        ("DELETE", "/v1/local-service/{frontend:path}", delete_local_service, ANSWER_SECONDS),
    ]
    return _application(
        [Route(path, _json(handler, seconds)) for path, handler, seconds in routes]
        + [Route(path, _json(run, seconds), methods=[method]) for method, path, run, seconds in changes]
        + [Route("/metrics", _metrics(backend))]
    )


def health_application(backend: Backend) -> Starlette:
    """For probes: 200 while pods can be added and policy is enforced, else 503."""

    async def healthz(_: Request) -> Response:
        status = await backend.status()
        return _encode(status, 200 if status.ready else 503)

    return _application([Route("/healthz", _guarded(healthz, ANSWER_SECONDS))])


def metrics_application(backend: Backend) -> Starlette:
    """For Prometheus."""
    return _application([Route("/metrics", _metrics(backend))])


def _application(routes: list[Route]) -> Starlette:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = {
            404: "There is no such path; GET /v1/healthz is one that exists.",
            405: f"This path does not answer {request.method[:10]}; most only answer GET.",
        }.get(error.status_code, f"{error.detail}.")
        return _encode(Fault(error=sentence), error.status_code)

    return Starlette(routes=routes, exception_handlers={HTTPException: refused})


def _metrics(backend: Backend) -> Handler:
    async def metrics(_: Request) -> Response:
        return Response(await backend.metrics(), headers={"content-type": METRICS_TYPE})

    return _guarded(metrics, ANSWER_SECONDS)


def _json(handler: Callable[[Request], Awaitable[Any]], seconds: float) -> Handler:
    async def answer(request: Request) -> Response:
        return _encode(await handler(request), 200)

    return _guarded(answer, seconds)


def _guarded(handler: Handler, seconds: float) -> Handler:
    async def guarded(request: Request) -> Response:
        try:
            async with asyncio.timeout(seconds):
                return await handler(request)
        except ApiError as error:
            return _encode(Fault(error=error.sentence), error.status)
        except TimeoutError:
            return _encode(Fault(error="The agent took too long to answer; try again."), 504)
        except asyncio.CancelledError:
            return _encode(Fault(error="The agent is stopping; try again when it is back."), 503)
        except Exception:
            log.exception("API request failed by a bug", path=request.url.path)
            return _encode(Fault(error="The agent failed to answer; its log has the trace."), 500)

    return guarded


def _encode(body: object, status: int) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


# --- parameters ---------------------------------------------------------------------------------------


async def _body(request: Request, kind: type[T], limit: int = BODY_LIMIT) -> T:
    """The request's JSON. Raises `ApiError` 413 or 400."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise ApiError(413, f"The request's body has more than {limit} bytes; send less at once.")
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ApiError(400, f"The request's body makes no sense: {error}.") from error


def _split_reference(path: str) -> tuple[str, str]:
    """An endpoint's name, and the part of it that is asked for: policy, config, or empty for the endpoint
    itself. A pod may itself be called "policy"."""
    parts = path.split("/")
    part_at = 2 if path.startswith("pod-name:") else 1
    if len(parts) == part_at + 1 and parts[part_at] in ("policy", "config"):
        return "/".join(parts[:part_at]), parts[part_at]
    return path, ""


def _question(request: Request) -> Question:
    """What to explain. Raises `ApiError` 400."""
    asked = request.query_params
    if asked.get("flow"):
        return Question(flow=asked["flow"])
    if not asked.get("from") or not asked.get("to"):
        raise ApiError(400, "Say between whom: write ?from=NAMESPACE/POD&to=NAMESPACE/POD, or ?flow=UUID.")
    return Question(source=asked["from"], destination=asked["to"], port=asked.get("port") or "80/TCP")


def _number(text: str, what: str) -> int:
    if not NUMBER.fullmatch(text) or int(text) >= 1 << 32:
        raise ApiError(400, f"{text[:80]!r} is not {what}; write a number below {1 << 32}.")
    return int(text)


def _integer(request: Request, name: str, default: int | None = None) -> int:
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    if text is None or not NUMBER.fullmatch(text):
        raise ApiError(400, f"The parameter {name} must be a number; write ?{name}=1.")
    return int(text)


def _seconds(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= WAIT_SECONDS_LIMIT:
        raise ApiError(
            400, f"The parameter {name} must be seconds from 0 to {WAIT_SECONDS_LIMIT:.0f}; write ?{name}=30."
        )
    return value
