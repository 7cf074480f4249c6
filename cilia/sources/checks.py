"""What a cluster object may say before it becomes a row: addresses, prefixes, ports.

Other programs write these objects, so anything may stand in them; what comes out of here the kernel can
hold. Everything raises Invalid with a sentence.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable

from cilia.cluster.store import Invalid
from cilia.model.endpoint import NamedPort

_PREFIX = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?")
"""An address with the length of a prefix: neither a mask of bits nor a zone."""

PROTOCOLS = frozenset({"TCP", "UDP", "SCTP"})


def address(text: str) -> str:
    """Return a unicast address in its one spelling."""
    return _common(text) or _any(text)


def _common(text: str) -> str:
    """The same for the addresses that nearly all objects have, in a tenth of the time; empty for others.

    A slice may hold a thousand, and come a thousand times a second.
    """
    try:
        packed = socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return ""
    return text if 0 < packed[0] < 224 and packed[0] != 127 else ""


def _any(text: str) -> str:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(f"{text[:60]!r} is no IP address") from None
    if found.version == 6 and (found.scope_id or found.ipv4_mapped):
        raise Invalid(f"{text!r} can't stand for a host: IPv6 with a zone, or IPv4 in disguise")
    if found.is_multicast or found.is_unspecified or found.is_loopback:
        raise Invalid(f"{text!r} is the address of no single host")
    return str(found)


def prefix(text: str) -> str:
    """Return a prefix in its one spelling, without host bits."""
    found = _network(text)
    if found.prefixlen == 0:
        raise Invalid(f"{text!r} is everybody's address, not a range of pods")
    address(str(found.network_address))
    return str(found)


def block(text: str) -> str:
    """Return a rule's block of addresses in its one spelling, without host bits; /0 is one, too."""
    found = _network(text)
    if isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped is not None:
        raise Invalid(f"{text!r} is IPv4 in disguise: write it as IPv4")
    return str(found)


def named_ports(ports: Iterable[tuple[str | None, int | None, str | None]]) -> tuple[NamedPort, ...]:
    """Return the (name, number, protocol) triples that name a port; others select nothing."""
    return tuple(
        NamedPort(name, number, protocol or "TCP")
        for name, number, protocol in ports
        if name and number and 0 < number < 65536 and (protocol or "TCP") in PROTOCOLS
    )


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Read an address, a slash and a length: no masks, no zones."""
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        found = None
    if found is None or not _PREFIX.fullmatch(text):
        raise Invalid(f"{text[:60]!r} is no address prefix")
    return found
