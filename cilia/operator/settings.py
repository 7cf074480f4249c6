"""What one may set about an operator."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ElectionSettings:
    """Leader election; all times in seconds. The names and defaults are those of Kubernetes components."""

    identity: str
    """Who we are in the lease: unique among operators."""
    name: str = "cilium-operator-resource-lock"
    """Name of the Lease; operators with one name share one leadership."""
    namespace: str = "kube-system"
    lease_duration: float = 15.0
    """How long others wait after the last renewal they saw before they take over."""
    renew_deadline: float = 10.0
    """How long the leader goes on without a renewal; must be shorter, so that two never lead."""
    retry_period: float = 2.0
    """Between two attempts to acquire or renew."""

    def __post_init__(self) -> None:
        if not self.lease_duration > self.renew_deadline > self.retry_period > 0:
            raise ValueError(
                "leader election needs lease duration > renew deadline > retry period > 0, not "
                f"{self.lease_duration:g}, {self.renew_deadline:g}, {self.retry_period:g}"
            )


@dataclass(frozen=True, kw_only=True)
class GarbageSettings:
    """Garbage collection; all times in seconds."""

    endpoint_interval: float = 300.0
    """Between two looks for CiliumEndpoints without pod or node; 0: never."""
    identity_interval: float = 900.0
    """Between two looks for unused CiliumIdentities; 0: never."""
    identity_timeout: float = 1800.0
    """How long an identity stays unused before it is deleted."""
    limit: int = 2500
    """Deletions of one kind in one look, so that a mistake or a mass event does not flood the API server."""
