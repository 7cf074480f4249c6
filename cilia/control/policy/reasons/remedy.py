"""The smallest change of the policies that would allow a packet, tried before it is told.

    denied by default          add one rule to a policy that isolates, or a policy of its own
    denied by a normal rule    leave the peer out of that rule, or remove it
    denied by an admin rule    pass the packet on before that rule
    denied by a baseline rule  a policy of its own that allows and isolates nobody

Each change is made as YAML, read by the readers that read everybody's YAML, put among the facts, and the
packet is judged again; several may be needed, one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.meaning.selection import network_of
from cilia.control.policy.reasons import explain, oracle, words
from cilia.control.policy.reasons.explain import Heard, Library, Packet
from cilia.control.policy.rules import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Action,
    Cidr,
    PortRange,
    Rule,
    Section,
    Selector,
    Tier,
    equals,
)
from cilia.model.explain import Change, Remedy
from cilia.model.labels import CLUSTER, NAMESPACE, NAMESPACE_LABELS, Label
from cilia.model.policy import Direction, PolicyObject, RuleRef
from cilia.model.resources.cilium_policy import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from cilia.model.resources.network_policy import NetworkPolicy

Read = Callable[[PolicyObject], tuple[Section, ...]]
"""Reads a proposed object into sections with all references followed; none when it is refused."""

ATTEMPTS = 4
"""Changes made one after the other before giving up."""

PORTS = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}
CLUSTER_KINDS: dict[str, Any] = {
    "NetworkPolicy": NetworkPolicy,
    "CiliumNetworkPolicy": CiliumNetworkPolicy,
    "CiliumClusterwideNetworkPolicy": CiliumClusterwideNetworkPolicy,
}
API_VERSIONS = {
    "NetworkPolicy": "networking.k8s.io/v1",
    "CiliumNetworkPolicy": "cilium.io/v2",
    "CiliumClusterwideNetworkPolicy": "cilium.io/v2",
}
FLEETING = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "job-name",
        "controller-uid",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
    }
)
"""Labels that tell one replica or one roll-out from the next: no rule should depend on them."""

ENTITIES = ("host", "remote-node", "kube-apiserver", "health", "ingress", "init", "unmanaged", "world")
METADATA_NAME = "kubernetes.io/metadata.name"


class Attempt(msgspec.Struct, frozen=True):
    """A change, and the facts with it in force."""

    change: Change
    facts: Facts


def find(facts: Facts, packet: Packet, library: Library, read: Read) -> Remedy | None:
    """What would allow the packet on this side; None when nothing denies it."""
    facts, packet = unaudited(facts), _strict(packet)
    changes: list[Change] = []
    for _ in range(ATTEMPTS):
        verdict = explain.judge(facts, packet)
        if verdict.allow:
            break
        attempt = _next(facts, packet, verdict, library, read)
        if attempt is None:
            return Remedy(changes=tuple(changes)) if changes else None
        changes.append(attempt.change)
        facts = attempt.facts
    if not changes:
        return None
    return Remedy(changes=tuple(changes), verified=explain.judge(facts, packet).allow)


def unaudited(facts: Facts) -> Facts:
    """The same facts with everything enforced: a remedy is for the day audit ends."""
    sections = tuple(
        msgspec.structs.replace(section, audit=False) if section.audit else section
        for section in facts.sections
    )
    return msgspec.structs.replace(facts, sections=sections, audit=False)


def _strict(packet: Packet) -> Packet:
    return msgspec.structs.replace(packet, subject=msgspec.structs.replace(packet.subject, audit=False))


def _next(
    facts: Facts, packet: Packet, verdict: oracle.Verdict, library: Library, read: Read
) -> Attempt | None:
    """The next change towards an allow."""
    if verdict.default:
        return _allow(facts, packet, verdict, library, read)
    denying = [
        each
        for each in explain.rules_of(facts, packet)
        if not each.amiss and each.rule.ref in verdict.rules and each.rule.action is Action.DENY
    ]
    if not denying:
        return None
    match denying[0].section.tier:
        case Tier.BASELINE:
            return _own_policy(facts, packet, read, isolates=False)
        case Tier.ADMIN:
            return _pass_before(facts, packet, denying[0])
        case _:
            return _narrow(facts, packet, denying[0], library, read) or _remove(facts, denying[0], library)


# -- denied by default ----------------------------------------------------------------------------------


def _allow(
    facts: Facts, packet: Packet, verdict: oracle.Verdict, library: Library, read: Read
) -> Attempt | None:
    """A rule in the first policy that isolates and can say it, else a policy of its own."""
    for ref in sorted(verdict.rules):
        attempt = _into(facts, packet, ref, library, read)
        if attempt is not None:
            return attempt
    return _own_policy(facts, packet, read, isolates=True)


def _into(facts: Facts, packet: Packet, ref: RuleRef, library: Library, read: Read) -> Attempt | None:
    whole = library.written(ref)
    spec = words.part_of(whole, ref.path)
    if not isinstance(spec, dict) or ref.kind not in CLUSTER_KINDS:
        return None
    rule = (
        _kubernetes_rule(packet, ref.namespace)
        if ref.kind == "NetworkPolicy"
        else _cilium_rule(packet, ref.namespace)
    )
    if rule is None:
        return None
    way = explain.DIRECTIONS[packet.direction]
    selectors = {
        name: spec[name] for name in ("endpointSelector", "nodeSelector", "podSelector") if name in spec
    }
    types = {"policyTypes": [way.capitalize()]} if ref.kind == "NetworkPolicy" else {}
    sections = read(_object(ref.kind, ref.namespace, ref.name, {**selectors, **types, way: [rule]}))
    where = f"{ref.namespace}/{ref.name}" if ref.namespace else ref.name
    return _attempt(
        facts,
        packet,
        sections,
        Change(
            sentence=f"Add this rule to {ref.path}.{way} of {ref.kind} {where}:",
            yaml=words.to_yaml([rule]),
        ),
    )


def _own_policy(facts: Facts, packet: Packet, read: Read, *, isolates: bool) -> Attempt | None:
    namespace = packet.subject.labels.namespace
    rule = _cilium_rule(packet, namespace)
    if rule is None:
        return None
    way = explain.DIRECTIONS[packet.direction]
    spec: dict[str, Any] = {way: [rule]}
    if packet.subject.labels.is_host:
        spec = {"nodeSelector": {}, **spec}
    else:
        spec = {"endpointSelector": {"matchLabels": _own_labels(packet.subject)}, **spec}
    if not isolates:
        spec["enableDefaultDeny"] = {way: False}
    kind = "CiliumNetworkPolicy" if namespace else "CiliumClusterwideNetworkPolicy"
    name = _policy_name(packet)
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    document = {"apiVersion": API_VERSIONS[kind], "kind": kind, "metadata": metadata, "spec": spec}
    return _attempt(
        facts,
        packet,
        read(_object(kind, namespace, name, spec)),
        Change(sentence="Apply this policy:", yaml=words.to_yaml(document)),
    )


def _attempt(facts: Facts, packet: Packet, sections: tuple[Section, ...], change: Change) -> Attempt | None:
    """The change, if its sections are read and are for the subject."""
    if not any(section.selects(packet.subject.labels) for section in sections):
        return None
    return Attempt(change, msgspec.structs.replace(facts, sections=facts.sections + sections))


def _object(kind: str, namespace: str, name: str, spec: dict[str, Any]) -> PolicyObject:
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    body = msgspec.convert({"metadata": metadata, "spec": spec}, CLUSTER_KINDS[kind])
    return PolicyObject(kind=kind, namespace=namespace, name=name, body=body)


def _policy_name(packet: Packet) -> str:
    """Such as allow-from-client-tcp-80."""
    way = "from" if packet.direction is Direction.INGRESS else "to"
    peer = packet.peer
    who = "world"
    if peer is not None:
        labels = peer.labels
        app = labels.get("app") or labels.get("app.kubernetes.io/name") or labels.get("k8s-app")
        names = [label.key for label in labels.items if label.source == "reserved"]
        who = app or labels.namespace or (names[0] if names else "addresses")
    text = f"allow-{way}-{who}-{words.port_text(_range(packet))}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")


def _range(packet: Packet) -> PortRange:
    return PortRange(packet.protocol, packet.port, packet.port)


# -- rules as one writes them ---------------------------------------------------------------------------


def _cilium_rule(packet: Packet, namespace: str) -> dict[str, Any] | None:
    """The rule of a CiliumNetworkPolicy; `namespace`: of the policy, empty for a clusterwide one."""
    way = "from" if packet.direction is Direction.INGRESS else "to"
    peer = _cilium_peer(packet.peer, way, namespace)
    if peer is None:
        return None
    if packet.protocol in PORTS:
        port = {"port": str(packet.port), "protocol": PORTS[packet.protocol]}
        return {**peer, "toPorts": [{"ports": [port]}]}
    if packet.protocol in (ICMP, ICMPV6):
        field = {"family": "IPv4" if packet.protocol == ICMP else "IPv6", "type": packet.port}
        return {**peer, "icmps": [{"fields": [field]}]}
    return peer


def _cilium_peer(peer: Party | None, way: str, namespace: str) -> dict[str, Any] | None:
    if peer is None:
        return None
    if peer.labels.namespace:
        labels = _own_labels(peer)
        if peer.labels.namespace != namespace:
            labels[f"k8s:{NAMESPACE}"] = peer.labels.namespace
        cluster = peer.labels.get(CLUSTER)
        return {f"{way}Endpoints": [{"matchLabels": labels}]} if labels or cluster else None
    prefix = _prefix(peer)
    if prefix:
        return {f"{way}CIDR": [prefix]}
    for name in ENTITIES:
        if peer.labels.has("reserved", name):
            return {f"{way}Entities": [name]}
    return None


def _kubernetes_rule(packet: Packet, namespace: str) -> dict[str, Any] | None:
    """The rule of a NetworkPolicy, where that can say it."""
    peer = packet.peer
    if peer is None or packet.protocol not in PORTS:
        return None
    meant: dict[str, Any]
    if peer.labels.namespace:
        meant = {"podSelector": {"matchLabels": _own_labels(peer)}}
        if peer.labels.namespace != namespace:
            if peer.labels.get(NAMESPACE_LABELS + METADATA_NAME) != peer.labels.namespace:
                return None
            named = {"matchLabels": {METADATA_NAME: peer.labels.namespace}}
            meant = {"namespaceSelector": named, **meant}
    elif _prefix(peer):
        meant = {"ipBlock": {"cidr": _prefix(peer)}}
    else:
        return None
    way = "from" if packet.direction is Direction.INGRESS else "to"
    return {way: [meant], "ports": [{"protocol": PORTS[packet.protocol], "port": packet.port}]}


def _own_labels(party: Party) -> dict[str, str]:
    """The labels its author gave a pod, without those of single replicas."""
    return {
        label.key: label.value
        for label in party.labels.items
        if label.source == "k8s"
        and label.key not in FLEETING
        and label.key != NAMESPACE
        and not label.key.startswith("io.cilium.")
    }


def _prefix(peer: Party) -> str:
    """The addresses a peer outside the cluster stands for, unless it is all of them."""
    network = network_of(peer.identity, peer.labels)
    return str(network) if network is not None and network.prefixlen else ""


# -- denied by a rule -----------------------------------------------------------------------------------


def _narrow(facts: Facts, packet: Packet, denying: Heard, library: Library, read: Read) -> Attempt | None:
    """The rule that denies, without the peer."""
    ref = denying.rule.ref
    where = words.place(ref.path)
    written = words.rule_as_written(library.written(ref), ref.path)
    spec = words.part_of(library.written(ref), where.spec) if where is not None else None
    if where is None or not where.peers or not isinstance(written, dict) or not isinstance(spec, dict):
        return None
    selectors = {name: spec[name] for name in ("endpointSelector", "nodeSelector") if name in spec}
    for narrowed in _narrowings(facts, packet, denying.rule, written, where.peers):
        sections = read(_object(ref.kind, ref.namespace, ref.name, {**selectors, where.rules: [narrowed]}))
        fresh = tuple(rule for section in sections for rule in section.rules)
        if not fresh:
            continue
        changed = _with_rules(facts, denying.section, denying.rule, fresh)
        after = explain.judge(changed, packet)
        if after.allow or ref not in after.rules:
            change = Change(sentence=f"Narrow {ref.path} of {_of(ref)} to:", yaml=words.to_yaml([narrowed]))
            return Attempt(change, changed)
    return None


def _narrowings(
    facts: Facts, packet: Packet, rule: Rule, written: dict[str, Any], peers: str
) -> Iterable[dict[str, Any]]:
    """The rule with the peer left out, the least generous exception first."""
    if packet.peer is None:
        return
    if isinstance(rule.peer, Cidr):
        address = _prefix(packet.peer)
        if address and address != rule.peer.prefix:
            way = peers[: 2 if peers.startswith("to") else 4]
            rest = {name: part for name, part in written.items() if name != peers}
            excepts = [*rule.peer.excepts, address]
            yield {f"{way}CIDRSet": [{"cidr": rule.peer.prefix, "except": excepts}], **rest}
        return
    if not isinstance(rule.peer, Selector) or not peers.endswith("Endpoints"):
        return
    selector = dict(written[peers][0])
    for label in _telling(facts, rule.peer, packet.peer):
        expression = {
            "key": str(Label(label.source, label.key)),
            "operator": "NotIn",
            "values": [label.value],
        }
        fresh = {**selector, "matchExpressions": [*selector.get("matchExpressions", ()), expression]}
        yield {**written, peers: [fresh]}


def _telling(facts: Facts, meant: Selector, peer: Party) -> Sequence[Label]:
    """Labels of a peer, those that tell it best from the others that a selector means first."""
    demanded = {(part.key, part.values) for part in meant.requirements}
    own = [
        label
        for label in peer.labels.items
        if label.source == "k8s"
        and label.key not in FLEETING
        and not label.key.startswith("io.cilium.")
        and (label.key, (label.value,)) not in demanded
    ]
    members = [labels for labels in facts.identities.values() if meant.matches(labels)]
    shared = {label: sum(label in labels.items for labels in members) for label in own}
    return sorted(own, key=lambda label: (shared[label], label.key == NAMESPACE, label))


def _remove(facts: Facts, denying: Heard, library: Library) -> Attempt:
    ref = denying.rule.ref
    written = words.rule_as_written(library.written(ref), ref.path)
    change = Change(
        sentence=f"Remove {ref.path} of {_of(ref)}, or give it ports or peers that leave this packet out:",
        yaml=words.to_yaml([written] if written is not None else None),
    )
    return Attempt(change, _with_rules(facts, denying.section, denying.rule, ()))


def _pass_before(facts: Facts, packet: Packet, denying: Heard) -> Attempt | None:
    """An admin rule that hands the packet to the next tier, before the one that denies."""
    ref = denying.rule.ref
    where = words.place(ref.path)
    rule = _admin_rule(packet)
    if where is None or rule is None or packet.peer is None:
        return None
    passing = Rule(
        packet.direction,
        _exactly(packet.peer),
        (_range(packet),),
        Action.PASS,
        msgspec.structs.replace(ref, path=f"{where.rule} (new)"),
    )
    rules = denying.section.rules
    at = rules.index(denying.rule)
    # A rule of the object may be several here, one for each of its peers: the new one goes before them all.
    while at > 0 and rules[at - 1].ref.path.startswith(where.rule):
        at -= 1
    section = msgspec.structs.replace(denying.section, rules=(*rules[:at], passing, *rules[at:]))
    change = Change(
        sentence=f"Insert this rule before {where.rule} of {_of(ref)}, so that the next tier decides:",
        yaml=words.to_yaml([rule]),
    )
    return Attempt(change, _with_section(facts, denying.section, section))


def _exactly(peer: Party) -> Selector | Cidr:
    prefix = _prefix(peer)
    if prefix:
        return Cidr(prefix)
    parts = [equals("k8s", key, value) for key, value in _own_labels(peer).items()]
    return Selector.of([equals("k8s", NAMESPACE, peer.labels.namespace), *parts])


def _admin_rule(packet: Packet) -> dict[str, Any] | None:
    """A rule of a ClusterNetworkPolicy that passes the packet on, where that can say it."""
    peer = packet.peer
    if peer is None or packet.protocol not in PORTS:
        return None
    way = "from" if packet.direction is Direction.INGRESS else "to"
    meant: dict[str, Any]
    if peer.labels.namespace:
        if peer.labels.get(NAMESPACE_LABELS + METADATA_NAME) != peer.labels.namespace:
            return None
        meant = {
            "pods": {
                "namespaceSelector": {"matchLabels": {METADATA_NAME: peer.labels.namespace}},
                "podSelector": {"matchLabels": _own_labels(peer)},
            }
        }
    elif _prefix(peer) and packet.direction is Direction.EGRESS:
        meant = {"networks": [_prefix(peer)]}
    else:
        return None
    ports = [{PORTS[packet.protocol].lower(): {"destinationPort": {"number": packet.port}}}]
    return {"name": _policy_name(packet), "action": "Pass", way: [meant], "protocols": ports}


def _with_rules(facts: Facts, section: Section, old: Rule, fresh: Iterable[Rule]) -> Facts:
    """The facts with one rule of a section replaced by others."""
    at = section.rules.index(old)
    rules = (*section.rules[:at], *fresh, *section.rules[at + 1 :])
    return _with_section(facts, section, msgspec.structs.replace(section, rules=rules))


def _with_section(facts: Facts, old: Section, fresh: Section) -> Facts:
    sections = tuple(fresh if section == old else section for section in facts.sections)
    return msgspec.structs.replace(facts, sections=sections)


def _of(ref: RuleRef) -> str:
    return f"{ref.kind} {ref.namespace}/{ref.name}" if ref.namespace else f"{ref.kind} {ref.name}"
