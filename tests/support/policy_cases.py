"""Random policies, identities and packets, seeded: material for comparing engine, kernel and oracle.

`scenario(seed)` makes a small cluster with a few policies of all kinds; `World` runs the control nodes over
it; `cases()` asks the oracle about packets. The same seed gives the same material. `policy_random` makes
rules that no object can express, without readers and tables.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec

from cilia.control.identity import IdentityNode
from cilia.control.policy.dialects.parse import RuleBook
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.meaning.expand import RuleNode
from cilia.control.policy.node import PolicyNode
from cilia.control.policy.reasons import oracle
from cilia.control.policy.rules import ICMP, ICMPV6, SCTP, TCP, UDP
from cilia.model.endpoint import Attachment, Endpoint, NamedPort, RemoteEndpoint
from cilia.model.identity import Identity
from cilia.model.ids import EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.policy import Direction, PolicyMode, PolicyObject, SubjectPolicy
from cilia.model.resources.cilium_policy import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from cilia.model.resources.cluster_network_policy import ClusterNetworkPolicy
from cilia.model.resources.network_policy import NetworkPolicy
from cilia.schema import CidrGroupRow, Desired, EndpointSliceRow, Inputs, ServiceRow

KINDS = {
    "NetworkPolicy": NetworkPolicy,
    "CiliumNetworkPolicy": CiliumNetworkPolicy,
    "CiliumClusterwideNetworkPolicy": CiliumClusterwideNetworkPolicy,
    "ClusterNetworkPolicy": ClusterNetworkPolicy,
}
CLUSTERWIDE = ("CiliumClusterwideNetworkPolicy", "ClusterNetworkPolicy")
AUDIT = "policy.cilia.io/audit"
NAMESPACES = ("red", "blue")
APPS = ("web", "db", "job")
PREFIXES = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "::/0", "2001:db8::/32")
EXCEPTS = {
    "0.0.0.0/0": ("10.0.0.0/8", "192.0.2.0/24"),
    "10.0.0.0/8": ("10.1.0.0/16", "10.1.2.3/32"),
    "10.1.0.0/16": ("10.1.2.0/24", "10.1.2.3/32"),
    "::/0": ("2001:db8::/32",),
}
PORTS = (1, 22, 79, 80, 81, 443, 8000, 8080, 8443, 32767, 32768, 65535)
PROTOCOLS = (TCP, UDP, SCTP, ICMP, ICMPV6)
PORTLESS = (2, 47, 50, 112)
PORT_NAMES = ("http", "dns")
ADDRESSES = ("10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.9.9", "192.0.2.1", "2001:db8::8")
"""Of pods: what matters is which prefixes they are in."""
GROUPS = {"lan": ("10.1.0.0/16", "2001:db8::/32"), "one": ("10.1.2.3/32",), "none": ()}


def policy(
    kind: str, name: str, spec: dict[str, Any], namespace: str = "red", *, audit: bool = False
) -> PolicyObject:
    """A policy object of `kind` from its spec as one writes it in YAML."""
    if kind in CLUSTERWIDE:
        namespace = ""
    metadata = {"name": name, "namespace": namespace}
    return PolicyObject(
        kind=kind,
        namespace=namespace,
        name=name,
        resource_version="7",
        annotations={AUDIT: "true"} if audit else {},
        body=msgspec.convert({"metadata": metadata, "spec": spec}, KINDS[kind]),
    )


def pod(number: int, namespace: str, app: str, tier: str = "", *, team: str = "a") -> Identity:
    """The identity of pods with these labels."""
    own = {"app": app} | ({"tier": tier} if tier else {})
    return Identity(IdentityId(number), Labels.kubernetes(namespace, own, {"team": team}))


def endpoint(
    number: int, identity: int, *named_ports: NamedPort, audit: bool = False, ipv4: str = "", ipv6: str = ""
) -> Endpoint:
    """An endpoint that speaks for an identity."""
    attachment = Attachment(
        id=EndpointId(number),
        container_id=str(number),
        interface="eth0",
        netns="",
        host_interface="",
        ifindex=number,
        mac="",
        host_mac="",
        ipv4=ipv4,
        ipv6=ipv6,
    )
    return Endpoint(
        attachment=attachment,
        identity=IdentityId(identity),
        named_ports=tuple(sorted(named_ports)),
        audit=audit,
    )


PODS = [
    pod(300 + 10 * n + 3 * a + t, namespace, app, tier, team=namespace[0])
    for n, namespace in enumerate(NAMESPACES)
    for a, app in enumerate(APPS)
    for t, tier in enumerate(("", "front"))
]


class World:
    """The inputs, and the control nodes this room is about."""

    def __init__(
        self, mode: PolicyMode = PolicyMode.DEFAULT, restored: dict[EndpointId, SubjectId] | None = None
    ) -> None:
        self.inputs = Inputs()
        self.desired = Desired()
        self.book = RuleBook()
        self.rules = RuleNode(self.inputs, self.book)
        self.identities = IdentityNode(self.inputs, self.desired, self.rules)
        self.policies = PolicyNode(self.inputs, self.desired, self.rules, mode=mode, restored=restored)

    def step(self) -> World:
        """Let control see what changed."""
        self.rules.step()
        self.identities.step()
        self.policies.step(Revision(self.inputs.policies.revision))
        return self

    def subject(self, identity: int) -> SubjectPolicy:
        """The row of a local identity."""
        (row,) = [row for row in self.desired.subjects if row.identity == identity]
        return row

    def judge(self, subject: SubjectPolicy, peer: Identity | None, *packet: Any) -> oracle.Verdict:
        """The oracle's answer over what is present; a subject nobody knows is cut off."""
        return _judge(self.policies.facts(), subject, peer, *packet)


def _judge(facts: Facts, subject: SubjectPolicy, peer: Identity | None, *packet: Any) -> oracle.Verdict:
    key = subject.key
    if key.identity not in facts.identities:
        return oracle.Verdict(False, frozenset(), default=True)
    own = Party(identity=key.identity, labels=subject.labels, named_ports=key.named_ports, audit=key.audit)
    other = Party(identity=peer.id, labels=peer.labels) if peer is not None else None
    return oracle.judge(facts, own, other, *packet)


def scenario(seed: int) -> World:
    """A cluster with two to seven random policies, half of its pods on this node, one of them twice."""
    rng = random.Random(seed)
    world = World()
    inputs = world.inputs
    inputs.cidr_groups.replace(
        CidrGroupRow(name=n, labels={"kind": n}, prefixes=p) for n, p in GROUPS.items()
    )
    inputs.services.replace(
        [
            ServiceRow(namespace="red", name="web", labels={"app": "web"}, selector={"app": "web"}),
            ServiceRow(namespace="red", name="lan", labels={"app": "lan"}),
        ]
    )
    inputs.endpoint_slices.put(
        EndpointSliceRow(namespace="red", name="lan-1", service="lan", addresses=("10.1.2.3",))
    )
    for number, identity in enumerate(PODS):
        inputs.cluster_identities.put(identity)
        if number % 2:
            world.desired.endpoints.put(random_endpoint(rng, number, identity.id))
        else:
            inputs.remote_endpoints.put(_remote(rng, number, identity.id))
    world.desired.endpoints.put(random_endpoint(rng, 99, PODS[1].id))
    for number in range(rng.randint(2, 7)):
        inputs.policies.put(random_policy(rng, f"p{number}"))
    world.policies.mode = rng.choices(list(PolicyMode), (10, 1, 1))[0]
    world.policies.audit = rng.random() < 0.1
    return world.step()


def random_endpoint(rng: random.Random, number: int, identity: int) -> Endpoint:
    """An endpoint with named ports of its own, perhaps in audit."""
    ipv4, ipv6 = rng.choice(ADDRESSES), rng.choice(("", "2001:db8::7", "2001:db9::7"))
    named = _named_ports(rng)
    return endpoint(number, identity, *named, audit=rng.random() < 0.15, ipv4=ipv4, ipv6=ipv6)


def _named_ports(rng: random.Random) -> list[NamedPort]:
    count = rng.choice((0, 1, 2))
    return [
        NamedPort(rng.choice(PORT_NAMES), rng.choice(PORTS), rng.choice(("TCP", "UDP"))) for _ in range(count)
    ]


def _remote(rng: random.Random, number: int, identity: IdentityId) -> RemoteEndpoint:
    return RemoteEndpoint(
        namespace="red",
        name=f"far-{number}",
        identity=identity,
        node_ip="172.18.0.3",
        addresses=tuple(rng.sample(ADDRESSES, rng.randint(1, 2))),
        named_ports=tuple(sorted(_named_ports(rng))),
    )


def change(world: World, rng: random.Random) -> None:
    """One random event: a policy, identity, endpoint, reference or switch comes, changes or goes."""
    what, identity = rng.randrange(7), rng.choice(PODS)
    inputs, endpoints = world.inputs, world.desired.endpoints
    if what == 0:
        inputs.policies.put(random_policy(rng, f"p{rng.randrange(4)}"))
    elif what == 1:
        kept = list(inputs.policies)
        if kept:
            inputs.policies.delete(rng.choice(kept).key)
    elif what == 2:
        if not inputs.cluster_identities.delete(identity.id):
            inputs.cluster_identities.put(identity)
    elif what == 3:
        if not endpoints.delete(EndpointId(int(identity.id))):
            endpoints.put(random_endpoint(rng, identity.id, identity.id))
    elif what == 4:
        inputs.remote_endpoints.put(_remote(rng, rng.randrange(4), identity.id))
    elif what == 5:
        prefixes = tuple(rng.sample(PREFIXES, rng.randint(0, 3)))
        name = rng.choice(tuple(GROUPS))
        inputs.cidr_groups.put(CidrGroupRow(name=name, labels={"kind": name}, prefixes=prefixes))
    else:
        world.policies.mode = rng.choice(list(PolicyMode))
        world.policies.audit = rng.random() < 0.3


Case = tuple[SubjectPolicy, Identity | None, Direction, int, int, oracle.Verdict]


def cases(world: World, seed: int, count: int) -> Iterator[Case]:
    """Random packets and what the oracle says: subject, peer, direction, protocol, port, verdict."""
    rng = random.Random(seed)
    facts = world.policies.facts()
    subjects = list(world.desired.subjects)
    peers: list[Identity | None] = [*world.desired.identities, None]
    for _ in range(count):
        subject, peer = rng.choice(subjects), rng.choice(peers)
        packet = rng.choice(list(Direction)), *_random_packet(rng)
        yield subject, peer, *packet, _judge(facts, subject, peer, *packet)


def _random_packet(rng: random.Random) -> tuple[int, int]:
    protocol = rng.choice((*PROTOCOLS, TCP, UDP, rng.choice(PORTLESS)))
    return protocol, random_port(rng, protocol)


def random_port(rng: random.Random, protocol: int) -> int:
    """A port near those that policies speak of, or any; an ICMP type."""
    if protocol in PORTLESS:
        return 0
    if protocol in (ICMP, ICMPV6):
        return rng.choice((0, 8, 128, 129))
    return rng.choice((*PORTS, rng.randrange(65536)))


def random_policy(rng: random.Random, name: str) -> PolicyObject:
    """A policy of any kind, always enforceable."""
    kind, spec = random_spec(rng)
    return policy(kind, name, spec, rng.choice(NAMESPACES), audit=rng.random() < 0.15)


def random_spec(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """The kind of a policy, and its spec as one writes it."""
    kind = rng.choice(tuple(KINDS))
    make = {"NetworkPolicy": _kubernetes, "ClusterNetworkPolicy": _tiered}.get(kind, _cilium)
    return kind, make(rng)


def _some(rng: random.Random, make: Any, most: int = 3) -> list[Any]:
    return [make(rng) for _ in range(rng.randint(0, most))]


def _selector(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        (
            {},
            {"matchLabels": {"app": rng.choice(APPS)}},
            {"matchLabels": {"app": rng.choice(APPS), "tier": "front"}},
            {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": [rng.choice(APPS)]}]},
            {"matchExpressions": [{"key": "tier", "operator": rng.choice(("Exists", "DoesNotExist"))}]},
            {"matchExpressions": [{"key": "app", "operator": "In", "values": rng.sample(APPS, 2)}]},
        )
    )


def _block(rng: random.Random) -> dict[str, Any]:
    prefix = rng.choice(PREFIXES)
    excepts = EXCEPTS.get(prefix, ())
    left_out = rng.sample(excepts, rng.randint(0, len(excepts)))
    return {"cidr": prefix} | ({"except": left_out} if left_out else {})


def _kubernetes(rng: random.Random) -> dict[str, Any]:
    def peer(rng: random.Random) -> dict[str, Any]:
        team = {"matchLabels": {"team": rng.choice("rb")}}
        return rng.choice(
            (
                {"podSelector": _selector(rng)},
                {"namespaceSelector": rng.choice(({}, team))},
                {"namespaceSelector": team, "podSelector": _selector(rng)},
                {"ipBlock": _block(rng)},
            )
        )

    def port(rng: random.Random) -> dict[str, Any]:
        first = rng.choice(PORTS)
        return rng.choice(
            (
                {"protocol": rng.choice(("TCP", "UDP", "SCTP"))},
                {"port": first},
                {"port": rng.choice(PORT_NAMES), "protocol": rng.choice(("TCP", "UDP"))},
                {"port": first, "endPort": rng.randint(first, 65535), "protocol": "UDP"},
            )
        )

    def rules(side: str) -> list[dict[str, Any]]:
        return _some(rng, lambda rng: {side: _some(rng, peer), "ports": _some(rng, port)})

    spec: dict[str, Any] = {"podSelector": _selector(rng), "ingress": rules("from"), "egress": rules("to")}
    types = rng.choice((None, ["Ingress"], ["Egress"], ["Ingress", "Egress"]))
    return spec | ({"policyTypes": types} if types else {})


def _cilium(rng: random.Random) -> dict[str, Any]:
    def endpoints(rng: random.Random) -> dict[str, Any]:
        other = {"matchLabels": {"k8s:io.kubernetes.pod.namespace": rng.choice(NAMESPACES)}}
        return rng.choice((_selector(rng), _selector(rng), other, {"matchLabels": {"reserved:host": ""}}))

    def entity(rng: random.Random) -> str:
        return rng.choice(("all", "world", "cluster", "host", "remote-node", "none", "kube-apiserver"))

    def port(rng: random.Random) -> dict[str, Any]:
        first = rng.choice(PORTS)
        protocol = rng.choice(("TCP", "UDP", "SCTP", "ANY"))
        return rng.choice(
            (
                {"port": "0", "protocol": protocol},
                {"port": str(first), "protocol": protocol},
                {"port": rng.choice(PORT_NAMES), "protocol": protocol},
                {"port": str(first), "endPort": rng.randint(first, 65535), "protocol": protocol},
            )
        )

    def block(rng: random.Random) -> dict[str, Any]:
        name = rng.choice(tuple(GROUPS))
        group = {"cidrGroupRef": name}, {"cidrGroupSelector": {"matchLabels": {"kind": name}}}
        return rng.choice((_block(rng), _block(rng), *group))

    def service(rng: random.Random) -> dict[str, Any]:
        name = rng.choice(("web", "lan", "none"))
        chosen = {"selector": {"matchLabels": {"app": name}}, "namespace": "red"}
        named = {"serviceName": name, "namespace": "red"}
        return rng.choice(({"k8sService": named}, {"k8sServiceSelector": chosen}))

    def rule(side: str, rng: random.Random) -> dict[str, Any]:
        if side == "to" and rng.random() < 0.15:
            return {"toServices": [service(rng)]}
        made: dict[str, Any] = rng.choice(
            (
                {},
                {f"{side}Endpoints": _some(rng, endpoints)},
                {f"{side}Entities": _some(rng, entity)},
                {f"{side}CIDR": [rng.choice(PREFIXES)]},
                {f"{side}CIDRSet": _some(rng, block)},
            )
        )
        ports = [{"ports": [port(rng) for _ in range(rng.randint(1, 3))]}]
        kind = rng.choice((8, 128, "EchoRequest"))
        family = "IPv6" if kind == 128 else "IPv4"
        return made | rng.choice(
            ({}, {"toPorts": ports}, {"icmps": [{"fields": [{"type": kind, "family": family}]}]})
        )

    spec: dict[str, Any] = {"endpointSelector": _selector(rng)}
    for field, side in (("ingress", "from"), ("egress", "to")):
        if rng.random() < 0.7:
            spec[field] = _some(rng, lambda rng, side=side: rule(side, rng))
        if rng.random() < 0.3:
            spec[f"{field}Deny"] = _some(rng, lambda rng, side=side: rule(side, rng), 2)
    if rng.random() < 0.2:
        spec["enableDefaultDeny"] = {rng.choice(("ingress", "egress")): rng.random() < 0.5}
    if rng.random() < 0.15:
        spec |= {"audit": True, "log": {"value": "noted"}}
    return spec


def _tiered(rng: random.Random) -> dict[str, Any]:
    """The spec of a ClusterNetworkPolicy."""

    def somewhere(rng: random.Random) -> dict[str, Any]:
        team = rng.choice(({}, {"matchLabels": {"team": rng.choice("rb")}}))
        return rng.choice(
            ({"namespaces": team}, {"pods": {"namespaceSelector": team, "podSelector": _selector(rng)}})
        )

    def destination(rng: random.Random) -> dict[str, Any]:
        some = rng.choice((["0.0.0.0/0", "::/0"], rng.sample(PREFIXES, rng.randint(1, 2))))
        return rng.choice((somewhere(rng), somewhere(rng), {"networks": some}))

    def protocol(rng: random.Random) -> dict[str, Any]:
        first = rng.choice(PORTS[:-1])
        last = rng.randint(first + 1, 65535)
        port = rng.choice(({"number": first}, {"range": {"start": first, "end": last}}))
        return {rng.choice(("tcp", "udp", "sctp")): {"destinationPort": port}}

    def rule(side: str, peer: Any, rng: random.Random) -> dict[str, Any]:
        peers = [peer(rng) for _ in range(rng.randint(1, 2))]
        made: dict[str, Any] = {"action": rng.choice(("Accept", "Deny", "Pass")), side: peers}
        named = {"destinationNamedPort": rng.choice(PORT_NAMES)}
        choices = [protocol(rng), protocol(rng)] + [named] * all("networks" not in each for each in peers)
        return made | ({"protocols": [rng.choice(choices)]} if rng.random() < 0.6 else {})

    return {
        "tier": rng.choice(("Admin", "Baseline")),
        "priority": rng.randint(0, 2),
        "subject": somewhere(rng),
        "ingress": _some(rng, lambda rng: rule("from", somewhere, rng)),
        "egress": _some(rng, lambda rng: rule("to", destination, rng)),
    }
