"""Maps `services`, `frontends`, `source_ranges` and `skip_redirect`.

    services[frontend]  {id, flags, a range for clients inside, one for those outside}
                                    └──► slots[first ..] ──► backends[number]    (`backends`)
    frontends[id]       the frontend again, for replies

A change is written from right to left: backends under fresh numbers, a free stretch of slots, the frontend
under its number, and then the one hash entry, in one store as packets see it. What the old entry named comes
back afterwards.

A successor finds all of it by reading the maps; what no row claims goes in `prune`. What can't have been
written so (the number of another frontend, slots that lead to nobody) is damaged: it is told, taken away
before anything is written, and made anew from its row. When something is full, or a row makes no sense, the
frontends concerned keep what they had (new ones are not there), and say so; all others work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec
import numpy as np
import structlog

from cilia import abi
from cilia.dataplane.bpf import Array, BpfError, Map
from cilia.dataplane.maps import packing
from cilia.dataplane.maps.backends import NO_STRETCH, Backends, ServiceOptions, Stretch
from cilia.dataplane.maps.numbers import Numbers
from cilia.model.service import (
    Algorithm,
    Backend,
    ForwardingMode,
    Frontend,
    FrontendKind,
    Protocol,
    ServiceEntry,
)

__all__ = ["LocalPod", "ServiceOptions", "Services"]

log = structlog.get_logger(__name__)

REVISIONS = 1 << 32
SECONDS = 1 << 32
"""Of an affinity: fewer than these."""
TOLD = 5
"""Damaged frontends that the log names; the rest is counted."""


class LocalPod(msgspec.Struct, frozen=True):
    """What tells a pod of this node to a redirect that is to leave it alone."""

    endpoint: int
    netns: int
    """Cookie of its network namespace; 0: not known."""


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
        self._services, self._frontends_map = maps["services"], maps["frontends"]
        self._frontends = self._frontends_map.memory()
        self._extras = (("sources", maps["source_ranges"]), ("skips", maps["skip_redirect"]))
        """What frontends have beside their entry: the field of `Held`, and the map."""
        self._clock = clock
        self._address = layout.dtype("address")
        self._flag_values = {
            flag.name.removeprefix("SERVICE_"): int(flag) for flag in layout.enum("service_flags")
        }
        self.backends = Backends(maps["backends"], maps["slots"], layout, options or ServiceOptions(), clock)
        self._ids: Numbers[Frontend] = Numbers(len(self._frontends))
        self._held: dict[Frontend, Held] = {}
        self._skipping: set[Frontend] = set()
        """Those that leave some pods alone."""
        self._named: dict[int, ServiceEntry] = {}
        self.names = 0
        """Grows whenever a number or a frontend may belong to another service than before."""
        self.locate: Callable[[str], LocalPod | None] = lambda address: None
        """The pod of this node that has an address."""
        self.left: set[tuple[int, int]] = set()
        """(number of a frontend, of a backend) of datagrams: the frontend does not lead there any more, while
        others do. Who sweeps flows takes these for gone, and empties it."""
        self._damaged: list[Frontend] = []
        """In the kernel, but not as anybody wrote them: they go before the first write."""
        self._revision = self._adopt(maps["affinity"])

    # the five verbs

    def desired(self, rows: Sequence[ServiceEntry]) -> tuple[Array, Array]:
        """Keys and values of `services` for rows that are held, in their order."""
        return self._encode([self._held[row.frontend] for row in rows], rows)

    def update(self, rows: Sequence[ServiceEntry]) -> dict[Frontend, str]:
        """Bring frontends in force, all in few system calls."""
        failures: dict[Frontend, str] = {}
        plans: list[Held] = []
        self._drop_damaged()
        self.backends.begin()
        for row in rows:
            try:
                plans.append(self._plan(row))
            except BpfError as error:
                failures[row.frontend] = str(error)
            except Exception as error:
                # Whatever is wrong with one row, even by a fault of ours, must not cost the others.
                failures[row.frontend] = _unexpected(error)
        self.backends.write()
        self._write_frontends(plans)
        for field, target in self._extras:
            plans = self._open(plans, target, field, failures)
        self._write(plans, failures)
        self.backends.settle()
        return failures

    def delete(self, keys: Sequence[Frontend]) -> dict[Frontend, str]:
        """Remove frontends; absent ones are no error. Replies of flows they had still find their way."""
        self._services.remove(self._keys([key for key in keys if _is_possible(key)]))
        for frontend in keys:
            held = self._held.pop(frontend, None)
            self.names += 1
            self._skipping.discard(frontend)
            if held is not None:
                self._close(held, None)
                self._release(held)
                self._leave(frontend, _leads_to(held), held.id)
                self._ids.release(frontend, self._clock())
        self.backends.settle()
        return {}

    def prune(self, keep: Iterable[ServiceEntry]) -> int:
        """Remove all frontends but these, backends that nobody speaks of, and what belongs to no frontend."""
        self._drop_damaged()
        strangers = self.ours() - {row.frontend for row in keep}
        self.delete(sorted(strangers))
        self.backends.prune()
        for field, target in self._extras:
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

    def id_of(self, frontend: Frontend) -> int:
        """The frontend's number, as flows and events have it; 0: not in force."""
        held = self._held.get(frontend)
        return held.id if held is not None else 0

    def number_of(self, frontend: Frontend) -> int:
        """The number that flows and sockets know the frontend by, also of one that went; 0: none does."""
        return self._ids.get(frontend) or 0

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
        frontends, values = self._read()
        return [
            self.told(frontend, value)
            for frontend, value in zip(frontends, packing.records(values), strict=True)
        ]

    def row(self, frontend: Frontend) -> dict[str, Any] | None:
        """One of them; None: the kernel does not have it."""
        value = self._services.lookup(self._keys([frontend])[0])
        return None if value is None else self.told(frontend, packing.records(value.reshape(1))[0])

    def told(self, frontend: Frontend, value: Mapping[str, Any]) -> dict[str, Any]:
        """A record of `services` for people."""
        inside, outside = (self.backends.in_range(r["first"], r["count"]) for r in value["range"])
        return {
            "frontend": packing.served_text(frontend.address, frontend.port, frontend.protocol),
            "id": value["id"],
            "flags": [name for name, bit in self._flag_values.items() if value["flags"] & bit],
            "affinity": value["affinity"],
            "internal": inside,
            "external": outside,
        }

    # what was found otherwise than intended

    def maps(self) -> list[Map]:
        """All whose elements come and go."""
        return [self._services, *(target for _, target in self._extras)]

    def differences(self, frontends: Sequence[Frontend]) -> list[tuple[Frontend, str, str, str, str]]:
        """(frontend, map, key, intended, actual) of what frontends in force do not have as they are to, for
        people; empty: all of it."""
        rows = [held.row for found in frontends if (held := self._held.get(found)) and held.row is not None]
        keys, values = self.desired(rows)
        named = np.zeros(len(rows), self._frontends.dtype)
        self._name(named, [row.frontend for row in rows])
        misnamed = self._frontends[[self._held[row.frontend].id for row in rows]] != named
        found: list[tuple[Frontend, str, str, str, str]] = []
        for at, row in enumerate(rows):
            held, name = self._held[row.frontend], str(row.frontend)
            actual = self._services.lookup(keys[at])
            if actual is None or actual.tobytes() != values[at].tobytes():
                texts = _described(values[at]), _described(actual)
                found.append((row.frontend, "services", name, *texts))
            if misnamed[at]:
                given = packing.text(packing.records(self._frontends[held.id : held.id + 1])[0])
                found.append((row.frontend, "frontends", str(held.id), name, given))
            for stretch in dict.fromkeys(held.ranges):
                if not self.backends.is_intact(stretch):
                    backends = ", ".join(map(self.backends.text, stretch.numbers))
                    given = ", ".join(self.backends.in_range(stretch.first, stretch.count))
                    found.append((row.frontend, "slots", f"{stretch.first} of {name}", backends, given))
            for field, target in self._extras:
                for raw in getattr(held, field):
                    if target.lookup(np.frombuffer(raw, target.key)) is None:
                        key = packing.text(packing.records(np.frombuffer(raw, target.key))[0])
                        found.append((row.frontend, target.name, key, "present", ""))
        return found

    def strangers(self, target: Map, keys: Array) -> list[bytes]:
        """Those of the keys of one of `maps` that belong to no frontend in force."""
        raw_keys = packing.raw_rows(keys)
        if target is self._extras[0][1]:
            rows = [self._named.get(number) for number in keys["service"].tolist()]
            owners = [self._held.get(row.frontend) if row is not None else None for row in rows]
            return [
                raw for raw, held in zip(raw_keys, owners, strict=True) if not held or raw not in held.sources
            ]
        owners = [self._held.get(found) for found in self._frontends_of(keys)]
        if target is self._services:
            return [raw for raw, held in zip(raw_keys, owners, strict=True) if held is None]
        return [raw for raw, held in zip(raw_keys, owners, strict=True) if not held or raw not in held.skips]

    def restore(self, frontend: Frontend) -> None:
        """Write a frontend in force anew, and all it has. Raises OSError."""
        held = self._held.get(frontend)
        if held is None or held.row is None:
            return
        for stretch in dict.fromkeys(held.ranges):
            self.backends.restore(stretch.numbers)
            if not self.backends.is_intact(stretch):
                self.backends.restore_slots(stretch)
        named = np.zeros(1, self._frontends.dtype)
        self._name(named, [frontend])
        self._frontends[held.id] = named[0]
        for field, target in self._extras:
            for error in self._put_raw(target, list(getattr(held, field))).values():
                raise error
        keys, values = self.desired([held.row])
        self._services.update(keys[0], values[0])

    # planning: numbers and stretches for a row, before anything refers to them

    def _plan(self, row: ServiceEntry) -> Held:
        """Raises BpfError when something is full, and anything else where the row makes no sense; nothing of
        it is in use then."""
        packing.check_served(row.frontend.address, row.frontend.port, row.frontend.protocol)
        if not 0 <= row.affinity < SECONDS:
            raise ValueError(f"{row.affinity} are no seconds of an affinity")
        before = self._held.get(row.frontend)
        number = self._ids.take(row.frontend)
        if number is None:
            raise BpfError(packing.full(self._frontends_map))
        plan = Held(row, number, (NO_STRETCH, NO_STRETCH), 0)
        try:
            plan.sources = self._source_keys(number, row)
            plan.skips = self._skip_keys(row)
            internal = self.backends.use(row.algorithm, row.internal)
            plan.ranges = internal, NO_STRETCH
            plan.ranges = internal, self.backends.use(row.algorithm, row.external)
            plan.draining = self.backends.drain(_without_new_flows(row))
        except Exception:
            self._abandon(plan)
            raise
        same = before is not None and before.ranges == plan.ranges
        plan.revision = before.revision if before is not None and same else self._next_revision()
        return plan

    def _source_keys(self, number: int, row: ServiceEntry) -> frozenset[bytes]:
        if not row.source_ranges:
            return frozenset()
        keys = self._extras[0][1].keys(len(row.source_ranges))
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
        keys = self._extras[1][1].keys(len(found))
        self._name(keys, [row.frontend] * len(found))
        keys["netns"], keys["endpoint"] = zip(*found, strict=True)
        return frozenset(packing.raw_rows(keys))

    def _next_revision(self) -> int:
        self._revision = (self._revision + 1) % REVISIONS or 1
        return self._revision

    # writing

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
            self._name_number(plan.id, rows[at])
            if before is not None:
                self._close(before, plan)
                self._release(before)
            gone = _leads_to(before) if before is not None else frozenset[int]()
            self._leave(rows[at].frontend, gone, plan.id, _leads_to(plan))

    def _name_number(self, number: int, row: ServiceEntry) -> None:
        former = self._named.get(number)
        if former is None or (former.namespace, former.name) != (row.namespace, row.name):
            self.names += 1
        self._named[number] = row

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
            self.backends.disuse(stretch)
        self.backends.undrain(held.draining)

    def _leave(
        self, frontend: Frontend, before: frozenset[int], number: int, after: frozenset[int] = frozenset()
    ) -> None:
        """A frontend led to these backends, and does to those after. Datagrams of one flow go on for ever:
        they must not stay with a backend that only others have by now. Connections do, until they end."""
        if frontend.protocol is not Protocol.UDP:
            return
        self.left.difference_update([pair for pair in self.left if pair[0] == number and pair[1] in after])
        self.left |= {(number, one) for one in before - after if self.backends.is_used(one)}

    def _close(self, held: Held, after: Held | None) -> None:
        """Remove what the frontend has beside its entry, except what `after` has as well."""
        for field, target in self._extras:
            gone = getattr(held, field)
            if gone:
                self._remove_raw(target, gone - getattr(after, field) if after is not None else gone)

    # what a predecessor left

    def _adopt(self, affinity: Map) -> int:
        """Begin with what is in the maps; the highest revision given out."""
        keys, values = self._services.dump()
        frontends = self._frontends_of(keys)
        found: dict[Frontend, int] = {}
        columns = (values["id"].tolist(), values["revision"].tolist(), values["range"].tolist())
        rows = zip(frontends, self._are_named(keys, values["id"]), *columns, strict=True)
        for frontend, is_named, number, revision, ranges in rows:
            adopted = [self.backends.adopt(*where) for where in ranges] if is_named else [None]
            if None in adopted:
                self._damaged.append(frontend)
            if is_named:
                found[frontend] = number
                inside, outside = (stretch or NO_STRETCH for stretch in adopted)
                self._held[frontend] = Held(None, number, (inside, outside), revision)
        self.backends.adopted()
        self._adopt_ids(found)
        self._adopt_extras()
        if self._damaged:
            log.warning(
                "damaged services in the kernel; they are written anew",
                count=len(self._damaged),
                first=[str(frontend) for frontend in self._damaged[:TOLD]],
            )
        return self._highest_revision(columns[1], affinity)

    def _are_named(self, keys: Array, ids: Array) -> list[bool]:
        """Whether `frontends` has each of these keys of `services` under its number, as it does from before
        the entry is written until after it is gone."""
        known = (ids > 0) & (ids < len(self._frontends))
        named = self._frontends[np.where(known, ids, 0)]
        for field in ("address", "port", "protocol"):
            known &= named[field] == keys[field]
        return list(known.tolist())

    def _highest_revision(self, given: Iterable[int], affinity: Map) -> int:
        """The next must be new to every sticky client: they may remember a higher one, of a frontend that
        went. Nobody has counted up to the upper half: numbers there are no revisions, and clients that
        remember them forget their backends."""
        remembered = [int(seen["revision"].max()) for _, seen in affinity.batches() if len(seen)]
        if max(remembered, default=0) >= REVISIONS // 2:
            affinity.remove(affinity.dump()[0])
            remembered = []
        return max((one for one in (*given, *remembered) if one < REVISIONS // 2), default=0)

    def _drop_damaged(self) -> None:
        damaged, self._damaged = self._damaged, []
        if damaged:
            self.delete(damaged)

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
        (_, source_ranges), (_, skip_redirect) = self._extras
        by_id: dict[int, list[bytes]] = {}
        keys = source_ranges.dump()[0]
        for raw, number in zip(packing.raw_rows(keys), keys["service"].tolist(), strict=True):
            by_id.setdefault(number, []).append(raw)
        by_frontend: dict[Frontend, list[bytes]] = {}
        keys = skip_redirect.dump()[0]
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
        """The frontends whose address, port and protocol an array has; a stranger's protocol may be any."""
        known = packing.PROTOCOLS
        addresses = packing.raw_rows(np.ascontiguousarray(named["address"]))
        return [
            Frontend(packing.address_text(raw) or "::", port, cast(Protocol, known.get(protocol, protocol)))
            for raw, port, protocol in zip(
                addresses, named["port"].tolist(), named["protocol"].tolist(), strict=True
            )
        ]

    def _put_raw(self, target: Map, keys: Sequence[bytes]) -> dict[int, OSError]:
        values = target.values(len(keys))
        values[:] = 1
        return target.put(np.frombuffer(b"".join(keys), target.key), values)

    def _remove_raw(self, target: Map, keys: Collection[bytes]) -> None:
        if keys:
            target.remove(np.frombuffer(b"".join(keys), target.key))


def _leads_to(held: Held) -> frozenset[int]:
    """Numbers of the backends whose flows go on."""
    return frozenset(held.draining).union(*(stretch.numbers for stretch in held.ranges))


def _unexpected(error: Exception) -> str:
    return f"it can't be written ({type(error).__name__}: {error}): change the object, and please report it"


def _is_possible(frontend: Frontend) -> bool:
    try:
        packing.check_served(frontend.address, frontend.port, frontend.protocol)
    except ValueError:
        return False
    return True


def _described(value: Array | None) -> str:
    return packing.text(packing.records(value.reshape(1))[0]) if value is not None else ""


def _without_new_flows(row: ServiceEntry) -> list[Backend]:
    """Backends whose flows go on, but that get no new ones."""
    idle = [found for side in (row.internal, row.external) for found in side if found.weight <= 0]
    return [*row.draining, *idle]
