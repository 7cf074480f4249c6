"""ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2) read into rules: the administrator's tiers.

Meanings are those of the API's reference: rules are heard in the order written and the first that is about a
packet decides; subjects and peers are pods, never those on the host's network; a peer of no known kind fails
closed (an Accept means nobody, a Deny or Pass becomes a denial of everything).

`networks` are addresses wherever they are, outside the cluster and inside. Packets inside know identities,
and those of alike pods may lie within a network and elsewhere. Such an identity is denied as a whole by a
Deny and not accepted by an Accept. A Pass of it is neither taken for a Pass, which would skip denials, nor
left out, which would go on to acceptances: it holds (`Action.HOLD`). 0.0.0.0/0 and ::/0 in one peer are
everybody, also those whose addresses nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterator

from cilia.control.policy.dialects.reading import Reader
from cilia.control.policy.ports import PROTOCOLS
from cilia.control.policy.rules import (
    ALL_PORTS,
    HAS_NAMESPACE,
    SCTP,
    TCP,
    UDP,
    Action,
    Cidr,
    Inside,
    Peer,
    PortName,
    PortRange,
    Ports,
    Requirement,
    Rule,
    Section,
    Selector,
    Tier,
)
from cilia.model.labels import NAMESPACE_LABELS
from cilia.model.policy import Direction
from cilia.model.resources.base import LabelSelector
from cilia.model.resources.cluster_network_policy import (
    ClusterNetworkPolicy,
    EgressPeer,
    EgressRule,
    IngressPeer,
    IngressRule,
    NamespacedPod,
    PortMatch,
    ProtocolMatch,
    Subject,
)

ACTIONS = {"Accept": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS}
TIERS = {"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE}

EVERYWHERE = frozenset({"0.0.0.0/0", "::/0"})

UNKNOWN_PEER = (
    "This version knows no such peer, so the rule {effect}: use namespaces, pods, nodes or networks."
)
UNKNOWN_PROTOCOL = (
    "This version knows no such protocol, so the rule {effect}: use tcp, udp, sctp or destinationNamedPort."
)

WITHOUT_PORT_NAMES = ("nodes", "networks", "domain_names")
"""Kinds of peers that give their ports no names."""


def read(reader: Reader, body: ClusterNetworkPolicy) -> None:
    """Add the one section a ClusterNetworkPolicy makes."""
    reader.check_scope(clusterwide=True)
    spec = body.spec
    subject = reader.subject(lambda: _subject(reader, spec.subject, "spec.subject"))
    rules: list[Rule] = []
    for number, ingress in enumerate(spec.ingress or ()):
        rules += _Rule(reader, Direction.INGRESS, ingress, f"spec.ingress[{number}]").read()
    for number, egress in enumerate(spec.egress or ()):
        rules += _Rule(reader, Direction.EGRESS, egress, f"spec.egress[{number}]").read()
    if subject is None:
        return
    reader.sections.append(
        Section(
            subject=subject,
            ref=reader.ref("spec"),
            isolates=(),
            rules=tuple(rules),
            tier=TIERS[spec.tier],
            priority=spec.priority,
            audit=reader.audit,
            refused=reader.refused(),
        )
    )


def _subject(reader: Reader, subject: Subject, path: str) -> Selector:
    given = [part for part in (subject.namespaces, subject.pods) if part is not None]
    if len(given) != 1:
        reader.refuse(path, "A subject is either namespaces or pods: give one of them.")
        return Selector()
    return Selector.of([HAS_NAMESPACE, *_pods(reader, subject.namespaces, subject.pods, path)])


def _pods(
    reader: Reader, namespaces: LabelSelector | None, pods: NamespacedPod | None, path: str
) -> list[Requirement]:
    """The requirements of one of the two ways to select pods."""
    if namespaces is not None:
        return reader.requirements(namespaces, f"{path}.namespaces", prefix=NAMESPACE_LABELS)
    if pods is None:
        return []
    where = f"{path}.pods"
    return [
        *reader.requirements(pods.namespace_selector, f"{where}.namespaceSelector", prefix=NAMESPACE_LABELS),
        *reader.requirements(pods.pod_selector, f"{where}.podSelector"),
    ]


class _Rule:
    """Reads one rule of the YAML."""

    def __init__(
        self, reader: Reader, direction: Direction, rule: IngressRule | EgressRule, path: str
    ) -> None:
        self._reader = reader
        self._direction = direction
        self._action = ACTIONS[rule.action]
        self._path = path
        self._name = rule.name or ""
        self._protocols = rule.protocols
        self._peers: tuple[IngressPeer | EgressPeer, ...]
        if isinstance(rule, IngressRule):
            self._peers, self._field = rule.from_, "from"
        else:
            self._peers, self._field = rule.to, "to"
        self._closed = False
        """Some part is unknown: a Deny or Pass then denies everything."""

    def read(self) -> list[Rule]:
        """One rule for each peer; its name is what flows say."""
        self._reader.log = self._name
        rules = self._reader.entry(self._direction, self._path, self._rules, self._action)
        self._reader.log = ""
        return rules

    def _rules(self) -> list[Rule]:
        reader = self._reader
        ports = ALL_PORTS if self._protocols is None else tuple(self._ports(self._protocols))
        rules = [
            reader.rule(self._direction, peer, where, ports, action)
            for where, peer, action in self._all_peers()
            if ports
        ]
        if self._closed and self._action is not Action.ALLOW:
            return [reader.rule(self._direction, None, self._path, action=Action.DENY)]
        return rules

    def _all_peers(self) -> Iterator[tuple[str, Peer, Action]]:
        for number, peer in enumerate(self._peers):
            where = f"{self._path}.{self._field}[{number}]"
            given = [name for name in peer.__struct_fields__ if getattr(peer, name) is not None]
            if len(given) > 1:
                self._reader.refuse(where, "A peer is of one kind only: write a list entry for each.")
            elif not given:
                self._close(where, UNKNOWN_PEER)
            else:
                self._check_names(given[0], where)
                for meant, action in self._peer(peer, where):
                    yield where, meant, action

    def _peer(self, peer: IngressPeer | EgressPeer, path: str) -> Iterator[tuple[Peer, Action]]:
        reader = self._reader
        if peer.namespaces is not None or peer.pods is not None:
            yield reader.peer_pods(_pods(reader, peer.namespaces, peer.pods, path)), self._action
        elif isinstance(peer, EgressPeer) and peer.nodes is not None:
            for nodes in reader.nodes(reader.requirements(peer.nodes, f"{path}.nodes")):
                yield nodes, self._action
        elif isinstance(peer, EgressPeer) and peer.networks is not None:
            yield from self._networks(peer.networks, f"{path}.networks")
        elif isinstance(peer, EgressPeer) and peer.domain_names is not None:
            self._refuse_names(f"{path}.domainNames")

    def _networks(self, networks: tuple[str, ...], path: str) -> Iterator[tuple[Peer, Action]]:
        found = [self._reader.cidr(text, f"{path}[{number}]") for number, text in enumerate(networks)]
        blocks = [block for block in found if block is not None]
        prefixes = tuple(sorted({block.prefix for block in blocks}))
        if EVERYWHERE.issubset(prefixes):
            yield None, self._action
            return
        for block in blocks:
            yield Cidr(block.prefix, outside=True), self._action
        if self._action is not Action.DENY and prefixes:
            yield Inside(prefixes, True), self._action
        if self._action is not Action.ALLOW and prefixes:
            hold = Action.HOLD if self._action is Action.PASS else self._action
            yield Inside(prefixes, False), hold

    def _refuse_names(self, path: str) -> None:
        if self._action is not Action.ALLOW:
            self._reader.refuse(path, "DNS names can only be accepted: use networks in this rule.")
        else:
            self._reader.unsupported(path, "DNS names are not enforced yet: use networks.")

    def _check_names(self, kind: str, path: str) -> None:
        names = any(protocol.destination_named_port is not None for protocol in self._protocols or ())
        if names and kind in WITHOUT_PORT_NAMES:
            self._reader.refuse(path, "Only pods name their ports: write numbers in this rule's protocols.")

    def _close(self, path: str, sentence: str) -> None:
        self._closed = True
        effect = "accepts nothing by it" if self._action is Action.ALLOW else "denies everything"
        self._reader.warn(path, sentence.format(effect=effect))

    # -- protocols ---------------------------------------------------------------------------------------

    def _ports(self, protocols: tuple[ProtocolMatch, ...]) -> Iterator[Ports]:
        for number, protocol in enumerate(protocols):
            where = f"{self._path}.protocols[{number}]"
            given = [name for name in protocol.__struct_fields__ if getattr(protocol, name) is not None]
            if len(given) > 1:
                self._reader.refuse(where, "An entry is about one protocol: write a list entry for each.")
            elif not given:
                self._close(where, UNKNOWN_PROTOCOL)
            else:
                yield from self._protocol(protocol, where)

    def _protocol(self, protocol: ProtocolMatch, path: str) -> Iterator[Ports]:
        if protocol.destination_named_port is not None:
            name = self._reader.port_name(protocol.destination_named_port, f"{path}.destinationNamedPort")
            for number in PROTOCOLS["ANY"]:
                yield PortName(number, name)
            return
        for number, field, match in (
            (TCP, "tcp", protocol.tcp),
            (UDP, "udp", protocol.udp),
            (SCTP, "sctp", protocol.sctp),
        ):
            if match is None:
                continue
            where = f"{path}.{field}.destinationPort"
            if match.destination_port is None:
                self._reader.refuse(where, "The entry says nothing about its protocol: give destinationPort.")
            else:
                yield self._port(number, match.destination_port, where)

    def _port(self, protocol: int, port: PortMatch, path: str) -> PortRange:
        if (port.number is None) == (port.range is None):
            self._reader.refuse(path, "A port is either a number or a range: give one of them.")
        elif port.range is not None:
            if port.range.start >= port.range.end:
                self._reader.refuse(f"{path}.range", "start must be below end: exchange them, or use number.")
            return PortRange(protocol, port.range.start, port.range.end)
        return PortRange(protocol, port.number or 0, port.number or 0)
