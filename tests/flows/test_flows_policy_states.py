"""Any state may follow any other: each has its reachability written by hand, and the way to it must not show.

Every ordered pair of states is walked in two orders of keys and three rhythms of steps, with the change taken
apart and squashed; at its end the reachability is the written one and the tables equal those computed from
scratch.
"""

from __future__ import annotations

import itertools

import pytest

from cilia.model.endpoint import Attachment, RemoteEndpoint
from cilia.model.identity import Identity
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.labels import Labels
from cilia.model.node import Node
from cilia.model.policy import PolicyObject
from cilia.schema import NamespaceRow, PodRow
from tests.support.flows import Brain, Rows, changes, content, walk
from tests.support.policy_cases import policy
from tests.support.reachability import reaches

ADDRESSES = {
    "web": "10.0.1.11",
    "db": "10.0.1.12",
    "job": "10.0.2.13",
    "host": "172.18.0.2",
    "lan": "198.51.100.7",
    "printer": "198.51.100.99",
    "world": "203.0.113.5",
}
NUMBERS = {("red", "web"): 301, ("red", "db"): 302, ("blue", "job"): 303, ("red", "spy"): 304}


def labels(namespace: str, app: str) -> Labels:
    return Labels.kubernetes(namespace, {"app": app}, {"team": namespace})


def cluster(*policies: PolicyObject, db: str = "db", job: bool = True) -> Rows:
    """Two pods of red here, one of blue on the other node; what `db` is labelled may differ."""
    apps = {"web": "web", "db": db}
    remote = RemoteEndpoint(
        namespace="blue",
        name="job",
        identity=IdentityId(303),
        node_ip="172.18.0.3",
        addresses=(ADDRESSES["job"],),
        labels=labels("blue", "job"),
    )
    return {
        "nodes": [
            Node(name="one", addresses=("172.18.0.2",), pod_cidrs=("10.0.1.0/24",)),
            Node(name="two", addresses=("172.18.0.3",), pod_cidrs=("10.0.2.0/24",)),
        ],
        "namespaces": [NamespaceRow(name=name, labels={"team": name}) for name in ("red", "blue")],
        "cluster_identities": [
            Identity(IdentityId(number), labels(*names)) for names, number in NUMBERS.items()
        ],
        "pods": [
            PodRow(namespace="red", name=name, node="one", labels={"app": app}) for name, app in apps.items()
        ],
        "attachments": [attachment(number, name) for number, name in enumerate(apps, 1)],
        "remote_endpoints": [remote] if job else [],
        "policies": list(policies),
    }


def attachment(number: int, pod: str) -> Attachment:
    return Attachment(
        id=EndpointId(number),
        container_id=pod,
        interface="eth0",
        netns="",
        host_interface=f"lxc{number}",
        ifindex=number,
        mac="",
        host_mac="",
        ipv4=ADDRESSES[pod],
        namespace="red",
        pod=pod,
    )


ISOLATE = policy("NetworkPolicy", "isolate", {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})
TALK = policy(
    "CiliumNetworkPolicy",
    "talk",
    {
        "endpointSelector": {},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "web"}}]}],
        "egress": [{"toEndpoints": [{"matchLabels": {"app": "db"}}]}],
    },
)
BLUE = policy(
    "CiliumNetworkPolicy",
    "blue",
    {
        "endpointSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "blue"}}]}],
    },
)
LAN = policy(
    "NetworkPolicy",
    "lan",
    {
        "podSelector": {"matchLabels": {"app": "web"}},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.96/28"]}}]}],
    },
)
NO_WORLD = policy(
    "CiliumClusterwideNetworkPolicy",
    "no-world",
    {
        "endpointSelector": {},
        "egressDeny": [{"toEntities": ["world"]}],
        "enableDefaultDeny": {"egress": False},
    },
)
REFUSED = policy(
    "CiliumNetworkPolicy",
    "refused",
    {"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": "example.org"}]}]},
)

OPEN = {
    "web": "db job lan printer world",
    "db": "web job lan printer world",
    "job": "web db",
    "host": "web db",
    "lan": "web db",
    "printer": "web db",
    "world": "web db",
}
CLOSED = {"host": "web db"}

STATES: dict[str, tuple[Rows, dict[str, str]]] = {
    "nothing but the node": ({"nodes": cluster()["nodes"]}, {}),
    "no policy": (cluster(), OPEN),
    "all isolated": (cluster(ISOLATE), CLOSED),
    "isolated, but web talks to db": (cluster(ISOLATE, TALK), CLOSED | {"web": "db"}),
    "web talks to db, db relabelled": (cluster(TALK, db="spy"), CLOSED),
    "web hears blue": (
        cluster(BLUE),
        OPEN
        | dict.fromkeys(("db",), "job lan printer world")
        | dict.fromkeys(("lan", "printer", "world"), "db"),
    ),
    "web hears blue, of which nobody is left": (
        cluster(BLUE, job=False),
        {
            "web": "db job lan printer world",
            "db": "job lan printer world",
            "job": "db",
            "host": "web db",
            "lan": "db",
            "printer": "db",
            "world": "db",
        },
    ),
    "web prints nothing": (cluster(LAN), OPEN | {"web": "lan"}),
    "nobody goes out": (cluster(NO_WORLD), OPEN | {"web": "db job", "db": "web job"}),
    "out to the lan or not at all": (cluster(LAN, NO_WORLD), OPEN | {"web": "", "db": "web job"}),
    "a rule that can't be enforced allows nothing": (cluster(REFUSED), OPEN | {"web": "", "db": ""}),
}


def reachability(brain: Brain) -> dict[str, str]:
    """Who reaches whom, as the states write it; silent sources are left out."""
    local = [entry.ipv4 for entry in brain.desired.endpoint_entries]
    found = {
        source: " ".join(
            name
            for name, address in ADDRESSES.items()
            if name not in (source, "host")
            and (ADDRESSES[source] in local or address in local)
            and reaches(brain.desired, ADDRESSES[source], address)
        )
        for source in ADDRESSES
    }
    return {source: reached for source, reached in found.items() if reached}


@pytest.mark.parametrize("name", STATES)
def test_a_state_reached_from_nothing(name: str) -> None:
    rows, expected = STATES[name]
    brain = Brain()
    walk(brain, changes({}, rows), "end")
    assert reachability(brain) == {source: reached for source, reached in expected.items() if reached}


@pytest.mark.parametrize("after", STATES)
def test_any_state_may_follow_any_other(after: str) -> None:
    rows, expected = STATES[after]
    reached = {source: reached for source, reached in expected.items() if reached}
    fresh = Brain()
    walk(fresh, changes({}, rows), "end")
    for before, rhythm, backwards in itertools.product(STATES, ("each", "twice", "end"), (False, True)):
        brain = Brain()
        walk(brain, changes({}, STATES[before][0]), rhythm)
        path = changes(STATES[before][0], rows)
        walk(brain, reversed(path) if backwards else path, rhythm)
        assert reachability(brain) == reached, (before, rhythm)
        assert content(brain.desired) == content(fresh.desired), (before, rhythm)


def test_all_states_in_a_row_and_back() -> None:
    brain = Brain()
    last: Rows = {}
    for name in [*STATES, *reversed(STATES)]:
        rows, expected = STATES[name]
        walk(brain, changes(last, rows), "end")
        assert reachability(brain) == {source: r for source, r in expected.items() if r}, name
        last = rows
