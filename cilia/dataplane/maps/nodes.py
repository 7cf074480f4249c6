"""Maps `nodes` (underlay addresses of the cluster) and `node` (this node's settings)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map
from cilia.dataplane.maps import packing
from cilia.dataplane.maps.packing import Content
from cilia.model.node import NodeAddress, NodeSettings

ADDRESS_SETTINGS = ("ipv4", "ipv6", "router_ipv4", "router_ipv6")
NUMBER_SETTINGS = (
    "host_ifindex",
    "net_ifindex",
    "tunnel_ifindex",
    "native_ifindex",
    "mtu",
    "aggregation",
    "report_interval",
    "report_tcp_flags",
    "drop_rate",
    "drop_burst",
    "event_rate",
    "event_burst",
    "nat_first_port",
    "nat_last_port",
    "tunnel_port",
    "cluster",
    "ct_quota",
    "node_port_first",
    "node_port_last",
    "hash_seed",
    "netns",
)


class Nodes:
    """Target of `Desired.node_addresses`."""

    def __init__(self, nodes: Map, layout: abi.Layout) -> None:
        self._nodes = nodes
        self._flags = layout.value("IPCACHE_UNDERLAY") | layout.value("IPCACHE_HOST_ADDRESS")

    def desired(self, rows: Sequence[NodeAddress]) -> tuple[Array, Array]:
        """Keys and values for the rows, in their order."""
        values = self._nodes.values(len(rows))
        values["flags"] = self._flags
        values["mtu"] = [row.mtu for row in rows]
        return packing.addresses((row.address for row in rows), self._nodes.key), values

    def contents(self, rows: Sequence[NodeAddress]) -> list[Content[str]]:
        """What the maps have for the rows."""
        return [Content(self._nodes, *self.desired(rows), [row.address for row in rows])]

    def maps(self) -> list[Map]:
        """All that it writes."""
        return [self._nodes]

    def update(self, rows: Sequence[NodeAddress]) -> dict[str, str]:
        """Write the rows in one batch."""
        failures = self._nodes.put(*self.desired(rows))
        return {rows[at].address: why for at, why in packing.sentences(self._nodes, failures).items()}

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        """Remove addresses; absent ones are no error."""
        self._nodes.remove(packing.addresses(keys, self._nodes.key))
        return {}

    def prune(self, keep: Iterable[NodeAddress]) -> int:
        """Remove everything that is not in `keep`."""
        stale = self.ours() - {packing.address_text(packing.address_bytes(row.address)) for row in keep}
        return self._nodes.remove(packing.addresses(sorted(stale), self._nodes.key))

    def ours(self) -> set[str]:
        """Addresses in the kernel."""
        return set(map(packing.address_text, packing.raw_rows(self._nodes.dump()[0])))


class Settings:
    """The one row of map `node`, shared with the programs through memory."""

    def __init__(self, node: Map, layout: abi.Layout) -> None:
        self._row = node.memory()
        self._address = layout.dtype("address")
        self._asleep = layout.value("NODE_READER_ASLEEP")
        self._host_policy = layout.value("NODE_HOST_POLICY")
        self._services = layout.value("NODE_SERVICES")
        self._host_backends = layout.value("NODE_HOST_BACKENDS")

    def write(self, settings: NodeSettings) -> None:
        """Put new settings in force. The flags that follow the reader, the host's policy and the services
        stay as they are."""
        kept = self._asleep | self._host_policy | self._services | self._host_backends
        row = np.zeros(1, self._row.dtype)
        for name in ADDRESS_SETTINGS:
            row[name] = packing.addresses([getattr(settings, name)], self._address)
        for name in NUMBER_SETTINGS:
            row[name] = getattr(settings, name)
        row["host_mac"] = packing.macs([settings.host_mac])
        row["flags"] = settings.flags & ~kept | int(self._row["flags"][0]) & kept
        self._row[:] = row

    @property
    def nat_ports(self) -> int:
        """How many ports of the node translations have, towards each peer."""
        return int(self._row["nat_last_port"][0]) - int(self._row["nat_first_port"][0]) + 1

    @property
    def flow_quota(self) -> int:
        """How many flows one endpoint may have; 0: any number."""
        return int(self._row["ct_quota"][0])

    @property
    def reader_asleep(self) -> bool:
        """Whether the ring reader waits to be woken by the next event."""
        return bool(self._row["flags"][0] & self._asleep)

    @reader_asleep.setter
    def reader_asleep(self, asleep: bool) -> None:
        self._set(self._asleep, asleep)

    @property
    def host_policy(self) -> bool:
        """Whether the host is held to its policy."""
        return bool(self._row["flags"][0] & self._host_policy)

    @host_policy.setter
    def host_policy(self, asked: bool) -> None:
        if asked != self.host_policy:
            self._set(self._host_policy, asked)

    def follow_services(self, services: bool, host_backends: bool) -> None:
        """Whether there are services, and whether the node itself serves one."""
        flags = int(self._row["flags"][0])
        for flag, on in ((self._services, services), (self._host_backends, host_backends)):
            if on != bool(flags & flag):
                self._set(flag, on)

    def _set(self, flag: int, on: bool) -> None:
        flags = self._row["flags"]
        flags[0] = flags[0] | flag if on else flags[0] & ~np.uint32(flag)
