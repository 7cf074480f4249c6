"""The line that says of a flow what its transport header was (Flow.Summary), word for word as Hubble has it.

The field is deprecated, but it stands in brackets at the end of every printed flow, and scripts search it.
"""

from __future__ import annotations

import numpy as np

from cilia.hubble.columns import KIND_SOCKET
from cilia.hubble.icmp import icmp_name

TCP, ICMP, ICMPV6 = 6, 1, 58
SOCKETS = {6: "TCP", 17: "UDP"}
WORDS = {17: "UDP", 132: "SCTP", 2: "IGMP", 112: "VRRP"}

FLAGS = tuple(
    (1 << bit, name)
    for bit, name in (
        (1, "SYN"),
        (4, "ACK"),
        (2, "RST"),
        (0, "FIN"),
        (3, "PSH"),
        (5, "URG"),
        (6, "ECE"),
        (7, "CWR"),
    )
)
"""Bits of TCP's flag byte in the order they are named: `SYN, ACK`, `ACK, FIN`, `ACK, PSH`."""


def header_summary(event: np.void) -> str:
    """Flags, types and codes; else the protocol's name. Sockets have no header, only a protocol."""
    protocol = int(event["protocol"])
    if int(event["kind"]) == KIND_SOCKET:
        return SOCKETS.get(protocol, "Unknown")
    if protocol == TCP:
        bits = int(event["tcp_flags"])
        return "TCP Flags: " + ", ".join(name for bit, name in FLAGS if bits & bit)
    if protocol in (ICMP, ICMPV6):
        name = icmp_name(int(event["icmp_type"]), int(event["icmp_code"]), six=protocol == ICMPV6)
        return f"{'ICMPv6' if protocol == ICMPV6 else 'ICMPv4'} {name}"
    if protocol in WORDS:
        return WORDS[protocol]
    return f"IP protocol {protocol}" if protocol else ""
