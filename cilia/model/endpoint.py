"""Endpoints: what is attached to the node's network, and the life it lives.

States are those Cilium's users see in CiliumEndpoint.
"""

from __future__ import annotations

import enum

import msgspec

from cilia.model.ids import EndpointId, IdentityId, SubjectId
from cilia.model.labels import Labels

HOST_ENDPOINT = EndpointId(65_535)
"""The number of the host itself; no pod gets it."""


class EndpointState(enum.StrEnum):
    """Where an endpoint stands in its life.

    Computed from what is there now, not travelled through: an endpoint that lacks its identity waits for
    it, whatever it was before. Hence no table of transitions.
    """

    CREATING = "creating"
    WAITING_FOR_IDENTITY = "waiting-for-identity"
    NOT_READY = "not-ready"
    WAITING_TO_REGENERATE = "waiting-to-regenerate"
    REGENERATING = "regenerating"
    RESTORING = "restoring"
    READY = "ready"
    DISCONNECTING = "disconnecting"
    DISCONNECTED = "disconnected"
    INVALID = "invalid"


class NamedPort(msgspec.Struct, frozen=True, order=True):
    """A container port with a name."""

    name: str
    port: int
    protocol: str = "TCP"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What a CNI ADD made: written to the state directory, so that a restarted agent adopts it."""

    id: EndpointId
    container_id: str
    interface: str
    """Name of the interface inside the pod, as a rule eth0."""
    netns: str
    """Path of the pod's network namespace."""
    host_interface: str
    ifindex: int
    """Of the host-side interface."""
    mac: str
    host_mac: str
    ipv4: str = ""
    ipv6: str = ""
    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A local endpoint: its attachment, whom it speaks for, and where it stands."""

    attachment: Attachment
    labels: Labels = Labels()
    identity: IdentityId = IdentityId(0)
    named_ports: tuple[NamedPort, ...] = ()
    """Sorted."""
    audit: bool = False
    """Denials are noted, not enforced: by an annotation of its pod or namespace, or by a live switch."""
    state: EndpointState = EndpointState.CREATING

    @property
    def id(self) -> EndpointId:
        return self.attachment.id

    @property
    def pod_name(self) -> str:
        """`namespace/pod`, or an empty string."""
        return f"{self.attachment.namespace}/{self.attachment.pod}" if self.attachment.pod else ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The pod's addresses, IPv4 first."""
        return tuple(a for a in (self.attachment.ipv4, self.attachment.ipv6) if a)


class RemoteEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody else's endpoint, as its CiliumEndpoint tells."""

    namespace: str
    name: str
    identity: IdentityId
    node_ip: str
    addresses: tuple[str, ...]
    labels: Labels = Labels()
    named_ports: tuple[NamedPort, ...] = ()


class EndpointEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel must know of a local endpoint (maps `endpoints` and `ifaces`)."""

    id: EndpointId
    ifindex: int
    identity: IdentityId
    subject: SubjectId
    mac: str
    host_mac: str
    ipv4: str = ""
    ipv6: str = ""
    flags: int = 0
    """enum endpoint_flags of bpf/abi/endpoint.h"""
    judged: bool = True
    """Whether its policy is asked at all: the host's is not before one speaks of it."""
