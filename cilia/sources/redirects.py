"""CiliumLocalRedirectPolicies into `redirects`.

One that makes no sense still has a row, which says why: it is refused in the open.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cilia.cluster.store import CILIUM_LOCAL_REDIRECT_POLICIES, Invalid, decode
from cilia.model.resources.base import AnyObject
from cilia.model.resources.cilium_local_redirect import (
    CiliumLocalRedirectPolicy,
    LocalRedirectSpec,
    PortInfo,
    RedirectFrontend,
)
from cilia.model.resources.faults import explain
from cilia.model.service import Protocol
from cilia.schema.rows import LocalRedirectRow, RedirectPort
from cilia.sources import checks
from cilia.sources.reflector import Translation


def redirects() -> Translation[tuple[str, str], LocalRedirectRow]:
    """Translate all redirects; a cluster without the kind has none."""
    return Translation(CILIUM_LOCAL_REDIRECT_POLICIES, row, key, optional=True)


def key(any_object: AnyObject) -> tuple[str, str]:
    """Namespace and name."""
    return any_object.metadata.namespace, any_object.metadata.name


def row(raw: msgspec.Raw) -> LocalRedirectRow:
    """Return the row of a redirect, with its problem if it has one."""
    meta = decode(raw, AnyObject).metadata
    try:
        spec = decode(raw, CiliumLocalRedirectPolicy).spec
    except Invalid as error:
        path, sentence = explain(str(error), CiliumLocalRedirectPolicy, raw)
        return _refused(meta.namespace, meta.name, f"{path}: {sentence}")
    if spec is None:
        return _refused(meta.namespace, meta.name, "spec: it is missing")
    try:
        address, service, ports = _frontend(spec.redirect_frontend, meta.namespace)
    except Invalid as error:
        return _refused(meta.namespace, meta.name, str(error))
    backend = spec.redirect_backend
    selector = backend.local_endpoint_selector
    return LocalRedirectRow(
        namespace=meta.namespace,
        name=meta.name,
        address=address,
        service=service,
        frontend_ports=_ports(ports),
        backend_labels=dict(selector.match_labels or {}),
        backend_expressions=tuple(
            {"key": wanted.key, "operator": wanted.operator, "values": list(wanted.values or ())}
            for wanted in selector.match_expressions or ()
        ),
        backend_ports=_ports(backend.to_ports),
        skip_from_backend=spec.skip_redirect_from_backend,
        problem=_mismatch(spec, ports),
    )


def _refused(namespace: str, name: str, problem: str) -> LocalRedirectRow:
    return LocalRedirectRow(namespace=namespace, name=name, problem=problem)


def _frontend(frontend: RedirectFrontend, namespace: str) -> tuple[str, str, Sequence[PortInfo]]:
    """Address, Service (one of both is empty) and ports. Raises Invalid with the field at fault."""
    by_address, by_service = frontend.address_matcher, frontend.service_matcher
    if by_address is not None:
        path = "spec.redirectFrontend.addressMatcher"
        try:
            address = checks.address(by_address.ip)
        except Invalid as error:
            raise Invalid(f"{path}.ip: {error}") from error
        if not by_address.to_ports:
            raise Invalid(f"{path}.toPorts: name at least one port")
        return address, "", by_address.to_ports
    assert by_service is not None
    path = "spec.redirectFrontend.serviceMatcher"
    if by_service.namespace != namespace:
        raise Invalid(
            f"{path}.namespace: a redirect can only name Services of its own namespace, {namespace}; "
            f"this is {by_service.namespace[:60]!r}"
        )
    if not by_service.service_name:
        raise Invalid(f"{path}.serviceName: it is empty")
    return "", by_service.service_name, by_service.to_ports or ()


def _ports(ports: Sequence[PortInfo]) -> tuple[RedirectPort, ...]:
    return tuple(
        RedirectPort(int(port.port), Protocol[port.protocol], (port.name or "").lower()) for port in ports
    )


def _mismatch(spec: LocalRedirectSpec, frontend: Sequence[PortInfo]) -> str:
    """Why the ports of frontend and backends don't tell which belongs to which; empty when they do."""
    backend = spec.redirect_backend.to_ports
    path = "spec.redirectBackend.toPorts"
    if not backend:
        return f"{path}: name at least one port"
    if len(frontend) <= 1 and len(backend) == 1:
        return ""
    for ports, where in ((frontend, "spec.redirectFrontend"), (backend, path)):
        if any(not port.name for port in ports):
            return f"{where}: with several ports, give each a name that frontend and backends share"
    missing = [port.name for port in frontend if (port.name, port.protocol) not in _named(backend)]
    return f"{path}: no port is named {missing[0]!r} with the same protocol" if missing else ""


def _named(ports: Sequence[PortInfo]) -> set[tuple[str | None, str]]:
    return {(port.name, port.protocol) for port in ports}
