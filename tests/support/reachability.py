"""Who reaches whom, read from the desired tables as the data path would read its maps."""

from __future__ import annotations

import ipaddress

from cilia.control.policy.entries.resolve import decide
from cilia.control.policy.rules import TCP
from cilia.model.policy import Direction
from cilia.schema import Desired


def identity_of(desired: Desired, address: str) -> int:
    """The identity of the longest prefix around an address, 0 when there is none."""
    found = [
        (ipaddress.ip_network(row.prefix).prefixlen, row.identity)
        for row in desired.ipcache
        if ipaddress.ip_address(address) in ipaddress.ip_network(row.prefix)
    ]
    return max(found, default=(0, 0))[1]


def reaches(desired: Desired, source: str, destination: str, port: int = 80) -> bool:
    """Whether a TCP connection gets through the policies of both sides that are on this node."""
    peers = {source: identity_of(desired, source), destination: identity_of(desired, destination)}
    sides = ((source, destination, Direction.EGRESS), (destination, source, Direction.INGRESS))
    return all(_side_allows(desired, own, peers[other], direction, port) for own, other, direction in sides)


def _side_allows(desired: Desired, own: str, peer: int, direction: Direction, port: int) -> bool:
    (entry,) = [row for row in desired.endpoint_entries if own in (row.ipv4, row.ipv6)] or (None,)
    if entry is None:
        return True
    subject = desired.subjects.get(entry.subject)
    hit = decide(subject.entries, peer, direction, TCP, port) if subject is not None else None
    return hit is not None and hit[1].allow
