"""What the readers of all dialects share: collecting refusals, selectors, prefixes, ranges of ports.

What can't be enforced closes, rule by rule. A section isolates as written as soon as its subject can be read;
a rule with a problem allows nothing, or denies everybody (`Reader.entry`). Only where nobody can say whom it
is about has an object no effect at all (`Reader.refuse_whole`, `Reader.subject`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from cilia.control.policy.rules import (
    ALL_PORTS,
    ANY_SOURCE,
    HAS_NAMESPACE,
    Action,
    Cidr,
    Operator,
    Parsed,
    PortRange,
    Ports,
    Refused,
    Requirement,
    Rule,
    Section,
    Selector,
    WrittenPeer,
    equals,
    exists,
)
from cilia.model.address import IPNetwork
from cilia.model.labels import CLUSTER, NAMESPACE
from cilia.model.policy import Direction, PolicyObject, PolicyProblem, RuleRef
from cilia.model.resources.base import LabelSelector

AUDIT_ANNOTATION = "policy.cilia.io/audit"
"""On a policy, "true": it decides nothing, and what it would have denied is noted."""

_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9](-?[a-z0-9])*")
"""A service name of IANA (RFC 6335) as Kubernetes takes it: small letters, digits, single dashes."""

MAX_PORT_NAME = 15

_PREFIX = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?")
"""An address with the length of a prefix: neither a mask of bits nor a zone."""

SOURCES = frozenset({"k8s", "reserved", "cidr", "cidrgroup", ANY_SOURCE})
"""Of labels that somebody here may carry, or that selectors know."""

_KEY = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?")
"""What a label's key consists of; nobody carries another."""


class Mark(NamedTuple):
    """How much had been noted at some moment."""

    problems: int
    unsupported: int


class Reader:
    """Reads one object: every complaint is noted with its path and with what holds until it is mended."""

    def __init__(
        self, policy: PolicyObject, cluster: str = "default", *, host_firewall: bool = False
    ) -> None:
        self.policy = policy
        self.cluster = cluster
        self.host_firewall = host_firewall
        """Whether policies for nodes are enforced."""
        self.sections: list[Section] = []
        self.log = ""
        """What the flows say that the rules read now decide about."""
        self.spared = ""
        """What has no effect as soon as one rule of it has a problem: the policy of a node, which might shut
        out the word that it was mended. Empty: rules close one by one."""
        self._problems: list[PolicyProblem] = []
        self._unsupported: list[PolicyProblem] = []
        self._warnings: list[PolicyProblem] = []
        self._refused: list[Refused] = []
        self._void = False
        """The object has no effect at all."""
        self._aimless = False
        """The section read now has no effect, since its subject can't be read."""
        self.audit = self._audited()
        """Whether the object as a whole is in audit."""

    def refuse(self, path: str, sentence: str) -> None:
        """Note why this part can't be enforced by anybody."""
        self._problems.append(PolicyProblem(path, sentence))

    def refuse_whole(self, path: str, sentence: str) -> None:
        """Note why the object has no effect: nobody can say whom it is about."""
        self._void = True
        self.refuse(path, f"{sentence} {_until('the policy has no effect')}")

    def warn(self, path: str, sentence: str) -> None:
        """Note where the object may not mean what its author had in mind."""
        self._warnings.append(PolicyProblem(path, sentence))

    def unsupported(self, path: str, sentence: str, check: Callable[[], None] | None = None) -> None:
        """Note what can't be enforced here, unless `check` finds something wrong with it anyway."""
        before = len(self._problems)
        if check is not None:
            check()
        if len(self._problems) == before:
            self._unsupported.append(PolicyProblem(path, sentence))

    def check_scope(self, *, clusterwide: bool) -> None:
        """Refuse a namespaced policy without a namespace, which would mean every pod, and the reverse."""
        if clusterwide and self.policy.namespace:
            self.refuse_whole("metadata.namespace", f"A {self.policy.kind} is in no namespace: remove it.")
        if not clusterwide and not self.policy.namespace:
            self.refuse_whole("metadata.namespace", f"A {self.policy.kind} needs a namespace: give one.")

    def result(self) -> Parsed:
        """What is in force, and the problems: first what is wrong, then what is only not enforced here."""
        problems = tuple(dict.fromkeys([*self._problems, *self._unsupported]))
        sections = () if self._void else tuple(self.sections)
        return Parsed(sections, problems, tuple(dict.fromkeys(self._warnings)) if sections else ())

    # -- what holds until a problem is mended --------------------------------------------------------------

    def mark(self) -> Mark:
        """To tell later what was noted since."""
        return Mark(len(self._problems), len(self._unsupported))

    def tell(self, mark: Mark, effect: str) -> PolicyProblem | None:
        """Add to everything noted since `mark` what holds until then; returns the first of it, as noted."""
        if self.mark() == mark:
            return None
        since = [*self._problems[mark.problems :], *self._unsupported[mark.unsupported :]]
        if effect:
            self._problems[mark.problems :] = _told(self._problems[mark.problems :], effect)
            self._unsupported[mark.unsupported :] = _told(self._unsupported[mark.unsupported :], effect)
        return since[0]

    def subject(self, read: Callable[[], Selector], whole: str = "the policy") -> Selector | None:
        """Whom the section read now is about; None where that is unclear, and `whole` has no effect."""
        mark = self.mark()
        found = read()
        self._aimless = self.tell(mark, "" if self._void else f"{whole} has no effect") is not None
        return None if self._aimless else found

    def entry(
        self,
        direction: Direction,
        path: str,
        read: Callable[[], Iterable[Rule]],
        action: Action = Action.ALLOW,
    ) -> list[Rule]:
        """The rules of one entry of a list; if `read` notes a problem, what closes in their place."""
        mark = self.mark()
        rules = list(read())
        closed = "denies everybody" if action is not Action.ALLOW else "allows nothing"
        closing = f"{self.spared} has no effect" if self.spared else f"the rule {closed}"
        effect = "" if self._void or self._aimless else closing
        problem = self.tell(mark, effect)
        if problem is None:
            return rules
        stand_in = self.rule(direction, None, path, action=Action.DENY)
        self._refused.append(Refused(direction, action, stand_in.ref, problem))
        return [stand_in] if action is not Action.ALLOW else []

    def refused(self) -> tuple[Refused, ...]:
        """What was refused since this was last asked."""
        found, self._refused = tuple(self._refused), []
        return found

    def _audited(self) -> bool:
        text = self.policy.annotations.get(AUDIT_ANNOTATION, "false")
        if text not in ("true", "false"):
            self.warn(
                f"metadata.annotations[{AUDIT_ANNOTATION}]",
                f'{text!r} switches nothing, the policy is enforced: write "true" or "false".',
            )
        return text == "true"

    # -- rules -------------------------------------------------------------------------------------------

    def ref(self, path: str) -> RuleRef:
        """A reference to a part of the object."""
        policy = self.policy
        return RuleRef(policy.kind, policy.namespace, policy.name, policy.resource_version, path)

    def rule(
        self,
        direction: Direction,
        peer: WrittenPeer,
        path: str,
        ports: Iterable[Ports] = ALL_PORTS,
        action: Action = Action.ALLOW,
    ) -> Rule:
        """A rule whose verdicts name `path`."""
        policy = self.policy
        ref = RuleRef(policy.kind, policy.namespace, policy.name, policy.resource_version, path, self.log)
        return Rule(direction, peer, tuple(ports), action, ref)

    # -- selectors ---------------------------------------------------------------------------------------

    def requirements(
        self, selector: LabelSelector, path: str, *, source: str = "k8s", prefix: str = ""
    ) -> list[Requirement]:
        """The requirements of a selector whose keys are all of one source; `prefix` goes before each key."""
        found: list[Requirement] = []
        for key, value in (selector.match_labels or {}).items():
            if not _is_key(key):
                self._check_key(key, f"{path}.matchLabels[{key[:60]}]", sources=source == ANY_SOURCE)
            found.append(Requirement(source, prefix + key, Operator.IN, (value,)))
        for number, expression in enumerate(selector.match_expressions or ()):
            operator = Operator(expression.operator)
            values = tuple(sorted(set(expression.values or ())))
            where = f"{path}.matchExpressions[{number}]"
            self._check_key(expression.key, f"{where}.key", sources=source == ANY_SOURCE)
            self._check_values(operator, values, where)
            found.append(Requirement(source, prefix + expression.key, operator, values))
        return found

    def _check_key(self, text: str, path: str, *, sources: bool) -> None:
        """A key that nobody can carry would silently make a rule about nobody, or about everybody."""
        source, colon, key = text.partition(":") if sources else ("", "", text)
        if not _is_key(key if colon else text):
            self.refuse(path, f"{text[:60]!r} is no label's key: use letters, digits, '.', '-', '_' and '/'.")
        elif colon and source not in SOURCES:
            self.warn(path, f"Nobody has labels of source {source[:60]!r}: write k8s:{key}, or {key} alone.")

    def _check_values(self, operator: Operator, values: tuple[str, ...], path: str) -> None:
        if operator in (Operator.IN, Operator.NOT_IN):
            if not values:
                self.refuse(path, f"Operator {operator} compares with values: give at least one.")
        elif values:
            self.refuse(path, f"Operator {operator} takes no values: remove them.")

    def peer_pods(self, found: Iterable[Requirement]) -> Selector:
        """Pods as peers: of this cluster, unless the requirements speak of clusters themselves."""
        wanted = list(found)
        keys = {(r.source, r.key) for r in wanted if r.operator is Operator.IN}
        if ("k8s", NAMESPACE) not in keys:
            wanted.append(HAS_NAMESPACE)
        if all(requirement.key != CLUSTER for requirement in wanted):
            wanted.append(equals("k8s", CLUSTER, self.cluster))
        return Selector.of(wanted)

    @staticmethod
    def nodes(found: Iterable[Requirement]) -> tuple[Selector, Selector]:
        """Nodes by label as peers: the others, and this one."""
        found = list(found)
        return (
            Selector.of([exists("reserved", "remote-node"), *found]),
            Selector.of([exists("reserved", "host"), *found]),
        )

    # -- addresses and ports -----------------------------------------------------------------------------

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

    def prefixes(self, texts: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """Prefixes given as pairs of text and path, each once, in their one spelling."""
        networks = (self._network(text, where) for text, where in texts)
        return tuple(sorted({str(network) for network in networks if network is not None}))

    def _network(self, text: str, path: str) -> IPNetwork | None:
        try:
            network: IPNetwork | None = ipaddress.ip_network(text, strict=False)
        except ValueError:
            network = None
        if network is None or not _PREFIX.fullmatch(text):
            self.refuse(path, f"{text[:60]!r} is not a prefix: write an address, a slash and a length.")
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

    def port_name(self, text: str, path: str) -> str:
        """The name of a port, checked: a name that no container can give its port selects nothing."""
        if len(text) > MAX_PORT_NAME or not _PORT_NAME.fullmatch(text):
            self.refuse(
                path,
                f"{text[:60]!r} is no name of a port: write a number, or up to {MAX_PORT_NAME} small "
                "letters, digits and single dashes, at least one letter.",
            )
        return text


@lru_cache(maxsize=4096)
def _is_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def _until(effect: str) -> str:
    return f"Until then {effect}."


def _told(problems: Iterable[PolicyProblem], effect: str) -> list[PolicyProblem]:
    return [PolicyProblem(problem.path, f"{problem.sentence} {_until(effect)}") for problem in problems]
