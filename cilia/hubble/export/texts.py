"""Fragments of flows as JSON members: each distinct one is turned into text once."""

from __future__ import annotations

import numpy as np

from cilia.hubble.columns import Events, Times, blobs, translated
from cilia.hubble.convert import whole
from cilia.hubble.export import messages
from cilia.hubble.export.field_trees import Tree
from cilia.hubble.layer4 import LAYER4_KEYS, transports
from cilia.hubble.remembered import Remembered
from cilia.hubble.store import Rows
from cilia.proto.flow import flow_pb2

REMEMBERED_TEXTS = 1 << 13
"""Per kind of fragment."""

SOURCE_PLACE, DESTINATION_PLACE = 40_001, 40_002
"""Ports that stand for any in a text that is filled in later."""


class Texts:
    """The JSON members of a fragment, by its bytes; forgotten together when there are too many."""

    def __init__(self, tree: Tree | None) -> None:
        self._tree = tree
        self._texts: Remembered[bytes, bytes] = Remembered(REMEMBERED_TEXTS, len)

    def of(self, fragments: list[bytes]) -> list[bytes]:
        """The text of each fragment, with a comma in front."""
        return self._texts.look_up(fragments, self._text)

    def _text(self, fragment: bytes, _index: int) -> bytes:
        return messages.members(flow_pb2.Flow.FromString(fragment), self._tree)


class Transports:
    """The JSON member `l4`. Ports seldom come twice: all but them is remembered, and they stand between."""

    width = 5
    """Columns: what stands before, source port, what stands between, destination port, what stands after."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, bytes, bytes]] = {}

    def columns(self, rows: Rows) -> list[list[bytes]]:
        """Texts to be joined row by row, with a comma in front; ports that are 0 are not shown."""
        events = rows.events
        source, destination = self.ports(events)
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

    def ports(self, events: Events) -> tuple[Times, Times]:
        """Both ports as they are shown; 0: not at all."""
        ported = LAYER4_KEYS[events["protocol"]] != 0
        source = np.where(translated(events), events["original_source_port"], events["source_port"])
        return np.where(ported, source, 0), np.where(ported, events["destination_port"], 0)

    def around(self, events: Events) -> list[tuple[bytes, bytes, bytes]]:
        """The text of each event around its ports."""
        return [self._split(events[place : place + 1]) for place in range(len(events))]

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
