"""CiliumEndpoint, version v2: what a node says about one of its pods. Named and owned like the pod.

Source: the CRD schema of cilium.io/v2 and the agent's REST API models, whose dashed names it carries.
"""

from typing import Literal

from msgspec import field

from cilia.model.resources.base import AddressPair as AddressPair
from cilia.model.resources.base import Dashed, EncryptionSpec, Int64, ObjectMeta

EndpointState = Literal[
    "creating",
    "waiting-for-identity",
    "not-ready",
    "waiting-to-regenerate",
    "regenerating",
    "restoring",
    "ready",
    "disconnecting",
    "disconnected",
    "invalid",
]


class ControllerConfiguration(Dashed, frozen=True, kw_only=True):
    """How a controller repeats; intervals in nanoseconds."""

    error_retry: bool | None = None
    error_retry_base: Int64 | None = None
    interval: Int64 | None = None


class ControllerCounters(Dashed, frozen=True, kw_only=True):
    """How often a controller ran and failed."""

    consecutive_failure_count: Int64 | None = None
    failure_count: Int64 | None = None
    last_failure_msg: str | None = None
    last_failure_timestamp: str | None = None
    last_success_timestamp: str | None = None
    success_count: Int64 | None = None


class ControllerStatus(Dashed, frozen=True, kw_only=True):
    """A repeated task of an endpoint."""

    configuration: ControllerConfiguration | None = None
    name: str | None = None
    status: ControllerCounters | None = None
    uuid: str | None = None


class ExternalIdentifiers(Dashed, frozen=True, kw_only=True):
    """How others name the endpoint."""

    cni_attachment_id: str | None = None
    container_id: str | None = None
    container_name: str | None = None
    docker_endpoint_id: str | None = None
    docker_network_id: str | None = None
    k8s_namespace: str | None = None
    k8s_pod_name: str | None = None
    pod_name: str | None = None


class EndpointHealth(Dashed, frozen=True, kw_only=True):
    """Health of the endpoint's parts: OK, Bootstrap, Pending, Warning, Failure or Disabled."""

    bpf: str | None = None
    connected: bool | None = None
    overall_health: str | None = field(default=None, name="overallHealth")
    policy: str | None = None


class EndpointIdentity(Dashed, frozen=True, kw_only=True):
    """The security identity of the endpoint and its labels with source prefix."""

    id: Int64 | None = None
    labels: tuple[str, ...] | None = None


class LogEntry(Dashed, frozen=True, kw_only=True):
    """A change of the endpoint's state."""

    code: str | None = None
    message: str | None = None
    state: str | None = None
    timestamp: str | None = None


class NamedPort(Dashed, frozen=True, kw_only=True):
    """A container port that has a name."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class EndpointNetworking(Dashed, frozen=True, kw_only=True):
    """The endpoint's addresses and its node's address."""

    addressing: tuple[AddressPair, ...]
    node: str | None = None


class AllowedIdentity(Dashed, frozen=True, kw_only=True):
    """A peer, by identity, port and protocol number."""

    dest_port: int | None = None
    identity: Int64 | None = None
    identity_labels: dict[str, str] | None = None
    protocol: int | None = None


class PolicyDirection(Dashed, frozen=True, kw_only=True):
    """Enforcement in one direction."""

    enforcing: bool
    state: str | None = None
    allowed: tuple[AllowedIdentity, ...] | None = None
    denied: tuple[AllowedIdentity, ...] | None = None
    adding: tuple[AllowedIdentity, ...] | None = None
    removing: tuple[AllowedIdentity, ...] | None = None


class EndpointPolicy(Dashed, frozen=True, kw_only=True):
    """Enforcement in both directions."""

    ingress: PolicyDirection | None = None
    egress: PolicyDirection | None = None


class EndpointStatus(Dashed, frozen=True, kw_only=True):
    """The state of an endpoint as its agent sees it."""

    id: Int64 | None = None
    controllers: tuple[ControllerStatus, ...] | None = None
    external_identifiers: ExternalIdentifiers | None = None
    health: EndpointHealth | None = None
    identity: EndpointIdentity | None = None
    log: tuple[LogEntry, ...] | None = None
    networking: EndpointNetworking | None = None
    encryption: EncryptionSpec | None = None
    policy: EndpointPolicy | None = None
    visibility_policy_status: str | None = None
    state: EndpointState | None = None
    named_ports: tuple[NamedPort, ...] | None = None


class CiliumEndpoint(Dashed, frozen=True, kw_only=True):
    """The status of one pod's endpoint."""

    metadata: ObjectMeta
    status: EndpointStatus | None = None
