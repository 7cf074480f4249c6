"""The policy node of the control graph: rules, identities, endpoints -> subjects, cookies, policy_states.

    rules ───────► Applying: which sections select which local identities ──► Group per set of sections
    identities ──► Selections: who each peer is ─────────────────────────────► entries of the Group
    endpoints ───► PortNames: what their ports are called ───────────────────► entries of the Group
             └───► SubjectAllocator: one row for all endpoints that policy can't tell apart

A change recomputes what depends on it: a policy the groups of the identities it selects, an identity the
entries about it. The rows equal those computed from scratch, but for the numbers of subjects, the epoch, and
the revision, which says when a row was last computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any, NamedTuple

import msgspec

from cilia.control.nodes import known_nodes
from cilia.control.policy.addresses import Addresses, Claim
from cilia.control.policy.applying import Applying
from cilia.control.policy.cookies import CookieBook
from cilia.control.policy.expand import PolicyKey, PolicyRules, Reference, RuleNode
from cilia.control.policy.facts import Facts
from cilia.control.policy.naming import PortNames
from cilia.control.policy.resolve import Group
from cilia.control.policy.review import Ground, review
from cilia.control.policy.rules import Inside, PortName, Section, Selector
from cilia.control.policy.selection import Selections, is_node, spans_of
from cilia.control.policy.sides import Meant
from cilia.control.policy.subjects import SubjectAllocator
from cilia.model.endpoint import Endpoint, NamedPort, RemoteEndpoint
from cilia.model.identity import HOST
from cilia.model.ids import Cookie, EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.node import Node
from cilia.model.policy import PolicyMode, PolicyProblem, PolicyState, SubjectKey, SubjectPolicy
from cilia.schema import Desired, Inputs


class GroupKey(NamedTuple):
    """What makes subjects alike: the modes, the sections (serial numbers) that select them, and the named
    ports that these speak of."""

    mode: PolicyMode
    audit: bool
    serials: tuple[int, ...]
    named_ports: tuple[NamedPort, ...] = ()


REMEMBERED = 4096
"""Identities that went of which the labels are kept."""

UNKNOWN = GroupKey(PolicyMode.ALWAYS, False, (-1,))
"""The group of subjects whose labels nobody told yet: everything is denied."""

Patches = dict[GroupKey, set[IdentityId]]
Changes = tuple[list[Endpoint], list[EndpointId]]
RemoteChanges = tuple[list[RemoteEndpoint], list[tuple[str, str]]]


class Concern(NamedTuple):
    """Whom a policy selects on this node."""

    subjects: frozenset[SubjectId]
    noted: bool
    """What it denies is only noted: all of it is in audit."""


class Shared(msgspec.Struct):
    """A group, and who shares it."""

    group: Group
    users: set[SubjectKey]
    cookies: Set[Cookie] = frozenset()
    epoch: int = 0


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
        self._rule_node = rules
        self._own = own
        self._review: dict[PolicyKey, object] = {}
        """Policies in the order in which their turn comes, each with what it was last reviewed in."""
        self._rules = rules.rules.cursor()
        self._identities = desired.identities.cursor()
        self._endpoints = desired.endpoints.cursor()
        self._remote = inputs.remote_endpoints.cursor()
        self._selections = Selections(cidr_nodes=cidr_nodes)
        self._gone: dict[IdentityId, Labels] = {}
        """What the identities that went last were called."""
        self._port_names = PortNames()
        self._addresses = Addresses()
        if own is not None:
            self._addresses.claim("host", (HOST, (*own.addresses, *own.router_addresses)))
        self._applying = Applying()
        self._cookies = CookieBook()
        self._cookie_users: Counter[Cookie] = Counter()
        self._cookies_changed = False
        self._of_policy: dict[PolicyKey, tuple[tuple[Section, ...], tuple[int, ...]]] = {}
        self._stepped: tuple[PolicyMode, bool] | None = None
        """Mode and audit of the last step."""
        self._key_of: dict[EndpointId, SubjectKey] = {}
        self._endpoints_of: dict[SubjectKey, set[EndpointId]] = {}
        self._subjects_of: dict[IdentityId, set[SubjectKey]] = {}
        self._grouped: dict[SubjectKey, GroupKey] = {}
        self._groups: dict[GroupKey, Shared] = {}
        self._speaking: dict[Meant, set[GroupKey]] = {}
        """The groups that speak of a peer."""
        self._calling: dict[PortName, set[GroupKey]] = {}
        """The groups that speak of a port name."""

    def step(self, revision: Revision, *, keep_rules: bool = False) -> None:
        """Bring the rows up to date. `revision` counts changes of the policies, for people to wait on.
        `keep_rules`: the rules in force stand until the next step."""
        self.revision = revision
        modes = (self.mode, self.audit)
        cursors = (self._rules, self._identities, self._endpoints, self._remote)
        if modes == self._stepped and not any(cursor.pending for cursor in cursors):
            return
        patches: Patches = {}
        stayed: set[IdentityId] = set()
        dirty = self._take_identities(patches, stayed)
        if not keep_rules:
            dirty |= self._take_rules()
        endpoints, remote = self._endpoints.take(), self._remote.take()
        for identity, name in self._take_port_names(endpoints, remote):
            stayed.add(identity)
            for group in self._calling.get(name, ()):
                patches.setdefault(group, set()).add(identity)
        self._take_addresses(endpoints, remote, patches, stayed)
        dirty |= self._take_endpoints(*endpoints)
        if all(table.synced for table in self._inputs.tables()):
            self.subjects.forget_restored()
        if modes != self._stepped:
            dirty |= self._grouped.keys()
            self._stepped = modes
        # Groups are derived from others: these must be current.
        published = self._patch(patches, stayed) | self._regroup(dirty)
        for key in sorted(published & self._grouped.keys()):
            self._desired.subjects.put(self._row(key))
        if self._cookies_changed:
            self._settle_cookies()

    # What others may ask.

    def peers(self) -> dict[Meant, frozenset[IdentityId]]:
        """Every peer that rules in force here speak of, and the identities it means now (row P427)."""
        followed = (self._selections.peers(), self._addresses.peers())
        return {peer: members for peers in followed for peer, members in peers.items()}

    def largest_peers(self) -> dict[str, int]:
        """How many identities the widest selector and the widest prefixes of rules in force here mean."""
        found = {"cluster": 0, "world": 0}
        for peer in self._speaking:
            kind = "cluster" if isinstance(peer, Selector | Inside) else "world"
            found[kind] = max(found[kind], len(self.members(peer)))
        return found

    def concerns(self) -> dict[PolicyKey, Concern]:
        """Whom each policy selects here; policies that select nobody here are left out."""
        owners = {n: key for key, (_, serials) in self._of_policy.items() for n in serials}
        found: dict[PolicyKey, set[SubjectId]] = {}
        for subject, group in self._grouped.items():
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
            identities=self._selections.index.labels(),
            port_names=self._port_names.all(),
            addresses=self._addresses.all(),
            mode=self.mode,
            audit=self.audit,
            allow_localhost=self._allow_localhost,
            cidr_nodes=self._cidr_nodes,
        )

    def review(self, limit: int = 32) -> bool:
        """Look for warnings about up to `limit` policies, those in turn about whose surroundings something
        changed; returns whether there may be more to do. Off the hot path: call it now and then."""
        inputs, desired = self._inputs, self._desired
        around = (
            *(table.revision for table in (inputs.nodes, inputs.cidr_groups, inputs.services)),
            *(table.revision for table in (inputs.endpoint_slices, inputs.remote_endpoints)),
            *(table.revision for table in (desired.identities, desired.endpoints)),
        )
        ground: Ground | None = None
        for key in list(self._review):
            if not limit:
                return True
            row = self._rule_node.rules.get(key)
            seen = (around, row)
            if row is None or self._review[key] == seen:
                continue
            if ground is None:
                ground = Ground(known_nodes(inputs.nodes, self._own), cidr_nodes=self._cidr_nodes)
            limit -= 1
            # To the end: the others get their turn before it.
            del self._review[key]
            self._review[key] = seen
            self._warn(row, review(row, self, ground))
        return False

    # What a review asks (review.Known).

    def select(self, peer: Meant) -> Set[IdentityId]:
        """The identities a peer means now, whether some rule speaks of it or not."""
        if isinstance(peer, Inside):
            return self._addresses.select(peer)
        return self._selections.index.select(peer)

    def exists(self, reference: Reference) -> bool:
        """Whether anything that a reference names is there."""
        return self._rule_node.references.exists(reference)

    # What a group asks (resolve.World).

    def members(self, peer: Meant) -> Set[IdentityId]:
        """The identities a peer in force means now."""
        if isinstance(peer, Inside):
            return self._addresses.members(peer)
        return self._selections.members(peer)

    def port_numbers(self, identity: IdentityId, name: PortName) -> frozenset[int]:
        """The numbers that endpoints of an identity give a port name."""
        return self._port_names.numbers(identity, name)

    def naming(self, name: PortName) -> Set[IdentityId]:
        """The identities some endpoint of which has a port of that name."""
        return self._port_names.naming(name)

    # Taking in what changed.

    def _take_identities(self, patches: Patches, stayed: set[IdentityId]) -> set[SubjectKey]:
        """Follow the identities; returns the local subjects that others select now, or that are called
        otherwise."""
        dirty: set[SubjectKey] = set()
        put, deleted = self._identities.take()
        for row in put:
            before = self._selections.index.get(row.id) or self._gone.pop(row.id, None)
            if before not in (None, row.labels):
                stayed.add(row.id)
            self._note(patches, row.id, self._selections.put(row.id, row.labels))
            if is_node(row.labels) and row.id != HOST:
                addresses = tuple(span.address for span in spans_of(row.id, row.labels, True))
                self._note_inside(patches, self._addresses.claim(("node", row.id), (row.id, addresses)))
        for identity in deleted:
            self._remember(identity)
            self._note(patches, identity, self._selections.remove(identity))
            self._note_inside(patches, self._addresses.claim(("node", identity), None))
        for identity in (*(row.id for row in put), *deleted):
            if identity in self._subjects_of:
                self._follow_local(identity)
                dirty |= self._subjects_of[identity]
        return dirty

    def _remember(self, identity: IdentityId) -> None:
        """Keep the labels of a number that goes: were it given to others, running flows may still name it."""
        labels = self._selections.index.get(identity)
        if labels is not None:
            self._gone[identity] = labels
            if len(self._gone) > REMEMBERED:
                del self._gone[next(iter(self._gone))]

    def _note(self, patches: Patches, identity: IdentityId, peers: Iterable[Meant]) -> None:
        for peer in peers:
            for key in self._speaking.get(peer, ()):
                patches.setdefault(key, set()).add(identity)

    def _note_inside(self, patches: Patches, changed: Iterable[tuple[IdentityId, Inside]]) -> None:
        for identity, peer in changed:
            self._note(patches, identity, (peer,))

    def _take_rules(self) -> set[SubjectKey]:
        touched: set[IdentityId] = set()
        put, deleted = self._rules.take()
        for key in deleted:
            self._review.pop(key, None)
            self._desired.policy_states.delete(key)
            touched |= self._enforce(key, ())
        for row in put:
            self._review.setdefault(row.key, None)
            before = self._desired.policy_states.get(row.key)
            self._warn(row, before.warnings if before is not None else ())
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

    def _take_addresses(
        self, local: Changes, remote: RemoteChanges, patches: Patches, stayed: set[IdentityId]
    ) -> None:
        """Follow the addresses of endpoints everywhere. One that had others before is judged anew."""
        claims: dict[Hashable, Claim | None] = dict.fromkeys((*remote[1], *local[1]))
        claims |= {(row.namespace, row.name): (row.identity, row.addresses) for row in remote[0]}
        claims |= {row.id: (row.identity, row.addresses) for row in local[0] if row.identity != HOST}
        for claimant, claim in claims.items():
            known = claim is None or claim[0] in self._addresses
            changed = self._addresses.claim(claimant, claim)
            if known:
                stayed.update(identity for identity, _ in changed)
            self._note_inside(patches, changed)

    def _take_port_names(self, local: Changes, remote: RemoteChanges) -> list[tuple[IdentityId, PortName]]:
        """Follow the names of ports everywhere; returns for whom a name now means others."""
        changed: list[tuple[IdentityId, PortName]] = []
        put, deleted = remote
        for row in put:
            changed += self._port_names.claim((row.namespace, row.name), (row.identity, row.named_ports))
        for gone in deleted:
            changed += self._port_names.claim(gone, None)
        for endpoint in local[0]:
            changed += self._port_names.claim(endpoint.id, (endpoint.identity, endpoint.named_ports))
        for identifier in local[1]:
            changed += self._port_names.claim(identifier, None)
        return changed

    def _take_endpoints(self, put: list[Endpoint], deleted: list[EndpointId]) -> set[SubjectKey]:
        """Follow which subjects have endpoints here; returns those that came."""
        if not (put or deleted):
            return set()
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
        labels = self._selections.index.get(identity)
        if labels is None:
            self._applying.remove(identity)
        else:
            self._applying.put(identity, labels)

    # Groups.

    def _regroup(self, dirty: Set[SubjectKey]) -> set[SubjectKey]:
        """Put subjects into their groups; returns the subjects whose row may differ."""
        left: set[GroupKey] = set()
        for subject in self._grouped.keys() - self._endpoints_of.keys():
            left.add(self._leave(subject))
        present = dirty & self._endpoints_of.keys()
        for subject in present:
            key = self._key(subject)
            if self._grouped.get(subject) == key:
                continue
            before = None
            if subject in self._grouped:
                before = self._leave(subject)
                left.add(before)
            if key not in self._groups:
                self._groups[key] = self._build(key, self._groups.get(before) if before else None)
            self._groups[key].users.add(subject)
            self._grouped[subject] = key
        for key in left:
            if not self._groups[key].users:
                self._dissolve(key)
        return set(present)

    def _leave(self, subject: SubjectKey) -> GroupKey:
        key = self._grouped.pop(subject)
        self._groups[key].users.remove(subject)
        return key

    def _key(self, subject: SubjectKey) -> GroupKey:
        if subject.identity not in self._applying:
            return UNKNOWN
        serials = self._applying.of(subject.identity)
        names = self._applying.names(serials) if subject.named_ports else frozenset()
        ports = tuple(port for port in subject.named_ports if port.name in names)
        return GroupKey(self._mode_of(subject.identity), self.audit or subject.audit, serials, ports)

    def _mode_of(self, identity: IdentityId) -> PolicyMode:
        """An endpoint that has no labels yet is isolated: it could be anybody."""
        labels = self._selections.index.get(identity)
        unlabelled = labels is not None and labels.has("reserved", "init")
        return PolicyMode.ALWAYS if unlabelled and self.mode is PolicyMode.DEFAULT else self.mode

    def _build(self, key: GroupKey, before: Shared | None) -> Shared:
        """Make a group; `before`: the one that some subject of it was in."""
        if key == UNKNOWN:
            group = Group((), key.mode, allow_localhost=False)
        else:
            sections = sorted((self._applying.sections[n] for n in key.serials), key=lambda row: row.ref)
            group = Group(
                sections,
                key.mode,
                audit=key.audit,
                named_ports=key.named_ports,
                allow_localhost=self._allow_localhost,
            )
        for peer in group.peers:
            if isinstance(peer, Inside):
                self._addresses.acquire(peer)
            else:
                self._selections.acquire(peer)
            self._speaking.setdefault(peer, set()).add(key)
        for name in group.names:
            self._calling.setdefault(name, set()).add(key)
        group.build(self, self._cookies, before.group if before is not None else None)
        shared = Shared(group, set())
        self._name_cookies(shared, group.cookies())
        return shared

    def _dissolve(self, key: GroupKey) -> None:
        shared = self._groups.pop(key)
        for peer in shared.group.peers:
            if isinstance(peer, Inside):
                self._addresses.release(peer)
            else:
                self._selections.release(peer)
            _discard(self._speaking, peer, key)
        for name in shared.group.names:
            _discard(self._calling, name, key)
        self._name_cookies(shared, frozenset())

    def _patch(self, patches: Patches, stayed: Set[IdentityId]) -> set[SubjectKey]:
        """Bring the entries about some identities up to date; returns the subjects whose entries changed."""
        changed: set[SubjectKey] = set()
        for key, identities in patches.items():
            shared = self._groups[key]
            before = shared.group.entries
            shared.group.patch(identities, self, self._cookies)
            if shared.group.entries is not before:
                shared.epoch += not stayed.isdisjoint(identities)
                self._name_cookies(shared, shared.group.cookies())
                changed |= shared.users
        return changed

    def _row(self, key: SubjectKey) -> SubjectPolicy:
        shared = self._groups[self._grouped[key]]
        return SubjectPolicy(
            subject=self.subjects.get(key),
            key=key,
            labels=self._selections.index.get(key.identity) or Labels(),
            rules=shared.group.rules,
            revision=self.revision,
            entries=shared.group.entries,
            ingress_enforced=shared.group.ingress_enforced,
            egress_enforced=shared.group.egress_enforced,
            epoch=shared.epoch,
        )

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

    def _settle_cookies(self) -> None:
        self._cookies_changed = False
        fresh, forgotten = self._cookies.settle(frozenset(self._cookie_users))
        for row in fresh:
            self._desired.cookies.put(row)
        for cookie in forgotten:
            self._desired.cookies.delete(cookie)

    def _warn(self, row: PolicyRules, warnings: Iterable[PolicyProblem]) -> None:
        """Say what became of a policy; what was last found by a review stands until the next one."""
        policy, parsed = row.policy, row.parsed
        found = () if parsed.problems else tuple(dict.fromkeys((*parsed.warnings, *warnings)))
        self._desired.policy_states.put(
            PolicyState(
                kind=policy.kind,
                namespace=policy.namespace,
                name=policy.name,
                resource_version=policy.resource_version,
                generation=policy.generation,
                valid=not parsed.problems,
                problems=parsed.problems,
                warnings=found,
            )
        )


def _discard(users: dict[Any, set[GroupKey]], what: Hashable, key: GroupKey) -> None:
    users[what].discard(key)
    if not users[what]:
        del users[what]
