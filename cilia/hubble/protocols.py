"""Transport protocols: their numbers, assigned by IANA, and their names in Hubble's flows and metrics."""

from __future__ import annotations

ICMP, IGMP, TCP, UDP, ICMPV6, VRRP, SCTP = 1, 2, 6, 17, 58, 112, 132

NAMES = {
    TCP: "TCP",
    UDP: "UDP",
    ICMP: "ICMPv4",
    ICMPV6: "ICMPv6",
    SCTP: "SCTP",
    VRRP: "VRRP",
    IGMP: "IGMP",
}

WITH_PORTS = (TCP, UDP, SCTP)
