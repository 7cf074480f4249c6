"""Rows to GetFlowsResponse bytes, from fragments made once per distinct value.

A protobuf message is the concatenation of its fields in any order, so a flow is put together from
fragments, each remembered under the bytes of the columns it depends on:

    time, uuid                    its own in every flow
    ports and flags               per (protocol, ports, flags)
    service                       per service and side
    both sides, addresses, rules  per pair of peers
    verdict, kind, point, ...     per meaning

Two or three thousand lines of real traffic share a few dozen of the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import msgspec
import numpy as np

from cilia.hubble import encode
from cilia.hubble.blocks import Own, Packer, Ports, joined, sizes_of, split
from cilia.hubble.columns import (
    EGRESS,
    FLAG_ENCRYPTED,
    FLAG_IPV6,
    FLAG_REPLY,
    KIND_DROP,
    KIND_SOCKET,
    KIND_TRACE,
    KIND_VERDICT,
    VERDICT_DROPPED,
    Events,
    Times,
    service_is_source,
    translated,
)
from cilia.hubble.directory import Party
from cilia.hubble.encode import LENGTH, block, number, tag, text, texts, varint
from cilia.hubble.masks import FlowMask, Wanted
from cilia.hubble.pairs import FROM_NETWORK, FROM_OVERLAY, Pairs, denied_by
from cilia.hubble.pairs import address as address
from cilia.hubble.past import Meanings
from cilia.hubble.protocols import ICMP, ICMPV6, IGMP, SCTP, TCP, UDP, VRRP
from cilia.hubble.remembered import Remembered
from cilia.hubble.ring import REFERENCES, AnyColumn, Rows
from cilia.hubble.rpc.messages import frame
from cilia.hubble.store import LossRow
from cilia.hubble.summary import header_summary

TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
"""By bit; the field numbers of flow.TCPFlags are one more."""

EVENT_TYPES = {KIND_DROP: 1, KIND_TRACE: 4, KIND_VERDICT: 5, KIND_SOCKET: 7}
"""Kind to the message type monitors know: drop, trace, policy verdict, socket translation."""

MADE = 1 << 17
"""Ports and lengths that are remembered as bytes."""

REMEMBERED_FRAGMENTS = 1 << 14
"""Per kind of fragment."""

CUT_FRAGMENTS, CUT_BYTES = 1 << 12, 1 << 20
"""Of each client that asks with a field mask."""

TO_ENDPOINT = 101
"""Of enum flow.TraceObservationPoint; as a sub-type of events it is 0, as Cilium counts."""

PAIR_FIELDS = ("source", "destination", "original_source", "tunnel", "vni", "source_mac", "destination_mac")
END_COLUMNS = (*((name, "u4") for name in REFERENCES), ("traits", "u1"))
"""With the fields above, everything on which names, addresses, service and rules depend."""
MEANING_FIELDS = tuple(
    """
    kind point verdict reason file line protocol icmp_type icmp_code tcp_flags direction state flags
    egress_match ingress_match auth proxy_port original_destination original_destination_port
    """.split()  # noqa: SIM905
)


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer of this node says about it."""

    version: str = ""
    """Of the agent; empty: flows name no emitter."""
    name: str
    """`cluster/node` or the node's name alone, as clients shall see it."""
    labels: tuple[str, ...] = ()
    files: Mapping[int, str] = {}
    """Number of a data-path source file (enum source_file) to its name."""


def file_names(sources: Mapping[str, int]) -> dict[int, str]:
    """Names for `NodeFacts.files` of the members of enum source_file: FILE_PARSE is `parse`."""
    return {number: name.removeprefix("FILE_").lower() for name, number in sources.items() if number}


class Fragments(NamedTuple):
    """Parts of flows, per row; no two columns hold the same field of a flow."""

    sources: list[bytes]
    destinations: list[bytes]
    services: list[bytes]
    pairs: list[bytes]
    meanings: list[bytes]
    sockets: list[bytes]


FIELDS_OF = {
    name: frozenset(fields.split())
    for name, fields in {
        "sources": "source source_names",
        "destinations": "destination destination_names",
        "services": "source_service destination_service",
        "pairs": """IP ethernet tunnel interface egress_allowed_by ingress_allowed_by egress_denied_by
            ingress_denied_by policy_log""",
        "meanings": """node_name node_labels emitter verdict auth_type Type reply event_type traffic_direction
            proxy_port Summary drop_reason drop_reason_desc file trace_observation_point trace_reason
            policy_match_type is_reply""",
        "sockets": "sock_xlate_point socket_cookie cgroup_id",
        "transports": "l4",
        "times": "time",
        "uuids": "uuid",
    }.items()
}
"""The fields of a flow that a column of fragments may hold."""


class Converter:
    """Makes messages of rows; one per store, shared by all clients."""

    def __init__(self, meanings: Meanings, node: NodeFacts) -> None:
        """`meanings`: what the rows point into."""
        self._meanings_of = meanings
        self._node = node
        self._head = text(11, node.name) + texts(37, node.labels) + emitter(node.version)
        self._tail = text(1000, node.name) + tag(1001, LENGTH)
        boot = f"{meanings.boot:016x}"
        self._uuid = tag(34, LENGTH) + f"${boot[:8]}-{boot[8:12]}-{boot[12:]}-8000-".encode()
        """All of the field but the row's number: 36 (`$`) characters follow the key."""
        self._own = Own(self._uuid)
        self._pair_maker = Pairs(meanings)
        self._node_name = text(1000, node.name)
        self._keys_of_ends = Packer(PAIR_FIELDS, END_COLUMNS)
        self._keys_of_meanings = Packer(MEANING_FIELDS)
        self._ends: Remembered[bytes, bytes] = Remembered(REMEMBERED_FRAGMENTS, len)
        self._whole_meanings: Remembered[bytes, bytes] = Remembered(REMEMBERED_FRAGMENTS, len)
        self._sources: Remembered[int, bytes] = Remembered(REMEMBERED_FRAGMENTS, len)
        self._destinations: Remembered[int, bytes] = Remembered(REMEMBERED_FRAGMENTS, len)
        self._pairs: Remembered[bytes, bytes] = Remembered(REMEMBERED_FRAGMENTS, len)
        self._meanings: Remembered[bytes, bytes] = Remembered(REMEMBERED_FRAGMENTS, len)
        self._services: Remembered[int, bytes] = Remembered(REMEMBERED_FRAGMENTS, len)
        self._generations: tuple[int, ...] = ()

    def fragments(self, rows: Rows) -> Fragments:
        """Everything of flows but their time, UUID and transport header: one per row in each column."""
        return Fragments(*(self.column(name, rows) for name in Fragments._fields))

    def block(self, rows: Rows, cuts: Cuts | None = None) -> bytes:
        """GetFlowsResponse messages as they follow each other in a stream, one per row and in their order;
        `cuts`: what of the flows."""
        if cuts is not None:
            return frame(self._cut(rows, cuts))
        if not len(rows.wall):
            return b""
        self._forget_compacted()
        events = rows.events
        meanings = self._whole_meanings.find(self._keys_of_meanings.pack(events), rows, self._with_layer4)
        ends = self._ends.find(self._keys_of_ends.pack(events, end_columns(rows)), rows, self._end)
        shared = [meanings, ends]
        if has_sockets(events):
            shared.insert(1, socket_fragments(events))
        after = len(self._node_name)
        others = sum(map(sizes_of, shared), start=np.full(len(events), -after, np.int64))
        return joined(self._own.pieces(rows, ports_of(events), others, after), shared)

    def responses(self, rows: Rows, cuts: Cuts | None = None) -> list[bytes]:
        """The same, each by itself."""
        return split(self.block(rows)) if cuts is None else self._cut(rows, cuts)

    def _cut(self, rows: Rows, cuts: Cuts) -> list[bytes]:
        stamps = encode.timestamps(rows.wall)
        wanted = [name for name in FIELDS_OF if cuts.wanted(name)]
        columns = [cuts.apply(name, self.column(name, rows)) for name in wanted]
        flows = whole(columns) if columns else [b""] * len(stamps)
        heads = map(RESPONSE_HEADS.__getitem__, map(len, flows))
        return whole([heads, flows, repeat(self._tail), stamps])

    def column(self, name: str, rows: Rows) -> list[bytes]:
        """One column of FIELDS_OF."""
        self._forget_compacted()
        match name:
            case "sources":
                return self._sources.look_up(rows.source.tolist(), self._source)
            case "destinations":
                return self._destinations.look_up(rows.destination.tolist(), self._destination)
            case "services":
                return self._services.look_up(service_keys(rows), self._service)
            case "pairs":
                keys = self._keys_of_ends.pack(rows.events, end_columns(rows))
                return self._pairs.find(keys, rows, self._pair_maker.fragments)
            case "meanings":
                keys = self._keys_of_meanings.pack(rows.events)
                return self._meanings.look_up(keys, lambda _key, index: self._meaning(rows.events[index]))
            case "sockets":
                return socket_fragments(rows.events)
            case "transports":
                return whole(transports(rows.events))
            case "times":
                return whole([repeat(b"\n"), encode.timestamps(rows.wall)])
            case "uuids":
                return whole([repeat(self._uuid), hex_numbers(rows.numbers)])
        raise ValueError(f"there is no column {name}")

    def lost(self, loss: LossRow) -> bytes:
        """A serialised GetFlowsResponse that tells of a gap."""
        content = number(1, loss.source) + number(2, loss.count)
        if loss.cpu is not None:
            content += block(3, number(1, loss.cpu))
        content += block(4, encode.timestamp(loss.first)) + block(5, encode.timestamp(loss.last))
        last = encode.timestamp(loss.last)
        return block(3, content) + self._tail + varint(len(last)) + last

    # -- fragments ----------------------------------------------------------------------------------------

    def _forget_compacted(self) -> None:
        store = self._meanings_of
        interners = (store.parties, store.rules, store.devices, store.services)
        generations = tuple(interner.generation for interner in interners)
        if generations != self._generations:
            self._generations = generations
            for remembered in (self._sources, self._destinations, self._services):
                remembered.clear()
            for kept in (self._pairs, self._ends, self._pair_maker):
                kept.clear()

    def _source(self, ref: int, _index: int) -> bytes:
        who = self._meanings_of.parties.values[ref]
        return block(8, party(who)) + texts(13, who.names)

    def _destination(self, ref: int, _index: int) -> bytes:
        who = self._meanings_of.parties.values[ref]
        return block(9, party(who)) + texts(14, who.names)

    def _service(self, key: int, _index: int) -> bytes:
        service = self._meanings_of.services.values[key >> 1]
        if not service.name:
            return b""
        return block(20 if key & 1 else 21, text(1, service.name) + text(2, service.namespace))

    def _meaning(self, event: np.void) -> bytes:
        return self._head + meaning(event, self._node.files)

    def _with_layer4(self, rows: Rows) -> list[bytes]:
        """What follows the ports in a flow's transport header, and the meaning."""
        heads, _, _, flags = transports(rows.events)
        rests = [
            flag if key else head
            for key, head, flag in zip(ports_of(rows.events).key, heads, flags, strict=True)
        ]
        return whole([rests, self.column("meanings", rows)])

    def _end(self, rows: Rows) -> list[bytes]:
        """Both sides, the service and the pair; and the node's name, which follows the flow."""
        names = ("sources", "destinations", "services", "pairs")
        return whole([*(self.column(name, rows) for name in names), repeat(self._node_name)])


def end_columns(rows: Rows) -> list[AnyColumn]:
    """What END_COLUMNS name."""
    events = rows.events
    inward = (events["point"] == FROM_OVERLAY) | (events["point"] == FROM_NETWORK)
    traits = events["flags"] & np.uint8(FLAG_IPV6 | FLAG_ENCRYPTED)
    traits |= denied_by(events) << np.uint8(3)
    traits |= inward.view(np.uint8) << np.uint8(6)
    traits |= service_is_source(events).view(np.uint8) << np.uint8(7)
    return [*(getattr(rows, name) for name in REFERENCES), traits]


def ports_of(events: Events) -> Ports:
    """The ports of each flow, where it has some."""
    protocol = events["protocol"]
    return Ports(
        LAYER4_KEYS[protocol],
        np.where(translated(events), events["original_source_port"], events["source_port"]),
        events["destination_port"],
        np.where(protocol == TCP, FLAG_SIZES[events["tcp_flags"]], 0).astype(np.uint8),
    )


def service_keys(rows: Rows) -> list[int]:
    """The service's index, and in the lowest bit whether it is the source's."""
    keys: list[int] = (rows.service.astype(np.int64) << 1 | service_is_source(rows.events)).tolist()
    return keys


def whole(columns: Iterable[Iterable[bytes]]) -> list[bytes]:
    """Columns joined row by row; some of them may go on for ever."""
    return list(map(b"".join, zip(*columns, strict=False)))


PORTS = frozenset({"source_port", "destination_port"})


def hex_numbers(numbers: Times) -> list[bytes]:
    """The last twelve digits of UUIDs."""
    digits = numbers.astype(">u8").tobytes().hex().encode()
    return [digits[end - 12 : end] for end in range(16, len(digits) + 1, 16)]


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


def tcp_flags(bits: int) -> bytes:
    """flow.TCPFlags of the flag byte of a TCP header."""
    return b"".join(number(bit + 1, bits >> bit & 1) for bit in range(8))


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

TCP_FLAG_FIELDS = [block(3, tcp_flags(bits)) if bits else b"" for bits in range(256)]
"""TCP.flags by flag byte."""

FLAG_SIZES = np.array([len(field) for field in TCP_FLAG_FIELDS], np.int64)

LAYER4_HEADS, SOURCE_PORTS, DESTINATION_PORTS = Made(layer4_head), Made(port(1)), Made(port(2))
RESPONSE_HEADS = Made(lambda size: tag(1, LENGTH) + varint(size))
"""What stands before a flow of so many bytes in a GetFlowsResponse."""


class Cuts:
    """A field mask at work: what it leaves of each distinct fragment."""

    def __init__(self, mask: FlowMask) -> None:
        self._wants = {name: mask.wants(fields) for name, fields in FIELDS_OF.items()}
        self._mask = mask
        self._left: dict[bytes, bytes] = {}
        self._bytes = 0

    def wanted(self, name: str) -> bool:
        """Whether a column is needed at all."""
        return self._wants[name] is not Wanted.NOTHING

    def apply(self, name: str, fragments: list[bytes]) -> list[bytes]:
        """What is left of a column."""
        if self._wants[name] is Wanted.WHOLE:
            return fragments
        left = self._left
        if len(left) > CUT_FRAGMENTS or self._bytes > CUT_BYTES:
            left.clear()
            self._bytes = 0
        for fragment in set(fragments).difference(left):
            cut = left[fragment] = self._mask.cut(fragment)
            self._bytes += len(fragment) + len(cut)
        return list(map(left.__getitem__, fragments))


def emitter(version: str) -> bytes:
    """Flow.emitter: who made the flow out of the data path's event."""
    return block(41, text(1, "Cilia") + text(2, version)) if version else b""


def meaning(event: np.void, files: Mapping[int, str]) -> bytes:
    """The fields that say what happened, without who and when."""
    kind, verdict, reason = int(event["kind"]), int(event["verdict"]), int(event["reason"])
    point, state, flags = int(event["point"]), int(event["state"]), int(event["flags"])
    direction = int(event["direction"])
    reply = flags & FLAG_REPLY
    parts = [
        number(2, verdict),
        number(35, int(event["auth"])),
        number(10, 3 if kind == KIND_SOCKET else 1),
        number(16, reply),
        block(19, number(1, EVENT_TYPES.get(kind, 0)) + number(2, sub_type(kind, reason, point))),
        number(22, direction),
        number(29, int(event["proxy_port"])),
        text(100000, summary(event)),
    ]
    if kind == KIND_DROP or verdict == VERDICT_DROPPED:
        parts += [number(3, reason), number(25, reason)]
    if kind == KIND_DROP and event["file"]:
        name = files.get(int(event["file"]), "")
        parts.append(block(38, text(1, name) + number(2, int(event["line"]))))
    if kind == KIND_TRACE:
        parts += [number(24, point), number(36, state)]
    if kind == KIND_VERDICT:
        parts.append(number(23, int(event["egress_match" if direction == EGRESS else "ingress_match"])))
    if state:
        parts.append(block(26, number(1, reply)))
    return b"".join(parts)


def sub_type(kind: int, reason: int, point: int) -> int:
    """The number that tells events of a type apart: a drop's reason, a trace's or a translation's point."""
    if kind == KIND_TRACE:
        return 0 if point == TO_ENDPOINT else point
    return {KIND_DROP: reason, KIND_SOCKET: point}.get(kind, 0)


def summary(event: np.void) -> str:
    """One line about the transport header, as older clients print it, and what the packet or the socket had
    asked for before it was translated: flow.IP has no field for that."""
    header = header_summary(event)
    asked = event["original_destination"].tobytes()
    if not any(asked):
        return header
    host, port = address(asked), int(event["original_destination_port"])
    via = f"via [{host}]:{port}" if ":" in host else f"via {host}:{port}"
    return f"{header}, {via}" if header else via


def has_sockets(events: Events) -> bool:
    """Whether there is anything that only socket events carry."""
    return bool(events["socket_cookie"].any() or events["cgroup"].any())


def socket_fragments(events: Events) -> list[bytes]:
    """What only socket events carry: translation point, cookie and cgroup."""
    if not has_sockets(events):
        return [b""] * len(events)
    return [
        number(31, point if kind == KIND_SOCKET else 0) + number(32, cookie) + number(33, cgroup)
        for kind, point, cookie, cgroup in zip(
            events["kind"].tolist(),
            events["point"].tolist(),
            events["socket_cookie"].tolist(),
            events["cgroup"].tolist(),
            strict=True,
        )
    ]


def party(who: Party) -> bytes:
    """flow.Endpoint."""
    workloads = b"".join(block(6, text(1, w.name) + text(2, w.kind)) for w in who.workloads)
    return b"".join(
        (
            number(1, who.id),
            number(2, who.identity),
            text(3, who.namespace),
            texts(4, who.labels),
            text(5, who.pod),
            workloads,
            text(7, who.cluster),
        )
    )
