"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2) read into rules.

Meanings are those of the Cilium policy language: a namespaced policy selects subjects in its own namespace
and, unless a selector speaks of namespaces or reserved labels itself, peers too; `{}` among peers is every
pod of the own namespace (every pod, clusterwide); peers are of this cluster unless a selector speaks of
clusters; an empty peer list selects nobody; a rule that names no peer and no port allows nobody; a rule with
ports only is about everybody. With `nodeSelector` the subjects are nodes.

Source: the Cilium policy language reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache, partial
from typing import Any, TypeAlias

from cilia.control.policy.dialects import layer7
from cilia.control.policy.dialects.reading import Reader
from cilia.control.policy.ports import ICMP_PROTOCOL, PROTOCOLS, icmp_type
from cilia.control.policy.rules import (
    ALL_PORTS,
    ANY_SOURCE,
    Action,
    CidrGroup,
    Operator,
    PortName,
    PortRange,
    Ports,
    Requirement,
    Rule,
    Section,
    Selector,
    ServicePeer,
    WrittenPeer,
    equals,
    exists,
    reserved,
)
from cilia.model.labels import CLUSTER, NAMESPACE, NAMESPACE_LABELS
from cilia.model.policy import Direction
from cilia.model.resources.base import LabelSelector, camel_name
from cilia.model.resources.cilium_policy import (
    CIDRRule,
    CiliumClusterwideNetworkPolicy,
    CiliumNetworkPolicy,
    EgressDenyRule,
    EgressRule,
    ICMPRule,
    IngressDenyRule,
    IngressRule,
    PortDenyRule,
    PortProtocol,
    PortRule,
    Service,
)
from cilia.model.resources.cilium_policy import Rule as Spec

AnyRule: TypeAlias = IngressRule | IngressDenyRule | EgressRule | EgressDenyRule

IN_CLUSTER = (
    "host",
    "remote-node",
    "kube-apiserver",
    "ingress",
    "health",
    "init",
    "unmanaged",
)
"""Reserved names that entity `cluster` stands for, besides the pods of the cluster."""

UNSUPPORTED = {
    "from_requires": "fromRequires is not supported: add its labels to every selector of fromEndpoints.",
    "to_requires": "toRequires is not supported: add its labels to every selector of toEndpoints.",
    "from_groups": "Cloud groups are not supported: use fromCIDR.",
    "to_groups": "Cloud groups are not supported: use toCIDR.",
    "to_fqdns": "DNS names are not enforced yet: use toCIDR.",
}
"""Fields of rules that can't be enforced, and what to write instead."""

PEERS = ("endpoints", "entities", "cidr", "cidr_set", "nodes", "services", "fqdns", "groups")
"""Kinds of peers: in the names of fields after `from_` or `to_`."""

PORTLESS = {"VRRP": 112, "IGMP": 2}
"""Protocols without ports that toPorts takes, by number (IANA)."""

CIDR_GROUP_NAME = "io.cilium.policy.cidrgroupname/"
"""Before the name of a CiliumCIDRGroup, the key of the label of source cidrgroup that its prefixes bear."""

MAX_LOG = 32
"""Characters of spec.log.value."""

HOST_FIREWALL_OFF = "Policies for nodes are not enforced here: start the agents with --host-firewall."


def read(reader: Reader, body: CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy) -> None:
    """Add a section for `spec` and for each of `specs`."""
    reader.check_scope(clusterwide=isinstance(body, CiliumClusterwideNetworkPolicy))
    if body.spec is None and not body.specs:
        reader.refuse_whole("spec", "The policy has no rules: give spec, or specs.")
    if body.spec is not None:
        _read_spec(reader, body.spec, "spec", alone=not body.specs)
    for number, spec in enumerate(body.specs or ()):
        _read_spec(reader, spec, f"specs[{number}]", alone=body.spec is None and len(body.specs or ()) == 1)


def _read_spec(reader: Reader, spec: Spec, path: str, *, alone: bool) -> None:
    whole, nodes = "the policy" if alone else path, spec.endpoint_selector is None
    subject = reader.subject(lambda: _subject(reader, spec, path), whole)
    reader.spared = whole if nodes else ""
    reader.log = _log(reader, spec, f"{path}.log.value")
    scope = _Scope(reader, about_init=subject is not None and _has_key(subject, "reserved", "init"))
    rules: list[Rule] = []
    for number, ingress in enumerate(spec.ingress or ()):
        rules += scope.rules(Direction.INGRESS, ingress, f"{path}.ingress[{number}]")
    for number, ingress_deny in enumerate(spec.ingress_deny or ()):
        where = f"{path}.ingressDeny[{number}]"
        rules += scope.rules(Direction.INGRESS, ingress_deny, where, Action.DENY)
    for number, egress in enumerate(spec.egress or ()):
        rules += scope.rules(Direction.EGRESS, egress, f"{path}.egress[{number}]")
    for number, egress_deny in enumerate(spec.egress_deny or ()):
        where = f"{path}.egressDeny[{number}]"
        rules += scope.rules(Direction.EGRESS, egress_deny, where, Action.DENY)
    reader.log = ""
    reader.spared = ""
    refused = reader.refused()
    if subject is None or (nodes and refused):
        return
    reader.sections.append(
        Section(
            subject=subject,
            ref=reader.ref(path),
            isolates=_isolates(spec),
            rules=tuple(rules),
            audit=reader.audit or bool(spec.audit),
            nodes=nodes,
            refused=refused,
        )
    )


def _log(reader: Reader, spec: Spec, path: str) -> str:
    """The text that flows carry; none where it does not fit into them."""
    text = (spec.log.value if spec.log is not None else None) or ""
    if len(text) > MAX_LOG or not text.isprintable():
        mark = reader.mark()
        reader.refuse(path, f"This text does not fit into flows: write up to {MAX_LOG} printable characters.")
        reader.tell(mark, "flows don't carry it")
        return ""
    return text


def _subject(reader: Reader, spec: Spec, path: str) -> Selector:
    if spec.endpoint_selector is None:
        return _node_subject(reader, spec.node_selector or LabelSelector(), f"{path}.nodeSelector")
    return _pod_subject(reader, spec.endpoint_selector, f"{path}.endpointSelector")


def _node_subject(reader: Reader, selector: LabelSelector, path: str) -> Selector:
    found = _of_kubernetes(reader, selector, path)
    if reader.policy.namespace:
        reader.refuse(path, "Nodes are in no namespace: write a CiliumClusterwideNetworkPolicy.")
    elif not reader.host_firewall:
        reader.unsupported(path, HOST_FIREWALL_OFF)
    return Selector.of([exists("reserved", "host"), *found])


def _isolates(spec: Spec) -> tuple[Direction, ...]:
    """The directions in which subjects are isolated: those with rules, unless the spec says otherwise."""
    wish = spec.enable_default_deny
    ingress = bool(spec.ingress or spec.ingress_deny)
    egress = bool(spec.egress or spec.egress_deny)
    if wish is not None and wish.ingress is not None:
        ingress = wish.ingress
    if wish is not None and wish.egress is not None:
        egress = wish.egress
    return (Direction.INGRESS,) * ingress + (Direction.EGRESS,) * egress


def _pod_subject(reader: Reader, selector: LabelSelector, path: str) -> Selector:
    found = _requirements(reader, selector, path)
    namespace = reader.policy.namespace
    if not namespace:
        return Selector.of(found)
    own = (Operator.IN, (namespace,))
    named = [r for r in found if r.key == NAMESPACE and r.source in (ANY_SOURCE, "k8s")]
    if any((requirement.operator, requirement.values) != own for requirement in named):
        reader.refuse(
            path,
            f"A CiliumNetworkPolicy is about pods of its own namespace ({namespace}) only: "
            "remove the namespace, or write a CiliumClusterwideNetworkPolicy.",
        )
    return Selector.of([equals("k8s", NAMESPACE, namespace), *found])


def _requirements(reader: Reader, selector: LabelSelector, path: str) -> list[Requirement]:
    """The requirements of a selector whose keys may begin with a source (`k8s:`, `reserved:`, `any:`)."""
    found: list[Requirement] = []
    for requirement in reader.requirements(selector, path, source=ANY_SOURCE):
        source, colon, key = requirement.key.partition(":")
        found.append(
            Requirement(source, key, requirement.operator, requirement.values) if colon else requirement
        )
    return found


def _of_kubernetes(reader: Reader, selector: LabelSelector, path: str) -> list[Requirement]:
    """The requirements of a selector of objects that only have labels of Kubernetes, whether its keys say so
    (`k8s:`, `any:`) or not."""
    found = _requirements(reader, selector, path)
    other = next((r for r in found if r.source not in (ANY_SOURCE, "k8s")), None)
    if other is not None:
        reader.refuse(path, f"{other.source}:{other.key} is no label of Kubernetes: write the key alone.")
    return [Requirement("k8s", r.key, r.operator, r.values) for r in found]


def _has_key(selector: Selector, source: str, key: str) -> bool:
    return any(r.source == source and r.key == key for r in selector.requirements)


class _Scope:
    """Reads the rules of one spec."""

    def __init__(self, reader: Reader, *, about_init: bool) -> None:
        self._reader = reader
        self._about_init = about_init
        self._readers: dict[str, Callable[[Any, str], Iterator[tuple[str, WrittenPeer]]]] = {
            "endpoints": self._endpoints,
            "entities": self._entities,
            "cidr": self._cidrs,
            "cidr_set": self._cidr_sets,
            "nodes": self._nodes,
            "services": self._services,
        }
        """Of the kinds of peers that can be enforced."""

    def rules(
        self, direction: Direction, rule: AnyRule, path: str, action: Action = Action.ALLOW
    ) -> list[Rule]:
        """One rule for each peer that `rule` names; what closes in their place if it has a problem."""
        return self._reader.entry(direction, path, partial(self._read, direction, rule, path, action), action)

    def _read(self, direction: Direction, rule: AnyRule, path: str, action: Action) -> Iterator[Rule]:
        reader = self._reader
        self._refuse_unsupported(rule, path)
        ports = self._ports(rule, path, direction)
        peers = self._peers(rule, path)
        if peers is None:
            if ports is not None:
                yield reader.rule(direction, None, path, ports, action)
            return
        for where, peer in peers:
            yield reader.rule(direction, peer, where, ALL_PORTS if ports is None else ports, action)

    def _refuse_unsupported(self, rule: AnyRule, path: str) -> None:
        reader = self._reader
        for field in _unsupported_fields(type(rule)):
            value = getattr(rule, field)
            if value is not None:
                # An empty list of something unknown has a meaning, too.
                where = f"{path}.{camel_name(field)}"
                reader.unsupported(where, UNSUPPORTED[field], layer7.checks(reader, field, value, where))
        authentication = getattr(rule, "authentication", None)
        if authentication is not None and authentication.mode != "disabled":
            reader.unsupported(
                f"{path}.authentication.mode",
                "Mutual authentication is not enforced yet: set mode to disabled.",
            )

    # -- peers -------------------------------------------------------------------------------------------

    def _peers(self, rule: AnyRule, path: str) -> list[tuple[str, WrittenPeer]] | None:
        """Paths and peers of a rule; None when it names no kind of peer at all."""
        given = [
            (field, kind, peers)
            for field, kind in _peer_fields(type(rule))
            if (peers := getattr(rule, field)) is not None
        ]
        if not given:
            return None
        full = [camel_name(field) for field, _, peers in given if peers]
        if len(full) > 1:
            self._reader.refuse(path, f"{full[0]} and {full[1]} can't be in one rule: write two rules.")
        if len(full) < len(given):
            return []
        return [
            pair
            for field, kind, peers in given
            if kind in self._readers
            for pair in self._readers[kind](peers, f"{path}.{camel_name(field)}")
        ]

    def _endpoints(self, selectors: Sequence[LabelSelector], path: str) -> Iterator[tuple[str, WrittenPeer]]:
        for number, selector in enumerate(selectors):
            where = f"{path}[{number}]"
            found = _requirements(self._reader, selector, where)
            sources = {requirement.source for requirement in found}
            if sources & {"cidr", "cidrgroup"}:
                for peer in self._addresses_by_label(found, where):
                    yield where, peer
            else:
                scoped = self._scoped(found)
                yield where, scoped if scoped.requirements else None

    def _scoped(self, found: list[Requirement]) -> Selector:
        """Restrict a peer's selector to the policy's namespace, or at least to pods.

        Reserved labels are in no namespace. A policy for pods in initialisation, clusterwide, may mean
        peers without one, too.
        """
        namespace = self._reader.policy.namespace
        if any(requirement.source == "reserved" for requirement in found):
            return Selector.of(found)
        keys = [r.key for r in found if r.source in (ANY_SOURCE, "k8s")]
        if NAMESPACE in keys or any(key.startswith(NAMESPACE_LABELS) for key in keys):
            return self._reader.peer_pods(found)
        if namespace:
            return self._reader.peer_pods([equals("k8s", NAMESPACE, namespace), *found])
        return Selector.of(found) if self._about_init else self._reader.peer_pods(found)

    def _addresses_by_label(self, found: list[Requirement], path: str) -> Iterator[WrittenPeer]:
        """The prefix or the groups that labels of source cidr or cidrgroup name; nothing may stand beside."""
        reader = self._reader
        label, *others = found
        bare = not others and label.operator in (Operator.EXISTS, Operator.IN) and not any(label.values)
        if all(requirement.source == "cidrgroup" for requirement in found):
            if any(requirement.key.startswith(CIDR_GROUP_NAME) for requirement in found) and not bare:
                reader.refuse(path, "A group's name stands alone and has no value: use cidrGroupRef.")
            else:
                yield _group_by_label(found)
            return
        if not bare:
            reader.refuse(path, "A label of source cidr stands alone and has no value: use a CIDR rule.")
            return
        # Labels have no colons: IPv6 is written with dashes, and a zero before one at the end.
        peer = reader.cidr(label.key.replace("-", ":"), path)
        if peer is not None:
            yield peer

    def _entities(self, entities: Sequence[str], path: str) -> Iterator[tuple[str, WrittenPeer]]:
        for number, entity in enumerate(entities):
            where = f"{path}[{number}]"
            if entity == "all":
                yield where, None
            elif entity == "cluster":
                for name in IN_CLUSTER:
                    yield where, reserved(name)
                yield where, Selector((equals("k8s", CLUSTER, self._reader.cluster),))
            elif entity != "none":
                yield where, reserved(entity)

    def _nodes(self, selectors: Sequence[LabelSelector], path: str) -> Iterator[tuple[str, WrittenPeer]]:
        for number, selector in enumerate(selectors):
            where = f"{path}[{number}]"
            for peer in self._reader.nodes(_of_kubernetes(self._reader, selector, where)):
                yield where, peer

    def _cidrs(self, prefixes: Sequence[str], path: str) -> Iterator[tuple[str, WrittenPeer]]:
        for number, text in enumerate(prefixes):
            peer = self._reader.cidr(text, f"{path}[{number}]")
            if peer is not None:
                yield f"{path}[{number}]", peer

    def _cidr_sets(self, sets: Sequence[CIDRRule], path: str) -> Iterator[tuple[str, WrittenPeer]]:
        reader = self._reader
        for number, rule in enumerate(sets):
            where = f"{path}[{number}]"
            excepts = [(text, f"{where}.except[{n}]") for n, text in enumerate(rule.except_ or ())]
            peer: WrittenPeer
            if rule.cidr_group_ref is not None:
                peer = CidrGroup(name=rule.cidr_group_ref, excepts=reader.prefixes(excepts))
            elif rule.cidr_group_selector is not None:
                wanted = _of_kubernetes(reader, rule.cidr_group_selector, f"{where}.cidrGroupSelector")
                peer = CidrGroup(selector=Selector.of(wanted), excepts=reader.prefixes(excepts))
            else:
                peer = reader.cidr(rule.cidr or "", f"{where}.cidr", excepts)
            if peer is not None:
                yield where, peer

    def _services(self, services: Sequence[Service], path: str) -> Iterator[tuple[str, WrittenPeer]]:
        reader = self._reader
        own = reader.policy.namespace
        for number, service in enumerate(services):
            where = f"{path}[{number}]"
            named, selected = service.k8s_service, service.k8s_service_selector
            if named is None and selected is None:
                reader.refuse(where, "The entry names no Service: give k8sService or k8sServiceSelector.")
            if named is not None:
                if not named.service_name:
                    reader.refuse(f"{where}.k8sService.serviceName", "No Service is named: give its name.")
                if not (named.namespace or own):
                    reader.refuse(
                        f"{where}.k8sService.namespace",
                        "A clusterwide policy has no namespace of its own: give that of the Service.",
                    )
                yield where, ServicePeer(namespace=named.namespace or own, name=named.service_name or "")
            if selected is not None:
                found = _of_kubernetes(reader, selected.selector, f"{where}.k8sServiceSelector.selector")
                yield where, ServicePeer(namespace=selected.namespace or own, selector=Selector.of(found))

    # -- ports -------------------------------------------------------------------------------------------

    def _ports(self, rule: AnyRule, path: str, direction: Direction) -> tuple[Ports, ...] | None:
        """The ports a rule is about; None when it does not restrict them."""
        if rule.to_ports and rule.icmps:
            self._reader.refuse(f"{path}.icmps", "toPorts and icmps can't be in one rule: write two rules.")
        if rule.icmps:
            return tuple(self._icmps(rule.icmps, f"{path}.icmps"))
        if not rule.to_ports:
            return None
        found: list[Ports] = []
        groups: Sequence[PortRule | PortDenyRule] = rule.to_ports
        for number, group in enumerate(groups):
            where = f"{path}.toPorts[{number}]"
            if not group.ports:
                self._reader.refuse(
                    f"{where}.ports", "The list names no port: give ports, or leave toPorts out for all."
                )
            for index, port in enumerate(group.ports or ()):
                plain = () if port.end_port else _single(port.port, port.protocol or "ANY")
                found += plain or self._port(port, f"{where}.ports[{index}]")
            if isinstance(group, PortRule):
                layer7.read(self._reader, group, where, direction)
        return tuple(found)

    def _port(self, port: PortProtocol, path: str) -> Iterator[Ports]:
        text, protocol = port.port, port.protocol or "ANY"
        if protocol in PORTLESS:
            if text != "0" or port.end_port:
                self._reader.refuse(f"{path}.port", f"{protocol} has no ports: leave port out.")
            yield PortRange(PORTLESS[protocol])
            return
        if text.isdecimal():
            for number in PROTOCOLS[protocol]:
                yield self._reader.port_range(number, int(text), port.end_port, f"{path}.endPort")
            return
        if port.end_port:
            self._reader.refuse(
                f"{path}.endPort", "A named port has no range: write the first port's number."
            )
        name = self._reader.port_name(text.lower(), f"{path}.port")
        for number in PROTOCOLS[protocol]:
            yield PortName(number, name)

    def _icmps(self, icmps: Sequence[ICMPRule], path: str) -> Iterator[PortRange]:
        for number, icmp in enumerate(icmps):
            if not icmp.fields:
                self._reader.refuse(
                    f"{path}[{number}].fields", "The list names no ICMP type: give at least one."
                )
            for index, field in enumerate(icmp.fields or ()):
                kind = icmp_type(field.family, field.type)
                if kind is None:
                    self._reader.refuse(
                        f"{path}[{number}].fields[{index}].type",
                        f"{field.type} is no {field.family} ICMP type: correct the name or the family.",
                    )
                else:
                    yield PortRange(ICMP_PROTOCOL[field.family], kind, kind)


@cache
def _peer_fields(rule: type[AnyRule]) -> tuple[tuple[str, str], ...]:
    """The fields of a kind of rule that name peers, each with the kind of peers."""
    return tuple(
        (field, kind)
        for kind in PEERS
        for field in (f"from_{kind}", f"to_{kind}")
        if field in rule.__struct_fields__
    )


@cache
def _unsupported_fields(rule: type[AnyRule]) -> tuple[str, ...]:
    return tuple(field for field in UNSUPPORTED if field in rule.__struct_fields__)


@lru_cache(maxsize=16384)
def _single(text: str, protocol: str) -> tuple[PortRange, ...]:
    """A port as nearly all are written, a number without a range; nothing where there is more to it."""
    if not text.isdecimal():
        return ()
    number = int(text)
    return tuple(PortRange(each, number, number or 65535) for each in PROTOCOLS.get(protocol, ()))


def _group_by_label(found: list[Requirement]) -> CidrGroup:
    """The groups that labels of source cidrgroup select: one by its name, or all with those labels."""
    if len(found) == 1 and found[0].key.startswith(CIDR_GROUP_NAME):
        return CidrGroup(name=found[0].key.removeprefix(CIDR_GROUP_NAME))
    return CidrGroup(selector=Selector.of(Requirement("k8s", r.key, r.operator, r.values) for r in found))
