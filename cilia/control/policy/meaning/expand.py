"""References followed: what CiliumCIDRGroups and Services stand for, and which policies depend on them.

    policies ────────────► RuleBook ──┐
    cidr_groups ─┐                    ├─► RuleNode ──► rules ──► IdentityNode, PolicyNode
    services ────┼─► References ──────┘
    endpoint_slices ┘

What a reference names need not exist: it then means nobody, and the policy is in force all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from cilia.control.policy.dialects.parse import RuleBook
from cilia.control.policy.meaning.spans import Span
from cilia.control.policy.rules import (
    Cidr,
    CidrGroup,
    Cidrs,
    Inside,
    Operator,
    Parsed,
    Peer,
    Rule,
    Section,
    Selector,
    ServicePeer,
    equals,
)
from cilia.model.labels import CLUSTER, NAMESPACE, Label, Labels
from cilia.model.policy import PolicyObject
from cilia.schema import Inputs, ServiceRow
from cilia.tables.table import Table

PolicyKey = tuple[str, str, str]
Reference = CidrGroup | ServicePeer

_NODES = frozenset({"remote-node", "host", "kube-apiserver"})


class PolicyRules(msgspec.Struct, frozen=True, kw_only=True):
    """A policy object with its rules, references followed."""

    policy: PolicyObject
    parsed: Parsed
    """As written."""
    sections: tuple[Section, ...]
    """No peer of a rule is a reference; a rule stands once for each peer its reference means."""

    @property
    def key(self) -> PolicyKey:
        return self.policy.key

    @property
    def prefixes(self) -> frozenset[str]:
        """Every CIDR prefix that some rule speaks of."""
        return Parsed(self.sections).prefixes

    @property
    def inside(self) -> frozenset[str]:
        """The prefixes by which some rule means pods and nodes."""
        peers = (rule.peer for section in self.sections for rule in section.rules)
        return frozenset(prefix for peer in peers if isinstance(peer, Inside) for prefix in peer.prefixes)

    @property
    def tells_nodes_apart(self) -> bool:
        """Whether some rule is about nodes with certain labels."""
        return any(is_about_some_nodes(rule.peer) for section in self.sections for rule in section.rules)


def is_about_some_nodes(peer: object) -> bool:
    """Whether a peer means nodes by more than being one: it could select some and not others."""
    if not isinstance(peer, Selector):
        return False
    for requirement in peer.requirements:
        of_pods = requirement.source != "reserved" and requirement.key in (NAMESPACE, CLUSTER)
        of_others = requirement.source == "reserved" and requirement.key not in _NODES
        if (of_pods or of_others) and requirement.operator in (Operator.IN, Operator.EXISTS):
            return False
    return any(requirement.source != "reserved" for requirement in peer.requirements)


def references_of(parsed: Parsed) -> frozenset[Reference]:
    """Everything a policy's rules refer to."""
    return frozenset(
        rule.peer
        for section in parsed.sections
        for rule in section.rules
        if isinstance(rule.peer, CidrGroup | ServicePeer)
    )


def expand(section: Section, follow: Callable[[Reference], tuple[Peer, ...]]) -> Section:
    """A section with the peers its references mean in their place."""
    if not any(isinstance(rule.peer, CidrGroup | ServicePeer) for rule in section.rules):
        return section
    return msgspec.structs.replace(section, rules=tuple(_expanded(section.rules, follow)))


def _expanded(rules: Iterable[Rule], follow: Callable[[Reference], tuple[Peer, ...]]) -> Iterator[Rule]:
    for rule in rules:
        if isinstance(rule.peer, CidrGroup | ServicePeer):
            for peer in follow(rule.peer):
                yield msgspec.structs.replace(rule, peer=peer)
        else:
            yield rule


class References:
    """What the references in use mean now."""

    def __init__(self, inputs: Inputs, cluster: str) -> None:
        """`cluster`: the name whose pods a Service here selects."""
        self._inputs = inputs
        self._cluster = cluster
        self._groups = inputs.cidr_groups.cursor()
        self._services = inputs.services.cursor()
        self._slices = inputs.endpoint_slices.cursor()
        self._service_of_slice: dict[tuple[str, str], tuple[str, str]] = {}
        self._meaning: dict[Reference, tuple[Peer, ...]] = {}
        self._users: dict[Reference, set[PolicyKey]] = {}

    def meaning(self, reference: Reference) -> tuple[Peer, ...]:
        """The peers that a reference means; none when what it names is not there."""
        known = self._meaning.get(reference)
        return self._follow(reference) if known is None else known

    def exists(self, reference: Reference) -> bool:
        """Whether anything it names is there."""
        if isinstance(reference, CidrGroup):
            return any(True for _ in self._named_groups(reference))
        return any(True for _ in self._named_services(reference))

    def use(self, policy: PolicyKey, before: Iterable[Reference], after: Iterable[Reference]) -> None:
        """Replace the references that a policy depends on."""
        old, new = set(before), set(after)
        for reference in old - new:
            users = self._users[reference]
            users.discard(policy)
            if not users:
                del self._users[reference], self._meaning[reference]
        for reference in new - old:
            self._users.setdefault(reference, set()).add(policy)
            if reference not in self._meaning:
                self._meaning[reference] = self._follow(reference)

    def step(self) -> set[PolicyKey]:
        """Follow the tables; returns the policies of which some reference now means others."""
        groups = self._changed_groups()
        services = self._changed_services()
        touched: set[PolicyKey] = set()
        if not (groups or services):
            return touched
        for reference, users in self._users.items():
            if _may_name(reference, groups, services):
                meaning = self._follow(reference)
                if meaning != self._meaning[reference]:
                    self._meaning[reference] = meaning
                    touched |= users
        return touched

    def _changed_groups(self) -> set[str]:
        put, deleted = self._groups.take()
        return {*(row.name for row in put), *deleted}

    def _changed_services(self) -> set[tuple[str, str]]:
        put, deleted = self._services.take()
        changed = {*((row.namespace, row.name) for row in put), *deleted}
        slices, gone = self._slices.take()
        touched = {self._service_of_slice.pop(key) for key in gone if key in self._service_of_slice}
        for row in slices:
            key, service = (row.namespace, row.name), (row.namespace, row.service)
            touched |= {service, self._service_of_slice.get(key, service)}
            self._service_of_slice[key] = service
        # A Service with a selector means pods, whatever its slices say.
        return changed | {key for key in touched if not self._selects(key)}

    def _selects(self, service: tuple[str, str]) -> bool:
        row = self._inputs.services.get(service)
        return row is None or bool(row.selector)

    def _follow(self, reference: Reference) -> tuple[Peer, ...]:
        if isinstance(reference, CidrGroup):
            prefixes = {prefix for group in self._named_groups(reference) for prefix in group}
            return _addresses(prefixes, reference.excepts)
        selectors: dict[Peer, None] = {}
        addresses: set[str] = set()
        for row in self._named_services(reference):
            if row.selector:
                selectors[self._pods(row)] = None
            else:
                for part in self._inputs.endpoint_slices.by("service", (row.namespace, row.name)):
                    addresses.update(f"{a}/{128 if ':' in a else 32}" for a in part.addresses)
        return (*sorted(selectors, key=repr), *_addresses(addresses, ()))

    def _named_groups(self, reference: CidrGroup) -> Iterator[tuple[str, ...]]:
        if reference.selector is None:
            row = self._inputs.cidr_groups.get(reference.name)
            if row is not None:
                yield row.prefixes
            return
        for row in self._inputs.cidr_groups:
            if reference.selector.matches(object_labels(row.labels)):
                yield row.prefixes

    def _named_services(self, reference: ServicePeer) -> Iterator[ServiceRow]:
        if reference.selector is None:
            row = self._inputs.services.get((reference.namespace, reference.name))
            if row is not None:
                yield row
            return
        for row in self._inputs.services:
            in_scope = reference.namespace in ("", row.namespace)
            if in_scope and reference.selector.matches(object_labels(row.labels)):
                yield row

    def _pods(self, service: ServiceRow) -> Selector:
        return Selector.of(
            [
                equals("k8s", NAMESPACE, service.namespace),
                equals("k8s", CLUSTER, self._cluster),
                *(equals("k8s", key, value) for key, value in service.selector.items()),
            ]
        )


def object_labels(labels: Mapping[str, str]) -> Labels:
    """Labels of a Kubernetes object, as selectors see them: of source k8s."""
    return Labels.of(Label("k8s", key, value) for key, value in labels.items())


def _may_name(reference: Reference, groups: set[str], services: set[tuple[str, str]]) -> bool:
    """Whether a reference could be about one of these."""
    if isinstance(reference, CidrGroup):
        return bool(groups) if reference.selector is not None else reference.name in groups
    if reference.selector is None:
        return (reference.namespace, reference.name) in services
    return any(reference.namespace in ("", namespace) for namespace, _ in services)


def _addresses(prefixes: Iterable[str], excepts: Iterable[str]) -> tuple[Peer, ...]:
    """Prefixes less exceptions as one peer; none when nothing is left. There may be tens of thousands."""
    left_out = [(Span(text), text) for text in sorted(excepts)]
    blocks: list[Cidr] = []
    for prefix in sorted(prefixes):
        inside: tuple[str, ...] = ()
        if left_out:
            span = Span(prefix)
            if any(span.within(other) for other, _ in left_out):
                continue
            inside = tuple(text for other, text in left_out if other.within(span))
        blocks.append(Cidr(prefix, inside))
    return (Cidrs(tuple(blocks)),) if blocks else ()


class RuleNode:
    """policies, cidr_groups, services, endpoint_slices -> `rules`: each policy read and expanded."""

    def __init__(self, inputs: Inputs, book: RuleBook | None = None, *, cluster: str = "default") -> None:
        self.rules: Table[PolicyKey, PolicyRules] = Table("rules", lambda row: row.key)
        self.references = References(inputs, cluster)
        self._book = book or RuleBook(cluster)
        self._policies = inputs.policies.cursor()

    def step(self) -> None:
        """Read what changed, and expand again what depends on it."""
        touched = self.references.step()
        put, deleted = self._policies.take()
        for key in deleted:
            touched.discard(key)
            self._use(key, Parsed())
            self._book.forget(key)
            self.rules.delete(key)
        for policy in put:
            touched.discard(policy.key)
            parsed = self._book.parsed(policy)
            self._use(policy.key, parsed)
            self._put(policy, parsed)
        for key in sorted(touched):
            row = self.rules.get(key)
            if row is not None and self._sections(row.parsed) != row.sections:
                self._put(row.policy, row.parsed)

    def _use(self, key: PolicyKey, parsed: Parsed) -> None:
        before = self.rules.get(key)
        self.references.use(key, references_of(before.parsed) if before else (), references_of(parsed))

    def _put(self, policy: PolicyObject, parsed: Parsed) -> None:
        self.rules.put(PolicyRules(policy=policy, parsed=parsed, sections=self._sections(parsed)))

    def _sections(self, parsed: Parsed) -> tuple[Section, ...]:
        return tuple(expand(section, self.references.meaning) for section in parsed.sections)
