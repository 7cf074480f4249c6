"""networking.k8s.io/v1 NetworkPolicy, whole. Absent and empty differ: `ports: []` means all ports, `from`
likewise.

Source: Kubernetes API reference, NetworkPolicy v1.
"""

from typing import Annotated, Literal

from msgspec import Meta

from cilia.model.resources.base import LabelSelector, Object, ObjectMeta, Strict, with_format

Cidr = Annotated[str, with_format("cidr")]
Port = Annotated[int, Meta(ge=1, le=65535)]
PortName = Annotated[str, Meta(min_length=1, max_length=15)]


class IPBlock(Strict, frozen=True, kw_only=True):
    """A prefix and the parts of it that are left out."""

    cidr: Cidr
    except_: tuple[Cidr, ...] | None = None


class NetworkPolicyPeer(Strict, frozen=True, kw_only=True):
    """Pods (by selector, in selected namespaces or in the policy's own) or an address block, never both."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class NetworkPolicyPort(Strict, frozen=True, kw_only=True):
    """A port by number or name, or the range port..end_port; no port: every port of the protocol."""

    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    port: Port | PortName | None = None
    end_port: Port | None = None


class NetworkPolicyIngressRule(Strict, frozen=True, kw_only=True):
    """Sources and ports allowed in."""

    ports: tuple[NetworkPolicyPort, ...] | None = None
    from_: tuple[NetworkPolicyPeer, ...] | None = None


class NetworkPolicyEgressRule(Strict, frozen=True, kw_only=True):
    """Destinations and ports allowed out."""

    ports: tuple[NetworkPolicyPort, ...] | None = None
    to: tuple[NetworkPolicyPeer, ...] | None = None


class NetworkPolicySpec(Strict, frozen=True, kw_only=True):
    """The pods a policy isolates and what it still allows them.

    Without `policy_types` it isolates ingress, and egress too when it has an egress section.
    """

    pod_selector: LabelSelector = LabelSelector()
    policy_types: tuple[Literal["Ingress", "Egress"], ...] | None = None
    ingress: tuple[NetworkPolicyIngressRule, ...] | None = None
    egress: tuple[NetworkPolicyEgressRule, ...] | None = None


class NetworkPolicy(Object, frozen=True, kw_only=True):
    """networking.k8s.io/v1 NetworkPolicy."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NetworkPolicySpec = NetworkPolicySpec()
