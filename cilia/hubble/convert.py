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

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import NamedTuple

import msgspec
import numpy as np

from cilia.hubble import encode
from cilia.hubble.blocks import Own, Packer, joined, sizes_of, split
from cilia.hubble.columns import (
    FLAG_ENCRYPTED,
    FLAG_IPV6,
    FLAG_REPLY,
    KIND_SOCKET,
    Times,
    service_is_source,
)
from cilia.hubble.cuts import FIELDS_OF, Cuts
from cilia.hubble.directory import Party
from cilia.hubble.encode import LENGTH, block, number, tag, text, texts, varint
from cilia.hubble.layer4 import Made, ports_of, transports
from cilia.hubble.meaning import has_sockets, meaning, socket_fragments
from cilia.hubble.pairs import FROM_NETWORK, FROM_OVERLAY, Pairs, denied_by
from cilia.hubble.past import Meanings
from cilia.hubble.remembered import Remembered
from cilia.hubble.ring import REFERENCES, AnyColumn, Rows
from cilia.hubble.rpc.messages import frame
from cilia.hubble.store import LossRow

REMEMBERED_FRAGMENTS = 1 << 14
"""Per kind of fragment."""


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
    traits = TRAITS_OF_FLAGS[events["flags"]] | TRAITS_OF_POINTS[events["point"]]
    traits |= denied_by(events) << np.uint8(3)
    socket = events["kind"] == KIND_SOCKET
    if socket.any():
        traits &= np.uint8(0x7F)
        traits |= service_is_source(events).view(np.uint8) << np.uint8(7)
    return [*(getattr(rows, name) for name in REFERENCES), traits]


BYTES = np.arange(256, dtype=np.uint8)
TRAITS_OF_FLAGS = BYTES & (FLAG_IPV6 | FLAG_ENCRYPTED) | (BYTES & FLAG_REPLY) << 7
"""Family, encryption, and in the highest bit whether the service is the source's: of packets."""
TRAITS_OF_POINTS = np.isin(BYTES, (FROM_OVERLAY, FROM_NETWORK)).view(np.uint8) << 6
"""Whether the other node is the sender."""


def service_keys(rows: Rows) -> list[int]:
    """The service's index, and in the lowest bit whether it is the source's."""
    keys: list[int] = (rows.service.astype(np.int64) << 1 | service_is_source(rows.events)).tolist()
    return keys


def whole(columns: Iterable[Iterable[bytes]]) -> list[bytes]:
    """Columns joined row by row; some of them may go on for ever."""
    return list(map(b"".join, zip(*columns, strict=False)))


def hex_numbers(numbers: Times) -> list[bytes]:
    """The last twelve digits of UUIDs."""
    digits = numbers.astype(">u8").tobytes().hex().encode()
    return [digits[end - 12 : end] for end in range(16, len(digits) + 1, 16)]


RESPONSE_HEADS = Made(lambda size: tag(1, LENGTH) + varint(size))
"""What stands before a flow of so many bytes in a GetFlowsResponse."""


def emitter(version: str) -> bytes:
    """Flow.emitter: who made the flow out of the data path's event."""
    return block(41, text(1, "Cilia") + text(2, version)) if version else b""


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
