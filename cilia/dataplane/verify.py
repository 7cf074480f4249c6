"""Compares what is intended with what the kernel has, and puts it right.

A round goes through every table in slices, so that it can run beside everything else at a low rate: all rows
that have reached the kernel, element by element, and then all elements of the kernel, for strangers. Rows on
their way, and those that failed and say so themselves, are left out. What looks wrong across slices is looked
at once more in a single step before it counts, since rows come and go between them. Only for a node whose
tables were complete once (`KernelState.prune`): before, there are strangers for good.

    tables      node_addresses, ipcache, endpoint_entries, subjects, routes, service_entries
    maps        nodes, ipcache(_hosts), endpoints, ifaces, policy_active, policies, services, frontends,
                backends, slots, source_ranges, skip_redirect

`repair` has the reconcilers write the rows again (`KernelState.apply` follows) and removes strangers itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
import numpy as np

from cilia.dataplane.bpf import Array, Map, MapType
from cilia.dataplane.maps import packing
from cilia.dataplane.maps.packing import Content
from cilia.dataplane.order import KernelState
from cilia.model.ids import SubjectId
from cilia.tables.reconciler import Reconciler

Elements = dict[bytes, bytes]

SLICE = 64
"""Rows per step: a few milliseconds."""
NUMBERS = 2048
"""Numbers of backends per step."""
ELEMENTS = 1024
"""Elements of the kernel's maps of services per step."""


class Difference(msgspec.Struct, frozen=True, order=True):
    """One thing that is not in the kernel as it should be."""

    map: str
    """Or `routes`."""
    key: str
    intended: str = ""
    """Empty: nothing should be there."""
    actual: str = ""
    """Empty: nothing is there."""


class Finding(msgspec.Struct, frozen=True):
    """A difference and what mends it."""

    difference: Difference
    mend: Callable[[], object]


class Contents(Protocol):
    """A target whose maps can be compared element by element."""

    def contents(self, rows: Sequence[Any]) -> Iterable[Content[Any]]: ...

    def maps(self) -> list[Map]: ...


class Verifier:
    """Compares, round by round."""

    def __init__(self, state: KernelState) -> None:
        self._state = state
        self._found: list[Finding] = []
        self.differences: tuple[Difference, ...] = ()
        """What the last whole round found."""
        self.checked: float | None = None
        """When the last whole round ended (the clock's seconds)."""
        self.differed: float | None = None
        """When the last round that found something ended."""

    def round(self, clock: Callable[[], float]) -> Iterator[None]:
        """Compare everything once; yields after each bounded step. Raises OSError."""
        found: list[Finding] = []
        for part in (
            self._nodes,
            self._ipcache,
            self._endpoints,
            self._policies,
            self._services,
            self._routes,
        ):
            for step in part():
                found += step
                yield
        self._found = found
        self.differences = tuple(sorted(finding.difference for finding in found))
        self.checked = clock()
        if found:
            self.differed = self.checked

    def repair(self) -> int:
        """Have everything that the last round found put right; how much it was. Apply the tables next."""
        for finding in self._found:
            finding.mend()
        repaired, self._found = len(self._found), []
        return repaired

    # the parts of a round

    def _nodes(self) -> Iterator[list[Finding]]:
        yield from self._table(self._state.nodes)

    def _ipcache(self) -> Iterator[list[Finding]]:
        yield from self._table(self._state.ipcache)

    def _endpoints(self) -> Iterator[list[Finding]]:
        yield from self._table(self._state.endpoints, self._state.host_contents, self._state.write_hosts)

    def _table(
        self,
        reconciler: Reconciler[Any, Any],
        more: Callable[[], list[Content[Any]]] = list,
        mend_more: Callable[[], None] = lambda: None,
    ) -> Iterator[list[Finding]]:
        """A table whose rows are elements of maps. `more`: elements that are there for no row of theirs."""
        comparison = Comparison(reconciler, more, mend_more)
        yield from comparison.rows()
        yield from comparison.strangers()

    def _policies(self) -> Iterator[list[Finding]]:
        reconciler, policies = self._state.subjects, self._state.policies

        def rewrite(subject: SubjectId) -> None:
            for user in policies.distrust(subject):
                reconciler.mark(user)

        for subject in list(reconciler.table.keys()):
            found = policies.difference(subject) if reconciler.done(subject) else None
            difference = found and Difference("policies", f"subject {subject}", *found)
            yield [Finding(difference, partial(rewrite, subject))] if difference else []
        yield [
            Finding(
                Difference("policy_active", f"subject {subject}", "", "a policy in force"),
                partial(policies.strike, subject),
            )
            for subject in sorted(policies.ours() - set(reconciler.table.keys()))
            if not reconciler.pending and subject not in reconciler.status
        ]

    def _services(self) -> Iterator[list[Finding]]:
        reconciler, target = self._state.services, self._state.service_maps
        frontends = list(reconciler.table.keys())
        for at in range(0, len(frontends), SLICE):
            done = [found for found in frontends[at : at + SLICE] if reconciler.done(found)]
            yield [
                Finding(Difference(*difference), partial(target.restore, frontend))
                for frontend, *difference in target.differences(done)
            ]
        for start in range(0, target.backends.size, NUMBERS):
            yield [
                Finding(
                    Difference("backends", str(number), *difference),
                    partial(target.backends.restore, [number]),
                )
                for number, *difference in target.backends.differences(start, start + NUMBERS)
            ]
        for found_map in target.maps():
            for keys, _ in found_map.batches(ELEMENTS):
                yield [_stranger(found_map, raw) for raw in target.strangers(found_map, keys)]

    def _routes(self) -> Iterator[list[Finding]]:
        reconciler = self._state.routes
        target: Any = reconciler.target
        present = target.ours()
        wanted = {str(ipaddress.ip_network(row.prefix)): row.prefix for row in reconciler.table}
        missing = [prefix for prefix in wanted.keys() - present if reconciler.done(wanted[prefix])]
        strangers = present - wanted.keys() if not reconciler.pending else set()
        yield [
            Finding(Difference("routes", prefix, "a route", ""), partial(reconciler.mark, wanted[prefix]))
            for prefix in sorted(missing)
        ]
        yield [
            Finding(Difference("routes", prefix, "", "a route"), partial(target.delete, [prefix]))
            for prefix in sorted(strangers)
        ]


class Comparison:
    """One table against its maps."""

    def __init__(
        self,
        reconciler: Reconciler[Any, Any],
        more: Callable[[], list[Content[Any]]],
        mend_more: Callable[[], None],
    ) -> None:
        self._reconciler = reconciler
        target: Any = reconciler.target
        self._target: Contents = target
        self._more = more
        self._mend_more = mend_more
        self._named: dict[str, set[bytes]] = {found.name: set() for found in self._target.maps()}
        self._tries = [found for found in self._target.maps() if found.type is MapType.LPM_TRIE]

    def rows(self) -> Iterator[list[Finding]]:
        """Every row that has arrived: is it there, and as it should be?

        A trie can't be asked for one key alone, so that it is read as a whole before; what is doubted then is
        compared once more, without a pause between.
        """
        held: dict[str, Elements] = {}
        for trie in self._tries:
            held[trie.name] = {}
            for keys, values in trie.batches():
                held[trie.name].update(_pairs(keys, values))
                yield []
        doubted: list[Any] = []
        rows = list(self._reconciler.table.keys())
        for at in range(0, len(rows), SLICE):
            found = self._compare(rows[at : at + SLICE], held)
            doubted += [owner for owner, finding in found if finding.difference.map in held]
            yield [finding for _, finding in found if finding.difference.map not in held]
        if doubted:
            held = {trie.name: _pairs(*trie.dump()) for trie in self._tries}
            yield [finding for _, finding in self._compare(doubted, held)]
        yield self._compare_more()

    def strangers(self) -> Iterator[list[Finding]]:
        """Every element: is it somebody's?"""
        for found_map in self._target.maps():
            named = self._named[found_map.name]
            suspects: list[bytes] = []
            for keys, _ in found_map.batches():
                suspects += [raw for raw in packing.raw_rows(keys) if raw not in named]
                yield []
            if suspects:
                yield self._confirmed(found_map, suspects)

    def _compare(self, owners: Iterable[Any], tries: dict[str, Elements]) -> list[tuple[Any, Finding]]:
        rows = [row for row in map(self._reconciler.table.get, owners) if row is not None]
        found: list[tuple[Any, Finding]] = []
        for content in self._target.contents(rows):
            self._named[content.map.name].update(packing.raw_rows(content.keys))
            for at, difference in _differences(content, tries.get(content.map.name)):
                owner = content.owners[at]
                if self._reconciler.done(owner):
                    found.append((owner, Finding(difference, partial(self._reconciler.mark, owner))))
        return found

    def _compare_more(self) -> list[Finding]:
        found: list[Finding] = []
        for content in self._more():
            self._named[content.map.name].update(packing.raw_rows(content.keys))
            found += [Finding(difference, self._mend_more) for _, difference in _differences(content, None)]
        return found

    def _confirmed(self, found_map: Map, suspects: list[bytes]) -> list[Finding]:
        """Those of the suspects that are there and that nobody wants, as of now."""
        if self._reconciler.pending or self._reconciler.errors():
            return []
        contents = [*self._target.contents(list(self._reconciler.table)), *self._more()]
        wanted = {raw for found in contents if found.map is found_map for raw in packing.raw_rows(found.keys)}
        present = set(packing.raw_rows(found_map.dump()[0]))
        return [_stranger(found_map, raw) for raw in suspects if raw in present and raw not in wanted]


def _differences(content: Content[Any], held: Elements | None) -> Iterator[tuple[int, Difference]]:
    """(position, difference) of elements that are not in the map as they are to be. `held`: all that the map
    has, where it can't be asked one by one."""
    values = packing.raw_rows(content.values)
    for at, raw in enumerate(packing.raw_rows(content.keys)):
        if held is not None:
            actual = held.get(raw)
        else:
            found = content.map.lookup(content.keys[at])
            actual = found.tobytes() if found is not None else None
        if actual != values[at]:
            texts = [_text(one, content.map.value) if one is not None else "" for one in (values[at], actual)]
            yield at, Difference(content.map.name, _text(raw, content.map.key), *texts)


def _stranger(found_map: Map, raw: bytes) -> Finding:
    """An element nobody wants."""
    key = np.frombuffer(raw, found_map.key)
    difference = Difference(found_map.name, _text(raw, found_map.key), "", "present")
    return Finding(difference, partial(found_map.remove, key))


def _pairs(keys: Array, values: Array) -> Elements:
    return dict(zip(packing.raw_rows(keys), packing.raw_rows(values), strict=True))


def _text(raw: bytes, dtype: np.dtype[Any]) -> str:
    return packing.text(packing.records(np.frombuffer(raw, dtype))[0])
