"""What a shell offers after Tab: names that the agent knows now. Without an agent it offers nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cilia.api.client import AgentClient, AgentError
from cilia.cli.output import end

SECONDS = 2.0
"""A shell waits no longer for an answer."""
SWITCHES = {
    "PolicyEnforcement": ("default", "always", "never"),
    "PolicyAuditMode": ("Enabled", "Disabled"),
    "PolicyDenyResponse": ("none", "icmp"),
    "DropNotification": ("Enabled", "Disabled"),
    "TraceNotification": ("Enabled", "Disabled"),
    "PolicyVerdictNotification": ("Enabled", "Disabled"),
    "TraceSockNotification": ("Enabled", "Disabled"),
    "MonitorAggregationLevel": ("none", "low", "medium"),
    "MonitorAggregationInterval": ("5s",),
    "MonitorAggregationFlags": ("syn,fin,rst",),
    "EventsRateLimit": ("0", "1000"),
    "EventsBurstLimit": ("0", "5000"),
}
"""What may be changed while the agent runs, and the values to choose from."""


def offered(names: Callable[[AgentClient], Iterable[str]], typed: str) -> list[str]:
    """The names that begin as typed."""
    try:
        return sorted(name for name in names(AgentClient(timeout=SECONDS)) if name.startswith(typed))
    except AgentError:
        return []


def complete_endpoints(incomplete: str) -> list[str]:
    """Numbers and pods of this node's endpoints."""

    def names(client: AgentClient) -> Iterable[str]:
        for endpoint in client.endpoints():
            yield str(endpoint.id)
            if endpoint.status.external_identifiers.pod_name:
                yield endpoint.status.external_identifiers.pod_name

    return offered(names, incomplete)


def complete_ends(incomplete: str) -> list[str]:
    """Pods with an address, and entities."""

    def names(client: AgentClient) -> Iterable[str]:
        yield from ("host", "kube-apiserver", "remote-node", "world")
        for entry in client.addresses():
            if entry.metadata.name:
                yield f"{entry.metadata.namespace}/{entry.metadata.name}"

    return sorted(set(offered(names, incomplete)))


def complete_policies(incomplete: str) -> list[str]:
    """KIND/NAMESPACE/NAME of every policy."""

    def names(client: AgentClient) -> Iterable[str]:
        for policy in client.policies().policies:
            yield "/".join(part for part in (policy.kind, policy.namespace, policy.name) if part)

    return offered(names, incomplete)


def complete_services(incomplete: str) -> list[str]:
    """NAMESPACE/NAME of every service, and what clients ask for."""

    def names(client: AgentClient) -> Iterable[str]:
        for service in client.services().services:
            flags, at = service.spec.flags, service.spec.frontend_address
            yield "/".join(part for part in (flags.namespace, flags.name) if part)
            yield end(at.ip, at.port, at.protocol)

    return sorted(set(offered(names, incomplete)))


def complete_by_hand(incomplete: str) -> list[str]:
    """Frontends of services by hand."""
    return offered(lambda client: (each.frontend for each in client.local_services()), incomplete)


def complete_maps(incomplete: str) -> list[str]:
    """Names of the kernel's maps."""
    return offered(lambda client: (each.name for each in client.maps()), incomplete)


def complete_changes(incomplete: str) -> list[str]:
    """OPTION=VALUE for each switch of the agent; OPTION alone, which --reset takes."""
    whole = [f"{name}={value}" for name, values in SWITCHES.items() for value in values]
    return [text for text in (*SWITCHES, *whole) if text.startswith(incomplete)]
