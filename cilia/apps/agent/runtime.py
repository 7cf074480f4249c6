"""Builds an agent in the order in which its parts can stand, and runs it until it is told to stop.

    programs loaded ─► pod prefixes (from disk, or from the operator) ─► links up ─► endpoints restored
        ─► doors open (API, Hubble, CNI, whose calls wait)
        ─► sources heard in full ─► first step, prune ─► CNI served, deferred DELs replayed, conflist

Until the inputs are complete the kernel goes on with what a predecessor left in it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import structlog

from cilia.abi import ObjectMissing
from cilia.api import sockets
from cilia.api.cni_server import CniServer
from cilia.api.server import ApiServer, ApiSettings, check_addresses
from cilia.api.sockets import SocketError
from cilia.apps.agent.attach import Attacher
from cilia.apps.agent.backend import AgentBackend, Condition
from cilia.apps.agent.balancing import PodNetworks, SocketEnder, brain_settings
from cilia.apps.agent.engine import Engine
from cilia.apps.agent.errors import StartError
from cilia.apps.agent.health_ports import HealthPorts
from cilia.apps.agent.identities import IdentityAllocator
from cilia.apps.agent.kernel import NodeKernel
from cilia.apps.agent.live import LiveSettings
from cilia.apps.agent.metrics import AgentCollector, AgentMetrics, PolicyNumbers
from cilia.apps.agent.node import BadPrefix, PodAddresses, Registration
from cilia.apps.agent.observability import Observability
from cilia.apps.agent.operator_watch import OperatorWatch
from cilia.apps.agent.place import Place
from cilia.apps.agent.publish import EndpointPublisher
from cilia.apps.agent.publishing import Publishing
from cilia.apps.agent.realisation import PolicyDelays, PolicyWords
from cilia.apps.agent.service_events import ServiceEvents
from cilia.apps.agent.settings import AgentSettings
from cilia.apps.agent.standalone import FileFollower, LocalServices
from cilia.apps.agent.state import EndpointFiles, NodeFile
from cilia.apps.agent.statuses import StatusPublisher
from cilia.apps.agent.switches import EndpointSwitches
from cilia.apps.agent.verifying import Verifying
from cilia.cluster.directory import DirectoryStore
from cilia.cluster.kube.client import KubeStore
from cilia.cluster.kube.kubeconfig import ConfigError
from cilia.cluster.store import Store, StoreError, Unavailable
from cilia.control.graph import ControlGraph, GraphConfig, Restored, restored_subjects
from cilia.dataplane.bpf import BpfError
from cilia.dataplane.order import KernelState
from cilia.dataplane.verify import Verifier
from cilia.hubble.export.collector import ExportCollector
from cilia.kit import startup
from cilia.kit.backoff import Backoff
from cilia.kit.clock import SystemClock
from cilia.kit.files import private_directory
from cilia.kit.tasks import TaskGroup
from cilia.model.endpoint import HOST_ENDPOINT
from cilia.model.ids import EndpointId
from cilia.model.node import Node
from cilia.model.policy import PolicyMode
from cilia.plugins.cni import conflist, delete_queue, install
from cilia.schema import Desired, EndpointOptions, Inputs, PodRow
from cilia.sources import pods
from cilia.sources.cluster import Sources

log = structlog.get_logger(__name__)

T = TypeVar("T")

SERVICES_AT_ONCE = 200
"""Services that are looked at at the start before others get a turn: some 20 ms."""
REVIEW_INTERVAL = 1.0
"""Seconds between two looks for rules that hardly mean what they say."""

EXPECTED = (
    BpfError,
    ObjectMissing,
    SocketError,
    ConfigError,
    BadPrefix,
    install.InstallError,
    conflist.ConflistError,
)
"""What can be wrong with a machine or its settings; the message says what to do."""


class Stopped(Exception):
    """Told to stop before it was ready."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What everything else stands on."""

    live: LiveSettings
    kernel: NodeKernel
    """Programs are loaded."""
    store: Store
    tasks: TaskGroup


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """The parts of an agent, made and not yet started."""

    files: EndpointFiles
    graph: ControlGraph
    state: KernelState
    engine: Engine
    observability: Observability
    metrics: AgentMetrics
    switches: EndpointSwitches
    backend: AgentBackend


class Runtime:
    """One agent, from start to stop."""

    def __init__(self, settings: AgentSettings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.inputs = Inputs()
        self.desired = Desired()
        self.condition = Condition()
        self._stop = asyncio.Event()
        self._delays: PolicyDelays | None = None
        """From the first step on."""

    async def run(self) -> None:
        """Start, serve, stop. Raises StartError with a sentence for the operator."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            async with AsyncExitStack() as stack:
                await self._serve(stack)
        except Stopped:
            return
        except EXPECTED as error:
            raise StartError(str(error)) from error
        except OSError as error:
            if not (self.condition.doing and error.filename):
                raise
            raise StartError(
                f"{error.filename} can't be used ({error.strerror}): make room or give it the right owner, "
                "or choose another directory"
            ) from error

    async def _serve(self, stack: AsyncExitStack) -> None:
        """The drawing above, step by step."""
        ground = await self._stand(stack)
        place = await self._join(ground)
        rooms = self._build(ground, place)
        cni_server = await self._open_doors(stack, rooms, ground.tasks)
        identities = IdentityAllocator(ground.store, self.inputs)
        endpoints, statuses = self._publishers(ground, rooms)
        sources = await self._hear(ground)
        rooms.engine.after += [rooms.backend.stepped, rooms.switches.forget_gone, place.watch(self.inputs)]
        publishing = Publishing(self.inputs, rooms.graph, identities, endpoints, statuses, self.clock)
        rooms.engine.after.append(publishing.look)
        publishing.start(ground.tasks)
        await self._take_over(ground.kernel, rooms, identities)
        rooms.backend.attacher = self._attacher(ground, place, rooms, identities, endpoints)
        self._look_after_kernel(ground, rooms, sources)
        self._look_after_services(ground, rooms)
        self._tell(ground, rooms)
        await self._admit_pods(cni_server)
        startup.started()
        self.condition.doing = ""
        log.info("ready", node=self.settings.node_name, endpoints=len(self.desired.endpoints))
        await self._until_stopped(rooms.engine, ground.tasks)

    async def _stand(self, stack: AsyncExitStack) -> Ground:
        """Programs in the kernel, a directory for state, somebody who knows the cluster."""
        settings = self.settings
        live = LiveSettings(settings)
        kernel = NodeKernel(live.settings)
        stack.callback(kernel.close)
        await check_addresses(settings.health_listen, settings.metrics_listen)
        private_directory(settings.state_dir)
        for path in (settings.api_socket, settings.cni_socket, settings.hubble_socket):
            sockets.clear(path)
        store = await self._store(stack)
        tasks = await stack.enter_async_context(TaskGroup())
        return Ground(live=live, kernel=kernel, store=store, tasks=tasks)

    async def _join(self, ground: Ground) -> Place:
        """Prefixes for pods, links for them, and this node's object in the cluster."""
        settings, kernel = self.settings, ground.kernel
        registration = Registration(ground.store, settings.node_name, kernel.addresses, boot_id())
        fixed = [cidr for cidr in (settings.ipv4_pod_cidr, settings.ipv6_pod_cidr) if cidr]
        node_file = NodeFile(settings.state_dir)
        prefixes = fixed or node_file.load() or await self._or_stop(registration.pod_prefixes())
        place = Place(settings.node_name, prefixes, PodAddresses(prefixes, self.clock), registration)
        node_file.save(list(prefixes))
        kernel.prepare_node(place.gateways)
        place.stay(ground.tasks, ground.store, fixed=bool(fixed))
        return place

    def _build(self, ground: Ground, place: Place) -> Rooms:
        """Restore endpoints; then make brain, hands and eyes, and whoever answers for them."""
        settings, live, kernel = self.settings, ground.live, ground.kernel
        files = EndpointFiles(settings.state_dir)
        self._restore(files, kernel, place.addresses)
        graph = self._graph(live.settings, kernel, place.own)
        state = kernel.follow(self.desired, self.clock.monotonic())
        kernel.update_settings(live.settings)
        state.local_pods.netns_cookie = PodNetworks(self.inputs).cookie
        engine = Engine(graph, state, self.clock)
        observability = Observability(settings, self.inputs, self.desired, kernel, state, self.clock)
        metrics = self._metrics(kernel, graph, observability)
        switches = EndpointSwitches(self.inputs, files)
        backend = AgentBackend(
            live=live,
            switches=switches,
            local_services=self._local_services(ground.tasks),
            apply=lambda changed: self._apply(changed, kernel, graph),
            graph=graph,
            kernel=state,
            hubble=observability.store,
            hubble_doors=observability.doors,
            hubble_exporters=observability.exporters,
            hubble_history=observability.history_numbers,
            metrics=metrics,
            condition=self.condition,
            addresses=place.addresses.usage,
            operator=OperatorWatch(ground.store, self.clock).state,
            kick=engine.kick,
            clock=self.clock,
        )
        return Rooms(
            files=files,
            graph=graph,
            state=state,
            engine=engine,
            observability=observability,
            metrics=metrics,
            switches=switches,
            backend=backend,
        )

    def _metrics(self, kernel: NodeKernel, graph: ControlGraph, observability: Observability) -> AgentMetrics:
        collector = AgentCollector(
            self.inputs,
            self.desired,
            kernel.numbers,
            observability.numbers,
            lambda: self._policy_numbers(graph),
        )
        metrics = AgentMetrics(collector)
        metrics.registry.register(ExportCollector(observability.exporters))
        return metrics

    def _policy_numbers(self, graph: ControlGraph) -> PolicyNumbers:
        return PolicyNumbers(
            revision=int(graph.policy_revision),
            outcomes=self._delays.outcomes if self._delays is not None else {},
            largest_peers=graph.policy.largest_peers(),
            audit=graph.policy.audit,
        )

    def _local_services(self, tasks: TaskGroup) -> LocalServices:
        """Services by hand: those of before, and a file's from now on."""
        local = LocalServices(self.inputs, self.settings.state_dir)
        local.restore()
        if self.settings.services_file is not None:
            follower = FileFollower(self.settings.services_file, local.follow)
            follower.look()
            tasks.spawn("follow services file", follower.run())
        return local

    async def _open_doors(self, stack: AsyncExitStack, rooms: Rooms, tasks: TaskGroup) -> CniServer:
        """Answer questions, and pods' runtimes that they wait; take the kernel's events."""
        settings = self.settings
        api = ApiServer(
            rooms.backend,
            ApiSettings(
                socket=settings.api_socket, health=settings.health_listen, metrics=settings.metrics_listen
            ),
        )
        await api.start()
        stack.push_async_callback(api.stop)
        await rooms.observability.open(stack)
        rooms.observability.start(tasks)
        cni_server = CniServer(rooms.backend, settings.cni_socket)
        await cni_server.start()
        stack.push_async_callback(cni_server.stop)
        rooms.observability.read(stack)
        return cni_server

    def _publishers(self, ground: Ground, rooms: Rooms) -> tuple[EndpointPublisher, StatusPublisher]:
        graph, kernel = rooms.graph, ground.kernel
        endpoints = EndpointPublisher(
            ground.store, self.desired, lambda: kernel.addresses[0], lambda: graph.policy.audit
        )
        statuses = StatusPublisher(
            ground.store,
            self.inputs,
            self.desired,
            self.clock,
            node=self.settings.node_name,
            words=PolicyWords(graph, rooms.state).say if self.settings.policy_node_status else None,
        )
        return endpoints, statuses

    async def _hear(self, ground: Ground) -> Sources:
        """All that the cluster has to say, in full."""
        sources = Sources(
            ground.store,
            self.inputs,
            node=self.settings.node_name,
            own_addresses=frozenset(ground.kernel.addresses),
        )
        self.condition.source_errors = sources.errors
        self.condition.watches = sources.watches
        self.condition.doing = "waiting for the API server's objects"
        sources.start(ground.tasks)
        await self._or_stop(sources.wait_synced())
        return sources

    async def _take_over(self, kernel: NodeKernel, rooms: Rooms, identities: IdentityAllocator) -> None:
        """The first step of all inputs; then what a predecessor left and nobody wants goes."""
        rooms.engine.start()
        await self._settle(rooms.engine, rooms.graph, identities)
        self._delays = self._time_policies(rooms.backend, rooms.metrics)
        rooms.engine.after.append(self._delays.stepped)
        removed = rooms.state.prune() + kernel.prune_links(self.inputs.attachments)
        log.info("restored", endpoints=len(self.inputs.attachments), pruned=removed)

    def _attacher(
        self,
        ground: Ground,
        place: Place,
        rooms: Rooms,
        identities: IdentityAllocator,
        publisher: EndpointPublisher,
    ) -> Attacher:
        """Who serves CNI calls, from now on."""
        attacher = Attacher(
            inputs=self.inputs,
            graph=rooms.graph,
            store=ground.store,
            files=rooms.files,
            addresses=place.addresses,
            links=ground.kernel,
            enforcer=rooms.engine,
            identities=identities,
            publisher=publisher,
            gateways=place.gateways,
            put_pod=self._put_pod,
        )
        attacher.ready = True
        return attacher

    def _look_after_kernel(self, ground: Ground, rooms: Rooms, sources: Sources) -> None:
        """What expires goes, what hardly means what it says is told, and what differs is put right."""
        tasks = ground.tasks
        tasks.spawn("collect flows", ground.kernel.collect(self.settings.conntrack_gc_interval))
        tasks.spawn("review policies", self._review(rooms.engine, rooms.graph))
        self._end_sockets(tasks, rooms.engine, ground.kernel)
        verifying = Verifying(
            Verifier(rooms.state),
            rooms.engine.kick,
            self.clock,
            self.settings.verify_interval,
            sources.lists,
        )
        rooms.backend.verifying = rooms.metrics.collector.verifying = verifying
        tasks.spawn("verify the kernel", verifying.run())

    def _look_after_services(self, ground: Ground, rooms: Rooms) -> None:
        """Problems of Services become Events; load balancers are told whether to come here."""
        events = ServiceEvents(ground.store, self.desired, self.clock, node=self.settings.node_name)
        ground.tasks.spawn("tell problems of services", events.run())
        if self.settings.kube_proxy_replacement:
            ports = HealthPorts(
                self.desired,
                node=self.settings.kube_proxy_healthz,
                healthy=lambda: not self.condition.doing,
                clock=self.clock,
            )
            rooms.engine.after.append(ports.look)
            ground.tasks.spawn("answer health checks", ports.run())

    def _tell(self, ground: Ground, rooms: Rooms) -> None:
        """Drops become Events; what the agent does is told to who asks Hubble."""
        rooms.observability.drop_events.start(ground.tasks, ground.store)
        told = rooms.observability.tell(ground.tasks, lambda: int(rooms.graph.policy_revision))
        rooms.engine.after.append(told)

    async def _store(self, stack: AsyncExitStack) -> Store:
        settings = self.settings
        if settings.source_dir is not None:
            self.condition.source = str(settings.source_dir)
            directory = DirectoryStore(settings.source_dir, settings.state_dir)
            try:
                return await stack.enter_async_context(directory)
            except StoreError as error:
                raise StartError(str(error)) from error
        found = await stack.enter_async_context(KubeStore.discover(settings.kubeconfig, os.environ))
        self.condition.source = found.server
        return found

    def _restore(self, files: EndpointFiles, kernel: NodeKernel, addresses: PodAddresses) -> None:
        """Adopt the endpoints of a predecessor; those without their interface are forgotten."""
        for saved in files.load():
            attachment = saved.attachment
            if not kernel.exists(attachment.host_interface, attachment.ifindex):
                log.info("endpoint is gone with its interface", endpoint=attachment.id)
                files.remove(attachment.id)
                continue
            addresses.restore(attachment)
            self.inputs.attachments.put(attachment)
            self._restore_audit(attachment.id, saved.audit)
        self._restore_audit(HOST_ENDPOINT, files.host_audit())
        self.inputs.attachments.synced = True
        self.inputs.endpoint_options.synced = True

    def _restore_audit(self, endpoint: EndpointId, audit: bool | None) -> None:
        if audit is not None:
            self.inputs.endpoint_options.put(EndpointOptions(endpoint=endpoint, audit=audit))

    def _graph(self, settings: AgentSettings, kernel: NodeKernel, own: Node) -> ControlGraph:
        return ControlGraph(
            self.inputs,
            self.desired,
            GraphConfig(
                node=settings.node_name,
                cluster=settings.cluster_name,
                tunnel=settings.is_tunneled,
                mtu=kernel.mtu,
                mode=PolicyMode(settings.enforcement),
                audit=settings.policy_audit_mode,
                allow_localhost=settings.allow_localhost != "policy",
                cidr_nodes=settings.policy_cidr_match_mode == "nodes",
                identity_change_grace=settings.identity_change_grace,
                host_firewall=settings.host_firewall,
                apiserver_addresses=address_of(self.condition.source),
                own=own,
                services=brain_settings(settings, kernel.local_addresses()),
            ),
            Restored(subjects=restored_subjects(kernel.restored_subjects())),
        )

    def _apply(self, settings: AgentSettings, kernel: NodeKernel, graph: ControlGraph) -> None:
        """Put settings in force that change while the agent runs. Raises OSError."""
        kernel.update_settings(settings)
        graph.policy.mode = PolicyMode(settings.enforcement)
        graph.policy.audit = settings.policy_audit_mode

    def _time_policies(self, backend: AgentBackend, metrics: AgentMetrics) -> PolicyDelays:
        source = "k8s" if self.settings.source_dir is None else "directory"
        observe = metrics.policy_seconds.labels(source=source).observe
        return PolicyDelays(self.inputs, self.desired, backend.realized_revision, observe, self.clock)

    def _end_sockets(self, tasks: TaskGroup, engine: Engine, kernel: NodeKernel) -> None:
        """End sockets whose backend is gone, from now on."""
        if self.settings.kube_proxy_replacement and self.settings.bpf_lb_sock:
            ender = SocketEnder(self.inputs, self.desired, kernel)
            ender.look()
            engine.after.append(ender.look)
            tasks.spawn("end sockets of gone backends", ender.run())

    async def _review(self, engine: Engine, graph: ControlGraph) -> None:
        """Look for rules that hardly mean what they say, a few policies at a time, for ever."""
        states = self.desired.policy_states
        while True:
            await asyncio.sleep(REVIEW_INTERVAL)
            before = states.revision
            graph.policy.review()
            if states.revision != before:
                engine.kick()

    async def _settle(self, engine: Engine, graph: ControlGraph, identities: IdentityAllocator) -> None:
        """The first step; restored endpoints whose identity was collected meanwhile get one anew.

        Without the store the kernel keeps what it has: what is not identified would be pruned.
        """
        for _ in iter(partial(graph.services.advance, SERVICES_AT_ONCE), False):
            await asyncio.sleep(0)
        engine.step()
        backoff = Backoff(limit=5.0)
        for labels in list(graph.endpoints.wanted):
            while True:
                try:
                    await self._or_stop(identities.allocate(labels))
                except Unavailable as error:
                    log.warning("no identity yet", labels=labels.strings(), error=str(error))
                    await self._or_stop(asyncio.sleep(backoff.next()))
                    continue
                except StoreError as error:
                    log.error("no identity", labels=labels.strings(), error=str(error))
                break
        engine.step()

    async def _admit_pods(self, server: CniServer) -> None:
        """Everything a runtime needs to call us, the sign that it may (the conflist) last."""
        settings = self.settings
        queue = settings.state_dir / "deleteQueue"
        if settings.cni_bin_dir is not None:
            install.install_plugin(settings.cni_bin_dir, settings.cni_socket, queue)
        replayed = await delete_queue.replay(queue, server.serve)
        if replayed:
            log.info("deferred deletions served", count=replayed)
        if settings.cni_conf_dir is not None:
            settings.cni_conf_dir.mkdir(parents=True, exist_ok=True)
            path = conflist.write_conflist(
                conflist.ConflistSettings(directory=settings.cni_conf_dir, exclusive=settings.exclusive_cni)
            )
            self.condition.conflist = str(path)

    def _put_pod(self, raw: bytes) -> PodRow:
        row = pods.row(msgspec.Raw(raw))
        self.inputs.pods.put(row)
        return row

    async def _or_stop(self, work: Awaitable[T]) -> T:
        """The result of `work`; raises Stopped when the agent is told to stop first."""
        running = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        waits: set[asyncio.Future[Any]] = {running, stopping}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            raise Stopped
        return running.result()

    async def _until_stopped(self, engine: Engine, tasks: TaskGroup) -> None:
        """Wait for the signal, or for a failure that must end the agent rather than be lived with."""
        assert engine.failure is not None
        stopping = asyncio.ensure_future(self._stop.wait())
        failing = asyncio.ensure_future(tasks.failed.wait())
        waits: set[asyncio.Future[Any]] = {stopping, failing, engine.failure}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        failing.cancel()
        if engine.failure.done():
            engine.failure.result()


def address_of(server: str) -> tuple[str, ...]:
    """The address in the API server's URL, which then is the identity kube-apiserver; none where it has a
    name, or an address that means something else on each machine."""
    try:
        address = ipaddress.ip_address(urlsplit(server).hostname or "")
    except ValueError:
        return ()
    return () if address.is_loopback or address.is_link_local else (str(address),)


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
