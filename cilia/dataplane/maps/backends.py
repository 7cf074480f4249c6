"""Maps `backends` and `slots`: who serves, by number, and lists of such numbers.

Candidates become a stretch of slots, shared by all who have the same ones. A backend gets flows as long as a
stretch in use has it, drains while somebody waits for its flows to end, and is dead from the moment nobody
names it. Numbers and stretches that were given back rest: a program may still be reading them.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec
import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, BpfError, Map, wait_for_programs
from cilia.dataplane.maps import packing
from cilia.dataplane.maps.numbers import Numbers, Stretches
from cilia.model import maglev
from cilia.model.service import Algorithm, Backend

REST = 0.1
"""Seconds before a stretch or a number is given out again: programs run for microseconds."""
WEIGHTED_SLOTS = 4096
"""So many slots at most say how often each backend is chosen, unless there are more backends."""
DIGESTED = 64
SLOT = np.dtype("<u4")

Candidates = tuple[Algorithm, tuple[Backend, ...]]
BackendKey = tuple[str, int, int]
"""Address, port, protocol."""


class ServiceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How tables are computed; the same on every node of the cluster."""

    maglev_size: int = 16_381
    """Slots of a Maglev table, a prime: a hundred times the backends of the largest service or more."""
    seed: int = 0x4B3F_91C7
    step: float = math.inf
    """Seconds after which a step of the write order leaves the other services to the next one: tables take
    some milliseconds each, and others wait."""


class Stretch:
    """Slots in use. `numbers`: the backends among them, once each; `uses`: by how many services' ranges."""

    __slots__ = ("asked", "content", "count", "first", "numbers", "uses")

    def __init__(self, first: int, count: int, numbers: tuple[int, ...], content: bytes) -> None:
        self.first = first
        self.count = count
        self.numbers = numbers
        self.content = content
        self.asked: list[Candidates] = []
        """Candidates it is known to stand for."""
        self.uses = 0


NO_STRETCH = Stretch(0, 0, (), b"")


class Backends:
    """What services lead to. An update is `begin`, any `use` and `drain`, `write`; then whoever refers to the
    stretches is written; then what is no longer referred to is given back, and `settle`."""

    def __init__(
        self,
        backends: Map,
        slots: Map,
        layout: abi.Layout,
        options: ServiceOptions,
        clock: Callable[[], float],
    ) -> None:
        if options.maglev_size not in maglev.SIZES:
            sizes = ", ".join(map(str, maglev.SIZES))
            raise BpfError(f"a Maglev table can't have {options.maglev_size} slots: take one of {sizes}")
        self._map, self._slots_map = backends, slots
        self._rows, self._slots = backends.memory(), slots.memory()
        self._options = options
        self._clock = clock
        self._address = layout.dtype("address")
        self._live, self._is_draining = layout.value("BACKEND_LIVE"), layout.value("BACKEND_DRAINING")
        self._numbers: Numbers[BackendKey] = Numbers(len(self._rows))
        self._stretches = Stretches(len(self._slots))
        self._chosen = [0] * len(self._rows)
        """By number: how many stretches have it."""
        self._drained = [0] * len(self._rows)
        """By number: how many wait for its flows to end."""
        self._used: dict[BackendKey, int] = {}
        """Backends whose row says that they live, by number ..."""
        self._key_of: dict[int, BackendKey] = {}
        """... and the other way round."""
        self._addresses: Counter[str] = Counter()
        self._by_candidates: dict[Candidates, Stretch] = {}
        self._by_content: dict[bytes, Stretch] = {}
        self._recent: dict[tuple[Algorithm, int], Stretch] = {}
        """During an update: by the `id` of the candidates, which alike rows share."""
        self._adopted: dict[tuple[int, int], Stretch] = {}
        self._fresh: dict[int, BackendKey] = {}
        """Numbers that come into use and whose backend is not written yet."""
        self._touched: set[int] = set()
        """Numbers whose flags may have to change."""
        self._unclaimed: set[int] = set()
        """Backends a predecessor left live and nobody has spoken of: they drain, perhaps."""
        self._is_pruned = False
        self._adopt()

    @property
    def size(self) -> int:
        """How many numbers there can be."""
        return len(self._rows)

    def begin(self) -> None:
        """Candidates asked for from here on are those of one update."""
        self._recent.clear()
        self._stretches.reclaim(self._clock() - REST)

    def use(self, algorithm: Algorithm, backends: tuple[Backend, ...]) -> Stretch:
        """A stretch with these candidates, in use once more. Raises BpfError."""
        found = self._recent.get((algorithm, id(backends)))
        if found is None:
            found = self._by_candidates.get((algorithm, backends)) or self._stretch((algorithm, backends))
            self._recent[algorithm, id(backends)] = found
        found.uses += 1
        return found

    def drain(self, backends: Iterable[Backend]) -> tuple[int, ...]:
        """Have the flows of these go on: their numbers. Raises BpfError."""
        numbers = tuple(dict.fromkeys(self._number(backend) for backend in backends))
        for number in numbers:
            self._drained[number] += 1
        self._touched.update(numbers)
        return numbers

    def write(self) -> None:
        """Write all backends that come into use."""
        numbers = np.fromiter(self._fresh, np.intp)
        self._rows[numbers] = self._encode(list(self._fresh.values()))
        for number, key in self._fresh.items():
            self._enlist(number, key)
        self._fresh.clear()

    def disuse(self, stretch: Stretch) -> None:
        """Nobody refers to the stretch by one of its uses any more."""
        stretch.uses -= 1
        if stretch.uses or stretch is NO_STRETCH:
            return
        for candidates in stretch.asked:
            del self._by_candidates[candidates]
        if self._by_content.get(stretch.content) is stretch:
            del self._by_content[stretch.content]
        self._recent.clear()
        for number in stretch.numbers:
            self._chosen[number] -= 1
            if not self._chosen[number]:
                self._touched.add(number)
        self._stretches.retire(stretch.first, stretch.count, self._clock())

    def undrain(self, numbers: Iterable[int]) -> None:
        """Nobody waits for the flows of these by one `drain` any more."""
        for number in numbers:
            self._drained[number] -= 1
            self._touched.add(number)

    def settle(self) -> None:
        """Bring the flags of backends to what they are now; those that nobody names are dead at once."""
        now = self._clock()
        flags = self._rows["flags"]
        for number in self._touched:
            wanted = self._flags(number)
            if not wanted and number in self._unclaimed:
                continue
            if flags[number] != wanted:
                flags[number] = wanted
            key = self._key_of.pop(number, None) if not wanted else None
            if key is not None:
                del self._used[key]
                self._addresses[key[0]] -= 1
                self._numbers.release(key, now)
            self._unclaimed.discard(number)
        self._touched.clear()
        self._recent.clear()

    def prune(self) -> None:
        """Backends that a predecessor left and nobody has spoken of are dead."""
        self._is_pruned = True
        self._touched |= self._unclaimed
        self._unclaimed.clear()
        self.settle()

    def serve_from(self, addresses: Collection[str]) -> bool:
        """Whether a backend has one of these addresses."""
        return any(self._addresses[address] for address in addresses)

    def is_used(self, number: int) -> bool:
        """Whether anybody leads to this backend."""
        return bool(self._chosen[number] or self._drained[number])

    def text(self, number: int) -> str:
        """What the kernel has under a number, for people: "address:port/PROTOCOL"."""
        if number >= len(self._rows):
            return f"#{number}"
        row = self._rows[number]
        address = packing.address_text(row["address"].tobytes())
        return packing.served_text(address, int(row["port"]), int(row["protocol"]))

    def in_range(self, first: int, count: int) -> list[str]:
        """Who serves a range of slots, each once, for people."""
        return [self.text(number) for number in dict.fromkeys(self._slots[first:][:count].tolist())]

    # what was found otherwise than intended

    def differences(self, start: int, stop: int) -> list[tuple[int, str, str]]:
        """(number, intended, actual) of rows in a range of numbers that are not as they are to be, for
        people; empty: none."""
        numbers = range(start, min(stop, len(self._rows)))
        used = [number for number in numbers if number in self._key_of]
        wanted = np.zeros(len(numbers), self._rows.dtype)
        wanted[np.array(used, np.intp) - start] = self._encode([self._key_of[number] for number in used])
        wanted["flags"] = [self._flags(number) for number in numbers]
        actual = self._rows[start : numbers.stop]
        wrong = actual["flags"] != wanted["flags"]
        for name in ("address", "port", "protocol"):
            wrong |= (wanted["flags"] != 0) & (actual[name] != wanted[name])
        return [
            (start + at, self._described(wanted[at]), self._described(actual[at]))
            for at in np.flatnonzero(wrong).tolist()
            if start + at not in self._unclaimed
        ]

    def is_intact(self, stretch: Stretch) -> bool:
        """Whether the slots of a stretch are as they were written."""
        return stretch is NO_STRETCH or _digest(self._slots_of(stretch)) == stretch.content

    def restore(self, numbers: Iterable[int]) -> None:
        """Write rows anew."""
        for number in numbers:
            key = self._key_of.get(number)
            if key is not None:
                row = self._encode([key])[0]
                row["flags"] = self._flags(number)
                self._rows[number] = row
            else:
                self._rows["flags"][number] = 0

    def restore_slots(self, stretch: Stretch) -> None:
        """Write a stretch anew, as its candidates make it. Raises BpfError."""
        algorithm, backends = stretch.asked[0]
        chosen = [backend for backend in backends if backend.weight > 0]
        numbers = [self._used[backend.address, backend.port, backend.protocol] for backend in chosen]
        self._slots_of(stretch)[:] = self._filled(algorithm, chosen, numbers)

    # stretches

    def _stretch(self, candidates: Candidates) -> Stretch:
        algorithm, backends = candidates
        chosen = [backend for backend in backends if backend.weight > 0]
        if not chosen:
            return NO_STRETCH
        table = algorithm is Algorithm.MAGLEV and len(chosen) > 1
        if table and self._is_pruned and not self._stretches.fits(self._options.maglev_size):
            # Before the table is computed, which takes milliseconds; one that a predecessor left may be it.
            raise BpfError(packing.full(self._slots_map))
        used = self._used
        numbers = [used.get((b.address, b.port, b.protocol)) or self._number(b) for b in chosen]
        slots = self._filled(algorithm, chosen, numbers)
        content = _digest(slots)
        found = self._by_content.get(content)
        if found is None:
            first = self._free_stretch(len(slots))
            found = Stretch(first, len(slots), tuple(dict.fromkeys(numbers)), content)
            self._slots_of(found)[:] = slots
            self._by_content[content] = found
            for number in found.numbers:
                self._chosen[number] += 1
                if self._chosen[number] == 1:
                    self._touched.add(number)
        found.asked.append(candidates)
        self._by_candidates[candidates] = found
        return found

    def _filled(self, algorithm: Algorithm, backends: list[Backend], numbers: list[int]) -> Array:
        """The slots: each backend as often as it is to be chosen."""
        own = np.array(numbers, SLOT)
        weights = [backend.weight for backend in backends]
        if algorithm is Algorithm.MAGLEV and len(backends) > 1:
            names = [str(backend) for backend in backends]
            return own[maglev.table(names, weights, self._options.maglev_size, self._options.seed)]
        return own if len(set(weights)) == 1 else np.repeat(own, shares(weights))

    def _free_stretch(self, count: int) -> int:
        first = self._stretches.take(count)
        if first is None and self._stretches.resting:
            wait_for_programs()
            self._stretches.reclaim(math.inf)
            first = self._stretches.take(count)
        if first is None:
            raise BpfError(packing.full(self._slots_map))
        return first

    def _slots_of(self, stretch: Stretch) -> Array:
        found: Array = self._slots[stretch.first : stretch.first + stretch.count]
        return found

    # numbers

    def _number(self, backend: Backend) -> int:
        """The backend's number; it comes into use with whatever names it next. Raises BpfError, and
        ValueError for a backend that can't be."""
        key = backend.address, backend.port, int(backend.protocol)
        if key in self._used:
            return self._used[key]
        packing.check_served(*key)
        number = self._numbers.take(key)
        if number is None:
            self._numbers.reclaim(self._clock() - REST)
            number = self._numbers.take(key)
        if number is None and self._numbers.resting:
            wait_for_programs()
            self._numbers.reclaim(math.inf)
            number = self._numbers.take(key)
        if number is None:
            raise BpfError(packing.full(self._map))
        self._touched.add(number)
        self._fresh[number] = key
        return number

    def _enlist(self, number: int, key: BackendKey) -> None:
        self._key_of[number] = key
        self._used[key] = number
        self._addresses[key[0]] += 1

    def _flags(self, number: int) -> int:
        if self._chosen[number]:
            return self._live
        return self._live | self._is_draining if self._drained[number] else 0

    def _encode(self, keys: Sequence[BackendKey]) -> Array:
        """Rows of live backends."""
        values = np.zeros(len(keys), self._rows.dtype)
        values["address"] = packing.addresses((key[0] for key in keys), self._address)
        values["port"] = [key[1] for key in keys]
        values["protocol"] = [key[2] for key in keys]
        values["flags"] = self._live
        return values

    def _described(self, row: Array) -> str:
        if not row["flags"]:
            return "dead"
        state = "draining" if row["flags"] & self._is_draining else "live"
        address = packing.address_text(row["address"].tobytes())
        return f"{address} port {row['port']} protocol {row['protocol']}, {state}"

    # what a predecessor left

    def adopt(self, first: int, count: int) -> Stretch | None:
        """A range that a service has, in use once more; None if it can't be one of ours: whoever has a range
        has it for himself, and it leads to live backends."""
        if not count:
            return NO_STRETCH
        found = self._adopted.get((first, count))
        if found is None:
            slots = self._slots[first : first + count]
            numbers = tuple(dict.fromkeys(slots.tolist()))
            if len(slots) < count or any(number not in self._key_of for number in numbers):
                return None
            if not self._stretches.reserve(first, count):
                return None
            found = self._adopted[first, count] = Stretch(first, count, numbers, _digest(slots))
            self._by_content.setdefault(found.content, found)
            for number in numbers:
                self._chosen[number] += 1
            self._unclaimed.difference_update(numbers)
        found.uses += 1
        return found

    def adopted(self) -> None:
        """All ranges were adopted."""
        self._adopted.clear()

    def _adopt(self) -> None:
        readable = (self._rows["port"] != 0) & np.isin(self._rows["protocol"], list(packing.PROTOCOLS))
        numbers = np.flatnonzero(readable & (self._rows["flags"] <= self._live | self._is_draining))
        rows = self._rows[numbers]
        addresses = packing.raw_rows(np.ascontiguousarray(rows["address"]))
        columns = (rows["port"].tolist(), rows["protocol"].tolist())
        keys = list(zip(map(packing.address_text, addresses), *columns, strict=True))
        live: dict[BackendKey, int] = {}
        resting: dict[BackendKey, int] = {}
        for number, key, flags in zip(numbers.tolist(), keys, rows["flags"].tolist(), strict=True):
            into = live if flags & self._live and key not in live else resting
            into[key] = number
        self._numbers.adopt(live, resting, self._clock())
        for key, number in live.items():
            self._enlist(number, key)
        self._unclaimed = set(live.values())
        # One who was killed may not have come to this.
        self._touched.update(np.flatnonzero(self._rows["flags"]).tolist())


def shares(weights: Sequence[int]) -> list[int]:
    """How many slots each of these positive weights gets: in proportion, as few as that takes, and not many
    more than WEIGHTED_SLOTS together."""
    divisor = math.gcd(*weights)
    total = sum(weights) // divisor
    if total <= WEIGHTED_SLOTS:
        return [weight // divisor for weight in weights]
    return [max(1, round(weight / divisor * WEIGHTED_SLOTS / total)) for weight in weights]


def _digest(slots: Array) -> bytes:
    content = slots.tobytes()
    return content if len(content) <= DIGESTED else hashlib.blake2b(content, digest_size=16).digest()
