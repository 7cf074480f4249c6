"""Services into `services` and their EndpointSlices into `endpoint_slices`, as far as policies need them."""

import msgspec

from cilia.cluster.store import ENDPOINT_SLICES, SERVICES, Invalid, decode
from cilia.model.resources.base import AnyObject
from cilia.model.resources.core import EndpointSlice, Service
from cilia.schema.rows import EndpointSliceRow, ServiceRow
from cilia.sources import checks
from cilia.sources.reflector import Translation

SERVICE_NAME = "kubernetes.io/service-name"
"""The label by which a slice names its Service."""

WITHOUT_PODS = "ExternalName"
"""The type of a Service that is an alias of a DNS name: its selector, if any, selects nothing."""


def services() -> Translation[tuple[str, str], ServiceRow]:
    """Translate all Services."""
    return Translation(SERVICES, service, key)


def endpoint_slices() -> Translation[tuple[str, str], EndpointSliceRow]:
    """Translate all EndpointSlices that belong to a Service."""
    return Translation(ENDPOINT_SLICES, endpoint_slice, key)


def key(any_object: AnyObject) -> tuple[str, str]:
    """Namespace and name."""
    return any_object.metadata.namespace, any_object.metadata.name


def service(raw: msgspec.Raw) -> ServiceRow | None:
    """Return the row of a Service; None for an alias of a DNS name."""
    found = decode(raw, Service)
    if found.spec.type == WITHOUT_PODS:
        return None
    meta = found.metadata
    return ServiceRow(
        namespace=meta.namespace,
        name=meta.name,
        labels=meta.labels or {},
        selector=found.spec.selector or {},
    )


def endpoint_slice(raw: msgspec.Raw) -> EndpointSliceRow | None:
    """Return the row of a slice: the addresses of all its endpoints, ready or not, so that a policy does not
    flap with their health. DNS names and what stands for no single host are left out."""
    found = decode(raw, EndpointSlice)
    meta = found.metadata
    owner = (meta.labels or {}).get(SERVICE_NAME)
    if not owner:
        return None
    texts = [text for endpoint in found.endpoints or () for text in endpoint.addresses]
    return EndpointSliceRow(
        namespace=meta.namespace,
        name=meta.name,
        service=owner,
        addresses=tuple(sorted({address for text in texts if (address := _address(text))})),
    )


def _address(text: str) -> str:
    try:
        return checks.address(text)
    except Invalid:
        return ""
