"""Ports: ranges cut into the prefixes a longest-prefix match can hold, and the names of ICMP types."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from cilia.control.policy.rules import ICMP, ICMPV6, SCTP, TCP, UDP, PortName, PortRange
from cilia.model.endpoint import NamedPort

PROTOCOL_BITS = 8
FULL_BITS = 24
"""Bits of protocol and port together."""

PROTOCOLS = {"TCP": (TCP,), "UDP": (UDP,), "SCTP": (SCTP,), "ANY": (TCP, UDP, SCTP)}
"""Protocols by the names policies use; ANY means every protocol that has ports."""


class PortPrefix(NamedTuple):
    """Protocol and leading bits of the port: the part of a policy key that is matched by prefix.

    `bits` is 0 (everything), 8 (a protocol) or 8 plus the leading bits of `port` that count.
    """

    protocol: int = 0
    port: int = 0
    bits: int = 0

    def parents(self) -> tuple[PortPrefix, ...]:
        """Every wider prefix that contains this one, the narrowest first."""
        return _parents(self)


@lru_cache(maxsize=4096)
def _parents(prefix: PortPrefix) -> tuple[PortPrefix, ...]:
    if not prefix.bits:
        return ()
    lengths = range(prefix.bits - 1, PROTOCOL_BITS - 1, -1)
    same = (PortPrefix(prefix.protocol, prefix.port & mask(bits), bits) for bits in lengths)
    return (*same, PortPrefix())


def mask(bits: int) -> int:
    """The mask of the port's bits that count in a prefix of 8..24 `bits`."""
    return (0xFFFF << (FULL_BITS - bits)) & 0xFFFF


@lru_cache(maxsize=16384)
def prefixes(ports: PortRange) -> tuple[PortPrefix, ...]:
    """The fewest prefixes that cover exactly a range (at most 30 of them)."""
    if not ports.protocol:
        return (PortPrefix(),)
    cut: list[PortPrefix] = []
    first, last = ports.first, ports.last
    while first <= last:
        size = first & -first or 65536
        while size > last - first + 1:
            size //= 2
        cut.append(PortPrefix(ports.protocol, first, FULL_BITS + 1 - size.bit_length()))
        first += size
    return tuple(cut)


def numbers(named_ports: Iterable[NamedPort], name: PortName) -> frozenset[int]:
    """The port numbers that an endpoint with these ports gives a name."""
    return frozenset(
        port.port
        for port in named_ports
        if port.name == name.name and name.protocol in PROTOCOLS.get(port.protocol, ())
    )


def whole(protocol: int, number: int) -> PortPrefix:
    """The prefix of one port."""
    return PortPrefix(protocol, number, FULL_BITS)


ICMP_TYPES = {
    "IPv4": {
        "EchoReply": 0,
        "DestinationUnreachable": 3,
        "Redirect": 5,
        "Echo": 8,
        "EchoRequest": 8,
        "RouterAdvertisement": 9,
        "RouterSelection": 10,
        "TimeExceeded": 11,
        "ParameterProblem": 12,
        "Timestamp": 13,
        "TimestampReply": 14,
        "Photuris": 40,
        "ExtendedEchoRequest": 42,
        "ExtendedEchoReply": 43,
        "ExtendedEcho Reply": 43,
    },
    "IPv6": {
        "DestinationUnreachable": 1,
        "PacketTooBig": 2,
        "TimeExceeded": 3,
        "ParameterProblem": 4,
        "EchoRequest": 128,
        "EchoReply": 129,
        "MulticastListenerQuery": 130,
        "MulticastListenerReport": 131,
        "MulticastListenerDone": 132,
        "RouterSolicitation": 133,
        "RouterAdvertisement": 134,
        "NeighborSolicitation": 135,
        "NeighborAdvertisement": 136,
        "RedirectMessage": 137,
        "RouterRenumbering": 138,
        "ICMPNodeInformationQuery": 139,
        "ICMPNodeInformationResponse": 140,
        "InverseNeighborDiscoverySolicitation": 141,
        "InverseNeighborDiscoveryAdvertisement": 142,
        "HomeAgentAddressDiscoveryRequest": 144,
        "HomeAgentAddressDiscoveryReply": 145,
        "MobilePrefixSolicitation": 146,
        "MobilePrefixAdvertisement": 147,
        "DuplicateAddressRequestCodeSuffix": 157,
        "DuplicateAddressConfirmationCodeSuffix": 158,
        "ExtendedEchoRequest": 160,
        "ExtendedEchoReply": 161,
    },
}
"""Type numbers by family and name (IANA, ICMP and ICMPv6 parameters; names of the cilium.io resources)."""

ICMP_PROTOCOL = {"IPv4": ICMP, "IPv6": ICMPV6}


def icmp_type(family: str, name: int | str) -> int | None:
    """The number of an ICMP type given by number, by digits or by name; None for an unknown name."""
    if isinstance(name, int):
        return name
    return int(name) if name.isdigit() else ICMP_TYPES[family].get(name)
