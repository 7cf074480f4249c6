"""The door where Prometheus knocks: GET /metrics over HTTP/1.1 (RFC 9112), one request each connection.

    connection ─► bounded head, bounded time ─► text in pieces, as fast as the scraper takes them

With TLS the files are read anew when they change; a scraper must show a certificate where the server was
given the authorities of its clients.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import structlog

from cilia.hubble.metrics import exposition
from cilia.hubble.metrics.exposition import Head, Sample
from cilia.kit.clock import Clock
from cilia.kit.tls import Reloading, TlsFiles

log = structlog.get_logger(__name__)

PATH = "/metrics"
HEAD_LIMIT = 16 << 10
HEAD_SECONDS = 10.0
BODY_SECONDS = 30.0
CONNECTIONS = 64
"""Open at once; for one more the oldest is closed, which may only be waiting."""

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: those that Prometheus' libraries have by default."""

REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
}

Text = Callable[[bool], Iterator[bytes]]
"""Whether in OpenMetrics, to the text in pieces."""


@dataclass(frozen=True, kw_only=True)
class MetricsServerSettings:
    """Where metrics are served."""

    host: str
    """Empty: all addresses."""
    port: int
    tls: TlsFiles | None = None
    """None: in the clear."""
    open_metrics: bool = False
    """Answer in OpenMetrics those who ask for it."""


class ScrapeTls(Reloading):
    """What the server shows; scrapers need a certificate only where their authorities are given."""

    def _bare(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED if self.files.bundles else ssl.CERT_NONE
        context.num_tickets = 0
        return context


class MetricsServer:
    """Serves a text at /metrics."""

    def __init__(self, settings: MetricsServerSettings, text: Text, clock: Clock) -> None:
        """Reads the files of TLS; raises cilia.kit.tls.TlsError."""
        self._settings = settings
        self._text = text
        self._clock = clock
        self._tls = (
            None if settings.tls is None else ScrapeTls(settings.tls, protocols=("http/1.1",), clock=clock)
        )
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, None] = {}
        """The oldest first."""
        self._requests: Counter[int] = Counter()
        self._seconds: dict[int, list[float]] = {}

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.start_server(
            self._serve,
            self._settings.host or None,
            self._settings.port,
            limit=HEAD_LIMIT,
            ssl=self._context(),
            ssl_handshake_timeout=HEAD_SECONDS if self._tls else None,
        )

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Close the door and what is open."""
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._open):
            writer.close()

    def _context(self) -> ssl.SSLContext | None:
        if self._tls is None:
            return None
        context, tls = self._tls.context(), self._tls

        def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = tls.context()

        context.sni_callback = renew
        return context

    # -- one request --------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = None
        if len(self._open) > CONNECTIONS:
            next(iter(self._open)).close()
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            began = self._clock.monotonic()
            async with asyncio.timeout(BODY_SECONDS):
                status = await self._answer(head, writer)
            self._note(status, self._clock.monotonic() - began)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            self._open.pop(writer, None)
            with suppress(OSError):
                writer.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> int:
        status, sentence, headers = judged(head)
        if status != 200:
            write_head(writer, status, exposition.TEXT)
            writer.write(f"{sentence}\n".encode())
            await writer.drain()
            return status
        open_metrics = self._settings.open_metrics and exposition.wants_open_metrics(headers)
        write_head(writer, status, exposition.OPEN_METRICS if open_metrics else exposition.TEXT)
        if head.startswith(b"GET"):
            for piece in self._all(open_metrics):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        return status

    def _all(self, open_metrics: bool) -> Iterator[bytes]:
        yield from self._text(open_metrics)
        yield from self._about_requests(open_metrics)
        if open_metrics:
            yield b"# EOF\n"

    # -- about itself -------------------------------------------------------------------------------------

    def _note(self, status: int, seconds: float) -> None:
        self._requests[status] += 1
        row = self._seconds.setdefault(status, [0.0] * (len(BUCKETS) + 1))
        row[-1] += seconds
        for index, bound in enumerate(BUCKETS):
            row[index] += seconds <= bound

    def _about_requests(self, open_metrics: bool) -> Iterator[bytes]:
        counted = [Sample((str(status),), count) for status, count in sorted(self._requests.items())]
        yield from exposition.pieces(
            Head("hubble_metrics_http_handler_requests", "counter", "Requests for metrics"),
            ("code",),
            counted,
            open_metrics=open_metrics,
        )
        samples = []
        for status, row in sorted(self._seconds.items()):
            code, count = str(status), self._requests[status]
            samples += [
                Sample((code, str(bound)), row[index], "_bucket") for index, bound in enumerate(BUCKETS)
            ]
            samples += [Sample((code, "+Inf"), count, "_bucket"), Sample((code,), row[-1], "_sum")]
            samples.append(Sample((code,), count, "_count"))
        yield from exposition.pieces(
            Head(
                "hubble_metrics_http_handler_request_duration_seconds",
                "histogram",
                "How long requests for metrics took",
            ),
            ("code", "le"),
            samples,
            open_metrics=open_metrics,
        )


def judged(head: bytes) -> tuple[int, str, dict[str, str]]:
    """Status of a request's head, what is wrong with it, and its headers by name in lower case."""
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return 400, "this is no HTTP/1.1 request", {}
    if words[0] not in ("GET", "HEAD"):
        return 405, "only GET is answered", {}
    if words[1].partition("?")[0] != PATH:
        return 404, f"metrics are at {PATH}", {}
    pairs = (line.partition(":")[::2] for line in rest if line)
    return 200, "", {name.strip().lower(): value.strip() for name, value in pairs}


def write_head(writer: asyncio.StreamWriter, status: int, kind: str) -> None:
    """Status line and headers; the end of the connection is the end of the body."""
    lines = (
        f"HTTP/1.1 {status} {REASONS[status]}",
        f"Content-Type: {kind}",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        "",
        "",
    )
    writer.write("\r\n".join(lines).encode())
