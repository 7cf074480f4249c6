"""policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy, whole: policies of administrators, with tiers.

Peers and protocols ignore unknown fields, unlike everything else in policies: the API lets them grow and
says what an implementation does with one it does not know (it fails closed), which takes seeing it.

Source: the API types of sigs.k8s.io/network-policy-api, v1alpha2.
"""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from cilia.model.resources.base import (
    Condition,
    Int32,
    LabelSelector,
    Object,
    ObjectMeta,
    Strict,
    pattern,
    with_format,
)

Action = Literal["Accept", "Deny", "Pass"]
Port = Annotated[Int32, Meta(ge=1, le=65535)]
Network = Annotated[str, Meta(max_length=43), with_format("cidr")]
DomainName = Annotated[
    str,
    pattern(r"(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?"),
]
RuleName = Annotated[str, Meta(max_length=100)]


class NamespacedPod(Strict, frozen=True, kw_only=True):
    """Pods by their own labels and their namespace's."""

    namespace_selector: LabelSelector = LabelSelector()
    pod_selector: LabelSelector


class Subject(Strict, frozen=True, kw_only=True):
    """The pods a policy is for, never those on the host's network."""

    property_bounds: ClassVar[tuple[int, int | None]] = (1, 1)

    namespaces: LabelSelector | None = None
    pods: NamespacedPod | None = None


class PortRange(Strict, frozen=True, kw_only=True):
    """Ports start..end, both included; start is below end."""

    start: Port
    end: Port


class PortMatch(Strict, frozen=True, kw_only=True):
    """One port or a range of them."""

    property_bounds: ClassVar[tuple[int, int | None]] = (1, 1)

    number: Port | None = None
    range: PortRange | None = None


class TransportMatch(Strict, frozen=True, kw_only=True):
    """What is demanded of a packet of one transport protocol."""

    property_bounds: ClassVar[tuple[int, int | None]] = (1, None)

    destination_port: PortMatch | None = None


class ProtocolMatch(Object, frozen=True, kw_only=True):
    """A protocol with its ports, or the name that the receiving pod gives a port."""

    property_bounds: ClassVar[tuple[int, int | None]] = (1, 1)

    tcp: TransportMatch | None = None
    udp: TransportMatch | None = None
    sctp: TransportMatch | None = None
    destination_named_port: str | None = None


class IngressPeer(Object, frozen=True, kw_only=True):
    """Where traffic comes from: pods, never those on the host's network."""

    property_bounds: ClassVar[tuple[int, int | None]] = (1, 1)

    namespaces: LabelSelector | None = None
    pods: NamespacedPod | None = None


class EgressPeer(Object, frozen=True, kw_only=True):
    """Where traffic goes to."""

    property_bounds: ClassVar[tuple[int, int | None]] = (1, 1)

    namespaces: LabelSelector | None = None
    pods: NamespacedPod | None = None
    nodes: LabelSelector | None = None
    networks: Annotated[tuple[Network, ...], Meta(min_length=1, max_length=25)] | None = None
    domain_names: Annotated[tuple[DomainName, ...], Meta(min_length=1, max_length=25)] | None = None


Protocols = Annotated[tuple[ProtocolMatch, ...], Meta(min_length=1, max_length=25)]


class IngressRule(Strict, frozen=True, kw_only=True):
    """What to do with traffic from some peers."""

    name: RuleName | None = None
    action: Action
    from_: Annotated[tuple[IngressPeer, ...], Meta(min_length=1, max_length=25)]
    protocols: Protocols | None = None


class EgressRule(Strict, frozen=True, kw_only=True):
    """What to do with traffic to some peers."""

    name: RuleName | None = None
    action: Action
    to: Annotated[tuple[EgressPeer, ...], Meta(min_length=1, max_length=25)]
    protocols: Protocols | None = None


class ClusterNetworkPolicySpec(Strict, frozen=True, kw_only=True):
    """Rules in the order in which they are heard, for the pods of `subject`."""

    tier: Literal["Admin", "Baseline"]
    priority: Annotated[Int32, Meta(ge=0, le=1000)]
    subject: Subject
    ingress: Annotated[tuple[IngressRule, ...], Meta(max_length=25)] | None = None
    egress: Annotated[tuple[EgressRule, ...], Meta(max_length=25)] | None = None


class ClusterNetworkPolicyStatus(Object, frozen=True, kw_only=True):
    """What became of a policy."""

    conditions: tuple[Condition, ...] | None = None


class ClusterNetworkPolicy(Object, frozen=True, kw_only=True):
    """A policy of the cluster's administrator, before or after the policies of namespaces."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ClusterNetworkPolicySpec
    status: ClusterNetworkPolicyStatus | None = None
