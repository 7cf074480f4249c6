"""The answers behind the agent's doors that are not in tables: status, maps, settings, CNI, metrics."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from cilia import __version__
from cilia.api import views
from cilia.api.backend import ApiError, Caller, CniRequest, EndpointReference, Question, not_found
from cilia.api.table_backend import TableBackend
from cilia.api.types import (
    CheckRequest,
    Component,
    ControllerStatus,
    EndpointPolicy,
    Health,
    HistoryStatus,
    HubbleStatus,
    IpamStatus,
    LocalService,
    MapDump,
    MapEntry,
    MapPressure,
    MapView,
    MetricForecast,
    NatUse,
    OptionChange,
    PolicyList,
    PolicyRevision,
    PolicyUsage,
    SelectorView,
    ServiceList,
    Setting,
    StatusResponse,
    VerifyReport,
)
from cilia.apps.agent import exporting, standalone
from cilia.apps.agent.attach import Attacher
from cilia.apps.agent.check import Checker, Config
from cilia.apps.agent.explain import Explainer
from cilia.apps.agent.forecasting import Forecaster
from cilia.apps.agent.hubble_doors import Doors
from cilia.apps.agent.live import ENDPOINT_OPTIONS, NODE_OPTIONS, LiveSettings, option_of, read_change
from cilia.apps.agent.map_words import MapWords
from cilia.apps.agent.metrics import AgentMetrics
from cilia.apps.agent.service_answers import ServiceAnswers
from cilia.apps.agent.settings import AgentSettings
from cilia.apps.agent.switches import EndpointSwitches
from cilia.apps.agent.usage import PolicyAccounts
from cilia.apps.agent.verifying import Verifying
from cilia.control.graph import ControlGraph
from cilia.dataplane.order import KernelState
from cilia.hubble.export.exporters import Exporters
from cilia.hubble.history.numbers import HistoryNumbers
from cilia.hubble.store import FlowStore
from cilia.kit.clock import Clock
from cilia.model.endpoint import HOST_ENDPOINT, Endpoint, EndpointEntry
from cilia.model.explain import CheckReport, Explanation
from cilia.model.ids import EndpointId, SubjectId
from cilia.model.service import Frontend
from cilia.wire import cni

ENFORCE_SECONDS = 10.0
"""How long a change may take to reach the kernel before its author is told that it has not."""
SHOWN_MAPS = (
    "endpoints",
    "ipcache",
    "conntrack",
    "snat",
    "policies",
    "services",
    "service_flows",
    "source_ranges",
)


@dataclasses.dataclass(kw_only=True)
class Condition:
    """What the agent is doing and what is wrong, for status pages; the runtime keeps it."""

    doing: str = "starting"
    """Why the agent isn't ready; empty when it is."""
    source_errors: Callable[[], dict[str, str]] = dict
    """By kind of object: why it can't be heard."""
    watches: Callable[[], list[tuple[str, str]]] = list
    """Each kind of object that is followed, and why it can't be heard (empty when it can)."""
    source: str = ""
    """The API server's address, or the directory."""
    conflist: str = ""
    """Path of the CNI configuration; empty: not written."""


class AgentBackend(TableBackend):
    """Everything the API, the CNI plugin and Prometheus can ask of a running agent."""

    def __init__(
        self,
        *,
        live: LiveSettings,
        switches: EndpointSwitches,
        local_services: standalone.LocalServices,
        apply: Callable[[AgentSettings], None],
        graph: ControlGraph,
        kernel: KernelState,
        hubble: FlowStore,
        hubble_doors: Doors,
        hubble_exporters: Exporters,
        hubble_history: Callable[[], HistoryNumbers | None],
        metrics: AgentMetrics,
        condition: Condition,
        addresses: Callable[[int], tuple[int, int]],
        operator: Callable[[], Awaitable[Component]],
        kick: Callable[[], None],
        clock: Clock,
    ) -> None:
        """`apply` puts settings in force: what it changes in the tables and the brain is stepped on soon."""
        super().__init__(graph.inputs, graph.desired, live.settings.node_name)
        self._live = live
        self._switches = switches
        self._local_services = local_services
        self._apply = apply
        self._graph = graph
        self._kernel = kernel
        self._hubble = hubble
        self._forecaster = Forecaster(hubble)
        self._doors = hubble_doors
        self._exporters = hubble_exporters
        self._history = hubble_history
        self._metrics = metrics
        self._condition = condition
        self._addresses = addresses
        self._operator = operator
        self._kick = kick
        self._clock = clock
        self._started = clock.monotonic()
        self._changed = asyncio.Event()
        settings = live.settings
        self._checker = Checker(
            graph.inputs,
            graph.desired,
            facts=graph.policy.facts,
            flows=hubble,
            config=Config(cluster=settings.cluster_name, host_firewall=settings.host_firewall),
            clock=clock,
        )
        self._services = ServiceAnswers(graph.desired, kernel, clock, enabled=settings.kube_proxy_replacement)
        metrics.collector.port_saturation = self._services.saturation
        self._words = MapWords(kernel, graph.desired, kernel.layout)
        self._accounts = PolicyAccounts(graph, kernel, clock)
        self._explainer = Explainer(
            graph.inputs,
            graph.desired,
            facts=graph.policy.facts,
            read=self._checker.reader,
            revision=lambda: graph.policy.revision,
            flows=hubble,
        )
        self.verifying: Verifying | None = None
        """Set by the runtime when the tables are complete."""
        self.attacher: Attacher | None = None
        """Set by the runtime when pods can be served."""

    @property
    def _settings(self) -> AgentSettings:
        return self._live.settings

    def stepped(self) -> None:
        """The engine made a step: wake those who wait for a revision."""
        self._changed.set()
        self._changed = asyncio.Event()

    def computed_revision(self) -> int:
        return int(self._graph.policy.revision)

    def in_audit(self) -> bool:
        return self._settings.policy_audit_mode

    def problem(self, endpoint: Endpoint) -> str:
        entry = self.desired.endpoint_entries.get(endpoint.id)
        status = self._kernel.subjects.status.get(entry.subject) if entry is not None else None
        return status.error if status is not None else ""

    def realized_revision(self) -> int:
        """All subjects in the kernel means all policies computed are enforced."""
        behind = [
            row.revision - 1 for row in self.desired.subjects if not self._kernel.subjects.done(row.subject)
        ]
        return max(0, min(behind)) if behind else self.computed_revision()

    async def cni(self, request: CniRequest) -> cni.Result | None:
        """Serve the plugin; before the agent is ready a DEL waits on the plugin's disk."""
        if self.attacher is None:
            # To a DEL this code means: leave it with the plugin, which keeps it on disk.
            queued = isinstance(request, cni.Status | cni.Delete)
            code = cni.Code.NOT_AVAILABLE if queued else cni.Code.TRY_AGAIN_LATER
            raise cni.CniError(code, f"the agent is not ready: {self._condition.doing}; try again")
        start = time.perf_counter()
        result = await self.attacher.serve(request)
        if isinstance(request, cni.Add):
            self._metrics.attach_seconds.observe(time.perf_counter() - start)
        return result

    def _hubble_state(self) -> Health:
        if not self._settings.events:
            return Health.DISABLED
        history = self._history()
        troubled = (
            self._doors.troubled
            or exporting.trouble(self._exporters)
            or (history is not None and history.failing)
        )
        return Health.WARNING if troubled else Health.OK

    async def status(self) -> StatusResponse:
        errors = self._kernel.errors()
        ready = not self._condition.doing
        agent = Component(state=Health.OK if ready else Health.FAILURE, msg=self._condition.doing)
        if ready and errors:
            agent = Component(
                state=Health.WARNING, msg=f"{len(errors)} rows are not in the kernel: {errors[0].error}"
            )
        datapath = Component(state=Health.WARNING if errors else Health.OK, msg=agent.msg if errors else "")
        metrics = self._hubble.metrics
        history = self._history()
        sentences = (
            self._doors.sentence,
            self._settings.silence,
            exporting.trouble(self._exporters),
            f"history: {history.problem}" if history is not None and history.problem else "",
        )
        ipv4, ipv6 = self._addresses(4), self._addresses(6)
        return StatusResponse(
            agent=agent,
            kubernetes=self._source(),
            operator=await self._operator(),
            hubble=HubbleStatus(
                state=self._hubble_state(),
                msg="; ".join(filter(None, sentences)),
                current_flows=len(self._hubble),
                max_flows=self._hubble.capacity,
                seen_flows=self._hubble.head,
                lost_events=sum(metrics.lost.values()),
                exporters=exporting.shown(self._exporters),
                history=None if history is None else _history(history),
            ),
            datapath=datapath,
            cni_file=Component(
                state=Health.OK if self._condition.conflist else Health.DISABLED,
                msg=self._condition.conflist,
            ),
            ipam=IpamStatus(ipv4_used=ipv4[0], ipv4_total=ipv4[1], ipv6_used=ipv6[0], ipv6_total=ipv6[1]),
            controllers=tuple(
                ControllerStatus(
                    name=f"watch {kind}",
                    consecutive_failure_count=1 if error else 0,
                    last_failure_msg=error,
                )
                for kind, error in self._condition.watches()
            ),
            endpoints=dict(Counter(row.state.value for row in self.desired.endpoints)),
            maps=tuple(
                MapPressure(name=use.name, used=use.used, size=use.max_entries)
                for use in self._kernel.map_uses()
                if use.name in SHOWN_MAPS and use.used is not None
            ),
            node=self.node,
            version=__version__,
            uptime_seconds=self._clock.monotonic() - self._started,
            policy=self._policy_component(),
            services=self._services.component(),
            nat=self._services.nat_component(),
            kernel=self._kernel_component(),
            service_count=len(self.desired.service_entries),
            policy_revision=self.realized_revision(),
            policy_count=len(self.inputs.policies),
            identity_count=len(self.desired.identities),
            node_count=len(self.inputs.nodes),
        )

    def _policy_component(self) -> Component:
        """What is not usual about policy, for `cilia status`."""
        settings = self._settings
        refused = sum(not row.valid for row in self.desired.policy_states)
        noting = sum(row.audit for row in self.desired.endpoints)
        alarming = [
            ("enforcement is never: no policy counts", settings.enforcement == "never"),
            ("audit mode: what policies deny passes and is noted", settings.policy_audit_mode),
            (f"{noting} endpoints in audit mode", noting > 0 and not settings.policy_audit_mode),
            (f"{refused} refused (`cilia policy get`)", refused > 0),
        ]
        telling = [
            ("every endpoint is isolated (enforcement always)", settings.enforcement == "always"),
            ("denials are answered", settings.policy_deny_response != "none"),
            ("host firewall", settings.host_firewall),
        ]
        return Component(
            state=Health.WARNING if any(holds for _, holds in alarming) else Health.OK,
            msg=", ".join(words for words, holds in alarming + telling if holds),
        )

    def _kernel_component(self) -> Component:
        if self.verifying is None:
            return Component(state=Health.DISABLED, msg="not compared with what is intended yet")
        found = self.verifying.differences
        if found:
            return Component(
                state=Health.WARNING, msg=f"{found} differences from what is intended (`cilia verify`)"
            )
        return Component(state=Health.OK, msg=f"as intended {self.verifying.since_check():.0f} seconds ago")

    def _source(self) -> Component:
        errors = self._condition.source_errors()
        if errors:
            kind, error = next(iter(errors.items()))
            return Component(state=Health.WARNING, msg=f"{kind}: {error}")
        return Component(state=Health.OK, msg=self._condition.source)

    async def wait_policy(self, revision: int, timeout: float) -> PolicyRevision:
        deadline = self._clock.monotonic() + timeout
        while True:
            realized = self.realized_revision()
            left = deadline - self._clock.monotonic()
            if realized >= revision or left <= 0:
                return PolicyRevision(realized=realized, reached=realized >= revision)
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                continue

    async def endpoint_policy(self, reference: EndpointReference) -> EndpointPolicy:
        row = self._endpoint(reference)
        policy = await super().endpoint_policy(reference)
        subject = self._policy(row)
        return await self._accounts.add_to(policy, views.ordered(subject.entries) if subject else ())

    async def policies(self) -> PolicyList:
        found = await super().policies()
        concerns = self._graph.policy.concerns()
        subjects = Counter(row.subject for row in self.desired.endpoint_entries)
        return msgspec.structs.replace(
            found,
            policies=tuple(
                msgspec.structs.replace(
                    view, endpoints=sum(subjects[s] for s in concern.subjects), audit=concern.noted
                )
                if (concern := concerns.get((view.kind, view.namespace, view.name))) is not None
                else view
                for view in found.policies
            ),
        )

    async def policy_usage(self) -> PolicyUsage:
        return await self._accounts.of_rules()

    async def selectors(self) -> list[SelectorView]:
        return views.selectors(self._graph.policy.peers(), self._graph.policy.facts().sections)

    async def explain(self, question: Question) -> Explanation:
        return await self._explainer.explain(question)

    async def check(self, request: CheckRequest) -> CheckReport:
        return await self._checker.check(request)

    async def metrics_forecast(self, metrics: str) -> list[MetricForecast]:
        return await self._forecaster.forecast(metrics)

    async def maps(self) -> list[MapView]:
        return [
            MapView(
                name=use.name,
                type=use.type,
                path=str(self._settings.bpf_prefix),
                key_size=use.key_size,
                value_size=use.value_size,
                max_entries=use.max_entries,
                entries=use.used,
            )
            for use in self._kernel.map_uses()
        ]

    async def map(self, name: str, limit: int, *, raw: bool = False) -> MapDump:
        def elements() -> list[dict[str, Any]]:
            found = self._kernel.dump(name, limit + 1)
            return found if raw else self._words.tell(name, found)

        try:
            self._kernel.map(name)
        except KeyError:
            raise not_found("map", name, "`cilia map list`") from None
        rows = await asyncio.to_thread(elements)
        return MapDump(
            name=name,
            entries=tuple(MapEntry(key=row["key"], value=row["value"]) for row in rows[:limit]),
            truncated=len(rows) > limit,
        )

    async def settings(self) -> list[Setting]:
        settings = self._settings
        return [
            Setting(
                name=field.name.replace("_", "-"),
                value=_plain(getattr(settings, field.name)),
                source=self._live.source(field.name),
                option=option.name if (option := option_of(field.name)) else "",
            )
            for field in dataclasses.fields(settings)
            if field.name != "sources"
        ]

    async def change_settings(self, change: OptionChange, caller: Caller) -> list[Setting]:
        wanted = read_change(change, NODE_OPTIONS)
        self._require_ready()
        try:
            self._live.change(wanted, caller)
        except OSError as error:
            raise _not_saved(error) from error
        try:
            self._apply(self._settings)
        except OSError as error:
            raise ApiError(
                503, f"It is saved, but the kernel refuses it ({error.strerror or error}); restart the agent."
            ) from error
        await self._enforced(lambda: [row.subject for row in self.desired.subjects])
        return await self.settings()

    async def verify(self, *, repair: bool) -> VerifyReport:
        if self.verifying is None:
            self._require_ready()
            raise ApiError(503, "The agent is not ready yet; try again in a moment.")
        try:
            return await self.verifying.verify(repair=repair)
        except OSError as error:
            raise ApiError(503, f"It can't be compared ({error.strerror or error}); try again.") from error

    def number(self, frontend: Frontend) -> int:
        return self._kernel.service_maps.id_of(frontend)

    def realization(self, frontend: Frontend) -> tuple[str, str]:
        return self._services.realization(frontend)

    async def service(self, reference: str) -> ServiceList:
        found = await super().service(reference)
        return self._services.with_kernel(found)

    async def nat(self) -> NatUse:
        return self._services.nat()

    async def local_services(self) -> list[LocalService]:
        return list(self._local_services.all())

    async def put_local_service(self, service: LocalService, caller: Caller) -> LocalService:
        try:
            return self._local_services.put(service, caller)
        except standalone.Refused as error:
            raise ApiError(400, f"{error}.") from error
        except OSError as error:
            raise _not_saved(error) from error

    async def delete_local_service(self, frontend: str, caller: Caller) -> list[LocalService]:
        try:
            found = self._local_services.delete(standalone.parse_frontend(frontend), caller)
        except standalone.Refused as error:
            raise ApiError(400, f"{error}.") from error
        except OSError as error:
            raise _not_saved(error) from error
        if not found:
            raise not_found("service by hand at", frontend, "`cilia service list --type Standalone`")
        return await self.local_services()

    async def endpoint_settings(self, reference: EndpointReference) -> list[Setting]:
        return self._switches.settings(self._endpoint(reference), self._settings)

    async def change_endpoint(
        self, reference: EndpointReference, change: OptionChange, caller: Caller
    ) -> list[Setting]:
        wanted = read_change(change, ENDPOINT_OPTIONS)
        if self._condition.doing and reference.id == HOST_ENDPOINT and wanted["audit"]:
            return self._open_host(caller)
        endpoint = self._endpoint(reference)
        self._require_ready()
        try:
            self._switches.change(endpoint, wanted, caller)
        except OSError as error:
            raise _not_saved(error) from error
        await self._enforced(lambda: [row.subject for row in self._entries(endpoint.id)])
        return await self.endpoint_settings(reference)

    def _open_host(self, caller: Caller) -> list[Setting]:
        """A host that a predecessor's policy closed too much keeps its agent from hearing of a better one: it
        is opened at once, and in audit when the agent is ready. Raises ApiError 503."""
        self._kernel.settings.host_policy = False
        try:
            return self._switches.open_host(caller)
        except OSError as error:
            raise ApiError(
                503,
                f"The host is open, but that can't be saved ({error.strerror or error}): until the agent "
                "ends; make room in its state directory and say so again.",
            ) from error

    def _entries(self, identifier: EndpointId) -> list[EndpointEntry]:
        row = self.desired.endpoint_entries.get(identifier)
        return [row] if row is not None else []

    def _require_ready(self) -> None:
        if self._condition.doing:
            raise ApiError(503, f"The agent is {self._condition.doing}; try again when it is ready.")

    async def _enforced(self, subjects: Callable[[], Iterable[SubjectId]]) -> None:
        """Have a step made and return when the kernel judges all these subjects by what it computed.

        Raises ApiError 503 with the reason when that takes too long.
        """
        deadline = self._clock.monotonic() + ENFORCE_SECONDS
        changed = self._changed
        self._kick()
        while True:
            left = deadline - self._clock.monotonic()
            try:
                await asyncio.wait_for(changed.wait(), max(0.0, left))
            except TimeoutError:
                errors = self._kernel.errors()
                reason = errors[0].error if errors else "the agent is busy"
                raise ApiError(
                    503, f"It is saved, but not every endpoint is judged by it yet: {reason}."
                ) from None
            changed = self._changed
            if all(self._kernel.subjects.done(subject) for subject in subjects()):
                return

    async def metrics(self) -> bytes:
        return self._metrics.text()


def _plain(value: Any) -> Any:
    """A setting's value as JSON has it."""
    return value if isinstance(value, bool | int | float) else "" if value is None else str(value)


def _not_saved(error: OSError) -> ApiError:
    return ApiError(
        503,
        f"The change can't be saved ({error.strerror or error}) and is not in force; make room in the "
        "agent's state directory.",
    )


def _history(numbers: HistoryNumbers) -> HistoryStatus:
    return HistoryStatus(
        files=numbers.files,
        bytes=numbers.bytes,
        flows=numbers.rows,
        oldest=(numbers.oldest or 0) / 1e9,
        lost_flows=numbers.lost,
        problem=numbers.problem,
    )
