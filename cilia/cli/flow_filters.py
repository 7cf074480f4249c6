"""Flags of `observe` to Hubble's flow filters.

A flag about one side (`--from-pod`) is a field of the filter. A flag about either side (`--pod`) makes two
filters, one with the source and one with the destination field, joined by OR; all other fields go into both.
`--not` sends the next flag into the denylist. Namespaces are no field of their own: they stand before the
names of pods and services that have none, and alone they mean all pods in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import Message

from cilia.kit.documents import cut
from cilia.model.identity import RESERVED_NAMES
from cilia.proto.flow import flow_pb2

IDENTITIES = {names[0]: int(number) for number, names in RESERVED_NAMES.items()}
EVENT_TYPES = {"drop": 1, "capture": 3, "trace": 4, "policy-verdict": 5, "trace-sock": 7, "l7": 129}

LONGEST_NUMBER = 20
"""Digits of the largest number a field can have."""

Sided = tuple[str, list[Any]]
"""A field without its side, and values."""


class FlagError(ValueError):
    """A flag's value that can't be read; its text is a sentence for the user."""


class Given(NamedTuple):
    """One flag as it was typed."""

    name: str
    value: Any
    negated: bool


class Pair:
    """The filter with what is asked of the source, and the one with what is asked of the destination."""

    def __init__(self) -> None:
        self._left = flow_pb2.FlowFilter()
        self._right = flow_pb2.FlowFilter()
        self._namespaces: dict[str, list[str]] = {}
        self._sides: dict[str, str] = {}

    def both(self, field: str, values: list[Any]) -> None:
        """A field that does not depend on the side."""
        add(self._left, field, values)
        add(self._right, field, values)

    def sided(self, side: str, flag: str, field: str, values: list[Any]) -> None:
        """A field of the source (`side` is from_), of the destination (to_) or of either (empty)."""
        before = self._sides.setdefault(flag, side)
        if "" in (before, side) and before != side:
            one = (before or side).replace("_", "-") + flag
            raise FlagError(f"--{flag} and --{one} exclude each other: keep one, or ask twice")
        if flag == "namespace":
            self._namespaces.setdefault(side, []).extend(values)
            return
        for message, name in self._targets(side):
            add(message, f"{name}_{field}", values)

    def _targets(self, side: str) -> list[tuple[flow_pb2.FlowFilter, str]]:
        if not side:
            return [(self._left, "source"), (self._right, "destination")]
        name = "source" if side == "from_" else "destination"
        return [(self._left, name), (self._right, name)]

    def filters(self) -> list[flow_pb2.FlowFilter]:
        """None, one or two filters. Raises FlagError for names outside of the namespaces asked for."""
        for side, namespaces in self._namespaces.items():
            for message, name in self._targets(side):
                qualify(message, name, namespaces)
        self._namespaces.clear()
        if not self._left.ListFields():
            return []
        return [self._left] if self._left == self._right else [self._left, self._right]


def qualify(message: flow_pb2.FlowFilter, side: str, namespaces: list[str]) -> None:
    """Put namespaces before the names of pods and services of one side, or ask for all pods in them."""
    pods, services = (getattr(message, f"{side}_{field}") for field in ("pod", "service"))
    if not pods and not services:
        pods.append("")
    for names in (pods, services):
        whole = [name for name in names if "/" in name]
        for name in whole:
            where = name.partition("/")[0]
            if where and where not in namespaces and "" not in namespaces:
                places = " or ".join(namespaces)
                raise FlagError(f"{name!r} is not in {places}: leave out the one or the other")
        qualified = [f"{space}/{name}" for name in names if "/" not in name for space in namespaces]
        # Of pods in any namespace nothing is asked.
        names[:] = [name for name in dict.fromkeys([*whole, *qualified]) if name != "/"]


def add(message: flow_pb2.FlowFilter, field: str, values: list[Any]) -> None:
    """Append to a repeated field, or to the expressions."""
    if field == "cel_expression":
        message.experimental.cel_expression.extend(values)
        return
    target = getattr(message, field)
    target.extend(value for value in values if isinstance(value, Message) or value not in target)


def build(given: Iterable[Given]) -> tuple[list[flow_pb2.FlowFilter], list[flow_pb2.FlowFilter]]:
    """Allowlist and denylist of all flags. Raises FlagError."""
    allow, deny = Pair(), Pair()
    for flag in given:
        apply(deny if flag.negated else allow, flag)
    return allow.filters(), deny.filters()


def apply(pair: Pair, flag: Given) -> None:
    """Put one flag into a pair of filters."""
    for side in ("from_", "to_", ""):
        bare = flag.name.removeprefix(side)
        if flag.name.startswith(side) and bare in SIDED:
            pair.sided(side, bare, *SIDED[bare](flag.value))
            return
        if flag.name.startswith(side) and bare == "all_namespaces":
            pair.sided(side, "namespace", "pod", [""])
            return
    pair.both(*PLAIN[flag.name](flag.value))


def raw(texts: Iterable[str], flag: str) -> list[flow_pb2.FlowFilter]:
    """Filters as JSON, one or several in a text, as --print-raw-filters prints them. Raises FlagError."""
    found = []
    for text in texts:
        rest = text.strip()
        while rest:
            try:
                value, end = json.JSONDecoder().raw_decode(rest)
                if not isinstance(value, dict):
                    raise ValueError("this is no object")
                found.append(json_format.ParseDict(value, flow_pb2.FlowFilter()))
            except (ValueError, json_format.ParseError, RecursionError) as error:
                reason = cut(str(error).splitlines()[0], 200)
                raise FlagError(
                    f'--{flag} takes filters as JSON, such as {{"verdict":["DROPPED"]}}: {reason}'
                ) from None
            rest = rest[end:].lstrip(" \t\r\n,")
    return found


def named(enum: Any, what: str) -> Callable[[str], int]:
    """A reader of an enum's names, in any case, with `-` for `_`, or of its numbers."""

    def read(text: str) -> int:
        name = text.strip().upper().replace("-", "_").replace(" ", "_")
        if name in enum.keys():  # noqa: SIM118 - a protobuf enum wrapper is no dictionary
            return int(enum.Value(name))
        if is_number(name) and bounded(name, what, 31) in enum.values():
            return int(name)
        known = ", ".join(sorted(enum.keys())) if len(enum.keys()) < 20 else "a name such as POLICY_DENIED"
        raise FlagError(f"unknown {what} {text!r}: use {known}")

    return read


VERDICT = named(flow_pb2.Verdict, "verdict")
DROP_REASON = named(flow_pb2.DropReason, "drop reason")
DIRECTION = named(flow_pb2.TrafficDirection, "traffic direction")
SOCKET_POINTS = {"pre-xlate-fwd": 1, "post-xlate-fwd": 2, "pre-xlate-rev": 3, "post-xlate-rev": 4}
POINT = named(flow_pb2.TraceObservationPoint, "observation point")


def socket_point(text: str) -> int:
    """`pre-xlate-fwd`, `post-xlate-rev`, ... as flows are printed."""
    if text not in SOCKET_POINTS:
        raise FlagError(f"unknown translation point {text!r}: use one of {', '.join(SOCKET_POINTS)}")
    return SOCKET_POINTS[text]


def trace_point(text: str) -> int:
    """The sub-type of traces at a point: its number, but 0 for `to-endpoint`, as Cilium counts."""
    point = POINT(text)
    return 0 if point == flow_pb2.TO_ENDPOINT else point


def identity(text: str) -> int:
    """A number, or the name of a reserved identity."""
    if is_number(text):
        return bounded(text, "identity")
    name = text.lower().removeprefix("reserved:")
    if name not in IDENTITIES:
        raise FlagError(f"unknown identity {text!r}: use a number or one of {', '.join(IDENTITIES)}")
    return IDENTITIES[name]


def is_number(text: str) -> bool:
    """Whether a text is digits and nothing else."""
    return text.isascii() and text.isdigit()


def bounded(text: str, what: str, bits: int = 32) -> int:
    """A number that fits its field. Raises FlagError."""
    if len(text) > LONGEST_NUMBER or int(text) >> bits:
        raise FlagError(f"{cut(text)!r} is no {what}: numbers end at {(1 << bits) - 1}")
    return int(text)


def workload(text: str) -> flow_pb2.Workload:
    """`name` or `Kind/name`."""
    kind, _, name = text.rpartition("/")
    return flow_pb2.Workload(kind=kind, name=name)


def event_type(text: str) -> flow_pb2.EventTypeFilter:
    """`trace`, `trace:to-endpoint`, `drop`, `drop:policy-denied`, `policy-verdict`, or a number."""
    kind, separator, sub_type = text.lower().partition(":")
    if kind not in EVENT_TYPES and not is_number(kind):
        raise FlagError(f"unknown type {kind!r}: use one of {', '.join(EVENT_TYPES)} or a number")
    number = EVENT_TYPES[kind] if kind in EVENT_TYPES else bounded(kind, "type", 31)
    if not separator:
        return flow_pb2.EventTypeFilter(type=number)
    readers = {1: DROP_REASON, 4: trace_point, 7: socket_point}
    if number not in readers and not is_number(sub_type):
        raise FlagError(f"the type {kind!r} has no sub-type {sub_type!r}: use a number or leave it out")
    found = bounded(sub_type, "sub-type", 31) if is_number(sub_type) else readers[number](sub_type)
    return flow_pb2.EventTypeFilter(type=number, match_sub_type=True, sub_type=found)


def tcp_flags(text: str) -> flow_pb2.TCPFlags:
    """`SYN,ACK`: all of them set."""
    flags = flow_pb2.TCPFlags()
    for name in text.upper().split(","):
        if name not in flow_pb2.TCPFlags.DESCRIPTOR.fields_by_name:
            raise FlagError(f"unknown TCP flag {name!r}: use FIN, SYN, RST, PSH, ACK, URG, ECE or CWR")
        setattr(flags, name, True)
    return flags


def interface(text: str) -> flow_pb2.NetworkInterface:
    """Name or index of a device."""
    if is_number(text):
        return flow_pb2.NetworkInterface(index=bounded(text, "interface"))
    return flow_pb2.NetworkInterface(name=text)


def ip_version(text: str) -> int:
    """`4`, `v4`, `ipv4`, the same of 6, or `none` for what is no IP."""
    versions = {"4": flow_pb2.IPv4, "6": flow_pb2.IPv6, "none": flow_pb2.IP_NOT_USED}
    name = text.lower().removeprefix("ip").removeprefix("v")
    if name not in versions:
        raise FlagError(f"unknown IP version {text!r}: use v4, v6 or none")
    return versions[name]


def header(text: str) -> flow_pb2.HTTPHeader:
    """`name:value`."""
    key, colon, value = text.partition(":")
    if not colon or not key:
        raise FlagError(f"{text!r} is no HTTP header: write name:value")
    return flow_pb2.HTTPHeader(key=key, value=value)


def trace_number(text: str) -> int:
    """A number from an IP option."""
    if not is_number(text) or not bounded(text, "IP trace ID", 64):
        raise FlagError(f"{text!r} is no IP trace ID: use a number greater than 0")
    return int(text)


def commas(read: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values separated by commas."""
    return lambda text: [read(part.strip()) for part in text.split(",") if part.strip()]


SIDED: dict[str, Callable[[str], Sided]] = {
    "pod": lambda text: ("pod", [text]),
    "service": lambda text: ("service", [text]),
    "namespace": lambda text: ("pod", [part.strip().rstrip("/") for part in text.split(",")]),
    "ip": lambda text: ("ip", [text]),
    "label": lambda text: ("label", [text]),
    "port": lambda text: ("port", commas(str)(text)),
    "identity": lambda text: ("identity", commas(identity)(text)),
    "workload": lambda text: ("workload", [workload(text)]),
    "fqdn": lambda text: ("fqdn", [text]),
    "cluster": lambda text: ("cluster_name", [text]),
}
"""Flags that exist for both sides: to the field without its side, and its values."""

PLAIN: dict[str, Callable[[Any], Sided]] = {
    "verdict": lambda text: ("verdict", commas(VERDICT)(text)),
    "protocol": lambda text: ("protocol", commas(str.lower)(text)),
    "type_": lambda text: ("event_type", commas(event_type)(text)),
    "traffic_direction": lambda text: ("traffic_direction", commas(DIRECTION)(text)),
    "drop_reason_desc": lambda text: ("drop_reason_desc", commas(DROP_REASON)(text)),
    "node_name": lambda text: ("node_name", commas(str)(text)),
    "node_label": lambda text: ("node_labels", [text]),
    "tcp_flags": lambda text: ("tcp_flags", [tcp_flags(text)]),
    "uuid": lambda text: ("uuid", [text]),
    "interface": lambda text: ("interface", [interface(text)]),
    "ip_version": lambda text: ("ip_version", commas(ip_version)(text)),
    "snat_ip": lambda text: ("source_ip_xlated", [text]),
    "cel_expression": lambda text: ("cel_expression", [text]),
    "ipv4": lambda _: ("ip_version", [flow_pb2.IPv4]),
    "ipv6": lambda _: ("ip_version", [flow_pb2.IPv6]),
    "reply": lambda wanted: ("reply", [bool(wanted)]),
    "encrypted": lambda wanted: ("encrypted", [bool(wanted)]),
    "http_method": lambda text: ("http_method", [text]),
    "http_path": lambda text: ("http_path", [text]),
    "http_status": lambda text: ("http_status_code", [text]),
    "http_url": lambda text: ("http_url", [text]),
    "http_header": lambda text: ("http_header", [header(text)]),
    "trace_id": lambda text: ("trace_id", [text]),
    "ip_trace_id": lambda text: ("ip_trace_id", [trace_number(text)]),
    "dns_query": lambda text: ("dns_query", [text]),
}
"""Flags that do not depend on the side."""
