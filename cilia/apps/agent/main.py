"""The command line of cilia-agent."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from cilia import __version__
from cilia.apps.agent.settings import AgentSettings
from cilia.kit import startup

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _env(name: str) -> str:
    return f"CILIA_{name.upper()}"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cilia-agent {__version__}")
        raise typer.Exit


@app.command()
def agent(
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
    hubble_socket: Annotated[Path | None, typer.Option(envvar=_env("hubble_socket"))] = None,
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
    hubble_capacity: Annotated[
        int, typer.Option(envvar=_env("hubble_capacity"), help="Flows kept; a power of two.")
    ] = 65_536,
    enforcement: Annotated[
        str, typer.Option(envvar=_env("enforcement"), help="default, always or never.")
    ] = "default",
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
    if tunnel not in ("vxlan", "disabled"):
        raise typer.BadParameter("must be vxlan or disabled", param_hint="--tunnel")
    if aggregation not in ("none", "low", "medium"):
        raise typer.BadParameter("must be none, low or medium", param_hint="--aggregation")
    if enforcement not in ("default", "always", "never"):
        raise typer.BadParameter("must be default, always or never", param_hint="--enforcement")
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
        enforcement=enforcement,
        identity_change_grace=identity_change_grace,
        conntrack_entries=conntrack_entries,
        conntrack_quota=conntrack_quota,
        conntrack_gc_interval=conntrack_gc_interval,
        exclusive_cni=exclusive_cni,
        log_level=log_level,
        log_format=log_format,
    )
    raise typer.Exit(clean_up(settings) if cleanup else start(settings))


def start(settings: AgentSettings) -> int:
    """Run an agent until it is told to stop; returns the exit code."""
    # numpy would start a thread for each core, to multiply matrices that nobody here has.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # structlog would load rich for tracebacks in colour, which a log has no use for.
    with startup.importing(without=["rich"]):
        import uvloop

        from cilia.apps.agent.runtime import Runtime, StartError
        from cilia.kit import log

    log.configure(settings.log_level, "json" if settings.log_format == "json" else "text")
    os.umask(0o077)
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
