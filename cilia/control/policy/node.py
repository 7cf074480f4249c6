"""The policy node of the control graph: policies, identities, endpoints -> subjects, cookies, policy_states.

    policies ──► RuleBook ──► sections ──► which local identities they select ──► Group per set of sections
    identities ──► Selections ──► who each peer is ──────────────────────────────► entries of the Group
    endpoints ──► local identities ──► SubjectAllocator ─────────────────────────► one row per identity

A change recomputes what depends on it: a policy the groups of the identities it selects, an identity the
entries about it. The rows equal those computed from scratch, but for the numbers of subjects and the
revision, which says when a row was last computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

from cilia.control.policy.cookies import CookieBook
from cilia.control.policy.parse import RuleBook
from cilia.control.policy.resolve import Group
from cilia.control.policy.rules import Cidr, Cidrs, Parsed, PortName, Section, Selector
from cilia.control.policy.selection import Selections
from cilia.control.policy.subjects import SubjectAllocator
from cilia.model.ids import IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.policy import PolicyMode, PolicyObject, PolicyState, SubjectKey, SubjectPolicy
from cilia.schema import Desired, Inputs

PolicyKey = tuple[str, str, str]


class GroupKey(NamedTuple):
    """What makes subjects alike: the mode and the sections (serial numbers) that select them."""

    mode: PolicyMode
    serials: tuple[int, ...]


UNKNOWN = GroupKey(PolicyMode.ALWAYS, (-1,))
"""The group of local identities whose labels nobody told yet: everything is denied."""


class PolicyNode:
    """Keeps one row of entries for each identity with endpoints on this node."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        book: RuleBook | None = None,
        *,
        mode: PolicyMode = PolicyMode.DEFAULT,
        allow_localhost: bool = True,
        restored: Mapping[IdentityId, SubjectId] | None = None,
    ) -> None:
        """`book` is shared with `control.identity`; `restored` are the subjects found in the kernel."""
        self.revision = Revision(0)
        """The revision of the policies that all rows now stand for."""
        self.mode = mode
        """May be changed at any time; the next step acts on it."""
        self.subjects = SubjectAllocator(restored)
        self._inputs = inputs
        self._desired = desired
        self._book = book or RuleBook()
        self._allow_localhost = allow_localhost
        self._policies = inputs.policies.cursor()
        self._identities = desired.identities.cursor()
        self._endpoints = desired.endpoints.cursor()
        self._selections = Selections()
        self._cookies = CookieBook()
        self._sections: dict[int, Section] = {}
        self._of_policy: dict[PolicyKey, tuple[Parsed, tuple[int, ...]]] = {}
        self._serial = 0
        self._stepped: PolicyMode | None = None
        """The mode of the last step."""
        self._selected: dict[IdentityId, set[int]] = {}
        """The sections that select each local identity."""
        self._grouped: dict[IdentityId, GroupKey] = {}
        self._groups: dict[GroupKey, Group] = {}

    def step(self, revision: Revision) -> None:
        """Bring the rows up to date. `revision` counts changes of the policies, for people to wait on."""
        self.revision = revision
        if not self._pending():
            return
        meant = self._take_identities()
        self._take_policies()
        self._take_endpoints()
        if all(table.synced for table in self._inputs.tables()):
            self.subjects.forget_restored()
        built, published = self._regroup()
        for key, group in self._groups.items():
            if key not in built:
                identities = {i for peer in group.peers for i in meant.get(peer, ())}
                if identities:
                    group.patch(identities, self, self._cookies)
                    published |= group.users
        for identity in sorted(published):
            self._desired.subjects.put(self._row(identity))
        if published:
            self._name_cookies()

    def peers(self) -> dict[Selector | Cidr, frozenset[IdentityId]]:
        """Every peer that rules in force speak of, and the identities it means now (row P427)."""
        return self._selections.peers()

    def _pending(self) -> bool:
        """Whether anything changed since the last step."""
        cursors = (self._policies.pending, self._identities.pending, self._endpoints.pending)
        stepped, self._stepped = self._stepped, self.mode
        return any(cursors) or stepped is not self.mode

    def _take_identities(self) -> dict[Selector | Cidr, set[IdentityId]]:
        """Follow the identities; returns, by peer, those it now means or no longer means."""
        meant: dict[Selector | Cidr, set[IdentityId]] = {}
        put, deleted = self._identities.take()
        changes = [(row.id, self._selections.put(row.id, row.labels)) for row in put]
        changes += [(identity, self._selections.remove(identity)) for identity in deleted]
        for identity, peers in changes:
            for peer in peers:
                meant.setdefault(peer, set()).add(identity)
            if identity in self._selected:
                self._selected[identity] = self._select(identity, self._sections)
        return meant

    def _take_policies(self) -> None:
        put, deleted = self._policies.take()
        for key in deleted:
            self._book.forget(key)
            self._desired.policy_states.delete(key)
            self._enforce(key, Parsed())
        for policy in put:
            parsed = self._book.parsed(policy)
            self._desired.policy_states.put(_state(policy, parsed))
            self._enforce(policy.key, parsed)

    def _enforce(self, key: PolicyKey, parsed: Parsed) -> None:
        """Replace the sections of one policy and note which local identities the new ones select."""
        old, serials = self._of_policy.pop(key, (Parsed(), ()))
        if old.sections == parsed.sections:
            if parsed.sections:
                self._of_policy[key] = (parsed, serials)
            return
        for serial in serials:
            del self._sections[serial]
        fresh: dict[int, Section] = {}
        for section in parsed.sections:
            self._serial += 1
            fresh[self._serial] = section
        self._sections |= fresh
        if fresh:
            self._of_policy[key] = (parsed, tuple(fresh))
        for identity, selected in self._selected.items():
            selected.difference_update(serials)
            selected |= self._select(identity, fresh)

    def _take_endpoints(self) -> None:
        """Follow which identities have endpoints here."""
        if not self._endpoints.pending:
            return
        self._endpoints.take()
        came, freed = self.subjects.settle(row.identity for row in self._desired.endpoints if row.identity)
        for identity in came:
            self._selected[identity] = self._select(identity, self._sections)
        for subject in freed:
            self._desired.subjects.delete(subject)
        for identity in [i for i in self._selected if i not in self.subjects]:
            del self._selected[identity]

    def _select(self, identity: IdentityId, sections: Mapping[int, Section]) -> set[int]:
        labels = self._selections.index.get(identity)
        if labels is None:
            return set()
        return {serial for serial, section in sections.items() if section.subject.matches(labels)}

    def _regroup(self) -> tuple[set[GroupKey], set[IdentityId]]:
        """Put every local identity into its group; returns the groups made and the identities moved."""
        built: set[GroupKey] = set()
        moved: set[IdentityId] = set()
        left: set[GroupKey] = set()
        for identity in self._grouped.keys() - self._selected.keys():
            left.add(self._leave(identity))
        for identity in self._selected:
            key = self._key(identity)
            if self._grouped.get(identity) == key:
                continue
            if identity in self._grouped:
                left.add(self._leave(identity))
            if key not in self._groups:
                self._groups[key] = self._build(key)
                built.add(key)
            self._groups[key].users.add(identity)
            self._grouped[identity] = key
            moved.add(identity)
        for key in left:
            if not self._groups[key].users:
                for peer in self._groups.pop(key).peers:
                    self._selections.release(peer)
        return built, moved

    def _leave(self, identity: IdentityId) -> GroupKey:
        key = self._grouped.pop(identity)
        self._groups[key].users.remove(identity)
        return key

    def _key(self, identity: IdentityId) -> GroupKey:
        if self._selections.index.get(identity) is None:
            return UNKNOWN
        return GroupKey(self.mode, tuple(sorted(self._selected[identity])))

    def _build(self, key: GroupKey) -> Group:
        if key == UNKNOWN:
            group = Group((), key.mode, allow_localhost=False)
        else:
            sections = sorted((self._sections[serial] for serial in key.serials), key=lambda row: row.ref)
            group = Group(sections, key.mode, allow_localhost=self._allow_localhost)
        for peer in group.peers:
            self._selections.acquire(peer)
        group.build(self, self._cookies)
        return group

    def members(self, peer: Selector | Cidr | Cidrs) -> Set[IdentityId]:
        """The identities a peer means now."""
        return self._selections.members(peer)

    def port_numbers(self, identity: IdentityId, name: PortName) -> frozenset[int]:
        """The numbers that endpoints of an identity give a port name."""
        return frozenset()

    def naming(self, name: PortName) -> Set[IdentityId]:
        """The identities some endpoint of which has a port of that name."""
        return frozenset()

    def _row(self, identity: IdentityId) -> SubjectPolicy:
        group = self._groups[self._grouped[identity]]
        return SubjectPolicy(
            subject=self.subjects.get(identity),
            key=SubjectKey(identity),
            labels=self._selections.index.get(identity) or Labels(),
            rules=group.rules,
            revision=self.revision,
            entries=group.entries,
            ingress_enforced=group.ingress_enforced,
            egress_enforced=group.egress_enforced,
        )

    def _name_cookies(self) -> None:
        used = frozenset(cookie for group in self._groups.values() for cookie in group.cookies())
        fresh, forgotten = self._cookies.settle(used)
        for row in fresh:
            self._desired.cookies.put(row)
        for cookie in forgotten:
            self._desired.cookies.delete(cookie)


def _state(policy: PolicyObject, parsed: Parsed) -> PolicyState:
    return PolicyState(
        kind=policy.kind,
        namespace=policy.namespace,
        name=policy.name,
        resource_version=policy.resource_version,
        generation=policy.generation,
        valid=not parsed.problems,
        problems=parsed.problems,
    )
