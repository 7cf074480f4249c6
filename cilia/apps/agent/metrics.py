"""Prometheus metrics under the names Cilium's users have on their dashboards.

Everything is read from tables and per-CPU counters when somebody asks; nothing is counted on the hot
path. Source of the names: Cilium's metrics reference.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from cilia import __version__
from cilia.api.service_views import is_served
from cilia.api.views import enforcement
from cilia.apps.agent.verifying import Verifying
from cilia.hubble.history.numbers import HistoryNumbers
from cilia.model.drop_reasons import drop_text
from cilia.schema import Desired, Inputs

DIRECTIONS = {0: "UNKNOWN", 1: "INGRESS", 2: "EGRESS"}


@dataclass(frozen=True)
class KernelNumbers:
    """What is asked of the kernel for one scrape."""

    counters: Iterable[tuple[int, int, int, int]] = ()
    """(drop reason or 0, direction, packets, bytes), summed over CPUs."""
    pressure: Mapping[str, float] = field(default_factory=dict)
    """Used share of each map, 0..1."""
    held_back: Mapping[str, int] = field(default_factory=dict)
    """Events that limits kept from being reported, by kind."""


@dataclass(frozen=True)
class HubbleNumbers:
    """What is asked of Hubble for one scrape."""

    flows: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    """Events lost, by where: perf_event_ring_buffer, hubble_ring_buffer."""
    certificate_seconds: float | None = None
    """Until the server's certificate ends, negative when it has; None: there is none."""
    refused_handshakes: int = 0
    """TLS clients refused."""
    history: HistoryNumbers | None = None
    """Of the files beyond memory; None: there are none."""
    drop_events: Mapping[str, int] | None = None
    """Notices written (told) and lost, and drops without one (suppressed); None: drops are not told."""


@dataclass(frozen=True, kw_only=True)
class PolicyNumbers:
    """What is asked of the policy engine for one scrape."""

    revision: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Changes by what became of them: success, fail."""
    largest_peers: Mapping[str, int] = field(default_factory=dict)
    """Identities that the widest peer of each class means."""
    audit: bool = False
    """Denials on this node are noted only."""


class AgentCollector(Collector):
    """Tables, kernel and Hubble as metric families."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        kernel: Callable[[], KernelNumbers],
        hubble: Callable[[], HubbleNumbers],
        policy: Callable[[], PolicyNumbers],
    ) -> None:
        self._inputs = inputs
        self._desired = desired
        self._kernel = kernel
        self._hubble = hubble
        self._policy = policy
        self.verifying: Verifying | None = None
        """Set by the runtime when the tables are complete."""
        self.port_saturation: Callable[[], Mapping[str, float]] = dict
        """By family: the largest share, 0..1, of ports that translations took towards one peer."""

    def collect(self) -> Iterator[Metric]:
        yield from self._tables()
        yield from self._policies()
        yield from self._services()
        yield from self._datapath()
        yield from self._verification()
        yield from self._flows()

    def _tables(self) -> Iterator[Metric]:
        version = GaugeMetricFamily("cilium_version", "Version of the agent", labels=["version"])
        version.add_metric([__version__], 1)
        yield version
        states = GaugeMetricFamily("cilium_endpoint_state", "Endpoints by state", labels=["endpoint_state"])
        for state, number in Tally(row.state.value for row in self._desired.endpoints).items():
            states.add_metric([state], number)
        yield states
        yield _gauge("cilium_endpoint", "Endpoints managed by this agent", len(self._desired.endpoints))
        yield _gauge("cilium_nodes_all_num", "Nodes known", len(self._inputs.nodes))
        yield _gauge("cilium_ipcache_entries", "Prefixes with an identity", len(self._desired.ipcache))
        identities = GaugeMetricFamily("cilium_identity", "Identities known, by type", labels=["type"])
        kinds = Tally(
            "reserved" if row.reserved else "node_local" if row.local else "cluster_local"
            for row in self._desired.identities
        )
        for kind, number in kinds.items():
            identities.add_metric([kind], number)
        yield identities
        addresses = GaugeMetricFamily("cilium_ip_addresses", "Allocated addresses", labels=["family"])
        for family, name in ((0, "ipv4"), (1, "ipv6")):
            held = sum(bool((row.ipv4, row.ipv6)[family]) for row in self._inputs.attachments)
            addresses.add_metric([name], held)
        yield addresses

    def _policies(self) -> Iterator[Metric]:
        numbers = self._policy()
        yield _gauge("cilium_policy", "Policies loaded", len(self._inputs.policies))
        yield _gauge("cilium_policy_max_revision", "Highest policy revision", numbers.revision)
        states = self._desired.policy_states
        refused = sum(not row.valid for row in states)
        yield _gauge("cilium_policy_refused", "Policies that can't be enforced as written", refused)
        warned = sum(bool(row.warnings) for row in states)
        yield _gauge("cilium_policy_warned", "Policies with rules that can't match what they name", warned)
        subjects = self._desired.subjects
        yield _gauge("cilium_policy_subjects", "Distinct sets of policy entries in force", len(subjects))
        changes = CounterMetricFamily("cilium_policy_change", "Changes of policies", labels=["outcome"])
        for outcome, number in numbers.outcomes.items():
            changes.add_metric([outcome], number)
        yield changes
        widest = GaugeMetricFamily(
            "cilium_policy_selector_match_count_max",
            "Identities that the widest peer of a rule in force here means",
            labels=["class"],
        )
        for kind, number in numbers.largest_peers.items():
            widest.add_metric([kind], number)
        yield widest
        enforced = GaugeMetricFamily(
            "cilium_policy_endpoint_enforcement_status",
            "Endpoints by the directions in which policy isolates them",
            labels=["enforcement"],
        )
        for words, number in self._enforcement(numbers.audit).items():
            enforced.add_metric([words], number)
        yield enforced

    def _enforcement(self, audit: bool) -> Tally[str]:
        """Endpoints by none, ingress, egress or both, with "audit-" before it where it is noted only."""
        found: Tally[str] = Tally()
        for entry in self._desired.endpoint_entries:
            found[enforcement(self._desired.subjects.get(entry.subject), audit=audit)] += 1
        return found

    def _services(self) -> Iterator[Metric]:
        entries, states = self._desired.service_entries, self._desired.service_states
        idle = sum(not is_served(entry.internal) for entry in entries)
        wrong = sum(bool(row.problems) for row in states)
        yield _gauge("cilium_service_frontends", "Addresses and ports that stand for others", len(entries))
        yield _gauge("cilium_service_frontends_without_backends", "Of these, those nobody serves", idle)
        yield _gauge("cilium_service_problems", "Services and the like with parts that have no effect", wrong)
        ports = GaugeMetricFamily(
            "cilium_nat_endpoint_max_connection",
            "Percent of the ports for translated sources in use towards the most used peer",
            labels=["family"],
        )
        for family, share in self.port_saturation().items():
            ports.add_metric([family], 100 * share)
        yield ports

    def _datapath(self) -> Iterator[Metric]:
        numbers = self._kernel()
        labels = ["reason", "direction"]
        dropped = CounterMetricFamily("cilium_drop_count", "Packets dropped", labels=labels)
        dropped_bytes = CounterMetricFamily("cilium_drop_bytes", "Bytes dropped", labels=labels)
        passed = CounterMetricFamily("cilium_forward_count", "Packets forwarded", labels=["direction"])
        passed_bytes = CounterMetricFamily("cilium_forward_bytes", "Bytes forwarded", labels=["direction"])
        for reason, direction, packets, octets in numbers.counters:
            way = DIRECTIONS.get(direction, "UNKNOWN")
            if not reason:
                passed.add_metric([way], packets)
                passed_bytes.add_metric([way], octets)
            else:
                name = drop_text(reason)
                dropped.add_metric([name, way], packets)
                dropped_bytes.add_metric([name, way], octets)
        yield from (dropped, dropped_bytes, passed, passed_bytes)
        pressure = GaugeMetricFamily(
            "cilium_bpf_map_pressure", "Used share of a kernel map", labels=["map_name"]
        )
        for name, share in numbers.pressure.items():
            pressure.add_metric([name], share)
        yield pressure
        held_back = CounterMetricFamily(
            "cilia_events_held_back", "Events that limits kept from being reported", labels=["kind"]
        )
        for kind, number in numbers.held_back.items():
            held_back.add_metric([kind], number)
        yield held_back

    def _verification(self) -> Iterator[Metric]:
        if self.verifying is None:
            return
        since, checked = self.verifying.since_difference(), self.verifying.since_check()
        yield _gauge("cilium_verify_differences", "Of the last round", self.verifying.differences)
        maps = GaugeMetricFamily("cilium_verify_map_differences", "Of the last round", labels=["map_name"])
        for name, number in self.verifying.by_map.items():
            maps.add_metric([name], number)
        yield maps
        yield _gauge("cilium_verify_seconds_since_difference", "Since the kernel was found wrong", since)
        yield _gauge("cilium_verify_seconds_since_check", "Since the kernel was compared", checked)

    def _flows(self) -> Iterator[Metric]:
        numbers = self._hubble()
        flows = CounterMetricFamily("cilia_hubble_flows", "Flow events stored")
        flows.add_metric([], numbers.flows)
        yield flows
        lost = CounterMetricFamily("cilia_hubble_lost_events", "Events lost", labels=["source"])
        for source, number in numbers.lost.items():
            lost.add_metric([source], number)
        yield lost
        if numbers.certificate_seconds is not None:
            text = "Seconds until Hubble's certificate ends"
            yield _gauge("cilia_hubble_certificate_seconds_left", text, numbers.certificate_seconds)
            refused = CounterMetricFamily("cilia_hubble_tls_refused", "Clients refused in their handshake")
            refused.add_metric([], numbers.refused_handshakes)
            yield refused
        if numbers.history is not None:
            yield from _history(numbers.history)
        if numbers.drop_events is not None:
            told = CounterMetricFamily("cilia_hubble_drop_events", "Notices about drops", labels=["outcome"])
            for outcome, number in numbers.drop_events.items():
                told.add_metric([outcome], number)
            yield told


def _history(numbers: HistoryNumbers) -> Iterator[Metric]:
    for name, text, value in (
        ("files", "Sealed files of flows", numbers.files),
        ("bytes", "Size of the sealed files of flows", numbers.bytes),
        ("flows", "Flows in sealed files", numbers.rows),
        ("oldest_timestamp_seconds", "Time of the oldest flow in sealed files", (numbers.oldest or 0) / 1e9),
        ("failing", "1 while flows can't be sealed", int(numbers.failing)),
    ):
        yield _gauge(f"cilia_hubble_history_{name}", text, value)
    for name, text, count in (
        ("lost_flows", "Flows overwritten before they were sealed", numbers.lost),
        ("write_failures", "Attempts to seal flows that failed and were made again", numbers.failures),
    ):
        family = CounterMetricFamily(f"cilia_hubble_history_{name}", text)
        family.add_metric([], count)
        yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family


class AgentMetrics:
    """The registry of one agent, and the histograms the engine feeds."""

    def __init__(self, collector: AgentCollector) -> None:
        self.collector = collector
        self.registry = CollectorRegistry()
        self.registry.register(collector)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.attach_seconds = Histogram(
            "cilium_endpoint_attach_seconds",
            "CNI ADD from request to answer",
            buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15, 0.5, 2.0),
            registry=self.registry,
        )
        self.policy_seconds = Histogram(
            "cilium_policy_implementation_delay",
            "From a policy change seen to the kernel enforcing it",
            ["source"],
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.5),
            registry=self.registry,
        )

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
