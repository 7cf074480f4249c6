"""Rows to lines of JSON: observer.ExportEvent, one per line.

A flow is made of the same fragments as its protobuf message. Each distinct fragment is turned into text once,
so that a line is a few look-ups and one join.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np

from cilia.hubble.columns import Events, Times, blobs, translated
from cilia.hubble.convert import (
    FIELDS_OF,
    LAYER4_FIELDS,
    Converter,
    Fragments,
    NodeFacts,
    hex_numbers,
    transports,
    whole,
)
from cilia.hubble.encode import NANOSECONDS
from cilia.hubble.export import messages
from cilia.hubble.export.masks import Tree, has
from cilia.hubble.store import FlowStore, LossRow, Rows
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2

REMEMBERED_TEXTS = 1 << 13
"""Per kind of fragment: at most some 4 MiB each."""


COUNTS = (b"ingress_flow_count", b"egress_flow_count", b"unknown_direction_flow_count")
"""Fields of flow.Aggregate."""

POWERS = 10 ** np.arange(8, -1, -1)
"""Of the digits of a second's nanoseconds."""

SOURCE_PLACE, DESTINATION_PLACE = 40_001, 40_002
"""Ports that stand for any in a text that is filled in later."""


class Texts:
    """The JSON members of a fragment, by its bytes; forgotten together when there are too many."""

    def __init__(self, tree: Tree | None) -> None:
        self._tree = tree
        self._texts: dict[bytes, bytes] = {}

    def of(self, fragments: list[bytes]) -> list[bytes]:
        """The text of each fragment, with a comma in front."""
        texts = self._texts
        if len(texts) > REMEMBERED_TEXTS:
            texts.clear()
        try:
            return list(map(texts.__getitem__, fragments))
        except KeyError:
            for fragment in fragments:
                if fragment not in texts:
                    texts[fragment] = messages.members(flow_pb2.Flow.FromString(fragment), self._tree)
        return list(map(texts.__getitem__, fragments))


class Transports:
    """The JSON member `l4`. Ports seldom come twice: all but them is remembered, and they stand between."""

    width = 5
    """Columns: what stands before, source port, what stands between, destination port, what stands after."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, bytes, bytes]] = {}

    def columns(self, rows: Rows) -> list[list[bytes]]:
        """Texts to be joined row by row, with a comma in front; ports that are 0 are not shown."""
        events = rows.events
        ported = np.isin(events["protocol"], list(LAYER4_FIELDS))
        source = np.where(translated(events), events["original_source_port"], events["source_port"])
        source, destination = np.where(ported, source, 0), np.where(ported, events["destination_port"], 0)
        key = (source == 0).astype(np.int64) | (destination == 0).astype(np.int64) << 1
        for shift, name in ((8, "protocol"), (16, "tcp_flags"), (24, "icmp_type"), (32, "icmp_code")):
            key |= events[name].astype(np.int64) << shift
        distinct, first, place = np.unique(key, return_index=True, return_inverse=True)
        texts = [
            self._texts(word, rows, index)
            for word, index in zip(distinct.tolist(), first.tolist(), strict=True)
        ]
        places = place.tolist()
        before, between, after = ([texts[place][part] for place in places] for part in range(3))
        return [before, port_texts(source), between, port_texts(destination), after]

    def _texts(self, key: int, rows: Rows, index: int) -> tuple[bytes, bytes, bytes]:
        known = self._known.get(key)
        if known is None:
            if len(self._known) > REMEMBERED_TEXTS:
                self._known.clear()
            known = self._known[key] = self._split(rows.events[index : index + 1])
        return known

    def _split(self, event: Events) -> tuple[bytes, bytes, bytes]:
        """The text of an event around its ports."""
        event = blobs(event).copy().view(event.dtype)
        for name, port in (
            ("source_port", SOURCE_PLACE),
            ("original_source_port", SOURCE_PLACE),
            ("destination_port", DESTINATION_PLACE),
        ):
            event[name] = np.where(event[name] == 0, 0, port)
        (fragment,) = whole(transports(event))
        text = messages.members(flow_pb2.Flow.FromString(fragment))
        before, _, rest = text.rpartition(b"%d" % SOURCE_PLACE)
        between, _, after = rest.rpartition(b"%d" % DESTINATION_PLACE)
        return before, between, after


def port_texts(ports: Times) -> list[bytes]:
    """Ports as they stand in JSON; nothing for 0."""
    return list(map(PORT_TEXTS.__getitem__, ports.tolist()))


PORT_TEXTS = [b"", *(b"%d" % port for port in range(1, 1 << 16))]


class LineMaker:
    """Makes lines of rows; each exporter has its own, for each has its own mask."""

    def __init__(
        self, store: FlowStore, node: NodeFacts, converter: Converter, tree: Tree | None = None
    ) -> None:
        """`tree`: the fields of a flow that are wanted."""
        self._converter = converter
        whole_header = tree is None or tree.get("l4", {}) is None
        self._transports = Transports() if whole_header else None
        self._columns = {
            name: Texts(tree)
            for name in (*Fragments._fields, *(() if whole_header else ("transports",)))
            if tree is None or FIELDS_OF[name] & tree.keys()
        }
        self._time, self._uuid = has(tree, "time"), has(tree, "uuid")
        boot = f"{store.boot:016x}"
        self._run = f',"uuid":"{boot[:8]}-{boot[8:12]}-{boot[12:]}-8000-'.encode()
        """All of a UUID but the row's number."""
        self._tail = b'},"node_name":' + messages.encode(node.name) + b',"time":"'

    def lines(self, rows: Rows) -> list[bytes]:
        """One line for each row, in their order, with its end."""
        stamps = timestamps(rows.wall)
        own: list[Iterable[bytes]] = []
        if self._time:
            own += [repeat(b',"time":"'), stamps, repeat(b'"')]
        if self._uuid:
            own += [repeat(self._run), hex_numbers(rows.numbers), repeat(b'"')]
        flow = [*own, *self.texts(rows)]
        if own:
            # The first member of an object has no comma in front.
            flow[0] = repeat((b',"time":"' if self._time else self._run)[1:])
        lines = whole([repeat(b'{"flow":{'), *flow, repeat(self._tail), stamps, repeat(b'"}\n')])
        if own:
            return lines
        return [line.replace(b'{"flow":{,', b'{"flow":{', 1) for line in lines]

    def texts(self, rows: Rows) -> list[list[bytes]]:
        """What each flow says but its time and UUID: JSON members with a comma in front, in columns; at least
        one column."""
        texts = [column.of(self._converter.column(name, rows)) for name, column in self._columns.items()]
        if self._transports is not None:
            texts += self._transports.columns(rows)
        return texts or [[b""] * len(rows.numbers)]

    def counted(self, body: bytes, first: int, counts: Sequence[int]) -> bytes:
        """A line about a group of flows. `first`: when its first was seen (nanoseconds since the epoch);
        `counts`: ingress, egress, unknown direction."""
        stamp = timestamp(first)
        told = b",".join(
            b'"%b":%d' % (name, count) for name, count in zip(COUNTS, counts, strict=True) if count
        )
        flow = b'"time":"%b"%b,"aggregate":{%b}' % (stamp, body, told)
        return b"".join((b'{"flow":{', flow, self._tail, stamp, b'"}\n'))

    def lost(self, loss: LossRow) -> bytes:
        """A line that tells of a gap."""
        answer = observer_pb2.GetFlowsResponse.FromString(self._converter.lost(loss))
        return messages.text(answer) + b"\n"


def timestamps(moments: Times) -> list[bytes]:
    """`timestamp` of many moments; the digits are made in a few vector steps."""
    seconds, rests = np.divmod(moments, NANOSECONDS)
    distinct, place = np.unique(seconds, return_inverse=True)
    texts = np.empty((len(moments), 30), np.uint8)
    heads = b"".join(map(of_second, distinct.tolist()))
    texts[:, :19] = np.frombuffer(heads, np.uint8).reshape(-1, 19)[place]
    texts[:, 19], texts[:, 29] = ord("."), ord("Z")
    texts[:, 20:29] = rests[:, None] // POWERS % 10 + ord("0")
    out: list[bytes] = texts.view("S30").ravel().tolist()
    for index in np.flatnonzero(rests % 1_000 == 0).tolist():
        out[index] = timestamp(int(moments[index]))
    return out


def timestamp(moment: int) -> bytes:
    """A moment in nanoseconds since the epoch as RFC 3339 in UTC, with 0, 3, 6 or 9 digits of a second."""
    seconds, rest = divmod(moment, NANOSECONDS)
    second = of_second(seconds)
    if rest % 1_000:
        return b"%b.%09dZ" % (second, rest)
    if rest % 1_000_000:
        return b"%b.%06dZ" % (second, rest // 1_000)
    if rest:
        return b"%b.%03dZ" % (second, rest // 1_000_000)
    return second + b"Z"


@functools.lru_cache(256)
def of_second(seconds: int) -> bytes:
    """A second of the epoch, without its zone."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
