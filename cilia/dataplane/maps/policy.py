"""Maps `policy_active` and `policies`: the entries of each subject, switched by one 8-byte store.

While a row's `rules` stay the same, identities came or went: single entries are written into the live
map (adds at once, removals only in `finish()`, when the ipcache no longer speaks of who left). Other
rules fill an idle inner map and switch to it under a new revision, which makes every running flow of
the subject be judged again. What can't be written fails closed: the subject gets a map that only denies.

Subjects that hold the same entries share one inner map, each under a revision of its own. A shared map is
written only if all who share it want the same; whoever wants something else gets a map of its own first.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from cilia import abi
from cilia.dataplane import bpf
from cilia.dataplane.bpf import Array, BpfError, Map
from cilia.dataplane.maps import packing
from cilia.dataplane.pool import POLICY_ENTRIES, PolicyPool
from cilia.model.entries import Difference, Entries, Layer, Prefix
from cilia.model.ids import Cookie, SubjectId
from cilia.model.policy import Direction, Entry, EntryFlags, EntryKey, MatchKind, SubjectPolicy

T = TypeVar("T")

FEW = 32
"""So many entries are encoded one by one, and written so for many subjects together."""
RUN = 64
"""So many subjects are switched together: each has an open map meanwhile."""
HIGHEST_REVISION = (1 << 31) - 1

DENY_ALL: Mapping[EntryKey, Entry] = {
    EntryKey(direction=direction, peer=0): Entry(
        precedence=0, allow=False, cookie=Cookie(0), match=MatchKind.ALL, flags=EntryFlags.DEFAULT
    )
    for direction in Direction
}
"""What a subject gets whose own entries can't be written."""


class Revisions:
    """Policy revisions: counted up from the highest ever given out on this node."""

    def __init__(self, stored: Map, highest_active: int) -> None:
        self._memory = stored.memory()
        self._memory[0] = max(int(self._memory[0]), highest_active)

    def next(self) -> int:
        """A revision never used before. Raises BpfError after 2^31 of them."""
        revision = int(self._memory[0]) + 1
        if revision > HIGHEST_REVISION:
            raise BpfError("all policy revisions are used up: remove the pins (cilia-agent --cleanup)")
        self._memory[0] = revision
        return revision


class Slot:
    """An inner map in force, and whom it judges. `rules` None: whatever comes next is a switch."""

    __slots__ = ("carried", "entries", "epoch", "number", "rules", "stale", "users")

    def __init__(
        self,
        number: int,
        rules: str | None,
        epoch: int,
        entries: Mapping[EntryKey, Entry],
        carried: Mapping[EntryKey, Entry],
    ) -> None:
        self.number = number
        self.rules = rules
        self.epoch = epoch
        self.entries = entries
        self.carried = carried
        """Denials of peers that left, until `finish()`."""
        self.stale = list(carried)
        """Keys that go in `finish()`, unless they are among the entries again."""
        self.users: set[SubjectId] = set()

    def stands_for(self, row: SubjectPolicy) -> bool:
        """Whether the rules are those of `row`: at most identities came or went."""
        return self.rules == row.rules and self.epoch == row.epoch


class Policies:
    """Target of `Desired.subjects`."""

    def __init__(self, active: Map, revisions: Map, pool: PolicyPool, layout: abi.Layout) -> None:
        self._active = active.memory()
        self._words = self._active.view("<u8")
        self._pool = pool
        self._key = layout.dtype("policy_key")
        self._value = layout.dtype("policy_entry")
        self._fixed_bits = layout.value("POLICY_FIXED_BITS")
        self._allow = layout.value("POLICY_VERDICT_ALLOW")
        self._revisions = Revisions(revisions, int(self._active["revision"].max()))
        in_force = self._active["slot"][self._active["revision"] != 0]
        self._uses: Counter[int] = Counter(in_force.tolist())
        """How many subjects each slot is in force for, as the kernel has it."""
        self._live: dict[SubjectId, Slot] = {}
        self._by_entries: dict[int, Slot] = {}
        """A slot that holds certain entries, by their `id`."""
        self._changing: dict[int, Slot] = {}
        """Slots with something to remove in `finish()`, by number."""
        self._judged_early: set[SubjectId] = set()
        self._between: dict[tuple[int, int], tuple[object, object, dict[EntryKey, Entry]]] = {}
        """During an update: what a switch from and to certain entries, by their `id`, carries; alike
        subjects ask the same."""
        self._ahead: dict[int, tuple[int, Map]] = {}
        """During an update: slots that were idle and now hold certain entries, by their `id`."""

    def desired(self, entries: Mapping[EntryKey, Entry]) -> tuple[Array, Array]:
        """Keys and values of an inner map, in the order of the entries.

        Peers alike share a layer, so that each distinct layer is looked at once, if there are many.
        """
        if len(entries) <= FEW:
            return self._few([_layered(entries)])
        directions: list[int] = []
        peers: list[int] = []
        layers: list[Layer] = []
        for direction, part in _layered(entries).parts():
            directions += itertools.repeat(direction, len(part))
            peers += part
            layers += part.values()
        distinct, number = _distinct(layers)
        prefixes = [prefix for layer in distinct for prefix in layer]
        rows = [entry for layer in distinct for entry in layer.values()]
        lengths = np.array([len(layer) for layer in distinct], np.int64)
        counts = lengths[number]
        at = np.repeat((np.cumsum(lengths) - lengths)[number] - (np.cumsum(counts) - counts), counts)
        at += np.arange(len(at))
        keys = self._keys(prefixes)
        values = self._values(rows, keys)[at]
        keys = keys[at]
        keys["direction"] = np.repeat(np.array(directions, np.uint8), counts)
        keys["peer"] = np.repeat(np.array(peers, np.uint32), counts)
        return keys, values

    def _few(self, many: Iterable[Entries]) -> tuple[Array, Array]:
        """The same for a handful each, which is not worth the trouble: most subjects have no more."""
        found = [
            (place, prefix, entry)
            for entries in many
            for place, layer in entries.layers()
            for prefix, entry in layer.items()
        ]
        keys = self._keys([prefix for _, prefix, _ in found])
        keys["direction"] = [place[0] for place, _, _ in found]
        keys["peer"] = [place[1] for place, _, _ in found]
        return keys, self._values([entry for _, _, entry in found], keys)

    def _keys(self, prefixes: Sequence[Prefix]) -> Array:
        """Keys with these prefixes, and nobody's yet."""
        keys = np.zeros(len(prefixes), self._key)
        numbers = np.fromiter(itertools.chain.from_iterable(prefixes), np.int64, 3 * len(prefixes))
        keys["protocol"], keys["port"], bits = numbers.reshape(-1, 3).T
        keys["prefixlen"] = bits + self._fixed_bits
        return keys

    def _values(self, rows: Sequence[Entry], keys: Array) -> Array:
        """The values under keys; what one rule says about many ports is one object."""
        distinct, number = _distinct(rows)
        values = np.zeros(len(distinct), self._value)
        values["precedence"] = [row.precedence for row in distinct]
        values["cookie"] = [row.cookie for row in distinct]
        values["proxy_port"] = [row.proxy_port for row in distinct]
        values["verdict"] = [self._allow if row.allow else 0 for row in distinct]
        values["match"] = [row.match for row in distinct]
        values["flags"] = [row.flags for row in distinct]
        values = values[number]
        values["prefix"] = keys["prefixlen"] - self._fixed_bits
        return values

    def update(self, rows: Sequence[SubjectPolicy]) -> dict[SubjectId, str]:
        """Bring subjects in force; one that fails denies everything until it succeeds.

        Those that get other rules go first: they leave the maps that the others then change.
        """
        failures: dict[SubjectId, str] = {}
        wanted = {row.subject: row for row in rows}
        staying: list[SubjectPolicy] = []
        switching: list[SubjectPolicy] = []
        for row in rows:
            live = self._live.get(row.subject)
            (staying if live is not None and live.stands_for(row) else switching).append(row)
        for first in range(0, len(switching), RUN):
            run = switching[first : first + RUN]
            self._fill_ahead(run)
            for row in run:
                self._attempt(row, wanted, failures)
            self._give_back()
        for row in staying:
            self._attempt(row, wanted, failures)
        self._between.clear()
        self._pool.refill()
        return failures

    def _attempt(
        self,
        row: SubjectPolicy,
        wanted: Mapping[SubjectId, SubjectPolicy],
        failures: dict[SubjectId, str],
    ) -> None:
        try:
            self._update(row, wanted)
        except (OSError, BpfError) as error:
            failures[row.subject] = f"{error}; everything is denied until then"
            self._fail_closed(row.subject)

    def finish(self) -> None:
        """Remove the entries of identities that left; call when the ipcache has been brought up to date.

        A subject that was switched while such entries were still carried gets another revision, so that no
        flow keeps a verdict they gave. Raises OSError.
        """
        for slot in self._changing.values():
            gone = {
                key: Entry(0, False, Cookie(0), MatchKind.NONE)
                for key in slot.stale
                if key not in slot.entries
            }
            if slot.users and gone:
                inner = self._pool.open(slot.number)
                try:
                    inner.remove(self.desired(gone)[0])
                finally:
                    inner.close()
            slot.stale, slot.carried = [], {}
        self._changing.clear()
        for subject in sorted(self._judged_early):
            live = self._live.get(subject)
            if live is not None:
                self._store(subject, live, self._revisions.next())
        self._judged_early.clear()

    def delete(self, keys: Sequence[SubjectId]) -> dict[SubjectId, str]:
        """Take subjects out of force: nobody's policy denies."""
        for subject in keys:
            slot, revision = self._word(subject)
            self._words[subject] = 0
            self._forget(subject)
            if revision:
                self._release(slot)
        self._pool.refill()
        return {}

    def prune(self, keep: Iterable[SubjectPolicy]) -> int:
        """Take all other subjects out of force."""
        strangers = self.ours() - {row.subject for row in keep}
        self.delete(sorted(strangers))
        return len(strangers)

    def ours(self) -> set[SubjectId]:
        """Subjects in force."""
        return {SubjectId(int(number)) for number in np.flatnonzero(self._active["revision"])}

    def revision(self, subject: SubjectId) -> int:
        """The revision in force, 0 for none."""
        return self._word(subject)[1]

    def entries(self, subject: SubjectId) -> list[dict[str, Any]]:
        """What the kernel holds for a subject, for people."""
        slot, revision = self._word(subject)
        if not revision:
            return []
        keys, values = map(packing.records, self._dump(slot))
        return [{**key, **value} for key, value in zip(keys, values, strict=True)]

    def difference(self, subject: SubjectId) -> tuple[str, str] | None:
        """What is intended for a subject in force and what the kernel has, for people; None: the same."""
        live = self._live.get(subject)
        if live is None or live.stale:
            return None
        number, revision = self._word(subject)
        if not revision or number != live.number:
            return f"map {live.number} in force", f"map {number} in force" if revision else "no policy"
        intended, actual = _elements(*self.desired(live.entries)), _elements(*self._dump(number))
        if intended == actual:
            return None
        missing, foreign = intended.items() - actual.items(), actual.items() - intended.items()
        return (
            f"{len(intended)} entries",
            f"{len(actual)} entries: {len(missing)} miss, {len(foreign)} are foreign",
        )

    def distrust(self, subject: SubjectId) -> list[SubjectId]:
        """Forget how a subject's map came to be, so that the next `update` looks what is in it; returns all
        subjects that share the map and are to be updated."""
        live = self._live.get(subject)
        if live is None:
            return [subject]
        number, revision = self._word(subject)
        if not revision or number != live.number:
            self._store(subject, live, self._revisions.next())
        self._unfile(live)
        users = sorted(live.users)
        for user in users:
            self._forget(user)
        return users

    def strike(self, subject: SubjectId) -> None:
        """Take a subject out of force that nobody brought into force."""
        self._words[subject] = 0

    def _update(self, row: SubjectPolicy, wanted: Mapping[SubjectId, SubjectPolicy]) -> None:
        if len(row.entries) > POLICY_ENTRIES:
            raise BpfError(f"{len(row.entries)} policy entries, {POLICY_ENTRIES} fit: widen the rules")
        live = self._live.get(row.subject) or self._adopt(row)
        if live is None or not live.stands_for(row):
            self._replace(row, live)
            return
        if live.entries is row.entries:
            return
        difference = _layered(row.entries).since(_layered(live.entries))
        agreed = all(
            user in wanted and live.stands_for(wanted[user]) and wanted[user].entries is row.entries
            for user in live.users
        )
        if difference.changed or not agreed:
            self._replace(row, live)
        else:
            self._write_single(live, row, difference)

    def _write_single(self, live: Slot, row: SubjectPolicy, difference: Difference) -> None:
        if difference.added:
            inner = self._pool.open(live.number)
            try:
                self._put(inner, difference.added)
            finally:
                inner.close()
        if difference.removed:
            live.stale.extend(difference.removed)
            self._changing[live.number] = live
        self._unfile(live)
        live.entries = row.entries
        self._by_entries[id(live.entries)] = live

    def _replace(self, row: SubjectPolicy, live: Slot | None) -> None:
        """Switch to a map with these entries: one in force for others, or an idle one, filled."""
        carried = self._carried(row.entries, live)
        self._switch(row.subject, row.entries, row.rules, row.epoch, carried)
        if carried:
            self._judged_early.add(row.subject)

    def _carried(self, entries: Mapping[EntryKey, Entry], live: Slot | None) -> dict[EntryKey, Entry]:
        """Old denials of peers that the new entries don't know: their prefixes may still stand in the
        ipcache, and must not fall through to an allow of any peer until `finish()`."""
        if live is None:
            return {}
        pair = (id(live.entries), id(entries))
        if pair not in self._between:
            found = {
                EntryKey(*place, *prefix): entry
                for place, layer in _layered(live.entries).beside(_layered(entries))
                for prefix, entry in layer.items()
                if not entry.allow
            }
            self._between[pair] = (live.entries, entries, found)
        return self._between[pair][2]

    def _fail_closed(self, subject: SubjectId) -> None:
        """Deny everything; if even that can't be written, no policy at all denies too."""
        try:
            self._switch(subject, DENY_ALL, None, 0, {})
        except (OSError, BpfError):
            self.delete([subject])

    def _switch(
        self,
        subject: SubjectId,
        entries: Mapping[EntryKey, Entry],
        rules: str | None,
        epoch: int,
        carried: Mapping[EntryKey, Entry],
    ) -> None:
        """Put entries in force for a subject, under a revision of its own: one 8-byte store."""
        revision = self._revisions.next()
        slot = self._shareable(entries, rules, epoch, carried)
        if slot is None:
            number = self._filled(entries, carried)
            slot = Slot(number, rules, epoch, entries, carried)
            if carried:
                self._changing[number] = slot
        before, old = self._word(subject)
        self._store(subject, slot, revision)
        self._forget(subject)
        self._join(subject, slot)
        self._uses[slot.number] += 1
        if old:
            self._release(before)

    def _shareable(
        self,
        entries: Mapping[EntryKey, Entry],
        rules: str | None,
        epoch: int,
        carried: Mapping[EntryKey, Entry],
    ) -> Slot | None:
        """A slot in force that holds exactly these entries, and nothing else that still has to go."""
        slot = self._by_entries.get(id(entries))
        if slot is None or (slot.rules, slot.epoch) != (rules, epoch):
            return None
        same = len(slot.stale) == len(carried) and slot.carried == carried
        return slot if same else None

    def _store(self, subject: SubjectId, slot: Slot, revision: int) -> None:
        self._words[subject] = np.uint64(slot.number | revision << 32)

    def _fill_ahead(self, rows: Iterable[SubjectPolicy]) -> None:
        """Fill maps for those subjects among `rows` that will need one, and few entries in it, in one go.
        What fails here is tried again in its turn, and then says why."""
        small = {id(row.entries): row.entries for row in rows if self._needs_map(row)}
        filling: list[tuple[int, Entries, int, Map]] = []
        for name, entries in small.items():
            try:
                filling.append((name, _layered(entries), *self._idle()))
            except (OSError, BpfError):
                break
        owners = [at for at, (_, entries, _, _) in enumerate(filling) for _ in range(len(entries))]
        maps = np.array([filling[at][3].fd for at in owners], np.uint32)
        failures = bpf.spread(maps, *self._few(entries for _, entries, _, _ in filling))
        failed = {owners[at] for at in failures}
        for at, (name, _, number, inner) in enumerate(filling):
            if at in failed:
                inner.close()
                self._pool.retire(number)
            else:
                self._ahead[name] = number, inner

    def _needs_map(self, row: SubjectPolicy) -> bool:
        """Whether a subject that is to be switched has few entries, which no map holds. One that an earlier
        agent left in force may be just right."""
        left_in_force = row.subject not in self._live and self._word(row.subject)[1]
        return len(row.entries) <= FEW and id(row.entries) not in self._by_entries and not left_in_force

    def _give_back(self) -> None:
        """Retire the maps that were filled ahead in vain."""
        for number, inner in self._ahead.values():
            inner.close()
            self._pool.retire(number)
        self._ahead.clear()

    def _filled(self, entries: Mapping[EntryKey, Entry], carried: Mapping[EntryKey, Entry]) -> int:
        """A slot that was idle, with these entries."""
        ahead = self._ahead.pop(id(entries), None)
        number, inner = ahead or self._idle()
        try:
            if ahead is None:
                self._put(inner, entries)
            if carried:
                self._put(inner, carried)
        except BaseException:
            self._pool.retire(number)
            raise
        finally:
            inner.close()
        return number

    def _idle(self) -> tuple[int, Map]:
        """A slot that was idle, and its map. Raises BpfError, OSError."""
        number = self._pool.take()
        try:
            return number, self._pool.open(number)
        except BaseException:
            self._pool.retire(number)
            raise

    def _join(self, subject: SubjectId, slot: Slot) -> None:
        slot.users.add(subject)
        self._live[subject] = slot
        self._by_entries[id(slot.entries)] = slot

    def _forget(self, subject: SubjectId) -> None:
        live = self._live.pop(subject, None)
        if live is not None:
            live.users.discard(subject)
            if not live.users:
                self._unfile(live)

    def _unfile(self, slot: Slot) -> None:
        if self._by_entries.get(id(slot.entries)) is slot:
            del self._by_entries[id(slot.entries)]

    def _release(self, number: int) -> None:
        """A subject no longer uses a slot; the last one gives it back."""
        self._uses[number] -= 1
        if not self._uses[number]:
            del self._uses[number]
            self._changing.pop(number, None)
            self._pool.retire(number)

    def _put(self, inner: Map, entries: Mapping[EntryKey, Entry]) -> None:
        failures = inner.put(*self.desired(entries))
        for error in failures.values():
            raise BpfError(packing.sentence(inner, error))

    def _adopt(self, row: SubjectPolicy) -> Slot | None:
        """What an earlier agent left in force, if it is just what the row wants; flows then live on
        without being judged again."""
        number, revision = self._word(row.subject)
        if not revision:
            return None
        slot = next((found for found in self._live.values() if found.number == number), None)
        if slot is None:
            wanted = _elements(*self.desired(row.entries))
            if _elements(*self._dump(number)) != wanted:
                return None
            slot = Slot(number, row.rules, row.epoch, row.entries, {})
        elif slot.entries is not row.entries or not slot.stands_for(row):
            return None
        self._join(row.subject, slot)
        return slot

    def _dump(self, slot: int) -> tuple[Array, Array]:
        inner = self._pool.open(slot)
        try:
            return inner.dump()
        finally:
            inner.close()

    def _word(self, subject: SubjectId) -> tuple[int, int]:
        """(slot, revision) in force."""
        word = int(self._words[subject])
        return word & 0xFFFFFFFF, word >> 32


def _layered(entries: Mapping[EntryKey, Entry]) -> Entries:
    return entries if isinstance(entries, Entries) else Entries.of(entries)


def _distinct(objects: Sequence[T]) -> tuple[list[T], Array]:
    """Each object once, and for every one of them which of those it is."""
    names = np.fromiter(map(id, objects), np.uint64, len(objects))
    _, first, number = np.unique(names, return_index=True, return_inverse=True)
    return [objects[at] for at in first.tolist()], number


def _elements(keys: Array, values: Array) -> dict[bytes, bytes]:
    return dict(zip(packing.raw_rows(keys), packing.raw_rows(values), strict=True))
