"""From table rows to what the REST API answers. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set

from cilia.api.types import (
    AddressPair,
    CookieView,
    EndpointIdentifiers,
    EndpointNetworking,
    EndpointPolicy,
    EndpointPolicyStatus,
    EndpointStatus,
    EndpointView,
    EntryView,
    IdentityView,
    IpEntry,
    IpMetadata,
    NamedPortView,
    NodeView,
    PolicyView,
    ProblemView,
    RealizedPolicy,
    RuleView,
    SelectorView,
)
from cilia.control.policy.facts import LOCALHOST
from cilia.control.policy.reasons import words
from cilia.control.policy.rules import Cidr, Cidrs, Inside, Meant, Section, Selector
from cilia.model.endpoint import Endpoint
from cilia.model.identity import Identity
from cilia.model.ids import Cookie, IdentityId
from cilia.model.node import IpcacheEntry, Node
from cilia.model.policy import (
    CookieRow,
    Direction,
    Entry,
    EntryFlags,
    EntryKey,
    MatchKind,
    PolicyObject,
    PolicyProblem,
    PolicyState,
    RuleRef,
    SubjectPolicy,
)

PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
"""IANA protocol numbers policies speak of."""

LabelsOf = Callable[[IdentityId], tuple[str, ...]]
RulesOf = Callable[[Cookie], CookieRow | None]


def identity_view(identity: Identity) -> IdentityView:
    """A number and its labels."""
    return IdentityView(id=identity.id, labels=tuple(identity.labels.strings()))


def enforcement(policy: SubjectPolicy | None, *, audit: bool = False) -> str:
    """Which directions are enforced, in Cilium's words. `audit`: the whole node only notes denials."""
    if policy is None:
        return "none"
    words = {
        (False, False): "none",
        (True, False): "ingress",
        (False, True): "egress",
        (True, True): "both",
    }[(policy.ingress_enforced, policy.egress_enforced)]
    return f"audit-{words}" if words != "none" and (audit or policy.key.audit) else words


def endpoint_view(
    endpoint: Endpoint,
    policy: SubjectPolicy | None,
    error: str = "",
    *,
    audit: bool = False,
    judged: bool = True,
) -> EndpointView:
    """An endpoint and the policy of its subject, where it has one yet. `audit`: of the whole node; `judged`:
    whether the policy is asked at all."""
    attachment = endpoint.attachment
    return EndpointView(
        id=endpoint.id,
        status=EndpointStatus(
            state=str(endpoint.state),
            identity=IdentityView(id=endpoint.identity, labels=tuple(endpoint.labels.strings())),
            external_identifiers=EndpointIdentifiers(
                container_id=attachment.container_id,
                pod_name=endpoint.pod_name,
                k8s_pod_name=attachment.pod,
                k8s_namespace=attachment.namespace,
                k8s_uid=attachment.pod_uid,
                netns=attachment.netns,
            ),
            networking=EndpointNetworking(
                addressing=(AddressPair(ipv4=attachment.ipv4, ipv6=attachment.ipv6),),
                interface_name=attachment.host_interface,
                interface_index=attachment.ifindex,
                container_interface_name=attachment.interface,
                mac=attachment.mac,
                host_mac=attachment.host_mac,
            ),
            policy=EndpointPolicyStatus(realized=_realized(policy, audit, judged)),
            named_ports=tuple(
                NamedPortView(name=p.name, port=p.port, protocol=p.protocol) for p in endpoint.named_ports
            ),
            error=error,
        ),
    )


def _realized(policy: SubjectPolicy | None, audit: bool, judged: bool) -> RealizedPolicy:
    if policy is None:
        return RealizedPolicy()
    return RealizedPolicy(
        policy_enabled=enforcement(policy, audit=audit) if judged else "none",
        policy_revision=policy.revision,
        subject=policy.subject,
        entries=len(policy.entries),
    )


def endpoint_policy(
    endpoint: Endpoint, policy: SubjectPolicy, labels_of: LabelsOf, rules_of: RulesOf
) -> EndpointPolicy:
    """All entries an endpoint is judged by, those that decide first on top."""
    return EndpointPolicy(
        id=endpoint.id,
        subject=policy.subject,
        revision=policy.revision,
        policy_enabled=enforcement(policy),
        entries=tuple(
            entry_view(key, policy.entries[key], labels_of, rules_of) for key in ordered(policy.entries)
        ),
    )


def ordered(entries: Mapping[EntryKey, Entry]) -> list[EntryKey]:
    """The keys of entries, by direction those that decide first on top."""
    return [
        key
        for key, _ in sorted(
            entries.items(), key=lambda item: (item[0].direction, -item[1].precedence, item[0])
        )
    ]


def entry_view(key: EntryKey, entry: Entry, labels_of: LabelsOf, rules_of: RulesOf) -> EntryView:
    """An entry in words."""
    row = rules_of(entry.cookie)
    verdict = "deny" if not entry.allow else "redirect" if entry.proxy_port else "allow"
    return EntryView(
        direction="ingress" if key.direction == Direction.INGRESS else "egress",
        peer=key.peer,
        peer_labels=labels_of(IdentityId(key.peer)) if key.peer else (),
        protocol=protocol_name(key),
        port=port_range(key),
        verdict=verdict,
        proxy_port=entry.proxy_port,
        precedence=entry.precedence,
        match=MatchKind(entry.match).name.lower().replace("_", "-"),
        audit=bool(entry.flags & EntryFlags.AUDIT),
        default=bool(entry.flags & EntryFlags.DEFAULT),
        cookie=entry.cookie,
        rules=tuple(rule_view(rule) for rule in row.rules) if row is not None else (),
    )


def protocol_name(key: EntryKey) -> str:
    """TCP, UDP, ..., a number, or any."""
    return PROTOCOLS.get(key.protocol, str(key.protocol)) if key.bits >= 8 else "any"


def port_range(key: EntryKey) -> str:
    """The ports a key covers: its port prefix as one port, first-last, or any."""
    fixed = key.bits - 8
    if fixed <= 0:
        return "any"
    span = (1 << (16 - fixed)) - 1
    first = key.port & ~span
    return str(first) if span == 0 else f"{first}-{first | span}"


def rule_view(rule: RuleRef) -> RuleView:
    """Where a rule stands."""
    return RuleView(
        kind=rule.kind,
        namespace=rule.namespace,
        name=rule.name,
        resource_version=rule.resource_version,
        path=rule.path,
    )


def cookie_view(row: CookieRow) -> CookieView:
    """A cookie and its rules."""
    return CookieView(
        cookie=row.cookie,
        default=row.default,
        logs=row.logs,
        rules=tuple(rule_view(rule) for rule in row.rules),
    )


def selectors(peers: Mapping[Meant, Set[IdentityId]], sections: Iterable[Section]) -> list[SelectorView]:
    """Each peer in force with the rules that speak of it, those that mean most on top. One that no policy
    speaks of is the built-in rule's."""
    users: dict[Meant, dict[RuleRef, None]] = {peer: {} for peer in peers}
    for section in sections:
        for rule in section.rules:
            if isinstance(rule.peer, Selector | Cidr | Cidrs | Inside) and rule.peer in users:
                users[rule.peer][rule.ref] = None
    found = [
        SelectorView(
            selector=words.peer_text(peer),
            users=tuple(rule_view(ref) for ref in sorted(users[peer]) or (LOCALHOST,)),
            identities=tuple(sorted(members)),
        )
        for peer, members in peers.items()
    ]
    return sorted(found, key=lambda view: (-len(view.identities), view.selector))


def policy_view(policy: PolicyObject, state: PolicyState | None) -> PolicyView:
    """A policy object; a state of another generation of it doesn't count."""
    if state is not None and (state.generation, state.resource_version) != (
        policy.generation,
        policy.resource_version,
    ):
        state = None
    return PolicyView(
        kind=policy.kind,
        namespace=policy.namespace,
        name=policy.name,
        uid=policy.uid,
        resource_version=policy.resource_version,
        generation=policy.generation,
        state="pending" if state is None else "valid" if state.valid else "invalid",
        problems=_problem_views(state.problems if state else ()),
        warnings=_problem_views(state.warnings if state else ()),
    )


def _problem_views(problems: Iterable[PolicyProblem]) -> tuple[ProblemView, ...]:
    return tuple(ProblemView(path=problem.path, sentence=problem.sentence) for problem in problems)


def ip_entry(entry: IpcacheEntry) -> IpEntry:
    """Who is behind a prefix."""
    return IpEntry(
        cidr=entry.prefix,
        identity=entry.identity,
        host_ip=entry.tunnel_endpoint,
        metadata=IpMetadata(source="k8s" if entry.pod else "", namespace=entry.namespace, name=entry.pod),
    )


def node_view(node: Node, local: str) -> NodeView:
    """A node; `local` is this node's name."""
    return NodeView(
        name=node.name,
        local=node.name == local,
        addresses=node.addresses,
        router_addresses=node.router_addresses,
        pod_cidrs=node.pod_cidrs,
        labels=node.labels,
    )
