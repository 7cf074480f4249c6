"""CiliumIdentities into `cluster_identities`."""

import re

import msgspec

from cilia.cluster.store import CILIUM_IDENTITIES, Invalid, decode
from cilia.model.identity import CLUSTER_FIRST, LOCAL_CIDR_FIRST, Identity
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.resources.base import AnyObject
from cilia.model.resources.cilium_identity import CiliumIdentity
from cilia.sources.reflector import Translation

_NUMBER = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


def identities() -> Translation[IdentityId, Identity]:
    """Translate all identities of the cluster."""
    return Translation(CILIUM_IDENTITIES, row, key)


def key(any_object: AnyObject) -> IdentityId:
    """The number that the name spells; 0 for a name that spells none, which never has a row.

    A number has one spelling: with another, one object would stand in for the other.
    """
    name = any_object.metadata.name
    return IdentityId(int(name)) if _NUMBER.fullmatch(name) else IdentityId(0)


def row(raw: msgspec.Raw) -> Identity:
    """Return the identity. Raises Invalid for a number outside the cluster's range: it would shadow a
    reserved one."""
    meta = decode(raw, AnyObject)
    number = key(meta)
    if not CLUSTER_FIRST <= number < LOCAL_CIDR_FIRST:
        raise Invalid(f"the name {meta.metadata.name[:60]!r} is no identity number of the cluster")
    return Identity(number, Labels.from_security_labels(decode(raw, CiliumIdentity).security_labels))
