"""What each metric counts: which rows, and the labels of its own (those that are not about the two sides).

A kind turns rows into selections: a mask, and for each selected row one word that says everything its own
labels depend on. Words become label values once per distinct word.

Names, labels and conditions are those of Cilium's page on Hubble metrics; where this data path tells
something in another way, the kind says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from cilia.hubble.columns import (
    EGRESS,
    FLAG_IPV6,
    FLAG_JUDGED_APART,
    INGRESS,
    KIND_DROP,
    KIND_TRACE,
    KIND_VERDICT,
    Mask,
    Words,
)
from cilia.hubble.icmp import icmp_name
from cilia.hubble.meaning import EVENT_TYPES
from cilia.hubble.metrics.batch import Batch, table
from cilia.hubble.metrics.options import MetricOptions
from cilia.hubble.predicates import ReferencePredicate
from cilia.hubble.protocols import ICMP, ICMPV6, NAMES, TCP, WITH_PORTS
from cilia.hubble.store import FlowStore
from cilia.model.drop_reasons import BY_POLICY
from cilia.proto.flow import flow_pb2

FORWARDED, DROPPED, AUDIT, REDIRECTED = 1, 2, 4, 5
WENT_ON = table(FORWARDED, REDIRECTED)
DENIED = table(*BY_POLICY)
KNOWN_PROTOCOL = table(*NAMES)
HAS_PORTS = table(*WITH_PORTS)
IS_ICMP = table(ICMP, ICMPV6)

NEW = 1
"""State of the first packet of a flow."""
HOST_IDENTITY = 1

FIN, SYN, RST, ACK = 1, 2, 4, 16
HAS_FIN = table(*(bits for bits in range(256) if bits & FIN))
HAS_SYN = table(*(bits for bits in range(256) if bits & SYN and not bits & ACK))
HAS_SYN_ACK = table(*(bits for bits in range(256) if bits & SYN and bits & ACK))
HAS_RST = table(*(bits for bits in range(256) if bits & RST))

TRACE_POINTS = {
    1: "to-proxy",
    2: "to-host",
    3: "to-stack",
    4: "to-overlay",
    5: "from-endpoint",
    6: "from-proxy",
    7: "from-host",
    8: "from-stack",
    9: "from-overlay",
    10: "from-network",
    11: "to-network",
    12: "from-crypto",
    13: "to-crypto",
    101: "to-endpoint",
}
"""Names of observation points, as monitors print them."""

DIRECTIONS = {0: "traffic_direction_unknown", INGRESS: "ingress", EGRESS: "egress"}
MATCHES = ("none", "l3-only", "l3-l4", "l4-only", "all", "l3-proto", "proto-only")
TYPE_NAMES = {KIND_DROP: "Drop", KIND_TRACE: "Trace", KIND_VERDICT: "PolicyVerdict"}

OTHER = "other"

WORLD = ("reserved:world", "reserved:world-ipv4", "reserved:world-ipv6")


class Selection(NamedTuple):
    """Rows to count, and what their own labels depend on."""

    mask: Mask
    """Shape (n,)."""
    words: Words
    """Shape (n,): what is not selected is ignored."""


Select: TypeAlias = Callable[[Batch], Iterable[Selection]]


class Series(NamedTuple):
    """A time series family that a metric exports."""

    name: str
    """Without the ending of its type."""
    help: str
    labels: tuple[str, ...]
    """Its own ones."""
    type: str = "counter"


class Kind(NamedTuple):
    """One metric, ready to count."""

    series: tuple[Series, ...]
    """Where `select` is given: exactly one."""
    select: Select | None = None
    """None: its records don't exist yet."""
    labels: Callable[[int], tuple[str, ...]] = lambda _: ()
    """The values of the own labels of a word."""
    bounded: Callable[[tuple[str, ...]], tuple[str, ...]] = lambda values: values
    """The own labels where the budget is used up: those that could be many say OTHER."""


def protocol_name(kind: int, protocol: int) -> str:
    """What best describes the protocol of a flow."""
    return NAMES.get(protocol, "Unknown L4") if kind in TYPE_NAMES else "Unknown flow"


def verdict_name(verdict: int) -> str:
    """As flow.Verdict spells it."""
    known = flow_pb2.Verdict.values()
    return flow_pb2.Verdict.Name(flow_pb2.Verdict.ValueType(verdict)) if verdict in known else str(verdict)


def reason_name(reason: int) -> str:
    """As flow.DropReason spells it."""
    known = flow_pb2.DropReason.values()
    return flow_pb2.DropReason.Name(flow_pb2.DropReason.ValueType(reason)) if reason in known else str(reason)


def forwarded(batch: Batch) -> Mask:
    """What went on its way: the packet, not what policy said of it before."""
    return batch.one_of("verdict", WENT_ON) & ~batch.verdict


def ports(batch: Batch) -> Words:
    """Destination ports; 0 of what has none."""
    there = batch.one_of("protocol", HAS_PORTS)
    return np.where(there, batch.word((0, "destination_port")), np.uint64(0))


# -- the kinds ----------------------------------------------------------------------------------------------


def flow(_store: FlowStore, _options: MetricOptions) -> Kind:
    """Every flow event."""

    def select(batch: Batch) -> Iterable[Selection]:
        words = batch.word((0, "protocol"), (8, "kind"), (16, "point"), (24, "verdict"))
        yield Selection(np.ones(len(words), np.bool_), words)

    def labels(key: int) -> tuple[str, ...]:
        protocol, kind, point, verdict = (key >> shift & 0xFF for shift in (0, 8, 16, 24))
        if kind == KIND_TRACE:
            sub_type = TRACE_POINTS.get(point, str(point))
        else:
            sub_type = "" if kind in TYPE_NAMES else str(EVENT_TYPES.get(kind, kind))
        type_name = TYPE_NAMES.get(kind, "Unknown")
        return protocol_name(kind, protocol), type_name, sub_type, verdict_name(verdict)

    series = Series(
        "hubble_flows_processed",
        "Total number of flows processed",
        ("protocol", "type", "subtype", "verdict"),
    )
    return Kind((series,), select, labels)


def drop(_store: FlowStore, _options: MetricOptions) -> Kind:
    """What was dropped."""

    def select(batch: Batch) -> Iterable[Selection]:
        words = batch.word((0, "protocol"), (8, "kind"), (16, "reason"))
        yield Selection(batch.equal("verdict", DROPPED), words)

    def labels(key: int) -> tuple[str, ...]:
        return reason_name(key >> 16), protocol_name(key >> 8 & 0xFF, key & 0xFF)

    return Kind((Series("hubble_drop", "Number of drops", ("reason", "protocol")),), select, labels)


def tcp(_store: FlowStore, _options: MetricOptions) -> Kind:
    """Flags of forwarded TCP packets that open or end a connection."""
    names = ("FIN", "SYN-ACK", "SYN", "RST")

    def select(batch: Batch) -> Iterable[Selection]:
        counted = batch.equal("protocol", TCP) & forwarded(batch)
        family = batch.flagged(FLAG_IPV6).astype(np.uint64) << np.uint64(8)
        for number, flags in enumerate((HAS_FIN, HAS_SYN_ACK, HAS_SYN, HAS_RST)):
            yield Selection(counted & batch.one_of("tcp_flags", flags), family | np.uint64(number))

    def labels(key: int) -> tuple[str, ...]:
        return names[key & 0xFF], family_name(key >> 8)

    return Kind((Series("hubble_tcp_flags", "TCP flag occurrences", ("flag", "family")),), select, labels)


def icmp(_store: FlowStore, _options: MetricOptions) -> Kind:
    """ICMP messages of both families. (Cilium says IPv4 of ICMPv6, too; here the family is right.)"""

    def select(batch: Batch) -> Iterable[Selection]:
        there = batch.one_of("protocol", IS_ICMP) & ~batch.verdict
        if there.any():
            yield Selection(there, batch.word((0, "icmp_code"), (8, "icmp_type"), (16, "protocol")))

    def labels(key: int) -> tuple[str, ...]:
        six = key >> 16 == ICMPV6
        return family_name(six), icmp_name(key >> 8 & 0xFF, key & 0xFF, six=six)

    def bounded(values: tuple[str, ...]) -> tuple[str, ...]:
        return values[0], OTHER

    series = Series("hubble_icmp", "Number of ICMP messages", ("family", "type"))
    return Kind((series,), select, labels, bounded)


def port_distribution(_store: FlowStore, _options: MetricOptions) -> Kind:
    """Destination ports of requests that were forwarded; of what has no ports, 0."""

    def select(batch: Batch) -> Iterable[Selection]:
        counted = forwarded(batch) & ~batch.equal("state", 0) & ~batch.reply
        counted &= batch.one_of("protocol", KNOWN_PROTOCOL)
        yield Selection(counted, batch.word((16, "protocol")) | ports(batch))

    def labels(key: int) -> tuple[str, ...]:
        return NAMES[key >> 16], str(key & 0xFFFF)

    def bounded(values: tuple[str, ...]) -> tuple[str, ...]:
        return values[0], OTHER

    series = Series(
        "hubble_port_distribution", "Numbers of packets distributed by destination port", ("protocol", "port")
    )
    return Kind((series,), select, labels, bounded)


def policy(_store: FlowStore, _options: MetricOptions) -> Kind:
    """Verdicts of policy, one for each side that judged.

    A new flow that two policies of this node let pass counts twice, for egress and for ingress, a denial
    once, by its drop. Where verdict events are muted, the first trace of a flow has what each side decided;
    where they are not, the trace says so and is left out. Sides that no policy isolates judge nothing. As in
    Cilium, what the host sends is left out: it may reach its pods.
    """

    def select(batch: Batch) -> Iterable[Selection]:
        foreign = ~batch.equal("source_identity", HOST_IDENTITY)
        dropped = batch.equal("verdict", DROPPED) & batch.one_of("reason", DENIED)
        told = dropped | batch.verdict
        new = batch.trace & batch.equal("state", NEW) & forwarded(batch) & ~batch.reply
        new &= ~batch.flagged(FLAG_JUDGED_APART)
        for direction, side in ((EGRESS, "egress"), (INGRESS, "ingress")):
            judged = told & batch.equal("direction", direction)
            judged |= new & ~batch.equal(f"{side}_cookie", 0)
            words = batch.word((0, f"{side}_match"), (8, "verdict")) | np.uint64(direction << 16)
            yield Selection(judged & foreign, words)

    def labels(key: int) -> tuple[str, ...]:
        match = key & 0xFF
        name = MATCHES[match] if match < len(MATCHES) else str(match)
        return DIRECTIONS.get(key >> 16, DIRECTIONS[0]), name, verdict_name(key >> 8 & 0xFF).lower()

    series = Series(
        "hubble_policy_verdicts",
        "Total number of Cilium network policy verdicts",
        ("direction", "match", "action"),
    )
    return Kind((series,), select, labels)


def flows_to_world(store: FlowStore, options: MetricOptions) -> Kind:
    """Flows to what is outside of the cluster; drops only where policy is the reason, unless any-drop."""
    outside = ReferencePredicate(
        store.parties, "destination", lambda party: any(label in WORLD for label in party.labels)
    )
    with_port = "port" in options.switches

    def select(batch: Batch) -> Iterable[Selection]:
        counted = outside(batch.rows)
        if not counted.any():
            return
        counted &= batch.one_of("protocol", KNOWN_PROTOCOL)
        dropped = batch.equal("verdict", DROPPED)
        if "any-drop" not in options.switches:
            counted &= ~dropped | batch.one_of("reason", DENIED)
        counted &= dropped | ~(batch.reply | batch.verdict)
        if "syn-only" in options.switches:
            opens = batch.one_of("tcp_flags", HAS_SYN) | batch.one_of("tcp_flags", HAS_SYN_ACK)
            counted &= batch.equal("protocol", TCP) & opens & ~batch.reply
        words = batch.word((0, "protocol"), (8, "verdict"), (48, "kind"))
        if with_port:
            words |= ports(batch) << np.uint64(16)
        yield Selection(counted, words)

    def labels(key: int) -> tuple[str, ...]:
        protocol = key & 0xFF
        values = (protocol_name(key >> 48, protocol), verdict_name(key >> 8 & 0xFF))
        if not with_port:
            return values
        return *values, str(key >> 16 & 0xFFFF) if protocol in WITH_PORTS else ""

    def bounded(values: tuple[str, ...]) -> tuple[str, ...]:
        return (*values[:2], OTHER) if with_port else values

    own = ("protocol", "verdict", "port") if with_port else ("protocol", "verdict")
    series = Series("hubble_flows_to_world", "Total number of flows to reserved:world", own)
    return Kind((series,), select, labels, bounded)


def family_name(six: int) -> str:
    """As flow.IPVersion spells it."""
    return "IPv6" if six else "IPv4"


# -- those whose records don't exist yet --------------------------------------------------------------------


def dns(_store: FlowStore, options: MetricOptions) -> Kind:
    """DNS queries and answers."""
    asked = ("query",) if "query" in options.switches else ()
    whole = ("rcode", "qtypes", "ips_returned", *asked)
    return Kind(
        (
            Series("hubble_dns_queries", "Number of DNS queries observed", whole),
            Series("hubble_dns_responses", "Number of DNS responses observed", whole),
            Series("hubble_dns_response_types", "Number of DNS answers by type", ("type", "qtypes", *asked)),
        )
    )


HTTP_DURATION = Series(
    "hubble_http_request_duration_seconds",
    "Duration of HTTP requests in seconds",
    ("method", "reporter"),
    "histogram",
)


def http(_store: FlowStore, _options: MetricOptions) -> Kind:
    """HTTP requests and answers, in the labels of old."""
    return Kind(
        (
            Series("hubble_http_requests", "Count of HTTP requests", ("method", "protocol", "reporter")),
            Series("hubble_http_responses", "Count of HTTP responses", ("status", "method", "reporter")),
            HTTP_DURATION,
        )
    )


def http_v2(_store: FlowStore, _options: MetricOptions) -> Kind:
    """HTTP requests with their answers."""
    return Kind(
        (
            Series(
                "hubble_http_requests", "Count of HTTP requests", ("method", "protocol", "status", "reporter")
            ),
            HTTP_DURATION,
        )
    )


def kafka(_store: FlowStore, _options: MetricOptions) -> Kind:
    """Kafka requests."""
    return Kind(
        (
            Series(
                "hubble_kafka_requests",
                "Count of Kafka requests",
                ("topic", "api_key", "error_code", "reporter"),
            ),
            Series(
                "hubble_kafka_request_duration_seconds",
                "Duration of Kafka requests in seconds",
                ("topic", "api_key", "reporter"),
                "histogram",
            ),
        )
    )


KINDS: dict[str, Callable[[FlowStore, MetricOptions], Kind]] = {
    "dns": dns,
    "drop": drop,
    "flow": flow,
    "flows-to-world": flows_to_world,
    "http": http,
    "httpV2": http_v2,
    "icmp": icmp,
    "kafka": kafka,
    "policy": policy,
    "port-distribution": port_distribution,
    "tcp": tcp,
}


def label_names(kind: Kind, sides: Sequence[str]) -> list[tuple[str, ...]]:
    """All labels of each series of a kind, given those of the two sides."""
    return [(*series.labels, *sides) for series in kind.series]
