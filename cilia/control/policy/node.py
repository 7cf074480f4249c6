"""The policy node of the control graph: rules, identities, endpoints -> subjects, cookies, policy_states.

    rules ───────► Applying: which sections select which local identities ──┐
         └───────► PolicyStates: valid or not, and warnings                 ▼
    identities ──► Everybody: whom each peer and port name means ──► Groups: the entries of each
    endpoints ───┘                                                    set of sections
             └───► SubjectAllocator: one row for all endpoints that policy can't tell apart

A change recomputes what depends on it: a policy the groups of the identities it selects, an identity the
entries about it. The rows equal those computed from scratch, but for the numbers of subjects, the epoch, and
the revision, which says when a row was last computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

from cilia.control.policy.entries.groups import UNKNOWN, GroupKey, Groups
from cilia.control.policy.entries.subjects import SubjectAllocator
from cilia.control.policy.facts import Facts
from cilia.control.policy.meaning.applying import Applying
from cilia.control.policy.meaning.everybody import Everybody
from cilia.control.policy.meaning.expand import PolicyKey, RuleNode
from cilia.control.policy.meaning.states import PolicyStates
from cilia.control.policy.rules import Inside, Meant, Section, Selector
from cilia.model.endpoint import Endpoint, RemoteEndpoint
from cilia.model.ids import EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.node import Node
from cilia.model.policy import PolicyMode, SubjectKey, SubjectPolicy
from cilia.schema import Desired, Inputs


class Concern(NamedTuple):
    """Whom a policy selects on this node."""

    subjects: frozenset[SubjectId]
    noted: bool
    """What it denies is only noted: all of it is in audit."""


class PolicyNode:
    """Keeps one row of entries for each subject with endpoints on this node."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        rules: RuleNode,
        *,
        mode: PolicyMode = PolicyMode.DEFAULT,
        audit: bool = False,
        allow_localhost: bool = True,
        cidr_nodes: bool = False,
        restored: Mapping[EndpointId, SubjectId] | None = None,
        own: Node | None = None,
    ) -> None:
        """`rules` is shared with `control.identity`; `restored`: the subject each endpoint had in the
        kernel; `cidr_nodes`: CIDR rules mean nodes, too; `own`: what this node knows of itself."""
        self.revision = Revision(0)
        """The revision of the policies that all rows now stand for."""
        self.mode = mode
        """May be changed at any time, as `audit`; the next step acts on it."""
        self.audit = audit
        """No denial is enforced on this node."""
        self.subjects = SubjectAllocator(restored)
        self._inputs = inputs
        self._desired = desired
        self._allow_localhost = allow_localhost
        self._cidr_nodes = cidr_nodes
        self._rules = rules.rules.cursor()
        self._identities = desired.identities.cursor()
        self._endpoints = desired.endpoints.cursor()
        self._remote = inputs.remote_endpoints.cursor()
        self._everybody = Everybody(cidr_nodes=cidr_nodes, own=own)
        self._applying = Applying()
        self._groups = Groups(self._everybody, self._applying.sections, allow_localhost=allow_localhost)
        self._states = PolicyStates(inputs, desired, rules, self._everybody, own=own, cidr_nodes=cidr_nodes)
        self._of_policy: dict[PolicyKey, tuple[tuple[Section, ...], tuple[int, ...]]] = {}
        self._stepped: tuple[PolicyMode, bool] | None = None
        """Mode and audit of the last step."""
        self._key_of: dict[EndpointId, SubjectKey] = {}
        self._endpoints_of: dict[SubjectKey, set[EndpointId]] = {}
        self._subjects_of: dict[IdentityId, set[SubjectKey]] = {}

    def step(self, revision: Revision, *, keep_rules: bool = False) -> None:
        """Bring the rows up to date. `revision` counts changes of the policies, for people to wait on.
        `keep_rules`: the rules in force stand until the next step."""
        self.revision = revision
        modes = (self.mode, self.audit)
        cursors = (self._rules, self._identities, self._endpoints, self._remote)
        if modes == self._stepped and not any(cursor.pending for cursor in cursors):
            return
        dirty = self._take_identities()
        if not keep_rules:
            dirty |= self._take_rules()
        dirty |= self._take_endpoints()
        if all(table.synced for table in self._inputs.tables()):
            self.subjects.forget_restored()
        if modes != self._stepped:
            dirty |= self._endpoints_of.keys()
            self._stepped = modes
        patched = self._groups.patch(self._everybody.stayed)
        self._everybody.stayed.clear()
        wanted = {subject: self._group_of(subject) for subject in dirty & self._endpoints_of.keys()}
        self._groups.regroup(wanted, self._groups.keys.keys() - self._endpoints_of.keys())
        for subject in sorted((patched | wanted.keys()) & self._endpoints_of.keys()):
            self._desired.subjects.put(self._row(subject))
        self._publish_cookies()

    # What others may ask.

    def peers(self) -> dict[Meant, frozenset[IdentityId]]:
        """Every peer that rules in force here speak of, and the identities it means now."""
        return self._everybody.peers()

    def largest_peers(self) -> dict[str, int]:
        """How many identities the widest selector and the widest prefixes of rules in force here mean."""
        found = {"cluster": 0, "world": 0}
        for peer in self._groups.peers():
            kind = "cluster" if isinstance(peer, Selector | Inside) else "world"
            found[kind] = max(found[kind], len(self._everybody.members(peer)))
        return found

    def concerns(self) -> dict[PolicyKey, Concern]:
        """Whom each policy selects here; policies that select nobody here are left out."""
        owners = {n: key for key, (_, serials) in self._of_policy.items() for n in serials}
        found: dict[PolicyKey, set[SubjectId]] = {}
        for subject, group in self._groups.keys.items():
            for policy in {owners[n] for n in group.serials if n in owners}:
                found.setdefault(policy, set()).add(self.subjects.get(subject))
        return {
            key: Concern(frozenset(subjects), all(section.audit for section in self._of_policy[key][0]))
            for key, subjects in found.items()
        }

    def facts(self) -> Facts:
        """Everything verdicts depend on, as of the last step: a snapshot that any thread may use."""
        return Facts(
            sections=tuple(self._applying.sections.values()),
            identities=self._everybody.all_labels(),
            port_names=self._everybody.all_port_names(),
            addresses=self._everybody.all_addresses(),
            mode=self.mode,
            audit=self.audit,
            allow_localhost=self._allow_localhost,
            cidr_nodes=self._cidr_nodes,
        )

    def review(self, limit: int = 32) -> bool:
        """Look for warnings about up to `limit` policies; returns whether there may be more to do. Off the
        hot path: call it now and then."""
        return self._states.review(limit)

    # Taking in what changed. Each returns the subjects whose group may be another one.

    def _take_identities(self) -> set[SubjectKey]:
        put, deleted = self._identities.take()
        for row in put:
            self._groups.note(self._everybody.put(row))
        for identity in deleted:
            self._groups.note(self._everybody.remove(identity))
        dirty: set[SubjectKey] = set()
        for identity in (*(row.id for row in put), *deleted):
            if identity in self._subjects_of:
                self._follow_local(identity)
                dirty |= self._subjects_of[identity]
        return dirty

    def _take_rules(self) -> set[SubjectKey]:
        touched: set[IdentityId] = set()
        put, deleted = self._rules.take()
        for key in deleted:
            self._states.delete(key)
            touched |= self._enforce(key, ())
        for row in put:
            self._states.put(row)
            touched |= self._enforce(row.key, row.sections)
        return {key for identity in touched for key in self._subjects_of.get(identity, ())}

    def _enforce(self, key: PolicyKey, sections: tuple[Section, ...]) -> set[IdentityId]:
        """Replace the sections of one policy; returns the local identities that this touches."""
        old, serials = self._of_policy.pop(key, ((), ()))
        touched: set[IdentityId] = set()
        if old != sections:
            touched |= self._applying.drop(serials)
            serials, selected = self._applying.add(sections)
            touched |= selected
        if sections:
            self._of_policy[key] = (sections, serials)
        return touched

    def _take_endpoints(self) -> set[SubjectKey]:
        local, left = self._endpoints.take()
        remote, lost = self._remote.take()
        gone: tuple[Hashable, ...] = (*lost, *left)
        for claimant in gone:
            self._groups.note(self._everybody.claim(claimant, None))
        rows: list[tuple[Hashable, Endpoint | RemoteEndpoint]] = [
            *(((row.namespace, row.name), row) for row in remote),
            *((row.id, row) for row in local),
        ]
        for claimant, endpoint in rows:
            self._groups.note(self._everybody.claim(claimant, endpoint))
        return self._settle_subjects(local, left) if local or left else set()

    def _settle_subjects(self, put: list[Endpoint], deleted: list[EndpointId]) -> set[SubjectKey]:
        """Follow which subjects have endpoints here; returns those that came."""
        for identifier in (*(row.id for row in put), *deleted):
            self._leave_subject(identifier)
        for row in put:
            if row.identity:
                key = SubjectKey(row.identity, tuple(sorted(row.named_ports)), row.audit)
                self._key_of[row.id] = key
                self._endpoints_of.setdefault(key, set()).add(row.id)
        for key in [key for key, endpoints in self._endpoints_of.items() if not endpoints]:
            del self._endpoints_of[key]
        came, freed = self.subjects.settle(self._endpoints_of)
        for subject in freed:
            self._desired.subjects.delete(subject)
        self._follow_subjects()
        return set(came)

    def _leave_subject(self, endpoint: EndpointId) -> None:
        key = self._key_of.pop(endpoint, None)
        if key is not None:
            self._endpoints_of[key].discard(endpoint)

    def _follow_subjects(self) -> None:
        """Let the sections know of exactly the identities that live here."""
        before = self._subjects_of
        self._subjects_of = {}
        for key in self._endpoints_of:
            self._subjects_of.setdefault(key.identity, set()).add(key)
        for identity in self._subjects_of.keys() - before.keys():
            self._follow_local(identity)
        for identity in before.keys() - self._subjects_of.keys():
            self._applying.remove(identity)

    def _follow_local(self, identity: IdentityId) -> None:
        labels = self._everybody.labels(identity)
        if labels is None:
            self._applying.remove(identity)
        else:
            self._applying.put(identity, labels)

    # What they come to.

    def _group_of(self, subject: SubjectKey) -> GroupKey:
        if subject.identity not in self._applying:
            return UNKNOWN
        serials = self._applying.of(subject.identity)
        names = self._applying.names(serials) if subject.named_ports else frozenset()
        ports = tuple(port for port in subject.named_ports if port.name in names)
        return GroupKey(self._mode_of(subject.identity), self.audit or subject.audit, serials, ports)

    def _mode_of(self, identity: IdentityId) -> PolicyMode:
        """An endpoint that has no labels yet is isolated: it could be anybody."""
        labels = self._everybody.labels(identity)
        unlabelled = labels is not None and labels.has("reserved", "init")
        return PolicyMode.ALWAYS if unlabelled and self.mode is PolicyMode.DEFAULT else self.mode

    def _row(self, subject: SubjectKey) -> SubjectPolicy:
        shared = self._groups.of(subject)
        return SubjectPolicy(
            subject=self.subjects.get(subject),
            key=subject,
            labels=self._everybody.labels(subject.identity) or Labels(),
            rules=shared.group.rules,
            revision=self.revision,
            entries=shared.group.entries,
            ingress_enforced=shared.group.ingress_enforced,
            egress_enforced=shared.group.egress_enforced,
            epoch=shared.epoch,
        )

    def _publish_cookies(self) -> None:
        fresh, forgotten = self._groups.settle_cookies()
        for row in fresh:
            self._desired.cookies.put(row)
        for cookie in forgotten:
            self._desired.cookies.delete(cookie)
