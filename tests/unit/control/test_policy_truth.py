"""The compiled entries against a judge that shares nothing with the engine, its oracle or its readers.

Pods, each of an identity of its own, and addresses outside: who reaches whom by random policies of all kinds,
told by `tests.support.policy_truth` from their YAML.
"""

from __future__ import annotations

import ipaddress
import random
from typing import Any

import pytest

from cilia.control.policy.entries.resolve import decide
from cilia.model.endpoint import NamedPort
from cilia.model.identity import WORLD_IPV4, WORLD_IPV6, Identity
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.labels import Labels
from cilia.model.policy import Direction
from cilia.schema import CidrGroupRow, EndpointSliceRow, ServiceRow
from tests.support.policy_cases import (
    ADDRESSES,
    APPS,
    GROUPS,
    PORT_NAMES,
    PORTS,
    World,
    endpoint,
    policy,
    random_port,
    random_spec,
)
from tests.support.policy_truth import Document, Packet, Peer, Side, Truth

NAMESPACES = {"red": {"team": "r"}, "blue": {"team": "b"}}
OUTSIDE = [
    Peer("", address, addresses=(address,))
    for address in ("10.1.2.3", "10.1.2.99", "10.1.7.7", "10.200.1.1", "192.0.2.5", "2001:db8::77", "2002::1")
]
GROUP_OBJECTS: list[Document] = [
    {"metadata": {"name": name, "labels": {"kind": name}}, "spec": {"externalCIDRs": list(prefixes)}}
    for name, prefixes in GROUPS.items()
]
SERVICES: list[Document] = [
    {
        "metadata": {"namespace": "red", "name": "web", "labels": {"app": "web"}},
        "spec": {"selector": {"app": "web"}},
    },
    {
        "metadata": {"namespace": "red", "name": "lan", "labels": {"app": "lan"}},
        "spec": {},
        "addresses": ["10.1.2.3"],
    },
]
NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}


class Town:
    """Pods on one node, some policies, and the entries they come to."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.world = World()
        self.policies: list[Document] = []
        self.pods: dict[Peer, IdentityId] = {}
        inputs = self.world.inputs
        inputs.cidr_groups.replace(
            CidrGroupRow(name=name, labels={"kind": name}, prefixes=prefixes)
            for name, prefixes in GROUPS.items()
        )
        inputs.services.put(
            ServiceRow(namespace="red", name="web", labels={"app": "web"}, selector={"app": "web"})
        )
        inputs.services.put(ServiceRow(namespace="red", name="lan", labels={"app": "lan"}))
        inputs.endpoint_slices.put(
            EndpointSliceRow(namespace="red", name="lan-1", service="lan", addresses=("10.1.2.3",))
        )
        for namespace in NAMESPACES:
            for app in APPS:
                for own in ({"app": app}, {"app": app, "tier": "front"}):
                    self.add_pod(namespace, own)
        for number in range(rng.randint(1, 6)):
            self.add_policy(f"p{number}")
        self.world.step()

    def add_pod(self, namespace: str, labels: dict[str, str]) -> None:
        """A pod with one address and perhaps a named port."""
        rng, number = self.rng, IdentityId(300 + len(self.pods))
        name, port, protocol = rng.choice(PORT_NAMES), rng.choice(PORTS), rng.choice(("TCP", "UDP"))
        address = rng.choice(ADDRESSES)
        ports = {name: (protocol, port)} if rng.random() < 0.7 else {}
        self.pods[Peer(namespace, f"pod-{number}", labels, (address,), ports)] = number
        family: dict[str, Any] = {"ipv6" if ":" in address else "ipv4": address}
        named = [NamedPort(name, port, protocol)] * bool(ports)
        self.world.inputs.cluster_identities.put(
            Identity(number, Labels.kubernetes(namespace, labels, NAMESPACES[namespace]))
        )
        self.world.desired.endpoints.put(endpoint(EndpointId(number), number, *named, **family))

    def add_policy(self, name: str) -> None:
        """A random policy that is not in audit."""
        kind, spec = random_spec(self.rng)
        spec.pop("audit", None)
        made = policy(kind, name, spec, self.rng.choice(tuple(NAMESPACES)))
        self.world.inputs.policies.put(made)
        self.policies.append(
            {"kind": kind, "metadata": {"name": name, "namespace": made.namespace}, "spec": spec}
        )

    def identity(self, peer: Peer) -> IdentityId:
        """A pod's number, or that of the longest prefix that some rule speaks of."""
        if peer.is_pod:
            return self.pods[peer]
        address = ipaddress.ip_address(peer.name)
        known = {ipaddress.ip_network(row.prefix): row.identity for row in self.world.identities.cidrs}
        around = [network for network in known if address in network]
        if around:
            return known[max(around, key=lambda network: network.prefixlen)]
        return WORLD_IPV6 if address.version == 6 else WORLD_IPV4

    def packet(self) -> tuple[Side, int]:
        """One side of a random packet, and the number of its protocol."""
        rng, ingress = self.rng, self.rng.random() < 0.5
        own, other = rng.choice(list(self.pods)), rng.choice([*self.pods, *OUTSIDE, *OUTSIDE])
        family = "IPv6" if ":" in other.addresses[0] else "IPv4"
        protocol = rng.choice(("TCP", "TCP", "UDP", "SCTP", "ICMP"))
        number = NUMBERS.get(protocol, 58 if family == "IPv6" else 1)
        port = random_port(rng, number)
        source, target = (other, own) if ingress else (own, other)
        return Side(Packet(source, target, protocol, port, family), ingress), number

    def allows(self, side: Side, number: int) -> bool:
        """What the entries say."""
        row = self.world.subject(self.pods[side.own])
        direction = Direction.INGRESS if side.ingress else Direction.EGRESS
        found = decide(row.entries, self.identity(side.other), direction, number, side.packet.port)
        assert found is not None
        return found[1].allow


@pytest.mark.parametrize("seed", range(25))
def test_entries_say_what_the_yaml_says(seed: int) -> None:
    town = Town(seed)
    assert all(state.valid for state in town.world.desired.policy_states)
    truth = Truth(NAMESPACES, GROUP_OBJECTS, SERVICES)
    for _ in range(100):
        side, number = town.packet()
        assert town.allows(side, number) == truth.side_allows(town.policies, side), (side, town.policies)
