"""Who is behind an address: the ipcache, from everything that claims one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cilia.control.apiserver import ApiServerAddress, addresses_table
from cilia.control.identity import host_prefix
from cilia.control.nodes import known_nodes, usable_pod_cidrs
from cilia.control.policy.meaning.spans import Prefixes, Span
from cilia.model.endpoint import HOST_ENDPOINT, Endpoint, RemoteEndpoint
from cilia.model.identity import (
    HOST,
    KUBE_APISERVER,
    REMOTE_NODE,
    UNKNOWN,
    WORLD_IPV4,
    WORLD_IPV6,
)
from cilia.model.ids import IdentityId
from cilia.model.node import IpcacheEntry, Node
from cilia.model.policy import CidrIdentity
from cilia.schema import Desired, Inputs
from cilia.tables.table import Table

TUNNEL = 1
"""enum ipcache_flags of bpf/abi/ipcache.h, like the two below."""
HOST_ADDRESS = 2
UNDERLAY = 4

# Who wins when two claim one prefix: what is here, then nodes, then what others say, then policies.
RANK_ENDPOINT, RANK_SELF, RANK_NODE, RANK_REMOTE, RANK_CIDR, RANK_POD_CIDR, RANK_WORLD = range(7)


class IpcacheNode:
    """endpoints + nodes + remote_endpoints + identities of prefixes and nodes -> ipcache.

    Every claim is kept by its claimant, so that one that goes gives way to the next in rank and the
    result depends on the present claims only.
    """

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        cidrs: Table[str, CidrIdentity],
        *,
        node: str,
        tunnel: bool,
        apiservers: Table[str, ApiServerAddress] | None = None,
        own: Node | None = None,
        node_ids: Table[str, CidrIdentity] | None = None,
    ) -> None:
        """`node_ids`: identities of other nodes' addresses, by host prefix, where they have some of their
        own."""
        self._inputs = inputs
        self._desired = desired
        self._cidrs = cidrs
        self._node = node
        self._tunnel = tunnel
        self._apiservers = addresses_table() if apiservers is None else apiservers
        self._apiserver_changes = self._apiservers.cursor()
        self._endpoints = desired.endpoints.cursor()
        self._remote = inputs.remote_endpoints.cursor()
        self._nodes = inputs.nodes.cursor()
        self._cidr_changes = cidrs.cursor()
        self._own = own
        self._node_ids = node_ids if node_ids is not None else Table("node_ids", lambda row: row.prefix)
        self._node_id_changes = self._node_ids.cursor()
        self._pod_cidrs = usable_pod_cidrs(known_nodes((), own), node)
        self._pods = self._prefixes_of_pods()
        self._claims: dict[str, dict[tuple[int, object], IpcacheEntry]] = {}
        self._claimed: dict[tuple[int, object], tuple[str, ...]] = {}
        self._claim(
            (RANK_WORLD, "world"),
            [
                IpcacheEntry(prefix="0.0.0.0/0", identity=WORLD_IPV4),
                IpcacheEntry(prefix="::/0", identity=WORLD_IPV6),
            ],
        )
        if own is not None:
            self._claim((RANK_SELF, own.name), list(self._of_node(own)))

    def step(self) -> None:
        """Bring the claims of everything that changed up to date."""
        endpoints, gone = self._endpoints.take()
        for endpoint in endpoints:
            self._claim((RANK_ENDPOINT, endpoint.id), list(_of_endpoint(endpoint)))
        for identifier in gone:
            self._claim((RANK_ENDPOINT, identifier), [])
        if self._node_id_changes.pending or self._apiserver_changes.pending:
            self._node_id_changes.take()
            self._apiserver_changes.take()
            self._claim_nodes(self._inputs.nodes)
        if self._nodes.pending:
            self._step_nodes()
        remote, lost = self._remote.take()
        for row in remote:
            self._claim((RANK_REMOTE, (row.namespace, row.name)), list(self._of_remote(row)))
        for key in lost:
            self._claim((RANK_REMOTE, key), [])
        cidrs, dropped = self._cidr_changes.take()
        for cidr in cidrs:
            self._claim_cidr(cidr)
        for prefix in dropped:
            self._claim((RANK_CIDR, prefix), [])

    def _claim_cidr(self, cidr: CidrIdentity) -> None:
        """A prefix among the pods of some node gets no identity of its own: a CIDR rule speaks of the
        world, and a pod nobody has described yet must not pass for it."""
        among_pods = self._pods.contain(Span(cidr.prefix))
        entries = [] if among_pods else [IpcacheEntry(prefix=cidr.prefix, identity=cidr.identity)]
        self._claim((RANK_CIDR, cidr.prefix), entries)

    def _step_nodes(self) -> None:
        nodes, removed = self._nodes.take()
        self._claim_nodes(nodes)
        known = self._own.name if self._own is not None else None
        for name in removed:
            if name != known:
                self._claim((self._rank_of(name), name), [])
        self._step_pod_cidrs({*(node.name for node in nodes), *removed})
        self._pods = self._prefixes_of_pods()
        for cidr in self._cidrs:
            self._claim_cidr(cidr)
        if removed:
            # A vanished node takes its pods' addresses with it, whoever still speaks of them.
            for row in self._inputs.remote_endpoints:
                self._claim((RANK_REMOTE, (row.namespace, row.name)), list(self._of_remote(row)))

    def _claim_nodes(self, nodes: Iterable[Node]) -> None:
        known = self._own.name if self._own is not None else None
        for node in nodes:
            if node.name != known:
                self._claim((self._rank_of(node.name), node.name), list(self._of_node(node)))

    def _step_pod_cidrs(self, changed: set[str]) -> None:
        """Claim pod prefixes; a changed address of one node can make another's prefix unusable."""
        nodes = known_nodes(self._inputs.nodes, self._own)
        before, self._pod_cidrs = self._pod_cidrs, usable_pod_cidrs(nodes, self._node)
        changed |= {name for name, cidrs in self._pod_cidrs.items() if before.get(name) != cidrs}
        for name in changed:
            self._claim((RANK_POD_CIDR, name), list(self._of_pod_cidrs(name)))

    def _prefixes_of_pods(self) -> Prefixes:
        return Prefixes(cidr for cidrs in self._pod_cidrs.values() for cidr in cidrs)

    def _rank_of(self, node: str) -> int:
        return RANK_SELF if node == self._node else RANK_NODE

    def _of_node(self, node: Node) -> Iterator[IpcacheEntry]:
        local = node.name == self._node
        underlay = node.addresses[0] if node.addresses else ""
        for address in node.addresses:
            identity = HOST if local else self._remote_node(address)
            yield IpcacheEntry(prefix=host_prefix(address), identity=identity, flags=HOST_ADDRESS | UNDERLAY)
        for address in node.router_addresses:
            prefix = host_prefix(address)
            if local:
                yield IpcacheEntry(prefix=prefix, identity=HOST, flags=HOST_ADDRESS)
            else:
                yield self._through(prefix, self._remote_node(address), underlay, HOST_ADDRESS)

    def _remote_node(self, address: str) -> IdentityId:
        """The address's own identity if policies tell nodes apart, else that of all of its kind."""
        own = self._node_ids.get(host_prefix(address))
        if own is not None:
            return own.identity
        return KUBE_APISERVER if address in self._apiservers else REMOTE_NODE

    def _of_pod_cidrs(self, name: str) -> Iterator[IpcacheEntry]:
        """Pods of another node that nobody has described yet are reachable and match only "any"."""
        node = self._inputs.nodes.get(name)
        if node is None or name == self._node or not node.addresses:
            return
        for cidr in self._pod_cidrs[name]:
            yield self._through(cidr, UNKNOWN, node.addresses[0])

    def _of_remote(self, row: RemoteEndpoint) -> Iterator[IpcacheEntry]:
        for address in row.addresses:
            yield self._through(
                host_prefix(address), row.identity, row.node_ip, namespace=row.namespace, pod=row.name
            )

    def _through(
        self, prefix: str, identity: int, node: str, flags: int = 0, *, namespace: str = "", pod: str = ""
    ) -> IpcacheEntry:
        return IpcacheEntry(
            prefix=prefix,
            identity=identity,
            tunnel_endpoint=node if self._tunnel else "",
            flags=flags | (TUNNEL if self._tunnel else 0),
            namespace=namespace,
            pod=pod,
        )

    def _claim(self, claimant: tuple[int, object], entries: list[IpcacheEntry]) -> None:
        """Replace all that `claimant` says; what it no longer says falls to the next in rank."""
        touched = dict.fromkeys([*self._claimed.get(claimant, ()), *(entry.prefix for entry in entries)])
        for prefix in self._claimed.pop(claimant, ()):
            claims = self._claims[prefix]
            del claims[claimant]
            if not claims:
                del self._claims[prefix]
        for entry in entries:
            self._claims.setdefault(entry.prefix, {})[claimant] = entry
        if entries:
            self._claimed[claimant] = tuple(dict.fromkeys(entry.prefix for entry in entries))
        for prefix in touched:
            self._settle(prefix)

    def _settle(self, prefix: str) -> None:
        claims = self._claims.get(prefix)
        if not claims:
            self._desired.ipcache.delete(prefix)
            return
        winner = min(claims, key=_rank)
        self._desired.ipcache.put(claims[winner])


def _rank(claimant: tuple[int, object]) -> tuple[int, str]:
    """Orders claimants: by rank, then by name, so that a tie has one answer."""
    return claimant[0], str(claimant[1])


def _of_endpoint(endpoint: Endpoint) -> Iterator[IpcacheEntry]:
    if not endpoint.identity or endpoint.id == HOST_ENDPOINT:
        return
    for address in endpoint.addresses:
        yield IpcacheEntry(
            prefix=host_prefix(address),
            identity=endpoint.identity,
            namespace=endpoint.attachment.namespace,
            pod=endpoint.attachment.pod,
        )
