"""CiliumIdentities into `cluster_identities`."""

import msgspec

from cilia.cluster.store import CILIUM_IDENTITIES, decode
from cilia.model.identity import CLUSTER_FIRST, LOCAL_CIDR_FIRST, Identity
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.resources.base import AnyObject
from cilia.model.resources.cilium_identity import CiliumIdentity
from cilia.sources.reflector import Translation


def identities() -> Translation[IdentityId, Identity]:
    """Translate all identities of the cluster."""
    return Translation(CILIUM_IDENTITIES, row, key)


def key(any_object: AnyObject) -> IdentityId:
    """The number that the name spells; 0 for a name that spells none, which never has a row."""
    name = any_object.metadata.name
    return IdentityId(int(name)) if name.isascii() and name.isdecimal() else IdentityId(0)


def row(raw: msgspec.Raw) -> Identity | None:
    """Return the identity; a number outside the cluster's range is none: it would shadow a reserved one."""
    number = key(decode(raw, AnyObject))
    if not CLUSTER_FIRST <= number < LOCAL_CIDR_FIRST:
        return None
    return Identity(number, Labels.from_security_labels(decode(raw, CiliumIdentity).security_labels))
