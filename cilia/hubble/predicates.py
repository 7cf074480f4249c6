"""One function per filter field: values in, a mask over rows out.

Predicates on numbers are vector expressions; predicates on names (`questions`) are asked once per distinct
party and remembered. Every function raises FilterError for a value that can't be read. What asks for
application records, of which there are none yet, matches no flow. The tables at the end say which field
belongs to which function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

from cilia.hubble import questions
from cilia.hubble.cel import Expression
from cilia.hubble.columns import (
    FLAG_ENCRYPTED,
    FLAG_IPV6,
    FLAG_REPLY,
    KIND_DROP,
    KIND_SOCKET,
    KIND_TRACE,
    VERDICT_DROPPED,
    Bytes,
    Mask,
    Refs,
    address_words,
    equal,
    flagged,
    sender_words,
    service_is_source,
    translated,
)
from cilia.hubble.convert import NodeFacts
from cilia.hubble.directory import Device, Party, Service
from cilia.hubble.filter_values import (
    FilterError,
    Ports,
    Prefixes,
    Wildcard,
    parsed_selectors,
)
from cilia.hubble.layer4 import TCP_FLAGS
from cilia.hubble.meaning import EVENT_TYPES, TO_ENDPOINT
from cilia.hubble.past import Meanings, Values
from cilia.hubble.protocols import ICMP, ICMPV6, IGMP, SCTP, TCP, UDP, VRRP, WITH_PORTS
from cilia.hubble.ring import Rows
from cilia.hubble.turns import Turn
from cilia.proto.flow import flow_pb2

HIGHEST_SUB_TYPE = 255
"""Drop reasons and observation points are bytes."""

T = TypeVar("T", bound=Hashable)

Predicate: TypeAlias = Callable[[Rows], Mask]
Field: TypeAlias = "Callable[[Context, list[Any]], Predicate]"
SideField: TypeAlias = "Callable[[Context, str, list[Any]], Predicate]"

PROTOCOLS = {
    "tcp": (TCP,),
    "udp": (UDP,),
    "icmp": (ICMP, ICMPV6),
    "icmpv4": (ICMP,),
    "icmpv6": (ICMPV6,),
    "sctp": (SCTP,),
    "igmp": (IGMP,),
    "vrrp": (VRRP,),
    "dns": (),
    "http": (),
    "kafka": (),
}
"""The last three are told by application records only."""

STATUS = re.compile(r"[1-5](?:\d\d|\+)")
"""A status of HTTP, or all of its class."""


class Context(NamedTuple):
    """What predicates refer to."""

    store: Meanings
    node: NodeFacts
    turn: Turn | None = None
    """Ends masks that take long, by TurnOver; None: they may take as long as they do."""


# -- predicates on what is behind a reference ---------------------------------------------------------------


class ReferencePredicate(Generic[T]):
    """A question about an interned value, asked once per distinct one."""

    def __init__(
        self, interner: Values[T], column: str, question: Callable[[T], bool], turn: Turn | None = None
    ) -> None:
        self._turn = turn
        self._interner = interner
        self._column = column
        self._question = question
        self._generation = -1
        self._answers = np.zeros(0, np.int8)

    def __call__(self, rows: Rows) -> Mask:
        refs: Refs = getattr(rows, self._column)
        self._make_room()
        answers = self._answers[refs]
        if (answers < 0).any():
            for ref in np.unique(refs[answers < 0]):
                self._answers[ref] = self._question(self._interner.values[ref])
                if self._turn:
                    self._turn.progressed()
            answers = self._answers[refs]
        return answers > 0

    def _make_room(self) -> None:
        """For values that are new since the last call; -1 is unanswered."""
        if self._generation != self._interner.generation:
            self._generation = self._interner.generation
            self._answers = np.zeros(0, np.int8)
        missing = len(self._interner.values) - len(self._answers)
        if missing > 0:
            self._answers = np.concatenate([self._answers, np.full(missing + 64, -1, np.int8)])


def of_party(question: Callable[[list[Any]], Callable[[Party], bool]]) -> SideField:
    """A field of either side whose values make a question about a party."""

    def field(context: Context, side: str, values: list[Any]) -> Predicate:
        return ReferencePredicate(context.store.parties, side, question(values), context.turn)

    return field


def by_service(context: Context, side: str, values: list[str]) -> Predicate:
    """Services that initiators asked for: `namespace/prefix`, `namespace/`, `/prefix`; without a slash:
    default. They stand on the destination's side, of replies on the source's."""
    wanted = questions.namespaced("service", values)

    def question(service: Service) -> bool:
        return bool(service.name) and wanted(service.namespace, service.name)

    asked = ReferencePredicate(context.store.services, "service", question, context.turn)
    return lambda rows: asked(rows) & (service_is_source(rows.events) == (side == "source"))


def by_address(context: Context, side: str, values: list[str]) -> Predicate:
    """Addresses and CIDRs, as the sender used them."""
    wanted = Prefixes(values)

    def predicate(rows: Rows) -> Mask:
        source = side == "source"
        high, low = sender_words(rows.events) if source else address_words(rows.events, side)
        return wanted.hold(rows, high, low)

    return predicate


def by_translated_address(_context: Context, values: list[str]) -> Predicate:
    """Addresses and CIDRs that a source became by translation."""
    wanted = Prefixes(values)

    def predicate(rows: Rows) -> Mask:
        high, low = address_words(rows.events, "source")
        return wanted.hold(rows, high, low) & translated(rows.events)

    return predicate


def by_port(_context: Context, side: str, values: list[str]) -> Predicate:
    """Ports and ranges of ports (`8000-8080`) of protocols that have ports."""
    wanted = Ports(values)

    def predicate(rows: Rows) -> Mask:
        events = rows.events
        ports = events[f"{side}_port"]
        if side == "source":
            ports = np.where(translated(events), events["original_source_port"], ports)
        return wanted.hold(ports) & np.isin(events["protocol"], WITH_PORTS)

    return predicate


# -- predicates on the flow ---------------------------------------------------------------------------------


def by_verdict(_context: Context, values: list[int]) -> Predicate:
    """What became of the packet."""

    return lambda rows: np.isin(rows.events["verdict"], values)


def by_drop_reason(_context: Context, values: list[int]) -> Predicate:
    """Why it was dropped; 0 is the reason of what was not."""

    def predicate(rows: Rows) -> Mask:
        dropped = equal(rows.events, "kind", KIND_DROP) | equal(rows.events, "verdict", VERDICT_DROPPED)
        return np.isin(np.where(dropped, rows.events["reason"], np.uint8(0)), values)

    return predicate


def by_direction(_context: Context, values: list[int]) -> Predicate:
    """Whose policy applies."""
    return lambda rows: np.isin(rows.events["direction"], values)


def by_protocol(_context: Context, values: list[str]) -> Predicate:
    """Names of transport protocols; `icmp` stands for both families'."""
    numbers: list[int] = []
    for value in values:
        name = value.lower()
        if name not in PROTOCOLS:
            raise FilterError(f"unknown protocol {value!r}: use one of {', '.join(PROTOCOLS)}")
        numbers += PROTOCOLS[name]
    return lambda rows: np.isin(rows.events["protocol"], numbers)


def by_event_type(_context: Context, values: list[flow_pb2.EventTypeFilter]) -> Predicate:
    """Message types as monitors number them; the sub-type is a drop reason or an observation point."""
    kinds = {number: kind for kind, number in EVENT_TYPES.items()}
    answers = np.zeros((1 << 8, HIGHEST_SUB_TYPE + 1), np.bool_)
    for value in values:
        if value.type not in kinds:
            continue
        if not value.match_sub_type:
            answers[kinds[value.type]] = True
        elif 0 <= value.sub_type <= HIGHEST_SUB_TYPE:
            answers[kinds[value.type], value.sub_type] = True

    def predicate(rows: Rows) -> Mask:
        matched: Mask = answers[rows.events["kind"], sub_types(rows)]
        return matched

    return predicate


def sub_types(rows: Rows) -> Bytes:
    """The sub-type of each row as flows tell it (`meaning.sub_type`)."""
    kind, point = rows.events["kind"], rows.events["point"]
    nothing = np.uint8(0)
    pointed = (kind == KIND_TRACE) & (point != TO_ENDPOINT) | (kind == KIND_SOCKET)
    return np.where(kind == KIND_DROP, rows.events["reason"], np.where(pointed, point, nothing))


def by_reply(_context: Context, values: list[bool]) -> Predicate:
    """Replies or not, among flows of which that is known. What was dropped before that counts as none: Hubble
    UI asks for what is no reply, and means drops, too."""

    def predicate(rows: Rows) -> Mask:
        known = ~equal(rows.events, "state", 0)
        asked = known | equal(rows.events, "verdict", VERDICT_DROPPED)
        return asked & np.isin(known & flagged(rows.events, FLAG_REPLY), values)

    return predicate


def by_encryption(_context: Context, values: list[bool]) -> Predicate:
    """Whether the packet travelled encrypted."""
    return lambda rows: np.isin(flagged(rows.events, FLAG_ENCRYPTED), values)


def by_ip_version(_context: Context, values: list[int]) -> Predicate:
    """IPv4 or IPv6; neither, where the packet was something else."""

    def predicate(rows: Rows) -> Mask:
        words = [*address_words(rows.events, "source"), *address_words(rows.events, "destination")]
        there = np.bitwise_or.reduce(words) != 0
        return np.isin(np.where(there, np.where(flagged(rows.events, FLAG_IPV6), 2, 1), 0), values)

    return predicate


def by_tcp_flags(_context: Context, values: list[flow_pb2.TCPFlags]) -> Predicate:
    """All flags of a value must be set; others may be. NS is never seen."""
    seen = [value for value in values if not value.NS]
    wanted = [sum(1 << bit for bit, name in enumerate(TCP_FLAGS) if getattr(value, name)) for value in seen]

    every = np.arange(1 << 8)
    answers = np.zeros(len(every), np.bool_)
    for want in set(wanted):
        answers |= (every & want) == want

    def predicate(rows: Rows) -> Mask:
        matched: Mask = answers[rows.events["tcp_flags"]]
        return matched & equal(rows.events, "protocol", TCP)

    return predicate


def by_interface(context: Context, values: list[flow_pb2.NetworkInterface]) -> Predicate:
    """Index and name of a device; what is empty matches any."""

    def question(device: Device) -> bool:
        return bool(device.index) and any(
            want.index in (0, device.index) and want.name in ("", device.name) for want in values
        )

    return ReferencePredicate(context.store.devices, "device", question, context.turn)


def by_uuid(context: Context, values: list[str]) -> Predicate:
    """Flows by their own number."""
    wanted = [row for row in map(context.store.row_of, values) if row is not None]
    return lambda rows: np.isin(rows.numbers, wanted)


def by_node_name(context: Context, values: list[str]) -> Predicate:
    """`node`, `cluster/node` or `cluster/`, with `*` for anything: this node or not."""
    cluster, _, node = context.node.name.rpartition("/")
    matched = False
    for value in values:
        first, slash, second = value.partition("/")
        want_cluster, want_node = (first, second) if slash else ("*", first)
        matched |= bool(
            Wildcard(want_cluster or "*").matches(cluster or "default")
            and Wildcard(want_node or "*").matches(node)
        )
    return constant(matched)


def by_node_labels(context: Context, values: list[str]) -> Predicate:
    """Label selectors over the labels of this node."""
    return constant(any(selector.matches(context.node.labels) for selector in parsed_selectors(values)))


def by_expression(context: Context, values: list[flow_pb2.FlowFilter.Experimental]) -> Predicate:
    """Expressions of CEL, of which one must be true."""
    (experimental,) = values
    expressions = [
        Expression(text, context.store, context.node, context.turn) for text in experimental.cel_expression
    ]
    if not expressions:
        return constant(True)
    return lambda rows: np.logical_or.reduce([expression(rows) for expression in expressions])


# -- predicates on application records ----------------------------------------------------------------------


def never(check: Callable[[Any], object] = lambda value: value) -> Field:
    """A field that no flow has yet; its values are checked all the same."""

    def field(_context: Context, values: list[Any]) -> Predicate:
        for value in values:
            check(value)
        return constant(False)

    return field


def status(value: str) -> None:
    """`404` or `4+`."""
    if not STATUS.fullmatch(value):
        raise FilterError(f"{value!r} is not an HTTP status: write 404, or 4+ for all of its class")


def pattern(value: str) -> None:
    """A regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise FilterError(f"{value!r} is not a regular expression: {error}") from None


def by_ip_trace(_context: Context, values: list[int]) -> Predicate:
    """Identifiers from an IP option; the data path reads none, so all flows have 0."""
    return constant(0 in values)


def constant(matched: bool) -> Predicate:
    """The same answer for every row."""
    return lambda rows: np.full(len(rows.wall), matched, np.bool_)


SIDE_FIELDS: dict[str, SideField] = {
    "ip": by_address,
    "port": by_port,
    "pod": of_party(questions.pods),
    "label": of_party(questions.labels),
    "identity": of_party(questions.identities),
    "workload": of_party(questions.workloads),
    "cluster_name": of_party(questions.clusters),
    "fqdn": of_party(questions.fqdns),
    "service": by_service,
}
"""Fields that exist for both sides, without `source_` or `destination_`."""

FIELDS: dict[str, Field] = {
    "source_ip_xlated": by_translated_address,
    "verdict": by_verdict,
    "drop_reason_desc": by_drop_reason,
    "traffic_direction": by_direction,
    "protocol": by_protocol,
    "event_type": by_event_type,
    "reply": by_reply,
    "encrypted": by_encryption,
    "ip_version": by_ip_version,
    "tcp_flags": by_tcp_flags,
    "interface": by_interface,
    "uuid": by_uuid,
    "node_name": by_node_name,
    "node_labels": by_node_labels,
    "experimental": by_expression,
    "ip_trace_id": by_ip_trace,
    "trace_id": never(),
    "dns_query": never(pattern),
    "http_status_code": never(status),
    "http_method": never(),
    "http_path": never(pattern),
    "http_url": never(pattern),
    "http_header": never(),
}

APPLICATION_FIELDS = {"dns_query", *(name for name in FIELDS if name.startswith("http_"))}
"""Fields that event types other than application records contradict."""
