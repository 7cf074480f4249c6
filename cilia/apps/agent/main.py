"""The command line of cilia-agent."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from cilia import __version__
from cilia.apps.agent.settings import AgentSettings, cgroup_mount
from cilia.cli.moments import parse_ago
from cilia.kit import startup
from cilia.kit.durations import parse_duration

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _env(name: str) -> str:
    return f"CILIA_{name.upper()}"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cilia-agent {__version__}")
        raise typer.Exit


def _one_of(flag: str, value: str, *known: str) -> None:
    """Refuse a value that is none of those known."""
    if value not in known:
        words = [word or "empty" for word in known]
        raise typer.BadParameter(f"must be {', '.join(words[:-1])} or {words[-1]}", param_hint=f"--{flag}")


def _prefixes(flag: str, text: str) -> None:
    """Refuse what is no list of prefixes."""
    try:
        for part in filter(None, text.split(",")):
            ipaddress.ip_network(part.strip(), strict=False)
    except ValueError as error:
        raise typer.BadParameter(f"{error}: write prefixes with commas", param_hint=f"--{flag}") from error


def _duration(flag: str, text: str) -> float:
    """Seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{flag}") from error


def _address(flag: str, text: str, version: int) -> None:
    """Refuse what is no address of this family that one host can have."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{flag}") from error
    odd = address.is_unspecified or address.is_multicast or address.is_loopback
    if address.version != version or odd or getattr(address, "ipv4_mapped", None):
        raise typer.BadParameter(
            f"must be an IPv{version} address that nobody has, like the default", param_hint=f"--{flag}"
        )


def _ports(text: str) -> None:
    """Refuse what is no range of ports."""
    first, _, last = text.replace("-", ",").partition(",")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 65536):
        raise typer.BadParameter("must be FIRST,LAST like 30000,32767", param_hint="--node-port-range")


def _bytes(flag: str, text: str) -> int:
    """A number of bytes such as 1Gi; refuse what is none."""
    found = re.fullmatch(r"(\d+)(|Ki|Mi|Gi|Ti)", text.strip())
    if found is None or not int(found[1]):
        raise typer.BadParameter("must be a number of bytes such as 512Mi or 10Gi", param_hint=f"--{flag}")
    return int(found[1]) << 10 * ("", "Ki", "Mi", "Gi", "Ti").index(found[2])


def _seconds(flag: str, text: str) -> float:
    """A duration such as 12h; refuse what is none, and none at all."""
    seconds = parse_ago(text.strip().lower())
    if not seconds:
        raise typer.BadParameter("must be a duration such as 60s, 12h or 7d", param_hint=f"--{flag}")
    return seconds


def _sources(context: typer.Context) -> dict[str, str]:
    """Which parameters somebody has set, and how."""
    words = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment"}
    found = {name: context.get_parameter_source(name) for name in context.params}
    return {name: words[source.name] for name, source in found.items() if source and source.name in words}


@app.command()
def agent(
    context: typer.Context,
    node_name: Annotated[str, typer.Option(envvar=_env("node_name"), help="Name of this node.")] = "",
    cluster_name: Annotated[str, typer.Option(envvar=_env("cluster_name"))] = "default",
    state_dir: Annotated[
        Path,
        typer.Option(envvar=_env("state_dir"), readable=False, help="Endpoints, queues, counters."),
    ] = Path("/var/run/cilia"),
    bpf_prefix: Annotated[
        Path,
        typer.Option(
            envvar=_env("bpf_prefix"), readable=False, help="Directory on a bpffs for this node's pins."
        ),
    ] = Path("/sys/fs/bpf/cilia"),
    kubeconfig: Annotated[
        Path | None, typer.Option(envvar="KUBECONFIG", readable=False, help="How to reach the API server.")
    ] = None,
    source_dir: Annotated[
        Path | None,
        typer.Option(
            envvar=_env("source_dir"),
            readable=False,
            help="A directory of YAML files instead of an API server.",
        ),
    ] = None,
    api_socket: Annotated[Path | None, typer.Option(envvar=_env("agent_socket"))] = None,
    cni_socket: Annotated[Path | None, typer.Option(envvar=_env("cni_socket"))] = None,
    hubble_socket: Annotated[
        Path | None, typer.Option("--hubble-socket", "--hubble-socket-path", envvar=_env("hubble_socket"))
    ] = None,
    hubble_socket_group: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_socket_group"),
            help="Its members may connect, too. Default: root and the agent.",
        ),
    ] = "",
    hubble_listen_address: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_listen_address"),
            help="[HOST]:PORT for other nodes. Default: :4244 with certificates, none without.",
        ),
    ] = "",
    hubble_disable_tls: Annotated[
        bool,
        typer.Option(
            "--hubble-disable-tls/--no-hubble-disable-tls",
            envvar=_env("hubble_disable_tls"),
            help="Serve everybody who can connect, in plain text.",
        ),
    ] = False,
    hubble_tls_cert_file: Annotated[
        Path | None, typer.Option(envvar=_env("hubble_tls_cert_file"), readable=False, help="PEM, followed.")
    ] = None,
    hubble_tls_key_file: Annotated[
        Path | None, typer.Option(envvar=_env("hubble_tls_key_file"), readable=False)
    ] = None,
    hubble_tls_client_ca_files: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_tls_client_ca_files"), help="PEM files with commas: whose clients are served."
        ),
    ] = "",
    hubble_metrics: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_metrics"), help='What to count, such as "drop:sourceContext=pod flow".'
        ),
    ] = "",
    hubble_dynamic_metrics_config_path: Annotated[
        Path | None,
        typer.Option(
            envvar=_env("hubble_dynamic_metrics_config_path"),
            readable=False,
            help="YAML that says what to count, followed.",
        ),
    ] = None,
    hubble_metrics_server: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_metrics_server"), help="[HOST]:PORT. Default: :9965 where there are metrics."
        ),
    ] = "",
    enable_hubble_open_metrics: Annotated[
        bool, typer.Option(envvar=_env("enable_hubble_open_metrics"), help="OpenMetrics for who asks for it.")
    ] = False,
    hubble_metrics_server_enable_tls: Annotated[
        bool,
        typer.Option(
            "--hubble-metrics-server-enable-tls/--no-hubble-metrics-server-enable-tls",
            envvar=_env("hubble_metrics_server_enable_tls"),
        ),
    ] = False,
    hubble_metrics_server_tls_cert_file: Annotated[
        Path | None, typer.Option(envvar=_env("hubble_metrics_server_tls_cert_file"), readable=False)
    ] = None,
    hubble_metrics_server_tls_key_file: Annotated[
        Path | None, typer.Option(envvar=_env("hubble_metrics_server_tls_key_file"), readable=False)
    ] = None,
    hubble_metrics_server_tls_client_ca_files: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_metrics_server_tls_client_ca_files"),
            help="PEM files with commas: whose scrapers are answered. Default: anybody's.",
        ),
    ] = "",
    hubble_metrics_max_series: Annotated[
        int,
        typer.Option(
            envvar=_env("hubble_metrics_max_series"),
            min=0,
            help='Series of one metric; others are counted as "other". 0: no bound.',
        ),
    ] = 10_000,
    hubble_metrics_expiry: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_metrics_expiry"), help="Series without flows go after so long; 0: never."
        ),
    ] = "10m",
    hubble_drop_events: Annotated[
        bool,
        typer.Option(
            "--hubble-drop-events/--no-hubble-drop-events",
            envvar=_env("hubble_drop_events"),
            help="Write drops of pods as Events.",
        ),
    ] = False,
    hubble_drop_events_interval: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_drop_events_interval"), help="Between two writes about the same drops."
        ),
    ] = "2m",
    hubble_drop_events_reasons: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_drop_events_reasons"), help="Names of drop reasons, with blanks or commas."
        ),
    ] = "auth_required policy_denied policy_deny",
    cni_bin_dir: Annotated[
        Path | None, typer.Option(envvar=_env("cni_bin_dir"), help="Install the CNI plugin there.")
    ] = None,
    cni_conf_dir: Annotated[
        Path | None, typer.Option(envvar=_env("cni_conf_dir"), help="Write the conflist there when ready.")
    ] = None,
    health_listen: Annotated[str, typer.Option(envvar=_env("health_listen"))] = "127.0.0.1:9879",
    metrics_listen: Annotated[str, typer.Option(envvar=_env("metrics_listen"))] = "127.0.0.1:9962",
    tunnel: Annotated[
        str, typer.Option(envvar=_env("tunnel"), help="vxlan, or disabled for native routing.")
    ] = "vxlan",
    tunnel_port: Annotated[int, typer.Option(envvar=_env("tunnel_port"), min=1, max=65535)] = 8472,
    ipv4_pod_cidr: Annotated[
        str, typer.Option(envvar=_env("ipv4_pod_cidr"), help="Pods of this node, when nobody allocates.")
    ] = "",
    ipv6_pod_cidr: Annotated[str, typer.Option(envvar=_env("ipv6_pod_cidr"))] = "",
    native_device: Annotated[
        str, typer.Option(envvar=_env("native_device"), help="Default: that of the default route.")
    ] = "",
    masquerade: Annotated[bool, typer.Option(envvar=_env("masquerade"))] = True,
    events: Annotated[bool, typer.Option(envvar=_env("events"), help="Report flows to Hubble.")] = True,
    aggregation: Annotated[
        str, typer.Option(envvar=_env("aggregation"), help="none, low or medium.")
    ] = "medium",
    report_interval: Annotated[int, typer.Option(envvar=_env("report_interval"), min=1)] = 5,
    hubble_export_file_path: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_export_file_path"),
            help="Write flows there as lines of JSON, or to stdout. Default: nowhere.",
        ),
    ] = "",
    hubble_export_file_max_size_mb: Annotated[
        int,
        typer.Option(
            envvar=_env("hubble_export_file_max_size_mb"), min=1, help="MiB after which it is set aside."
        ),
    ] = 10,
    hubble_export_file_max_backups: Annotated[
        int,
        typer.Option(
            envvar=_env("hubble_export_file_max_backups"), min=0, help="Files set aside; 0: all stay."
        ),
    ] = 5,
    hubble_export_file_compress: Annotated[
        bool, typer.Option(envvar=_env("hubble_export_file_compress"), help="Compress files set aside.")
    ] = False,
    hubble_export_allowlist: Annotated[
        str,
        typer.Option(envvar=_env("hubble_export_allowlist"), help="Flow filters in JSON: only what matches."),
    ] = "",
    hubble_export_denylist: Annotated[
        str,
        typer.Option(envvar=_env("hubble_export_denylist"), help="Flow filters in JSON: not what matches."),
    ] = "",
    hubble_export_fieldmask: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_export_fieldmask"), help="Fields with commas, such as source.pod_name."
        ),
    ] = "",
    hubble_export_fieldaggregate: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_export_fieldaggregate"), help="Count flows that agree in these fields."
        ),
    ] = "",
    hubble_export_aggregation_interval: Annotated[
        str,
        typer.Option(envvar=_env("hubble_export_aggregation_interval"), help="Over so long, such as 30s."),
    ] = "0s",
    hubble_flowlogs_config_path: Annotated[
        Path | None,
        typer.Option(
            envvar=_env("hubble_flowlogs_config_path"),
            readable=False,
            help="YAML of further exporters, followed.",
        ),
    ] = None,
    hubble_redact_enabled: Annotated[
        bool,
        typer.Option(
            "--hubble-redact-enabled/--no-hubble-redact-enabled",
            envvar=_env("hubble_redact_enabled"),
            help="Take secrets out of application records.",
        ),
    ] = False,
    hubble_redact_http_urlquery: Annotated[
        bool, typer.Option(envvar=_env("hubble_redact_http_urlquery"), help="Queries of URLs.")
    ] = False,
    hubble_redact_http_userinfo: Annotated[
        bool, typer.Option(envvar=_env("hubble_redact_http_userinfo"), help="Passwords in URLs.")
    ] = True,
    hubble_redact_kafka_apikey: Annotated[
        bool, typer.Option(envvar=_env("hubble_redact_kafka_apikey"), help="Keys of Kafka.")
    ] = False,
    hubble_redact_http_headers_allow: Annotated[
        str,
        typer.Option(envvar=_env("hubble_redact_http_headers_allow"), help="Headers that stay, with commas."),
    ] = "",
    hubble_redact_http_headers_deny: Annotated[
        str,
        typer.Option(envvar=_env("hubble_redact_http_headers_deny"), help="Headers that go, with commas."),
    ] = "",
    hubble_capacity: Annotated[
        int,
        typer.Option(
            "--hubble-capacity",
            "--hubble-event-buffer-capacity",
            envvar=_env("hubble_capacity"),
            help="Flows kept; a power of two.",
        ),
    ] = 65_536,
    hubble_history_dir: Annotated[
        Path | None,
        typer.Option(
            envvar=_env("hubble_history_dir"),
            readable=False,
            help="Keep flows beyond memory in files there (extra history); relative to --state-dir.",
        ),
    ] = None,
    hubble_history_max_bytes: Annotated[
        str,
        typer.Option(envvar=_env("hubble_history_max_bytes"), help="Of all files, such as 512Mi or 10Gi."),
    ] = "1Gi",
    hubble_history_max_age: Annotated[
        str, typer.Option(envvar=_env("hubble_history_max_age"), help="Such as 12h or 7d.")
    ] = "7d",
    hubble_history_interval: Annotated[
        str,
        typer.Option(
            envvar=_env("hubble_history_interval"),
            help="Until a flow is on disk: what a kill can cost. Such as 60s.",
        ),
    ] = "60s",
    enforcement: Annotated[
        str,
        typer.Option(
            "--enforcement",
            "--enable-policy",
            "--policy-enforcement-mode",
            envvar=_env("enforcement"),
            help="Who is isolated: those a policy selects (default), everybody (always), nobody (never).",
        ),
    ] = "default",
    policy_audit_mode: Annotated[
        bool,
        typer.Option(envvar=_env("policy_audit_mode"), help="Note what policies deny, and let it pass."),
    ] = False,
    policy_deny_response: Annotated[
        str,
        typer.Option(
            envvar=_env("policy_deny_response"), help="What a denied pod is answered: none or icmp."
        ),
    ] = "none",
    policy_cidr_match_mode: Annotated[
        str,
        typer.Option(
            envvar=_env("policy_cidr_match_mode"), help="nodes: rules about prefixes also mean nodes."
        ),
    ] = "",
    policy_node_status: Annotated[
        bool,
        typer.Option(
            envvar=_env("policy_node_status"), help="Write what this node made of a policy into its status."
        ),
    ] = True,
    allow_localhost: Annotated[
        str,
        typer.Option(
            envvar=_env("allow_localhost"),
            help="Whether this node may always talk to its pods: always, policy, or auto (always).",
        ),
    ] = "auto",
    host_firewall: Annotated[
        bool,
        typer.Option(
            "--host-firewall/--no-host-firewall",
            "--enable-host-firewall/--no-enable-host-firewall",
            envvar=_env("host_firewall"),
            help="Enforce policies with a nodeSelector on this node's own traffic.",
        ),
    ] = False,
    identity_change_grace: Annotated[
        float, typer.Option(envvar=_env("identity_change_grace"), min=0, help="Seconds.")
    ] = 1.0,
    conntrack_entries: Annotated[int, typer.Option(envvar=_env("conntrack_entries"), min=64)] = 131_072,
    conntrack_quota: Annotated[
        int,
        typer.Option(envvar=_env("conntrack_quota"), min=0, help="Flows one pod may have; 0: a quarter."),
    ] = 0,
    conntrack_gc_interval: Annotated[
        float, typer.Option(envvar=_env("conntrack_gc_interval"), min=0.1, help="Seconds.")
    ] = 15.0,
    kube_proxy_replacement: Annotated[
        bool,
        typer.Option(envvar=_env("kube_proxy_replacement"), help="Serve Services; off: kube-proxy does."),
    ] = True,
    cgroup_root: Annotated[
        Path | None,
        typer.Option(
            envvar=_env("cgroup_root"),
            readable=False,
            help="Control group with the node's processes and pods. Default: where version 2 is mounted.",
        ),
    ] = None,
    bpf_lb_sock: Annotated[
        bool, typer.Option(envvar=_env("bpf_lb_sock"), help="Translate Services where sockets connect.")
    ] = True,
    bpf_lb_sock_hostns_only: Annotated[
        bool, typer.Option(envvar=_env("bpf_lb_sock_hostns_only"), help="Only sockets of the node itself.")
    ] = False,
    bpf_lb_algorithm: Annotated[
        str, typer.Option(envvar=_env("bpf_lb_algorithm"), help="random or maglev.")
    ] = "random",
    bpf_lb_mode: Annotated[
        str, typer.Option(envvar=_env("bpf_lb_mode"), help="snat, dsr, or hybrid: DSR for TCP only.")
    ] = "snat",
    bpf_lb_dsr_dispatch: Annotated[
        str, typer.Option(envvar=_env("bpf_lb_dsr_dispatch"), help="opt or ipip.")
    ] = "opt",
    bpf_lb_acceleration: Annotated[
        str,
        typer.Option(
            envvar=_env("bpf_lb_acceleration"), help="XDP: disabled, native, best-effort or testing-only."
        ),
    ] = "disabled",
    bpf_lb_maglev_table_size: Annotated[
        int, typer.Option(envvar=_env("bpf_lb_maglev_table_size"), help="A prime; the same on every node.")
    ] = 16_381,
    bpf_lb_maglev_hash_seed: Annotated[
        str, typer.Option(envvar=_env("bpf_lb_maglev_hash_seed"), help="Text; the same on every node.")
    ] = "",
    bpf_lb_external_clusterip: Annotated[
        bool,
        typer.Option(envvar=_env("bpf_lb_external_clusterip"), help="Serve cluster IPs to the outside, too."),
    ] = False,
    bpf_lb_source_range_all_types: Annotated[
        bool,
        typer.Option(
            envvar=_env("bpf_lb_source_range_all_types"),
            help="Source ranges hold at node ports and cluster IPs, too.",
        ),
    ] = False,
    node_port_range: Annotated[
        str,
        typer.Option(
            envvar=_env("node_port_range"), help="FIRST,LAST; node ports beyond have no effect on this node."
        ),
    ] = "30000,32767",
    nodeport_addresses: Annotated[
        str,
        typer.Option(
            envvar=_env("nodeport_addresses"),
            help="Prefixes of the addresses with node ports. Default: the native device's.",
        ),
    ] = "",
    service_no_backend_response: Annotated[
        str, typer.Option(envvar=_env("service_no_backend_response"), help="reject or drop.")
    ] = "reject",
    disable_external_ip_mitigation: Annotated[
        bool,
        typer.Option(
            envvar=_env("disable_external_ip_mitigation"), help="Serve external IPs wherever they lead."
        ),
    ] = False,
    ipv4_service_loopback_address: Annotated[
        str,
        typer.Option(
            envvar=_env("ipv4_service_loopback_address"),
            help="Whom a pod sees that reaches itself by a service.",
        ),
    ] = "169.254.42.1",
    ipv6_service_loopback_address: Annotated[
        str, typer.Option(envvar=_env("ipv6_service_loopback_address"), help="The same for IPv6.")
    ] = "100::a9fe:2a01",
    k8s_service_proxy_name: Annotated[
        str,
        typer.Option(envvar=_env("k8s_service_proxy_name"), help="Serve only Services with this proxy name."),
    ] = "",
    enable_local_redirect_policy: Annotated[
        bool,
        typer.Option(envvar=_env("enable_local_redirect_policy"), help="Follow CiliumLocalRedirectPolicies."),
    ] = False,
    lrp_address_matcher_cidrs: Annotated[
        str,
        typer.Option(
            envvar=_env("lrp_address_matcher_cidrs"), help="Prefixes that redirects by address may name."
        ),
    ] = "",
    enable_service_topology: Annotated[
        bool,
        typer.Option(envvar=_env("enable_service_topology"), help="Follow hints and trafficDistribution."),
    ] = True,
    enable_health_check_nodeport: Annotated[
        bool, typer.Option(envvar=_env("enable_health_check_nodeport"), help="Answer health-check ports.")
    ] = True,
    enable_health_check_loadbalancer_ip: Annotated[
        bool,
        typer.Option(
            envvar=_env("enable_health_check_loadbalancer_ip"), help="Also at load-balancer addresses."
        ),
    ] = False,
    kube_proxy_healthz: Annotated[
        str,
        typer.Option(
            "--kube-proxy-replacement-healthz-bind-address",
            envvar=_env("kube_proxy_healthz"),
            help="kube-proxy's /healthz; empty: none.",
        ),
    ] = "0.0.0.0:10256",
    services_file: Annotated[
        Path | None,
        typer.Option(
            envvar=_env("services_file"), readable=False, help="YAML of services by hand, followed."
        ),
    ] = None,
    trace_sock: Annotated[
        bool, typer.Option(envvar=_env("trace_sock"), help="Report each translation of a socket.")
    ] = False,
    service_map_max: Annotated[
        int, typer.Option("--bpf-lb-service-map-max", envvar=_env("service_map_max"), min=0)
    ] = 0,
    service_backend_map_max: Annotated[
        int, typer.Option("--bpf-lb-service-backend-map-max", envvar=_env("service_backend_map_max"), min=0)
    ] = 0,
    service_slot_map_max: Annotated[
        int, typer.Option("--bpf-lb-slot-map-max", envvar=_env("service_slot_map_max"), min=0)
    ] = 0,
    service_affinity_map_max: Annotated[
        int, typer.Option("--bpf-lb-affinity-map-max", envvar=_env("service_affinity_map_max"), min=0)
    ] = 0,
    service_source_range_map_max: Annotated[
        int,
        typer.Option("--bpf-lb-source-range-map-max", envvar=_env("service_source_range_map_max"), min=0),
    ] = 0,
    service_flow_map_max: Annotated[
        int, typer.Option("--bpf-lb-flow-map-max", envvar=_env("service_flow_map_max"), min=0)
    ] = 0,
    nat_map_max: Annotated[int, typer.Option("--bpf-nat-global-max", envvar=_env("nat_map_max"), min=0)] = 0,
    verify_interval: Annotated[
        float, typer.Option(envvar=_env("verify_interval"), min=1, help="Seconds.")
    ] = 60.0,
    exclusive_cni: Annotated[bool, typer.Option(envvar=_env("exclusive_cni"))] = False,
    log_level: Annotated[str, typer.Option(envvar=_env("log_level"))] = "info",
    log_format: Annotated[str, typer.Option(envvar=_env("log_format"), help="text or json.")] = "text",
    cleanup: Annotated[
        bool, typer.Option("--cleanup", help="Remove everything this agent left on the node, then end.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Own this node's network: attach pods, enforce policy, report flows."""
    _one_of("tunnel", tunnel, "vxlan", "disabled")
    _one_of("aggregation", aggregation, "none", "low", "medium")
    _one_of("enforcement", enforcement, "default", "always", "never")
    _one_of("policy-deny-response", policy_deny_response, "none", "icmp")
    _one_of("policy-cidr-match-mode", policy_cidr_match_mode, "", "nodes")
    _one_of("allow-localhost", allow_localhost, "auto", "always", "policy")
    _one_of("bpf-lb-algorithm", bpf_lb_algorithm, "random", "maglev")
    _one_of("bpf-lb-mode", bpf_lb_mode, "snat", "dsr", "hybrid")
    _one_of("bpf-lb-dsr-dispatch", bpf_lb_dsr_dispatch, "opt", "ipip")
    _one_of("bpf-lb-acceleration", bpf_lb_acceleration, "disabled", "native", "best-effort", "testing-only")
    _one_of("service-no-backend-response", service_no_backend_response, "reject", "drop")
    for flag, text in (
        ("nodeport-addresses", nodeport_addresses),
        ("lrp-address-matcher-cidrs", lrp_address_matcher_cidrs),
    ):
        _prefixes(flag, text)
    _ports(node_port_range)
    _address("ipv4-service-loopback-address", ipv4_service_loopback_address, 4)
    _address("ipv6-service-loopback-address", ipv6_service_loopback_address, 6)
    if hubble_capacity < 1 or hubble_capacity & (hubble_capacity - 1):
        raise typer.BadParameter("must be a power of two", param_hint="--hubble-capacity")
    settings = AgentSettings(
        node_name=node_name or os.uname().nodename,
        cluster_name=cluster_name,
        state_dir=state_dir,
        bpf_prefix=bpf_prefix,
        kubeconfig=kubeconfig,
        source_dir=source_dir,
        api_socket=api_socket or state_dir / "agent.sock",
        cni_socket=cni_socket or state_dir / "cni.sock",
        hubble_socket=hubble_socket or state_dir / "hubble.sock",
        hubble_socket_group=hubble_socket_group,
        hubble_listen_address=hubble_listen_address,
        hubble_disable_tls=hubble_disable_tls,
        hubble_tls_cert_file=hubble_tls_cert_file,
        hubble_tls_key_file=hubble_tls_key_file,
        hubble_tls_client_ca_files=hubble_tls_client_ca_files,
        hubble_metrics=hubble_metrics,
        hubble_dynamic_metrics_config_path=hubble_dynamic_metrics_config_path,
        hubble_metrics_server=hubble_metrics_server,
        enable_hubble_open_metrics=enable_hubble_open_metrics,
        hubble_metrics_server_enable_tls=hubble_metrics_server_enable_tls,
        hubble_metrics_server_tls_cert_file=hubble_metrics_server_tls_cert_file,
        hubble_metrics_server_tls_key_file=hubble_metrics_server_tls_key_file,
        hubble_metrics_server_tls_client_ca_files=hubble_metrics_server_tls_client_ca_files,
        hubble_metrics_max_series=hubble_metrics_max_series,
        hubble_metrics_expiry=_duration("hubble-metrics-expiry", hubble_metrics_expiry),
        hubble_drop_events=hubble_drop_events,
        hubble_drop_events_interval=_duration("hubble-drop-events-interval", hubble_drop_events_interval),
        hubble_drop_events_reasons=hubble_drop_events_reasons,
        cni_bin_dir=cni_bin_dir,
        cni_conf_dir=cni_conf_dir,
        health_listen=health_listen,
        metrics_listen=metrics_listen,
        tunnel=tunnel == "vxlan",
        tunnel_port=tunnel_port,
        ipv4_pod_cidr=ipv4_pod_cidr,
        ipv6_pod_cidr=ipv6_pod_cidr,
        native_device=native_device,
        masquerade=masquerade,
        events=events,
        aggregation=aggregation,
        report_interval=report_interval,
        hubble_capacity=hubble_capacity,
        hubble_export_file_path=hubble_export_file_path,
        hubble_export_file_max_size_mb=hubble_export_file_max_size_mb,
        hubble_export_file_max_backups=hubble_export_file_max_backups,
        hubble_export_file_compress=hubble_export_file_compress,
        hubble_export_allowlist=hubble_export_allowlist,
        hubble_export_denylist=hubble_export_denylist,
        hubble_export_fieldmask=hubble_export_fieldmask,
        hubble_export_fieldaggregate=hubble_export_fieldaggregate,
        hubble_export_aggregation_interval=hubble_export_aggregation_interval,
        hubble_flowlogs_config_path=hubble_flowlogs_config_path,
        hubble_redact_enabled=hubble_redact_enabled,
        hubble_redact_http_urlquery=hubble_redact_http_urlquery,
        hubble_redact_http_userinfo=hubble_redact_http_userinfo,
        hubble_redact_kafka_apikey=hubble_redact_kafka_apikey,
        hubble_redact_http_headers_allow=hubble_redact_http_headers_allow,
        hubble_redact_http_headers_deny=hubble_redact_http_headers_deny,
        hubble_history_dir=state_dir / hubble_history_dir if hubble_history_dir else None,
        hubble_history_max_bytes=_bytes("hubble-history-max-bytes", hubble_history_max_bytes),
        hubble_history_max_age=_seconds("hubble-history-max-age", hubble_history_max_age),
        hubble_history_interval=_seconds("hubble-history-interval", hubble_history_interval),
        enforcement=enforcement,
        policy_audit_mode=policy_audit_mode,
        policy_deny_response=policy_deny_response,
        policy_cidr_match_mode=policy_cidr_match_mode,
        policy_node_status=policy_node_status,
        allow_localhost=allow_localhost,
        host_firewall=host_firewall,
        identity_change_grace=identity_change_grace,
        conntrack_entries=conntrack_entries,
        conntrack_quota=conntrack_quota,
        conntrack_gc_interval=conntrack_gc_interval,
        cgroup_root=cgroup_root or cgroup_mount(),
        kube_proxy_replacement=kube_proxy_replacement,
        bpf_lb_sock=bpf_lb_sock,
        bpf_lb_sock_hostns_only=bpf_lb_sock_hostns_only,
        bpf_lb_algorithm=bpf_lb_algorithm,
        bpf_lb_mode=bpf_lb_mode,
        bpf_lb_dsr_dispatch=bpf_lb_dsr_dispatch,
        bpf_lb_acceleration=bpf_lb_acceleration,
        bpf_lb_maglev_table_size=bpf_lb_maglev_table_size,
        bpf_lb_maglev_hash_seed=bpf_lb_maglev_hash_seed,
        bpf_lb_external_clusterip=bpf_lb_external_clusterip,
        bpf_lb_source_range_all_types=bpf_lb_source_range_all_types,
        node_port_range=node_port_range,
        nodeport_addresses=nodeport_addresses,
        service_no_backend_response=service_no_backend_response,
        disable_external_ip_mitigation=disable_external_ip_mitigation,
        ipv4_service_loopback_address=ipv4_service_loopback_address,
        ipv6_service_loopback_address=ipv6_service_loopback_address,
        k8s_service_proxy_name=k8s_service_proxy_name,
        enable_local_redirect_policy=enable_local_redirect_policy,
        lrp_address_matcher_cidrs=lrp_address_matcher_cidrs,
        enable_service_topology=enable_service_topology,
        enable_health_check_nodeport=enable_health_check_nodeport,
        enable_health_check_loadbalancer_ip=enable_health_check_loadbalancer_ip,
        kube_proxy_healthz=kube_proxy_healthz,
        services_file=services_file,
        trace_sock=trace_sock,
        service_map_max=service_map_max,
        service_backend_map_max=service_backend_map_max,
        service_slot_map_max=service_slot_map_max,
        service_affinity_map_max=service_affinity_map_max,
        service_source_range_map_max=service_source_range_map_max,
        service_flow_map_max=service_flow_map_max,
        nat_map_max=nat_map_max,
        verify_interval=verify_interval,
        exclusive_cni=exclusive_cni,
        log_level=log_level,
        log_format=log_format,
        sources=_sources(context),
    )
    raise typer.Exit(clean_up(settings) if cleanup else start(settings))


def start(settings: AgentSettings) -> int:
    """Run an agent until it is told to stop; returns the exit code."""
    # numpy would start a thread for each core, to multiply matrices that nobody here has.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # structlog would load rich for tracebacks in colour, which a log has no use for.
    with startup.importing(without=["rich"]):
        import uvloop

        from cilia.apps.agent.errors import StartError
        from cilia.apps.agent.runtime import Runtime
        from cilia.kit import log

    log.configure(settings.log_level, "json" if settings.log_format == "json" else "text")
    os.umask(0o077)
    # A thread that computes may keep the event loop from each of its steps for so long (seconds).
    sys.setswitchinterval(0.0005)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Runtime(settings).run())
    except StartError as error:
        typer.echo(f"cilia-agent: {error}", err=True)
        return 1
    return 0


def clean_up(settings: AgentSettings) -> int:
    """Take away links, programs, maps, the CNI configuration and the state; returns the exit code.

    Pods that still run lose their network. Repeatable.
    """
    from cilia.apps.agent.cleanup import remove_everything
    from cilia.dataplane.bpf import BpfError

    try:
        for line in remove_everything(settings):
            typer.echo(line)
    except (BpfError, OSError) as error:
        typer.echo(f"cilia-agent: {error}", err=True)
        return 1
    return 0


def main() -> None:
    """Entry point of the executable."""
    app()
