"""`cilia endpoint ...`: the pods of this node."""

from __future__ import annotations

from typing import Annotated

import typer

from cilia.api.types import EndpointView, EntryView, RuleView
from cilia.cli.completing import complete_endpoints
from cilia.cli.config import Changes, Reset, live_options, print_settings, read_changes
from cilia.cli.options import AgentSocket, Output, connect, group
from cilia.cli.output import Format, print_data, print_table

app = group("Endpoints of this node: pods, their identities and the policy each enforces.")

Reference = Annotated[
    str,
    typer.Argument(
        metavar="ENDPOINT",
        help="NAMESPACE/POD, its number, or container-id:ID; 65535 is the node itself.",
        autocompletion=complete_endpoints,
    ),
]


@app.command("list", short_help="List all endpoints.")
def list_endpoints(output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """List all endpoints: pods of this node, and the node itself."""
    endpoints = connect(socket).endpoints()
    if output is not Format.TABLE:
        return print_data(endpoints, output)
    return print_table(
        ("ENDPOINT", "POD", "STATE", "IDENTITY", "POLICY", "REVISION", "IPV4", "IPV6"),
        (
            (
                e.id,
                _name(e),
                e.status.state,
                e.status.identity.id or None,
                e.status.policy.realized.policy_enabled,
                e.status.policy.realized.policy_revision or None,
                tuple(a.ipv4 for a in e.status.networking.addressing if a.ipv4),
                tuple(a.ipv6 for a in e.status.networking.addressing if a.ipv6),
            )
            for e in endpoints
        ),
        empty="This node has no endpoints.",
        below=("IPV4", "IPV6"),
    )


def _name(endpoint: EndpointView) -> str:
    """The pod, or what else it is: reserved:host, reserved:init."""
    reserved = (label for label in endpoint.status.identity.labels if label.startswith("reserved:"))
    return endpoint.status.external_identifiers.pod_name or next(reserved, "")


@app.command("get", short_help="Show one endpoint.")
def get_endpoint(reference: Reference, output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """Show one endpoint: labels, identity, addresses, interface.

    \b
    Examples:
      cilia endpoint get shop/web
      cilia endpoint get 65535 -o json
    """
    endpoint = connect(socket).endpoint(qualified(reference))
    if output is not Format.TABLE:
        return print_data(endpoint, output)
    return print_table(("FIELD", "VALUE"), _fields(endpoint))


@app.command("policy", short_help="Show its policy, entry by entry.")
def endpoint_policy(reference: Reference, output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """Show the policy an endpoint is held to: each entry with its rules, and how often it was used.

    HITS are packets that the entry judged, PACKETS and BYTES those of the flows it let pass.

    \b
    Examples:
      cilia endpoint policy shop/web
      cilia endpoint policy 7 | grep deny
    """
    policy = connect(socket).endpoint_policy(qualified(reference))
    if output is not Format.TABLE:
        return print_data(policy, output)
    typer.echo(
        f"Endpoint {policy.id}, revision {policy.revision}, enforced: {policy.policy_enabled}, "
        f"{len(policy.entries)} entries (highest precedence first)"
        + (f", counted since {policy.counted_since}" if policy.counted_since else "")
    )
    return print_table(
        (
            "DIRECTION",
            "PEER",
            "LABELS",
            "PROTOCOL",
            "PORT",
            "VERDICT",
            "HITS",
            "PACKETS",
            "BYTES",
            "LAST HIT",
            "RULE",
        ),
        (
            (
                e.direction,
                e.peer or "any",
                short_labels(e.peer_labels),
                e.protocol,
                e.port,
                f"{e.verdict}, audit" if e.audit else e.verdict,
                e.hits,
                e.packets,
                e.bytes,
                e.last_hit,
                rules_text(e),
            )
            for e in policy.entries
        ),
        below=("LABELS", "RULE"),
    )


@app.command("config", short_help="Show or change its switches.")
def endpoint_config(
    reference: Reference,
    changes: Changes = None,
    reset: Reset = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Show what can be changed of one endpoint, or change it.

    In audit, what policies would deny passes, and flows say so (cilia observe --verdict AUDIT).

    \b
    Examples:
      cilia endpoint config shop/web
      cilia endpoint config shop/web PolicyAuditMode=Enabled
      cilia endpoint config shop/web --reset
    """
    client, name = connect(socket), qualified(reference)
    # Not asked before a change: an agent that is not ready yet may only take that.
    settings = [] if changes else client.endpoint_settings(name)
    wanted = changes or (live_options(settings) if reset else [])
    if wanted:
        settings = client.change_endpoint(name, read_changes(wanted, reset))
    if output is not Format.TABLE:
        return print_data(settings, output)
    return print_settings(settings)


def qualified(reference: str) -> str:
    """`NAMESPACE/NAME` means a pod; the rest is the API's syntax."""
    return f"pod-name:{reference}" if "/" in reference and ":" not in reference else reference


def short_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Labels without the cluster's and the service account's, which nearly all pods share."""
    return tuple(label for label in labels if not label.startswith("k8s:io.cilium.k8s."))


def rule_text(rule: RuleView) -> str:
    """A rule as one opens it: kind, object, path."""
    where = f"{rule.namespace}/{rule.name}" if rule.namespace else rule.name
    return f"{rule.kind} {where} {rule.path}"


def rules_text(entry: EntryView) -> tuple[str, ...]:
    """The rules of an entry; a default verdict says so."""
    rules = tuple(rule_text(rule) for rule in entry.rules)
    if entry.default:
        return tuple(f"default, isolated by {rule}" for rule in rules) or ("default",)
    return rules


def _fields(endpoint: EndpointView) -> list[tuple[str, object]]:
    status = endpoint.status
    network = status.networking
    names = status.external_identifiers
    return [
        ("endpoint", endpoint.id),
        ("state", status.state),
        ("error", status.error),
        ("pod", names.pod_name),
        ("pod uid", names.k8s_uid),
        ("container", names.container_id),
        ("network namespace", names.netns),
        ("identity", status.identity.id),
        ("labels", status.identity.labels),
        ("addresses", tuple(a for pair in network.addressing for a in (pair.ipv4, pair.ipv6) if a)),
        ("interface", f"{network.interface_name} (index {network.interface_index})"),
        ("interface in the pod", network.container_interface_name),
        ("mac", network.mac),
        ("mac of the host's side", network.host_mac),
        ("policy enforced", status.policy.realized.policy_enabled),
        ("policy revision", status.policy.realized.policy_revision),
        ("policy entries", status.policy.realized.entries),
        ("named ports", tuple(f"{p.name} {p.port}/{p.protocol}" for p in status.named_ports)),
    ]
