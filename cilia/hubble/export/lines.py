"""Rows to lines of JSON: observer.ExportEvent, one per line.

A flow is made of the same fragments as its protobuf message. Each distinct fragment is turned into text once,
so that a line is a few look-ups and one join. Whole flows, which most files have, go a shorter way (`whole`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from cilia.hubble.convert import Converter, Fragments, NodeFacts, hex_numbers, whole
from cilia.hubble.cuts import FIELDS_OF
from cilia.hubble.export import messages
from cilia.hubble.export.field_trees import Tree, has
from cilia.hubble.export.texts import Texts, Transports
from cilia.hubble.export.whole import WholeLines, timestamp, timestamps
from cilia.hubble.store import FlowStore, LossRow, Rows
from cilia.proto.observer import observer_pb2

COUNTS = (b"ingress_flow_count", b"egress_flow_count", b"unknown_direction_flow_count")
"""Fields of flow.Aggregate."""


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
        self._whole: WholeLines | None = None
        if tree is None:
            run = b'"' + self._run
            self._whole = WholeLines(store, converter, self._columns, run, self._tail)

    def block(self, rows: Rows) -> bytes:
        """One line for each row, in their order."""
        if self._whole is not None:
            return self._whole.block(rows)
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
        if not own:
            lines = [line.replace(b'{"flow":{,', b'{"flow":{', 1) for line in lines]
        return b"".join(lines)

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
