"""The built-in kinds Cilia reads, reduced to the fields it needs; unknown fields are other people's and
ignored.

Source: Kubernetes API reference, core/v1, coordination.k8s.io/v1, discovery.k8s.io/v1.
"""

from cilia.model.resources.base import Condition, Object, ObjectMeta


class Namespace(Object, frozen=True, kw_only=True):
    """core/v1 Namespace: only its labels matter."""

    metadata: ObjectMeta = ObjectMeta()


class ContainerPort(Object, frozen=True, kw_only=True):
    """A port a container names."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"
    host_port: int | None = None


class Container(Object, frozen=True, kw_only=True):
    """A container as far as named ports go."""

    name: str = ""
    ports: tuple[ContainerPort, ...] | None = None
    restart_policy: str | None = None


class PodIP(Object, frozen=True, kw_only=True):
    """One address of a pod, as text."""

    ip: str = ""


class PodSpec(Object, frozen=True, kw_only=True):
    """What a pod asks for. `node_name` is empty until the pod is scheduled."""

    node_name: str = ""
    service_account_name: str = ""
    host_network: bool = False
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] | None = None


class PodStatus(Object, frozen=True, kw_only=True):
    """What a pod became: phase is Pending, Running, Succeeded, Failed or Unknown."""

    phase: str = ""
    pod_ip: str = ""
    pod_ips: tuple[PodIP, ...] | None = None
    host_ip: str = ""


class Pod(Object, frozen=True, kw_only=True):
    """core/v1 Pod."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class NodeAddress(Object, frozen=True, kw_only=True):
    """An address of a node; type is InternalIP, ExternalIP, Hostname, ..."""

    type: str
    address: str


class NodeSpec(Object, frozen=True, kw_only=True):
    """core/v1 NodeSpec."""

    pod_cidr: str = ""
    pod_cidrs: tuple[str, ...] | None = None
    unschedulable: bool = False


class NodeStatus(Object, frozen=True, kw_only=True):
    """core/v1 NodeStatus."""

    addresses: tuple[NodeAddress, ...] | None = None
    conditions: tuple[Condition, ...] | None = None


class Node(Object, frozen=True, kw_only=True):
    """core/v1 Node."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ServiceSpec(Object, frozen=True, kw_only=True):
    """core/v1 ServiceSpec as far as policies go: which pods stand behind it."""

    selector: dict[str, str] | None = None
    type: str = "ClusterIP"


class Service(Object, frozen=True, kw_only=True):
    """core/v1 Service."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceSpec = ServiceSpec()


class SliceEndpoint(Object, frozen=True, kw_only=True):
    """One backend of an EndpointSlice."""

    addresses: tuple[str, ...] = ()


class EndpointSlice(Object, frozen=True, kw_only=True):
    """discovery.k8s.io/v1 EndpointSlice; `address_type` is IPv4, IPv6 or FQDN."""

    metadata: ObjectMeta = ObjectMeta()
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] | None = None


class LeaseSpec(Object, frozen=True, kw_only=True):
    """Who holds a lease and until when. Times are RFC 3339 with exactly six decimals (MicroTime)."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(Object, frozen=True, kw_only=True):
    """coordination.k8s.io/v1 Lease."""

    metadata: ObjectMeta = ObjectMeta()
    spec: LeaseSpec = LeaseSpec()


class ObjectReference(Object, frozen=True, kw_only=True):
    """A pointer to another object."""

    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class EventSource(Object, frozen=True, kw_only=True):
    """The component that reports an event, and the node it runs on."""

    component: str = ""
    host: str = ""


class Event(Object, frozen=True, kw_only=True):
    """core/v1 Event: one line of `kubectl describe`. Type is Normal or Warning."""

    metadata: ObjectMeta = ObjectMeta()
    involved_object: ObjectReference = ObjectReference()
    reason: str = ""
    message: str = ""
    type: str = "Normal"
    source: EventSource = EventSource()
    count: int = 1
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    reporting_component: str = ""
    reporting_instance: str = ""
