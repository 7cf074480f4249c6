"""Random policies, identities and packets, seeded: material for comparing engine, kernel and oracle.

`scenario(seed)` makes a small cluster with a few policies of all three kinds; `World` runs the control nodes
over it; `cases()` asks the oracle about packets. The same seed gives the same material.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec

from cilia.control.identity import IdentityNode
from cilia.control.policy import oracle
from cilia.control.policy.expand import RuleNode
from cilia.control.policy.node import PolicyNode
from cilia.control.policy.parse import RuleBook
from cilia.control.policy.rules import ICMP, ICMPV6, SCTP, TCP, UDP
from cilia.model.endpoint import Attachment, Endpoint
from cilia.model.identity import Identity
from cilia.model.ids import EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.policy import Direction, PolicyMode, PolicyObject, SubjectPolicy
from cilia.model.resources.cilium_policy import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from cilia.model.resources.network_policy import NetworkPolicy
from cilia.schema import Desired, Inputs

KINDS = {
    "NetworkPolicy": NetworkPolicy,
    "CiliumNetworkPolicy": CiliumNetworkPolicy,
    "CiliumClusterwideNetworkPolicy": CiliumClusterwideNetworkPolicy,
}
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


def policy(kind: str, name: str, spec: dict[str, Any], namespace: str = "red") -> PolicyObject:
    """A policy object of `kind` from its spec as one writes it in YAML."""
    if kind == "CiliumClusterwideNetworkPolicy":
        namespace = ""
    metadata = {"name": name, "namespace": namespace}
    body = msgspec.convert({"metadata": metadata, "spec": spec}, KINDS[kind])
    return PolicyObject(kind=kind, namespace=namespace, name=name, resource_version="7", body=body)


def pod(number: int, namespace: str, app: str, tier: str = "", *, team: str = "a") -> Identity:
    """The identity of pods with these labels."""
    own = {"app": app} | ({"tier": tier} if tier else {})
    return Identity(IdentityId(number), Labels.kubernetes(namespace, own, {"team": team}))


def endpoint(number: int, identity: int) -> Endpoint:
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
    )
    return Endpoint(attachment=attachment, identity=IdentityId(identity))


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

    def judge(
        self, subject: SubjectPolicy, peer: Identity | None, direction: Direction, protocol: int, port: int
    ) -> oracle.Verdict:
        """The oracle's answer over the policies present; a subject nobody knows is cut off."""
        if subject.identity not in self.desired.identities:
            return oracle.Verdict(False, frozenset(), default=True)
        sections = [s for row in self.inputs.policies for s in self.book.parsed(row).sections]
        return oracle.judge(
            sections, subject.labels, peer, direction, protocol, port, mode=self.policies.mode
        )


def scenario(seed: int) -> World:
    """A cluster with two to six random policies, half of its pods on this node."""
    rng = random.Random(seed)
    world = World()
    for number, identity in enumerate(PODS):
        world.inputs.cluster_identities.put(identity)
        if number % 2:
            world.desired.endpoints.put(endpoint(number, identity.id))
    for number in range(rng.randint(2, 6)):
        world.inputs.policies.put(random_policy(rng, f"p{number}"))
    return world.step()


def change(world: World, rng: random.Random) -> None:
    """One random event: a policy, an identity or an endpoint comes, changes or goes."""
    what, identity = rng.randrange(4), rng.choice(PODS)
    if what == 0:
        world.inputs.policies.put(random_policy(rng, f"p{rng.randrange(4)}"))
    elif what == 1:
        kept = list(world.inputs.policies)
        if kept:
            world.inputs.policies.delete(rng.choice(kept).key)
    elif what == 2:
        if not world.inputs.cluster_identities.delete(identity.id):
            world.inputs.cluster_identities.put(identity)
    elif not world.desired.endpoints.delete(EndpointId(int(identity.id))):
        world.desired.endpoints.put(endpoint(identity.id, identity.id))


Case = tuple[SubjectPolicy, Identity | None, Direction, int, int, oracle.Verdict]


def cases(world: World, seed: int, count: int) -> Iterator[Case]:
    """Random packets and what the oracle says: subject, peer, direction, protocol, port, verdict."""
    rng = random.Random(seed)
    subjects = list(world.desired.subjects)
    peers: list[Identity | None] = [*world.desired.identities, None]
    for _ in range(count):
        subject, peer = rng.choice(subjects), rng.choice(peers)
        direction, protocol = rng.choice(list(Direction)), rng.choice(PROTOCOLS)
        port = random_port(rng, protocol)
        yield subject, peer, direction, protocol, port, world.judge(subject, peer, direction, protocol, port)


def random_port(rng: random.Random, protocol: int) -> int:
    """A port near those that policies speak of, or any; an ICMP type."""
    if protocol in (ICMP, ICMPV6):
        return rng.choice((0, 8, 128, 129))
    return rng.choice((*PORTS, rng.randrange(65536)))


def random_policy(rng: random.Random, name: str) -> PolicyObject:
    """A policy of any kind, always enforceable."""
    kind = rng.choice(tuple(KINDS))
    spec = _kubernetes(rng) if kind == "NetworkPolicy" else _cilium(rng)
    return policy(kind, name, spec, rng.choice(NAMESPACES))


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
                {"port": str(first), "endPort": rng.randint(first, 65535), "protocol": protocol},
            )
        )

    def rule(side: str, rng: random.Random) -> dict[str, Any]:
        made: dict[str, Any] = rng.choice(
            (
                {},
                {f"{side}Endpoints": _some(rng, endpoints)},
                {f"{side}Entities": _some(rng, entity)},
                {f"{side}CIDR": [rng.choice(PREFIXES)]},
                {f"{side}CIDRSet": _some(rng, _block)},
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
    return spec
