"""What goes over the REST socket.

Field names are those of Cilium's agent API where it has the thing, so that scripts around `-o json` keep
working; what is ours alone is named in the same manner. Answers may gain fields; readers ignore what
they don't know.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec


class Health(enum.StrEnum):
    """How a component is."""

    OK = "Ok"
    WARNING = "Warning"
    FAILURE = "Failure"
    DISABLED = "Disabled"


class Answer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Base of everything on the wire: kebab-case names."""


class Component(Answer, frozen=True, kw_only=True):
    """State of one component and a sentence about it."""

    state: Health
    msg: str = ""


class ExporterStatus(Answer, frozen=True, kw_only=True):
    """Flows on their way into a file."""

    name: str
    path: str
    state: str
    """active, failing, stuck or ended."""
    problem: str = ""
    lines: int = 0
    lost_events: int = 0
    waiting: int = 0
    """Flows in memory that it has not looked at."""
    last_write: float = 0.0
    """Seconds since the epoch; 0: never."""


class HistoryStatus(Answer, frozen=True, kw_only=True):
    """Flows in files, beyond memory."""

    files: int = 0
    bytes: int = 0
    flows: int = 0
    oldest: float = 0.0
    """Seconds since the epoch; 0: there is none."""
    lost_flows: int = 0
    """Overwritten in memory before they were in a file."""
    problem: str = ""
    """Why flows can't be written now; one sentence."""


class HubbleStatus(Component, frozen=True, kw_only=True):
    """State of the flow store."""

    current_flows: int = 0
    max_flows: int = 0
    seen_flows: int = 0
    lost_events: int = 0
    exporters: tuple[ExporterStatus, ...] = ()
    history: HistoryStatus | None = None
    """None: flows are kept in memory only."""


class IpamStatus(Answer, frozen=True, kw_only=True):
    """Pod addresses of this node: how many of each family are taken, and of how many."""

    mode: str = "cluster-pool"
    ipv4_used: int = 0
    ipv4_total: int = 0
    ipv6_used: int = 0
    ipv6_total: int = 0


class ControllerStatus(Answer, frozen=True, kw_only=True):
    """A background task."""

    name: str
    success_count: int = 0
    failure_count: int = 0
    consecutive_failure_count: int = 0
    last_failure_msg: str = ""


class MapPressure(Answer, frozen=True, kw_only=True):
    """How full a kernel map is."""

    name: str
    used: int
    size: int


class StatusResponse(Answer, frozen=True, kw_only=True):
    """GET /v1/healthz."""

    agent: Component = msgspec.field(name="cilium")
    """The node as a whole: Ok when pods can be added and policy is enforced."""
    kubernetes: Component = Component(state=Health.DISABLED)
    operator: Component = Component(state=Health.DISABLED)
    hubble: HubbleStatus = HubbleStatus(state=Health.DISABLED)
    datapath: Component = Component(state=Health.DISABLED)
    cni_file: Component = Component(state=Health.DISABLED)
    ipam: IpamStatus = IpamStatus()
    controllers: tuple[ControllerStatus, ...] = ()
    endpoints: dict[str, int] = {}
    """Endpoint state to number of endpoints."""
    maps: tuple[MapPressure, ...] = ()
    node: str = ""
    version: str = ""
    uptime_seconds: float = 0.0
    policy: Component = Component(state=Health.OK)
    """What is not usual about policy on this node: enforcement always or never, audit, the host firewall,
    refused policies."""
    services: Component = Component(state=Health.DISABLED)
    """Who serves Services, and how many frontends have a problem."""
    nat: Component = Component(state=Health.OK)
    """A warning when ports for translated sources run out."""
    kernel: Component = Component(state=Health.DISABLED)
    """What the last comparison of the kernel with what is intended found."""
    service_count: int = 0
    policy_revision: int = 0
    """Newest revision that all endpoints enforce."""
    policy_count: int = 0
    identity_count: int = 0
    node_count: int = 0

    @property
    def ready(self) -> bool:
        """Whether the node serves."""
        return self.agent.state in (Health.OK, Health.WARNING)


class IdentityView(Answer, frozen=True, kw_only=True):
    """An identity and its labels."""

    id: int
    labels: tuple[str, ...] = ()


class AddressPair(Answer, frozen=True, kw_only=True):
    """The addresses of an endpoint; empty where it has none of the family."""

    ipv4: str = ""
    ipv6: str = ""


class EndpointNetworking(Answer, frozen=True, kw_only=True):
    """Interfaces and addresses of an endpoint."""

    addressing: tuple[AddressPair, ...] = ()
    interface_name: str = ""
    interface_index: int = 0
    container_interface_name: str = ""
    mac: str = ""
    host_mac: str = ""


class EndpointIdentifiers(Answer, frozen=True, kw_only=True):
    """What the world calls an endpoint."""

    container_id: str = ""
    pod_name: str = ""
    """namespace/name"""
    k8s_pod_name: str = ""
    k8s_namespace: str = ""
    k8s_uid: str = ""
    netns: str = ""


class RealizedPolicy(Answer, frozen=True, kw_only=True):
    """What an endpoint enforces: "none", "ingress", "egress" or "both", and since which revision."""

    policy_enabled: str = "none"
    policy_revision: int = 0
    subject: int = 0
    entries: int = 0


class EndpointPolicyStatus(Answer, frozen=True, kw_only=True):
    """The policy part of an endpoint's status."""

    realized: RealizedPolicy = RealizedPolicy()


class NamedPortView(Answer, frozen=True, kw_only=True):
    """A named container port."""

    name: str
    port: int
    protocol: str


class EndpointStatus(Answer, frozen=True, kw_only=True):
    """What is known of an endpoint."""

    state: str
    identity: IdentityView
    external_identifiers: EndpointIdentifiers = EndpointIdentifiers()
    networking: EndpointNetworking = EndpointNetworking()
    policy: EndpointPolicyStatus = EndpointPolicyStatus()
    named_ports: tuple[NamedPortView, ...] = ()
    error: str = ""
    """Why the endpoint is not ready, where that is known."""


class EndpointView(Answer, frozen=True, kw_only=True):
    """GET /v1/endpoint: one of the list."""

    id: int
    status: EndpointStatus


class RuleView(Answer, frozen=True, kw_only=True):
    """Where a rule stands in its YAML."""

    kind: str
    namespace: str
    name: str
    resource_version: str
    path: str


class EntryView(Answer, frozen=True, kw_only=True):
    """One entry of an endpoint's policy, and the rules it comes from."""

    direction: str
    """ingress or egress"""
    peer: int
    """Identity; 0 for any."""
    peer_labels: tuple[str, ...] = ()
    protocol: str = "any"
    port: str = "any"
    """A port, a range such as 8000-8015, or any."""
    verdict: str
    """allow, deny or redirect"""
    proxy_port: int = 0
    precedence: int = 0
    match: str = ""
    audit: bool = False
    default: bool = False
    cookie: int = 0
    rules: tuple[RuleView, ...] = ()
    hits: int = 0
    """Packets the entry judged, or that dropped by what it had said."""
    packets: int = 0
    """Of the flows it let pass, both directions; of a denial the hits."""
    bytes: int = 0
    last_hit: str = ""
    """RFC 3339, UTC; empty: never."""


class EndpointPolicy(Answer, frozen=True, kw_only=True):
    """GET /v1/endpoint/{reference}/policy."""

    id: int
    subject: int
    revision: int
    policy_enabled: str
    counted_since: str = ""
    """RFC 3339, UTC; bytes and packets of flows that ended before the agent started are not in."""
    entries: tuple[EntryView, ...] = ()


class IpMetadata(Answer, frozen=True, kw_only=True):
    """Who has the address."""

    source: str = ""
    namespace: str = ""
    name: str = ""


class IpEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """GET /v1/ip: one of the list (camel case, as Cilium's)."""

    cidr: str
    identity: int
    host_ip: str = msgspec.field(name="hostIP", default="")
    """Underlay address of the node behind which it is; empty: here, or outside the cluster."""
    encrypt_key: int = 0
    metadata: IpMetadata = IpMetadata()


class ProblemView(Answer, frozen=True, kw_only=True):
    """Why a policy is not enforced."""

    path: str
    sentence: str


class PolicyView(Answer, frozen=True, kw_only=True):
    """A policy object and what became of it."""

    kind: str
    namespace: str
    name: str
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    state: str = "pending"
    """valid, invalid, or pending: not looked at yet."""
    problems: tuple[ProblemView, ...] = ()
    warnings: tuple[ProblemView, ...] = ()
    """Rules in force that hardly mean what they say."""
    endpoints: int = 0
    """Endpoints of this node that it selects."""
    audit: bool = False
    """It selects some, and all of it is in audit: what it denies passes and is noted."""


class PolicyList(Answer, frozen=True, kw_only=True):
    """GET /v1/policy."""

    revision: int
    """Newest revision computed."""
    realized: int
    """Newest revision that all endpoints enforce."""
    policies: tuple[PolicyView, ...] = ()


class PolicyRevision(Answer, frozen=True, kw_only=True):
    """GET /v1/policy/wait: what all endpoints enforce now, and whether that is what was asked for."""

    realized: int
    reached: bool


class RuleUsage(Answer, frozen=True, kw_only=True):
    """A rule in force here, and what it did. Rules that always decide together share their numbers."""

    rule: RuleView
    hits: int = 0
    packets: int = 0
    bytes: int = 0
    last_hit: str = ""
    """RFC 3339, UTC; empty: never."""


class PolicyUsage(Answer, frozen=True, kw_only=True):
    """GET /v1/policy/usage: every rule of every policy that selects an endpoint of this node."""

    counted_since: str = ""
    """RFC 3339, UTC."""
    rules: tuple[RuleUsage, ...] = ()


class MetricForecast(Answer, frozen=True, kw_only=True):
    """GET /v1/hubble/metrics/forecast: what a metric of flows would be like on this node."""

    metric: str
    series: int = 0
    flows: int = 0
    """Flows in memory it would have counted."""
    seconds: float = 0.0
    """Time from the first to the last flow that was looked at."""
    by_label: tuple[tuple[str, int], ...] = ()
    """How many values each label has, most first."""


class CookieView(Answer, frozen=True, kw_only=True):
    """GET /v1/cookie/{number}: the rules a cookie stands for."""

    cookie: int
    default: bool = False
    logs: tuple[str, ...] = ()
    """Texts of spec.log that flows under it carry."""
    rules: tuple[RuleView, ...] = ()


class SelectorView(Answer, frozen=True, kw_only=True):
    """GET /v1/policy/selectors: a peer that rules in force speak of, and whom it means now."""

    selector: str
    """In words."""
    users: tuple[RuleView, ...] = ()
    """The rules that speak of it."""
    identities: tuple[int, ...] = ()


class Document(Answer, frozen=True, kw_only=True):
    """A file of policies, YAML or JSON, with any number of objects."""

    name: str
    text: str


class CheckRequest(Answer, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/policy/check, answered with a CheckReport of `cilia.model.explain`."""

    documents: tuple[Document, ...] = ()
    delete: tuple[str, ...] = ()
    """KIND/NAMESPACE/NAME or KIND/NAME of objects that would be removed."""
    since: float = 300.0
    """Seconds of flows to compare with."""


class MapView(Answer, frozen=True, kw_only=True):
    """GET /v1/map: one of the list."""

    name: str
    type: str = ""
    path: str = ""
    key_size: int = 0
    value_size: int = 0
    max_entries: int = 0
    entries: int | None = None
    """How many are in use; None where counting would cost too much."""


class MapEntry(Answer, frozen=True, kw_only=True):
    """A key and its value, fields by name as bpf/abi names them."""

    key: Any
    value: Any


class MapDump(Answer, frozen=True, kw_only=True):
    """GET /v1/map/{name}."""

    name: str
    entries: tuple[MapEntry, ...] = ()
    truncated: bool = False
    """More entries were there than an answer carries."""


class NodeView(Answer, frozen=True, kw_only=True):
    """GET /v1/node: one of the list."""

    name: str
    local: bool = False
    addresses: tuple[str, ...] = ()
    router_addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class Setting(Answer, frozen=True, kw_only=True):
    """GET /v1/config, GET /v1/endpoint/{reference}/config: one of the list."""

    name: str
    value: Any
    source: str = "default"
    """Where the value comes from: default, environment, flag, live (changed while the agent ran); of an
    endpoint also pod and node."""
    option: str = ""
    """The name to change it by while the agent runs; empty: only a restart changes it."""


class OptionChange(
    msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True, omit_defaults=True
):
    """PATCH /v1/config, PATCH /v1/endpoint/{reference}/config: answered with the settings, once the kernel
    enforces them."""

    options: dict[str, str] = {}
    """New values by name of the option."""
    reset: tuple[str, ...] = ()
    """Options that go back to what they are without such a change."""


class MapDifference(Answer, frozen=True, kw_only=True):
    """One thing that is not in the kernel as it should be."""

    map: str
    key: str
    intended: str = ""
    """Empty: nothing should be there."""
    actual: str = ""
    """Empty: nothing is there."""


class VerifyReport(Answer, frozen=True, kw_only=True):
    """POST /v1/verify, with ?repair=true to put right what differs."""

    differences: tuple[MapDifference, ...] = ()
    """The first thousand."""
    count: int = 0
    by_map: dict[str, int] = {}
    repaired: int = 0


class ServiceAddress(Answer, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What clients ask for."""

    ip: str
    port: int
    protocol: str = ""
    scope: str = ""
    """external: clients outside the cluster are served, too; internal: they are not."""


class ServiceBackend(Answer, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One that serves."""

    ip: str
    port: int
    protocol: str = ""
    state: str = ""
    """active; maintenance: weight 0, no new flows; terminating: it drains, the flows it has go on."""
    weight: int = 1
    node_name: str = msgspec.field(name="nodeName", default="")
    zone: str = ""
    pod: str = ""
    """namespace/name, where the address is a pod's."""
    only: str = ""
    """internal or external: only such clients get it; empty: all."""


class ServiceFlags(Answer, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Whose the frontend is, and how it is served."""

    type: str = ""
    """ClusterIP, NodePort, LoadBalancer, ExternalIPs, HostPort, LocalRedirect or Standalone."""
    namespace: str = ""
    name: str = ""
    port_name: str = ""
    ext_traffic_policy: str = msgspec.field(name="extTrafficPolicy", default="")
    """Local: outside clients keep their address and get backends of this node only; else Cluster."""
    algorithm: str = ""
    mode: str = ""
    """How backends on other nodes answer clients outside: snat or dsr."""
    affinity: int = 0
    """Seconds a client stays with its backend; 0: not at all."""
    source_ranges: tuple[str, ...] = ()
    sources_denied: bool = False
    """The ranges keep clients out instead of in."""
    without_backends: str = ""
    """What clients get then: reject, drop, or pass (their packets go on untouched)."""
    skip: tuple[str, ...] = ()
    """Addresses of pods that a redirect leaves alone."""


class ServiceSpec(Answer, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A frontend with its backends, as intended."""

    id: int = 0
    """The number that flows and maps know it by; 0: not in the kernel."""
    frontend_address: ServiceAddress
    backend_addresses: tuple[ServiceBackend, ...] = ()
    flags: ServiceFlags = ServiceFlags()


class KernelService(Answer, frozen=True, kw_only=True):
    """What the kernel has of a frontend."""

    flags: tuple[str, ...] = ()
    affinity: int = 0
    internal: tuple[str, ...] = ()
    """Backends that clients inside may get; one with more weight is named once."""
    external: tuple[str, ...] = ()
    differences: tuple[MapDifference, ...] = ()
    """What is not as intended; empty in a sound node."""


class ServiceRealization(Answer, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How far a frontend is."""

    state: str
    """realized, pending or error."""
    error: str = ""
    problems: tuple[str, ...] = ()
    """What is wrong with the object it comes from, each with the field at fault."""
    why_none: str = ""
    """Why nobody serves; empty where somebody does."""
    kernel: KernelService | None = None
    """Told of single services only."""


class ServiceView(Answer, frozen=True, kw_only=True, gc=False):
    """A frontend: one address, port and protocol."""

    spec: ServiceSpec
    status: ServiceRealization


class ServiceProblem(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """An object with parts that have no effect."""

    kind: str
    namespace: str = ""
    name: str
    problems: tuple[str, ...] = ()


class ServiceList(Answer, frozen=True, kw_only=True):
    """GET /v1/service, GET /v1/service/{reference}."""

    services: tuple[ServiceView, ...] = ()
    problems: tuple[ServiceProblem, ...] = ()


class PortUseView(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Ports of this node in use towards one address and port outside."""

    protocol: str
    peer: str
    port: int = 0
    """0: pings."""
    address: str
    """Of this node."""
    used: int
    share: float
    """Of those there are, 0..1."""
    seconds: float | None = None
    """Until none is left at the present pace; absent: not in sight."""


class OwnerUseView(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Translations that one pod, or clients of services, hold."""

    endpoint: int = 0
    """0: clients outside, of services whose backend is on another node."""
    pod: str = ""
    used: int


class NatUse(Answer, frozen=True, kw_only=True):
    """GET /v1/nat: ports in use for translated sources, as of the last sweep."""

    limit: int = 0
    """Ports there are towards each peer and protocol; 0: not counted yet."""
    total: int = 0
    entries: int = 0
    """Of the map, both ways."""
    size: int = 0
    age: float = 0.0
    """Seconds since they were counted."""
    peers: tuple[PortUseView, ...] = ()
    """The heaviest, most urgent first."""
    owners: tuple[OwnerUseView, ...] = ()
    """Heaviest first."""


class LocalBackend(
    msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True, omit_defaults=True
):
    """A backend of a service by hand."""

    address: str
    """ADDRESS:PORT, an IPv6 address in brackets."""
    weight: int = 1
    """Its share of new flows; 0: none, those it has go on."""
    node: str = ""


class LocalService(
    msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True, omit_defaults=True
):
    """GET /v1/local-service: one of the list. PUT /v1/local-service. Also an entry of a services file."""

    frontend: str
    """ADDRESS:PORT/PROTOCOL; without protocol TCP."""
    backends: tuple[LocalBackend | str, ...] = ()
    """Or just ADDRESS:PORT."""
    name: str = ""
    algorithm: str = ""
    """random or maglev; empty: the node's."""
    mode: str = ""
    """snat or dsr; empty: the node's."""
    affinity: int = 0
    """Seconds a client stays with its backend; 0: not at all."""
    source_ranges: tuple[str, ...] = ()
    """Prefixes of clients outside that are served; empty: all."""
    local_only: bool = False
    """Only backends on this node, and clients outside keep their address."""


class Fault(Answer, frozen=True, kw_only=True):
    """Body of every answer that isn't a success: one sentence."""

    error: str
