"""Answers to `cilia policy check`: what proposed policies would change, on a copy of what the agent knows.

    documents ──► objects ──► a copy of the input tables, changed ──► rules ──► facts after ─┐
    tables ──► a snapshot, taken on the event loop ──► facts before ─────────────────────────┼─► differences
    Hubble's ring ──► distinct flows of the window ──────────────────────────────────────────┘

Nothing is written anywhere. One check runs at a time; the event loop takes the snapshot and
copies flows, no more.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from cilia.api.backend import ApiError
from cilia.api.types import CheckRequest, Document
from cilia.apps.agent.ends import ONE_ADDRESS, outside_labels
from cilia.apps.agent.explain import moment
from cilia.cluster import manifests
from cilia.cluster.store import CILIUM_CIDR_GROUPS, Invalid
from cilia.control.policy.dialects.parse import RuleBook
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.meaning.expand import RuleNode
from cilia.control.policy.reasons import check
from cilia.control.policy.reasons.check import Actor, Observed
from cilia.control.policy.reasons.remedy import Read
from cilia.control.policy.rules import ICMP, ICMPV6, Cidr, Cidrs, Section
from cilia.hubble.columns import FLAG_REPLY, KIND_DROP, KIND_SOCKET, Mask, Words, address_words, sender_words
from cilia.hubble.directory import Party as Seen
from cilia.hubble.pairs import address
from cilia.hubble.store import FlowStore, Rows
from cilia.kit import threads
from cilia.kit.clock import Clock
from cilia.model.endpoint import Endpoint, RemoteEndpoint
from cilia.model.explain import CheckReport, DocumentProblem
from cilia.model.identity import (
    HOST,
    KUBE_APISERVER,
    LOCAL_CIDR_FIRST,
    LOCAL_NODE_FIRST,
    REMOTE_NODE,
    WORLD,
    WORLD_IPV4,
    WORLD_IPV6,
)
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.labels import Label, Labels
from cilia.model.node import Node
from cilia.model.policy import PolicyObject
from cilia.schema import CidrGroupRow, Desired, EndpointSliceRow, Inputs, ServiceRow
from cilia.sources import cidr_groups, policies

DAY = 86400.0
FLOWS_LIMIT = 20_000
"""Distinct flows that one check compares, the most frequent first."""
ENTITIES = (HOST, REMOTE_NODE, KUBE_APISERVER, WORLD_IPV4, WORLD_IPV6)
NO_POLICIES = frozenset(
    {"v1", "apps", "batch", "autoscaling", "policy", "rbac.authorization.k8s.io", "storage.k8s.io"}
)
"""API groups of Kubernetes without policies for the network (v1: the core group)."""
POLICY_DENIED = (133, 181)
"""Drop reasons that are policy's."""

PolicyKey = tuple[str, str, str]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What readers of policies must know."""

    cluster: str = "default"
    host_firewall: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that verdicts depend on, at one moment."""

    config: Config
    facts: Facts
    policies: tuple[PolicyObject, ...]
    groups: tuple[CidrGroupRow, ...]
    services: tuple[ServiceRow, ...]
    slices: tuple[EndpointSliceRow, ...]
    nodes: tuple[Node, ...]
    local: tuple[Endpoint, ...]
    remote: tuple[RemoteEndpoint, ...]

    def inputs(self) -> Inputs:
        """Tables of their own with these rows."""
        copy = Inputs()
        for policy in self.policies:
            copy.policies.put(policy)
        for group in self.groups:
            copy.cidr_groups.put(group)
        for service in self.services:
            copy.services.put(service)
        for part in self.slices:
            copy.endpoint_slices.put(part)
        for node in self.nodes:
            copy.nodes.put(node)
        return copy


class Proposal(msgspec.Struct, kw_only=True):
    """What would be applied and removed."""

    policies: dict[PolicyKey, PolicyObject] = {}
    groups: dict[str, CidrGroupRow] = {}
    removed: set[PolicyKey] = set()
    problems: list[DocumentProblem] = []
    others: list[str] = []
    """Kinds of objects that stand beside policies in people's files and say nothing of who reaches whom."""

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not (self.policies or self.groups or self.removed)


def snapshot(inputs: Inputs, desired: Desired, facts: Facts, config: Config) -> Snapshot:
    """Copy what is needed; on the event loop, where tables stand still."""
    return Snapshot(
        config=config,
        facts=facts,
        policies=tuple(inputs.policies),
        groups=tuple(inputs.cidr_groups),
        services=tuple(inputs.services),
        slices=tuple(inputs.endpoint_slices),
        nodes=tuple(inputs.nodes),
        local=tuple(desired.endpoints),
        remote=tuple(inputs.remote_endpoints),
    )


def reader(taken: Snapshot) -> Read:
    """Reads single proposed policies into sections, with references to what exists now."""

    def read(policy: PolicyObject) -> tuple[Section, ...]:
        copy = msgspec.structs.replace(taken, policies=(policy,))
        found = sections_of(copy.inputs(), taken.config)
        return () if any(section.refused for section in found) else found

    return read


def sections_of(inputs: Inputs, config: Config) -> tuple[Section, ...]:
    """The sections of all policies in some tables."""
    node = RuleNode(
        inputs,
        RuleBook(config.cluster, host_firewall=config.host_firewall),
        cluster=config.cluster,
    )
    node.step()
    return tuple(section for row in node.rules for section in row.sections)


class Checker:
    """Checks proposals, one at a time."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        *,
        facts: Callable[[], Facts],
        flows: FlowStore,
        config: Config,
        clock: Clock,
    ) -> None:
        self._inputs = inputs
        self._desired = desired
        self._facts = facts
        self._flows = flows
        self._config = config
        self._clock = clock
        self._busy = False

    def reader(self) -> Read:
        """A reader of single proposed policies as things are now."""
        return reader(snapshot(self._inputs, self._desired, self._facts(), self._config))

    async def check(self, request: CheckRequest) -> CheckReport:
        """The report. Raises ApiError 400, or 429 while another check runs."""
        if not 0 <= request.since <= DAY:
            raise ApiError(
                400, f"The window of flows can't be {request.since:g} s; write 0 to {DAY:.0f} seconds."
            )
        if self._busy:
            raise ApiError(429, "Another check is running; try again when it is done.")
        taken = snapshot(self._inputs, self._desired, self._facts(), self._config)
        since = int((self._clock.wall() - request.since) * 1e9)
        found = asked(self._flows, since)
        work = threads.start("policy-check", lambda: report(taken, request, recent(found)))
        self._busy = True
        work.add_done_callback(self._done)
        # Whoever asked may have gone; the thread goes on all the same.
        return await asyncio.shield(work)

    def _done(self, work: asyncio.Future[CheckReport]) -> None:
        self._busy = False
        # Looked at, or asyncio would complain of a failure that nobody waits for.
        work.exception()


def report(taken: Snapshot, request: CheckRequest, seen: Sequence[SeenFlow]) -> CheckReport:
    """Compare the policies as they are with those proposed."""
    proposal = propose(taken, request)
    if not proposal.problems:
        _check_rules(taken, proposal)
    if proposal.problems:
        return CheckReport(problems=tuple(proposal.problems))
    known = {policy.key for policy in taken.policies}
    after = facts_after(taken, proposal)
    workloads = actors(taken, after)
    observed = observe(taken, seen)
    flows = check.compare_flows(taken.facts, after, observed)
    pairs = check.compare_pairs(taken.facts, after, workloads)
    left_out = len(flows) - check.SHOWN
    notes = list(pairs.notes)
    if left_out > 0:
        notes.append(f"{left_out} more flows would change; the most frequent are shown.")
    if proposal.others:
        notes.append(_others_text(proposal.others))
    if len(seen) >= FLOWS_LIMIT:
        notes.append(f"More than {FLOWS_LIMIT} distinct flows were seen; the most frequent were compared.")
    return CheckReport(
        added=tuple(_name(key) for key in sorted(proposal.policies.keys() - known))
        + tuple(f"CiliumCIDRGroup {name}" for name in sorted(proposal.groups)),
        replaced=tuple(_name(key) for key in sorted(proposal.policies.keys() & known)),
        removed=tuple(_name(key) for key in sorted(proposal.removed)),
        flows=tuple(flows[: check.SHOWN]),
        pairs=tuple(pairs.differences),
        flows_seen=len(observed),
        pairs_judged=pairs.pairs,
        since=request.since,
        notes=tuple(notes),
    )


# -- proposals ----------------------------------------------------------------------------------------------


def propose(taken: Snapshot, request: CheckRequest) -> Proposal:
    """Read the documents and removals."""
    proposal = Proposal()
    for document in request.documents:
        _take(proposal, document)
    known = {policy.key for policy in taken.policies}
    kinds = {resource.kind for resource in policies.MODELS}
    for text in request.delete:
        parts = text.split("/")
        key = (parts[0], parts[1] if len(parts) == 3 else "", parts[-1])
        if len(parts) not in (2, 3) or parts[0] not in kinds:
            names = ", ".join(sorted(kinds))
            sentence = (
                f"{text!r} names no policy: write KIND/NAMESPACE/NAME or KIND/NAME, KIND one of {names}."
            )
            proposal.problems.append(DocumentProblem(document="--delete", sentence=sentence))
        elif key not in known:
            proposal.problems.append(
                DocumentProblem(document="--delete", sentence=f"There is no {_name(key)} to remove.")
            )
        else:
            proposal.removed.add(key)
    if proposal.empty and not proposal.problems:
        sentence = "There is no policy in what was given: name files that hold some."
        where = ", ".join(document.name for document in request.documents)
        proposal.problems.append(DocumentProblem(document=where, sentence=sentence))
    return proposal


def _take(proposal: Proposal, document: Document) -> None:
    objects, faults = manifests.parse(document.name, document.text.encode())
    for fault in faults:
        if fault.unknown and _is_of_kubernetes(fault.unknown):
            proposal.others.append(fault.unknown.rpartition(" ")[2])
        else:
            proposal.problems.append(DocumentProblem(document=fault.path, sentence=fault.sentence))
    for found in objects:
        namespace, name = found.key
        where = f"{document.name}: {found.resource.kind} {namespace}/{name}".replace(" /", " ")
        metadata = found.fields["metadata"] | ({"namespace": namespace} if namespace else {})
        raw = msgspec.Raw(msgspec.json.encode(found.fields | {"metadata": metadata}))
        if found.resource in policies.MODELS:
            row = policies.policies(found.resource).row(raw)
            assert row is not None
            row = msgspec.structs.replace(row, resource_version="proposed")
            if row.key in proposal.policies:
                sentence = "It is defined twice: remove one of the two."
                proposal.problems.append(DocumentProblem(document=where, sentence=sentence))
            proposal.policies[row.key] = row
        elif found.resource == CILIUM_CIDR_GROUPS:
            try:
                group = cidr_groups.row(raw)
            except Invalid as error:
                proposal.problems.append(DocumentProblem(document=where, sentence=str(error)))
            else:
                proposal.groups[group.name] = group
        else:
            proposal.others.append(found.resource.kind)


def _is_of_kubernetes(kind: str) -> bool:
    """Whether a kind that is not known here is one of Kubernetes's own, and no misspelt policy."""
    version, _, name = kind.partition(" ")
    return version.partition("/")[0] in NO_POLICIES or name in ("Ingress", "IngressClass")


def _others_text(kinds: Iterable[str]) -> str:
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds).items()))
    return f"Left out, since they are no policies: {counted}."


def _check_rules(taken: Snapshot, proposal: Proposal) -> None:
    """Note what the readers refuse."""
    book = RuleBook(taken.config.cluster, host_firewall=taken.config.host_firewall)
    for policy in proposal.policies.values():
        for problem in book.parsed(policy).problems:
            proposal.problems.append(
                DocumentProblem(document=_name(policy.key), path=problem.path, sentence=problem.sentence)
            )


def facts_after(taken: Snapshot, proposal: Proposal) -> Facts:
    """The facts with the proposal in force."""
    kept = {policy.key: policy for policy in taken.policies if policy.key not in proposal.removed}
    groups = {group.name: group for group in taken.groups} | proposal.groups
    copy = msgspec.structs.replace(
        taken, policies=tuple((kept | proposal.policies).values()), groups=tuple(groups.values())
    )
    return msgspec.structs.replace(taken.facts, sections=sections_of(copy.inputs(), taken.config))


def _name(key: PolicyKey) -> str:
    kind, namespace, name = key
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


# -- whom it is about ---------------------------------------------------------------------------------------


def actors(taken: Snapshot, after: Facts) -> list[Actor]:
    """Every live workload, the entities beside them, and the prefixes that rules before or after speak of."""
    facts = taken.facts
    found: dict[Party, Actor] = {}
    for endpoint in taken.local:
        if endpoint.identity in facts.identities:
            party = local_party(facts, endpoint)
            found.setdefault(party, Actor(party=party, name=endpoint.pod_name or f"endpoint {endpoint.id}"))
    for row in taken.remote:
        if row.identity in facts.identities:
            party = Party(
                identity=row.identity, labels=facts.identities[row.identity], named_ports=row.named_ports
            )
            found.setdefault(party, Actor(party=party, name=f"{row.namespace}/{row.name}"))
    for number in ENTITIES:
        labels = facts.identities.get(number)
        if labels is not None:
            party = Party(identity=number, labels=labels)
            name = next((label.key for label in labels.items if label.source == "reserved"), str(number))
            found.setdefault(party, Actor(party=party, name=name))
    known = _known_prefixes(facts)
    prefixes = dict.fromkeys((*_prefixes((*facts.sections, *after.sections)), *_api_servers(known)))
    for at, prefix in enumerate(prefixes):
        labels = outside_labels(prefix, known.get(prefix, Labels()))
        party = Party(identity=IdentityId(ONE_ADDRESS + at), labels=labels)
        found.setdefault(party, Actor(party=party, name=prefix))
    return list(found.values())


def _known_prefixes(facts: Facts) -> dict[str, Labels]:
    """The prefixes of the world that have an identity, with its labels."""
    found = {}
    for labels in facts.identities.values():
        for label in labels.items:
            if label.source == "cidr" and Label("reserved", "world") in labels.items:
                found[str(ipaddress.ip_network(label.key.replace("-", ":")))] = labels
    return found


def _api_servers(known: Mapping[str, Labels]) -> list[str]:
    """The addresses of API servers outside the cluster."""
    entity = Label("reserved", "kube-apiserver")
    return [prefix for prefix, labels in known.items() if entity in labels.items]


def local_party(facts: Facts, endpoint: Endpoint) -> Party:
    """An endpoint of this node as policy sees it."""
    return Party(
        identity=endpoint.identity,
        labels=facts.identities.get(endpoint.identity, endpoint.labels),
        named_ports=endpoint.named_ports,
        audit=endpoint.audit,
    )


def _prefixes(sections: Iterable[Section]) -> list[str]:
    found: dict[str, None] = {}
    for section in sections:
        for rule in section.rules:
            if isinstance(rule.peer, Cidr | Cidrs):
                found.update(dict.fromkeys(rule.peer.prefixes))
    return [prefix for prefix in found if prefix not in ("0.0.0.0/0", "::/0")]


# -- flows that were seen -----------------------------------------------------------------------------------


class SeenFlow(msgspec.Struct, frozen=True, kw_only=True):
    """Flows alike in ends, protocol and port."""

    source: Seen
    destination: Seen
    source_address: str
    """Of an end outside the cluster, else empty."""
    destination_address: str
    protocol: int
    port: int
    count: int
    last: int
    """Nanoseconds since the epoch."""


class Asked(NamedTuple):
    """Flows as the ring holds them, copied: who tells them apart may be another thread."""

    rows: tuple[Rows, ...]
    parties: list[Seen]


def asked(store: FlowStore, since: int) -> Asked:
    """The flows since a moment whose direction and verdict policy has a say in."""
    spans = store.spans(store.oldest, store.head)
    return Asked(
        tuple(rows.where(_asked(rows) & (rows.wall >= since)) for rows in spans), list(store.parties.values)
    )


def recent(flows_asked: Asked) -> list[SeenFlow]:
    """The distinct ones, most frequent first; a ring full of them takes a second."""
    found: dict[bytes, list[Any]] = {}
    for rows in flows_asked.rows:
        if len(rows.wall):
            _add(found, rows, flows_asked.parties)
    flows = sorted(found.values(), key=lambda item: -item[1])[:FLOWS_LIMIT]
    return [msgspec.structs.replace(flow, count=count, last=last) for flow, count, last in flows]


def _asked(rows: Rows) -> Mask:
    """Packets of whoever opened the flow, that passed or that policy dropped."""
    events = rows.events
    judged = (events["kind"] != KIND_DROP) | np.isin(events["reason"], POLICY_DENIED)
    told = judged & (events["kind"] != KIND_SOCKET) & ((events["flags"] & FLAG_REPLY) == 0)
    return np.asarray(told, np.bool_)


def _add(found: dict[bytes, list[Any]], rows: Rows, parties: Sequence[Seen]) -> None:
    events = rows.events
    icmp = np.isin(events["protocol"], (ICMP, ICMPV6))
    port = np.where(icmp, events["icmp_type"], events["destination_port"]).astype(np.uint64)
    columns: list[Words] = [
        rows.source.astype(np.uint64) << np.uint64(32) | rows.destination,
        events["protocol"].astype(np.uint64) << np.uint64(16) | port,
        *_outside(sender_words(events), events["source_identity"]),
        *_outside(address_words(events, "destination"), events["destination_identity"]),
    ]
    keys = np.stack(columns, axis=1)
    unique, first, inverse, counts = np.unique(
        keys, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    last = np.zeros(len(unique), np.int64)
    np.maximum.at(last, inverse.reshape(-1), rows.wall)
    for key, at, count, seen in zip(unique, first.tolist(), counts.tolist(), last.tolist(), strict=True):
        name = key.tobytes()
        known = found.get(name)
        if known is not None:
            known[1] += count
            known[2] = max(known[2], seen)
            continue
        flow = SeenFlow(
            source=parties[rows.source[at]],
            destination=parties[rows.destination[at]],
            source_address=address(key[2:4].tobytes()),
            destination_address=address(key[4:6].tobytes()),
            protocol=int(events["protocol"][at]),
            port=int(port[at]),
            count=0,
            last=0,
        )
        found[name] = [flow, count, seen]


def _outside(words: tuple[Words, Words], identities: Words) -> tuple[Words, Words]:
    """The halves of addresses outside the cluster; zeros for the others, whose identity says enough."""
    numbers = identities.astype(np.int64)
    outside = np.isin(numbers, (WORLD, WORLD_IPV4, WORLD_IPV6))
    outside |= (numbers >= LOCAL_CIDR_FIRST) & (numbers < LOCAL_NODE_FIRST)
    zero = np.uint64(0)
    return np.where(outside, words[0], zero), np.where(outside, words[1], zero)


def observe(taken: Snapshot, seen: Iterable[SeenFlow]) -> list[Observed]:
    """The flows with their ends as policy sees them now; those whose ends nobody knows are left out."""
    facts = taken.facts
    local = {endpoint.id: endpoint for endpoint in taken.local}
    addresses: dict[str, Actor] = {}
    known = _known_prefixes(facts)
    found = []
    for flow in seen:
        source = _actor(facts, local, addresses, known, flow.source, flow.source_address)
        destination = _actor(facts, local, addresses, known, flow.destination, flow.destination_address)
        if source is not None and destination is not None:
            found.append(
                Observed(
                    source=source,
                    destination=destination,
                    protocol=flow.protocol,
                    port=flow.port,
                    count=flow.count,
                    last_seen=moment(flow.last),
                )
            )
    return found


def _actor(
    facts: Facts,
    local: Mapping[EndpointId, Endpoint],
    addresses: dict[str, Actor],
    known: Mapping[str, Labels],
    seen: Seen,
    at: str,
) -> Actor | None:
    if at:
        actor = addresses.get(at)
        if actor is None:
            prefix = f"{at}/128" if ":" in at else f"{at}/32"
            labels = outside_labels(prefix, known.get(prefix, Labels()))
            number = IdentityId(ONE_ADDRESS + len(addresses))
            actor = addresses[at] = Actor(party=Party(identity=number, labels=labels), name=at)
        return actor
    name = f"{seen.namespace}/{seen.pod}" if seen.pod else ""
    endpoint = local.get(EndpointId(seen.id)) if seen.id else None
    if endpoint is not None and endpoint.pod_name == name:
        return Actor(party=local_party(facts, endpoint), name=name or f"endpoint {endpoint.id}")
    number = IdentityId(seen.identity)
    told = facts.identities.get(number)
    if told is None:
        return None
    reserved = next((label.key for label in told.items if label.source == "reserved"), "")
    return Actor(party=Party(identity=number, labels=told), name=name or reserved or f"identity {number}")
