"""CiliumCIDRGroup: a named list of prefixes that policies refer to by name or by the group's labels.

Source: the CRD schema of cilium.io/v2alpha1; v2 has the same fields.
"""

from typing import Annotated

from msgspec import Meta

from cilia.model.resources.base import Object, ObjectMeta
from cilia.model.resources.cilium_policy import Cidr


class CIDRGroupSpec(Object, frozen=True, kw_only=True):
    """The prefixes of a group."""

    external_cidrs: Annotated[tuple[Cidr, ...], Meta(min_length=0)]


class CiliumCIDRGroup(Object, frozen=True, kw_only=True):
    """Prefixes outside the cluster under one name."""

    metadata: ObjectMeta = ObjectMeta()
    spec: CIDRGroupSpec
