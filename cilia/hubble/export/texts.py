"""Fragments of flows as JSON members: each distinct one is turned into text once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cilia.hubble.columns import Events, Mask, blobs, translated
from cilia.hubble.convert import whole
from cilia.hubble.export import messages
from cilia.hubble.export.field_trees import Tree
from cilia.hubble.layer4 import LAYER4_KEYS, transports
from cilia.hubble.remembered import Remembered
from cilia.hubble.store import Rows
from cilia.proto.flow import flow_pb2

REMEMBERED_TEXTS = 1 << 13
"""Per kind of fragment."""

PORTS = ("source_port", "destination_port")
BOTH_PORTS = b'"source_port":%d,"destination_port":%d}}'
"""How `l4` ends where both are shown."""


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
    """The JSON member `l4`. Ports seldom come twice, so they stand at its end; all before is remembered."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}

    def columns(self, rows: Rows) -> list[list[bytes]]:
        """Two columns of text to be joined row by row, with a comma in front: what stands before the ports,
        and they."""
        events = rows.events
        ports = ports_shown(events)
        key = some(ports).astype(np.int64)
        for shift, name in ((8, "protocol"), (16, "tcp_flags"), (24, "icmp_type"), (32, "icmp_code")):
            key |= events[name].astype(np.int64) << shift
        distinct, first, place = np.unique(key, return_index=True, return_inverse=True)
        texts = [
            self._head(word, events[index : index + 1])
            for word, index in zip(distinct.tolist(), first.tolist(), strict=True)
        ]
        return [list(map(texts.__getitem__, place.tolist())), port_texts(ports)]

    def _head(self, key: int, event: Events) -> bytes:
        known = self._known.get(key)
        if known is None:
            if len(self._known) > REMEMBERED_TEXTS:
                self._known.clear()
            (known,) = heads(event)
            self._known[key] = known
        return known


class Ports(NamedTuple):
    """Ports as they are shown, one of each per row; 0: not at all."""

    source: npt.NDArray[np.uint16]
    destination: npt.NDArray[np.uint16]
    ported: Mask
    """The protocol has some."""


def ports_shown(events: Events) -> Ports:
    """The ports of each flow."""
    ported = LAYER4_KEYS[events["protocol"]] != 0
    source, destination = events["source_port"], events["destination_port"]
    was = translated(events)
    if was.any():
        source = np.where(was, events["original_source_port"], source)
    if not ported.all():
        source, destination = np.where(ported, source, 0), np.where(ported, destination, 0)
    return Ports(source, destination, ported)


def some(ports: Ports) -> Mask:
    """Where any port is shown."""
    return np.asarray((ports.source | ports.destination) != 0)


def heads(events: Events) -> list[bytes]:
    """The text of `l4` of each event up to its ports, with a comma in front."""
    bare = blobs(events).copy().view(events.dtype)
    for name in (*PORTS, "original_source_port"):
        bare[name] = 0
    ports = ports_shown(events)
    texts = (messages.members(flow_pb2.Flow.FromString(fragment)) for fragment in whole(transports(bare)))
    return [
        head(text, shown) if ported else text
        for text, shown, ported in zip(texts, some(ports).tolist(), ports.ported.tolist(), strict=True)
    ]


def head(text: bytes, shown: bool) -> bytes:
    """All but the end of a header without ports, ready for `shown` ones."""
    text = text.removesuffix(b"}}")
    return text + b"," if shown and not text.endswith(b"{") else text


def port_texts(ports: Ports) -> list[bytes]:
    """How `l4` ends, of each flow."""
    texts = [
        BOTH_PORTS % pair for pair in zip(ports.source.tolist(), ports.destination.tolist(), strict=True)
    ]
    for index in np.flatnonzero((ports.source == 0) | (ports.destination == 0)).tolist():
        pairs = zip(PORTS, (int(ports.source[index]), int(ports.destination[index])), strict=True)
        shown = b",".join(b'"%b":%d' % (name.encode(), port) for name, port in pairs if port)
        texts[index] = shown + b"}}" if ports.ported[index] else b""
    return texts
