"""Which node this is, whom the agent talks to, and where it keeps what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from cilia.kit.flags import one_of


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """Which node this is, whom the agent talks to, and where it keeps what."""

    node_name: Annotated[str, Option(show_default="the host's", help="Name of this node in the cluster.")] = (
        ""
    )
    cluster_name: Annotated[str, Option(help="Name of the cluster; part of every pod's identity labels.")] = (
        "default"
    )
    kubeconfig: Annotated[
        Path | None,
        Option(
            envvar="KUBECONFIG",
            readable=False,
            help="How to reach the API server; without it and without --source-dir: in-cluster.",
        ),
    ] = None
    source_dir: Annotated[
        Path | None, Option(readable=False, help="A directory of YAML files instead of an API server.")
    ] = None
    state_dir: Annotated[
        Path,
        Option(readable=False, help="Endpoints, queues and counters that a restarted agent needs; 0700."),
    ] = Path("/var/run/cilia")
    bpf_prefix: Annotated[
        Path, Option(readable=False, help="Directory on a bpffs for this node's pins; 0700, one agent each.")
    ] = Path("/sys/fs/bpf/cilia")
    api_socket: Annotated[
        Path,
        Option(
            envvar="CILIA_AGENT_SOCKET",
            show_default="agent.sock in --state-dir",
            help="Where the agent answers the CLI.",
        ),
    ] = Path("/var/run/cilia/agent.sock")
    cni_socket: Annotated[
        Path, Option(show_default="cni.sock in --state-dir", help="Where it answers the CNI plugin.")
    ] = Path("/var/run/cilia/cni.sock")
    cni_bin_dir: Annotated[
        Path | None, Option(help="Install the CNI plugin there. Default: somebody else does.")
    ] = None
    cni_conf_dir: Annotated[
        Path | None, Option(help="Write the conflist there once the agent is ready. Default: never.")
    ] = None
    exclusive_cni: Annotated[bool, Option(help="Set other CNI configurations aside.")] = False
    health_listen: Annotated[str, Option(help="Address of /healthz; empty: none.")] = "127.0.0.1:9879"
    metrics_listen: Annotated[str, Option(help="Address of the Prometheus /metrics; empty: none.")] = (
        "127.0.0.1:9962"
    )
    verify_interval: Annotated[
        float,
        Option(min=1, help="Seconds between two comparisons of what is intended with what the kernel has."),
    ] = 60.0
    log_level: Annotated[
        str, Option(parser=one_of("debug", "info", "warning", "error"), help="debug, info, warning or error.")
    ] = "info"
    log_format: Annotated[str, Option(parser=one_of("text", "json"), help="text or json.")] = "text"
