"""What the readers of all dialects share: collecting refusals, selectors, prefixes, ranges of ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from cilia.control.policy.rules import (
    ALL_PORTS,
    Action,
    Cidr,
    Operator,
    Parsed,
    Peer,
    PortRange,
    Requirement,
    Rule,
    Section,
)
from cilia.model.address import IPNetwork
from cilia.model.policy import Direction, PolicyObject, PolicyProblem, RuleRef
from cilia.model.resources.base import LabelSelector


class Reader:
    """Reads one object: every complaint is noted with its path, and one complaint refuses the object."""

    def __init__(self, policy: PolicyObject, cluster: str) -> None:
        self.policy = policy
        self.cluster = cluster
        self.sections: list[Section] = []
        self._problems: list[PolicyProblem] = []

    def refuse(self, path: str, sentence: str) -> None:
        """Note why the object can't be enforced."""
        self._problems.append(PolicyProblem(path, sentence))

    def refuse_if(self, value: object, path: str, sentence: str) -> None:
        """Refuse what is present (also when empty: an empty list of something unknown has a meaning too)."""
        if value is not None:
            self.refuse(path, sentence)

    def check_scope(self, *, clusterwide: bool) -> None:
        """Refuse a namespaced policy without a namespace, which would mean every pod, and the reverse."""
        if clusterwide and self.policy.namespace:
            self.refuse("metadata.namespace", f"A {self.policy.kind} is in no namespace: remove it.")
        if not clusterwide and not self.policy.namespace:
            self.refuse("metadata.namespace", f"A {self.policy.kind} needs a namespace: give one.")

    def result(self) -> Parsed:
        """The sections, or the problems."""
        if self._problems:
            return Parsed((), tuple(dict.fromkeys(self._problems)))
        return Parsed(tuple(self.sections))

    def ref(self, path: str) -> RuleRef:
        """A reference to a part of the object."""
        policy = self.policy
        return RuleRef(policy.kind, policy.namespace, policy.name, policy.resource_version, path)

    def rule(
        self,
        direction: Direction,
        peer: Peer,
        path: str,
        ports: Iterable[PortRange] = ALL_PORTS,
        *,
        deny: bool = False,
    ) -> Rule:
        """A rule whose verdicts name `path`."""
        action = Action.DENY if deny else Action.ALLOW
        return Rule(direction, peer, tuple(ports), action, self.ref(path))

    def requirements(
        self, selector: LabelSelector, path: str, *, source: str = "k8s", prefix: str = ""
    ) -> list[Requirement]:
        """The requirements of a selector whose keys are all of one source; `prefix` goes before each key."""
        found = [
            Requirement(source, prefix + key, Operator.IN, (value,))
            for key, value in (selector.match_labels or {}).items()
        ]
        for number, expression in enumerate(selector.match_expressions or ()):
            operator = Operator(expression.operator)
            values = tuple(sorted(set(expression.values or ())))
            self._check_values(operator, values, f"{path}.matchExpressions[{number}]")
            found.append(Requirement(source, prefix + expression.key, operator, values))
        return found

    def _check_values(self, operator: Operator, values: tuple[str, ...], path: str) -> None:
        if operator in (Operator.IN, Operator.NOT_IN):
            if not values:
                self.refuse(path, f"Operator {operator} compares with values: give at least one.")
        elif values:
            self.refuse(path, f"Operator {operator} takes no values: remove them.")

    def cidr(self, text: str, path: str, excepts: Iterable[tuple[str, str]] = ()) -> Cidr | None:
        """A prefix less others, given as pairs of text and path; None after a refusal."""
        network = self._network(text, path)
        left_out: list[str] = []
        for piece, where in excepts:
            part = self._network(piece, where)
            if part is None or network is None:
                continue
            if part.version != network.version or not part.subnet_of(network):  # type: ignore[arg-type]
                self.refuse(where, f"{piece} is not within {text}: leave out only parts of the prefix.")
            left_out.append(str(part))
        return Cidr(str(network), tuple(sorted(set(left_out)))) if network is not None else None

    def _network(self, text: str, path: str) -> IPNetwork | None:
        try:
            network: IPNetwork = ipaddress.ip_network(text, strict=False)
        except ValueError:
            self.refuse(path, f"{text!r} is not a prefix: write an address, a slash and a length.")
            return None
        if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
            self.refuse(path, f"{text} is IPv4 written as IPv6: write it as an IPv4 prefix.")
            return None
        return network

    def port_range(self, protocol: int, first: int, last: int | None, path: str) -> PortRange:
        """Ports first..last, or the one port; port 0 is every port."""
        if not first:
            if last:
                self.refuse(path, "Port 0 means every port: leave endPort out, or start at port 1.")
            return PortRange(protocol)
        if last and last < first:
            self.refuse(path, f"endPort {last} is below port {first}: exchange them.")
        return PortRange(protocol, first, last or first)
