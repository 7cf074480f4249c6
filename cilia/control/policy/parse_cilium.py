"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2) read into rules.

Meanings are those of the Cilium policy language: a namespaced policy selects subjects in its own namespace
and, unless a selector speaks of namespaces or reserved labels itself, peers too; `{}` among peers is every
pod of the own namespace (every pod, clusterwide); an empty peer list selects nobody; a rule that names no
peer and no port allows nobody; a rule with ports only is about everybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from cilia.control.policy.ports import ICMP_PROTOCOL, PROTOCOLS, icmp_type
from cilia.control.policy.reading import Reader
from cilia.control.policy.rules import (
    ALL_PORTS,
    ANY_SOURCE,
    HAS_NAMESPACE,
    Operator,
    Peer,
    PortRange,
    Requirement,
    Rule,
    Section,
    Selector,
    equals,
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
    "from_nodes": "Selecting nodes by label is not supported yet: use entity remote-node.",
    "to_nodes": "Selecting nodes by label is not supported yet: use entity remote-node.",
    "to_services": "Services as peers are not supported yet: select their pods with toEndpoints.",
    "to_fqdns": "DNS names are not supported yet: use toCIDR.",
}
"""Fields of rules that can't be enforced, and what to write instead."""

PROXIED = ("rules", "terminating_tls", "originating_tls", "server_names", "listener")
"""Fields of port rules that need a proxy."""

NO_PROXY = "Application-layer rules are not supported yet: remove this part, or keep to ports."


def read(reader: Reader, body: CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy) -> None:
    """Add a section for `spec` and for each of `specs`."""
    reader.check_scope(clusterwide=isinstance(body, CiliumClusterwideNetworkPolicy))
    if body.spec is None and not body.specs:
        reader.refuse("spec", "The policy has no rules: give spec, or specs.")
    if body.spec is not None:
        _read_spec(reader, body.spec, "spec")
    for number, spec in enumerate(body.specs or ()):
        _read_spec(reader, spec, f"specs[{number}]")


def _read_spec(reader: Reader, spec: Spec, path: str) -> None:
    if spec.endpoint_selector is None:
        reader.refuse(
            f"{path}.nodeSelector", "Policies for nodes are not supported yet: use endpointSelector."
        )
        return
    subject = _subject(reader, spec.endpoint_selector, f"{path}.endpointSelector")
    scope = _Scope(reader, about_init=_has_key(subject, "reserved", "init"))
    rules: list[Rule] = []
    for number, ingress in enumerate(spec.ingress or ()):
        rules += scope.rules(Direction.INGRESS, ingress, f"{path}.ingress[{number}]")
    for number, ingress_deny in enumerate(spec.ingress_deny or ()):
        rules += scope.rules(Direction.INGRESS, ingress_deny, f"{path}.ingressDeny[{number}]", deny=True)
    for number, egress in enumerate(spec.egress or ()):
        rules += scope.rules(Direction.EGRESS, egress, f"{path}.egress[{number}]")
    for number, egress_deny in enumerate(spec.egress_deny or ()):
        rules += scope.rules(Direction.EGRESS, egress_deny, f"{path}.egressDeny[{number}]", deny=True)
    reader.sections.append(
        Section(subject=subject, ref=reader.ref(path), isolates=_isolates(spec), rules=tuple(rules))
    )


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


def _subject(reader: Reader, selector: LabelSelector, path: str) -> Selector:
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
        if not colon:
            found.append(requirement)
            continue
        if source == "cidr":
            reader.refuse(path, "Selectors of cidr: labels are not supported: use a CIDR rule.")
        found.append(Requirement(source, key, requirement.operator, requirement.values))
    return found


def _has_key(selector: Selector, source: str, key: str) -> bool:
    return any(r.source == source and r.key == key for r in selector.requirements)


class _Scope:
    """Reads the rules of one spec."""

    def __init__(self, reader: Reader, *, about_init: bool) -> None:
        self._reader = reader
        self._about_init = about_init

    def rules(self, direction: Direction, rule: AnyRule, path: str, *, deny: bool = False) -> Iterator[Rule]:
        """One rule for each peer that `rule` names."""
        self._refuse_unsupported(rule, path)
        ports = self._ports(rule, path)
        peers = self._peers(rule, path)
        if peers is None:
            if ports is not None:
                yield self._reader.rule(direction, None, path, ports, deny=deny)
            return
        for where, peer in peers:
            yield self._reader.rule(direction, peer, where, ALL_PORTS if ports is None else ports, deny=deny)

    def _refuse_unsupported(self, rule: AnyRule, path: str) -> None:
        for field, sentence in UNSUPPORTED.items():
            self._reader.refuse_if(getattr(rule, field, None), f"{path}.{camel_name(field)}", sentence)
        authentication = getattr(rule, "authentication", None)
        if authentication is not None and authentication.mode != "disabled":
            self._reader.refuse(
                f"{path}.authentication.mode",
                "Mutual authentication is not supported yet: set mode to disabled.",
            )

    def _peers(self, rule: AnyRule, path: str) -> list[tuple[str, Peer]] | None:
        """Paths and peers of a rule; None when it names no kind of peer at all."""
        if isinstance(rule, IngressRule | IngressDenyRule):
            side = "from"
            endpoints, entities = rule.from_endpoints, rule.from_entities
            cidrs, sets = rule.from_cidr, rule.from_cidr_set
        else:
            side = "to"
            endpoints, entities = rule.to_endpoints, rule.to_entities
            cidrs, sets = rule.to_cidr, rule.to_cidr_set
        given = {
            f"{side}Endpoints": endpoints,
            f"{side}Entities": entities,
            f"{side}CIDR": cidrs,
            f"{side}CIDRSet": sets,
        }
        if all(peers is None for peers in given.values()):
            return None
        full = [name for name, peers in given.items() if peers]
        if len(full) > 1:
            self._reader.refuse(path, f"{full[0]} and {full[1]} can't be in one rule: write two rules.")
        if any(peers == () for peers in given.values()):
            return []
        return [
            *self._endpoints(endpoints or (), f"{path}.{side}Endpoints"),
            *self._entities(entities or (), f"{path}.{side}Entities"),
            *self._cidrs(cidrs or (), f"{path}.{side}CIDR"),
            *self._cidr_sets(sets or (), f"{path}.{side}CIDRSet"),
        ]

    def _endpoints(self, selectors: Sequence[LabelSelector], path: str) -> Iterator[tuple[str, Peer]]:
        for number, selector in enumerate(selectors):
            where = f"{path}[{number}]"
            scoped = self._scoped(_requirements(self._reader, selector, where))
            yield where, scoped if scoped.requirements else None

    def _scoped(self, found: list[Requirement]) -> Selector:
        """Restrict a peer's selector to the policy's namespace, or at least to pods.

        Reserved labels are in no namespace. A policy for pods in initialisation, clusterwide, may mean
        peers without one, too.
        """
        if any(requirement.source == "reserved" for requirement in found):
            return Selector.of(found)
        keys = [r.key for r in found if r.source in (ANY_SOURCE, "k8s")]
        if NAMESPACE in keys:
            return Selector.of([HAS_NAMESPACE, *found])
        if any(key.startswith(NAMESPACE_LABELS) for key in keys):
            return Selector.of([HAS_NAMESPACE, *found])
        if self._reader.policy.namespace:
            return Selector.of([equals("k8s", NAMESPACE, self._reader.policy.namespace), *found])
        return Selector.of(found if self._about_init else [HAS_NAMESPACE, *found])

    def _entities(self, entities: Sequence[str], path: str) -> Iterator[tuple[str, Peer]]:
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

    def _cidrs(self, prefixes: Sequence[str], path: str) -> Iterator[tuple[str, Peer]]:
        for number, text in enumerate(prefixes):
            peer = self._reader.cidr(text, f"{path}[{number}]")
            if peer is not None:
                yield f"{path}[{number}]", peer

    def _cidr_sets(self, sets: Sequence[CIDRRule], path: str) -> Iterator[tuple[str, Peer]]:
        for number, rule in enumerate(sets):
            where = f"{path}[{number}]"
            if rule.cidr is None:
                self._reader.refuse(
                    f"{where}.cidrGroupRef", "CIDR groups are not supported yet: write the prefixes here."
                )
                continue
            excepts = ((text, f"{where}.except[{n}]") for n, text in enumerate(rule.except_ or ()))
            peer = self._reader.cidr(rule.cidr, f"{where}.cidr", excepts)
            if peer is not None:
                yield where, peer

    def _ports(self, rule: AnyRule, path: str) -> tuple[PortRange, ...] | None:
        """The ranges a rule is about; None when it does not restrict them."""
        if rule.to_ports and rule.icmps:
            self._reader.refuse(f"{path}.icmps", "toPorts and icmps can't be in one rule: write two rules.")
        if rule.icmps:
            return tuple(self._icmps(rule.icmps, f"{path}.icmps"))
        if not rule.to_ports:
            return None
        ranges: list[PortRange] = []
        groups: Sequence[PortRule | PortDenyRule] = rule.to_ports
        for number, group in enumerate(groups):
            where = f"{path}.toPorts[{number}]"
            self._refuse_proxy(group, where)
            if not group.ports:
                self._reader.refuse(
                    f"{where}.ports", "The list names no port: give ports, or leave toPorts out for all."
                )
            for index, port in enumerate(group.ports or ()):
                ranges += self._port(port, f"{where}.ports[{index}]")
        return tuple(ranges)

    def _port(self, port: PortProtocol, path: str) -> Iterator[PortRange]:
        if not port.port.isdigit():
            self._reader.refuse(f"{path}.port", "Named ports are not supported yet: write the number.")
            return
        for protocol in PROTOCOLS[port.protocol or "ANY"]:
            yield self._reader.port_range(protocol, int(port.port), port.end_port, f"{path}.endPort")

    def _refuse_proxy(self, group: PortRule | PortDenyRule, path: str) -> None:
        for field in PROXIED:
            self._reader.refuse_if(getattr(group, field, None), f"{path}.{camel_name(field)}", NO_PROXY)

    def _icmps(self, icmps: Sequence[ICMPRule], path: str) -> Iterator[PortRange]:
        for number, icmp in enumerate(icmps):
            for index, field in enumerate(icmp.fields or ()):
                kind = icmp_type(field.family, field.type)
                if kind is None:
                    self._reader.refuse(
                        f"{path}[{number}].fields[{index}].type",
                        f"{field.type} is no {field.family} ICMP type: correct the name or the family.",
                    )
                else:
                    yield PortRange(ICMP_PROTOCOL[field.family], kind, kind)
