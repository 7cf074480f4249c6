"""The composition root of `cilia-operator`: flags in, a leading or waiting operator out."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from typer import Option

from cilia.cli.sections import SectionedCommand
from cilia.cluster.kube.client import KubeStore
from cilia.cluster.kube.kubeconfig import ConfigError
from cilia.control.ipam import NodePool, NodePools, PoolError
from cilia.kit import flags, log
from cilia.kit.clock import SystemClock
from cilia.kit.log_settings import LogSettings
from cilia.operator.listen import ListenError, serving
from cilia.operator.metrics import Metrics
from cilia.operator.operator import Operator
from cilia.operator.settings import ElectionSettings, GarbageSettings

app = typer.Typer(
    add_completion=False,
    help="Chores of the cluster: definitions, node prefixes, garbage. Several may run, one leads.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Whom it talks to."""

    kubeconfig: Annotated[
        Path | None, Option(help="How to reach the API server; else $KUBECONFIG or the pod's account.")
    ] = None
    context: Annotated[str | None, Option(help="Context of the kubeconfig.")] = None


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """What nodes get prefixes from."""

    cluster_pool_ipv4_cidr: Annotated[
        list[str] | None, Option(help="IPv4 prefix for pods, 10.0.0.0/8 by default; repeatable.")
    ] = None
    cluster_pool_ipv4_mask_size: Annotated[int, Option(help="Bits of a node's IPv4 prefix.")] = 24
    cluster_pool_ipv6_cidr: Annotated[
        list[str] | None, Option(help="IPv6 prefix for pods, fd00::/104 by default; repeatable.")
    ] = None
    cluster_pool_ipv6_mask_size: Annotated[int, Option(help="Bits of a node's IPv6 prefix.")] = 120
    enable_ipv4: Annotated[bool, Option(help="Give nodes IPv4 prefixes.")] = True
    enable_ipv6: Annotated[bool, Option(help="Give nodes IPv6 prefixes.")] = True

    def pools(self) -> NodePools:
        """The cluster's. Raises PoolError."""
        ipv4, ipv6 = DEFAULT_POOLS
        return node_pools(
            (self.cluster_pool_ipv4_cidr or ipv4) if self.enable_ipv4 else [],
            self.cluster_pool_ipv4_mask_size,
            (self.cluster_pool_ipv6_cidr or ipv6) if self.enable_ipv6 else [],
            self.cluster_pool_ipv6_mask_size,
        )


@dataclass(frozen=True, kw_only=True)
class LeaderSettings:
    """Who leads."""

    leader_election_lease_duration: Annotated[float, Option(help="Seconds until others take over.")] = 15.0
    leader_election_renew_deadline: Annotated[
        float, Option(help="Seconds the leader goes on without a renewal.")
    ] = 10.0
    leader_election_retry_period: Annotated[float, Option(help="Seconds between attempts.")] = 2.0
    leader_election_namespace: Annotated[str, Option(help="Namespace of the Lease.")] = "kube-system"

    def election(self) -> ElectionSettings:
        """This operator's, under a name that no other has. Raises ValueError."""
        return ElectionSettings(
            identity=f"{socket.gethostname()}-{secrets.token_hex(5)}",
            namespace=self.leader_election_namespace,
            lease_duration=self.leader_election_lease_duration,
            renew_deadline=self.leader_election_renew_deadline,
            retry_period=self.leader_election_retry_period,
        )


@dataclass(frozen=True, kw_only=True)
class ChoreSettings:
    """What the leader does, and how often."""

    identity_gc_interval: Annotated[
        float, Option(help="Seconds between looks for unused identities; 0: never.")
    ] = 900.0
    identity_heartbeat_timeout: Annotated[
        float, Option(help="Seconds an identity stays unused before it is deleted.")
    ] = 1800.0
    cilium_endpoint_gc_interval: Annotated[
        float, Option(help="Seconds between looks for endpoints without pod or node; 0: never.")
    ] = 300.0
    skip_crd_creation: Annotated[bool, Option(help="Leave the definitions alone.")] = False

    def garbage(self) -> GarbageSettings:
        """What is collected when."""
        return GarbageSettings(
            endpoint_interval=self.cilium_endpoint_gc_interval,
            identity_interval=self.identity_gc_interval,
            identity_timeout=self.identity_heartbeat_timeout,
        )


@dataclass(frozen=True, kw_only=True)
class DoorSettings:
    """Where it says how it is."""

    health_listen: Annotated[str, Option(help="HOST:PORT of /healthz; empty: none.")] = "127.0.0.1:9234"
    metrics_listen: Annotated[str, Option(help="HOST:PORT of /metrics; empty: none.")] = "127.0.0.1:9963"


PARTS: tuple[tuple[str, type], ...] = (
    ("API server", ServerSettings),
    ("Pools of prefixes", PoolSettings),
    ("Leader election", LeaderSettings),
    ("Chores", ChoreSettings),
    ("Health and metrics", DoorSettings),
    ("Log", LogSettings),
)
"""Each with its heading."""


@dataclass(frozen=True, kw_only=True)
class Settings(LogSettings, DoorSettings, ChoreSettings, LeaderSettings, PoolSettings, ServerSettings):
    """All settings of an operator; each is a flag and a variable, CILIA_OPERATOR_<FIELD>."""


@app.command(cls=SectionedCommand)
@flags.taking(PARTS, variables="CILIA_OPERATOR_")
def run(**values: Any) -> None:
    """Run until SIGTERM or SIGINT, then give the lease back.

    Each flag has an environment variable, too, which its line names.
    """
    settings = Settings(**values)
    try:
        pools, election = settings.pools(), settings.election()
        store = KubeStore.discover(
            settings.kubeconfig, os.environ, context=settings.context, user_agent="cilia-operator"
        )
        log.configure(settings.log_level, settings.log_format)
        metrics = Metrics()
        operator = Operator(
            store,
            pools=pools,
            election=election,
            garbage=settings.garbage(),
            clock=SystemClock(),
            metrics=metrics,
            install_definitions=not settings.skip_crd_creation,
        )
        uvloop.run(_serve(operator, store, metrics, settings))
    except (ConfigError, PoolError, ListenError, ValueError) as error:
        typer.echo(f"cilia-operator: {error}", err=True)
        raise typer.Exit(1) from None


async def _serve(operator: Operator, store: KubeStore, metrics: Metrics, doors: DoorSettings) -> None:
    async with (
        store,
        serving(
            doors.health_listen,
            doors.metrics_listen,
            why_unhealthy=operator.why_unhealthy,
            metrics=metrics,
        ),
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
