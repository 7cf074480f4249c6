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

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar, cast

import msgspec
import numpy as np

from cilia.hubble import encode
from cilia.hubble.columns import (
    EGRESS,
    FLAG_ENCRYPTED,
    FLAG_IPV6,
    FLAG_REPLY,
    INGRESS,
    KIND_DROP,
    KIND_SOCKET,
    KIND_TRACE,
    KIND_VERDICT,
    VERDICT_AUDIT,
    VERDICT_DROPPED,
    Bytes,
    Events,
    octets,
    service_is_source,
    translated,
)
from cilia.hubble.directory import Party
from cilia.hubble.encode import LENGTH, block, number, remembered_varint, tag, text, texts
from cilia.hubble.store import FlowStore, LossRow, Rows, Rules
from cilia.model.address import MAPPED_PREFIX
from cilia.model.policy import RuleRef

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132

TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
"""By bit; the field numbers of flow.TCPFlags are one more."""

ICMP_TYPES = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    5: "Redirect",
    8: "EchoRequest",
    11: "TimeExceeded",
    12: "ParameterProblem",
}
ICMPV6_TYPES = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    4: "ParameterProblem",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
    137: "Redirect",
}

EVENT_TYPES = {KIND_DROP: 1, KIND_TRACE: 4, KIND_VERDICT: 5, KIND_SOCKET: 7}
"""Kind to the message type monitors know: drop, trace, policy verdict, socket translation."""

POLICY_LABEL = "k8s:io.cilium.k8s.policy."
RULE_LABEL = "cilia:rule="
VERSION_LABEL = "cilia:resource-version="

REMEMBERED_FRAGMENTS = 1 << 14
"""Per kind of fragment: a few MiB at most."""

VXLAN = 1
FROM_OVERLAY, FROM_NETWORK = 9, 10

Key = TypeVar("Key", bytes, int)

PAIR_FIELDS = ("source", "destination", "original_source", "tunnel", "vni", "source_mac", "destination_mac")
MEANING_FIELDS = tuple(
    """
    kind point verdict reason file line protocol icmp_type icmp_code tcp_flags direction state flags
    egress_match ingress_match auth proxy_port original_destination original_destination_port
    """.split()  # noqa: SIM905
)


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer of this node says about it."""

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


class Converter:
    """Makes messages of rows; one per store, shared by all clients."""

    def __init__(self, store: FlowStore, node: NodeFacts) -> None:
        self._store = store
        self._node = node
        self._head = text(11, node.name) + texts(37, node.labels)
        self._tail = text(1000, node.name)
        boot = f"{store.boot:016x}"
        self._uuid = tag(34, LENGTH) + f"${boot[:8]}-{boot[8:12]}-{boot[12:]}-8000-".encode()
        """All of the field but the row's number: 36 (`$`) characters follow the key."""
        self._sources: Remembered[int] = Remembered()
        self._destinations: Remembered[int] = Remembered()
        self._pairs: Remembered[bytes] = Remembered()
        self._meanings: Remembered[bytes] = Remembered()
        self._transports: Remembered[int] = Remembered()
        self._services: Remembered[int] = Remembered()
        self._generations: tuple[int, ...] = ()

    def fragments(self, rows: Rows) -> Fragments:
        """Everything of flows but their time, UUID and transport header: one per row in each column."""
        self._forget_compacted()
        events = rows.events
        return Fragments(
            sources=self._sources.look_up(rows.source.tolist(), rows, self._source),
            destinations=self._destinations.look_up(rows.destination.tolist(), rows, self._destination),
            services=self._services.look_up(service_keys(rows), rows, self._service),
            pairs=self._pairs.look_up(pair_keys(rows), rows, self._pair),
            meanings=self._meanings.look_up(packed(events, MEANING_FIELDS), rows, self._meaning),
            sockets=socket_fragments(events),
        )

    def responses(self, rows: Rows) -> list[bytes]:
        """Serialised GetFlowsResponse messages, one per row and in their order."""
        tail = self._tail + tag(1001, LENGTH)
        fragments = self.fragments(rows)
        transports = self._transports.look_up(transport_keys(rows.events), rows, transport)
        out = []
        for stamp, row, ports, source, destination, service, pair, told, rest in zip(
            encode.timestamps(rows.wall), rows.numbers.tolist(), transports, *fragments, strict=True
        ):
            flow = b"".join(
                (
                    b"\n",
                    stamp,
                    self._uuid,
                    b"%012x" % row,
                    ports,
                    source,
                    destination,
                    service,
                    pair,
                    told,
                    rest,
                )
            )
            out.append(b"".join((b"\n", remembered_varint(len(flow)), flow, tail, stamp)))
        return out

    def lost(self, loss: LossRow) -> bytes:
        """A serialised GetFlowsResponse that tells of a gap."""
        content = number(1, loss.source) + number(2, loss.count)
        if loss.cpu is not None:
            content += block(3, number(1, loss.cpu))
        content += block(4, encode.timestamp(loss.first)) + block(5, encode.timestamp(loss.last))
        return block(3, content) + self._tail + block(1001, encode.timestamp(loss.last))

    # -- fragments ----------------------------------------------------------------------------------------

    def _forget_compacted(self) -> None:
        store = self._store
        interners = (store.parties, store.rules, store.devices, store.services)
        generations = tuple(interner.generation for interner in interners)
        if generations != self._generations:
            self._generations = generations
            for remembered in (self._sources, self._destinations, self._pairs, self._services):
                remembered.clear()

    def _source(self, ref: int, _rows: Rows, _index: int) -> bytes:
        who = self._store.parties.values[ref]
        return block(8, party(who)) + texts(13, who.names)

    def _destination(self, ref: int, _rows: Rows, _index: int) -> bytes:
        who = self._store.parties.values[ref]
        return block(9, party(who)) + texts(14, who.names)

    def _service(self, key: int, _rows: Rows, _index: int) -> bytes:
        service = self._store.services.values[key >> 1]
        if not service.name:
            return b""
        return block(20 if key & 1 else 21, text(1, service.name) + text(2, service.namespace))

    def _meaning(self, _key: bytes, rows: Rows, index: int) -> bytes:
        return self._head + meaning(rows.events[index], self._node.files)

    def _pair(self, _key: bytes, rows: Rows, index: int) -> bytes:
        store, event = self._store, rows.events[index]
        raw = {name: octets(rows.events[index : index + 1], name).tobytes() for name in PAIR_FIELDS}
        device = store.devices.values[rows.device[index]]
        parts = [block(5, addresses(raw, int(event["flags"]))), ethernet(raw), tunnel(raw, event)]
        if device.index:
            parts.append(block(28, number(1, device.index) + text(2, device.name)))
        egress = store.rules.values[rows.egress[index]]
        ingress = store.rules.values[rows.ingress[index]]
        parts.append(verdict_rules(egress, ingress, event))
        return b"".join(parts)


class Remembered(Generic[Key]):
    """Fragments by key, forgotten together when there are too many."""

    def __init__(self) -> None:
        self._fragments: dict[Key, bytes] = {}

    def clear(self) -> None:
        """Forget all."""
        self._fragments.clear()

    def look_up(self, keys: list[Key], rows: Rows, make: Callable[[Key, Rows, int], bytes]) -> list[bytes]:
        """The fragment of each key; `make` gets the key, the rows, and the index of one that has it."""
        fragments = self._fragments
        if len(fragments) > REMEMBERED_FRAGMENTS:
            fragments.clear()
        try:
            return list(map(fragments.__getitem__, keys))
        except KeyError:
            for index, key in enumerate(keys):
                if key not in fragments:
                    fragments[key] = make(key, rows, index)
        return list(map(fragments.__getitem__, keys))


def packed(events: Events, names: Sequence[str]) -> list[bytes]:
    """The raw bytes of some fields, joined, per row: a key."""
    return void([octets(events, name) for name in names])


def pair_keys(rows: Rows) -> list[bytes]:
    """Everything the fragment of a pair depends on."""
    columns = [octets(rows.events, name) for name in (*PAIR_FIELDS, "verdict", "direction", "point", "flags")]
    for refs in (rows.egress, rows.ingress, rows.device):
        columns.append(np.ascontiguousarray(refs).view(np.uint8).reshape(len(refs), 4))
    return void(columns)


def void(columns: list[Bytes]) -> list[bytes]:
    joined = np.concatenate(columns, axis=1)
    keys = joined.view(np.dtype((np.void, joined.shape[1]))).ravel()
    return cast(list[bytes], keys.tolist())


def service_keys(rows: Rows) -> list[int]:
    """The service's index, and in the lowest bit whether it is the source's."""
    keys: list[int] = (rows.service.astype(np.int64) << 1 | service_is_source(rows.events)).tolist()
    return keys


def transport_keys(events: Events) -> list[int]:
    """Everything the fragment of the transport header depends on, in one word."""
    ports = np.where(translated(events), events["original_source_port"], events["source_port"])
    word = ports.astype(np.uint64) | events["destination_port"].astype(np.uint64) << np.uint64(16)
    for shift, name in ((32, "protocol"), (40, "tcp_flags"), (48, "icmp_type"), (56, "icmp_code")):
        word |= events[name].astype(np.uint64) << np.uint64(shift)
    keys: list[int] = word.tolist()
    return keys


def transport(word: int, _rows: Rows, _index: int) -> bytes:
    """Flow.l4 of a key made by `transport_keys`."""
    protocol = word >> 32 & 0xFF
    if protocol in LAYER4_HEADS:
        flags = TCP_FLAG_FIELDS[word >> 40 & 0xFF] if protocol == TCP else b""
        source, destination = remembered_varint(word & 0xFFFF), remembered_varint(word >> 16 & 0xFFFF)
        header = b"\x08%b\x10%b%b" % (source, destination, flags)
        return LAYER4_HEADS[protocol][len(header)] + header
    if protocol in (ICMP, ICMPV6):
        kind = number(1, word >> 48 & 0xFF) + number(2, word >> 56)
        return block(6, block(3 if protocol == ICMP else 4, kind))
    return b""


def tcp_flags(bits: int) -> bytes:
    """flow.TCPFlags of the flag byte of a TCP header."""
    return b"".join(number(bit + 1, bits >> bit & 1) for bit in range(8))


TCP_FLAG_FIELDS = [block(3, tcp_flags(bits)) for bits in range(256)]
"""TCP.flags by flag byte."""

LAYER4_HEADS = {
    protocol: [
        tag(6, LENGTH) + bytes((size + 2,)) + tag(field, LENGTH) + bytes((size,)) for size in range(64)
    ]
    for protocol, field in ((TCP, 1), (UDP, 2), (SCTP, 5))
}
"""What stands before a header of that many bytes in Flow.l4, for protocols that have ports."""


def meaning(event: np.void, files: Mapping[int, str]) -> bytes:
    """The fields that say what happened, without who and when."""
    kind, verdict, reason = int(event["kind"]), int(event["verdict"]), int(event["reason"])
    point, state, flags = int(event["point"]), int(event["state"]), int(event["flags"])
    direction = int(event["direction"])
    reply = flags & FLAG_REPLY
    sub_type = {KIND_DROP: reason, KIND_TRACE: point, KIND_SOCKET: point}.get(kind, 0)
    parts = [
        number(2, verdict),
        number(35, int(event["auth"])),
        number(10, 3 if kind == KIND_SOCKET else 1),
        number(16, reply),
        block(19, number(1, EVENT_TYPES.get(kind, 0)) + number(2, sub_type)),
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


def summary(event: np.void) -> str:
    """One line about the transport header, as older clients print it, and what the packet or the socket had
    asked for before it was translated: flow.IP has no field for that."""
    header = header_summary(event) if int(event["kind"]) != KIND_SOCKET else ""
    asked = event["original_destination"].tobytes()
    if not any(asked):
        return header
    host, port = address(asked), int(event["original_destination_port"])
    via = f"via [{host}]:{port}" if ":" in host else f"via {host}:{port}"
    return f"{header}, {via}" if header else via


def header_summary(event: np.void) -> str:
    """Flags, types and codes; else the protocol's name."""
    protocol = int(event["protocol"])
    if protocol == TCP:
        bits = int(event["tcp_flags"])
        return "TCP Flags: " + ", ".join(name for bit, name in enumerate(TCP_FLAGS) if bits >> bit & 1)
    if protocol in (ICMP, ICMPV6):
        family, names = ("ICMPv4", ICMP_TYPES) if protocol == ICMP else ("ICMPv6", ICMPV6_TYPES)
        kind, code = int(event["icmp_type"]), int(event["icmp_code"])
        return f"{family} {names.get(kind, f'type {kind}')}" + (f" (code {code})" if code else "")
    return {UDP: "UDP", SCTP: "SCTP"}.get(protocol, f"IP protocol {protocol}" if protocol else "")


def addresses(raw: Mapping[str, bytes], flags: int) -> bytes:
    """flow.IP. `source` is what the sender used; what it became by translation is `source_xlated`."""
    source, became = address(raw["source"]), ""
    if any(raw["original_source"]):
        source, became = address(raw["original_source"]), source
    return b"".join(
        (
            text(1, source),
            text(2, address(raw["destination"])),
            number(3, 2 if flags & FLAG_IPV6 else 1),
            number(4, 1 if flags & FLAG_ENCRYPTED else 0),
            text(5, became),
        )
    )


def ethernet(raw: Mapping[str, bytes]) -> bytes:
    """Flow.ethernet, where the packet had link-layer addresses."""
    source, destination = raw["source_mac"], raw["destination_mac"]
    if not any(source) and not any(destination):
        return b""
    return block(4, text(1, source.hex(":")) + text(2, destination.hex(":")))


def tunnel(raw: Mapping[str, bytes], event: np.void) -> bytes:
    """Flow.tunnel of an overlay packet; `struct event` names the other node only."""
    if not any(raw["tunnel"]):
        return b""
    towards = int(event["point"]) not in (FROM_OVERLAY, FROM_NETWORK)
    other = address(raw["tunnel"])
    version = 2 if ":" in other else 1
    outer = text(2 if towards else 1, other) + number(3, version)
    return block(39, number(1, VXLAN) + block(2, outer) + number(4, int(event["vni"])))


def socket_fragments(events: Events) -> list[bytes]:
    """What only socket events carry: translation point, cookie and cgroup."""
    if not events["socket_cookie"].any() and not events["cgroup"].any():
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


def verdict_rules(egress: Rules, ingress: Rules, event: np.void) -> bytes:
    """The rules behind the verdict of each side, and the text their authors want in the flow.

    A drop is the work of the side that judged (`direction`), and so is what audit let pass: the rules are
    those that denied, or would have. What the other side had allowed before stays visible. An allow by
    default names no rule: no policy isolates that side.
    """
    denied_by = int(event["direction"]) if int(event["verdict"]) in (VERDICT_DROPPED, VERDICT_AUDIT) else 0
    parts = []
    for side, rules, allowed, denied in ((EGRESS, egress, 21001, 21004), (INGRESS, ingress, 21002, 21005)):
        if denied_by == side:
            parts += [block(denied, policy(rule, rules.revision)) for rule in rules.row.rules]
        elif not rules.row.default:
            parts += [block(allowed, policy(rule, rules.revision)) for rule in rules.row.rules]
    parts.append(texts(21006, sorted({*egress.row.logs, *ingress.row.logs})))
    return b"".join(parts)


def policy(rule: RuleRef, revision: int) -> bytes:
    """flow.Policy; the place of the rule in the YAML travels as labels, which every client passes on."""
    labels = [f"{POLICY_LABEL}derived-from={rule.kind}", f"{POLICY_LABEL}name={rule.name}"]
    if rule.namespace:
        labels.append(f"{POLICY_LABEL}namespace={rule.namespace}")
    labels += [RULE_LABEL + rule.path, VERSION_LABEL + rule.resource_version]
    return b"".join(
        (
            text(1, rule.name),
            text(2, rule.namespace),
            texts(3, labels),
            number(4, revision),
            text(5, rule.kind),
        )
    )


def address(raw: bytes) -> str:
    """Text of a 16-byte address, IPv4 where it is v4-mapped; an empty string for none."""
    if raw.startswith(MAPPED_PREFIX):
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw) if any(raw) else ""
