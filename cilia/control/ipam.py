"""Addresses: which prefix a node gets of the cluster's, and which address a pod gets of its node's. Pure.

`NodePools` is the operator's, a function of all nodes' present prefixes. `AddressPool` is the agent's, a
small ledger that its owner fills again after a restart with `claim`.

Source: the behaviour of cluster-scope IPAM as Cilium's users know it (row IP01).
"""

import bisect
import ipaddress
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from cilia.model.address import IPAddress, IPNetwork


class PoolError(Exception):
    """An address or prefix can't be had; the message says why and what to do."""


class NodeClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A node and the prefixes it has by now."""

    name: str
    created: str = ""
    """RFC 3339; of two nodes with one prefix the older keeps it."""
    cidrs: tuple[str, ...] = ()


class NodeGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What a node shall have, and why it can't have more."""

    name: str
    cidrs: tuple[str, ...]
    error: str = ""


class NodePool(msgspec.Struct, frozen=True):
    """A prefix of the cluster from which nodes get prefixes of `mask` bits."""

    network: IPNetwork
    mask: int

    def __post_init__(self) -> None:
        if not self.network.prefixlen <= self.mask <= self.network.max_prefixlen:
            raise PoolError(
                f"nodes can't get /{self.mask} prefixes from {self.network}: choose a mask size from "
                f"{self.network.prefixlen} to {self.network.max_prefixlen}"
            )

    @property
    def size(self) -> int:
        """How many nodes it serves."""
        return 1 << (self.mask - self.network.prefixlen)

    def at(self, index: int) -> IPNetwork:
        """The prefix number `index`, from 0."""
        step = self.network.max_prefixlen - self.mask
        base = int(self.network.network_address) + (index << step)
        return _network(self.network.version, base, self.mask)

    def covered(self, first: int, last: int) -> tuple[int, int] | None:
        """The first and last number of the prefixes with an address from `first` to `last`, if any."""
        step = self.network.max_prefixlen - self.mask
        base = int(self.network.network_address)
        if last < base or first > int(self.network.broadcast_address):
            return None
        return max(first - base, 0) >> step, min((last - base) >> step, self.size - 1)


class NodePools:
    """The prefixes of the cluster: one family after the other, each pool in the order given."""

    def __init__(self, pools: Sequence[NodePool]) -> None:
        """Raises PoolError when two pools overlap."""
        self.pools = tuple(pools)
        for index, pool in enumerate(self.pools):
            for other in self.pools[:index]:
                if pool.network.version == other.network.version and pool.network.overlaps(other.network):
                    raise PoolError(f"pools {other.network} and {pool.network} overlap: remove one of them")

    @property
    def families(self) -> tuple[int, ...]:
        """IP versions that nodes get prefixes of, 4 first."""
        return tuple(sorted({pool.network.version for pool in self.pools}))

    def assign(self, claims: Iterable[NodeClaim]) -> dict[str, NodeGrant]:
        """Return what each node shall have: what it has, in a pool or not, and of each family one.

        The result depends on the claims only: first the oldest nodes, the lowest free prefix first.
        """
        ordered = sorted(claims, key=lambda claim: (claim.created, claim.name))
        taken = _Taken()
        kept = [(claim.name, *_keep(claim, taken)) for claim in ordered]
        free = {version: self._free(version, taken) for version in self.families}
        return {name: self._grant(name, own, errors, free) for name, own, errors in kept}

    def _grant(
        self, name: str, own: list[IPNetwork], errors: list[str], free: dict[int, Iterator[IPNetwork]]
    ) -> NodeGrant:
        lacking = [v for v in self.families if not errors and all(network.version != v for network in own)]
        for version in lacking:
            network = next(free[version], None)
            if network is None:
                pools = ", ".join(str(pool.network) for pool in self.pools if pool.network.version == version)
                errors.append(f"no IPv{version} prefix is left in {pools}: append another cluster pool")
            else:
                own.append(network)
        own.sort(key=lambda network: network.version)
        return NodeGrant(name=name, cidrs=tuple(map(str, own)), error="; ".join(errors))

    def _free(self, version: int, taken: "_Taken") -> Iterator[IPNetwork]:
        """Yield the prefixes nobody has, in order."""
        for pool in self.pools:
            if pool.network.version == version:
                for first, last in taken.gaps(pool):
                    yield from map(pool.at, range(first, last + 1))

    def free(self, claims: Iterable[NodeClaim], version: int) -> int:
        """How many more nodes can get a prefix of a family."""
        taken = _Taken()
        for claim in claims:
            _keep(claim, taken)
        mine = [pool for pool in self.pools if pool.network.version == version]
        return sum(last - first + 1 for pool in mine for first, last in taken.gaps(pool))


def _keep(claim: NodeClaim, taken: "_Taken") -> tuple[list[IPNetwork], list[str]]:
    """Note what a node has; returns it, and what is wrong with it."""
    own: list[IPNetwork] = []
    errors: list[str] = []
    for text in claim.cidrs:
        try:
            network: IPNetwork = ipaddress.ip_network(text)
        except ValueError:
            errors.append(f"podCIDR {text!r} is not a prefix: remove it from spec.ipam.podCIDRs")
            continue
        owner = taken.take(network, claim.name)
        if owner is not None:
            errors.append(f"podCIDR {network} overlaps with that of node {owner}: remove it from one of them")
        own.append(network)
    return own, errors


class _Taken:
    """The prefixes nodes have, by family in order of address, and their nodes."""

    def __init__(self) -> None:
        self._spans: dict[int, list[tuple[int, int, str]]] = {4: [], 6: []}
        self._conflicts: dict[int, list[tuple[int, int, str]]] = {4: [], 6: []}

    def take(self, network: IPNetwork, name: str) -> str | None:
        """Note a prefix; returns the node that had part of it before, or None."""
        spans = self._spans[network.version]
        span = (int(network.network_address), int(network.broadcast_address), name)
        at = bisect.bisect(spans, span)
        # The spans in the list are disjoint, so only the neighbours can overlap.
        for first, last, owner in spans[max(at - 1, 0) : at + 1]:
            if first <= span[1] and span[0] <= last:
                self._conflicts[network.version].append(span)
                return owner
        spans.insert(at, span)
        return None

    def gaps(self, pool: NodePool) -> Iterator[tuple[int, int]]:
        """Yield first and last number of each run of a pool's prefixes nobody has part of."""
        version = pool.network.version
        free = 0
        for first, last, _ in sorted(self._spans[version] + self._conflicts[version]):
            covered = pool.covered(first, last)
            if covered is not None:
                if free < covered[0]:
                    yield free, covered[0] - 1
                free = max(free, covered[1] + 1)
        if free < pool.size:
            yield free, pool.size - 1


class AddressPool:
    """The addresses of one node and family: who has which.

    Addresses are handed out next-fit and rest for `quarantine` seconds after their release, so that neither a
    neighbour's cache nor a late packet meets another pod; when nothing else is left, the one that rested
    longest is used. The network address, the broadcast address (IPv4) and the first address, which is the
    node's own among its pods, are never handed out.
    """

    def __init__(self, network: IPNetwork, *, quarantine: float = 30.0) -> None:
        """Raises PoolError when the prefix has no address for a pod."""
        self.network = network
        self.quarantine = quarantine
        self._first = int(network.network_address) + 2
        self._last = int(network.broadcast_address) - (1 if network.version == 4 else 0)
        if self._last < self._first:
            raise PoolError(f"{network} has no address for a pod: give the node a larger prefix")
        self._next = self._first
        self._owners: dict[int, str] = {}
        self._resting: dict[int, float] = {}

    @property
    def router(self) -> IPAddress:
        """The node's own address among its pods: the first of the prefix."""
        return _address(self.network.version, self._first - 1)

    @property
    def capacity(self) -> int:
        """How many pods fit."""
        return self._last - self._first + 1

    def __len__(self) -> int:
        return len(self._owners)

    def owners(self) -> Iterator[tuple[IPAddress, str]]:
        """Yield address and owner, by address."""
        for value in sorted(self._owners):
            yield _address(self.network.version, value), self._owners[value]

    def owner(self, address: IPAddress) -> str | None:
        """Who has an address, or None."""
        return self._owners.get(int(address)) if address.version == self.network.version else None

    def allocate(self, owner: str, now: float) -> IPAddress:
        """Hand out an address; raises PoolError when all are in use. `now` is monotonic, in seconds."""
        for value in [value for value, until in self._resting.items() if until <= now]:
            del self._resting[value]
        value = self._find_free()
        self._resting.pop(value, None)
        self._owners[value] = owner
        self._next = value + 1
        return _address(self.network.version, value)

    def claim(self, address: IPAddress, owner: str) -> None:
        """Note that `owner` has `address` already; raises PoolError when it can't.

        Claiming one's own address again changes nothing.
        """
        value = int(address)
        if address.version != self.network.version or not self._first <= value <= self._last:
            raise PoolError(f"{address} is not an address for pods in {self.network}")
        if self._owners.get(value, owner) != owner:
            raise PoolError(f"{address} belongs to {self._owners[value]}, {owner} can't have it")
        self._resting.pop(value, None)
        self._owners[value] = owner
        self._next = max(self._next, value + 1)

    def release(self, address: IPAddress, now: float, *, owner: str | None = None) -> bool:
        """Take an address back; returns whether it was in use (by `owner`, if given)."""
        held = self.owner(address)
        if held is None or owner not in (None, held):
            return False
        del self._owners[int(address)]
        self._resting[int(address)] = now + self.quarantine
        return True

    def _find_free(self) -> int:
        """Return the next address nobody has and that does not rest, else the one that rested longest."""
        value = self._next
        for _ in range(len(self._owners) + len(self._resting) + 1):
            if value > self._last:
                value = self._first
            if value not in self._owners and value not in self._resting:
                return value
            value += 1
        if not self._resting:
            raise PoolError(
                f"all {self.capacity} addresses of {self.network} are in use: remove pods from this node or "
                "give it another prefix"
            )
        return min(self._resting, key=self._resting.__getitem__)


def _address(version: int, value: int) -> IPAddress:
    return ipaddress.IPv4Address(value) if version == 4 else ipaddress.IPv6Address(value)


def _network(version: int, value: int, prefix: int) -> IPNetwork:
    if version == 4:
        return ipaddress.IPv4Network((value, prefix))
    return ipaddress.IPv6Network((value, prefix))
