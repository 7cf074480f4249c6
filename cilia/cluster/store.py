"""The one protocol to the cluster's shared truth: Kubernetes API semantics, whoever keeps the objects.

Implementations: `kube` (any Kubernetes API server) and `directory` (YAML files). Objects cross this
boundary as raw JSON; `decode` turns them into structs of `cilia.model.resources`, `encode` back.

Source: Kubernetes API concepts (resource versions, watches, optimistic concurrency).
"""

from collections.abc import AsyncGenerator
from typing import Any, Protocol, TypeVar

import msgspec

from cilia.wire.watch_stream import WatchEvent as WatchEvent

T = TypeVar("T")


class Resource(msgspec.Struct, frozen=True):
    """A kind of object and where it lives in the API. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    also: tuple[str, ...] = ()
    """Other versions of the same fields, under which objects may be written."""

    @property
    def api_version(self) -> str:
        """The `apiVersion` of objects of this kind."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(
        self, *, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """Return the URL path of the collection (no name) or of one object."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/".join(parts)


PODS = Resource("", "v1", "pods", "Pod", True)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False)
NODES = Resource("", "v1", "nodes", "Node", False)
SERVICES = Resource("", "v1", "services", "Service", True)
EVENTS = Resource("", "v1", "events", "Event", True)
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", True)
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", True)
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
CILIUM_NETWORK_POLICIES = Resource("cilium.io", "v2", "ciliumnetworkpolicies", "CiliumNetworkPolicy", True)
CILIUM_CLUSTERWIDE_NETWORK_POLICIES = Resource(
    "cilium.io", "v2", "ciliumclusterwidenetworkpolicies", "CiliumClusterwideNetworkPolicy", False
)
CILIUM_CIDR_GROUPS = Resource(
    "cilium.io", "v2alpha1", "ciliumcidrgroups", "CiliumCIDRGroup", False, also=("v2",)
)
CILIUM_LOCAL_REDIRECT_POLICIES = Resource(
    "cilium.io", "v2", "ciliumlocalredirectpolicies", "CiliumLocalRedirectPolicy", True
)
CLUSTER_NETWORK_POLICIES = Resource(
    "policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies", "ClusterNetworkPolicy", False
)
CILIUM_ENDPOINTS = Resource("cilium.io", "v2", "ciliumendpoints", "CiliumEndpoint", True)
CILIUM_IDENTITIES = Resource("cilium.io", "v2", "ciliumidentities", "CiliumIdentity", False)
CILIUM_NODES = Resource("cilium.io", "v2", "ciliumnodes", "CiliumNode", False)

RESOURCES = (
    PODS,
    NAMESPACES,
    NODES,
    SERVICES,
    EVENTS,
    ENDPOINT_SLICES,
    NETWORK_POLICIES,
    LEASES,
    CRDS,
    CILIUM_NETWORK_POLICIES,
    CILIUM_CLUSTERWIDE_NETWORK_POLICIES,
    CILIUM_CIDR_GROUPS,
    CILIUM_LOCAL_REDIRECT_POLICIES,
    CLUSTER_NETWORK_POLICIES,
    CILIUM_ENDPOINTS,
    CILIUM_IDENTITIES,
    CILIUM_NODES,
)


class StoreError(Exception):
    """The store did not do what was asked; the message is one sentence for a person."""


class NotFound(StoreError):
    """The object, or its kind, does not exist."""


class AlreadyExists(StoreError):
    """An object of this name exists."""


class Conflict(StoreError):
    """The object changed since it was read, or a precondition does not hold: read it again."""


class Gone(StoreError):
    """The history since that resource version is no longer kept: list again."""


class Forbidden(StoreError):
    """The caller is unknown or may not do this: look at its credentials and role."""


class Invalid(StoreError):
    """The object or the request is malformed: the same request will fail again."""


class Unavailable(StoreError):
    """The store can't be reached or is overloaded: try again later (after `retry_after` seconds if given)."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Listing(msgspec.Struct, frozen=True):
    """A complete list and the version at which it was true.

    The items are views into one answer's buffer: decode them, do not keep them.
    """

    items: list[msgspec.Raw]
    resource_version: str


class Preconditions(msgspec.Struct, frozen=True):
    """What must still be true of an object for it to be deleted; `None` is not checked."""

    uid: str | None = None
    resource_version: str | None = None


class Store(Protocol):
    """What every component knows of the cluster. All methods raise StoreError and nothing else expected.

    `namespace=None` means all namespaces in `list` and `watch`, and is required to be None for kinds
    without namespaces. `body` is the whole object as JSON, with apiVersion and kind.
    """

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing:
        """Return all matching objects."""
        ...

    def watch(
        self,
        resource: Resource,
        *,
        since: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield changes after `since`; ends when the store ends the stream, which is no error.

        Raises Gone when the history is no longer kept. To stop early, close the iterator.
        """
        ...

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> bytes:
        """Return one object."""
        ...

    async def create(self, resource: Resource, body: bytes, *, namespace: str | None = None) -> bytes:
        """Create an object and return it as stored; raises AlreadyExists."""
        ...

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: bytes,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> bytes:
        """Replace an object; with a resourceVersion in the body, only if it is still that version."""
        ...

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: bytes,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> bytes:
        """Apply a JSON merge patch (RFC 7386); a resourceVersion in it is a precondition."""
        ...

    async def replace_status(
        self, resource: Resource, name: str, body: bytes, *, namespace: str | None = None
    ) -> bytes:
        """Replace only the status of an object."""
        ...

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        preconditions: Preconditions | None = None,
    ) -> None:
        """Delete an object; raises NotFound, and Conflict when a precondition fails."""
        ...


_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {}
"""One decoder a model: building one costs more than a thousand objects."""


def decode(raw: msgspec.Raw | bytes, model: type[T]) -> T:
    """Decode an object; raises Invalid with the JSON path of what is wrong."""
    decoder: msgspec.json.Decoder[T] | None = _DECODERS.get(model)
    if decoder is None:
        decoder = _DECODERS[model] = msgspec.json.Decoder(model)
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"not a valid {model.__name__}: {error}") from error
    except RecursionError:
        raise Invalid(f"not a valid {model.__name__}: it is nested too deeply") from None


def encode(resource: Resource, fields: msgspec.Struct | dict[str, Any]) -> bytes:
    """Encode a whole object, with the apiVersion and kind that its struct leaves out."""
    body = {"apiVersion": resource.api_version, "kind": resource.kind}
    return msgspec.json.encode(body | msgspec.to_builtins(fields))
