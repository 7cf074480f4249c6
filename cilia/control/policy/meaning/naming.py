"""Names of ports: the identities whose endpoints give a port a name, and the numbers it then has."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Set

from cilia.control.policy.ports import PROTOCOLS
from cilia.control.policy.rules import PortName
from cilia.model.endpoint import NamedPort
from cilia.model.ids import IdentityId

Claim = tuple[IdentityId, tuple[NamedPort, ...]]
"""Whom an endpoint speaks for, and its named ports."""

_NOBODY: frozenset[IdentityId] = frozenset()


class PortNames:
    """The named ports of every endpoint known, here or elsewhere, by identity."""

    def __init__(self) -> None:
        self._claims: dict[Hashable, Claim] = {}
        self._numbers: dict[PortName, dict[IdentityId, dict[int, int]]] = {}
        """Name to identity to number to how many endpoints say so."""

    def claim(self, endpoint: Hashable, claim: Claim | None) -> list[tuple[IdentityId, PortName]]:
        """Replace what an endpoint says (None: it is gone); returns for whom a name now means others."""
        before = self._claims.pop(endpoint, None)
        if claim is not None and claim[1]:
            self._claims[endpoint] = claim
        if before == claim:
            return []
        old, new = set(_facts(before)), set(_facts(claim))
        changed = [(i, name) for i, name, number in old - new if self._count(i, name, number, -1)]
        return changed + [(i, name) for i, name, number in new - old if self._count(i, name, number, 1)]

    def numbers(self, identity: IdentityId, name: PortName) -> frozenset[int]:
        """The numbers that endpoints of an identity give a port name."""
        return frozenset(self._numbers.get(name, {}).get(identity, ()))

    def naming(self, name: PortName) -> Set[IdentityId]:
        """The identities some endpoint of which has a port of that name (live: not to be changed or kept)."""
        found = self._numbers.get(name)
        return found.keys() if found is not None else _NOBODY

    def all(self) -> dict[IdentityId, frozenset[NamedPort]]:
        """Every named port by identity: a copy."""
        found: dict[IdentityId, set[NamedPort]] = {}
        for identity, ports in self._claims.values():
            found.setdefault(identity, set()).update(ports)
        return {identity: frozenset(ports) for identity, ports in found.items()}

    def _count(self, identity: IdentityId, name: PortName, number: int, more: int) -> bool:
        """Count a saying; returns whether it is the first or was the last of its kind."""
        of_name = self._numbers.setdefault(name, {})
        numbers = of_name.setdefault(identity, {})
        count = numbers[number] = numbers.get(number, 0) + more
        if not count:
            del numbers[number]
            if not numbers:
                del of_name[identity]
            if not of_name:
                del self._numbers[name]
        return count == max(more, 0)


def _facts(claim: Claim | None) -> Iterable[tuple[IdentityId, PortName, int]]:
    if claim is None or not claim[0]:
        return
    for port in claim[1]:
        for protocol in PROTOCOLS.get(port.protocol, ()):
            yield claim[0], PortName(protocol, port.name), port.port
