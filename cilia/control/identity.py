"""The identities known here: reserved, the cluster's, and one for each prefix that a policy speaks of.

A prefix's number is made from its text, so that it is the same after a restart and on every node without
being remembered; two prefixes that hash alike are told apart by taking the next free number. Numbers found
in the kernel at start go before, because flows under way carry them.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping

from cilia.control.policy.parse import RuleBook
from cilia.control.policy.selection import cidr_label
from cilia.model.identity import (
    LOCAL_CIDR_FIRST,
    LOCAL_NODE_FIRST,
    WORLD_IPV4,
    WORLD_IPV6,
    Identity,
    reserved_identities,
)
from cilia.model.ids import IdentityId
from cilia.model.labels import Label, Labels
from cilia.model.policy import CidrIdentity
from cilia.schema import Desired, Inputs
from cilia.tables.table import Table

_EVERYWHERE = {"0.0.0.0/0": WORLD_IPV4, "::/0": WORLD_IPV6}
_NUMBERS = LOCAL_NODE_FIRST - LOCAL_CIDR_FIRST - 1


class IdentityNode:
    """cluster_identities + policies -> identities, and `cidrs`: the identity of each prefix."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        book: RuleBook | None = None,
        *,
        restored: Mapping[str, IdentityId] | None = None,
    ) -> None:
        """`book` is shared with `control.policy`; `restored` are the prefixes found in the kernel."""
        self.cidrs: Table[str, CidrIdentity] = Table("cidrs", lambda row: row.prefix)
        self._desired = desired
        self._book = book or RuleBook()
        self._cluster = inputs.cluster_identities.cursor()
        self._policies = inputs.policies.cursor()
        self._numbers = CidrAllocator(restored)
        self._speaking: dict[str, int] = {}
        """How many policies speak of a prefix."""
        self._of_policy: dict[tuple[str, str, str], frozenset[str]] = {}
        for identity in reserved_identities():
            desired.identities.put(identity)

    def step(self) -> None:
        """Bring the identities up to date."""
        put, deleted = self._cluster.take()
        for identity in put:
            self._desired.identities.put(identity)
        for number in deleted:
            self._desired.identities.delete(number)
        policies, gone = self._policies.take()
        for policy in policies:
            self._speak(policy.key, self._book.parsed(policy).prefixes)
        for key in gone:
            self._speak(key, frozenset())
        if policies or gone:
            self._allocate()

    def _speak(self, key: tuple[str, str, str], prefixes: frozenset[str]) -> None:
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

    def _allocate(self) -> None:
        came, gone = self._numbers.settle(self._speaking)
        for prefix, number in came:
            if prefix not in _EVERYWHERE:
                self._desired.identities.put(Identity(number, cidr_labels(prefix)))
            self.cidrs.put(CidrIdentity(prefix, number))
        for prefix, number in gone:
            self.cidrs.delete(prefix)
            if prefix not in _EVERYWHERE:
                self._desired.identities.delete(number)


def cidr_labels(prefix: str) -> Labels:
    """The labels of a prefix's identity: the prefix itself, and the world it is in."""
    family = ipaddress.ip_network(prefix).version
    return Labels.of(
        [cidr_label(prefix), Label("reserved", "world"), Label("reserved", f"world-ipv{family}")]
    )


class CidrAllocator:
    """Numbers for prefixes, from 1<<24 up."""

    def __init__(self, restored: Mapping[str, IdentityId] | None = None) -> None:
        self._restored = dict(restored or {})
        self._numbers: dict[str, IdentityId] = {}

    def settle(
        self, wanted: Iterable[str]
    ) -> tuple[list[tuple[str, IdentityId]], list[tuple[str, IdentityId]]]:
        """Tell which prefixes are spoken of now; returns those that came and those that went.

        Numbers of prefixes that go are not given to prefixes that come in the same turn.
        """
        present = set(wanted)
        came = sorted(present - self._numbers.keys())
        taken = set(self._numbers.values()) | set(self._restored.values())
        for prefix in came:
            number = _EVERYWHERE.get(prefix) or self._restored.get(prefix)
            if number is None:
                number = first_choice(prefix)
                while number in taken:
                    number = IdentityId(LOCAL_CIDR_FIRST + (number - LOCAL_CIDR_FIRST) % _NUMBERS + 1)
            taken.add(number)
            self._numbers[prefix] = number
        gone = sorted(self._numbers.keys() - present)
        return [(p, self._numbers[p]) for p in came], [(p, self._numbers.pop(p)) for p in gone]


def first_choice(prefix: str) -> IdentityId:
    """The number of a prefix unless another has it already."""
    digest = hashlib.blake2b(prefix.encode(), digest_size=8).digest()
    return IdentityId(LOCAL_CIDR_FIRST + 1 + int.from_bytes(digest, "big") % _NUMBERS)
