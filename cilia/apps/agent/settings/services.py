"""What is served, how backends are found, and how many there is room for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from cilia.apps.agent.settings.addresses import address, ports, prefixes
from cilia.kit.flags import one_of


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What is served, how backends are found, and how many there is room for."""

    kube_proxy_replacement: Annotated[
        bool, Option(help="Serve Services; off: somebody else does (kube-proxy), and there are none here.")
    ] = True
    cgroup_root: Annotated[
        Path | None,
        Option(
            readable=False,
            help="Control group (version 2) that holds the node's processes and its pods': their "
            "sockets are translated where they connect. Default: where version 2 is mounted.",
        ),
    ] = None
    bpf_lb_sock: Annotated[bool, Option(help="Translate sockets at all.")] = True
    bpf_lb_sock_hostns_only: Annotated[
        bool,
        Option(
            help="Translate sockets of the node's own network namespace only, and pods packet by "
            "packet: for pods whose proxies or kernels want to see the Service's address."
        ),
    ] = False
    bpf_lb_algorithm: Annotated[
        str,
        Option(
            parser=one_of("random", "maglev"),
            help="How a new flow finds its backend, unless its Service says: random or maglev.",
        ),
    ] = "random"
    bpf_lb_mode: Annotated[
        str,
        Option(
            parser=one_of("snat", "dsr", "hybrid"),
            help="How backends of other nodes answer clients outside: snat, dsr or hybrid (DSR for TCP"
            " only).",
        ),
    ] = "snat"
    bpf_lb_dsr_dispatch: Annotated[
        str,
        Option(
            parser=one_of("opt", "ipip"),
            help="How the backend's node learns the frontend with DSR: opt (an IP option or extension "
            "header), ipip.",
        ),
    ] = "opt"
    bpf_lb_acceleration: Annotated[
        str,
        Option(
            parser=one_of("disabled", "native", "best-effort", "testing-only"),
            help="XDP at the native device: disabled, native, best-effort (native or none), testing-only.",
        ),
    ] = "disabled"
    bpf_lb_maglev_table_size: Annotated[
        int, Option(help="Slots of a Maglev table, a prime; the same on every node.")
    ] = 16_381
    bpf_lb_maglev_hash_seed: Annotated[
        str, Option(help="Any text; the same on every node. Empty: one that all agents know.")
    ] = ""
    bpf_lb_external_clusterip: Annotated[
        bool, Option(help="Serve clients outside the cluster at cluster IPs, too.")
    ] = False
    bpf_lb_source_range_all_types: Annotated[
        bool,
        Option(
            help="Source ranges hold at all addresses of a LoadBalancer Service, its node ports and "
            "cluster IPs, too."
        ),
    ] = False
    node_port_range: Annotated[str, Option(parser=ports, help="First and last node port.")] = "30000,32767"
    nodeport_addresses: Annotated[
        str,
        Option(
            parser=prefixes,
            help="Prefixes with commas: addresses of the node where node ports are served. Empty: the "
            "native device's.",
        ),
    ] = ""
    service_no_backend_response: Annotated[
        str,
        Option(
            parser=one_of("reject", "drop"),
            help="What a client of a Service without backends is told: reject (ICMP, or refused) or "
            "drop (nothing).",
        ),
    ] = "reject"
    disable_external_ip_mitigation: Annotated[
        bool, Option(help="Translate external IPs for pods wherever they lead (CVE-2020-8554).")
    ] = False
    ipv4_service_loopback_address: Annotated[
        str,
        Option(
            parser=address(4),
            help="Whom a pod sees that reaches itself by a service; nobody else may have it.",
        ),
    ] = "169.254.42.1"
    ipv6_service_loopback_address: Annotated[str, Option(parser=address(6), help="The same for IPv6.")] = (
        "100::a9fe:2a01"
    )
    k8s_service_proxy_name: Annotated[
        str,
        Option(
            help="Serve only Services whose label service.kubernetes.io/service-proxy-name is this. "
            "Empty: without it."
        ),
    ] = ""
    enable_local_redirect_policy: Annotated[bool, Option(help="Follow CiliumLocalRedirectPolicies.")] = False
    lrp_address_matcher_cidrs: Annotated[
        str,
        Option(
            parser=prefixes,
            help="Prefixes with commas: the addresses that redirects by address may name. Empty: any.",
        ),
    ] = ""
    enable_service_topology: Annotated[
        bool, Option(help="Follow hints of slices and trafficDistribution, as kube-proxy does.")
    ] = True
    enable_health_check_nodeport: Annotated[
        bool, Option(help="Answer health checks of Services with externalTrafficPolicy Local.")
    ] = True
    enable_health_check_loadbalancer_ip: Annotated[
        bool, Option(help="Also at their load-balancer addresses.")
    ] = False
    kube_proxy_healthz: Annotated[
        str,
        Option(
            "--kube-proxy-replacement-healthz-bind-address",
            help="Address of kube-proxy's /healthz and /livez, which load balancers ask; empty: none.",
        ),
    ] = "0.0.0.0:10256"
    services_file: Annotated[
        Path | None, Option(readable=False, help="YAML of services by hand, followed while the agent runs.")
    ] = None
    service_map_max: Annotated[
        int,
        Option(
            "--bpf-lb-service-map-max",
            min=0,
            help="Frontends there is room for; 0: as built, here and below. Maps that are there keep "
            "their size.",
        ),
    ] = 0
    service_backend_map_max: Annotated[
        int, Option("--bpf-lb-service-backend-map-max", min=0, help="Backends.")
    ] = 0
    service_slot_map_max: Annotated[
        int, Option("--bpf-lb-slot-map-max", min=0, help="Slots of all Maglev tables and lists of backends.")
    ] = 0
    service_affinity_map_max: Annotated[
        int, Option("--bpf-lb-affinity-map-max", min=0, help="Clients of sticky Services.")
    ] = 0
    service_source_range_map_max: Annotated[
        int, Option("--bpf-lb-source-range-map-max", min=0, help="Source ranges.")
    ] = 0
    service_flow_map_max: Annotated[
        int, Option("--bpf-lb-flow-map-max", min=0, help="Flows translated packet by packet.")
    ] = 0

    @property
    def node_ports(self) -> tuple[int, int]:
        """First and last node port."""
        first, _, last = self.node_port_range.replace("-", ",").partition(",")
        return int(first), int(last)
