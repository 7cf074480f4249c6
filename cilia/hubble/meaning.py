"""What happened, as fields of a flow: of an event, without who and when."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cilia.hubble.columns import (
    EGRESS,
    FLAG_REPLY,
    KIND_DROP,
    KIND_SOCKET,
    KIND_TRACE,
    KIND_VERDICT,
    VERDICT_DROPPED,
    Events,
)
from cilia.hubble.encode import block, number, text
from cilia.hubble.pairs import address
from cilia.hubble.summary import header_summary

EVENT_TYPES = {KIND_DROP: 1, KIND_TRACE: 4, KIND_VERDICT: 5, KIND_SOCKET: 7}
"""Kind to the message type monitors know: drop, trace, policy verdict, socket translation."""

TO_ENDPOINT = 101
"""Of enum flow.TraceObservationPoint; as a sub-type of events it is 0, as Cilium counts."""


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
