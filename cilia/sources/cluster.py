"""All sources of an agent: which kinds it follows and which tables they fill."""

import asyncio
from collections.abc import Container
from typing import Any

from cilia.cluster import store as cluster
from cilia.cluster.store import Store
from cilia.kit.tasks import TaskGroup
from cilia.schema import Inputs
from cilia.sources.cidr_groups import cidr_groups
from cilia.sources.endpoints import endpoints
from cilia.sources.identities import identities
from cilia.sources.namespaces import namespaces
from cilia.sources.nodes import nodes
from cilia.sources.pods import pods
from cilia.sources.policies import policies
from cilia.sources.redirects import redirects
from cilia.sources.reflector import Reflector
from cilia.sources.services import endpoint_slices, services
from cilia.tables.table import Table

POLICY_KINDS = (
    cluster.NETWORK_POLICIES,
    cluster.CILIUM_NETWORK_POLICIES,
    cluster.CILIUM_CLUSTERWIDE_NETWORK_POLICIES,
    cluster.CLUSTER_NETWORK_POLICIES,
)


class Sources:
    """The reflectors of one agent. A table is `synced` when all reflectors that fill it are."""

    def __init__(self, store: Store, inputs: Inputs, *, node: str, own_addresses: Container[str]) -> None:
        """`own_addresses` are this node's underlay addresses; endpoints behind them are not remote."""
        self._fills: list[tuple[Table[Any, Any], list[Reflector[Any, Any]]]] = [
            (inputs.namespaces, [Reflector(store, inputs.namespaces, namespaces())]),
            (inputs.pods, [Reflector(store, inputs.pods, pods(node))]),
            (inputs.nodes, [Reflector(store, inputs.nodes, nodes())]),
            (inputs.cluster_identities, [Reflector(store, inputs.cluster_identities, identities())]),
            (
                inputs.remote_endpoints,
                [Reflector(store, inputs.remote_endpoints, endpoints(own_addresses))],
            ),
            (inputs.cidr_groups, [Reflector(store, inputs.cidr_groups, cidr_groups())]),
            (inputs.services, [Reflector(store, inputs.services, services())]),
            (inputs.endpoint_slices, [Reflector(store, inputs.endpoint_slices, endpoint_slices())]),
            (inputs.redirects, [Reflector(store, inputs.redirects, redirects())]),
            (
                inputs.policies,
                [Reflector(store, inputs.policies, policies(resource)) for resource in POLICY_KINDS],
            ),
        ]
        self._marks: list[asyncio.Task[None]] = []

    @property
    def reflectors(self) -> list[Reflector[Any, Any]]:
        """All of them, for status pages."""
        return [reflector for _, reflectors in self._fills for reflector in reflectors]

    def start(self, tasks: TaskGroup) -> None:
        """Run all reflectors as tasks of the group."""
        for table, reflectors in self._fills:
            for reflector in reflectors:
                tasks.spawn(f"reflect {reflector.resource.plural}", reflector.run())
            self._marks.append(tasks.spawn(f"sync {table.name}", _mark(table, reflectors)))

    async def wait_synced(self) -> None:
        """Return when every table is complete; call after `start`."""
        await asyncio.gather(*self._marks)

    def watches(self) -> list[tuple[str, str]]:
        """Return each kind's plural name, and why the store can't be heard of it (empty when it can)."""
        return [(reflector.resource.plural, reflector.error) for reflector in self.reflectors]

    def lists(self) -> int:
        """How often a collection was listed: it grows when a watch was lost and everything is compared."""
        return sum(reflector.lists for reflector in self.reflectors)

    def errors(self) -> dict[str, str]:
        """Return, by plural name, why the store can't be heard right now."""
        return {
            reflector.resource.plural: reflector.error for reflector in self.reflectors if reflector.error
        }


async def _mark(table: Table[Any, Any], reflectors: list[Reflector[Any, Any]]) -> None:
    for reflector in reflectors:
        await reflector.synced.wait()
    table.synced = True
