"""Scrapes: both text formats as Prometheus' own parsers read them, TLS, and callers that behave badly."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_open_metrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from cilia.hubble.metrics import server
from cilia.hubble.metrics.batch import Batch
from cilia.hubble.metrics.exposition import Head, Sample, pieces
from cilia.hubble.metrics.options import parse
from cilia.hubble.metrics.processor import FlowMetrics
from cilia.hubble.metrics.server import (
    CONNECTIONS,
    HEAD_LIMIT,
    HEAD_SECONDS,
    MetricsServer,
    MetricsServerSettings,
)
from cilia.kit import certificates
from cilia.kit.clock import ManualClock, SystemClock
from cilia.kit.tls import TlsFiles
from tests.support.hubble import NODE, WALL, events, store

ALL = (
    "flow:sourceContext=pod;destinationContext=pod drop tcp icmp port-distribution policy flows-to-world dns "
    "httpV2 kafka"
)


def metrics(text: str = ALL) -> FlowMetrics:
    flows = store()
    made = FlowMetrics(flows, NODE, ManualClock())
    made.configure(parse(text))
    flows.append([events({}, {}, {"kind": 1, "verdict": 2, "reason": 133})], offset=WALL)
    for family in made.families:
        for rows in flows.spans(0, 3):
            family.take(Batch(rows), 0.0)
    return made


Talk = Callable[[int], Awaitable[Any]]


def served(talk: Talk, made: FlowMetrics | None = None, **choices: Any) -> Any:
    """What `talk` brings back from a server at the port it is given."""
    source = made or metrics()

    async def run() -> Any:
        settings = MetricsServerSettings(host="127.0.0.1", port=0, **choices)
        server = MetricsServer(settings, lambda wanted: source.text(open_metrics=wanted), SystemClock())
        await server.start()
        try:
            return await talk(server.port)
        finally:
            await server.stop()

    return asyncio.run(run())


async def ask(port: int, request: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    name = "metrics.test" if tls else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)
    writer.write(request)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


def get(*headers: str, path: str = "/metrics", tls: ssl.SSLContext | None = None) -> Talk:
    lines = [f"GET {path} HTTP/1.1", "Host: node", *headers, "", ""]
    return lambda port: ask(port, "\r\n".join(lines).encode(), tls)


def body(answer: bytes) -> str:
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    return text.decode()


def test_the_text_is_what_prometheus_reads() -> None:
    families = {family.name: family for family in parse_text(body(served(get())))}
    flow = families["hubble_flows_processed"]
    assert flow.type == "counter"
    assert {sample.labels["verdict"]: sample.value for sample in flow.samples} == {
        "FORWARDED": 2,
        "DROPPED": 1,
    }
    assert {sample.labels["source"] for sample in flow.samples} == {"demo/client-5f"}
    assert {sample.labels["source"] for sample in families["hubble_lost_events"].samples} == {
        "perf_event_ring_buffer",
        "observer_events_queue",
        "hubble_ring_buffer",
    }
    assert families["hubble_dns_queries"].samples == []


def test_open_metrics_where_it_is_allowed_and_asked_for() -> None:
    accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    text = body(served(get(accept), open_metrics=True))
    families = {family.name: family for family in parse_open_metrics(text)}  # type: ignore[no-untyped-call]
    assert families["hubble_drop"].samples[0].name == "hubble_drop_total"
    assert "# EOF" not in body(served(get(accept)))
    assert "# EOF" not in body(served(get(), open_metrics=True))


def test_requests_are_counted() -> None:
    async def twice(port: int) -> Any:
        await get(path="/elsewhere")(port)
        await get()(port)
        return await get()(port)

    families = {family.name: family for family in parse_text(body(served(twice)))}
    requests = families["hubble_metrics_http_handler_requests"].samples
    assert {sample.labels["code"]: sample.value for sample in requests} == {"200": 1, "404": 1}
    seconds = families["hubble_metrics_http_handler_request_duration_seconds"]
    assert seconds.type == "histogram"
    counted = [s.value for s in seconds.samples if s.name.endswith("_count") and s.labels["code"] == "200"]
    assert counted == [1]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\x16\x03\x01 hello\r\n\r\n", b"400"),
        (b"GET /metrics?name=drop HTTP/1.0\r\n\r\n", b"200"),
    ],
)
def test_other_requests(request_bytes: bytes, status: bytes) -> None:
    answer = served(lambda port: ask(port, request_bytes))
    assert answer.split(b" ")[1] == status


def test_a_head_without_end_ends_the_connection() -> None:
    assert served(lambda port: ask(port, b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 2 * HEAD_LIMIT)) == b""


def test_a_head_only() -> None:
    answer = served(lambda port: ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n"))
    assert answer.endswith(b"\r\n\r\n")


def test_who_only_connects_is_closed_for_others() -> None:
    async def crowd(port: int) -> Any:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS + 10)]
        answer = await get()(port)
        # Long before its time for a request is over.
        async with asyncio.timeout(HEAD_SECONDS / 2):
            assert await idle[0][0].read() == b""
        for _, writer in idle:
            writer.close()
        return answer

    assert "hubble_drop_total" in body(served(crowd))


def test_who_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.1)

    async def silent(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\n")
        async with asyncio.timeout(HEAD_SECONDS / 2):
            return await reader.read()

    assert served(silent) == b""


def test_a_scraper_that_does_not_read_holds_up_nobody() -> None:
    made = metrics()
    large = b"x" * 100_000 + b"\n"

    async def stall(port: int) -> Any:
        _, stalled = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        stalled.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.05)
        answer = await get()(port)
        stalled.transport.abort()
        return answer

    text = made.text
    made.text = lambda *, open_metrics=False: iter([large] * 50 + list(text()))  # type: ignore[method-assign]
    assert len(served(stall, made)) > 5_000_000


def test_label_values_are_escaped() -> None:
    head = Head("hubble_x", "counter", "Help")
    value = 'a"b\\c\nd'
    text = b"".join(pieces(head, ("name",), [Sample((value,), 3)], open_metrics=False)).decode()
    (family,) = parse_text(text)
    assert family.samples[0].labels == {"name": value}


def test_large_families_come_in_pieces() -> None:
    samples = [Sample((str(number),), number) for number in range(5000)]
    parts = list(pieces(Head("hubble_x", "counter", "Help"), ("n",), samples, open_metrics=False))
    assert len(parts) == 4, "what is said of it, and three pieces"
    (family,) = parse_text(b"".join(parts).decode())
    assert len(family.samples) == 5000


# -- TLS ----------------------------------------------------------------------------------------------------


NAME = "metrics.test"


@pytest.fixture(scope="module")
def authority() -> certificates.Issued:
    return certificates.make_authority("Test CA", now=SystemClock().wall(), days=40)


def show(path: Path, issued: certificates.Issued) -> tuple[Path, Path]:
    """Write a certificate and its key."""
    pair = path / "tls.crt", path / "tls.key"
    for file, content in zip(pair, (issued.certificate, issued.key), strict=True):
        file.write_bytes(content)
    return pair


def trusting(authority: certificates.Issued, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def server_files(path: Path, authority: certificates.Issued, *, clients: bool) -> TlsFiles:
    path.mkdir()
    now = SystemClock().wall()
    pair = show(path, certificates.issue(authority, NAME, now=now, days=20, client=False))
    (path / "ca.crt").write_bytes(authority.certificate)
    return TlsFiles(*pair, path / "ca.crt" if clients else None)


def test_tls_without_certificates_of_clients(tmp_path: Path, authority: certificates.Issued) -> None:
    files = server_files(tmp_path / "server", authority, clients=False)
    assert "hubble_drop_total" in body(served(get(tls=trusting(authority)), tls=files))


def test_mutual_tls(tmp_path: Path, authority: certificates.Issued) -> None:
    files = server_files(tmp_path / "server", authority, clients=True)
    (tmp_path / "client").mkdir()
    issued = certificates.issue(authority, "prometheus", now=SystemClock().wall(), days=20, server=False)
    pair = show(tmp_path / "client", issued)
    assert "hubble_drop_total" in body(served(get(tls=trusting(authority, pair)), tls=files))
    try:
        answer = served(get(tls=trusting(authority)), tls=files)
    except OSError:
        answer = b""
    assert answer == b"", "who shows no certificate gets no answer"


def test_new_certificates_are_shown_to_the_next_scraper(
    tmp_path: Path, authority: certificates.Issued
) -> None:
    files = server_files(tmp_path / "server", authority, clients=False)
    made = metrics()

    async def run() -> list[int]:
        clock = ManualClock(wall=SystemClock().wall())
        settings = MetricsServerSettings(host="127.0.0.1", port=0, tls=files)
        server = MetricsServer(settings, lambda wanted: made.text(open_metrics=wanted), clock)
        await server.start()
        found = []
        try:
            for _ in range(2):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", server.port, ssl=trusting(authority), server_hostname=NAME
                )
                found.append(writer.get_extra_info("peercert")["serialNumber"])
                writer.close()
                issued = certificates.issue(authority, NAME, now=clock.wall(), days=20, client=False)
                show(tmp_path / "server", issued)
                clock.advance(2.0)
        finally:
            await server.stop()
        return found

    first, second = asyncio.run(run())
    assert first != second
