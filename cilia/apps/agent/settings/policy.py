"""Who is isolated, and what becomes of what policies deny."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import Option

from cilia.kit.flags import one_of


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Who is isolated, and what becomes of what policies deny."""

    enforcement: Annotated[
        str,
        Option(
            "--enforcement",
            "--enable-policy",
            "--policy-enforcement-mode",
            parser=one_of("default", "always", "never"),
            help="default: pods that a policy selects; always; never.",
        ),
    ] = "default"
    policy_audit_mode: Annotated[
        bool, Option(help="Note what policies deny on this node, and let it pass.")
    ] = False
    policy_deny_response: Annotated[
        str,
        Option(
            parser=one_of("none", "icmp"),
            help="How a pod learns that its packet was denied: none, or icmp (administratively prohibited).",
        ),
    ] = "none"
    policy_cidr_match_mode: Annotated[
        str,
        Option(
            parser=one_of("", "nodes"),
            help="nodes: rules about prefixes also mean the nodes of the cluster; empty: only what is "
            "outside of it.",
        ),
    ] = ""
    policy_node_status: Annotated[
        bool,
        Option(
            help="Write into each policy's status what this node made of it. Every node that a policy "
            "concerns writes into the one object, so a cluster of more than about a thousand "
            "nodes is better off without."
        ),
    ] = True
    allow_localhost: Annotated[
        str,
        Option(
            parser=one_of("auto", "always", "policy"),
            help="Whether this node may talk to its pods whatever isolates them (probes of the "
            "kubelet): always; policy: only if a rule says so; auto: always.",
        ),
    ] = "auto"
    host_firewall: Annotated[
        bool,
        Option(
            "--host-firewall/--no-host-firewall",
            "--enable-host-firewall/--no-enable-host-firewall",
            help="Enforce policies with a nodeSelector on this node's own traffic.",
        ),
    ] = False
    identity_change_grace: Annotated[
        float,
        Option(
            min=0,
            help="Seconds a relabelled pod keeps its old identity, so that other nodes learn the new "
            "one first.",
        ),
    ] = 1.0
