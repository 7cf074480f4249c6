"""Maps `conntrack` and `ct_quota`: read, flushed and swept, never written by desire.

A sweep is a generator that looks at one bounded run of entries per step (about a millisecond), so the
event loop is never held up. An entry is removed a little after its time (`GRACE`), since the data path
may revive it until then. What is removed is counted for its owner, beside what the programs count: both are
exact, whatever comes meanwhile. Where they disagree with a whole sweep by more than came during it (an agent
ended between a removal and its counting), the count is mended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, Map
from cilia.dataplane.maps import packing

CHUNK = 1024
"""Entries per step: their removal, too, stays well under 20 ms."""
GRACE = 2
"""Seconds an expired entry is left alone."""
OWNERS = 65536

Look = Callable[[Array, Array], None]
"""Is shown keys and values of one step."""


Pick = Callable[[Array, Array], Array]
"""Which of the entries of one step, a mask, are to go before their time."""


def ignore(keys: Array, values: Array) -> None:
    """Looks at nothing."""


def keep(keys: Array, values: Array) -> Array:
    """Nothing goes before its time."""
    return np.zeros(len(keys), bool)


class SweepStats(msgspec.Struct, frozen=True):
    """What one whole sweep found."""

    entries: int
    """Alive after the sweep."""
    expired: int
    flushed: int
    heaviest: tuple[tuple[int, int], ...] = ()
    """(endpoint id, entries) of those that own most, heaviest first."""


class Conntrack:
    """Flows of this node."""

    def __init__(self, conntrack: Map, quota: Map, layout: abi.Layout) -> None:
        self._map = conntrack
        self._quota = quota.memory()
        self._initiator_high = layout.value("CT_INITIATOR_HIGH")
        self._flags = layout.enum("ct_flags")
        self._doomed: dict[bytes, int] = {}
        self.entries: int | None = None
        """Alive after the last whole sweep."""
        self.closing: list[Callable[[Array, Array], None]] = []
        """Called with keys and values of flows that a sweep is about to remove."""

    def doom(self, addresses: Iterable[str], now: int) -> None:
        """Have the next sweep remove the flows of these addresses that began until `now` (coarse
        monotonic seconds)."""
        self._doomed.update({packing.address_bytes(text): now for text in addresses})

    @property
    def flush_pending(self) -> bool:
        """Whether the next sweep has flows to flush, and should not wait."""
        return bool(self._doomed)

    def sweep(
        self, now: Callable[[], int], look: Look = ignore, unwanted: Pick = keep
    ) -> Iterator[SweepStats | None]:
        """Remove expired, unwanted and doomed entries; yields None after each bounded step, the stats at the
        end.

        `now`: coarse monotonic seconds, asked at each step. `look` is shown the entries that are left.
        """
        doomed, self._doomed = self._doomed, {}
        opened = self._quota["opened"].copy()
        owned = np.zeros(OWNERS, np.int64)
        expired = flushed = 0
        for keys, values in self._map.batches(CHUNK):
            old = (values["expires"].astype(np.int64) + GRACE < now()) | unwanted(keys, values)
            dead = ~old & _of_addresses(keys, values, doomed)
            gone = old | dead
            if gone.any():
                self._remove(keys[gone], values[gone])
                keys, values = keys[~gone], values[~gone]
            expired, flushed = expired + int(old.sum()), flushed + int(dead.sum())
            np.add.at(owned, values["owner"], 1)
            look(keys, values)
            yield None
        mend(opened, owned, self._quota["opened"], self._quota["closed"])
        self.entries = int(owned.sum())
        heaviest = np.argsort(owned)[::-1][:10]
        yield SweepStats(
            self.entries,
            expired,
            flushed,
            tuple((int(owner), int(owned[owner])) for owner in heaviest if owned[owner]),
        )

    def flush(self, addresses: Iterable[str], now: int) -> int:
        """Remove the flows of these addresses at once; how many there were."""
        self.doom(addresses, now)
        stats = [step for step in self.sweep(lambda: now) if step is not None]
        return stats[-1].flushed

    def rows(self, now: int, limit: int = 1 << 20) -> list[dict[str, Any]]:
        """Living flows for people, from the initiator's point of view."""
        found: list[dict[str, Any]] = []
        for keys, values in self._map.batches(CHUNK):
            alive = values["expires"] >= now
            pairs = zip(packing.records(keys[alive]), packing.records(values[alive]), strict=True)
            found += [self._row(key, value, now) for key, value in pairs]
            if len(found) >= limit:
                break
        return found[:limit]

    def _row(self, key: dict[str, Any], value: dict[str, Any], now: int) -> dict[str, Any]:
        low, high = (key["low"], key["low_port"]), (key["high"], key["high_port"])
        source, destination = (high, low) if value["flags"] & self._initiator_high else (low, high)
        return {
            "source": source[0],
            "source_port": source[1],
            "destination": destination[0],
            "destination_port": destination[1],
            "protocol": key["protocol"],
            "zone": key["zone"],
            "flags": [flag.name for flag in self._flags if value["flags"] & flag],
            "expires_in": value["expires"] - now,
            "packets": value["packets"],
            "bytes": value["bytes"],
            "owner": value["owner"],
            "source_identity": value["source_identity"],
            "service": value["service"],
            "sides": [_side(side) for side in value["side"]],
        }

    def _remove(self, keys: Array, values: Array) -> None:
        for note in self.closing:
            note(keys, values)
        self._map.remove(keys)
        np.add.at(self._quota["closed"], values["owner"], np.uint64(1))


def mend(before: Array, owned: Array, opened: Array, closed: Array) -> None:
    """Puts right what is counted per owner. `before`: `opened` as it was when a sweep began; `owned`: how
    many entries of each it left.

    Who had more before than are left now, or has fewer now than were left, is counted wrong: what came
    meanwhile lies between.
    """
    surplus = (before - closed).view(np.int64) - owned
    deficit = owned - (opened - closed).view(np.int64)
    wrong = np.maximum(surplus, 0) - np.maximum(deficit, 0)
    (owners,) = wrong.nonzero()
    closed[owners] += wrong[owners].view(np.uint64)


def _side(side: dict[str, Any]) -> dict[str, Any]:
    """One side's judgement: bit 63 denied, bits 62..32 revision, bits 31..0 peer identity."""
    judged = side["judged"]
    return {
        "denied": bool(judged >> 63),
        "revision": judged >> 32 & 0x7FFFFFFF,
        "peer": judged & 0xFFFFFFFF,
        "endpoint": side["endpoint"],
        "cookie": side["cookie"],
    }


def _of_addresses(keys: Array, values: Array, doomed: dict[bytes, int]) -> Array:
    """Which entries have a doomed address at either end and are as old as the doom."""
    hit = np.zeros(len(keys), bool)
    for raw, since in doomed.items():
        hi, lo = int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big")
        mine = np.zeros(len(keys), bool)
        for end in ("low", "high"):
            mine |= (keys[end]["lo"] == lo) & (keys[end]["hi"] == hi)
        hit |= mine & (values["created"] <= since)
    return hit
