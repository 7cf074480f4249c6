"""Maps `services`, `frontends`, `backends`, `slots`, `source_ranges` and `skip_redirect`.

    services[frontend]  {id, flags, a range for clients inside, one for those outside}
                                    └──► slots[first ..] ──► backends[number]
    frontends[id]       the frontend again, for replies

A change is written from right to left: backends under fresh numbers, a free stretch of slots, the frontend
under its number, and then the one hash entry, in one store as packets see it. What the old entry named comes
back afterwards, and rests: a program may still be reading it. Frontends with the same candidates share a
stretch.

A successor finds all of it by reading the maps; what no row claims goes in `prune`. When something is full,
the frontends that do not fit keep what they had (new ones are not there), and say so; all others work.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, BpfError, Map, wait_for_programs
from cilia.dataplane.maps import packing
from cilia.dataplane.maps.numbers import Numbers, Stretches
from cilia.model import maglev
from cilia.model.service import (
    Algorithm,
    Backend,
    ForwardingMode,
    Frontend,
    FrontendKind,
    Protocol,
    ServiceEntry,
)

REST = 0.1
"""Seconds before a stretch or a backend's number is given out again: programs run for microseconds."""
WEIGHTED_SLOTS = 4096
"""So many slots at most say how often each backend is chosen, unless there are more backends."""
DIGESTED = 64
REVISIONS = 1 << 32
SLOT = np.dtype("<u4")

Candidates = tuple[Algorithm, tuple[Backend, ...]]
BackendKey = tuple[str, int, int]
"""Address, port, protocol."""


class ServiceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How tables are computed; the same on every node of the cluster."""

    maglev_size: int = 16_381
    """Slots of a Maglev table, a prime: a hundred times the backends of the largest service or more."""
    seed: int = 0x4B3F_91C7


class LocalPod(msgspec.Struct, frozen=True):
    """What tells a pod of this node to a redirect that is to leave it alone."""

    endpoint: int
    netns: int
    """Cookie of its network namespace; 0: not known."""


class Stretch:
    """Slots in use. `numbers`: the backends among them, once each; `uses`: of how many services' ranges."""

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


class Held:
    """A frontend in the kernel. `row` None: a predecessor left it, and nobody has claimed it yet."""

    __slots__ = ("draining", "id", "ranges", "revision", "row", "skips", "sources")

    def __init__(
        self, row: ServiceEntry | None, number: int, ranges: tuple[Stretch, Stretch], revision: int
    ) -> None:
        self.row = row
        self.id = number
        self.ranges = ranges
        self.revision = revision
        self.draining: tuple[int, ...] = ()
        self.sources: frozenset[bytes] = frozenset()
        self.skips: frozenset[bytes] = frozenset()


class Services:
    """Target of `Desired.service_entries`."""

    def __init__(
        self,
        maps: Mapping[str, Map],
        layout: abi.Layout,
        options: ServiceOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services, self._source_ranges = maps["services"], maps["source_ranges"]
        self._skip_redirect, self._affinity = maps["skip_redirect"], maps["affinity"]
        self._frontends_map, self._backends_map, self._slots_map = (
            maps[name] for name in ("frontends", "backends", "slots")
        )
        self._frontends = self._frontends_map.memory()
        self._backends = self._backends_map.memory()
        self._slots = self._slots_map.memory()
        self._options = options or ServiceOptions()
        if self._options.maglev_size not in maglev.SIZES:
            sizes = ", ".join(map(str, maglev.SIZES))
            raise BpfError(
                f"a Maglev table can't have {self._options.maglev_size} slots: take one of {sizes}"
            )
        self._clock = clock
        self._address = layout.dtype("address")
        self._flag_values = {
            flag.name.removeprefix("SERVICE_"): int(flag) for flag in layout.enum("service_flags")
        }
        self._live, self._is_draining = layout.value("BACKEND_LIVE"), layout.value("BACKEND_DRAINING")
        self._ids: Numbers[Frontend] = Numbers(len(self._frontends))
        self._numbers: Numbers[BackendKey] = Numbers(len(self._backends))
        self._stretches = Stretches(len(self._slots))
        self._chosen = [0] * len(self._backends)
        """By number: how many stretches have it."""
        self._drained = [0] * len(self._backends)
        """By number: how many frontends wait for its flows to end."""
        self._used: dict[BackendKey, int] = {}
        """Backends whose row says that they live, by number ..."""
        self._key_of: dict[int, BackendKey] = {}
        """... and the other way round."""
        self._addresses: Counter[str] = Counter()
        self._by_candidates: dict[Candidates, Stretch] = {}
        self._by_content: dict[bytes, Stretch] = {}
        self._recent: dict[tuple[Algorithm, int], Stretch] = {}
        """During an update: by the `id` of the candidates, which alike rows share."""
        self._held: dict[Frontend, Held] = {}
        self._skipping: set[Frontend] = set()
        """Those that leave some pods alone."""
        self._fresh: dict[int, BackendKey] = {}
        """Numbers that come into use and whose backend is not written yet."""
        self._touched: set[int] = set()
        """Numbers whose flags may have to change."""
        self._unclaimed: set[int] = set()
        """Backends a predecessor left live and nobody has spoken of: they drain, perhaps."""
        self._named: dict[int, ServiceEntry] = {}
        self._revision = 0
        self.locate: Callable[[str], LocalPod | None] = lambda address: None
        """The pod of this node that has an address."""
        self._adopt()

    # the five verbs

    def desired(self, rows: Sequence[ServiceEntry]) -> tuple[Array, Array]:
        """Keys and values of `services` for rows that are held, in their order."""
        return self._encode([self._held[row.frontend] for row in rows], rows)

    def update(self, rows: Sequence[ServiceEntry]) -> dict[Frontend, str]:
        """Bring frontends in force, all in few system calls."""
        failures: dict[Frontend, str] = {}
        plans: list[Held] = []
        self._recent.clear()
        self._stretches.reclaim(self._clock() - REST)
        for row in rows:
            try:
                plans.append(self._plan(row))
            except BpfError as error:
                failures[row.frontend] = str(error)
        self._write_backends()
        self._write_frontends(plans)
        for target, field in ((self._source_ranges, "sources"), (self._skip_redirect, "skips")):
            plans = self._open(plans, target, field, failures)
        self._write(plans, failures)
        self._settle()
        self._recent.clear()
        return failures

    def delete(self, keys: Sequence[Frontend]) -> dict[Frontend, str]:
        """Remove frontends; absent ones are no error. Replies of flows they had still find their way."""
        self._services.remove(self._keys(keys))
        for frontend in keys:
            held = self._held.pop(frontend, None)
            self._skipping.discard(frontend)
            if held is not None:
                self._close(held, None)
                self._release(held)
                self._ids.release(frontend, self._clock())
        self._settle()
        return {}

    def prune(self, keep: Iterable[ServiceEntry]) -> int:
        """Remove all frontends but these, backends that nobody speaks of, and what belongs to no frontend."""
        strangers = self.ours() - {row.frontend for row in keep}
        self.delete(sorted(strangers))
        self._touched |= self._unclaimed
        self._unclaimed.clear()
        self._settle()
        for target, field in ((self._source_ranges, "sources"), (self._skip_redirect, "skips")):
            wanted = frozenset[bytes]().union(*(getattr(held, field) for held in self._held.values()))
            stale = [raw for raw in packing.raw_rows(target.dump()[0]) if raw not in wanted]
            target.remove(np.frombuffer(b"".join(stale), target.key))
        return len(strangers)

    def ours(self) -> set[Frontend]:
        """Frontends in the kernel."""
        return set(self._frontends_of(self._services.dump()[0]))

    # what others need to know

    def __len__(self) -> int:
        return len(self._held)

    def serve_from(self, addresses: Collection[str]) -> bool:
        """Whether a backend has one of these addresses."""
        return any(self._addresses[address] for address in addresses)

    def id_of(self, frontend: Frontend) -> int:
        """The frontend's number, as flows and events have it; 0: not in force."""
        held = self._held.get(frontend)
        return held.id if held is not None else 0

    def entry(self, number: int) -> ServiceEntry | None:
        """The row of a frontend's number, also of one that went and has flows left; None: nobody knows."""
        return self._named.get(number)

    def forget(self, used: Array, begun: float) -> int:
        """Free the numbers of frontends that went before `begun` (of this target's clock) and no flow names.
        `used`: by number, whether a flow was seen since with it. Returns how many."""
        done = self._ids.reclaim(begun, lambda number: bool(used[number]))
        for number in done:
            self._named.pop(number, None)
        self._frontends[np.array(done, np.intp)] = np.zeros(1, self._frontends.dtype)
        return len(done)

    def moved_skips(self) -> list[Frontend]:
        """Redirects whose pods to be left alone are others than when they were written."""
        return [
            frontend
            for frontend in self._skipping
            if (row := self._held[frontend].row) is None or self._held[frontend].skips != self._skip_keys(row)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Frontends as the kernel has them, for people: backends as "address:port/PROTOCOL"."""
        found = []
        for frontend, value in zip(*self._read(), strict=True):
            flags = int(value["flags"])
            sides = [
                [
                    self._backend_text(n)
                    for n in dict.fromkeys(self._slots[r["first"] :][: r["count"]].tolist())
                ]
                for r in value["range"]
            ]
            found.append(
                {
                    "frontend": str(frontend),
                    "id": int(value["id"]),
                    "flags": [name for name, bit in self._flag_values.items() if flags & bit],
                    "affinity": int(value["affinity"]),
                    "internal": sides[0],
                    "external": sides[1],
                }
            )
        return found

    # planning: numbers and stretches for a row, before anything refers to them

    def _plan(self, row: ServiceEntry) -> Held:
        before = self._held.get(row.frontend)
        number = self._ids.take(row.frontend)
        if number is None:
            raise BpfError(packing.full(self._frontends_map))
        plan = Held(row, number, (NO_STRETCH, NO_STRETCH), 0)
        try:
            internal = self._use(row.algorithm, row.internal)
            plan.ranges = internal, NO_STRETCH
            plan.ranges = internal, self._use(row.algorithm, row.external)
            plan.draining = self._drain(row)
        except BpfError:
            self._abandon(plan)
            raise
        plan.sources = self._source_keys(number, row)
        plan.skips = self._skip_keys(row)
        same = before is not None and before.ranges == plan.ranges
        plan.revision = before.revision if before is not None and same else self._next_revision()
        return plan

    def _use(self, algorithm: Algorithm, backends: tuple[Backend, ...]) -> Stretch:
        """A stretch with these candidates, in use once more. Raises BpfError."""
        found = self._recent.get((algorithm, id(backends)))
        if found is None:
            found = self._by_candidates.get((algorithm, backends)) or self._stretch((algorithm, backends))
            self._recent[algorithm, id(backends)] = found
        found.uses += 1
        return found

    def _stretch(self, candidates: Candidates) -> Stretch:
        algorithm, backends = candidates
        chosen = [backend for backend in backends if backend.weight > 0]
        if not chosen:
            return NO_STRETCH
        used = self._used
        numbers = [used.get((b.address, b.port, b.protocol)) or self._number(b) for b in chosen]
        slots = self._filled(algorithm, chosen, numbers)
        content = _digest(slots)
        found = self._by_content.get(content)
        if found is None:
            found = Stretch(
                self._free_stretch(len(slots)), len(slots), tuple(dict.fromkeys(numbers)), content
            )
            self._slots[found.first : found.first + found.count] = slots
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

    def _number(self, backend: Backend) -> int:
        """The backend's number; it comes into use with whatever names it next. Raises BpfError."""
        key = backend.address, backend.port, int(backend.protocol)
        if key in self._used:
            return self._used[key]
        number = self._numbers.take(key)
        if number is None:
            self._numbers.reclaim(self._clock() - REST)
            number = self._numbers.take(key)
        if number is None and self._numbers.resting:
            wait_for_programs()
            self._numbers.reclaim(math.inf)
            number = self._numbers.take(key)
        if number is None:
            raise BpfError(packing.full(self._backends_map))
        self._touched.add(number)
        self._fresh[number] = key
        return number

    def _drain(self, row: ServiceEntry) -> tuple[int, ...]:
        """Backends whose flows go on, but that get no new ones."""
        resting = [b for side in (row.internal, row.external) for b in side if b.weight <= 0]
        numbers = tuple(dict.fromkeys(self._number(backend) for backend in (*row.draining, *resting)))
        for number in numbers:
            self._drained[number] += 1
        self._touched.update(numbers)
        return numbers

    def _free_stretch(self, count: int) -> int:
        first = self._stretches.take(count)
        if first is None and self._stretches.resting:
            wait_for_programs()
            self._stretches.reclaim(math.inf)
            first = self._stretches.take(count)
        if first is None:
            raise BpfError(packing.full(self._slots_map))
        return first

    def _source_keys(self, number: int, row: ServiceEntry) -> frozenset[bytes]:
        if not row.source_ranges:
            return frozenset()
        keys = self._source_ranges.keys(len(row.source_ranges))
        parts = [prefix.partition("/") for prefix in row.source_ranges]
        keys["address"] = packing.addresses((address for address, _, _ in parts), self._address)
        keys["prefixlen"] = [
            32 + (int(length) if ":" in address else 96 + int(length)) for address, _, length in parts
        ]
        keys["service"] = number
        return frozenset(packing.raw_rows(keys))

    def _skip_keys(self, row: ServiceEntry) -> frozenset[bytes]:
        pods = [pod for address in row.skip if (pod := self.locate(address)) is not None]
        found = [(0, pod.endpoint) for pod in pods] + [(pod.netns, 0) for pod in pods if pod.netns]
        if not found:
            return frozenset()
        keys = self._skip_redirect.keys(len(found))
        self._name(keys, [row.frontend] * len(found))
        keys["netns"], keys["endpoint"] = zip(*found, strict=True)
        return frozenset(packing.raw_rows(keys))

    def _next_revision(self) -> int:
        self._revision = (self._revision + 1) % REVISIONS or 1
        return self._revision

    # writing

    def _write_backends(self) -> None:
        """All backends that come into use."""
        numbers = np.fromiter(self._fresh, np.intp)
        values = np.zeros(len(numbers), self._backends.dtype)
        keys = list(self._fresh.values())
        values["address"] = packing.addresses((key[0] for key in keys), self._address)
        values["port"] = [key[1] for key in keys]
        values["protocol"] = [key[2] for key in keys]
        values["flags"] = self._live
        self._backends[numbers] = values
        for number, key in self._fresh.items():
            self._enlist(number, key)
        self._fresh.clear()

    def _write_frontends(self, plans: Sequence[Held]) -> None:
        fresh = {
            plan.id: plan.row.frontend
            for plan in plans
            if plan.row is not None and ((before := self._before(plan)) is None or before.row is None)
        }
        values = np.zeros(len(fresh), self._frontends.dtype)
        self._name(values, list(fresh.values()))
        self._frontends[np.fromiter(fresh, np.intp)] = values

    def _open(self, plans: list[Held], target: Map, field: str, failures: dict[Frontend, str]) -> list[Held]:
        """Write what the plans have in `field` and the kernel has not; those that could be served."""
        owners: list[int] = []
        keys: list[bytes] = []
        for at, plan in enumerate(plans):
            wanted = getattr(plan, field)
            if wanted:
                before = self._before(plan)
                wanted = wanted - getattr(before, field) if before is not None else wanted
                owners += [at] * len(wanted)
                keys += wanted
        if not keys:
            return plans
        failed = {
            owners[at]: why for at, why in packing.sentences(target, self._put_raw(target, keys)).items()
        }
        for at, why in failed.items():
            self._refuse(plans[at], why, failures)
        return [plan for at, plan in enumerate(plans) if at not in failed]

    def _write(self, plans: Sequence[Held], failures: dict[Frontend, str]) -> None:
        """The hash entries; then what they no longer name is given back."""
        rows = [plan.row for plan in plans if plan.row is not None]
        failed = packing.sentences(self._services, self._services.put(*self._encode(plans, rows)))
        for at, plan in enumerate(plans):
            if at in failed:
                self._refuse(plan, failed[at], failures)
                continue
            before = self._before(plan)
            self._held[rows[at].frontend] = plan
            (self._skipping.add if rows[at].skip else self._skipping.discard)(rows[at].frontend)
            self._named[plan.id] = rows[at]
            if before is not None:
                self._close(before, plan)
                self._release(before)

    def _encode(self, plans: Sequence[Held], rows: Sequence[ServiceEntry]) -> tuple[Array, Array]:
        values = self._services.values(len(rows))
        for scope in (0, 1):
            values["range"]["first"][:, scope] = [plan.ranges[scope].first for plan in plans]
            values["range"]["count"][:, scope] = [plan.ranges[scope].count for plan in plans]
        values["id"] = [plan.id for plan in plans]
        values["revision"] = [plan.revision for plan in plans]
        values["flags"] = [self._flags(row) for row in rows]
        values["affinity"] = [row.affinity for row in rows]
        return self._keys([row.frontend for row in rows]), values

    def _flags(self, row: ServiceEntry) -> int:
        value = self._flag_values
        flags = 0
        for name, on in (
            ("MAGLEV", row.algorithm is Algorithm.MAGLEV),
            ("AFFINITY", row.affinity > 0),
            ("SOURCES_ALLOWED", row.source_ranges and not row.sources_denied),
            ("SOURCES_DENIED", row.source_ranges and row.sources_denied),
            ("DSR", row.mode is ForwardingMode.DSR),
            ("OUTSIDE", row.outside),
            ("REJECT", row.reject),
            ("LOOSE", row.loose),
            ("EXTERNAL_IP", row.kind is FrontendKind.EXTERNAL_IP),
            ("HOST_PORT", row.kind is FrontendKind.HOST_PORT),
            ("NODE_PORT", row.kind is FrontendKind.NODE_PORT),
            ("REDIRECT", row.kind is FrontendKind.LOCAL_REDIRECT),
            ("KEEPS_CLIENT", row.keeps_client),
        ):
            if on:
                flags |= value[name]
        return flags

    def _refuse(self, plan: Held, why: str, failures: dict[Frontend, str]) -> None:
        """A plan that can't come true: the frontend keeps what it had."""
        assert plan.row is not None
        failures[plan.row.frontend] = why
        self._close(plan, self._before(plan))
        self._abandon(plan)

    # giving back

    def _abandon(self, plan: Held) -> None:
        assert plan.row is not None
        self._release(plan)
        if plan.row.frontend not in self._held:
            self._ids.release(plan.row.frontend, self._clock())

    def _release(self, held: Held) -> None:
        """Nothing refers to the ranges and backends of `held` by it any more."""
        for stretch in held.ranges:
            if stretch is not NO_STRETCH:
                self._disuse(stretch)
        for number in held.draining:
            self._drained[number] -= 1
            self._touched.add(number)

    def _disuse(self, stretch: Stretch) -> None:
        stretch.uses -= 1
        if stretch.uses:
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

    def _close(self, held: Held, after: Held | None) -> None:
        """Remove what the frontend has beside its entry, except what `after` has as well."""
        for target, field in ((self._source_ranges, "sources"), (self._skip_redirect, "skips")):
            gone = getattr(held, field)
            if gone:
                self._remove_raw(target, gone - getattr(after, field) if after is not None else gone)

    def _settle(self) -> None:
        """Bring the flags of backends to what they are now; those that nobody names are dead at once."""
        now = self._clock()
        flags = self._backends["flags"]
        for number in self._touched:
            if self._chosen[number]:
                wanted = self._live
            elif self._drained[number]:
                wanted = self._live | self._is_draining
            elif number in self._unclaimed:
                continue
            else:
                wanted = 0
            if flags[number] != wanted:
                flags[number] = wanted
            key = self._key_of.pop(number, None) if not wanted else None
            if key is not None:
                del self._used[key]
                self._addresses[key[0]] -= 1
                self._numbers.release(key, now)
            self._unclaimed.discard(number)
        self._touched.clear()

    def _enlist(self, number: int, key: BackendKey) -> None:
        self._key_of[number] = key
        self._used[key] = number
        self._addresses[key[0]] += 1

    # what a predecessor left

    def _adopt(self) -> None:
        """Begin with what is in the maps. What contradicts itself is left for `update` to replace."""
        self._adopt_backends()
        frontends, values = self._read()
        self._revision = max([*values["revision"].tolist(), *self._remembered_revisions()], default=0)
        found: dict[Frontend, int] = {}
        taken: set[int] = set()
        contents: dict[tuple[int, int], Stretch] = {}
        columns = (values["id"].tolist(), values["revision"].tolist(), values["range"].tolist())
        for frontend, number, revision, ranges in zip(frontends, *columns, strict=True):
            if not 0 < number < len(self._frontends) or number in taken:
                continue
            taken.add(number)
            found[frontend] = number
            inside, outside = (self._adopt_range(contents, *where) for where in ranges)
            self._held[frontend] = Held(None, number, (inside, outside), revision)
        self._unclaimed -= {number for stretch in contents.values() for number in stretch.numbers}
        self._adopt_ids(found)
        self._adopt_extras()

    def _adopt_backends(self) -> None:
        numbers = np.flatnonzero(self._backends["port"])
        rows = self._backends[numbers]
        keys = list(
            zip(
                map(packing.address_text, packing.raw_rows(np.ascontiguousarray(rows["address"]))),
                rows["port"].tolist(),
                rows["protocol"].tolist(),
                strict=True,
            )
        )
        live: dict[BackendKey, int] = {}
        resting: dict[BackendKey, int] = {}
        for number, key, flags in zip(numbers.tolist(), keys, rows["flags"].tolist(), strict=True):
            into = live if flags & self._live and key not in live else resting
            into[key] = number
        self._numbers.adopt(live, resting, self._clock())
        for key, number in live.items():
            self._enlist(number, key)
        self._unclaimed = set(live.values())

    def _adopt_range(self, known: dict[tuple[int, int], Stretch], first: int, count: int) -> Stretch:
        if not count:
            return NO_STRETCH
        found = known.get((first, count))
        if found is None:
            if first + count > len(self._slots) or not self._stretches.reserve(first, count):
                return NO_STRETCH
            slots = self._slots[first : first + count]
            numbers = tuple(n for n in dict.fromkeys(slots.tolist()) if n < len(self._chosen))
            found = known[first, count] = Stretch(first, count, numbers, _digest(slots))
            self._by_content.setdefault(found.content, found)
            for number in numbers:
                self._chosen[number] += 1
        found.uses += 1
        return found

    def _remembered_revisions(self) -> list[int]:
        """Highest revision that a sticky client was given a backend under: that frontend may have gone."""
        return [int(values["revision"].max()) for _, values in self._affinity.batches() if len(values)]

    def _adopt_ids(self, found: dict[Frontend, int]) -> None:
        """Numbers whose frontend went rest: flows may name them."""
        numbers = np.flatnonzero(self._frontends["port"])
        known = self._frontends_of(self._frontends[numbers])
        taken = set(found.values())
        pairs = zip(known, numbers.tolist(), strict=True)
        resting = {frontend: number for frontend, number in pairs if number not in taken}
        self._ids.adopt(found, resting, self._clock())

    def _adopt_extras(self) -> None:
        """Which source ranges and skipped pods belong to which frontend."""
        by_id: dict[int, list[bytes]] = {}
        keys = self._source_ranges.dump()[0]
        for raw, number in zip(packing.raw_rows(keys), keys["service"].tolist(), strict=True):
            by_id.setdefault(number, []).append(raw)
        keys = self._skip_redirect.dump()[0]
        by_frontend: dict[Frontend, list[bytes]] = {}
        for raw, frontend in zip(packing.raw_rows(keys), self._frontends_of(keys), strict=True):
            by_frontend.setdefault(frontend, []).append(raw)
        for frontend, held in self._held.items():
            held.sources = frozenset(by_id.get(held.id, ()))
            held.skips = frozenset(by_frontend.get(frontend, ()))

    # to bytes and back

    def _before(self, plan: Held) -> Held | None:
        assert plan.row is not None
        return self._held.get(plan.row.frontend)

    def _keys(self, frontends: Sequence[Frontend]) -> Array:
        keys = self._services.keys(len(frontends))
        self._name(keys, frontends)
        return keys

    def _name(self, into: Array, frontends: Sequence[Frontend]) -> None:
        """Fill in address, port and protocol."""
        into["address"] = packing.addresses((frontend.address for frontend in frontends), self._address)
        into["port"] = [frontend.port for frontend in frontends]
        into["protocol"] = [int(frontend.protocol) for frontend in frontends]

    def _read(self) -> tuple[list[Frontend], Array]:
        keys, values = self._services.dump()
        return self._frontends_of(keys), values

    def _frontends_of(self, named: Array) -> list[Frontend]:
        """The frontends whose address, port and protocol an array has."""
        addresses = packing.raw_rows(np.ascontiguousarray(named["address"]))
        return [
            Frontend(packing.address_text(raw) or "::", port, _protocol(protocol))
            for raw, port, protocol in zip(
                addresses, named["port"].tolist(), named["protocol"].tolist(), strict=True
            )
        ]

    def _backend_text(self, number: int) -> str:
        if number >= len(self._backends):
            return f"#{number}"
        row = self._backends[number]
        return str(
            Backend(
                packing.address_text(row["address"].tobytes()), int(row["port"]), _protocol(row["protocol"])
            )
        )

    def _put_raw(self, target: Map, keys: Sequence[bytes]) -> dict[int, OSError]:
        values = target.values(len(keys))
        values[:] = 1
        return target.put(np.frombuffer(b"".join(keys), target.key), values)

    def _remove_raw(self, target: Map, keys: Collection[bytes]) -> None:
        if keys:
            target.remove(np.frombuffer(b"".join(keys), target.key))


def shares(weights: Sequence[int]) -> list[int]:
    """How many slots each of these positive weights gets: in proportion, as few as that takes, and not many
    more than WEIGHTED_SLOTS together."""
    divisor = math.gcd(*weights)
    total = sum(weights) // divisor
    if total <= WEIGHTED_SLOTS:
        return [weight // divisor for weight in weights]
    return [max(1, round(weight / divisor * WEIGHTED_SLOTS / total)) for weight in weights]


def _protocol(number: int) -> Protocol:
    """Protocols we never write are a stranger's: any that is none of them, for the prune."""
    return Protocol(int(number))


def _digest(slots: Array) -> bytes:
    content = slots.tobytes()
    return content if len(content) <= DIGESTED else hashlib.blake2b(content, digest_size=16).digest()
