"""Metrics in the agent: by flag, by a file that changes, behind TLS whose files come later."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import GaugeMetricFamily

from cilia.apps.agent import hubble_metrics
from cilia.apps.agent.errors import StartError
from cilia.apps.agent.hubble_metrics import HubbleMetrics, HubbleMetricsSettings
from cilia.kit import certificates
from cilia.kit.clock import SystemClock
from cilia.kit.tasks import TaskGroup
from cilia.model.node import IpcacheEntry
from cilia.schema import Desired, Inputs
from tests.support.hubble import NODE, WALL, events, store

DROP = {"kind": 1, "verdict": 2, "reason": 133}
ANY_PORT = "127.0.0.1:0"


class Story:
    """Metrics over an empty store."""

    def __init__(self, **choices: Any) -> None:
        self.flows = store()
        self.desired = Desired()
        settings = HubbleMetricsSettings(**{"address": ANY_PORT, **choices})
        others = GaugeMetricFamily("hubble_exporter_working", "Whether it works", labels=["name"])
        others.add_metric(["static"], 1)
        self.metrics = HubbleMetrics(
            settings, self.flows, NODE, SystemClock(), Inputs(), self.desired, lambda: [others]
        )

    def play(self, act: Callable[[], Awaitable[None]]) -> None:
        """Open, start, act, close."""

        async def run() -> None:
            async with AsyncExitStack() as stack:
                await self.metrics.open(stack)
                tasks = await stack.enter_async_context(TaskGroup())
                self.metrics.start(tasks)
                await act()

        asyncio.run(run())

    async def scrape(self, tls: ssl.SSLContext | None = None) -> str:
        name = "metrics.test" if tls else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.metrics.port, ssl=tls, server_hostname=name
        )
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(60):
            answer = await reader.read()
        writer.close()
        return answer.decode()

    async def until(self, words: str) -> None:
        async with asyncio.timeout(60):
            while words not in await self.scrape():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at all the time."""
    monkeypatch.setattr(hubble_metrics, "RETRY_SECONDS", 0.01)


def test_nothing_is_served_without_metrics() -> None:
    story = Story()

    async def act() -> None:
        assert story.metrics.port == 0
        assert story.flows.listeners == set()

    story.play(act)


def test_flows_are_counted_and_served() -> None:
    story = Story(metrics="drop:sourceContext=pod")

    async def act() -> None:
        await asyncio.sleep(0)
        story.flows.append([events(DROP, DROP)], offset=WALL)
        await story.until(
            'hubble_drop_total{reason="POLICY_DENIED",protocol="TCP",source="demo/client-5f"} 2\n'
        )
        page = await story.scrape()
        assert "# TYPE hubble_exporter_working gauge\n" in page
        assert 'hubble_exporter_working{name="static"} 1\n' in page

    story.play(act)


def test_a_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.yaml"
    story = Story(config_path=path)

    async def act() -> None:
        await story.until("hubble_metrics_config_valid 0\n")
        path.write_text("metrics: [{name: tcp}]")
        await story.until("# TYPE hubble_tcp_flags_total counter")
        assert "hubble_metrics_config_valid 1\n" in await story.scrape()
        path.write_text("metrics: [{name: tpc}]")
        await story.until("hubble_metrics_config_valid 0\n")
        assert "# TYPE hubble_tcp_flags_total counter" in await story.scrape()

    story.play(act)


def test_certificates_may_come_later(tmp_path: Path) -> None:
    files = tmp_path / "tls.crt", tmp_path / "tls.key"
    story = Story(metrics="drop", enable_tls=True, cert_file=files[0], key_file=files[1])
    now = SystemClock().wall()
    authority = certificates.make_authority("Test CA", now=now, days=40)
    trusting = ssl.create_default_context(cadata=authority.certificate.decode())

    async def act() -> None:
        assert story.metrics.port == 0
        issued = certificates.issue(authority, "metrics.test", now=now, days=20, client=False)
        files[1].write_bytes(issued.key)
        files[0].write_bytes(issued.certificate)
        async with asyncio.timeout(60):
            while not story.metrics.port:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert "hubble_drop_total" in await story.scrape(trusting)

    story.play(act)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"metrics": "drops"}, "no metric 'drops'"),
        ({"metrics": "drop", "config_path": Path("x")}, "exclude each other"),
        ({"metrics": "drop", "enable_tls": True}, "give both files"),
        ({"metrics": "drop", "address": "9965"}, "not an address to listen on"),
    ],
)
def test_what_can_not_be_meant(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(StartError, match=words):
        Story(**choices)


def test_a_port_that_is_taken() -> None:
    async def act() -> None:
        raise AssertionError("it must not start")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        story = Story(metrics="drop", address=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(StartError, match="free the port"):
            story.play(act)


def test_pods_of_other_nodes_are_known() -> None:
    story = Story(metrics="drop")
    story.desired.ipcache.put(
        IpcacheEntry(prefix="10.0.2.7/32", identity=5000, namespace="other", pod="db-0")
    )
    story.desired.ipcache.put(IpcacheEntry(prefix="0.0.0.0/0", identity=2))
    assert story.metrics._pods() == {("other", "db-0")}
