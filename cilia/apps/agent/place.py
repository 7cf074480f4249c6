"""This node's place in the cluster: what it is there, and that the cluster has it right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from cilia.apps.agent.attach import Gateways
from cilia.apps.agent.node import PodAddresses, Registration, own_labels
from cilia.cluster.store import Store
from cilia.kit.tasks import TaskGroup
from cilia.model.node import Node
from cilia.schema import Inputs
from cilia.sources.reflector import Reflector
from cilia.tables.table import Table


class Place:
    """One node: its addresses, those for its pods, and its object in the cluster."""

    def __init__(
        self, name: str, prefixes: Sequence[str], addresses: PodAddresses, registration: Registration
    ) -> None:
        """`prefixes`: those of its pods, `addresses` the pools of them."""
        self.prefixes = tuple(prefixes)
        self.addresses = addresses
        self.gateways = Gateways(addresses.router(4), addresses.router(6))
        self.own = Node(
            name=name,
            addresses=registration.addresses,
            router_addresses=tuple(filter(None, (self.gateways.ipv4, self.gateways.ipv6))),
            pod_cidrs=self.prefixes,
        )
        self._registration = registration
        self._due = asyncio.Event()
        self._due.set()

    def stay(self, tasks: TaskGroup, store: Store, *, fixed: bool) -> None:
        """Keep the node's object as it should be, from now on; `fixed`: as for `Registration.keep`."""
        tasks.spawn(
            "register node",
            self._registration.stay(self._due, self.prefixes, self.own.router_addresses, fixed=fixed),
        )
        self._follow_labels(tasks, store)

    def _follow_labels(self, tasks: TaskGroup, store: Store) -> None:
        """Give this node's object the labels of its Kubernetes Node, if it has one, whenever they change."""
        name = self.own.name
        table: Table[str, Node] = Table("own_node", lambda row: row.name)

        def look() -> None:
            node = table.get(name)
            self._registration.labels = node.labels if node is not None else None
            self._due.set()

        table.listen(look)
        tasks.spawn("reflect own node", Reflector(store, table, own_labels(name)).run())

    def watch(self, inputs: Inputs) -> Callable[[], None]:
        """What to call after each step, to register anew when the cluster lost this node or has it wrong:
        once for each change of its object."""
        cursor = inputs.nodes.cursor()
        own = self.own

        def look() -> None:
            put, deleted = cursor.take()
            for row in put:
                told = self._registration.labels
                wanted = msgspec.structs.replace(
                    row,
                    addresses=own.addresses,
                    router_addresses=own.router_addresses,
                    labels=row.labels if told is None else told,
                )
                if row.name == own.name and row != wanted:
                    self._due.set()
            if own.name in deleted:
                self._due.set()

        return look
