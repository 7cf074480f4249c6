"""Flow.l4 of rows: ports, TCP's flags, types of ICMP, from tables that are made once.

Most protocols that are seen have ports, and ports are all that differs from flow to flow. So a header is put
together of four columns: what stands before the ports, both ports, the flags.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from cilia.hubble.blocks import Ports
from cilia.hubble.columns import Events, translated
from cilia.hubble.encode import LENGTH, block, number, tag, varint
from cilia.hubble.protocols import ICMP, ICMPV6, IGMP, SCTP, TCP, UDP, VRRP

TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
"""By bit; the field numbers of flow.TCPFlags are one more."""

MADE = 1 << 17
"""Ports and lengths that are remembered as bytes."""

PORTS = frozenset({"source_port", "destination_port"})

LAYER4_FIELDS = {TCP: 1, UDP: 2, SCTP: 5}
"""Of flow.Layer4, for protocols that have ports."""

BARE_FIELDS = {VRRP: 6, IGMP: 7}
"""The same, for protocols of which the event says no more."""

LAYER4_KEYS = np.zeros(256, np.uint8)
"""Key of a protocol's field; 0: it has no ports."""
LAYER4_KEYS[list(LAYER4_FIELDS)] = [tag(field, LENGTH)[0] for field in LAYER4_FIELDS.values()]

NO_PORT = np.uint32(1 << 16)

PORT_SIZES = np.array([0, *((1 + len(varint(value))) for value in range(1, 1 << 16)), 0], np.int64)
"""Bytes of `port`."""


def tcp_flags(bits: int) -> bytes:
    """flow.TCPFlags of the flag byte of a TCP header."""
    return b"".join(number(bit + 1, bits >> bit & 1) for bit in range(8))


TCP_FLAG_FIELDS = [block(3, tcp_flags(bits)) if bits else b"" for bits in range(256)]
"""TCP.flags by flag byte."""

FLAG_SIZES = np.array([len(field) for field in TCP_FLAG_FIELDS], np.int64)


class Made(dict[int, bytes]):
    """A dictionary that makes what is missing."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        self._make = make

    def __missing__(self, key: int) -> bytes:
        if len(self) > MADE:
            self.clear()
        value = self[key] = self._make(key)
        return value


def layer4_head(key: int) -> bytes:
    """What stands before the ports, for a protocol and the size of what follows; all of an ICMP header."""
    protocol, size = key >> 8, key & 0xFF
    if not key >> 32:
        return tag(6, LENGTH) + bytes((size + 2,)) + tag(LAYER4_FIELDS[protocol], LENGTH) + bytes((size,))
    protocol = key >> 16 & 0xFF
    if protocol in BARE_FIELDS:
        return block(6, block(BARE_FIELDS[protocol], b""))
    if protocol not in (ICMP, ICMPV6):
        return b""
    kind = number(1, key >> 8 & 0xFF) + number(2, key & 0xFF)
    return block(6, block(3 if protocol == ICMP else 4, kind))


def port(field: int) -> Callable[[int], bytes]:
    """A port with its key, and nothing for NO_PORT and 0."""
    return lambda value: number(field, value) if value != NO_PORT else b""


LAYER4_HEADS, SOURCE_PORTS, DESTINATION_PORTS = Made(layer4_head), Made(port(1)), Made(port(2))


def ports_of(events: Events) -> Ports:
    """The ports of each flow, where it has some."""
    protocol = events["protocol"]
    return Ports(
        LAYER4_KEYS[protocol],
        np.where(translated(events), events["original_source_port"], events["source_port"]),
        events["destination_port"],
        np.where(protocol == TCP, FLAG_SIZES[events["tcp_flags"]], 0).astype(np.uint8),
    )


def transports(
    events: Events, ports: Collection[str] = ("source_port", "destination_port")
) -> list[list[bytes]]:
    """Flow.l4 in four columns to be joined: what stands before, both ports, TCP's flags. Protocols without
    ports have all in the first. `ports`: those that are wanted."""
    protocol = events["protocol"]
    ported = np.isin(protocol, list(LAYER4_FIELDS))
    source = np.where(translated(events), events["original_source_port"], events["source_port"])
    source = np.where(ported & ("source_port" in ports), source, NO_PORT)
    destination = np.where(ported & ("destination_port" in ports), events["destination_port"], NO_PORT)
    flags = np.where(protocol == TCP, events["tcp_flags"], np.uint8(0))
    heads = protocol.astype(np.int64) << 8 | PORT_SIZES[source] + PORT_SIZES[destination] + FLAG_SIZES[flags]
    others = 1 << 32 | protocol.astype(np.int64) << 16 | events["icmp_type"].astype(np.int64) << 8
    heads = np.where(ported, heads, others | events["icmp_code"])
    tables: list[Sequence[bytes] | Mapping[int, bytes]] = [
        LAYER4_HEADS,
        SOURCE_PORTS,
        DESTINATION_PORTS,
        TCP_FLAG_FIELDS,
    ]
    return [
        list(map(table.__getitem__, keys.tolist()))
        for table, keys in zip(tables, (heads, source, destination, flags), strict=True)
    ]
