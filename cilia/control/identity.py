"""The identities known here: reserved, the cluster's, one for each prefix that a policy speaks of, one for
each address of the API server outside the cluster, and one for each address of another node when policies
tell nodes apart.

A local number is made from the text it stands for, so that it is the same after a restart and on every node
without being remembered; two texts that hash alike are told apart by taking the next free number. Numbers
found in the kernel at start go before, because flows under way carry them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sized

from cilia.control.apiserver import ApiServerAddress, addresses_table
from cilia.control.nodes import known_nodes
from cilia.control.policy.meaning.expand import PolicyKey, PolicyRules, RuleNode
from cilia.control.policy.meaning.selection import cidr_label
from cilia.control.policy.meaning.spans import Prefixes, Span
from cilia.model.identity import (
    HOST,
    LOCAL_CIDR_FIRST,
    LOCAL_NODE_FIRST,
    WORLD_IPV4,
    WORLD_IPV6,
    Identity,
    reserved_identities,
)
from cilia.model.ids import IdentityId
from cilia.model.labels import CLUSTER, NAMESPACE, NAMESPACE_LABELS, SERVICE_ACCOUNT, Label, Labels
from cilia.model.node import Node
from cilia.model.policy import CidrIdentity
from cilia.schema import Desired, Inputs
from cilia.tables.table import Table

_EVERYWHERE = {"0.0.0.0/0": WORLD_IPV4, "::/0": WORLD_IPV6}
_NUMBERS = LOCAL_NODE_FIRST - LOCAL_CIDR_FIRST - 1

_OF_PODS = frozenset({NAMESPACE, SERVICE_ACCOUNT, CLUSTER})
"""Labels by which selectors know pods: a node that carries them must not pass for one."""


class IdentityNode:
    """cluster_identities + rules + nodes + addresses of the API server -> identities; `cidrs` and `node_ids`:
    those of prefixes."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        rules: RuleNode,
        *,
        restored: Mapping[str, IdentityId] | None = None,
        node: str = "",
        own: Node | None = None,
        apiservers: Table[str, ApiServerAddress] | None = None,
        cidr_nodes: bool = False,
    ) -> None:
        """`rules` is shared with `control.policy`; `restored` are the prefixes found in the kernel; `own` is
        what the node called `node` knows of itself; `cidr_nodes`: CIDR rules mean nodes, too."""
        self.cidrs: Table[str, CidrIdentity] = Table("cidrs", lambda row: row.prefix)
        self.node_ids: Table[str, CidrIdentity] = Table("node_ids", lambda row: row.prefix)
        """Addresses of other nodes, when policies tell them apart: by host prefix."""
        self._inputs = inputs
        self._desired = desired
        self._node = node
        self._own = own
        self._apiservers = addresses_table() if apiservers is None else apiservers
        self._apiserver_changes = self._apiservers.cursor()
        self._outside: frozenset[str] = frozenset()
        """The API server's prefixes outside the cluster that have an identity, or are about to lose it."""
        self._cidr_nodes = cidr_nodes
        self._cluster = inputs.cluster_identities.cursor()
        self._rules = rules.rules.cursor()
        self._nodes = inputs.nodes.cursor()
        self._numbers = LocalAllocator(LOCAL_CIDR_FIRST, restored)
        self._node_numbers = LocalAllocator(LOCAL_NODE_FIRST, restored)
        self._speaking: dict[str, int] = {}
        """How many policies speak of a prefix."""
        self._of_policy: dict[PolicyKey, frozenset[str]] = {}
        self._telling: set[PolicyKey] = set()
        """The policies that tell nodes apart."""
        self._inside: dict[PolicyKey, Prefixes] = {}
        """The prefixes by which policies mean nodes within."""
        self._some_inside = False
        """Some address of another node is within such a prefix."""
        self._nodes_leave = False
        """Addresses of nodes have identities that they will lose."""
        self.came = False
        """The last step gave prefixes identities that they did not have."""
        self.leaving = False
        """The last step kept identities that the next one takes away."""
        for identity in reserved_identities():
            desired.identities.put(identity)
        self._step_nodes()

    def step(self, *, keep: bool = False) -> None:
        """Bring the identities up to date. `keep`: those of prefixes of which nobody speaks any more stay
        until the next step."""
        self.came = self.leaving = False
        put, deleted = self._cluster.take()
        for identity in put:
            self._desired.identities.put(identity)
        for number in deleted:
            self._desired.identities.delete(number)
        rules, gone = self._rules.take()
        told_apart = self._tells_nodes_apart
        for row in rules:
            self._speak(row.key, row.prefixes)
            self._note_telling(row)
        for key in gone:
            self._speak(key, frozenset())
            self._telling.discard(key)
            self._inside.pop(key, None)
        if rules or gone or self._nodes.pending:
            self._some_inside = self._is_some_inside()
        moved = self._follow_apiserver(keep)
        if rules or gone or moved or self._are_some_unwanted:
            self._allocate(keep)
        if moved or self._nodes.pending or told_apart != self._tells_nodes_apart or self._nodes_leave:
            self._nodes.take()
            self._step_nodes(keep)

    def _follow_apiserver(self, keep: bool) -> bool:
        """Give its addresses outside the cluster their labels, and take them from others; returns whether
        any of its addresses changed."""
        moved = self._apiserver_changes.pending
        self._apiserver_changes.take()
        now = frozenset(host_prefix(row.address) for row in self._apiservers if row.outside)
        before, self._outside = self._outside, now | self._outside if keep else now
        for prefix in before ^ self._outside:
            known = self.cidrs.get(prefix)
            if known is not None:
                self._desired.identities.put(Identity(known.identity, self._labels_of_prefix(prefix)))
        self.leaving |= self._outside != now
        return moved or before != self._outside

    @property
    def _are_some_unwanted(self) -> bool:
        """Prefixes have identities of which nobody speaks any more."""
        unspoken = sum(prefix not in self._speaking for prefix in self._outside)
        return len(self._numbers) > len(self._speaking) + unspoken

    @property
    def _tells_nodes_apart(self) -> bool:
        return self._cidr_nodes or bool(self._telling) or self._some_inside

    def _is_some_inside(self) -> bool:
        return any(
            prefixes.contain(Span(address))
            for prefixes in self._inside.values()
            for node in known_nodes(self._inputs.nodes, self._own)
            if node.name != self._node
            for address in (*node.addresses, *node.router_addresses)
        )

    def _note_telling(self, row: PolicyRules) -> None:
        if row.tells_nodes_apart:
            self._telling.add(row.key)
        else:
            self._telling.discard(row.key)
        inside = row.inside
        if inside:
            self._inside[row.key] = Prefixes(inside)
        else:
            self._inside.pop(row.key, None)

    def _step_nodes(self, keep: bool = False) -> None:
        """This node's labels; with the others' an identity per address, or none. There are few nodes."""
        nodes = known_nodes(self._inputs.nodes, self._own)
        self._desired.identities.put(Identity(HOST, self._host_labels(nodes)))
        others: dict[str, Labels] = {}
        if self._tells_nodes_apart:
            for node in sorted(nodes, key=lambda node: node.name, reverse=True):
                if node.name != self._node:
                    others.update(self._labels_of(node))
        came, gone = self._node_numbers.settle(others, keep)
        self._nodes_leave = len(self._node_numbers) > len(others)
        self._note(came, self._nodes_leave)
        numbers = {**{row.prefix: row.identity for row in self.node_ids}, **dict(came)}
        for prefix, number in gone:
            self.node_ids.delete(prefix)
            self._desired.identities.delete(number)
        for prefix, labels in others.items():
            self._desired.identities.put(Identity(numbers[prefix], labels))
            self.node_ids.put(CidrIdentity(prefix, numbers[prefix]))

    def _host_labels(self, nodes: Iterable[Node]) -> Labels:
        own = next((node for node in nodes if node.name == self._node), None)
        labels = [Label("reserved", "host")]
        if own is not None:
            # What the cluster says of our labels is newer than what we knew at start.
            told = self._inputs.nodes.get(self._node) or own
            labels += node_labels(told)
            addresses = (*own.addresses, *own.router_addresses)
            if any(address in self._apiservers for address in addresses):
                labels.append(Label("reserved", "kube-apiserver"))
            if self._cidr_nodes:
                labels += [cidr_label(host_prefix(address)) for address in addresses]
        return Labels.of(labels)

    def _labels_of(self, node: Node) -> Iterator[tuple[str, Labels]]:
        """Host prefix and labels of each address of another node."""
        shared = [Label("reserved", "remote-node"), *node_labels(node)]
        if any(address in self._apiservers for address in node.addresses):
            shared.append(Label("reserved", "kube-apiserver"))
        for address in (*node.addresses, *node.router_addresses):
            prefix = host_prefix(address)
            yield prefix, Labels.of([*shared, cidr_label(prefix)])

    def _labels_of_prefix(self, prefix: str) -> Labels:
        labels = cidr_labels(prefix)
        if prefix in self._outside:
            return Labels.of((*labels.items, Label("reserved", "kube-apiserver")))
        return labels

    def _speak(self, key: PolicyKey, prefixes: frozenset[str]) -> None:
        """Replace what one policy speaks of."""
        before = self._of_policy.pop(key, frozenset())
        for prefix in prefixes - before:
            self._speaking[prefix] = self._speaking.get(prefix, 0) + 1
        for prefix in before - prefixes:
            self._speaking[prefix] -= 1
            if not self._speaking[prefix]:
                del self._speaking[prefix]
        if prefixes:
            self._of_policy[key] = prefixes

    def _note(self, came: Sized, leaving: bool) -> None:
        self.came |= bool(came)
        self.leaving |= leaving

    def _allocate(self, keep: bool) -> None:
        came, gone = self._numbers.settle(self._speaking.keys() | self._outside, keep)
        self._note(came, self._are_some_unwanted)
        for prefix, number in came:
            if prefix not in _EVERYWHERE:
                self._desired.identities.put(Identity(number, self._labels_of_prefix(prefix)))
            self.cidrs.put(CidrIdentity(prefix, number))
        for prefix, number in gone:
            self.cidrs.delete(prefix)
            if prefix not in _EVERYWHERE:
                self._desired.identities.delete(number)


def host_prefix(address: str) -> str:
    """An address as the prefix that holds it alone."""
    return f"{address}/128" if ":" in address else f"{address}/32"


def node_labels(node: Node) -> list[Label]:
    """A node's labels as its identities carry them."""
    return [
        Label("k8s", key, value)
        for key, value in node.labels.items()
        if key not in _OF_PODS and not key.startswith(NAMESPACE_LABELS)
    ]


def cidr_labels(prefix: str) -> Labels:
    """The labels of a prefix's identity: the prefix itself, and the world it is in."""
    family = 6 if ":" in prefix else 4
    return Labels.of(
        [cidr_label(prefix), Label("reserved", "world"), Label("reserved", f"world-ipv{family}")]
    )


class LocalAllocator:
    """Numbers for prefixes, from `first` (1<<24 or 2<<24) up."""

    def __init__(
        self, first: int = LOCAL_CIDR_FIRST, restored: Mapping[str, IdentityId] | None = None
    ) -> None:
        self._first = first
        self._restored = {
            prefix: number
            for prefix, number in (restored or {}).items()
            if first < number <= first + _NUMBERS
        }
        self._numbers: dict[str, IdentityId] = {}

    def __len__(self) -> int:
        """How many prefixes have a number."""
        return len(self._numbers)

    def settle(
        self, wanted: Iterable[str], keep: bool = False
    ) -> tuple[list[tuple[str, IdentityId]], list[tuple[str, IdentityId]]]:
        """Tell which prefixes are spoken of now; returns those that came and those that went.

        Numbers of prefixes that go are not given to prefixes that come in the same turn. `keep`: none goes.
        """
        present = set(wanted)
        if keep:
            present |= self._numbers.keys()
        came = sorted(present - self._numbers.keys())
        taken = set(self._numbers.values()) | set(self._restored.values())
        for prefix in came:
            number = _EVERYWHERE.get(prefix) or self._restored.get(prefix)
            if number is None:
                number = IdentityId(self._first + first_choice(prefix))
                while number in taken:
                    number = IdentityId(self._first + (number - self._first) % _NUMBERS + 1)
            taken.add(number)
            self._numbers[prefix] = number
        gone = sorted(self._numbers.keys() - present)
        return [(p, self._numbers[p]) for p in came], [(p, self._numbers.pop(p)) for p in gone]


def first_choice(prefix: str) -> int:
    """The number of a prefix in its range (1.. 2^24 - 1) unless another has it already."""
    digest = hashlib.blake2b(prefix.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % _NUMBERS
