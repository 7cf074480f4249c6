"""Maglev tables: which backend each of a prime number of slots belongs to.

A flow goes to slot `hash % size` of a table that every node computes alike. Each backend walks the slots in
an order of its own, drawn from its name, and wants its share of them; as in Eisenbud et al., "Maglev: A Fast
and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4. There, backends take turns until every
slot is taken; here all of them claim at once, in three steps:

    1  a slot falls to the claim of the lowest rank: how early it comes in its backend's order
    2  a backend that won more than its share keeps the slots it claimed first
    3  what is free then falls, again by rank, to those that have less than their share

Why not turns: who is taken out of step moves everybody's later turns, and with a hundred backends in 16,381
slots 1.4 % of the slots change hands between backends that stay. Here it is 0.7 %, each backend has its share
to the slot, and all steps work on whole columns: a third of the time, and none of it in a loop over slots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)
"""Numbers of slots that may be asked for: primes, so that any step walks through all slots."""

Numbers = NDArray[np.int64]

CLAIMS = 4
"""How many times its share a backend claims: two slots in a hundred are then left to the third step."""

BLOCK = 1 << 18
"""Pairs of slots and backends that are looked at together."""


def table(names: Sequence[str], weights: Sequence[int], size: int, seed: int) -> NDArray[np.uint32]:
    """The backend of each slot, as its place in `names`.

    names   distinct, and the same on every node; in any order
    weights the share of each: 0 has no slot
    size    one of SIZES
    seed    64 bits, the same on every node

    Raises ValueError when the size isn't one of SIZES or no name has a weight.
    """
    if size not in SIZES:
        raise ValueError(f"{size} is no size of a Maglev table: take one of {', '.join(map(str, SIZES))}")
    drawn = _draw(names, seed)
    order = np.lexsort((drawn[:, 1], drawn[:, 0]))
    order = order[np.asarray(weights, dtype=np.int64)[order] > 0]
    if not len(order):
        raise ValueError("no backend has a weight above 0: give one of them some")
    walks = _Walks(drawn[order], size)
    found = _assign(walks, np.asarray(weights, dtype=np.float64)[order])
    return order[found].astype(np.uint32)


def _draw(names: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """Two random numbers for each name."""
    key = (seed & (1 << 64) - 1).to_bytes(8, "little")
    raw = b"".join(hashlib.blake2b(name.encode(), digest_size=16, key=key).digest() for name in names)
    return np.frombuffer(raw, dtype="<u8").reshape(-1, 2)


class _Walks:
    """The order in which each backend wants the slots: from `first`, `step` by `step`."""

    def __init__(self, drawn: NDArray[np.uint64], size: int) -> None:
        self.size = size
        self.first: Numbers = (drawn[:, 0] % size).astype(np.int64)
        self.step: Numbers = (drawn[:, 1] % (size - 1)).astype(np.int64) + 1

    def __len__(self) -> int:
        return len(self.first)

    def ranks(self, slots: Numbers, backends: Numbers) -> Numbers:
        """When each of the backends (columns) comes to each of the slots (rows)."""
        steps = self.step[backends].tolist()
        inverse = np.array([pow(step, -1, self.size) for step in steps], dtype=np.int64)
        found: Numbers = (slots[:, None] - self.first[backends]) * inverse % self.size
        return found


def _assign(walks: _Walks, weights: NDArray[np.float64]) -> Numbers:
    owned = weights * (walks.size / weights.sum())
    slots, backends = _claims(walks, owned)
    won = _won(slots, walks.size)
    share = _whole(owned, walks.size)
    owners = backends[won]
    kept = _places(owners, len(walks)) < share[owners]
    found = np.full(walks.size, -1, dtype=np.int64)
    found[slots[won[kept]]] = owners[kept]
    _fill(found, walks, share - np.bincount(owners[kept], minlength=len(walks)))
    return found


def _claims(walks: _Walks, owned: NDArray[np.float64]) -> tuple[Numbers, Numbers]:
    """Slots that are claimed, and by whom: the lowest ranks first, counted in parts of each one's share."""
    numbers = np.arange(len(walks))
    lengths = np.minimum(walks.size, np.ceil(CLAIMS * owned)).astype(np.int64)
    if lengths[0] == lengths.max() == lengths.min():
        slots = np.arange(lengths[0])[:, None] * walks.step + walks.first
        slots %= walks.size
        return slots.ravel(), np.broadcast_to(numbers, slots.shape).ravel()
    backends = np.repeat(numbers, lengths)
    ranks = np.arange(len(backends)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    slots = (walks.first[backends] + ranks * walks.step[backends]) % walks.size
    parts = (ranks + 0.5) / owned[backends]
    order = np.argsort(np.minimum(parts * (65535 / CLAIMS), 65535).astype(np.uint16), kind="stable")
    return slots[order], backends[order]


def _won(slots: Numbers, size: int) -> Numbers:
    """The claims that are the first for their slot, in order."""
    first = np.full(size, -1, dtype=np.int64)
    first[slots[::-1]] = np.arange(len(slots) - 1, -1, -1)
    return np.sort(first[first >= 0])


def _whole(owned: NDArray[np.float64], size: int) -> Numbers:
    """Shares as whole numbers of slots: the largest remainders are rounded up."""
    share = np.floor(owned).astype(np.int64)
    rest = size - int(share.sum())
    share[np.argsort(share - owned, kind="stable")[:rest]] += 1
    return share


def _places(owners: Numbers, count: int) -> Numbers:
    """How many earlier ones each owner already has."""
    # 16 bits where they do: numpy then sorts by digits.
    order = np.argsort(owners.astype(np.uint16) if count <= 1 << 16 else owners, kind="stable")
    counts = np.bincount(owners, minlength=count)
    places = np.empty(len(owners), dtype=np.int64)
    places[order] = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


def _fill(found: Numbers, walks: _Walks, spare: Numbers) -> None:
    """Give the free slots to the backends with `spare` shares: to whom comes to them first."""
    free = np.flatnonzero(found < 0)
    while len(free):
        takers = np.flatnonzero(spare)
        block = free[: max(1, BLOCK // len(takers))]
        ranks = walks.ranks(block, takers)
        best = ranks.argmin(axis=1)
        order = np.argsort(ranks[np.arange(len(block)), best], kind="stable")
        chosen = takers[best[order]]
        fits = _places(chosen, len(walks)) < spare[chosen]
        found[block[order[fits]]] = chosen[fits]
        spare -= np.bincount(chosen[fits], minlength=len(walks))
        free = np.flatnonzero(found < 0)
