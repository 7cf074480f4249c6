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
    host_ip: str | None = None


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
    conditions: tuple[Condition, ...] | None = None


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


class ServicePort(Object, frozen=True, kw_only=True):
    """A port of a Service. `node_port`: None or 0 is none."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    node_port: int | None = None


class ClientIPConfig(Object, frozen=True, kw_only=True):
    """How long a client stays with its backend: 1 to 86,400 seconds."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(Object, frozen=True, kw_only=True):
    """Settings of session affinity; there is one kind."""

    client_ip: ClientIPConfig | None = None


class ServiceSpec(Object, frozen=True, kw_only=True):
    """core/v1 ServiceSpec, without what only its controllers need."""

    selector: dict[str, str] | None = None
    type: str = "ClusterIP"
    cluster_ip: str = ""
    cluster_ips: tuple[str, ...] | None = None
    external_ips: tuple[str, ...] | None = None
    ports: tuple[ServicePort, ...] | None = None
    external_traffic_policy: str = ""
    internal_traffic_policy: str | None = None
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    load_balancer_source_ranges: tuple[str, ...] | None = None
    health_check_node_port: int = 0
    traffic_distribution: str | None = None


class LoadBalancerIngress(Object, frozen=True, kw_only=True):
    """An address of a load balancer; with ip_mode Proxy, packets for it do not come to nodes."""

    ip: str = ""
    ip_mode: str | None = None


class LoadBalancerStatus(Object, frozen=True, kw_only=True):
    """What a load balancer's controller reports."""

    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(Object, frozen=True, kw_only=True):
    """core/v1 ServiceStatus."""

    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class Service(Object, frozen=True, kw_only=True):
    """core/v1 Service."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class EndpointConditions(Object, frozen=True, kw_only=True):
    """What is known of an endpoint; None: not told."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class NamedHint(Object, frozen=True, kw_only=True):
    """A zone or a node for whose clients an endpoint is meant."""

    name: str = ""


class EndpointHints(Object, frozen=True, kw_only=True):
    """For whose clients an endpoint is meant."""

    for_zones: tuple[NamedHint, ...] | None = None
    for_nodes: tuple[NamedHint, ...] | None = None


class SliceEndpoint(Object, frozen=True, kw_only=True):
    """One backend of an EndpointSlice."""

    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None


class EndpointPort(Object, frozen=True, kw_only=True):
    """A port of all endpoints of a slice; without a number it means no particular one."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class EndpointSlice(Object, frozen=True, kw_only=True):
    """discovery.k8s.io/v1 EndpointSlice; `address_type` is IPv4, IPv6 or FQDN."""

    metadata: ObjectMeta = ObjectMeta()
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None


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
