"""All of Hubble in one agent: the store, what fills it, what reads it, and the doors to it.

    kernel's rings ─► pump ─► store ─┬─► observer ─┐
                                     │   peers    ─┼─► doors (unix socket, TCP)
    tables ─► directory ─────────────┤   health   ─┘
                                     ├─► exporters ─► files of JSON lines
                                     └─► history (sealed files, if wanted) ─► observer

What reads flows as they come is started here, too, each with a cursor of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cilia import __version__
from cilia.apps.agent import exporting
from cilia.apps.agent.agent_events import AgentEventWriter
from cilia.apps.agent.directory import TableDirectory
from cilia.apps.agent.drop_events import DropEventSettings, DropEventWriter
from cilia.apps.agent.errors import StartError
from cilia.apps.agent.flows import FlowPump
from cilia.apps.agent.hubble_doors import Doors, DoorSettings, PeerList, own_peer, split_address
from cilia.apps.agent.hubble_metrics import HubbleMetrics, HubbleMetricsSettings
from cilia.apps.agent.kernel import NodeKernel
from cilia.apps.agent.metrics import HubbleNumbers
from cilia.apps.agent.settings import AgentSettings
from cilia.apps.agent.socket_owners import SocketOwners
from cilia.dataplane.order import KernelState
from cilia.hubble.agent_events import EventLog, EventStream
from cilia.hubble.convert import NodeFacts, file_names
from cilia.hubble.drop_events import ReasonError
from cilia.hubble.export.collector import ExportCollector
from cilia.hubble.health import Health
from cilia.hubble.history.numbers import HistoryNumbers
from cilia.hubble.history.settings import HistoryError, HistorySettings, require_extra
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.peer import Peers
from cilia.hubble.rpc.calls import Methods
from cilia.hubble.rpc.reflection import Reflection
from cilia.hubble.store import FlowStore, LossSource
from cilia.kit.clock import Clock
from cilia.kit.tasks import TaskGroup
from cilia.proto.health import health_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.peer import peer_pb2
from cilia.schema import Desired, Inputs

log = structlog.get_logger(__name__)

if TYPE_CHECKING:
    from cilia.hubble.history.keeper import History


class Observability:
    """Hubble of one agent; made once the kernel's state is followed."""

    def __init__(
        self,
        settings: AgentSettings,
        inputs: Inputs,
        desired: Desired,
        kernel: NodeKernel,
        state: KernelState,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._kernel = kernel
        if "hubble_event_queue_size" in settings.sources:
            log.info("--hubble-event-queue-size is without meaning: events wait in no queue here")
        self._owners = SocketOwners(
            inputs, desired, settings.cgroup_root, pods_only=settings.hubble_skip_unknown_cgroup_ids
        )
        names = directory(settings, inputs, desired, kernel, state)
        self.store = FlowStore(kernel.event_dtype, names, capacity=settings.hubble_capacity)
        self._name = f"{settings.cluster_name}/{settings.node_name}"
        self._facts = NodeFacts(name=self._name, version=__version__, files=file_names(kernel.source_files))
        self.exporters = exporting.exporters(settings, self.store, self._facts, clock)
        self.redaction = exporting.redaction(settings)
        """For `hubble.redact`, once there are application records; read now, so that wrong settings are
        refused at the start."""
        self.metrics = HubbleMetrics(
            metrics_settings(settings),
            self.store,
            self._facts,
            clock,
            inputs,
            desired,
            ExportCollector(self.exporters).collect,
        )
        self.drop_events = drop_events(settings, self.store, inputs, clock)
        """Started once the cluster's objects are known."""
        ways = door_settings(settings)
        ipv6 = settings.hubble_prefer_ipv6
        own = own_peer(ways, settings.node_name, settings.cluster_name, kernel.addresses, ipv6=ipv6)
        observer = Observer(
            self.store,
            self._facts,
            ObserverSettings(
                version=__version__,
                address=own.address,
                tls_name=own.tls_name,
                lost_events_interval=settings.hubble_lost_event_send_interval,
            ),
            clock,
        )
        self.history = history(settings, self.store, self._name, clock)
        observer.past = self.history
        peers = Peers([own])
        port = split_address(ways.address)[1] if ways.address else 0
        self._peer_list = PeerList(
            peers, inputs.nodes, own, cluster=settings.cluster_name, port=port, ipv6=ipv6
        )
        self._happened = EventLog()
        self._tables = (inputs, desired, state)
        self.doors = Doors(ways, self._methods(observer, peers))

    def _methods(self, observer: Observer, peers: Peers) -> Methods:
        """All that clients may call."""
        agent = EventStream("/observer.Observer/GetAgentEvents", self._happened, self._name, self._clock)
        debug = EventStream("/observer.Observer/GetDebugEvents", EventLog(), self._name, self._clock)
        health = Health(["observer.Observer", "peer.Peer"])
        reflection = Reflection([observer_pb2.DESCRIPTOR, peer_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR])
        return {
            **observer.methods(),
            **agent.methods(),
            **debug.methods(),
            **peers.methods(),
            **health.methods(),
            **reflection.methods(),
        }

    async def open(self, stack: AsyncExitStack) -> None:
        """Answer clients until the stack closes, unless Hubble is off. Raises StartError."""
        if not self._settings.enable_hubble:
            return
        if self.history is not None:
            try:
                await self.history.open()
            except HistoryError as error:
                raise StartError(str(error)) from error
            stack.push_async_callback(self.history.close)
        stack.push_async_callback(self.exporters.close)
        await self.doors.open(stack)

    def start(self, tasks: TaskGroup) -> None:
        """Begin what goes on as long as the agent runs, unless Hubble is off."""
        if not self._settings.enable_hubble:
            return
        self.doors.start(tasks)
        self.metrics.start(tasks)
        if self.history is not None:
            self.history.start(tasks)
        tasks.spawn("tell peers", self._peer_list.run())
        self.exporters.start(tasks)

    def tell(self, tasks: TaskGroup, revision: Callable[[], int]) -> Callable[[], None]:
        """Begin to note what the agent does; `revision`: of its policies. What to call after each step."""
        if not (self._settings.enable_hubble and self._settings.tells_of_agent):
            return lambda: None
        writer = AgentEventWriter(self._happened, *self._tables, revision, self._clock)
        writer.start()
        tasks.spawn("note agent events", writer.run())
        return writer.look

    def read(self, stack: AsyncExitStack) -> None:
        """Take the kernel's events until the stack closes."""
        if self._settings.events:
            reader = self._kernel.reader(FlowPump(self.store, self._owners).take)
            reader.start()
            stack.callback(reader.stop)

    def history_numbers(self) -> HistoryNumbers | None:
        """How history stands; None: flows are kept in memory only."""
        return None if self.history is None else self.history.numbers()

    def numbers(self) -> HubbleNumbers:
        """For a scrape of the agent."""
        lost = {source.name.lower(): self.store.metrics.lost.get(source, 0) for source in LossSource}
        return HubbleNumbers(
            flows=self.store.head,
            lost=lost,
            certificate_seconds=self.doors.certificate_seconds,
            refused_handshakes=self.doors.refused_handshakes,
            history=self.history_numbers(),
            drop_events=self.drop_events.numbers() if self._settings.hubble_drop_events else None,
        )


def directory(
    settings: AgentSettings, inputs: Inputs, desired: Desired, kernel: NodeKernel, state: KernelState
) -> TableDirectory:
    """Who and what is behind the numbers of events."""
    return TableDirectory(
        inputs,
        desired,
        state.service_maps,
        cluster=settings.cluster_name,
        device=kernel.device_name,
        policies=settings.hubble_network_policy_correlation_enabled,
    )


def history(settings: AgentSettings, store: FlowStore, node: str, clock: Clock) -> History | None:
    """Who keeps flows beyond memory, if that is wanted. Raises StartError where it is not installed."""
    if settings.hubble_history_dir is None:
        return None
    try:
        require_extra()
    except HistoryError as error:
        raise StartError(str(error)) from error
    # Only here: pyarrow takes time and memory that an agent without history has a better use for.
    from cilia.hubble.history.keeper import History

    wanted = HistorySettings(
        directory=settings.hubble_history_dir,
        max_bytes=settings.hubble_history_max_bytes,
        max_age=settings.hubble_history_max_age,
        interval=settings.hubble_history_interval,
    )
    return History(store, node, wanted, clock)


def door_settings(settings: AgentSettings) -> DoorSettings:
    """What the agent's settings say of the doors. Raises StartError for what makes no sense together."""
    return DoorSettings(
        socket=settings.hubble_socket,
        socket_group=settings.hubble_socket_group,
        listen_address=settings.hubble_listen_address,
        disable_tls=settings.hubble_disable_tls,
        cert_file=settings.hubble_tls_cert_file,
        key_file=settings.hubble_tls_key_file,
        client_ca_files=files(settings.hubble_tls_client_ca_files),
    )


def metrics_settings(settings: AgentSettings) -> HubbleMetricsSettings:
    """What the agent's settings say of Hubble's metrics."""
    return HubbleMetricsSettings(
        metrics=settings.hubble_metrics,
        config_path=settings.hubble_dynamic_metrics_config_path,
        address=settings.hubble_metrics_server,
        open_metrics=settings.enable_hubble_open_metrics,
        enable_tls=settings.hubble_metrics_server_enable_tls,
        cert_file=settings.hubble_metrics_server_tls_cert_file,
        key_file=settings.hubble_metrics_server_tls_key_file,
        client_ca_files=files(settings.hubble_metrics_server_tls_client_ca_files),
        max_series=settings.hubble_metrics_max_series,
        expiry=settings.hubble_metrics_expiry,
    )


def files(text: str) -> tuple[Path, ...]:
    """Paths with commas between."""
    return tuple(Path(part.strip()) for part in text.split(",") if part.strip())


def drop_events(settings: AgentSettings, flows: FlowStore, inputs: Inputs, clock: Clock) -> DropEventWriter:
    """What writes drops as Events. Raises StartError."""
    wanted = DropEventSettings(
        enabled=settings.hubble_drop_events,
        interval=settings.hubble_drop_events_interval,
        reasons=settings.hubble_drop_events_reasons,
        extended=settings.hubble_drop_events_extended,
        rate_limit=settings.hubble_drop_events_rate_limit,
    )
    try:
        return DropEventWriter(wanted, flows, inputs, clock, node=settings.node_name)
    except ReasonError as error:
        raise StartError(f"--hubble-drop-events-reasons: {error}") from error
