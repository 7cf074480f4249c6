"""Security identities: who a packet speaks for.

Reserved numbers and scopes are those Cilium's users know: 1..255 reserved, 256..65535 for label sets of the
cluster, from 1<<24 node-local CIDRs, from 2<<24 node-local remote nodes.
"""

from __future__ import annotations

import msgspec

from cilia.model.ids import IdentityId
from cilia.model.labels import Label, Labels

UNKNOWN = IdentityId(0)
HOST = IdentityId(1)
WORLD = IdentityId(2)
UNMANAGED = IdentityId(3)
HEALTH = IdentityId(4)
INIT = IdentityId(5)
REMOTE_NODE = IdentityId(6)
KUBE_APISERVER = IdentityId(7)
INGRESS = IdentityId(8)
WORLD_IPV4 = IdentityId(9)
WORLD_IPV6 = IdentityId(10)

CLUSTER_FIRST = 256
CLUSTER_LAST = 65535
LOCAL_CIDR_FIRST = 1 << 24
LOCAL_NODE_FIRST = 2 << 24

RESERVED_NAMES: dict[IdentityId, tuple[str, ...]] = {
    UNKNOWN: ("unknown",),
    HOST: ("host",),
    WORLD: ("world",),
    UNMANAGED: ("unmanaged",),
    HEALTH: ("health",),
    INIT: ("init",),
    REMOTE_NODE: ("remote-node",),
    KUBE_APISERVER: ("kube-apiserver", "remote-node"),
    INGRESS: ("ingress",),
    WORLD_IPV4: ("world-ipv4", "world"),
    WORLD_IPV6: ("world-ipv6", "world"),
}
"""The reserved labels of each reserved identity, its own name first."""


class Identity(msgspec.Struct, frozen=True):
    """A number and the labels it stands for."""

    id: IdentityId
    labels: Labels

    @property
    def local(self) -> bool:
        """Whether the number means nothing on other nodes."""
        return self.id >= LOCAL_CIDR_FIRST

    @property
    def reserved(self) -> bool:
        """Whether it is one of the fixed numbers."""
        return self.id < CLUSTER_FIRST


def reserved_identities() -> list[Identity]:
    """All fixed identities but `unknown`, with their labels."""
    return [
        Identity(number, Labels.of(Label("reserved", name) for name in names))
        for number, names in RESERVED_NAMES.items()
        if number != UNKNOWN
    ]
