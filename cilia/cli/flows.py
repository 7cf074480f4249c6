"""How flows are printed: one line, a block, a table, or JSON.

The one-line form is that of `hubble observe`, with one thing more: the rule that decided, at the end.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

import msgspec
from google.protobuf import timestamp_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from cilia.model.drop_reasons import drop_text
from cilia.model.identity import RESERVED_NAMES
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2

DROP, CAPTURE, TRACE, VERDICT, SOCKET, L7 = 1, 3, 4, 5, 7, 129
POLICY_DENIED = 133
RULE = "cilia:rule="

MATCHES = ("none", "L3-Only", "L3-L4", "L4-Only", "all", "L3-Proto", "Proto-Only")
RESERVED = {int(number): names[0] for number, names in RESERVED_NAMES.items()}
JUDGED = {
    flow_pb2.FORWARDED: "ALLOWED",
    flow_pb2.REDIRECTED: "ALLOWED",
    flow_pb2.DROPPED: "DENIED",
    flow_pb2.ERROR: "DENIED",
    flow_pb2.AUDIT: "AUDITED",
}


class TimeFormat(enum.StrEnum):
    """How times are printed; the names are those `hubble observe` takes."""

    STAMP = "StampMilli"
    DAY = "YearMonthDay"
    HOUR = "YearMonthDayHour"
    MINUTE = "YearMonthDayHourMinute"
    RFC3339 = "RFC3339"
    MILLI = "RFC3339Milli"
    MICRO = "RFC3339Micro"
    NANO = "RFC3339Nano"
    RFC1123 = "RFC1123Z"


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """What a user chose."""

    colour: bool = False
    time_format: TimeFormat = TimeFormat.STAMP
    zone: tzinfo = UTC
    names: bool = True
    """Pod and DNS names in place of addresses."""
    numeric: bool = False
    """No names of any kind: addresses, and identities as numbers."""
    rules: bool = True
    """The rule that decided."""
    node: bool = False
    """The node that saw it."""


class Paint:
    """ANSI colours, or none."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def __call__(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._on and text else text


VERDICT_COLOURS = {
    flow_pb2.FORWARDED: "32",
    flow_pb2.DROPPED: "31",
    flow_pb2.ERROR: "31",
    flow_pb2.AUDIT: "33",
    flow_pb2.REDIRECTED: "33",
}
DIM, CYAN, MAGENTA, BOLD = "2", "36", "35", "1"


def moment(stamp: timestamp_pb2.Timestamp, style: Style) -> str:
    """A time as the user wants it."""
    when = datetime.fromtimestamp(stamp.seconds, style.zone)
    match style.time_format:
        case TimeFormat.STAMP:
            return f"{when:%b} {when.day:2} {when:%H:%M:%S}.{stamp.nanos // 1_000_000:03}"
        case TimeFormat.RFC1123:
            return f"{when:%a, %d %b %Y %H:%M:%S %z}"
        case TimeFormat.DAY:
            return f"{when:%Y-%m-%d}"
    length = {TimeFormat.HOUR: "%Y-%m-%dT%H", TimeFormat.MINUTE: "%Y-%m-%dT%H:%M"}
    digits = {TimeFormat.MILLI: 3, TimeFormat.MICRO: 6, TimeFormat.NANO: 9}.get(style.time_format, 0)
    fraction = f".{stamp.nanos:09}"[: digits + 1] if digits else ""
    zone = f"{when:%z}"
    clock = when.strftime(length.get(style.time_format, "%Y-%m-%dT%H:%M:%S"))
    return clock + fraction + ("Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}")


def side(flow: flow_pb2.Flow, source: bool, style: Style) -> tuple[str, str]:
    """Name with port, and identity, of one side."""
    who = flow.source if source else flow.destination
    header = flow.IP if flow.IP.source or flow.IP.destination else flow.ethernet
    address = header.source if source else header.destination
    dns = flow.source_names if source else flow.destination_names
    name = address or "-"
    if style.names and not style.numeric:
        if who.pod_name:
            name = "/".join(filter(None, (who.namespace, who.pod_name)))
        elif dns:
            name = ",".join(dns)
    transport = getattr(flow.l4, flow.l4.WhichOneof("protocol") or "TCP")
    port = getattr(transport, "source_port" if source else "destination_port", 0)
    if port:
        name = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    return served(flow, source, name, style), identity(who.identity, style)


def served(flow: flow_pb2.Flow, source: bool, name: str, style: Style) -> str:
    """`shop/web (shop/web-0:8080)` where a side answers for a service that somebody asked for."""
    service = flow.source_service if source else flow.destination_service
    if not service.name or not style.names or style.numeric:
        return name
    return f"{'/'.join(filter(None, (service.namespace, service.name)))} ({name})"


def identity(number: int, style: Style) -> str:
    """`(ID:4321)`, or the name of a reserved identity."""
    if number in RESERVED and not style.numeric:
        return f"({RESERVED[number]})"
    return f"(ID:{number})"


def what(flow: flow_pb2.Flow) -> str:
    """The kind of event with its place or reason."""
    kind = flow.event_type.type
    if flow.HasField("l7") or kind == L7:
        return record(flow.l7)
    if kind == DROP or (kind == SOCKET and flow.verdict == flow_pb2.DROPPED):
        return drop_text(flow.drop_reason_desc or flow.event_type.sub_type)
    if kind == TRACE:
        return trace_point(flow)
    if kind == VERDICT:
        match = MATCHES[flow.policy_match_type] if flow.policy_match_type < len(MATCHES) else "unknown"
        return f"policy-verdict:{match} {name_of(flow_pb2.TrafficDirection, flow.traffic_direction)}"
    if kind == SOCKET:
        point = name_of(flow_pb2.SocketTranslationPoint, flow.sock_xlate_point)
        return point.removeprefix("SOCK_XLATE_POINT_").lower().replace("_direction_", "-xlate-")
    if kind == CAPTURE:
        return name_of(flow_pb2.DebugCapturePoint, flow.debug_capture_point)
    return "UNKNOWN"


def record(l7: flow_pb2.Layer7) -> str:
    """`http-request`, `dns-response proxy`: an application record, and of DNS who saw it."""
    kind = f"{l7.WhichOneof('record') or 'l7'}-{name_of(flow_pb2.L7FlowType, l7.type).lower()}"
    return f"{kind} {l7.dns.observation_source}" if l7.HasField("dns") else kind


def trace_point(flow: flow_pb2.Flow) -> str:
    """`to-endpoint`, `from-network`; flows of a mask may have one of both fields only."""
    number = flow.trace_observation_point or flow.event_type.sub_type or flow_pb2.TO_ENDPOINT
    return name_of(flow_pb2.TraceObservationPoint, number).lower().replace("_", "-")


def name_of(enum: Any, number: int) -> str:
    """An enum's name of a number, or the number where a newer server has one more."""
    return str(enum.Name(number)) if number in enum.values() else str(number)


def outcome(flow: flow_pb2.Flow) -> str:
    """FORWARDED, DROPPED, ...; of a policy verdict ALLOWED, DENIED, ..."""
    if flow.event_type.type == VERDICT:
        return JUDGED.get(flow.verdict, name_of(flow_pb2.Verdict, flow.verdict))
    return name_of(flow_pb2.Verdict, flow.verdict)


def summary(flow: flow_pb2.Flow) -> str:
    """The transport header in words, between the packet's trace ID and how peers proved who they are."""
    traced = f"IP Trace ID: {flow.ip_trace_id.trace_id}; " if flow.ip_trace_id.trace_id else ""
    proven = f"; {name_of(flow_pb2.AuthType, flow.auth_type)}" if flow.auth_type else ""
    return f"{traced}{flow.Summary}{proven}"


def deciding_rules(flow: flow_pb2.Flow) -> str:
    """`by CiliumNetworkPolicy demo/allow-web spec.ingress[0]`, or an empty string.

    Of a drop the rules that denied, of what audit let pass those that would have; else those that allowed,
    of both sides when both judged.
    """
    denied = [*flow.egress_denied_by, *flow.ingress_denied_by]
    policies = denied or [*flow.egress_allowed_by, *flow.ingress_allowed_by]
    if not policies:
        return ""
    told = ", ".join(dict.fromkeys(rule_text(policy) for policy in policies))
    default = denied and (flow.drop_reason_desc == POLICY_DENIED or all(map(is_spec, denied)))
    would = "would be denied " if denied and flow.verdict == flow_pb2.AUDIT else ""
    return f"{would}by default deny of {told}" if default else f"{would}by {told}"


def is_spec(policy: flow_pb2.Policy) -> bool:
    """Whether a policy is named as a whole: for isolating, not for one of its rules."""
    path = next((label.removeprefix(RULE) for label in policy.labels if label.startswith(RULE)), ".")
    return "." not in path


def rule_text(policy: flow_pb2.Policy) -> str:
    """Kind, name and place in the YAML."""
    name = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
    path = next((label.removeprefix(RULE) for label in policy.labels if label.startswith(RULE)), "")
    return " ".join(part for part in (policy.kind, name, path) if part)


def compact(response: observer_pb2.GetFlowsResponse, style: Style) -> str:
    """One line."""
    paint = Paint(style.colour)
    flow = response.flow
    reply = flow.HasField("is_reply") and flow.is_reply.value
    arrow = "<>" if not flow.HasField("is_reply") else "<-" if reply else "->"
    ends = [side(flow, source, style) for source in ((False, True) if reply else (True, False))]
    (left, left_id), (right, right_id) = ends
    colour = VERDICT_COLOURS.get(flow.verdict, "0")
    parts = [
        f"{paint(DIM, moment(response.time, style))}{f' [{response.node_name}]' if style.node else ''}:",
        f"{paint(CYAN, left)} {paint(MAGENTA, left_id)}",
        arrow,
        f"{paint(CYAN, right)} {paint(MAGENTA, right_id)}",
        what(flow),
        paint(colour, outcome(flow)),
        f"({summary(flow)})",
    ]
    if style.rules:
        parts.append(paint(f"{BOLD};{colour}", deciding_rules(flow)))
    return " ".join(part for part in parts if part)


def block(response: observer_pb2.GetFlowsResponse, style: Style) -> str:
    """A block of named lines, for `-o dict`."""
    flow = response.flow
    lines = [
        ("TIMESTAMP", moment(response.time, style)),
        ("NODE", response.node_name if style.node else ""),
        ("SOURCE", " ".join(side(flow, True, style))),
        ("DESTINATION", " ".join(side(flow, False, style))),
        ("TYPE", what(flow)),
        ("VERDICT", outcome(flow)),
        ("SUMMARY", summary(flow)),
        ("RULE", deciding_rules(flow) if style.rules else ""),
        ("UUID", flow.uuid),
    ]
    return "\n".join(f"{name:>11}: {value}" for name, value in lines if value)


BETWEEN_BLOCKS = "------------"


def columns(style: Style) -> tuple[str, ...]:
    """Titles of a table."""
    node, rule = ("NODE",) if style.node else (), ("RULE",) if style.rules else ()
    return ("TIMESTAMP", *node, "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY", *rule)


def table_row(response: observer_pb2.GetFlowsResponse, style: Style) -> tuple[str, ...]:
    """Cells under `columns`."""
    flow = response.flow
    return (
        moment(response.time, style),
        *([response.node_name] if style.node else []),
        side(flow, True, style)[0],
        side(flow, False, style)[0],
        what(flow),
        outcome(flow),
        summary(flow),
        *([deciding_rules(flow)] if style.rules else []),
    )


def gap_text(response: observer_pb2.GetFlowsResponse, style: Style) -> str:
    """One line about lost events."""
    lost = response.lost_events
    source = name_of(flow_pb2.LostEventSource, lost.source)
    where = f" CPU({lost.cpu.value})" if lost.HasField("cpu") else ""
    text = f"EVENTS LOST: {source}{where} {lost.num_events_lost}"
    return f"{moment(response.time, style)}: {Paint(style.colour)('33', text)}"


def node_text(response: observer_pb2.GetFlowsResponse, style: Style) -> str:
    """One line about nodes behind a relay."""
    status = response.node_status
    number, names = len(status.node_names), shortened(status.node_names)
    match status.state_change:
        case relay_pb2.NODE_CONNECTED:
            told = f"Receiving flows from {number} nodes: {names}"
        case relay_pb2.NODE_UNAVAILABLE:
            told = f"{number} nodes are unavailable: {names}"
        case relay_pb2.NODE_GONE:
            told = f"{number} nodes removed from cluster: {names}"
        case relay_pb2.NODE_ERROR:
            told = f"Error {json.dumps(status.message, ensure_ascii=False)} on {number} nodes: {names}"
        case _:
            told = f"{number} nodes in state {status.state_change}: {names}"
    if status.message and status.state_change != relay_pb2.NODE_ERROR:
        told += f" ({status.message})"
    colour = "32" if status.state_change == relay_pb2.NODE_CONNECTED else "33"
    place = f" [{response.node_name}]" if response.node_name else ""
    return f"{moment(response.time, style)}{place}: {Paint(style.colour)(colour, told)}"


def state(number: int) -> str:
    """A node's state as a word: connected, unavailable, gone, error."""
    names = relay_pb2.NodeState.DESCRIPTOR.values_by_number
    name = names[number].name if number in names else "UNKNOWN"
    return name.removeprefix("NODE_").removesuffix("_NODE_STATE").lower()


LONGEST_NAMES = 50
"""Characters of a list of nodes."""


def shortened(names: Sequence[str]) -> str:
    """`a, b (and 7 more)`: at least one name, and no more than fit."""
    shown, length = 0, 0
    for name in names:
        length += len(name) + 2
        if length > LONGEST_NAMES and shown:
            break
        shown += 1
    more = f" (and {len(names) - shown} more)" if shown < len(names) else ""
    return ", ".join(names[:shown]) + more


def count(number: int, what: str) -> str:
    """`1 flow`, `2 flows`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


class AnswerCounts:
    """Counts flows, gaps and nodes that do not answer, of one answer."""

    def __init__(self, style: Style) -> None:
        self.flows = 0
        self._style = style
        self._lost: dict[str, int] = {}
        self._span: tuple[Timestamp, Timestamp] | None = None
        """From when to when something was lost."""
        self._nodes: dict[str, int] = {}

    def add(self, response: observer_pb2.GetFlowsResponse) -> bool:
        """Count one response; False: it tells of nodes what was told before."""
        if response.HasField("flow"):
            self.flows += 1
        elif response.HasField("lost_events"):
            lost = response.lost_events
            where = WHERE.get(lost.source, "elsewhere")
            if lost.HasField("cpu"):
                where = f"on cpu {lost.cpu.value}"
            self._lost[where] = self._lost.get(where, 0) + lost.num_events_lost
            self._widen([each for each in (lost.first, lost.last) if each.ToNanoseconds()])
        elif response.HasField("node_status"):
            status = response.node_status
            news = dict.fromkeys(status.node_names, int(status.state_change))
            known = all(self._nodes.get(name) == state for name, state in news.items())
            self._nodes |= news
            return not known
        return True

    @property
    def silent(self) -> list[str]:
        """Nodes that do not answer."""
        return sorted(name for name, state in self._nodes.items() if state in SILENT)

    def sentence(self) -> str:
        """`20 flows, complete`; or how much of what was asked for this is at least, what is missing at most,
        since when and where."""
        flows = count(self.flows, "flow")
        away = self.silent
        without = f"without {count(len(away), 'node')} ({', '.join(away)})" if away else ""
        if not self._lost:
            return f"{flows}, {without or 'complete'}"
        missing = sum(self._lost.values())
        share = math.floor(1000 * self.flows / (self.flows + missing)) / 10
        places = ", ".join(f"{count} {where}" for where, count in self._lost.items())
        found = f"{flows}, at least {share} % complete: missing <= {missing}{self._from_to()} ({places})"
        return f"{found}, {without}" if without else found

    def _widen(self, times: list[Timestamp]) -> None:
        known = [*times, *(self._span or ())]
        if known:
            order = Timestamp.ToNanoseconds
            self._span = min(known, key=order), max(known, key=order)

    def _from_to(self) -> str:
        if self._span is None:
            return ""
        first, last = (moment(each, self._style) for each in self._span)
        return f" from {first} to {last}"


SILENT = (relay_pb2.NODE_UNAVAILABLE, relay_pb2.NODE_ERROR)

WHERE = {
    flow_pb2.PERF_EVENT_RING_BUFFER: "in the kernel",
    flow_pb2.HUBBLE_RING_BUFFER: "no longer kept, or not read in time",
    flow_pb2.OBSERVER_EVENTS_QUEUE: "in the observer",
}


def aligned(rows: Iterable[tuple[str, ...]], style: Style) -> list[str]:
    """Rows as lines with columns of equal width, below their titles."""
    cells = [columns(style), *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "   ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


LINES: dict[str, Callable[[observer_pb2.GetFlowsResponse, Style], str]] = {"compact": compact, "dict": block}
"""Forms that print a flow as text as it comes."""
