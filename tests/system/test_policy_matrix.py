"""Who reaches whom under network policies, as packets on a lab of two nodes, against what the YAML says.

Every case is a set of policies. Each pod asks each other pod and three addresses of the world, and these ask
each pod, on every port, over both families; who must be answered is judged by `tests.support.policy_truth`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.support.policy_lab import OUTSIDE_ADDRESSES, PolicyLab, pod, policy, policy_lab
from tests.support.policy_truth import Document, Packet, Peer, Truth

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

NAMESPACES = {
    "x": {"kubernetes.io/metadata.name": "x", "team": "red"},
    "y": {"kubernetes.io/metadata.name": "y", "team": "blue"},
    "z": {"kubernetes.io/metadata.name": "z"},
}
SERVE = tuple((protocol, port) for protocol in ("TCP", "UDP", "SCTP") for port in (80, 81))
NAMES = {"web": ("TCP", 80), "dns": ("UDP", 81), "sig": ("SCTP", 80)}
OTHER_NAMES = {"web": ("TCP", 81), "dns": ("UDP", 81), "sig": ("SCTP", 81)}
"""One name, another number."""
PODS: tuple[tuple[str, str, str, dict[str, str], dict[str, tuple[str, int]]], ...] = (
    ("x", "a", "node-1", {"app": "a", "tier": "front"}, NAMES),
    ("x", "b", "node-2", {"app": "b", "tier": "back"}, OTHER_NAMES),
    ("x", "c", "node-1", {"app": "c"}, NAMES),
    ("y", "a", "node-2", {"app": "a", "tier": "front"}, NAMES),
    ("y", "b", "node-1", {"app": "b", "tier": "back"}, NAMES),
    ("z", "a", "node-1", {"app": "a"}, {}),
)
OUTSIDE = tuple(Peer("", addresses[0], addresses=addresses) for addresses in OUTSIDE_ADDRESSES)
FAMILIES = ("IPv4", "IPv6")
GROUPS = (
    policy("CiliumCIDRGroup", "near", {"externalCIDRs": ["203.0.113.2/31", "2001:db8:203::2/128"]}),
    policy("CiliumCIDRGroup", "far", {"externalCIDRs": ["203.0.113.4/32"]}),
)
GROUPS[1]["metadata"]["labels"] = {"zone": "far"}
FAR_AWAY = {"IPv4": "203.0.113.3", "IPv6": "2001:db8:203::4"}


def service(namespace: str, name: str, **spec: Any) -> Document:
    made = policy("Service", name, {"ports": [{"port": 80}], **spec}, namespace)
    made["metadata"]["labels"] = {"service": name}
    return made


SERVICES = (
    service("x", "back", selector={"app": "b"}),
    service("y", "front", selector={"tier": "front"}),
    # No selector: it stands for what its slices list.
    {**service("x", "away"), "addresses": list(FAR_AWAY.values())},
)
SLICES: tuple[Document, ...] = tuple(
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"away-{family.lower()}",
            "namespace": "x",
            "labels": {"kubernetes.io/service-name": "away"},
        },
        "addressType": family,
        "endpoints": [{"addresses": [address]}],
    }
    for family, address in FAR_AWAY.items()
)
TRUTH = Truth(NAMESPACES, GROUPS, SERVICES)

Case = tuple[Document, ...]


def kubernetes(spec: Document, namespace: str = "x", name: str = "case") -> Document:
    return policy("NetworkPolicy", name, spec, namespace)


def cilium(spec: Document, namespace: str = "x", name: str = "case", **more: Any) -> Document:
    return policy("CiliumNetworkPolicy", name, spec, namespace, **more)


def tiered(
    tier: str, priority: int, ingress: Sequence[Document] = (), egress: Sequence[Document] = (), **more: Any
) -> Document:
    """A ClusterNetworkPolicy for everybody, unless `subject` says otherwise."""
    spec = {"tier": tier, "priority": priority, "subject": {"namespaces": {}}, **more}
    rules = {key: list(value) for key, value in (("ingress", ingress), ("egress", egress)) if value}
    return policy("ClusterNetworkPolicy", f"{tier.lower()}-{priority}", spec | rules)


def clusterwide(spec: Document, name: str = "case", **more: Any) -> Document:
    return policy("CiliumClusterwideNetworkPolicy", name, spec, **more)


def labels(**wanted: str) -> Document:
    return {"matchLabels": wanted}


def expression(key: str, operator: str, *values: str) -> Document:
    return {
        "matchExpressions": [
            {"key": key, "operator": operator, **({"values": list(values)} if values else {})}
        ]
    }


# networking.k8s.io/v1: every kind of peer and of port, in both directions

PEERS: dict[str, Any] = {
    "absent": None,
    "none": [],
    "every pod of the namespace": [{"podSelector": {}}],
    "pods by label": [{"podSelector": labels(app="a")}],
    "pods by expression": [{"podSelector": expression("tier", "NotIn", "front")}],
    "pods without a label": [{"podSelector": expression("tier", "DoesNotExist")}],
    "every namespace": [{"namespaceSelector": {}}],
    "a namespace": [{"namespaceSelector": labels(team="blue")}],
    "namespaces by expression": [{"namespaceSelector": expression("team", "In", "blue", "green")}],
    "namespaces without a label": [{"namespaceSelector": expression("team", "DoesNotExist")}],
    "namespace and pods": [{"namespaceSelector": labels(team="blue"), "podSelector": labels(app="a")}],
    "namespace or pods": [{"namespaceSelector": labels(team="blue")}, {"podSelector": labels(app="a")}],
    "a namespace nobody has": [{"namespaceSelector": labels(team="violet")}],
    "a prefix": [{"ipBlock": {"cidr": "203.0.113.0/24"}}],
    "one address of the other family": [{"ipBlock": {"cidr": "2001:db8:203::3/128"}}],
    "a prefix but one address": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["203.0.113.3/32"]}}],
    "a prefix but prefixes": [
        {"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8:203::2/127", "2001:db8:7::/48"]}}
    ],
    "prefixes of both families and pods": [
        {"ipBlock": {"cidr": "203.0.113.4/32"}},
        {"ipBlock": {"cidr": "::/0", "except": ["2001:db8:203::4/128"]}},
        {"podSelector": labels(app="b")},
    ],
    "a prefix around pods": [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": "fd00::/8"}}],
}
PORTS: dict[str, Any] = {
    "absent": None,
    "none": [],
    "a number": [{"port": 80}],
    "a number of a protocol": [{"port": 81, "protocol": "UDP"}],
    "a protocol": [{"protocol": "UDP"}],
    "a range": [{"port": 80, "endPort": 8080, "protocol": "TCP"}],
    "a range of others": [{"port": 82, "endPort": 65535, "protocol": "UDP"}],
    "two protocols": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "UDP"}],
    "the world's": [{"port": 8080, "protocol": "UDP"}],
    "SCTP": [{"port": 80, "protocol": "SCTP"}],
    "a name": [{"port": "web"}],
    "names of three protocols": [
        {"port": "web", "protocol": "TCP"},
        {"port": "dns", "protocol": "UDP"},
        {"port": "sig", "protocol": "SCTP"},
    ],
    "a name nobody has": [{"port": "ftp"}],
    "a name of another protocol": [{"port": "dns", "protocol": "TCP"}],
}


def rule_of(ingress: bool, peers: Any, ports: Any) -> Document:
    """A rule; None leaves the field out."""
    fields = {"from" if ingress else "to": peers, "ports": ports}
    return {key: value for key, value in fields.items() if value is not None}


def one_rule(ingress: bool, peers: Any, ports: Any) -> Document:
    """A policy for all pods of a namespace with one rule."""
    direction = "Ingress" if ingress else "Egress"
    rules = [rule_of(ingress, peers, ports)]
    return kubernetes({"podSelector": {}, "policyTypes": [direction], direction.lower(): rules})


def peers_and_ports() -> Iterator[tuple[str, Case]]:
    for ingress in (True, False):
        word = "ingress" if ingress else "egress"
        for number, (name, peers) in enumerate(PEERS.items()):
            ports = [{"port": 80}, {"port": 8080}] if number % 2 else None
            yield f"{word}, peers: {name}", (one_rule(ingress, peers, ports),)
        for name, ports in PORTS.items():
            yield f"{word}, ports: {name}", (one_rule(ingress, None, ports),)


ALLOW_FRONT = {"from": [{"podSelector": labels(tier="front")}]}
SHAPES: dict[str, Case] = {
    "no policy": (),
    "nothing in": (kubernetes({"podSelector": {}}),),
    "nothing out": (kubernetes({"podSelector": {}, "policyTypes": ["Egress"]}),),
    "nothing either way": (kubernetes({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),),
    "types follow from the rules": (kubernetes({"podSelector": {}, "egress": [{"ports": [{"port": 80}]}]}),),
    "types without the rules' direction": (
        kubernetes({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{"ports": [{"port": 80}]}]}),
    ),
    "some pods": (kubernetes({"podSelector": labels(app="b"), "ingress": [ALLOW_FRONT]}),),
    "pods by expression": (
        kubernetes({"podSelector": expression("tier", "Exists"), "ingress": [ALLOW_FRONT]}),
    ),
    "nobody selected": (kubernetes({"podSelector": labels(app="nobody")}),),
    "two rules": (
        kubernetes(
            {
                "podSelector": {},
                "ingress": [
                    {"from": [{"podSelector": labels(app="a")}], "ports": [{"port": 80}]},
                    {"from": [{"namespaceSelector": labels(team="blue")}], "ports": [{"protocol": "UDP"}]},
                ],
            }
        ),
    ),
    "two policies add up": (
        kubernetes({"podSelector": {}}, name="nothing"),
        kubernetes({"podSelector": labels(app="b"), "ingress": [ALLOW_FRONT]}, name="front"),
    ),
    "both ends must agree": (
        kubernetes(
            {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"namespaceSelector": {}}]}]}
        ),
        kubernetes({"podSelector": {}, "ingress": [{"ports": [{"port": 81}]}]}, "y"),
    ),
}

# cilium.io/v2

TCP_80 = [{"ports": [{"port": "80", "protocol": "TCP"}]}]
IN_Y = {"k8s:io.kubernetes.pod.namespace": "y"}
TEAM_BLUE = {"k8s:io.cilium.k8s.namespace.labels.team": "blue"}
CILIUM: dict[str, Case] = {
    "own namespace": (cilium({"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]}),),
    "another namespace": (
        cilium({"endpointSelector": {}, "ingress": [{"fromEndpoints": [{"matchLabels": IN_Y}]}]}),
    ),
    "a namespace by label": (
        cilium(
            {
                "endpointSelector": labels(app="a"),
                "egress": [{"toEndpoints": [{"matchLabels": TEAM_BLUE}], "toPorts": TCP_80}],
            }
        ),
    ),
    "nobody": (cilium({"endpointSelector": {}, "ingress": [{"fromEndpoints": []}]}),),
    "an empty rule": (cilium({"endpointSelector": {}, "egress": [{}]}),),
    "ports only": (cilium({"endpointSelector": {}, "ingress": [{"toPorts": TCP_80}]}),),
    "any protocol and a range": (
        cilium(
            {
                "endpointSelector": {},
                "ingress": [{"toPorts": [{"ports": [{"port": "79", "endPort": 80, "protocol": "ANY"}]}]}],
            }
        ),
    ),
    "echo by number": (
        cilium(
            {
                "endpointSelector": {},
                "ingress": [{"icmps": [{"fields": [{"type": 8}, {"type": 128, "family": "IPv6"}]}]}],
            }
        ),
    ),
    "echo by name, one family": (
        cilium(
            {
                "endpointSelector": {},
                "egress": [{"icmps": [{"fields": [{"type": "EchoRequest", "family": "IPv6"}]}]}],
            }
        ),
    ),
    "deny beats allow": (
        cilium(
            {
                "endpointSelector": {},
                "ingress": [{"fromEntities": ["all"]}],
                "ingressDeny": [{"fromEndpoints": [labels(app="a")]}, {"toPorts": TCP_80}],
            }
        ),
    ),
    "deny the wider, allow the narrower": (
        cilium(
            {
                "endpointSelector": {},
                "egress": [{"toEntities": ["all"]}, {"toCIDR": ["203.0.113.3/32"]}],
                "egressDeny": [{"toCIDR": ["203.0.113.0/24"]}],
            }
        ),
    ),
    "deny without isolation": (
        cilium(
            {
                "endpointSelector": {},
                "enableDefaultDeny": {"ingress": False},
                "ingressDeny": [{"fromEndpoints": [labels(app="a")]}],
            }
        ),
    ),
    "allow without isolation": (
        cilium(
            {
                "endpointSelector": {},
                "enableDefaultDeny": {"ingress": False},
                "ingress": [{"fromEndpoints": [labels(app="a")]}],
            }
        ),
    ),
    "cluster": (cilium({"endpointSelector": {}, "ingress": [{"fromEntities": ["cluster"]}]}),),
    "world": (cilium({"endpointSelector": {}, "egress": [{"toEntities": ["world"]}]}),),
    "prefixes and exceptions": (
        cilium(
            {
                "endpointSelector": {},
                "egress": [
                    {"toCIDRSet": [{"cidr": "203.0.113.0/24", "except": ["203.0.113.4/32"]}]},
                    {"toCIDR": ["2001:db8:203::3/128"], "toPorts": [{"ports": [{"port": "8080"}]}]},
                ],
            }
        ),
    ),
    "prefixes denied": (
        cilium(
            {
                "endpointSelector": {},
                "enableDefaultDeny": {"ingress": False, "egress": False},
                "ingressDeny": [{"fromCIDRSet": [{"cidr": "203.0.113.0/24", "except": ["203.0.113.4/32"]}]}],
                "egressDeny": [{"toCIDR": ["2001:db8:203::2/127"]}],
            }
        ),
    ),
    "several specs": (
        cilium(
            {"endpointSelector": labels(app="a"), "ingress": [{"fromEndpoints": [labels(app="b")]}]},
            specs=[{"endpointSelector": labels(app="b"), "ingress": [{"fromEndpoints": [labels(app="c")]}]}],
        ),
    ),
    "clusterwide": (
        clusterwide(
            {
                "endpointSelector": {"matchLabels": TEAM_BLUE},
                "ingress": [{"fromEndpoints": [labels(tier="front")]}],
                "egressDeny": [{"toPorts": TCP_80}],
                "enableDefaultDeny": {"egress": False},
            }
        ),
    ),
    "clusterwide, namespaces by expression": (
        clusterwide(
            {
                "endpointSelector": {},
                "ingress": [
                    {"fromEndpoints": [expression("k8s:io.kubernetes.pod.namespace", "NotIn", "x", "z")]}
                ],
            }
        ),
    ),
    "all kinds together": (
        kubernetes({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}),
        cilium({"endpointSelector": labels(app="b"), "ingressDeny": [{"fromEndpoints": [labels(app="c")]}]}),
        clusterwide(
            {
                "endpointSelector": {},
                "enableDefaultDeny": {"ingress": False},
                "ingressDeny": [{"fromEndpoints": [labels(app="a")], "toPorts": TCP_80}],
            }
        ),
    ),
}
BY_NAME = [{"ports": [{"port": "web", "protocol": "TCP"}, {"port": "sig", "protocol": "SCTP"}]}]
CILIUM |= {
    "a group of prefixes": (
        cilium({"endpointSelector": {}, "egress": [{"toCIDRSet": [{"cidrGroupRef": "near"}]}]}),
    ),
    "groups by label and by name, denied": (
        cilium(
            {
                "endpointSelector": {},
                "enableDefaultDeny": {"egress": False},
                "egressDeny": [
                    {"toCIDRSet": [{"cidrGroupSelector": labels(zone="far")}, {"cidrGroupRef": "near"}]}
                ],
            }
        ),
    ),
    "names of ports, in": (cilium({"endpointSelector": {}, "ingress": [{"toPorts": BY_NAME}]}),),
    "names of ports, out": (
        cilium({"endpointSelector": {}, "egress": [{"toEntities": ["cluster"], "toPorts": BY_NAME}]}),
    ),
    "names of ports, denied": (
        cilium(
            {
                "endpointSelector": {},
                "enableDefaultDeny": {"ingress": False, "egress": False},
                "ingressDeny": [{"fromEndpoints": [labels(app="c")], "toPorts": BY_NAME}],
                "egressDeny": [{"toEndpoints": [labels(app="b")], "toPorts": BY_NAME}],
            }
        ),
    ),
}


def to_services(*services: Document, **more: Any) -> Document:
    return cilium({"endpointSelector": {}, "egress": [{"toServices": list(services), **more}]})


NAMED: dict[str, Document] = {
    name: {"k8sService": {"serviceName": name, "namespace": space}}
    for name, space in (("back", "x"), ("front", "y"), ("away", "x"), ("absent", "x"))
}
CILIUM |= {
    "a Service of pods": (to_services(NAMED["back"]),),
    "a Service of another namespace, ports": (to_services(NAMED["front"], toPorts=TCP_80),),
    "a Service of addresses": (to_services(NAMED["away"]),),
    "a Service there is not": (to_services(NAMED["absent"]),),
    "Services by label": (
        to_services(
            {
                "k8sServiceSelector": {
                    "selector": expression("service", "In", "back", "away"),
                    "namespace": "x",
                }
            }
        ),
    ),
    "Services denied": (
        cilium(
            {
                "endpointSelector": {},
                "enableDefaultDeny": {"egress": False},
                "egressDeny": [{"toServices": [NAMED["away"], NAMED["front"]]}],
            }
        ),
    ),
}

# policy.networking.k8s.io/v1alpha2

EVERYBODY: list[Document] = [{"namespaces": {}}]
TEAM_RED = [{"namespaces": labels(team="red")}]
BACK = [{"pods": {"namespaceSelector": {}, "podSelector": labels(tier="back")}}]
OF_PODS = ["10.244.0.0/16", "fd00:10:244::/48"]
"""The addresses of all pods."""
NOTHING_IN = tuple(kubernetes({"podSelector": {}}, space) for space in NAMESPACES)


def rule(action: str, peers: Any, *protocols: Document, word: str = "from") -> Document:
    return {"action": action, word: peers, **({"protocols": list(protocols)} if protocols else {})}


def every_port(protocol: str) -> Document:
    return {protocol: {"destinationPort": {"range": {"start": 1, "end": 65535}}}}


TIERED: dict[str, Case] = {
    "an administrator denies what a namespace allows": (
        tiered("Admin", 10, [rule("Deny", TEAM_RED)]),
        kubernetes({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}),
    ),
    "an administrator accepts what a namespace does not": (
        tiered("Admin", 10, [rule("Accept", BACK, {"tcp": {"destinationPort": {"number": 80}}})]),
        *NOTHING_IN,
    ),
    "an administrator accepts what a namespace denies": (
        tiered("Admin", 10, [rule("Accept", BACK)]),
        cilium({"endpointSelector": {}, "ingressDeny": [{"fromEntities": ["all"]}]}),
    ),
    "the first rule decides": (
        tiered(
            "Admin",
            10,
            [
                rule("Accept", TEAM_RED, {"udp": {"destinationPort": {"range": {"start": 80, "end": 81}}}}),
                rule("Deny", EVERYBODY, every_port("udp"), every_port("sctp")),
            ],
        ),
    ),
    "the lower priority goes first": (
        tiered("Admin", 20, [rule("Deny", EVERYBODY)]),
        tiered("Admin", 5, [rule("Accept", BACK), rule("Deny", TEAM_RED)]),
        tiered("Admin", 500, [rule("Accept", EVERYBODY)]),
    ),
    "who is passed on is judged by namespaces": (
        tiered("Admin", 5, [rule("Pass", TEAM_RED)]),
        tiered("Admin", 20, [rule("Deny", EVERYBODY)]),
        kubernetes({"podSelector": labels(app="b"), "ingress": [ALLOW_FRONT]}),
    ),
    "who is passed on meets the baseline": (
        tiered("Admin", 5, [rule("Pass", TEAM_RED)]),
        tiered("Admin", 20, [rule("Accept", EVERYBODY)]),
        tiered("Baseline", 0, [rule("Deny", EVERYBODY)]),
    ),
    "a baseline for all that namespaces leave open": (
        tiered("Baseline", 0, [rule("Accept", BACK), rule("Deny", EVERYBODY)]),
        kubernetes({"podSelector": labels(app="b"), "ingress": [ALLOW_FRONT]}),
    ),
    "a baseline does not open what namespaces isolate": (
        tiered("Baseline", 0, [rule("Accept", EVERYBODY)]),
        kubernetes({"podSelector": {}}),
    ),
    "ways out": (
        tiered(
            "Admin",
            5,
            egress=[
                rule("Accept", [{"networks": ["203.0.113.3/32", "2001:db8:203::3/128"]}], word="to"),
                rule("Deny", [{"networks": ["203.0.113.0/24"]}, *BACK], word="to"),
            ],
            subject={"pods": {"namespaceSelector": labels(team="red"), "podSelector": {}}},
        ),
    ),
    "ways to the addresses of pods": (
        tiered("Admin", 5, egress=[rule("Deny", [{"networks": OF_PODS}], word="to")]),
    ),
    "ways to other than the addresses of pods": (
        tiered(
            "Admin",
            5,
            egress=[
                rule("Pass", [{"networks": OF_PODS}], every_port("tcp"), word="to"),
                rule("Accept", [{"networks": OF_PODS}], every_port("udp"), word="to"),
                rule("Deny", [{"networks": ["0.0.0.0/0", "::/0"]}], word="to"),
            ],
        ),
        kubernetes({"podSelector": labels(app="a"), "egress": [{"ports": [{"port": 80}]}]}),
    ),
    "a name of a port": (
        tiered("Admin", 5, [rule("Accept", EVERYBODY, {"destinationNamedPort": "web"})]),
        tiered("Baseline", 5, [rule("Deny", EVERYBODY)]),
    ),
}
CASES = {
    **dict(peers_and_ports()),
    **SHAPES,
    **{f"cilium: {name}": case for name, case in CILIUM.items()},
    **{f"tiers: {name}": case for name, case in TIERED.items()},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    with policy_lab(f"tpm{os.getpid() % 1000000}") as made:
        made.apply(
            *(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
                for name, labels in NAMESPACES.items()
            )
        )
        peers = [Peer(space, name, labels, (), ports) for space, name, _, labels, ports in PODS]
        made.start_pods([pod(peer, entry[2], SERVE) for peer, entry in zip(peers, PODS, strict=True)])
        made.route_from_outside()
        bare = ({key: value for key, value in one.items() if key != "addresses"} for one in SERVICES)
        made.apply(*GROUPS, *bare, *SLICES)
        yield made


@pytest.fixture(scope="module")
def packets(lab: PolicyLab) -> list[Packet]:
    """Every question there is: pods to pods and to the world, the world to pods."""
    peers = [
        Peer(space, name, labels, lab.record(Peer(space, name)).ips, ports)
        for space, name, _, labels, ports in PODS
    ]
    ends = [(source, target) for source in (*peers, *OUTSIDE) for target in (*peers, *OUTSIDE)]
    return [
        Packet(source, target, protocol, port, family)
        for source, target in ends
        if source is not target and (source.is_pod or target.is_pod)
        for family in FAMILIES
        for protocol, port in _questions(target, family)
    ]


def _questions(target: Peer, family: str) -> Sequence[tuple[str, int]]:
    echo = ("ICMP", 128 if family == "IPv6" else 8)
    return (*SERVE, echo) if target.is_pod else (("TCP", 8080), ("UDP", 8080), echo)


@pytest.mark.parametrize("name", CASES)
def test_packets_obey(lab: PolicyLab, packets: Sequence[Packet], name: str) -> None:
    case = CASES[name]
    lab.replace_all(case)
    assert lab.wrong(packets, lambda packet: TRUTH.allows(case, packet)) == []


FRONT_IN = {"fromEndpoints": [labels(tier="front")], "toPorts": TCP_80}
HTTP_RULE = [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}]
ACCEPT_BACK = rule("Accept", BACK, word="to")
NAMELESS = rule("Deny", [{"nodes": {}}], {"destinationNamedPort": "web"}, word="to")
ANYWHERE = ["0.0.0.0/0", "::/0"]
REFUSED: dict[str, tuple[Case, Case]] = {
    "an allowance": (
        (cilium({"endpointSelector": {}, "ingress": [FRONT_IN, {"toPorts": HTTP_RULE}]}),),
        (cilium({"endpointSelector": {}, "ingress": [FRONT_IN]}),),
    ),
    "the one allowance of a direction": (
        (cilium({"endpointSelector": {}, "ingress": [FRONT_IN], "egress": [{"toPorts": HTTP_RULE}]}),),
        (cilium({"endpointSelector": {}, "ingress": [FRONT_IN], "egress": [{}]}),),
    ),
    "a denial": (
        (
            cilium(
                {
                    "endpointSelector": labels(app="a"),
                    "ingress": [FRONT_IN],
                    "ingressDeny": [{"toPorts": [{"ports": [{"port": "9", "endPort": 8}]}]}],
                }
            ),
        ),
        (cilium({"endpointSelector": labels(app="a"), "ingressDeny": [{"fromEntities": ["all"]}]}),),
    ),
    "an administrator's denial": (
        (tiered("Admin", 5, egress=[ACCEPT_BACK, NAMELESS]),),
        (tiered("Admin", 5, egress=[ACCEPT_BACK, rule("Deny", [{"networks": ANYWHERE}], word="to")]),),
    ),
}
"""Policies with a rule that can't be enforced, and others that mean what then holds."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_enforced_closes(lab: PolicyLab, packets: Sequence[Packet], name: str) -> None:
    written, meant = REFUSED[name]
    lab.replace_all((cilium({"endpointSelector": {}, "ingress": [FRONT_IN]}),))
    lab.replace_all(written, "invalid")
    assert lab.wrong(packets, lambda packet: TRUTH.allows(meant, packet)) == []


MODES: dict[str, Case] = {
    "no policy": (),
    "allowed and denied": (
        cilium(
            {"endpointSelector": {}, "ingress": [{"fromEntities": ["all"]}], "egress": [{"toPorts": TCP_80}]}
        ),
        cilium({"endpointSelector": labels(app="c"), "egressDeny": [{"toEntities": ["all"]}]}, name="deny"),
    ),
    "in tiers": (
        tiered(
            "Admin",
            10,
            [rule("Accept", BACK), rule("Deny", TEAM_RED)],
            [rule("Accept", EVERYBODY, word="to")],
        ),
    ),
}
ALL_ISOLATED = tuple(
    kubernetes({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, space, "always")
    for space in NAMESPACES
)


@pytest.mark.parametrize("name", MODES)
def test_always_is_as_if_policies_isolated_everybody(
    lab: PolicyLab, packets: Sequence[Packet], name: str
) -> None:
    case = MODES[name]
    lab.replace_all(case)
    with lab.mode("always"):
        wrong = lab.wrong(packets, lambda packet: TRUTH.allows((*case, *ALL_ISOLATED), packet))
    assert wrong == []


@pytest.mark.parametrize("name", MODES)
def test_never_is_as_if_there_were_no_policies(lab: PolicyLab, packets: Sequence[Packet], name: str) -> None:
    lab.replace_all(MODES[name])
    with lab.mode("never"):
        assert lab.wrong(packets, lambda packet: True) == []
