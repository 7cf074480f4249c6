"""The composition root of `cilia-operator`: flags in, a leading or waiting operator out."""

import asyncio
import ipaddress
import os
import secrets
import signal
import socket
from pathlib import Path
from typing import Annotated, Literal

import typer
import uvloop

from cilia.cluster.kube.client import KubeStore
from cilia.cluster.kube.kubeconfig import ConfigError
from cilia.control.ipam import NodePool, NodePools, PoolError
from cilia.kit import log as logs
from cilia.kit.clock import SystemClock
from cilia.operator.listen import ListenError, serving
from cilia.operator.metrics import Metrics
from cilia.operator.operator import Operator
from cilia.operator.settings import ElectionSettings, GarbageSettings

app = typer.Typer(
    add_completion=False,
    help="Chores of the cluster: definitions, node prefixes, garbage. Several may run, one leads.",
    pretty_exceptions_enable=False,
)

DEFAULT_POOLS = (["10.0.0.0/8"], ["fd00::/104"])


def node_pools(ipv4: list[str], ipv4_mask: int, ipv6: list[str], ipv6_mask: int) -> NodePools:
    """Return the cluster's pools; raises PoolError with what to change."""
    pools = []
    for version, texts, mask in ((4, ipv4, ipv4_mask), (6, ipv6, ipv6_mask)):
        for text in texts:
            try:
                network = ipaddress.ip_network(text)
            except ValueError as error:
                raise PoolError(f"cluster pool {text!r} is not a prefix: {error}") from error
            if network.version != version:
                raise PoolError(
                    f"cluster pool {text} is not IPv{version}: use --cluster-pool-ipv{10 - version}-cidr"
                )
            pools.append(NodePool(network, mask))
    return NodePools(pools)


@app.command()
def run(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="How to reach the API server; else $KUBECONFIG or the pod's account.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    cluster_pool_ipv4_cidr: Annotated[
        list[str] | None, typer.Option(help="IPv4 prefix for pods, 10.0.0.0/8 by default; repeatable.")
    ] = None,
    cluster_pool_ipv4_mask_size: Annotated[int, typer.Option(help="Bits of a node's IPv4 prefix.")] = 24,
    cluster_pool_ipv6_cidr: Annotated[
        list[str] | None, typer.Option(help="IPv6 prefix for pods, fd00::/104 by default; repeatable.")
    ] = None,
    cluster_pool_ipv6_mask_size: Annotated[int, typer.Option(help="Bits of a node's IPv6 prefix.")] = 120,
    enable_ipv4: Annotated[bool, typer.Option(help="Give nodes IPv4 prefixes.")] = True,
    enable_ipv6: Annotated[bool, typer.Option(help="Give nodes IPv6 prefixes.")] = True,
    leader_election_lease_duration: Annotated[
        float, typer.Option(help="Seconds until others take over.")
    ] = 15.0,
    leader_election_renew_deadline: Annotated[
        float, typer.Option(help="Seconds the leader goes on without a renewal.")
    ] = 10.0,
    leader_election_retry_period: Annotated[float, typer.Option(help="Seconds between attempts.")] = 2.0,
    leader_election_namespace: Annotated[str, typer.Option(help="Namespace of the Lease.")] = "kube-system",
    identity_gc_interval: Annotated[
        float, typer.Option(help="Seconds between looks for unused identities; 0: never.")
    ] = 900.0,
    identity_heartbeat_timeout: Annotated[
        float, typer.Option(help="Seconds an identity stays unused before it is deleted.")
    ] = 1800.0,
    cilium_endpoint_gc_interval: Annotated[
        float, typer.Option(help="Seconds between looks for endpoints without pod or node; 0: never.")
    ] = 300.0,
    skip_crd_creation: Annotated[bool, typer.Option(help="Leave the definitions alone.")] = False,
    health_listen: Annotated[
        str, typer.Option(help="HOST:PORT of /healthz; empty: none.")
    ] = "127.0.0.1:9234",
    metrics_listen: Annotated[
        str, typer.Option(help="HOST:PORT of /metrics; empty: none.")
    ] = "127.0.0.1:9963",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="The least that is logged.")
    ] = "info",
    log_format: Annotated[Literal["text", "json"], typer.Option(help="How log lines look.")] = "text",
) -> None:
    """Run until SIGTERM or SIGINT, then give the lease back."""
    try:
        pools = node_pools(
            (cluster_pool_ipv4_cidr or DEFAULT_POOLS[0]) if enable_ipv4 else [],
            cluster_pool_ipv4_mask_size,
            (cluster_pool_ipv6_cidr or DEFAULT_POOLS[1]) if enable_ipv6 else [],
            cluster_pool_ipv6_mask_size,
        )
        election = ElectionSettings(
            identity=f"{socket.gethostname()}-{secrets.token_hex(5)}",
            namespace=leader_election_namespace,
            lease_duration=leader_election_lease_duration,
            renew_deadline=leader_election_renew_deadline,
            retry_period=leader_election_retry_period,
        )
        garbage = GarbageSettings(
            endpoint_interval=cilium_endpoint_gc_interval,
            identity_interval=identity_gc_interval,
            identity_timeout=identity_heartbeat_timeout,
        )
        store = KubeStore.discover(kubeconfig, os.environ, context=context, user_agent="cilia-operator")
        logs.configure(log_level, log_format)
        uvloop.run(
            _serve(store, pools, election, garbage, health_listen, metrics_listen, not skip_crd_creation)
        )
    except (ConfigError, PoolError, ListenError, ValueError) as error:
        typer.echo(f"cilia-operator: {error}", err=True)
        raise typer.Exit(1) from None


async def _serve(
    store: KubeStore,
    pools: NodePools,
    election: ElectionSettings,
    garbage: GarbageSettings,
    health_listen: str,
    metrics_listen: str,
    install_definitions: bool,
) -> None:
    metrics = Metrics()
    operator = Operator(
        store,
        pools=pools,
        election=election,
        garbage=garbage,
        clock=SystemClock(),
        metrics=metrics,
        install_definitions=install_definitions,
    )
    async with (
        store,
        serving(health_listen, metrics_listen, why_unhealthy=operator.why_unhealthy, metrics=metrics),
    ):
        running = asyncio.ensure_future(operator.run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)
        try:
            await running
        except asyncio.CancelledError:
            return


def main() -> None:
    """Entry point of the `cilia-operator` command."""
    app()


if __name__ == "__main__":
    main()
