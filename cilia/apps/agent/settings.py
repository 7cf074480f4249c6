"""What an operator may set about an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


def cgroup_mount() -> Path | None:
    """Where control groups of version 2 are mounted; None: nowhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(point)
    return None


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
    hubble_socket_group: str = ""
    """Whose members may connect to it, besides root and the agent's user."""
    hubble_listen_address: str = ""
    """[HOST]:PORT of Hubble for other nodes; empty: :4244 with certificates, none without."""
    hubble_disable_tls: bool = False
    """Serve Hubble on TCP to everybody who can connect, in plain text."""
    hubble_tls_cert_file: Path | None = None
    """PEM, followed; the port opens once it is there."""
    hubble_tls_key_file: Path | None = None
    hubble_tls_client_ca_files: str = ""
    """PEM files with commas: the authorities of those whom Hubble serves on TCP."""
    hubble_metrics: str = ""
    """What Hubble counts for Prometheus, such as "drop:sourceContext=pod flow"; empty: nothing."""
    hubble_dynamic_metrics_config_path: Path | None = None
    """YAML that says it instead, followed."""
    hubble_metrics_server: str = ""
    """[HOST]:PORT of these metrics; empty: :9965 where there are any."""
    enable_hubble_open_metrics: bool = False
    """Serve OpenMetrics to those who ask for it."""
    hubble_metrics_server_enable_tls: bool = False
    hubble_metrics_server_tls_cert_file: Path | None = None
    hubble_metrics_server_tls_key_file: Path | None = None
    hubble_metrics_server_tls_client_ca_files: str = ""
    """PEM files with commas: authorities of scrapers. Empty: anybody may scrape."""
    hubble_metrics_max_series: int = 10_000
    """Series a metric may have, others are counted together; 0: no bound."""
    hubble_metrics_expiry: float = 600.0
    """Seconds without a flow after which a series goes; 0: never."""
    hubble_drop_events: bool = False
    """Write drops of pods as Events, too."""
    hubble_drop_events_interval: float = 120.0
    """Seconds between two writes about the same drops."""
    hubble_drop_events_reasons: str = "auth_required policy_denied policy_deny"
    """Names of drop reasons, with blanks or commas."""
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
    hubble_export_file_path: str = ""
    """File that all flows are written to as lines of JSON, or stdout; empty: none."""
    hubble_export_file_max_size_mb: int = 10
    """MiB after which that file is set aside and a new one begun."""
    hubble_export_file_max_backups: int = 5
    """Files set aside that are kept; 0: all."""
    hubble_export_file_compress: bool = False
    """Compress files that were set aside."""
    hubble_export_allowlist: str = ""
    """Flow filters in JSON, one after the other: export what one of them matches. Empty: everything."""
    hubble_export_denylist: str = ""
    """The same: of that, leave out what one of these matches."""
    hubble_export_fieldmask: str = ""
    """Paths of fields with commas, such as source.pod_name: all that lines have. Empty: everything."""
    hubble_export_fieldaggregate: str = ""
    """Paths of fields: one line tells of all flows of an interval that agree in them. Empty: a line each."""
    hubble_export_aggregation_interval: str = "0s"
    """That interval, such as 30s."""
    hubble_flowlogs_config_path: Path | None = None
    """YAML of further exporters, followed while the agent runs."""
    hubble_redact_enabled: bool = False
    """Take out of application records what they must not tell, before they are stored."""
    hubble_redact_http_urlquery: bool = False
    """Queries and fragments of URLs."""
    hubble_redact_http_userinfo: bool = True
    """Passwords in URLs."""
    hubble_redact_kafka_apikey: bool = False
    """Keys of Kafka's requests."""
    hubble_redact_http_headers_allow: str = ""
    """Headers with commas: the values of all others go. With neither list all go."""
    hubble_redact_http_headers_deny: str = ""
    """Headers with commas: the values of these go."""
    hubble_history_dir: Path | None = None
    """Where flows are kept beyond memory, in sealed files; None: nowhere."""
    hubble_history_max_bytes: int = 1 << 30
    """Of these files together; the oldest go first."""
    hubble_history_max_age: float = 7 * 86_400.0
    """Seconds a flow is kept at most."""
    hubble_history_interval: float = 60.0
    """Seconds until a flow is on disk: what a kill of the agent can cost."""
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
    kube_proxy_replacement: bool = True
    """Serve Services; off: somebody else does (kube-proxy), and there are none here."""
    cgroup_root: Path | None = None
    """Control group (version 2) that holds the node's processes and its pods': their sockets are translated
    where they connect. None: packet by packet only."""
    bpf_lb_sock: bool = True
    """Translate sockets at all."""
    bpf_lb_sock_hostns_only: bool = False
    """Translate sockets of the node's own network namespace only, and pods packet by packet: for pods whose
    proxies or kernels want to see the Service's address."""
    bpf_lb_algorithm: str = "random"
    """How a new flow finds its backend, unless its Service says: random or maglev."""
    bpf_lb_mode: str = "snat"
    """How backends of other nodes answer clients outside: snat, dsr or hybrid (DSR for TCP only)."""
    bpf_lb_dsr_dispatch: str = "opt"
    """How the backend's node learns the frontend with DSR: opt (an IP option or extension header), ipip."""
    bpf_lb_acceleration: str = "disabled"
    """XDP at the native device: disabled, native, best-effort (native or none), testing-only."""
    bpf_lb_maglev_table_size: int = 16_381
    """Slots of a Maglev table, a prime; the same on every node."""
    bpf_lb_maglev_hash_seed: str = ""
    """Any text; the same on every node. Empty: one that all agents know."""
    bpf_lb_external_clusterip: bool = False
    """Serve clients outside the cluster at cluster IPs, too."""
    bpf_lb_source_range_all_types: bool = False
    """Source ranges hold at all addresses of a LoadBalancer Service, its node ports and cluster IPs, too."""
    node_port_range: str = "30000,32767"
    """First and last node port."""
    nodeport_addresses: str = ""
    """Prefixes with commas: addresses of the node where node ports are served. Empty: the native device's."""
    service_no_backend_response: str = "reject"
    """What a client of a Service without backends is told: reject (ICMP, or refused) or drop (nothing)."""
    disable_external_ip_mitigation: bool = False
    """Translate external IPs for pods wherever they lead (CVE-2020-8554)."""
    ipv4_service_loopback_address: str = "169.254.42.1"
    """Whom a pod sees that reaches itself by a service; nobody else may have it."""
    ipv6_service_loopback_address: str = "100::a9fe:2a01"
    """The same for IPv6."""
    k8s_service_proxy_name: str = ""
    """Serve only Services whose label service.kubernetes.io/service-proxy-name is this. Empty: without it."""
    enable_local_redirect_policy: bool = False
    """Follow CiliumLocalRedirectPolicies."""
    lrp_address_matcher_cidrs: str = ""
    """Prefixes with commas: the addresses that redirects by address may name. Empty: any."""
    enable_service_topology: bool = True
    """Follow hints of slices and trafficDistribution, as kube-proxy does."""
    enable_health_check_nodeport: bool = True
    """Answer health checks of Services with externalTrafficPolicy Local."""
    enable_health_check_loadbalancer_ip: bool = False
    """Also at their load-balancer addresses."""
    kube_proxy_healthz: str = "0.0.0.0:10256"
    """Address of kube-proxy's /healthz and /livez, which load balancers ask; empty: none."""
    services_file: Path | None = None
    """YAML of services by hand, followed while the agent runs."""
    trace_sock: bool = False
    """Report each translation of a socket as an event of its own; flows name their Services anyway."""
    service_map_max: int = 0
    """Frontends there is room for; 0: as built, here and below. Maps that are there keep their size."""
    service_backend_map_max: int = 0
    """Backends."""
    service_slot_map_max: int = 0
    """Slots of all Maglev tables and lists of backends."""
    service_affinity_map_max: int = 0
    """Clients of sticky Services."""
    service_source_range_map_max: int = 0
    """Source ranges."""
    service_flow_map_max: int = 0
    """Flows translated packet by packet."""
    nat_map_max: int = 0
    """Translations of source addresses."""
    verify_interval: float = 60.0
    """Seconds between two comparisons of what is intended with what the kernel has."""
    exclusive_cni: bool = False
    """Set other CNI configurations aside."""
    log_level: str = "info"
    log_format: str = "text"
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each value comes from that is not the default, by field: flag or environment."""

    @property
    def node_ports(self) -> tuple[int, int]:
        """First and last node port."""
        first, _, last = self.node_port_range.replace("-", ",").partition(",")
        return int(first), int(last)
