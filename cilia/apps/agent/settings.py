"""What an operator may set about an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """All settings of the agent; each is a flag and an environment variable CILIA_<NAME>."""

    node_name: str
    """Name of this node in the cluster."""
    cluster_name: str = "default"
    """Name of the cluster; part of every pod's identity labels."""
    state_dir: Path = Path("/var/run/cilia")
    """Endpoints, queues and counters that a restarted agent needs; 0700."""
    bpf_prefix: Path = Path("/sys/fs/bpf/cilia")
    """Directory on a bpffs for this node's pins; 0700, one agent each."""
    kubeconfig: Path | None = None
    """How to reach the API server; without it and without a source directory: in-cluster."""
    source_dir: Path | None = None
    """A directory of YAML files instead of an API server."""
    api_socket: Path = Path("/var/run/cilia/agent.sock")
    cni_socket: Path = Path("/var/run/cilia/cni.sock")
    hubble_socket: Path = Path("/var/run/cilia/hubble.sock")
    cni_bin_dir: Path | None = None
    """Where the CNI executable is installed; None: not installed by the agent."""
    cni_conf_dir: Path | None = None
    """Where the conflist is written once the agent is ready; None: never."""
    health_listen: str = "127.0.0.1:9879"
    """Address of /healthz; empty: none."""
    metrics_listen: str = "127.0.0.1:9962"
    """Address of the Prometheus /metrics; empty: none."""
    tunnel: bool = True
    """Reach pods of other nodes through VXLAN."""
    tunnel_port: int = 8472
    """UDP port of the tunnels."""
    ipv4_pod_cidr: str = ""
    """This node's pods, when nobody else allocates them (source directory)."""
    ipv6_pod_cidr: str = ""
    native_device: str = ""
    """Device that carries the tunnels; empty: that of the default route."""
    masquerade: bool = True
    """Give traffic that leaves the cluster the node's address."""
    events: bool = True
    """Report flows to Hubble."""
    aggregation: str = "medium"
    """none: every packet; low; medium: new flows, closes, new TCP flags and one report per interval."""
    report_interval: int = 5
    """Seconds between two reports of one established flow."""
    hubble_capacity: int = 65_536
    """Flows kept in memory; a power of two."""
    enforcement: str = "default"
    """default: pods that a policy selects; always; never."""
    policy_audit_mode: bool = False
    """Note what policies deny on this node, and let it pass."""
    policy_deny_response: str = "none"
    """How a pod learns that its packet was denied: none, or icmp (administratively prohibited)."""
    policy_cidr_match_mode: str = ""
    """nodes: rules about prefixes also mean the nodes of the cluster; empty: only what is outside of it."""
    policy_node_status: bool = True
    """Write into each policy's status what this node made of it. Every node that a policy concerns writes
    into the one object, so a cluster of more than about a thousand nodes is better off without."""
    allow_localhost: str = "auto"
    """Whether this node may talk to its pods whatever isolates them (probes of the kubelet): always; policy:
    only if a rule says so; auto: always."""
    host_firewall: bool = False
    """Enforce policies with a nodeSelector on this node's own traffic."""
    identity_change_grace: float = 1.0
    """Seconds a relabelled pod keeps its old identity, so that other nodes learn the new one first."""
    conntrack_entries: int = 131_072
    """Flows tracked at once."""
    conntrack_quota: int = 0
    """Flows one pod may have; 0: a quarter of all."""
    conntrack_gc_interval: float = 15.0
    """Seconds between two looks for expired flows."""
    exclusive_cni: bool = False
    """Set other CNI configurations aside."""
    log_level: str = "info"
    log_format: str = "text"
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each value comes from that is not the default, by field: flag or environment."""
