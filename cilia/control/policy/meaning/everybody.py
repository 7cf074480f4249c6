"""Everybody whom rules can mean, and by what: labels, prefixes, addresses inside the cluster, names of ports.

    identities ──────────────► Selections ─► selectors, blocks
         nodes' ─┐
    endpoints ───┴───────────► Addresses ──► prefixes that mean those inside
             └───────────────► PortNames ──► names of ports

A change tells for whom what now means others.
"""

from __future__ import annotations

from collections.abc import Hashable, Set

from cilia.control.policy.meaning.addresses import Addresses
from cilia.control.policy.meaning.naming import PortNames
from cilia.control.policy.meaning.selection import Selections, is_node, spans_of
from cilia.control.policy.rules import Inside, Meant, PortName
from cilia.model.endpoint import Endpoint, NamedPort, RemoteEndpoint
from cilia.model.identity import HOST, Identity
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.node import Node

REMEMBERED = 4096
"""Identities that went of which the labels are kept."""

What = Meant | PortName
"""By what a rule means somebody."""

Changed = list[tuple[IdentityId, What]]
"""For whom what now means others."""


class Everybody:
    """What groups and reviews ask (sides.World, review.Known), kept current."""

    def __init__(self, *, cidr_nodes: bool = False, own: Node | None = None) -> None:
        """`cidr_nodes`: CIDR rules mean nodes, too; `own`: what this node knows of itself."""
        self.stayed: set[IdentityId] = set()
        """Who did not come or go and is meant by others, until somebody clears it: judged anew."""
        self._selections = Selections(cidr_nodes=cidr_nodes)
        self._addresses = Addresses()
        self._port_names = PortNames()
        self._gone: dict[IdentityId, Labels] = {}
        """What the identities that went last were called."""
        if own is not None:
            self._addresses.claim("host", (HOST, (*own.addresses, *own.router_addresses)))

    # Taking in what changed.

    def put(self, row: Identity) -> Changed:
        """Add or relabel an identity."""
        before = self.labels(row.id) or self._gone.pop(row.id, None)
        if before not in (None, row.labels):
            self.stayed.add(row.id)
        changed: Changed = [(row.id, peer) for peer in self._selections.put(row.id, row.labels)]
        if is_node(row.labels) and row.id != HOST:
            addresses = tuple(span.address for span in spans_of(row.id, row.labels, True))
            changed += self._addresses.claim(("node", row.id), (row.id, addresses))
        return changed

    def remove(self, identity: IdentityId) -> Changed:
        """Remove an identity. Its labels are kept for a while: were the number given to others, running
        flows may still name it."""
        labels = self.labels(identity)
        if labels is not None:
            self._gone[identity] = labels
            if len(self._gone) > REMEMBERED:
                del self._gone[next(iter(self._gone))]
        changed: Changed = [(identity, peer) for peer in self._selections.remove(identity)]
        return changed + self._addresses.claim(("node", identity), None)

    def claim(self, endpoint: Hashable, row: Endpoint | RemoteEndpoint | None) -> Changed:
        """Replace what an endpoint, here or elsewhere, says of itself (None: it is gone). An identity that
        had other addresses before, or gives its ports other numbers, is judged anew."""
        names = self._port_names.claim(endpoint, (row.identity, row.named_ports) if row is not None else None)
        said = (row.identity, row.addresses) if row is not None and row.identity != HOST else None
        known = said is None or said[0] in self._addresses
        moved = self._addresses.claim(endpoint, said)
        self.stayed.update(identity for identity, _ in names)
        if known:
            self.stayed.update(identity for identity, _ in moved)
        return [*names, *moved]

    # Following peers.

    def acquire(self, peer: Meant) -> None:
        """Begin to follow a peer, or count one more user of it."""
        if isinstance(peer, Inside):
            self._addresses.acquire(peer)
        else:
            self._selections.acquire(peer)

    def release(self, peer: Meant) -> None:
        """Count one user less; without users a peer is no longer followed."""
        if isinstance(peer, Inside):
            self._addresses.release(peer)
        else:
            self._selections.release(peer)

    def members(self, peer: Meant) -> Set[IdentityId]:
        """The identities that a followed peer means now."""
        if isinstance(peer, Inside):
            return self._addresses.members(peer)
        return self._selections.members(peer)

    def peers(self) -> dict[Meant, frozenset[IdentityId]]:
        """Every followed peer and whom it means now: a copy."""
        followed = (self._selections.peers(), self._addresses.peers())
        return {peer: members for peers in followed for peer, members in peers.items()}

    # Asking.

    def select(self, peer: Meant) -> Set[IdentityId]:
        """The identities a peer means now, whether it is followed or not."""
        if isinstance(peer, Inside):
            return self._addresses.select(peer)
        return self._selections.index.select(peer)

    def labels(self, identity: IdentityId) -> Labels | None:
        """What an identity is called, or None."""
        return self._selections.index.get(identity)

    def port_numbers(self, identity: IdentityId, name: PortName) -> frozenset[int]:
        """The numbers that endpoints of an identity give a port name."""
        return self._port_names.numbers(identity, name)

    def naming(self, name: PortName) -> Set[IdentityId]:
        """The identities some endpoint of which has a port of that name."""
        return self._port_names.naming(name)

    def all_labels(self) -> dict[IdentityId, Labels]:
        """What each identity is called: a copy, as the next two."""
        return self._selections.index.labels()

    def all_port_names(self) -> dict[IdentityId, frozenset[NamedPort]]:
        """Every named port by identity."""
        return self._port_names.all()

    def all_addresses(self) -> dict[IdentityId, frozenset[str]]:
        """Every address inside the cluster by identity."""
        return self._addresses.all()
