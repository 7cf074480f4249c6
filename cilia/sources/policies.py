"""Policies of all kinds into `policies`, as written: what they mean is decided elsewhere.

A policy that can't be decoded still has a row, which says why: it must be refused in the open, with the path
of what is wrong, and not be missing as if nobody had written it.
"""

import msgspec

from cilia.cluster import store
from cilia.cluster.store import Invalid, Resource, decode
from cilia.model.policy import PolicyObject, PolicyProblem
from cilia.model.resources.base import AnyObject, Object
from cilia.model.resources.cilium_policy import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from cilia.model.resources.cluster_network_policy import ClusterNetworkPolicy
from cilia.model.resources.faults import explain
from cilia.model.resources.network_policy import NetworkPolicy
from cilia.sources.reflector import Translation

Key = tuple[str, str, str]

MODELS: dict[Resource, type[Object]] = {
    store.NETWORK_POLICIES: NetworkPolicy,
    store.CILIUM_NETWORK_POLICIES: CiliumNetworkPolicy,
    store.CILIUM_CLUSTERWIDE_NETWORK_POLICIES: CiliumClusterwideNetworkPolicy,
    store.CLUSTER_NETWORK_POLICIES: ClusterNetworkPolicy,
}

DOMAIN = ".cilia.io"

OPTIONAL = frozenset({store.CLUSTER_NETWORK_POLICIES})
"""Kinds of other projects: a cluster need not have them."""


def policies(resource: Resource) -> Translation[Key, PolicyObject]:
    """Translate all policies of one kind."""
    model = MODELS[resource]

    def key(any_object: AnyObject) -> Key:
        return resource.kind, any_object.metadata.namespace, any_object.metadata.name

    def row(raw: msgspec.Raw) -> PolicyObject:
        meta = decode(raw, AnyObject).metadata
        body: Object | None = None
        problem: PolicyProblem | None = None
        try:
            body = decode(raw, model)
        except Invalid as error:
            body = _without_status(raw, model)
            if body is None:
                problem = PolicyProblem(*explain(str(error), model, raw))
        return PolicyObject(
            kind=resource.kind,
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.uid,
            resource_version=meta.resource_version,
            generation=meta.generation,
            labels=meta.labels or {},
            annotations=_relevant(meta.annotations or {}),
            body=body,
            problem=problem,
        )

    return Translation(
        resource,
        row,
        key,
        owns=lambda policy: policy.kind == resource.kind,
        same=same,
        optional=resource in OPTIONAL,
    )


def _without_status(raw: msgspec.Raw, model: type[Object]) -> Object | None:
    """The object, if only its status makes no sense: whoever may write that could else disarm a policy."""
    try:
        fields = decode(raw, dict[str, msgspec.Raw])
        if fields.pop("status", None) is None:
            return None
        return decode(msgspec.json.encode(fields), model)
    except Invalid:
        return None


def _relevant(annotations: dict[str, str]) -> dict[str, str]:
    """Cilia's own annotations: anybody may write others at any time, and they mean nothing here."""
    return {key: value for key, value in annotations.items() if f".{key.partition('/')[0]}".endswith(DOMAIN)}


def same(before: PolicyObject, after: PolicyObject) -> bool:
    """Whether only the status changed: the store counts `generation` up with every change of the spec."""
    return (
        after.generation > 0
        and (before.uid, before.generation) == (after.uid, after.generation)
        and (before.labels, before.annotations) == (after.labels, after.annotations)
        and (before.body is None) == (after.body is None)
    )
