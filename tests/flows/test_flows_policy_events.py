"""Random events of every kind: computed step by step the tables are those computed from scratch.

A walk goes through random states of everything verdicts depend on: policies of all kinds, groups, Services
and their slices, nodes and their labels, names of ports, audit and modes. Each way is taken in single changes
or at once, forwards or backwards, split by steps, with the empty state between.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from cilia.control.graph import GraphConfig
from cilia.model.endpoint import Attachment, NamedPort, RemoteEndpoint
from cilia.model.identity import Identity
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.labels import Labels
from cilia.model.node import Node
from cilia.model.policy import PolicyMode, PolicyObject
from cilia.schema import (
    CidrGroupRow,
    EndpointOptions,
    EndpointSliceRow,
    NamespaceRow,
    PodRow,
    ServiceRow,
)
from tests.support.flows import Brain, Rows, changes, content, walk
from tests.support.policy_cases import AUDIT, PREFIXES, policy, random_policy

NAMESPACES = ("red", "blue")
APPS = ("web", "db", "job")
NUMBERS = {pair: 300 + number for number, pair in enumerate(itertools.product(NAMESPACES, APPS))}
OWN = Node(name="one", addresses=("172.18.0.2",), router_addresses=("10.0.1.1",), pod_cidrs=("10.0.1.0/24",))

seeds = pytest.mark.parametrize("seed", range(12))


def labels(namespace: str, app: str) -> Labels:
    return Labels.kubernetes(namespace, {"app": app}, {"team": namespace[0]})


def some(rng: random.Random, rows: list[Any]) -> list[Any]:
    return [row for row in rows if rng.random() < 0.7]


def ports(rng: random.Random) -> tuple[NamedPort, ...]:
    return tuple(NamedPort("http", rng.choice((80, 8080)), "TCP") for _ in range(rng.randrange(2)))


def audited(rng: random.Random) -> dict[str, str]:
    return {AUDIT: "true"} if rng.random() < 0.15 else {}


def nodes(rng: random.Random) -> list[Node]:
    """This node and two others, whose labels and addresses change."""
    others = [
        Node(
            name=name,
            addresses=(f"172.18.0.{number}", f"fd00:18::{number}")[: rng.randint(1, 2)],
            router_addresses=(f"10.0.{number}.1",),
            pod_cidrs=(f"10.0.{number}.0/24",),
            labels={"zone": rng.choice("ab")},
        )
        for number, name in ((3, "two"), (4, "three"))
    ]
    own = Node(**{field: getattr(OWN, field) for field in OWN.__struct_fields__} | {"labels": {"zone": "a"}})
    return [own, *some(rng, others)]


def random_policies(rng: random.Random) -> list[PolicyObject]:
    """Up to four of any kind, and some that speak of nodes, groups, Services and port names."""
    cnp = "CiliumNetworkPolicy"
    special = [
        policy(cnp, "nodes", {"endpointSelector": {}, "ingress": [{"fromNodes": [zone(rng)]}]}),
        policy(
            cnp,
            "groups",
            {
                "endpointSelector": {},
                "egress": [{"toCIDRSet": [{"cidrGroupRef": "lan"}]}],
                "egressDeny": [
                    {"toCIDRSet": [{"cidrGroupSelector": {"matchLabels": {"kind": rng.choice("ab")}}}]}
                ],
            },
        ),
        policy(
            cnp,
            "services",
            {
                "endpointSelector": {},
                "egress": [
                    {
                        "toServices": [
                            {"k8sService": {"serviceName": "db", "namespace": "blue"}},
                            {"k8sServiceSelector": {"selector": {"matchLabels": {"kind": "a"}}}},
                        ]
                    }
                ],
            },
            "blue",
        ),
        policy(
            "CiliumClusterwideNetworkPolicy",
            "host",
            {
                "nodeSelector": zone(rng),
                "ingress": [{"fromNodes": [zone(rng)]}, {"fromCIDR": ["10.0.0.0/8"]}],
            },
        ),
        policy("NetworkPolicy", "names", {"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]}),
        policy(
            "NetworkPolicy",
            "far-names",
            {
                "podSelector": {},
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]}],
            },
        ),
    ]
    return [*some(rng, special), *(random_policy(rng, f"p{n}") for n in range(rng.randrange(5)))]


def zone(rng: random.Random) -> dict[str, Any]:
    return {"matchLabels": {"zone": rng.choice("ab")}}


def state(rng: random.Random) -> Rows:
    """A random state. Whoever is here has an identity: without one it would keep the one it had."""
    pods = [
        PodRow(
            namespace=namespace,
            name=f"{app}-{copy}",
            node="one",
            labels={"app": rng.choice(APPS)},
            named_ports=ports(rng),
        )
        for namespace, app, copy in itertools.product(NAMESPACES, APPS[:2], (1, 2))
    ]
    here = some(rng, list(enumerate(pods, 1)))
    remote = [
        RemoteEndpoint(
            namespace=namespace,
            name=f"far-{app}",
            identity=IdentityId(NUMBERS[namespace, app]),
            node_ip="172.18.0.3",
            addresses=(f"10.0.3.{20 + NUMBERS[namespace, app] - 300}",),
            labels=labels(namespace, app),
            named_ports=ports(rng),
        )
        for namespace, app in NUMBERS
    ]
    spare = [
        Identity(IdentityId(400 + n), labels(rng.choice(NAMESPACES), f"spare-{rng.randrange(3)}"))
        for n in range(5)
    ]
    return {
        "nodes": nodes(rng),
        "namespaces": [
            NamespaceRow(name=name, labels={"team": name[0]}, annotations=audited(rng)) for name in NAMESPACES
        ],
        "cluster_identities": [
            *(Identity(IdentityId(number), labels(*names)) for names, number in NUMBERS.items()),
            *some(rng, spare),
        ],
        "pods": [pod for _, pod in here],
        "attachments": [attachment(number, pod) for number, pod in here],
        "endpoint_options": some(
            rng, [EndpointOptions(endpoint=EndpointId(2), audit=rng.choice((True, False, None)))]
        ),
        "remote_endpoints": some(rng, remote),
        "policies": random_policies(rng),
        "cidr_groups": some(
            rng,
            [
                CidrGroupRow(
                    name=name,
                    labels={"kind": rng.choice("ab")},
                    prefixes=tuple(sorted(rng.sample(PREFIXES, rng.randrange(4)))),
                )
                for name in ("lan", "wan")
            ],
        ),
        "services": some(
            rng,
            [
                ServiceRow(
                    namespace="blue",
                    name=name,
                    labels={"kind": rng.choice("ab")},
                    selector=rng.choice(({}, {"app": rng.choice(APPS)})),
                )
                for name in ("db", "old")
            ],
        ),
        "endpoint_slices": some(
            rng,
            [
                EndpointSliceRow(
                    namespace="blue",
                    name=name,
                    service=rng.choice(("db", "old")),
                    addresses=(f"192.0.2.{rng.randrange(4)}",),
                )
                for name in ("s1", "s2", "s3")
            ],
        ),
        "modes": [rng.choices(list(PolicyMode), (4, 1, 1))[0], rng.random() < 0.2],
    }


def attachment(number: int, pod: PodRow) -> Attachment:
    return Attachment(
        id=EndpointId(number),
        container_id=str(number),
        interface="eth0",
        netns="",
        host_interface=f"lxc{number}",
        ifindex=number,
        mac="",
        host_mac="",
        ipv4=f"10.0.1.{10 + number}",
        namespace=pod.namespace,
        pod=pod.name,
    )


def config(seed: int) -> GraphConfig:
    return GraphConfig(node="one", own=OWN, cidr_nodes=seed % 3 == 0, host_firewall=seed % 2 == 0)


def afresh(rows: Rows, seed: int) -> dict[str, object]:
    """The tables computed from a state alone."""
    brain = Brain(config(seed))
    walk(brain, changes({}, rows), "end")
    brain.review()
    return content(brain.desired)


@seeds
def test_a_walk_ends_where_a_fresh_start_does(seed: int) -> None:
    rng = random.Random(seed)
    brain, last = Brain(config(seed)), Rows()
    for _ in range(8):
        rows = {} if rng.random() < 0.15 else state(rng)
        path = changes(last, rows)
        rng.shuffle(path)
        walk(brain, path, rng.choice(("each", "twice", "end")))
        brain.review()
        assert content(brain.desired) == afresh(rows, seed)
        last = rows


@seeds
def test_there_and_back_leaves_no_trace(seed: int) -> None:
    rng = random.Random(1000 + seed)
    first, second = state(rng), state(rng)
    brain = Brain(config(seed))
    walk(brain, changes({}, first), "end")
    for rhythm, backwards in itertools.product(("each", "end"), (False, True)):
        for before, after in ((first, second), (second, {}), ({}, first)):
            path = changes(before, after)
            walk(brain, reversed(path) if backwards else path, rhythm)
        brain.review()
        assert content(brain.desired) == afresh(first, seed), (rhythm, backwards)


@seeds
def test_parts_of_a_change_in_any_split(seed: int) -> None:
    rng = random.Random(2000 + seed)
    first, second = state(rng), state(rng)
    brain = Brain(config(seed))
    walk(brain, changes({}, first), "end")
    path = changes(first, second)
    while path:
        size = rng.randint(1, len(path))
        walk(brain, path[:size], "end")
        del path[:size]
    brain.review()
    assert content(brain.desired) == afresh(second, seed)
