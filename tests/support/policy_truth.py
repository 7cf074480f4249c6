"""What policies mean for one packet, read from their YAML and nothing else: the judge of the traffic tests.

Written from the API pages of the kinds, sentence by sentence, and slow. It shares no code with the policy
engine or its oracle, so that a misreading there is not repeated here. It knows what the traffic tests use.

Sources: networking.k8s.io/v1 NetworkPolicy; cilium.io/v2 CiliumNetworkPolicy, its clusterwide kind and
CiliumCIDRGroup; policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy; labels, apimachinery's LabelSelector.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]

NAMESPACE_LABEL = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."


@dataclass(frozen=True, eq=False)
class Peer:
    """An end of a packet: a pod, or with an empty namespace a host outside the cluster."""

    namespace: str
    name: str
    labels: dict[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    ports: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Name to protocol (TCP, UDP, SCTP) and number."""

    @property
    def is_pod(self) -> bool:
        """Whether policies can select it."""
        return bool(self.namespace)


@dataclass(frozen=True)
class Packet:
    """A request: what the first packet of a flow is."""

    source: Peer
    target: Peer
    protocol: str
    """TCP, UDP, SCTP or ICMP."""
    port: int
    """For ICMP the type of the request."""
    family: str
    """IPv4 or IPv6."""


@dataclass(frozen=True)
class Side:
    """One end's view of a packet."""

    packet: Packet
    ingress: bool

    @property
    def own(self) -> Peer:
        """Whose policy it is."""
        return self.packet.target if self.ingress else self.packet.source

    @property
    def other(self) -> Peer:
        """The peer of the rules."""
        return self.packet.source if self.ingress else self.packet.target

    @property
    def other_address(self) -> str:
        """The peer's address of the packet's family."""
        wanted = 6 if self.packet.family == "IPv6" else 4
        return next(one for one in self.other.addresses if ipaddress.ip_address(one).version == wanted)


@dataclass(frozen=True)
class Opinion:
    """What one policy says about one side of a packet."""

    isolates: bool = False
    allows: bool = False
    denies: bool = False


class Truth:
    """Judges packets by policies, in a cluster with these labels of namespaces, CIDR groups and Services."""

    def __init__(
        self,
        namespaces: dict[str, dict[str, str]],
        groups: Iterable[Document] = (),
        services: Iterable[Document] = (),
    ) -> None:
        """A Service without a selector has the addresses of its endpoints in a field `addresses`."""
        self._namespaces = namespaces
        self._groups = tuple(groups)
        self._services = tuple(services)

    def allows(self, policies: Iterable[Document], packet: Packet) -> bool:
        """Whether the packet gets through: both ends must let it."""
        policies = list(policies)
        return all(self.side_allows(policies, Side(packet, ingress)) for ingress in (False, True))

    def side_allows(self, policies: Iterable[Document], side: Side) -> bool:
        """Whether one end lets the packet through."""
        if not side.own.is_pod:
            return True
        policies = list(policies)
        tiered = [one for one in policies if one["kind"] == "ClusterNetworkPolicy"]
        action = self._first(tiered, "Admin", side)
        if action in ("Accept", "Deny"):
            return action == "Accept"
        opinions = [self._opinion(one, side) for one in policies if one not in tiered]
        if any(opinion.denies for opinion in opinions):
            return False
        if any(opinion.allows for opinion in opinions):
            return True
        if any(opinion.isolates for opinion in opinions):
            return False
        return self._first(tiered, "Baseline", side) != "Deny"

    def _opinion(self, policy: Document, side: Side) -> Opinion:
        if policy["kind"] == "NetworkPolicy":
            return self._kubernetes(policy, side)
        specs = [policy["spec"]] if "spec" in policy else []
        found = [self._cilium(policy, spec, side) for spec in [*specs, *policy.get("specs", [])]]
        return Opinion(
            any(one.isolates for one in found),
            any(one.allows for one in found),
            any(one.denies for one in found),
        )

    # policy.networking.k8s.io/v1alpha2

    def _first(self, policies: Iterable[Document], tier: str, side: Side) -> str:
        """The action of the tier's first rule that is about the packet, or nothing."""
        ordered = sorted(
            (one for one in policies if one["spec"]["tier"] == tier),
            key=lambda one: (one["spec"]["priority"], one["metadata"]["name"]),
        )
        for one in ordered:
            if not self._is_member(one["spec"]["subject"], side.own):
                continue
            for rule in one["spec"].get("ingress" if side.ingress else "egress", []):
                peers = rule["from" if side.ingress else "to"]
                if any(self._is_tiered_peer(peer, side) for peer in peers) and _tiered_ports(
                    rule, side.packet
                ):
                    return str(rule["action"])
        return ""

    def _is_tiered_peer(self, peer: Document, side: Side) -> bool:
        if "networks" in peer:
            address = ipaddress.ip_address(side.other_address)
            return any(address in ipaddress.ip_network(one) for one in peer["networks"])
        return side.other.is_pod and self._is_member(peer, side.other)

    def _is_member(self, member: Document, pod: Peer) -> bool:
        """Whether a pod is one that `namespaces` or `pods` names."""
        labels = self._namespaces[pod.namespace]
        if "namespaces" in member:
            return selects(member["namespaces"], labels)
        pods = member["pods"]
        return selects(pods.get("namespaceSelector", {}), labels) and selects(pods["podSelector"], pod.labels)

    # networking.k8s.io/v1

    def _kubernetes(self, policy: Document, side: Side) -> Opinion:
        spec = policy["spec"]
        if side.own.namespace != policy["metadata"]["namespace"]:
            return Opinion()
        if not selects(spec.get("podSelector", {}), side.own.labels):
            return Opinion()
        types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
        if ("Ingress" if side.ingress else "Egress") not in types:
            return Opinion()
        rules = spec.get("ingress" if side.ingress else "egress") or []
        return Opinion(isolates=True, allows=any(self._kubernetes_rule(rule, side) for rule in rules))

    def _kubernetes_rule(self, rule: Document, side: Side) -> bool:
        peers = rule.get("from" if side.ingress else "to")
        ports = rule.get("ports")
        return (not peers or any(self._kubernetes_peer(peer, side) for peer in peers)) and (
            not ports or any(_kubernetes_port(port, side.packet) for port in ports)
        )

    def _kubernetes_peer(self, peer: Document, side: Side) -> bool:
        if "ipBlock" in peer:
            block = peer["ipBlock"]
            return _in_cidr(side, block["cidr"], block.get("except", []))
        if not side.other.is_pod:
            return False
        if "namespaceSelector" in peer:
            if not selects(peer["namespaceSelector"], self._namespaces[side.other.namespace]):
                return False
        elif side.other.namespace != side.own.namespace:
            return False
        return selects(peer.get("podSelector", {}), side.other.labels)

    # cilium.io/v2

    def _cilium(self, policy: Document, spec: Document, side: Side) -> Opinion:
        home = policy["metadata"].get("namespace", "")
        if home and side.own.namespace != home:
            return Opinion()
        if not selects(_without_source(spec["endpointSelector"]), self._labels(side.own)):
            return Opinion()
        word = "ingress" if side.ingress else "egress"
        allow, deny = spec.get(word), spec.get(f"{word}Deny")
        isolates = spec.get("enableDefaultDeny", {}).get(word, bool(allow or deny))
        return Opinion(
            isolates,
            any(self._cilium_rule(rule, home, side) for rule in allow or []),
            any(self._cilium_rule(rule, home, side) for rule in deny or []),
        )

    def _cilium_rule(self, rule: Document, home: str, side: Side) -> bool:
        if not rule:
            return False
        return self._cilium_peers(rule, home, side) and _cilium_ports(rule, side.packet)

    def _cilium_peers(self, rule: Document, home: str, side: Side) -> bool:
        word = "from" if side.ingress else "to"
        fields = [name for name in rule if name.startswith(word) and name not in ("toPorts",)]
        if not fields:
            return True
        (name,) = fields
        if name == "toServices":
            return any(self._service(one, home, side) for one in rule[name])
        return any(self._cilium_peer(name.removeprefix(word), peer, home, side) for peer in rule[name])

    def _cilium_peer(self, kind: str, peer: Any, home: str, side: Side) -> bool:
        match kind:
            case "Endpoints":
                return side.other.is_pod and self._cilium_selects(peer, home, side.other)
            case "CIDR":
                return _in_cidr(side, peer, [])
            case "CIDRSet":
                return any(_in_cidr(side, one, peer.get("except", [])) for one in self._cidrs(peer))
            case "Entities":
                return _is_entity(peer, side.other)
        raise AssertionError(f"the judge does not know {kind}")

    def _service(self, peer: Document, home: str, side: Side) -> bool:
        """Pods that a named or selected Service selects, or the addresses of one that selects none."""
        wanted: Document = peer.get("k8sService") or peer["k8sServiceSelector"]
        namespace = wanted.get("namespace", home)
        for one in self._services:
            meta = one["metadata"]
            is_meant = (
                meta["name"] == wanted["serviceName"]
                if "serviceName" in wanted
                else selects(wanted["selector"], _labels_of(one))
            )
            if meta["namespace"] == namespace and is_meant and _is_behind(one, side):
                return True
        return False

    def _cidrs(self, peer: Document) -> list[str]:
        """The prefixes of one item of a set: its own, or those of the groups it names or selects."""
        if "cidr" in peer:
            return [peer["cidr"]]
        return [
            prefix
            for group in self._groups
            if peer.get("cidrGroupRef") == group["metadata"]["name"]
            or ("cidrGroupSelector" in peer and selects(peer["cidrGroupSelector"], _labels_of(group)))
            for prefix in group["spec"]["externalCIDRs"]
        ]

    def _cilium_selects(self, selector: Document, home: str, pod: Peer) -> bool:
        selector = _without_source(selector)
        speaks_of_namespaces = any(
            key == NAMESPACE_LABEL or key.startswith(NAMESPACE_LABELS) for key in _keys(selector)
        )
        if home and not speaks_of_namespaces and pod.namespace != home:
            return False
        return selects(selector, self._labels(pod))

    def _labels(self, pod: Peer) -> dict[str, str]:
        own = self._namespaces[pod.namespace]
        return {
            **pod.labels,
            NAMESPACE_LABEL: pod.namespace,
            **{NAMESPACE_LABELS + key: value for key, value in own.items()},
        }


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """LabelSelector: all of matchLabels and of matchExpressions; an empty one selects everything."""
    wanted = (selector.get("matchLabels") or {}).items()
    expressions = selector.get("matchExpressions") or []
    return all(labels.get(key) == value for key, value in wanted) and all(
        _expression(one, labels) for one in expressions
    )


def _expression(one: Document, labels: dict[str, str]) -> bool:
    key, values = one["key"], one.get("values") or []
    match one["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise AssertionError(f"no operator {one['operator']}")


def _without_source(selector: Document) -> Document:
    """The selector without the `k8s:` that label keys may begin with."""

    def bare(key: str) -> str:
        return key.removeprefix("k8s:")

    labels = {bare(key): value for key, value in (selector.get("matchLabels") or {}).items()}
    expressions = [{**one, "key": bare(one["key"])} for one in selector.get("matchExpressions") or []]
    return {"matchLabels": labels, "matchExpressions": expressions}


def _keys(selector: Document) -> Sequence[str]:
    return [*selector["matchLabels"], *(one["key"] for one in selector["matchExpressions"])]


def _in_cidr(side: Side, cidr: str, exceptions: Sequence[str]) -> bool:
    """Prefixes mean addresses outside the cluster."""
    if side.other.is_pod:
        return False
    address = ipaddress.ip_address(side.other_address)

    def within(prefix: str) -> bool:
        return address in ipaddress.ip_network(prefix)

    return within(cidr) and not any(within(one) for one in exceptions)


def _labels_of(group: Document) -> dict[str, str]:
    return dict(group["metadata"].get("labels", {}))


def _is_behind(service: Document, side: Side) -> bool:
    selector = service["spec"].get("selector")
    if not selector:
        return not side.other.is_pod and side.other_address in service["addresses"]
    same = side.other.namespace == service["metadata"]["namespace"]
    return same and selects({"matchLabels": selector}, side.other.labels)


def _tiered_ports(rule: Document, packet: Packet) -> bool:
    return "protocols" not in rule or any(_tiered_port(one, packet) for one in rule["protocols"])


def _tiered_port(one: Document, packet: Packet) -> bool:
    if "destinationNamedPort" in one:
        return packet.target.ports.get(one["destinationNamedPort"]) == (packet.protocol, packet.port)
    ((protocol, match),) = one.items()
    if packet.protocol != protocol.upper():
        return False
    port = match.get("destinationPort", {"range": {"start": 1, "end": 65535}})
    if "number" in port:
        return bool(port["number"] == packet.port)
    return packet.port in range(port["range"]["start"], port["range"]["end"] + 1)


def _is_entity(entity: str, peer: Peer) -> bool:
    """Nobody here is a node, so that their entities mean nobody."""
    return entity == "all" or entity == ("cluster" if peer.is_pod else "world")


def _kubernetes_port(port: Document, packet: Packet) -> bool:
    if packet.protocol != port.get("protocol", "TCP"):
        return False
    if "port" not in port:
        return True
    number: int | str = port["port"]
    if isinstance(number, str):
        return packet.target.ports.get(number) == (packet.protocol, packet.port)
    return packet.port in range(number, port.get("endPort", number) + 1)


def _cilium_ports(rule: Document, packet: Packet) -> bool:
    if rule.get("icmps"):
        return any(_icmp(field, packet) for icmp in rule["icmps"] for field in icmp["fields"])
    if "toPorts" not in rule:
        return True
    return any(_cilium_port(port, packet) for ports in rule["toPorts"] for port in ports["ports"])


def _cilium_port(port: Document, packet: Packet) -> bool:
    protocol = port.get("protocol", "ANY")
    if packet.protocol not in (("TCP", "UDP", "SCTP") if protocol == "ANY" else (protocol,)):
        return False
    if not str(port["port"]).isdigit():
        return packet.target.ports.get(port["port"]) == (packet.protocol, packet.port)
    first = int(port["port"])
    return first == 0 or first <= packet.port <= port.get("endPort", first)


def _icmp(one: Document, packet: Packet) -> bool:
    if packet.protocol != "ICMP" or packet.family != one.get("family", "IPv4"):
        return False
    names = {("IPv4", "EchoRequest"): 8, ("IPv6", "EchoRequest"): 128}
    number = names.get((packet.family, one["type"])) or one["type"]
    return int(number) == packet.port
