"""Groups: subjects that the same sections select share all their entries.

subjects ──► GroupKey ──► Shared: Group, its users, its cookies
                              ▲
changed meanings ─────────────┘ entries patched
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple

import msgspec

from cilia.control.policy.entries.cookies import CookieBook
from cilia.control.policy.entries.resolve import Group
from cilia.control.policy.meaning.everybody import Changed, Everybody, What
from cilia.control.policy.rules import Meant, PortName, Section
from cilia.model.endpoint import NamedPort
from cilia.model.ids import Cookie, IdentityId
from cilia.model.policy import CookieRow, PolicyMode, SubjectKey


class GroupKey(NamedTuple):
    """What makes subjects alike: the modes, the sections (serial numbers) that select them, and the named
    ports that these speak of."""

    mode: PolicyMode
    audit: bool
    serials: tuple[int, ...]
    named_ports: tuple[NamedPort, ...] = ()


UNKNOWN = GroupKey(PolicyMode.ALWAYS, False, (-1,))
"""The group of subjects whose labels nobody told yet: everything is denied."""


class Shared(msgspec.Struct):
    """A group, and who shares it."""

    group: Group
    users: set[SubjectKey]
    cookies: Set[Cookie] = frozenset()
    epoch: int = 0


class Groups:
    """Keeps each subject in its group, and the entries of each group current."""

    def __init__(
        self, everybody: Everybody, sections: Mapping[int, Section], *, allow_localhost: bool = True
    ) -> None:
        """`sections`: those in force, by serial number, kept current by their owner."""
        self.keys: dict[SubjectKey, GroupKey] = {}
        """The group of each subject; to be read only."""
        self._everybody = everybody
        self._sections = sections
        self._allow_localhost = allow_localhost
        self._groups: dict[GroupKey, Shared] = {}
        self._speaking: dict[What, set[GroupKey]] = {}
        """The groups that speak of a peer or of a port's name."""
        self._patches: dict[GroupKey, set[IdentityId]] = {}
        """About whom the entries of a group are out of date."""
        self._cookies = CookieBook()
        self._cookie_users: Counter[Cookie] = Counter()
        self._cookies_changed = False

    def of(self, subject: SubjectKey) -> Shared:
        """The group that a subject is in."""
        return self._groups[self.keys[subject]]

    def peers(self) -> Iterator[Meant]:
        """Every peer that some group speaks of."""
        return (what for what in self._speaking if not isinstance(what, PortName))

    def note(self, changed: Changed) -> None:
        """Hear for whom what now means others; the next `patch` acts on it."""
        for identity, what in changed:
            for key in self._speaking.get(what, ()):
                self._patches.setdefault(key, set()).add(identity)

    def patch(self, stayed: Set[IdentityId]) -> set[SubjectKey]:
        """Bring the entries about some identities up to date; returns the subjects whose entries changed.
        `stayed`: who must be judged anew."""
        changed: set[SubjectKey] = set()
        for key, identities in self._patches.items():
            shared = self._groups[key]
            before = shared.group.entries
            shared.group.patch(identities, self._everybody, self._cookies)
            if shared.group.entries is not before:
                shared.epoch += not stayed.isdisjoint(identities)
                self._name_cookies(shared, shared.group.cookies())
                changed |= shared.users
        self._patches.clear()
        return changed

    def regroup(self, wanted: Mapping[SubjectKey, GroupKey], gone: Iterable[SubjectKey]) -> None:
        """Put subjects into the groups that they belong to now. Groups are derived from others: `patch`
        first."""
        left = {self._leave(subject) for subject in gone}
        for subject, key in wanted.items():
            if self.keys.get(subject) == key:
                continue
            before = None
            if subject in self.keys:
                before = self._leave(subject)
                left.add(before)
            if key not in self._groups:
                self._groups[key] = self._build(key, self._groups.get(before) if before else None)
            self._groups[key].users.add(subject)
            self.keys[subject] = key
        for key in left:
            if not self._groups[key].users:
                self._dissolve(key)

    def settle_cookies(self) -> tuple[list[CookieRow], list[Cookie]]:
        """The cookies that came into use since the last call, and those to forget."""
        if not self._cookies_changed:
            return [], []
        self._cookies_changed = False
        return self._cookies.settle(frozenset(self._cookie_users))

    def _leave(self, subject: SubjectKey) -> GroupKey:
        key = self.keys.pop(subject)
        self._groups[key].users.remove(subject)
        return key

    def _build(self, key: GroupKey, before: Shared | None) -> Shared:
        """Make a group; `before`: the one that some subject of it was in."""
        group = self._empty(key)
        for peer in group.peers:
            self._everybody.acquire(peer)
        for what in (*group.peers, *group.names):
            self._speaking.setdefault(what, set()).add(key)
        group.build(self._everybody, self._cookies, before.group if before is not None else None)
        shared = Shared(group, set())
        self._name_cookies(shared, group.cookies())
        return shared

    def _empty(self, key: GroupKey) -> Group:
        if key == UNKNOWN:
            return Group((), key.mode, allow_localhost=False)
        return Group(
            sorted((self._sections[n] for n in key.serials), key=lambda row: row.ref),
            key.mode,
            audit=key.audit,
            named_ports=key.named_ports,
            allow_localhost=self._allow_localhost,
        )

    def _dissolve(self, key: GroupKey) -> None:
        shared = self._groups.pop(key)
        for peer in shared.group.peers:
            self._everybody.release(peer)
        for what in (*shared.group.peers, *shared.group.names):
            self._speaking[what].discard(key)
            if not self._speaking[what]:
                del self._speaking[what]
        self._name_cookies(shared, frozenset())

    def _name_cookies(self, shared: Shared, used: Set[Cookie]) -> None:
        """Replace the cookies a group uses; those that nobody used or uses any more are told."""
        before, shared.cookies = shared.cookies, used
        if used is before:
            return
        came, went = shared.cookies - before, before - shared.cookies
        self._cookie_users.update(came)
        self._cookie_users.subtract(went)
        gone = [cookie for cookie in went if not self._cookie_users[cookie]]
        for cookie in gone:
            del self._cookie_users[cookie]
        if gone or any(self._cookie_users[cookie] == 1 for cookie in came):
            self._cookies_changed = True
