"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy, version v2, whole.

Every field of the schema is here, also those that the policy engine refuses for now: a field has to be
seen to be refused. Lists that are absent are `None`; an empty peer list selects nobody, an absent one
does not restrict peers.

Source: the CRD schemas of cilium.io/v2 and the Cilium policy language reference.
"""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from cilia.model.resources.base import (
    DNS_SUBDOMAIN,
    Condition,
    Int32,
    Int64,
    LabelSelector,
    Object,
    ObjectMeta,
    OneOf,
    Strict,
    Time,
    pattern,
    with_format,
)

Entity = Literal[
    "all",
    "world",
    "cluster",
    "host",
    "init",
    "ingress",
    "unmanaged",
    "remote-node",
    "health",
    "none",
    "kube-apiserver",
]

Cidr = Annotated[
    str,
    Meta(description="A prefix such as 10.0.0.0/8 or 2001:db8::/32.", extra_json_schema={"format": "cidr"}),
]
PortNumber = Annotated[Int32, Meta(ge=0, le=65535)]

_PORT_NUMBER = r"6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4}"
# The first letter of a name is found without backtracking: only digits and single dashes come before it.
_PORT_NAME = r"([0-9]-?)*[a-zA-Z](-?[a-zA-Z0-9])*"
PortText = Annotated[
    str,
    pattern(f"({_PORT_NUMBER}|{_PORT_NAME})", description="A port number from 0 to 65535, or a port's name."),
]

ICMP_TYPE_NAMES = (
    # ICMP
    "EchoReply",
    "DestinationUnreachable",
    "Redirect",
    "Echo",
    "RouterAdvertisement",
    "RouterSelection",
    "TimeExceeded",
    "ParameterProblem",
    "Timestamp",
    "TimestampReply",
    "Photuris",
    "ExtendedEchoRequest",
    "ExtendedEcho Reply",
    # ICMPv6
    "PacketTooBig",
    "EchoRequest",
    "MulticastListenerQuery",
    "MulticastListenerReport",
    "MulticastListenerDone",
    "RouterSolicitation",
    "NeighborSolicitation",
    "NeighborAdvertisement",
    "RedirectMessage",
    "RouterRenumbering",
    "ICMPNodeInformationQuery",
    "ICMPNodeInformationResponse",
    "InverseNeighborDiscoverySolicitation",
    "InverseNeighborDiscoveryAdvertisement",
    "HomeAgentAddressDiscoveryRequest",
    "HomeAgentAddressDiscoveryReply",
    "MobilePrefixSolicitation",
    "MobilePrefixAdvertisement",
    "DuplicateAddressRequestCodeSuffix",
    "DuplicateAddressConfirmationCodeSuffix",
)
_ICMP_NUMBER = r"[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5]"
IcmpTypeName = Annotated[
    str,
    pattern(
        f"({_ICMP_NUMBER}|{'|'.join(ICMP_TYPE_NAMES)})",
        description="A number from 0 to 255, or the name of an ICMP type such as EchoRequest.",
    ),
]
IcmpTypeNumber = Annotated[int, Meta(ge=0, le=255)]

# One label of a name after the other, so that matching is linear; a final dot is allowed.
DnsName = Annotated[
    str, pattern(r"[-a-zA-Z0-9_]+([.][-a-zA-Z0-9_]+)*[.]?", description="A DNS name such as www.example.org.")
]
DnsPattern = Annotated[
    str,
    pattern(
        r"[-a-zA-Z0-9_*]+([.][-a-zA-Z0-9_*]+)*[.]?",
        description="A DNS name with stars, such as *.example.org.",
    ),
]
GroupName = Annotated[
    str, pattern(DNS_SUBDOMAIN, max_length=253, description="The name of a CiliumCIDRGroup.")
]


class CIDRRule(OneOf, frozen=True, kw_only=True):
    """A prefix, or CiliumCIDRGroups by name or by label, less the prefixes in `except`."""

    one_of: ClassVar[tuple[str, ...]] = ("cidr", "cidrGroupRef", "cidrGroupSelector")

    cidr: Cidr | None = None
    cidr_group_ref: GroupName | None = None
    cidr_group_selector: LabelSelector | None = None
    except_: tuple[Cidr, ...] | None = None


class FQDNSelector(OneOf, frozen=True, kw_only=True):
    """A DNS name, exact or with wildcards."""

    one_of: ClassVar[tuple[str, ...]] = ("matchName", "matchPattern")

    match_name: DnsName | None = None
    match_pattern: DnsPattern | None = None


class AWSGroup(Strict, frozen=True, kw_only=True):
    """Instances of AWS selected by security group."""

    labels: dict[str, str] | None = None
    region: str | None = None
    security_groups_ids: tuple[str, ...] | None = field(default=None, name="securityGroupsIds")
    security_groups_names: tuple[str, ...] | None = None


class Groups(Strict, frozen=True, kw_only=True):
    """Addresses that a cloud provider lists."""

    aws: AWSGroup | None = None


class K8sService(Strict, frozen=True, kw_only=True):
    """A Kubernetes service by name."""

    namespace: str | None = None
    service_name: str | None = None


class K8sServiceSelector(Strict, frozen=True, kw_only=True):
    """Kubernetes services by label."""

    namespace: str | None = None
    selector: LabelSelector


class Service(Strict, frozen=True, kw_only=True):
    """A service as a destination."""

    k8s_service: K8sService | None = None
    k8s_service_selector: K8sServiceSelector | None = None


class Authentication(Strict, frozen=True, kw_only=True):
    """Whether both sides must have authenticated each other."""

    mode: Literal["disabled", "required", "test-always-fail"]


class ICMPField(Strict, frozen=True, kw_only=True):
    """One ICMP type, by number or name."""

    # The only default that the API server itself fills in.
    server_defaults: ClassVar[tuple[str, ...]] = ("family",)

    family: Literal["IPv4", "IPv6"] = "IPv4"
    type: IcmpTypeNumber | IcmpTypeName


class ICMPRule(Strict, frozen=True, kw_only=True):
    """ICMP types; a rule with `icmps` matches nothing but these."""

    fields: Annotated[tuple[ICMPField, ...], Meta(max_length=40)] | None = None


class PortProtocol(Strict, frozen=True, kw_only=True):
    """A port by number or name, or the range port..end_port; port 0 and no port are all ports. ANY, the
    default, is TCP, UDP and SCTP; VRRP and IGMP have no ports."""

    port: PortText = "0"
    end_port: PortNumber | None = None
    protocol: Literal["TCP", "UDP", "SCTP", "VRRP", "IGMP", "ANY"] | None = None


class Secret(Strict, frozen=True, kw_only=True):
    """A Kubernetes Secret by name."""

    name: str
    namespace: str | None = None


class TLSContext(Strict, frozen=True, kw_only=True):
    """The certificates a TLS-terminating or -originating proxy uses."""

    secret: Secret
    certificate: str | None = None
    private_key: str | None = None
    trusted_ca: str | None = None


NonEmpty = Annotated[str, Meta(min_length=1)]


class EnvoyConfig(Strict, frozen=True, kw_only=True):
    """The resource that defines a listener."""

    kind: Literal["CiliumEnvoyConfig", "CiliumClusterwideEnvoyConfig"] | None = None
    name: NonEmpty


class Listener(Strict, frozen=True, kw_only=True):
    """A custom Envoy listener to which traffic is sent."""

    envoy_config: EnvoyConfig
    name: NonEmpty
    priority: Annotated[int, Meta(ge=1, le=100)] | None = None


class HeaderMatch(Strict, frozen=True, kw_only=True):
    """A header to match, and what to do when it does not match."""

    mismatch: Literal["LOG", "ADD", "DELETE", "REPLACE"] | None = None
    name: NonEmpty
    secret: Secret | None = None
    value: str | None = None


class HTTPRule(Strict, frozen=True, kw_only=True):
    """A request that is allowed; path, method and host are extended regular expressions."""

    path: str | None = None
    method: str | None = None
    host: Annotated[str, with_format("idn-hostname")] | None = None
    headers: tuple[str, ...] | None = None
    header_matches: tuple[HeaderMatch, ...] | None = None


class KafkaRule(Strict, frozen=True, kw_only=True):
    """A Kafka request that is allowed."""

    role: Literal["produce", "consume"] | None = None
    api_key: str | None = None
    api_version: str | None = None
    client_id: str | None = None
    topic: Annotated[str, Meta(max_length=255)] | None = None


class L7Rules(OneOf, frozen=True, kw_only=True):
    """Application-layer rules of one port; exactly one protocol."""

    one_of: ClassVar[tuple[str, ...]] = ("http", "kafka", "dns", "l7proto")

    http: tuple[HTTPRule, ...] | None = None
    kafka: tuple[KafkaRule, ...] | None = None
    dns: tuple[FQDNSelector, ...] | None = None
    l7proto: str | None = None
    l7: tuple[dict[str, str], ...] | None = None


class PortRule(Strict, frozen=True, kw_only=True):
    """Ports, and what is demanded of the traffic to them."""

    ports: Annotated[tuple[PortProtocol, ...], Meta(max_length=40)] | None = None
    terminating_tls: TLSContext | None = None
    originating_tls: TLSContext | None = None
    server_names: tuple[str, ...] | None = None
    listener: Listener | None = None
    rules: L7Rules | None = None


class PortDenyRule(Strict, frozen=True, kw_only=True):
    """Ports that are denied."""

    ports: tuple[PortProtocol, ...] | None = None


class IngressPeers(Strict, frozen=True, kw_only=True):
    """Where traffic comes from: alternatives, all under the condition `from_requires`."""

    from_endpoints: tuple[LabelSelector, ...] | None = None
    from_requires: tuple[LabelSelector, ...] | None = None
    from_cidr: tuple[Cidr, ...] | None = None
    from_cidr_set: tuple[CIDRRule, ...] | None = None
    from_entities: tuple[Entity, ...] | None = None
    from_groups: tuple[Groups, ...] | None = None
    from_nodes: tuple[LabelSelector, ...] | None = None


class IngressRule(IngressPeers, frozen=True, kw_only=True):
    """What may come in."""

    to_ports: tuple[PortRule, ...] | None = None
    icmps: tuple[ICMPRule, ...] | None = None
    authentication: Authentication | None = None


class IngressDenyRule(IngressPeers, frozen=True, kw_only=True):
    """What must not come in."""

    to_ports: tuple[PortDenyRule, ...] | None = None
    icmps: tuple[ICMPRule, ...] | None = None


class EgressPeers(Strict, frozen=True, kw_only=True):
    """Where traffic goes to."""

    to_endpoints: tuple[LabelSelector, ...] | None = None
    to_requires: tuple[LabelSelector, ...] | None = None
    to_cidr: tuple[Cidr, ...] | None = None
    to_cidr_set: tuple[CIDRRule, ...] | None = None
    to_entities: tuple[Entity, ...] | None = None
    to_services: tuple[Service, ...] | None = None
    to_groups: tuple[Groups, ...] | None = None
    to_nodes: tuple[LabelSelector, ...] | None = None


class EgressRule(EgressPeers, frozen=True, kw_only=True):
    """What may go out."""

    to_fqdns: tuple[FQDNSelector, ...] | None = None
    to_ports: tuple[PortRule, ...] | None = None
    icmps: tuple[ICMPRule, ...] | None = None
    authentication: Authentication | None = None


class EgressDenyRule(EgressPeers, frozen=True, kw_only=True):
    """What must not go out."""

    to_ports: tuple[PortDenyRule, ...] | None = None
    icmps: tuple[ICMPRule, ...] | None = None


class EnableDefaultDeny(Strict, frozen=True, kw_only=True):
    """Whether a rule isolates its subjects; absent: yes, in each direction it has a section for."""

    ingress: bool | None = None
    egress: bool | None = None


class RuleLabel(Strict, frozen=True, kw_only=True):
    """A label of the rule itself."""

    key: str
    value: str | None = None
    source: str | None = None


class LogConfig(Strict, frozen=True, kw_only=True):
    """What flows say that a rule decided about."""

    value: Annotated[str, Meta(max_length=32)] | None = None


class Rule(OneOf, frozen=True, kw_only=True):
    """One rule: the subjects it selects and what they may do."""

    one_of: ClassVar[tuple[str, ...]] = ("endpointSelector", "nodeSelector")

    endpoint_selector: LabelSelector | None = None
    node_selector: LabelSelector | None = None
    ingress: tuple[IngressRule, ...] | None = None
    ingress_deny: tuple[IngressDenyRule, ...] | None = None
    egress: tuple[EgressRule, ...] | None = None
    egress_deny: tuple[EgressDenyRule, ...] | None = None
    enable_default_deny: EnableDefaultDeny | None = None
    labels: tuple[RuleLabel, ...] | None = None
    description: str | None = None
    log: LogConfig | None = None
    audit: bool | None = None


class NodeStatus(Object, frozen=True, kw_only=True):
    """What one node made of a policy."""

    ok: bool | None = None
    error: str | None = None
    enforcing: bool | None = None
    last_updated: Time | None = None
    local_policy_revision: Int64 | None = None
    annotations: dict[str, str] | None = None


class PolicyStatus(Object, frozen=True, kw_only=True):
    """What became of a policy; condition `Valid` tells whether it could be accepted, `nodes` by node name
    what became of it there."""

    conditions: tuple[Condition, ...] | None = None
    derivative_policies: dict[str, NodeStatus] | None = None
    nodes: dict[str, NodeStatus] | None = None


class CiliumNetworkPolicy(Object, frozen=True, kw_only=True):
    """Rules for the endpoints of one namespace: `spec`, and any number more in `specs`."""

    metadata: ObjectMeta
    spec: Rule | None = None
    specs: tuple[Rule, ...] | None = None
    status: PolicyStatus | None = None


class CiliumClusterwideNetworkPolicy(Object, frozen=True, kw_only=True):
    """Rules for endpoints of any namespace, or for nodes."""

    metadata: ObjectMeta
    spec: Rule | None = None
    specs: tuple[Rule, ...] | None = None
    status: PolicyStatus | None = None
