"""What the relay counts, and its text for Prometheus.

`hubble_relay_pool_peer_connection_status` is named and labelled as in Cilium's relay, whose dashboards ask
for it; the others are of our own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.relay.pool import Pool
from cilia.relay.scan import is_flow

STATES = ("IDLE", "CONNECTING", "READY", "TRANSIENT_FAILURE", "SHUTDOWN", "NIL_CONNECTION")
"""Of a gRPC connection, in gRPC's words, and the one for none; all are told, also those with no peer."""


class Numbers:
    """Counters of one relay."""

    def __init__(self) -> None:
        self.clients = 0
        """GetFlows calls being answered."""
        self.flows = 0
        """Flows sent to clients."""
        self.lost: Counter[str] = Counter()
        """Events that nodes could not hand over, by source, as clients were told."""
        self.refused: Counter[str] = Counter()
        """Calls refused, by the name of their status."""

    def count(self, messages: Sequence[bytes]) -> None:
        """Add what goes out to a client."""
        flows = sum(message[:1] == b"\n" for message in messages)
        self.flows += flows
        if flows < len(messages):
            for message in messages:
                if message[:1] != b"\n":
                    self._count_other(message)

    def _count_other(self, message: bytes) -> None:
        if is_flow(message):
            self.flows += 1
            return
        try:
            response = observer_pb2.GetFlowsResponse.FromString(message)
        except DecodeError:
            return
        if response.HasField("lost_events"):
            told = response.lost_events
            known = told.source in flow_pb2.LostEventSource.values()
            source = flow_pb2.LostEventSource.Name(told.source) if known else "UNKNOWN_LOST_EVENT_SOURCE"
            self.lost[source.lower()] += told.num_events_lost


class RelayCollector(Collector):
    """Pool and counters as metric families."""

    def __init__(self, pool: Pool, numbers: Numbers) -> None:
        self._pool = pool
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "hubble_relay_pool_peer_connection_status",
            "Peers by state of their connection",
            labels=["status"],
        )
        counted = Counter(link.state for link in self._pool.links())
        for state in STATES:
            states.add_metric([state], counted[state])
        yield states
        numbers = self._numbers
        yield GaugeMetricFamily("hubble_relay_clients", "GetFlows calls being answered", numbers.clients)
        yield CounterMetricFamily("hubble_relay_flows", "Flows sent to clients", numbers.flows)
        for name, text, label, counts in (
            ("hubble_relay_lost_events", "Events nodes lost, as clients were told", "source", numbers.lost),
            ("hubble_relay_refused_calls", "Calls refused", "code", numbers.refused),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for value, count in sorted(counts.items()):
                family.add_metric([value], count)
            yield family


class RelayText:
    """The whole text, for the server of metrics."""

    def __init__(self, pool: Pool, numbers: Numbers) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(RelayCollector(pool, numbers))

    def pieces(self, _open_metrics: bool) -> Iterator[bytes]:
        """The text, in one piece: it is short."""
        yield generate_latest(self._registry)
