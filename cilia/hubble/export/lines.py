"""Rows to lines of JSON: observer.ExportEvent, one per line.

A flow is made of the same fragments as its protobuf message. Each distinct fragment is turned into text once,
so that a line is a few look-ups and one join.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterable

import numpy as np

from cilia.hubble.columns import Events, Times, blobs, translated
from cilia.hubble.convert import Converter, Fragments, NodeFacts
from cilia.hubble.encode import NANOSECONDS
from cilia.hubble.export import messages
from cilia.hubble.export.masks import Tree, has
from cilia.hubble.store import FlowStore, LossRow, Rows
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2

REMEMBERED_TEXTS = 1 << 13
"""Per kind of fragment: at most some 4 MiB each."""


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
    """The JSON member `l4`. Ports seldom come twice: all but them is remembered."""

    def __init__(self, converter: Converter, tree: Tree | None) -> None:
        self._converter = converter
        self._tree = tree
        self._writers: dict[int, Callable[[int, int], bytes]] = {}
        self._portless: dict[int, bytes] = {}

    def of(self, rows: Rows) -> list[bytes]:
        """The text of each row, with a comma in front."""
        if not has(self._tree, "l4"):
            return [b""] * len(rows.numbers)
        out = []
        for index, word in enumerate(header_words(rows.events)):
            source, destination, rest = word & 0xFFFF, word >> 16 & 0xFFFF, word >> 32
            if not source or not destination:
                out.append(self._without_port(word, rows.where(slice(index, index + 1))))
                continue
            write = self._writers.get(rest)
            if write is None:
                write = self._writers[rest] = self._writer(rows.where(slice(index, index + 1)))
            out.append(write(source, destination))
        return out

    def _without_port(self, word: int, row: Rows) -> bytes:
        """Protocols without ports, and packets that have 0 for one, which JSON leaves out."""
        if len(self._portless) > REMEMBERED_TEXTS:
            self._portless.clear()
        text = self._portless.get(word)
        if text is None:
            text = self._portless[word] = self._text(row)
        return text

    def _text(self, row: Rows) -> bytes:
        answer = observer_pb2.GetFlowsResponse.FromString(self._converter.responses(row)[0])
        if not answer.flow.HasField("l4"):
            return b""
        return messages.members(flow_pb2.Flow(l4=answer.flow.l4), self._tree)

    def _writer(self, row: Rows) -> Callable[[int, int], bytes]:
        """Fills two ports into the text of a row."""
        events = blobs(row.events).copy().view(row.events.dtype)
        events["source_port"] = events["original_source_port"] = SOURCE_PLACE
        events["destination_port"] = DESTINATION_PLACE
        text = self._text(row._replace(events=events))
        source, destination = b"%d" % SOURCE_PLACE in text, b"%d" % DESTINATION_PLACE in text
        form = text.replace(b"%d" % SOURCE_PLACE, b"%d").replace(b"%d" % DESTINATION_PLACE, b"%d")
        if source and destination:
            return lambda one, other: form % (one, other)
        if source:
            return lambda one, _: form % one
        if destination:
            return lambda _, other: form % other
        return lambda _one, _other: form


def header_words(events: Events) -> list[int]:
    """All that `l4` depends on, in a word of each row: both ports lowest."""
    source = np.where(translated(events), events["original_source_port"], events["source_port"])
    word = source.astype(np.uint64) | events["destination_port"].astype(np.uint64) << np.uint64(16)
    for shift, name in ((32, "protocol"), (40, "tcp_flags"), (48, "icmp_type"), (56, "icmp_code")):
        word |= events[name].astype(np.uint64) << np.uint64(shift)
    words: list[int] = word.tolist()
    return words


class LineMaker:
    """Makes lines of rows; each exporter has its own, for each has its own mask."""

    def __init__(
        self, store: FlowStore, node: NodeFacts, converter: Converter, tree: Tree | None = None
    ) -> None:
        """`tree`: the fields of a flow that are wanted."""
        self._converter = converter
        self._transports = Transports(converter, tree)
        self._columns = [Texts(tree) for _ in Fragments._fields]
        self._time, self._uuid = has(tree, "time"), has(tree, "uuid")
        boot = f"{store.boot:016x}"
        time = b',"time":"%b"' if self._time else b""
        uuid = f',"uuid":"{boot[:8]}-{boot[8:12]}-{boot[12:]}-8000-%012x"' if self._uuid else ""
        body = b"%b" * (len(self._columns) + 1)
        self._tail = b'},"node_name":' + messages.encode(node.name) + b',"time":"'
        content = (time + uuid.encode()).removeprefix(b",") + body
        self._form = b'{"flow":{' + content + self._tail.replace(b"%", b"%%") + b'%b"}\n'
        """A line without time, row number and texts."""

    def lines(self, rows: Rows) -> list[bytes]:
        """One line for each row, in their order, with its end."""
        stamps = timestamps(rows.wall)
        values: list[Iterable[object]] = [stamps] if self._time else []
        if self._uuid:
            values.append(rows.numbers.tolist())
        lines = list(map(self._form.__mod__, zip(*values, *self.texts(rows), stamps, strict=True)))
        if values:
            return lines
        return [line.replace(b'{"flow":{,', b'{"flow":{', 1) for line in lines]

    def texts(self, rows: Rows) -> list[list[bytes]]:
        """What each flow says but its time and UUID: JSON members with a comma in front, in columns."""
        fragments = self._converter.fragments(rows)
        texts = [column.of(each) for column, each in zip(self._columns, fragments, strict=True)]
        return [*texts, self._transports.of(rows)]

    def counted(self, body: bytes, first: int, counts: tuple[int, int, int]) -> bytes:
        """A line about a group of flows. `first`: when its first was seen (nanoseconds since the epoch);
        `counts`: ingress, egress, unknown direction."""
        stamp = timestamp(first)
        aggregate = flow_pb2.Flow(
            aggregate=flow_pb2.Aggregate(
                ingress_flow_count=counts[0],
                egress_flow_count=counts[1],
                unknown_direction_flow_count=counts[2],
            )
        )
        flow = b"".join((b'"time":"', stamp, b'"', body, messages.members(aggregate)))
        return b"".join((b'{"flow":{', flow, self._tail, stamp, b'"}\n'))

    def lost(self, loss: LossRow) -> bytes:
        """A line that tells of a gap."""
        answer = observer_pb2.GetFlowsResponse.FromString(self._converter.lost(loss))
        return messages.text(answer) + b"\n"


def timestamps(moments: Times) -> list[bytes]:
    """`timestamp` of many moments."""
    seconds, rests = np.divmod(moments, NANOSECONDS)
    texts = {second: of_second(second) for second in set(seconds.tolist())}
    return [
        b"%b.%09dZ" % (texts[second], rest) if rest % 1_000 else timestamp(second * NANOSECONDS + rest)
        for second, rest in zip(seconds.tolist(), rests.tolist(), strict=True)
    ]


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
