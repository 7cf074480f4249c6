"""The policy engine alone: rules, identities and endpoints in, entries of all subjects out; no kernel.

Two kinds of rows. Three shapes of rules for one endpoint, as Cilium's own engine is measured with them: its
times, taken on a 2-core machine with Go's benchmarks, are the baseline. And a cluster of a thousand policies
and ten thousand identities, from scratch in a process of its own, then one identity or policy more and less;
the baseline is the limit.

All times are of the CPU: the median, and the `best`, since a core that others keep busy is slower, too.
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import itertools
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import msgspec

from bench.limits import p99, row
from cilia.control.identity import IdentityNode
from cilia.control.policy.dialects.parse import RuleBook
from cilia.control.policy.entries.cookies import CookieBook
from cilia.control.policy.entries.resolve import Group
from cilia.control.policy.meaning.expand import RuleNode
from cilia.control.policy.meaning.selection import Selections, cidr_label
from cilia.control.policy.node import PolicyNode
from cilia.control.policy.rules import (
    ALL_PORTS,
    TCP,
    Action,
    Cidr,
    Inside,
    Meant,
    PortName,
    PortRange,
    Rule,
    Section,
    Selector,
    Tier,
    exists,
)
from cilia.kit import startup
from cilia.model.endpoint import Attachment, Endpoint, NamedPort
from cilia.model.identity import Identity
from cilia.model.ids import EndpointId, IdentityId, Revision
from cilia.model.labels import Label, Labels
from cilia.model.policy import Direction, PolicyMode, PolicyObject, RuleRef
from cilia.model.resources.cilium_policy import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from cilia.model.resources.cluster_network_policy import ClusterNetworkPolicy
from cilia.model.resources.network_policy import NetworkPolicy
from cilia.schema import Desired, Inputs

GROUP = "policy-engine"
ROUNDS = 45
CHANGES = 400
NAMESPACES = 100
LOCAL = 100
"""Endpoints on the node, of as many identities."""
POLICIES, IDENTITIES, MANY = 1000, 10_000, 100_000

KINDS = {
    "NetworkPolicy": NetworkPolicy,
    "CiliumNetworkPolicy": CiliumNetworkPolicy,
    "CiliumClusterwideNetworkPolicy": CiliumClusterwideNetworkPolicy,
    "ClusterNetworkPolicy": ClusterNetworkPolicy,
}


def engine(quick: bool) -> list[dict[str, Any]]:
    """All rows."""
    rounds = 3 if quick else ROUNDS
    rows = [_shape(*shape, rounds) for shape in SHAPES]
    for name, make, limit in SHAPES:
        rows.append(_shape(f"{name}, complete", _completed(make), limit, rounds) | {"reach": None})
    return rows + _cluster(quick)


# One endpoint, a thousand rules.

Known = dict[IdentityId, Labels]


def _l3() -> tuple[list[Section], Known]:
    """A thousand policies allow from one label; three thousand identities, all of which carry it."""
    peer = Selector((exists("any", "bar"),))
    sections = [
        _section(number, [(Direction.INGRESS, peer, 0, Action.ALLOW)]) for number in range(1, POLICIES + 1)
    ]
    labels = Labels.kubernetes("monitoring", {"bar": "", "app": "analytics"})
    known = {IdentityId(1000 + n): Labels.of((*labels.items, Label("k8s", f"bar{n}"))) for n in range(3000)}
    return sections, known


def _allowed(number: int) -> tuple[Direction, Cidr, int, Action]:
    return Direction.EGRESS, _block(number, number, (17, 121, 255, 16)), 80 + number % 97, Action.ALLOW


def _denied(number: int) -> tuple[Direction, Cidr, int, Action]:
    return Direction.EGRESS, _block(number, number + 21, (23, 119, 253, 15)), 80 + number % 131, Action.DENY


def _block(number: int, length: int, turns: tuple[int, int, int, int]) -> Cidr:
    """One of many prefixes of five lengths that lie within each other."""
    bits = (8, 16, 24, 28, 32)[length % 5]
    second, third, fourth = (number % turn for turn in turns[:3])
    if bits == 28:
        fourth = number % turns[3] << 4
    first = (10, 192, 244)[number % 3]
    address = f"{first}.{second}.{third}.{fourth}"
    return Cidr(str(ipaddress.ip_network(f"{address}/{bits}", strict=False)))


def _cidr() -> tuple[list[Section], Known]:
    """A thousand policies allow one port of one prefix each."""
    return _prefixes([_section(number, [_allowed(number)]) for number in range(1, POLICIES + 1)])


def _cidr_deny() -> tuple[list[Section], Known]:
    """A thousand policies allow one port of one prefix and deny one of another."""
    return _prefixes(
        [_section(number, [_allowed(number), _denied(number + 773)]) for number in range(1, POLICIES + 1)]
    )


def _prefixes(sections: list[Section]) -> tuple[list[Section], Known]:
    """The sections, and an identity for each prefix in them."""
    spoken = {
        prefix
        for section in sections
        for rule in section.rules
        if isinstance(rule.peer, Cidr)
        for prefix in rule.peer.prefixes
    }
    return sections, {
        IdentityId((1 << 24) + n): Labels.of((cidr_label(prefix), Label("reserved", "world")))
        for n, prefix in enumerate(sorted(spoken))
    }


def _section(number: int, rules: list[tuple[Direction, Selector | Cidr, int, Action]]) -> Section:
    ref = RuleRef("CiliumNetworkPolicy", "default", f"policy-{number}", "1", "spec")
    return Section(
        subject=Selector((exists("any", "foo"),)),
        ref=ref,
        isolates=tuple({direction for direction, *_ in rules}),
        rules=tuple(
            Rule(
                direction,
                peer,
                (PortRange(TCP, port, port),) if port else ALL_PORTS,
                action,
                msgspec.structs.replace(ref, path=f"spec.{direction.name.lower()}[{place}]"),
            )
            for place, (direction, peer, port, action) in enumerate(rules)
        ),
    )


Make = Callable[[], tuple[list[Section], Known]]


def _completed(make: Make) -> Make:
    """The same shape with every tenth policy in audit and an administrator's Pass: every prefix of every
    peer is then judged over all rules."""

    def completed() -> tuple[list[Section], Known]:
        sections, known = make()
        sections = [
            msgspec.structs.replace(section, audit=place % 10 == 0) for place, section in enumerate(sections)
        ]
        ref = RuleRef("ClusterNetworkPolicy", "", "pass", "1", "spec")
        direction = sections[0].rules[0].direction
        rule = Rule(direction, None, (PortRange(TCP, 80, 90),), Action.PASS, ref)
        passing = Section(
            subject=sections[0].subject, ref=ref, isolates=(), rules=(rule,), tier=Tier.ADMIN, priority=10
        )
        return [*sections, passing], known

    return completed


SHAPES: tuple[tuple[str, Make, float], ...] = (
    ("L3 ingress", _l3, 4.4),
    ("CIDR", _cidr, 7.9),
    ("CIDR deny", _cidr_deny, 820.0),
)


class Peers:
    """Whom the peers of one group mean."""

    def __init__(self, known: Known, peers: Sequence[Meant]) -> None:
        self._selections = Selections()
        for identity, labels in known.items():
            self._selections.put(identity, labels)
        for peer in peers:
            if not isinstance(peer, Inside):
                self._selections.acquire(peer)

    def members(self, peer: Meant) -> Set[IdentityId]:
        """Those whom a selector or prefix means; nobody's address is inside the cluster."""
        return frozenset() if isinstance(peer, Inside) else self._selections.members(peer)

    def port_numbers(self, identity: IdentityId, name: PortName) -> frozenset[int]:
        """Nobody names ports."""
        return frozenset()

    def naming(self, name: PortName) -> frozenset[IdentityId]:
        """Nobody names ports."""
        return frozenset()


def _shape(name: str, make: Make, limit: float, rounds: int) -> dict[str, Any]:
    """Milliseconds from the rules that select an endpoint to all of its entries: rules read and selectors
    known, as they are to Cilium's engine. `whole` is the first time, when they are not."""
    sections, known = make()
    start = time.process_time()
    peers = Peers(known, Group(sections, PolicyMode.DEFAULT).peers)
    book = CookieBook()
    Group(sections, PolicyMode.DEFAULT).build(peers, book)
    whole = (time.process_time() - start) * 1e3
    gc.collect()
    startup.started()
    times, entries = [], 0
    for _ in range(rounds):
        start = time.process_time()
        group = Group(sections, PolicyMode.DEFAULT)
        group.build(peers, book)
        times.append((time.process_time() - start) * 1e3)
        entries = len(group.entries)
    title = f"one endpoint, {POLICIES} rules: {name}"
    return row(
        GROUP,
        title,
        "ms",
        limit,
        times,
        statistics.median,
        against="Cilium",
        entries=entries,
        whole=round(whole, 1),
    )


# A cluster.


class Cluster:
    """The control nodes of one node in a cluster, and their inputs."""

    def __init__(self, identities: int, policies: int) -> None:
        self.rng = random.Random(7)
        self.inputs, self.desired = Inputs(), Desired()
        self._rules = RuleNode(self.inputs, RuleBook())
        self._identities = IdentityNode(self.inputs, self.desired, self._rules)
        self.policies = PolicyNode(self.inputs, self.desired, self._rules)
        self._fresh = itertools.count(256 + identities)
        for number in range(identities):
            self.inputs.cluster_identities.put(self._identity(256 + number, number))
        for number in range(policies):
            self.inputs.policies.put(self.policy(number, 1))
        for number in range(LOCAL):
            self.desired.endpoints.put(_endpoint(number + 1, 256 + number))

    def step(self) -> None:
        """Let control see what changed."""
        self._rules.step()
        self._identities.step()
        self.policies.step(Revision(self.inputs.policies.revision))

    @staticmethod
    def _identity(identity: int, number: int) -> Identity:
        namespace = f"team-{number % NAMESPACES}"
        own = {"app": f"app-{number // NAMESPACES % 20}", "version": f"v{number // (20 * NAMESPACES)}"}
        return Identity(IdentityId(identity), Labels.kubernetes(namespace, own, {"stage": f"s{number % 4}"}))

    def another(self) -> Identity:
        """An identity that is not there yet, of a namespace with policies."""
        return self._identity(next(self._fresh), self.rng.randrange(IDENTITIES))

    def policy(self, number: int, version: int) -> PolicyObject:
        """One of a thousand: half of them Kubernetes', some for all namespaces, every twentieth tiered."""
        kind, spec = _spec(number, version)
        namespace = f"team-{number % NAMESPACES}" if kind in ("NetworkPolicy", "CiliumNetworkPolicy") else ""
        name = f"policy-{number}"
        metadata = {"name": name, "namespace": namespace}
        body = msgspec.convert({"metadata": metadata, "spec": spec}, KINDS[kind])
        return PolicyObject(
            kind=kind, namespace=namespace, name=name, resource_version=str(version), body=body
        )


def _spec(number: int, version: int) -> tuple[str, dict[str, Any]]:
    own = {"matchLabels": {"app": f"app-{number // NAMESPACES % 20}"}}
    other = {"matchLabels": {"app": f"app-{number % 19}"}}
    stage = {"matchLabels": {"stage": f"s{number % 4}"}}
    everywhere = {"matchLabels": {"app": f"app-{number % 19}", "k8s:io.kubernetes.pod.namespace": "team-7"}}
    port = 1024 + number + version
    which = (number + number // NAMESPACES) % 20
    if which < 10:
        peers = [{"podSelector": other}, {"namespaceSelector": stage, "podSelector": other}]
        block = {"ipBlock": {"cidr": f"10.{number % 200}.0.0/16", "except": [f"10.{number % 200}.7.0/24"]}}
        return "NetworkPolicy", {
            "podSelector": own if which % 2 else {},
            "ingress": [{"from": peers, "ports": [{"port": port}, {"port": "http"}]}],
            "egress": [{"to": [*peers, block], "ports": [{"port": port, "endPort": port + 40}]}],
        }
    if which < 17:
        return "CiliumNetworkPolicy", {
            "endpointSelector": own if which % 2 else {},
            "ingress": [{"fromEndpoints": [other], "toPorts": [{"ports": [{"port": str(port)}]}]}],
            "ingressDeny": [{"fromCIDRSet": [{"cidr": f"192.0.{number % 256}.0/24"}]}],
            "egress": [{"toEntities": ["world" if which % 3 else "cluster"]}],
        }
    if which < 19:
        return "CiliumClusterwideNetworkPolicy", {
            "endpointSelector": {"matchLabels": {"app": f"app-{number % 17}"}},
            "ingress": [{"fromEndpoints": [everywhere], "toPorts": [{"ports": [{"port": str(port)}]}]}],
            "enableDefaultDeny": {"ingress": False},
        }
    return "ClusterNetworkPolicy", {
        "tier": "Admin",
        "priority": number % 1000,
        "subject": {"namespaces": {"matchLabels": {"stage": f"s{number // 20 % 4}"}}},
        "ingress": [
            {
                "action": ("Accept", "Deny")[number // 20 % 2],
                "from": [{"pods": {"podSelector": other}}],
                "protocols": [{"tcp": {"destinationPort": {"number": port}}}],
            }
        ],
    }


def _endpoint(number: int, identity: int) -> Endpoint:
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
    return Endpoint(
        attachment=attachment, identity=IdentityId(identity), named_ports=(NamedPort("http", 8080),)
    )


def _cluster(quick: bool) -> list[dict[str, Any]]:
    """From scratch at two sizes, then changes at both."""
    changes = 40 if quick else CHANGES
    small = [_child(IDENTITIES, changes) for _ in range(1 if quick else 3)]
    large = _child(IDENTITIES if quick else MANY, changes // 4)
    size = f"{POLICIES} policies, {IDENTITIES} identities"
    of = {key: [value for each in small for value in each[key]] for key in small[0]}
    entries = {"entries": int(of["entries"][0]), "subjects": LOCAL}
    ratio = large["scratch"][0] / statistics.median(of["scratch"])
    return [
        row(GROUP, f"{size}: from scratch", "s", 2.0, of["scratch"], statistics.median, **entries),
        row(GROUP, f"{size}: peak memory", "MiB", 400.0, of["memory"], max),
        row(GROUP, f"{size}: one identity, p50", "ms", 5.0, of["identity"], statistics.median),
        row(GROUP, f"{size}: one identity, p99", "ms", 20.0, of["identity"], p99),
        row(GROUP, f"{size}: one policy, p50", "ms", 50.0, of["policy"], statistics.median),
        row(GROUP, f"{size}: one policy, p99", "ms", 50.0, of["policy"], p99),
        row(
            GROUP,
            "ten times the identities: from scratch",
            "times",
            10.0,
            [ratio],
            max,
            seconds=large["scratch"][0],
        ),
        row(GROUP, "ten times the identities: peak memory", "MiB", 4000.0, large["memory"], max),
        row(
            GROUP,
            "ten times the identities: one identity, p50",
            "ms",
            5.0,
            large["identity"],
            statistics.median,
        ),
    ]


def _child(identities: int, changes: int) -> dict[str, list[float]]:
    """What a process of its own measures."""
    command = [sys.executable, "-m", "bench.policy", str(identities), str(changes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def _measure(identities: int, changes: int) -> dict[str, list[float]]:
    cluster = Cluster(identities, POLICIES)
    start = time.process_time()
    cluster.step()
    scratch = time.process_time() - start
    refused = [state for state in cluster.desired.policy_states if not state.valid]
    if refused:
        raise SystemExit(f"The engine refused {refused[0]}: change the benchmark's policies.")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    startup.started()
    return {
        "scratch": [scratch],
        "memory": [peak],
        "entries": [float(sum(len(row.entries) for row in cluster.desired.subjects))],
        "identity": list(_timed(cluster, _identities(cluster, changes))),
        "policy": list(_timed(cluster, _policies(cluster, changes // 4))),
    }


def _timed(cluster: Cluster, changes: Iterator[None]) -> Iterator[float]:
    """Milliseconds until the entries are computed, for each change made."""
    for _ in changes:
        start = time.process_time()
        cluster.step()
        yield (time.process_time() - start) * 1e3


def _identities(cluster: Cluster, count: int) -> Iterator[None]:
    """An identity comes, then goes."""
    table = cluster.inputs.cluster_identities
    for _ in range(count // 2):
        fresh = cluster.another()
        table.put(fresh)
        yield
        table.delete(fresh.id)
        yield


def _policies(cluster: Cluster, count: int) -> Iterator[None]:
    """A policy comes, changes and goes."""
    table = cluster.inputs.policies
    for number in range(POLICIES, POLICIES + count // 3):
        for version in (1, 2):
            row = cluster.policy(number, version)
            table.put(row)
            yield
        table.delete(row.key)
        yield


def main() -> None:
    """What a child does: print the measurements of one cluster."""
    parser = argparse.ArgumentParser(description="One cluster, from scratch and changed, as JSON.")
    parser.add_argument("identities", type=int)
    parser.add_argument("changes", type=int)
    options = parser.parse_args()
    print(json.dumps(_measure(options.identities, options.changes)))


if __name__ == "__main__":
    main()
