"""CiliumNode, version v2: a node's addresses, pod prefixes and address-management state.

The cloud sections are here because users' objects carry them; only `ipam` and the plain fields are used.

Source: the CRD schema of cilium.io/v2.
"""

from typing import Annotated, Literal

from msgspec import Meta, field

from cilia.model.resources.base import AddressPair, Dashed, EncryptionSpec, Int64, ObjectMeta, with_format

Natural = Annotated[int, Meta(ge=0)]
Tags = dict[str, str]


class NodeAddress(Dashed, frozen=True, kw_only=True):
    """An address of the node; type is InternalIP, ExternalIP or CiliumInternalIP."""

    type: str | None = None
    ip: str | None = None


class AllocationIP(Dashed, frozen=True, kw_only=True):
    """An address of a pool: who uses it, on which cloud resource."""

    owner: str | None = None
    resource: str | None = None


PoolName = Annotated[str, Meta(min_length=1)]
Cidr = Annotated[str, with_format("cidr")]


class PoolAllocation(Dashed, frozen=True, kw_only=True):
    """Prefixes a node holds of a named pool."""

    pool: PoolName
    cidrs: tuple[Cidr, ...] | None = None


class PoolDemand(Dashed, frozen=True, kw_only=True):
    """How many addresses a node wants."""

    ipv4_addrs: int | None = None
    ipv6_addrs: int | None = None


class PoolRequest(Dashed, frozen=True, kw_only=True):
    """A node's demand of a named pool."""

    pool: PoolName
    needed: PoolDemand | None = None


class NodePools(Dashed, frozen=True, kw_only=True):
    """Multi-pool address management."""

    requested: tuple[PoolRequest, ...] | None = None
    allocated: tuple[PoolAllocation, ...] | None = None


class NodeIPAM(Dashed, frozen=True, kw_only=True):
    """Address management of a node; `pod_cidrs` is what the operator gave it."""

    pod_cidrs: tuple[str, ...] | None = field(default=None, name="podCIDRs")
    pool: dict[str, AllocationIP] | None = None
    ipv6_pool: dict[str, AllocationIP] | None = None
    pools: NodePools | None = None
    min_allocate: Natural | None = None
    max_allocate: Natural | None = None
    pre_allocate: Natural | None = None
    max_above_watermark: Natural | None = None


class NodeENI(Dashed, frozen=True, kw_only=True):
    """AWS parameters of a node."""

    availability_zone: str | None = None
    delete_on_termination: bool | None = None
    disable_prefix_delegation: bool | None = None
    exclude_interface_tags: Tags | None = None
    first_interface_index: Natural | None = None
    instance_id: str | None = None
    instance_type: str | None = None
    max_above_watermark: Natural | None = None
    min_allocate: Natural | None = None
    node_subnet_id: str | None = None
    pre_allocate: Natural | None = None
    security_group_tags: Tags | None = None
    security_groups: tuple[str, ...] | None = None
    subnet_ids: tuple[str, ...] | None = None
    subnet_tags: Tags | None = None
    use_primary_address: bool | None = None
    vpc_id: str | None = None


class NodeAzure(Dashed, frozen=True, kw_only=True):
    """Azure parameters of a node."""

    interface_name: str | None = None


class NodeAlibaba(Dashed, frozen=True, kw_only=True):
    """Alibaba Cloud parameters of a node."""

    availability_zone: str | None = None
    cidr_block: str | None = None
    instance_type: str | None = None
    security_group_tags: Tags | None = None
    security_groups: tuple[str, ...] | None = None
    vpc_id: str | None = None
    vswitch_tags: Tags | None = None
    vswitches: tuple[str, ...] | None = None


class NodeSpec(Dashed, frozen=True, kw_only=True):
    """What a node says about itself, and what the operator gave it."""

    addresses: tuple[NodeAddress, ...] | None = None
    bootid: str | None = None
    encryption: EncryptionSpec | None = None
    health: AddressPair | None = None
    ingress: AddressPair | None = None
    instance_id: str | None = None
    ipam: NodeIPAM | None = None
    nodeidentity: Int64 | None = None
    eni: NodeENI | None = None
    azure: NodeAzure | None = None
    alibaba_cloud: NodeAlibaba | None = None


class PodCIDRStatus(Dashed, frozen=True, kw_only=True):
    """What a node does with one of its pod prefixes."""

    status: Literal["released", "depleted", "in-use"] | None = None


class OperatorStatus(Dashed, frozen=True, kw_only=True):
    """Why the operator could not serve this node; empty when it could."""

    error: str | None = None


ReleaseState = Literal["marked-for-release", "ready-for-release", "do-not-release", "released"]


class NodeIPAMStatus(Dashed, frozen=True, kw_only=True):
    """Addresses in use and addresses on their way back."""

    operator_status: OperatorStatus | None = None
    pod_cidrs: dict[str, PodCIDRStatus] | None = None
    used: dict[str, AllocationIP] | None = None
    ipv6_used: dict[str, AllocationIP] | None = None
    release_ips: dict[str, ReleaseState] | None = None
    release_ipv6s: dict[str, ReleaseState] | None = None


class ENISubnet(Dashed, frozen=True, kw_only=True):
    """The subnet of an AWS interface."""

    id: str | None = None
    cidr: str | None = None


class ENIVPC(Dashed, frozen=True, kw_only=True):
    """The private cloud of an AWS interface."""

    id: str | None = None
    primary_cidr: str | None = None
    cidrs: tuple[str, ...] | None = None


class ENI(Dashed, frozen=True, kw_only=True):
    """An AWS interface."""

    id: str | None = None
    ip: str | None = None
    mac: str | None = None
    availability_zone: str | None = None
    description: str | None = None
    number: int | None = None
    subnet: ENISubnet | None = None
    vpc: ENIVPC | None = None
    addresses: tuple[str, ...] | None = None
    prefixes: tuple[str, ...] | None = None
    security_groups: tuple[str, ...] | None = None
    tags: Tags | None = None


class ENIStatus(Dashed, frozen=True, kw_only=True):
    """The AWS interfaces of a node."""

    enis: dict[str, ENI] | None = None


class AzureAddress(Dashed, frozen=True, kw_only=True):
    """An address of an Azure interface."""

    ip: str | None = None
    subnet: str | None = None
    state: str | None = None


class AzureInterface(Dashed, frozen=True, kw_only=True):
    """An Azure interface."""

    id: str | None = None
    name: str | None = None
    mac: str | None = None
    state: str | None = None
    addresses: tuple[AzureAddress, ...] | None = None
    security_group: str | None = None
    gateway: str | None = None
    gateway_ip: str | None = field(default=None, name="GatewayIP")
    cidr: str | None = None


class AzureStatus(Dashed, frozen=True, kw_only=True):
    """The Azure interfaces of a node."""

    interfaces: tuple[AzureInterface, ...] | None = None


class AlibabaPrivateIP(Dashed, frozen=True, kw_only=True):
    """An address of an Alibaba Cloud interface."""

    private_ip_address: str | None = None
    primary: bool | None = None


class AlibabaVPC(Dashed, frozen=True, kw_only=True):
    """The private cloud of an Alibaba Cloud interface."""

    vpc_id: str | None = None
    cidr: str | None = None
    ipv6_cidr: str | None = None
    secondary_cidrs: tuple[str, ...] | None = None


class AlibabaVSwitch(Dashed, frozen=True, kw_only=True):
    """The switch of an Alibaba Cloud interface."""

    vswitch_id: str | None = None
    cidr: str | None = None
    ipv6_cidr: str | None = None


class AlibabaENI(Dashed, frozen=True, kw_only=True):
    """An Alibaba Cloud interface."""

    network_interface_id: str | None = None
    mac_address: str | None = None
    type: str | None = None
    instance_id: str | None = None
    primary_ip_address: str | None = None
    private_ipsets: tuple[AlibabaPrivateIP, ...] | None = None
    security_groupids: tuple[str, ...] | None = None
    tags: Tags | None = None
    vpc: AlibabaVPC | None = None
    vswitch: AlibabaVSwitch | None = None
    zone_id: str | None = None


class AlibabaStatus(Dashed, frozen=True, kw_only=True):
    """The Alibaba Cloud interfaces of a node."""

    enis: dict[str, AlibabaENI] | None = None


class NodeStatus(Dashed, frozen=True, kw_only=True):
    """The state of a node's address management."""

    ipam: NodeIPAMStatus | None = None
    eni: ENIStatus | None = None
    azure: AzureStatus | None = None
    alibaba_cloud: AlibabaStatus | None = None


class CiliumNode(Dashed, frozen=True, kw_only=True):
    """A node as the network sees it. Named like the Kubernetes Node."""

    metadata: ObjectMeta
    spec: NodeSpec
    status: NodeStatus | None = None
