"""Maps `policy_active` and `policies`: the entries of each subject, switched by one 8-byte store.

While a row's `rules` stay the same, identities came or went: single entries are written into the live
map (adds at once, removals only in `finish()`, when the ipcache no longer speaks of who left). Other
rules fill an idle inner map and switch to it under a new revision, which makes every running flow of
the subject be judged again. What can't be written fails closed: the subject gets a map that only denies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cilia import abi
from cilia.dataplane.bpf import Array, BpfError, Map
from cilia.dataplane.maps import packing
from cilia.dataplane.pool import PolicyPool
from cilia.model.ids import Cookie, SubjectId
from cilia.model.policy import Direction, Entry, EntryFlags, EntryKey, MatchKind, SubjectPolicy

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


class Live:
    """What is in force for a subject. `rules` None: whatever comes next is a switch."""

    __slots__ = ("entries", "rules", "slot")

    def __init__(self, slot: int, rules: str | None, entries: Mapping[EntryKey, Entry]) -> None:
        self.slot = slot
        self.rules = rules
        self.entries = entries


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
        self._live: dict[SubjectId, Live] = {}
        self._stale: dict[SubjectId, list[EntryKey]] = {}
        self._judged_early: set[SubjectId] = set()
        self._encoded: dict[int, tuple[Mapping[EntryKey, Entry], tuple[Array, Array]]] = {}
        """During an update: entries, by their `id`, with their keys and values; alike subjects share them."""

    def desired(self, entries: Mapping[EntryKey, Entry]) -> tuple[Array, Array]:
        """Keys and values of an inner map, in the order of the entries."""
        keys, values = np.zeros(len(entries), self._key), np.zeros(len(entries), self._value)
        bits = [key.bits for key in entries]
        keys["prefixlen"] = bits
        keys["prefixlen"] += self._fixed_bits
        keys["peer"] = [key.peer for key in entries]
        keys["direction"] = [key.direction for key in entries]
        keys["protocol"] = [key.protocol for key in entries]
        keys["port"] = [key.port for key in entries]
        rows = entries.values()
        values["precedence"] = [row.precedence for row in rows]
        values["cookie"] = [row.cookie for row in rows]
        values["proxy_port"] = [row.proxy_port for row in rows]
        values["verdict"] = [self._allow if row.allow else 0 for row in rows]
        values["match"] = [row.match for row in rows]
        values["flags"] = [row.flags for row in rows]
        values["prefix"] = bits
        return keys, values

    def update(self, rows: Sequence[SubjectPolicy]) -> dict[SubjectId, str]:
        """Bring subjects in force; one that fails denies everything until it succeeds."""
        failures: dict[SubjectId, str] = {}
        for row in rows:
            try:
                self._update(row)
            except (OSError, BpfError) as error:
                failures[row.subject] = f"{error}; everything is denied until then"
                self._fail_closed(row.subject)
        self._encoded.clear()
        self._pool.refill()
        return failures

    def finish(self) -> None:
        """Remove the entries of identities that left; call when the ipcache has been brought up to date.

        A subject that was switched while such entries were still carried gets another revision, so that no
        flow keeps a verdict they gave. Raises OSError.
        """
        for subject, keys in self._stale.items():
            live = self._live.get(subject)
            if live is None:
                continue
            gone = {
                key: Entry(0, False, Cookie(0), MatchKind.NONE) for key in keys if key not in live.entries
            }
            inner = self._pool.open(live.slot)
            try:
                inner.remove(self.desired(gone)[0])
            finally:
                inner.close()
            if subject in self._judged_early:
                self._switch(subject, live.slot)
        self._stale.clear()
        self._judged_early.clear()

    def delete(self, keys: Sequence[SubjectId]) -> dict[SubjectId, str]:
        """Take subjects out of force: nobody's policy denies."""
        for subject in keys:
            self._live.pop(subject, None)
            self._stale.pop(subject, None)
            slot, revision = self._word(subject)
            if revision:
                self._words[subject] = 0
                self._pool.retire(slot)
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

    def _update(self, row: SubjectPolicy) -> None:
        live = self._live.get(row.subject) or self._adopt(row)
        if live is None or live.rules != row.rules:
            self._replace(row, live)
            return
        added = _added(live.entries, row.entries)
        if added is None:
            self._replace(row, live)
            return
        self._write_single(row, live, added)

    def _write_single(self, row: SubjectPolicy, live: Live, added: Mapping[EntryKey, Entry]) -> None:
        if added:
            inner = self._pool.open(live.slot)
            try:
                self._put(inner, added)
            finally:
                inner.close()
        if len(live.entries) + len(added) != len(row.entries):
            removed = [key for key in live.entries if key not in row.entries]
            self._stale.setdefault(row.subject, []).extend(removed)
        live.entries = row.entries

    def _replace(self, row: SubjectPolicy, live: Live | None) -> None:
        """Fill an idle map and switch to it."""
        carried = self._carried(row, live)
        self._fill_and_switch(row.subject, {**carried, **row.entries} if carried else row.entries)
        self._live[row.subject].rules = row.rules
        self._live[row.subject].entries = row.entries
        if carried:
            self._stale.setdefault(row.subject, []).extend(carried)
            self._judged_early.add(row.subject)

    def _carried(self, row: SubjectPolicy, live: Live | None) -> dict[EntryKey, Entry]:
        """Old denials of peers that the new entries don't know: their prefixes may still stand in the
        ipcache, and must not fall through to an allow of any peer until `finish()`."""
        if live is None:
            return {}
        known = {key.peer for key in row.entries}
        return {
            key: entry
            for key, entry in live.entries.items()
            if not entry.allow and key.peer and key.peer not in known
        }

    def _fail_closed(self, subject: SubjectId) -> None:
        """Deny everything; if even that can't be written, no policy at all denies too."""
        try:
            self._fill_and_switch(subject, DENY_ALL)
        except (OSError, BpfError):
            self.delete([subject])

    def _fill_and_switch(self, subject: SubjectId, entries: Mapping[EntryKey, Entry]) -> None:
        slot = self._pool.take()
        try:
            inner = self._pool.open(slot)
            try:
                self._put(inner, entries)
            finally:
                inner.close()
            before, revision = self._word(subject)
            self._switch(subject, slot)
        except BaseException:
            self._pool.retire(slot)
            raise
        if revision:
            self._pool.retire(before)
        self._live[subject] = Live(slot, None, entries)
        self._stale.pop(subject, None)

    def _switch(self, subject: SubjectId, slot: int) -> None:
        """The one store that puts a slot in force, under a revision of its own."""
        self._words[subject] = np.uint64(slot | self._revisions.next() << 32)

    def _put(self, inner: Map, entries: Mapping[EntryKey, Entry]) -> None:
        if len(entries) > inner.info.max_entries:
            raise BpfError(f"{len(entries)} policy entries, {inner.info.max_entries} fit: widen the rules")
        if id(entries) not in self._encoded:
            self._encoded[id(entries)] = (entries, self.desired(entries))
        _, (keys, values) = self._encoded[id(entries)]
        failures = inner.put(keys, values)
        for error in failures.values():
            raise BpfError(packing.sentence(inner, error))

    def _adopt(self, row: SubjectPolicy) -> Live | None:
        """What an earlier agent left in force, if it is just what the row wants; flows then live on
        without being judged again."""
        slot, revision = self._word(row.subject)
        if not revision:
            return None
        wanted = _elements(*self.desired(row.entries))
        if _elements(*self._dump(slot)) != wanted:
            return None
        live = self._live[row.subject] = Live(slot, row.rules, row.entries)
        return live

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


def _added(before: Mapping[EntryKey, Entry], after: Mapping[EntryKey, Entry]) -> dict[EntryKey, Entry] | None:
    """The entries that are new; None when one that stays has changed. One pass: there may be thousands."""
    added: dict[EntryKey, Entry] = {}
    for key, entry in after.items():
        old = before.get(key)
        if old is None:
            added[key] = entry
        elif old is not entry and old != entry:
            return None
    return added


def _elements(keys: Array, values: Array) -> dict[bytes, bytes]:
    return dict(zip(packing.raw_rows(keys), packing.raw_rows(values), strict=True))
