"""Names of ICMP messages in summaries and in the metric hubble_icmp_total: `DestinationUnreachable(Port)`.

Numbers are those of RFC 792, RFC 1812, RFC 4443 and RFC 4861; the words are those that scripts and dashboards
ask for.
"""

from __future__ import annotations

FRAGMENTS = "FragmentReassemblyTimeExceeded"

ICMP = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    4: "SourceQuench",
    5: "Redirect",
    8: "EchoRequest",
    9: "RouterAdvertisement",
    10: "RouterSolicitation",
    11: "TimeExceeded",
    12: "ParameterProblem",
    13: "TimestampRequest",
    14: "TimestampReply",
    15: "InfoRequest",
    16: "InfoReply",
    17: "AddressMaskRequest",
    18: "AddressMaskReply",
}
ICMP_CODES = {
    3: (
        "Net",
        "Host",
        "Protocol",
        "Port",
        "FragmentationNeeded",
        "SourceRoutingFailed",
        "NetUnknown",
        "HostUnknown",
        "SourceIsolated",
        "NetAdminProhibited",
        "HostAdminProhibited",
        "NetTOS",
        "HostTOS",
        "CommAdminProhibited",
        "HostPrecedence",
        "PrecedenceCutoff",
    ),
    5: ("Net", "Host", "TOS+Net", "TOS+Host"),
    11: ("TTLExceeded", FRAGMENTS),
    12: ("PointerIndicatesError", "MissingOption", "BadLength"),
}

ICMPV6 = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    4: "ParameterProblem",
    128: "EchoRequest",
    129: "EchoReply",
    130: "MLDv1MulticastListenerQueryMessage",
    131: "MLDv1MulticastListenerReportMessage",
    132: "MLDv1MulticastListenerDoneMessage",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
    137: "Redirect",
    143: "MLDv2MulticastListenerReportMessageV2",
}
ICMPV6_CODES = {
    1: (
        "NoRouteToDst",
        "AdminProhibited",
        "BeyondScopeOfSrc",
        "AddressUnreachable",
        "PortUnreachable",
        "SrcAddressFailedPolicy",
        "RejectRouteToDst",
    ),
    3: ("HopLimitExceeded", FRAGMENTS),
    4: ("ErroneousHeaderField", "UnrecognizedNextHeader", "UnrecognizedIPv6Option"),
}


def icmp_name(kind: int, code: int, *, six: bool) -> str:
    """A type and code as one word."""
    names, codes = (ICMPV6, ICMPV6_CODES) if six else (ICMP, ICMP_CODES)
    name = names.get(kind)
    if name is None:
        return f"{kind}({code})"
    known = codes.get(kind)
    if known is not None and code < len(known):
        return f"{name}({known[code]})"
    return f"{name}(Code: {code})" if known is not None or code else name
