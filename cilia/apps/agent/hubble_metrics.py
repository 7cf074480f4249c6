"""Hubble's metrics in the agent: what is counted, for whom, and the door for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
from prometheus_client.core import Metric

from cilia.api.server import parse_listen
from cilia.api.sockets import SocketError
from cilia.apps.agent.errors import StartError
from cilia.hubble.convert import NodeFacts
from cilia.hubble.metrics import exposition
from cilia.hubble.metrics.contexts import PodName
from cilia.hubble.metrics.exposition import Head, Sample
from cilia.hubble.metrics.family import Limits
from cilia.hubble.metrics.follower import ConfigFollower
from cilia.hubble.metrics.options import MetricConfig, MetricsError, parse
from cilia.hubble.metrics.processor import FlowMetrics
from cilia.hubble.metrics.server import MetricsServer, MetricsServerSettings
from cilia.hubble.store import FlowStore
from cilia.kit.clock import Clock
from cilia.kit.tasks import TaskGroup
from cilia.kit.tls import TlsError, TlsFiles
from cilia.schema import Desired, Inputs

log = structlog.get_logger(__name__)

DEFAULT_ADDRESS = ":9965"
RETRY_SECONDS = 5.0
SETTLE_SECONDS = 1.0
"""For which a changed file must stay the same before it counts."""


@dataclass(frozen=True, kw_only=True)
class HubbleMetricsSettings:
    """Which flows are counted how, and where the counts are served."""

    metrics: str = ""
    """As --hubble-metrics has it; empty: none."""
    config_path: Path | None = None
    """A YAML file that says it instead, followed."""
    address: str = ""
    """[HOST]:PORT; empty: DEFAULT_ADDRESS where there are metrics."""
    open_metrics: bool = False
    """OpenMetrics for those who ask for it."""
    enable_tls: bool = False
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_files: tuple[Path, ...] = ()
    """Authorities of scrapers; empty: anybody may scrape."""
    max_series: int = 10_000
    """Series a metric may have; 0: no bound."""
    expiry: float = 600.0
    """Seconds without a flow after which a series goes; 0: never."""

    @property
    def wanted(self) -> bool:
        """Whether anything is counted or may be later."""
        return bool(self.metrics) or self.config_path is not None


def check(settings: HubbleMetricsSettings) -> tuple[MetricConfig, ...]:
    """The metrics of the flag. Raises MetricsError for settings that can't be meant."""
    if settings.metrics and settings.config_path is not None:
        raise MetricsError("--hubble-metrics and --hubble-dynamic-metrics-config-path exclude each other")
    if settings.enable_tls and not (settings.cert_file and settings.key_file):
        raise MetricsError("TLS of the metrics server needs a certificate and its key: give both files")
    if settings.address:
        try:
            parse_listen(settings.address)
        except SocketError as error:
            raise MetricsError(f"--hubble-metrics-server: {error}") from error
    return parse(settings.metrics)


class HubbleMetrics:
    """Counts, and answers Prometheus, where metrics are wanted."""

    def __init__(
        self,
        settings: HubbleMetricsSettings,
        store: FlowStore,
        node: NodeFacts,
        clock: Clock,
        inputs: Inputs,
        desired: Desired,
        others: Callable[[], Iterable[Metric]],
    ) -> None:
        """`others`: families that are told besides. Raises StartError for settings that can't be meant."""
        self._settings = settings
        self._clock = clock
        self._inputs = inputs
        self._desired = desired
        self._others = others
        self._server: MetricsServer | None = None
        limits = Limits(series=settings.max_series, expiry=settings.expiry)
        self.flows = FlowMetrics(store, node, clock, limits, self._pods)
        try:
            self.flows.configure(check(settings))
        except MetricsError as error:
            raise StartError(str(error)) from error
        self._follower: ConfigFollower | None = None
        if settings.config_path is not None:
            self._follower = ConfigFollower(settings.config_path, self.flows.configure)

    @property
    def port(self) -> int:
        """Where metrics are served; 0: nowhere yet."""
        return self._server.port if self._server is not None else 0

    async def open(self, stack: AsyncExitStack) -> None:
        """Open the door until the stack closes. Raises StartError."""
        settings = self._settings
        if not settings.wanted:
            return
        self._look()
        stack.push_async_callback(self._close)
        try:
            await self._listen()
        except TlsError as error:
            log.warning("metrics are not served yet", error=str(error))
        except OSError as error:
            raise StartError(
                f"metrics can't be served at {settings.address or DEFAULT_ADDRESS} "
                f"({error.strerror or error}): free the port, or choose another --hubble-metrics-server"
            ) from error

    def start(self, tasks: TaskGroup) -> None:
        """Count as long as the agent runs."""
        if not self._settings.wanted:
            return
        tasks.spawn("count flows", self.flows.run())
        if self._server is None:
            tasks.spawn("serve metrics", self._retry())
        if self._follower is not None:
            tasks.spawn("follow metrics' configuration", self._follow())

    async def _listen(self) -> None:
        settings = self._settings
        host, port = parse_listen(settings.address or DEFAULT_ADDRESS)
        tls = None
        if settings.enable_tls:
            tls = TlsFiles(settings.cert_file, settings.key_file, settings.client_ca_files or None)
        server = MetricsServer(
            MetricsServerSettings(host=host, port=port, tls=tls, open_metrics=settings.open_metrics),
            self._text,
            self._clock,
        )
        await server.start()
        self._server = server

    def _text(self, open_metrics: bool) -> Iterator[bytes]:
        """All families in pieces."""
        yield from self.flows.text(open_metrics=open_metrics)
        for family in self._others():
            names = tuple(family.samples[0].labels) if family.samples else ()
            samples = [Sample(tuple(each.labels.values()), each.value) for each in family.samples]
            head = Head(family.name, family.type, family.documentation)
            yield from exposition.pieces(head, names, samples, open_metrics=open_metrics)

    async def _retry(self) -> None:
        """Until the certificates are there."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                await self._listen()
            except TlsError:
                continue
            except OSError as error:
                log.warning("metrics are not served", error=error.strerror or str(error))
                continue
            log.info("metrics are served", address=self._settings.address or DEFAULT_ADDRESS)
            return

    async def _follow(self) -> None:
        while True:
            changing = self._follower is not None and self._follower.changing
            await asyncio.sleep(SETTLE_SECONDS if changing else RETRY_SECONDS)
            self._look()

    def _look(self) -> None:
        if self._follower is not None:
            self._follower.look()
            self.flows.config_valid = not self._follower.problem

    async def _close(self) -> None:
        if self._server is not None:
            await self._server.stop()

    def _pods(self) -> set[PodName]:
        """All pods of the cluster this node knows of."""
        remote = {(row.namespace, row.pod) for row in self._desired.ipcache if row.pod}
        return remote | {(row.namespace, row.pod) for row in self._inputs.attachments}
