"""What load balancers ask a node: does a Service have endpoints here, and is the node fit for traffic at all.

Answers are kube-proxy's: JSON, 200 or 503, and the number of endpoints in a header that balancers may use.
Each health-check node port is a listener of its own, on all of the node's addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
import structlog

from cilia.api.server import parse_listen
from cilia.kit.clock import Clock
from cilia.model.service import HealthCheck
from cilia.schema import Desired

log = structlog.get_logger(__name__)

REQUEST_LIMIT = 8192
REQUEST_SECONDS = 5.0
RETRY_SECONDS = 5.0
"""Until a port that was taken is tried again."""
WEIGHT = "X-Load-Balancing-Endpoint-Weight"
REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


class Reply(msgspec.Struct, frozen=True):
    """An answer: status, JSON, further headers."""

    status: int
    body: dict[str, object]
    headers: dict[str, str] = {}


Answer = Callable[[str], Reply]
"""Path to reply."""


def endpoints_reply(check: HealthCheck | None, *, healthy: bool) -> Reply:
    """Whether a Service has endpoints on this node; `healthy`: the node serves what it should."""
    if check is None:
        return Reply(503, {"localEndpoints": 0, "serviceProxyHealthy": healthy}, {WEIGHT: "0"})
    body: dict[str, object] = {
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": healthy,
    }
    fit = healthy and check.local_endpoints > 0
    return Reply(200 if fit else 503, body, {WEIGHT: str(check.local_endpoints)})


def proxy_reply(path: str, *, healthy: bool, updated: float, now: float) -> Reply:
    """/healthz and /livez of the node; times in seconds since 1970."""
    if path.partition("?")[0] not in ("/healthz", "/livez"):
        return Reply(404, {"error": "there are /healthz and /livez"})
    body: dict[str, object] = {
        "lastUpdated": _moment(updated),
        "currentTime": _moment(now),
        "nodeEligible": True,
    }
    return Reply(200 if healthy else 503, body)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class HealthPorts:
    """Keeps a listener for each health check, and one for the node."""

    def __init__(self, desired: Desired, *, node: str, healthy: Callable[[], bool], clock: Clock) -> None:
        """`node`: HOST:PORT of the node's own /healthz, or empty. `healthy`: Services are served."""
        self._checks = desired.health_checks
        self._cursor = desired.health_checks.cursor()
        self._node = node
        self._healthy = healthy
        self._clock = clock
        self._updated = clock.wall()
        self._servers: dict[int, asyncio.Server] = {}
        self._proxy: asyncio.Server | None = None
        self._refused: set[str] = set()
        self._wake = asyncio.Event()

    def look(self) -> None:
        """After each step: services are up to date, and their health checks may be others."""
        self._updated = self._clock.wall()
        if self._cursor.pending:
            self._wake.set()

    async def run(self) -> None:
        """Listen where there is something to answer, for ever."""
        try:
            while True:
                self._cursor.take()
                complete = await self._settle()
                try:
                    async with asyncio.timeout(None if complete else RETRY_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                self._wake.clear()
        finally:
            for server in (*self._servers.values(), self._proxy):
                if server is not None:
                    server.close()

    async def _settle(self) -> bool:
        """Open and close listeners; whether all that are wanted are open."""
        for port in [port for port in self._servers if port not in self._checks]:
            self._servers.pop(port).close()
        for check in list(self._checks):
            if check.port not in self._servers:
                server = await self._listen(f":{check.port}", self._endpoints_at(check.port))
                if server is not None:
                    self._servers[check.port] = server
        if self._node and self._proxy is None:
            self._proxy = await self._listen(self._node, self._of_node)
        return len(self._servers) == len(self._checks) and (self._proxy is not None or not self._node)

    def _endpoints_at(self, port: int) -> Answer:
        return lambda _: endpoints_reply(self._checks.get(port), healthy=self._healthy())

    def _of_node(self, path: str) -> Reply:
        now = self._clock.wall()
        return proxy_reply(path, healthy=self._healthy(), updated=self._updated, now=now)

    async def _listen(self, address: str, answer: Answer) -> asyncio.Server | None:
        host, port = parse_listen(address)
        try:
            server = await asyncio.start_server(_talk(answer), host or None, port, limit=REQUEST_LIMIT)
        except OSError as error:
            if address not in self._refused:
                reason = error.strerror or str(error)
                log.warning("health checks can't be answered: free the port", address=address, reason=reason)
                self._refused.add(address)
            return None
        self._refused.discard(address)
        return server


def _talk(answer: Answer) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """One request, one answer, the end (RFC 9112)."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(encode(_reply(head, answer), head.startswith(b"HEAD ")))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    return connected


def _reply(head: bytes, answer: Answer) -> Reply:
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return Reply(400, {"error": "this is no HTTP request"})
    if words[0] not in (b"GET", b"HEAD"):
        return Reply(405, {"error": "only GET is answered"})
    return answer(words[1].decode("latin-1"))


def encode(reply: Reply, bodiless: bool = False) -> bytes:
    """The bytes of an answer."""
    body = msgspec.json.encode(reply.body)
    headers = {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        **reply.headers,
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {reply.status} {REASONS[reply.status]}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if bodiless else body)
