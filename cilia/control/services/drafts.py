"""What one object asks for, before anybody looks whether others ask for the same."""

from __future__ import annotations

from typing import NamedTuple

from cilia.model.service import FrontendKind, HealthCheck, ServiceEntry

Owner = tuple[str, str, str]
"""Kind, namespace and name of the object that asks, as the key of a ServiceState."""

SERVICE = "Service"
REDIRECT = "CiliumLocalRedirectPolicy"
POD = "Pod"
STANDALONE = "Standalone"
SLICE = "EndpointSlice"

_KINDS = {
    FrontendKind.LOCAL_REDIRECT: REDIRECT,
    FrontendKind.HOST_PORT: POD,
    FrontendKind.STANDALONE: STANDALONE,
}


class Draft(NamedTuple):
    """The frontends an object wants, and what is wrong with it."""

    entries: tuple[ServiceEntry, ...] = ()
    """At most one for each frontend."""
    problems: tuple[str, ...] = ()
    """Sentences, each with the field at fault."""
    health: HealthCheck | None = None
    age: str = ""
    """Of objects that ask for the same the one with the smallest has it."""


def owner_of(entry: ServiceEntry) -> Owner:
    """Who asks for an entry."""
    kind = _KINDS.get(entry.kind, SERVICE)
    return kind, entry.namespace, str(entry.frontend) if kind is STANDALONE else entry.name


def named(owner: Owner) -> str:
    """An object in a sentence."""
    kind, namespace, name = owner
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
