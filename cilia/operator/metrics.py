"""The operator's numbers, under the names Cilium's dashboards read."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """One process's numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._nodes = self._gauge("ipam_nodes", "Nodes by how well they are supplied.", "category")
        self._prefixes = self._gauge(
            "ipam_available_pod_cidrs", "Prefixes left for nodes in the cluster pools.", "family"
        )
        self._identities = self._gauge("identity_gc_entries", "Identities at the last look.", "status")
        self._runs = self._gauge("identity_gc_runs", "Looks for unused identities.", "outcome")
        self._latency = self._gauge("identity_gc_latency", "Seconds the last look took.", "outcome")
        self._endpoints = Counter(
            "cilium_operator_endpoint_gc_objects",
            "Endpoints deleted as garbage.",
            ["outcome"],
            registry=self.registry,
        )
        self._leading = self._gauge("leading", "Whether this operator leads.")

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"cilium_operator_{name}", text, labels, registry=self.registry)

    def nodes(self, *, total: int, in_deficit: int) -> None:
        """Note the supply of the nodes."""
        self._nodes.labels("total").set(total)
        self._nodes.labels("in-deficit").set(in_deficit)

    def free_prefixes(self, version: int, count: int) -> None:
        """Note what is left of a family."""
        self._prefixes.labels(f"ipv{version}").set(count)

    def identities(self, *, alive: int, deleted: int) -> None:
        """Note what a look found."""
        self._identities.labels("alive").set(alive)
        self._identities.labels("deleted").set(deleted)

    def identity_run(self, succeeded: bool, seconds: float) -> None:
        """Count a look for identities."""
        outcome = "success" if succeeded else "fail"
        self._runs.labels(outcome).inc()
        self._latency.labels(outcome).set(seconds)

    def endpoint_collected(self, succeeded: bool) -> None:
        """Count a deletion of an endpoint."""
        self._endpoints.labels("success" if succeeded else "fail").inc()

    def leading(self, leads: bool) -> None:
        """Note whether this operator leads."""
        self._leading.set(leads)

    def text(self) -> bytes:
        """Return all numbers in Prometheus' text format."""
        return generate_latest(self.registry)
