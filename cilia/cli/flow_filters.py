"""Flags of `observe` to Hubble's flow filters.

A flag about one side (`--from-pod`) is a field of the filter. A flag about either side (`--pod`) makes two
filters, one with the source and one with the destination field, joined by OR; all other fields go into both.
`--not` sends the next flag into the denylist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from google.protobuf.message import Message

from cilia.model.identity import RESERVED_NAMES
from cilia.proto.flow import flow_pb2

IDENTITIES = {names[0]: int(number) for number, names in RESERVED_NAMES.items()}
EVENT_TYPES = {"drop": 1, "trace": 4, "policy-verdict": 5, "trace-sock": 7, "l7": 129}

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
        self._sided = False

    def both(self, field: str, values: list[Any]) -> None:
        """A field that does not depend on the side."""
        add(self._left, field, values)
        add(self._right, field, values)

    def either(self, field: str, values: list[Any]) -> None:
        """A field of the source or of the destination."""
        self._sided = True
        add(self._left, f"source_{field}", values)
        add(self._right, f"destination_{field}", values)

    def filters(self) -> list[flow_pb2.FlowFilter]:
        """None, one or two filters."""
        if not self._left.ListFields():
            return []
        return [self._left, self._right] if self._sided else [self._left]


def add(message: flow_pb2.FlowFilter, field: str, values: list[Any]) -> None:
    """Append to a repeated field."""
    target = getattr(message, field)
    target.extend(value for value in values if isinstance(value, Message) or value not in target)


def build(given: Iterable[Given]) -> tuple[list[flow_pb2.FlowFilter], list[flow_pb2.FlowFilter]]:
    """Allowlist and denylist of all flags. Raises FlagError."""
    flags = list(given)
    namespaces = [flag.value for flag in flags if flag.name == "namespace" and not flag.negated]
    allow, deny = Pair(), Pair()
    qualified = len(namespaces) == 1 and any(flag.name == "pod" and not flag.negated for flag in flags)
    for flag in flags:
        if qualified and not flag.negated:
            if flag.name == "namespace":
                continue
            if flag.name == "pod" and "/" not in flag.value:
                flag = flag._replace(value=f"{namespaces[0]}/{flag.value}")
        apply(deny if flag.negated else allow, flag)
    return allow.filters(), deny.filters()


def apply(pair: Pair, flag: Given) -> None:
    """Put one flag into a pair of filters."""
    for prefix, side in (("from_", "source_"), ("to_", "destination_")):
        bare = flag.name.removeprefix(prefix)
        if bare != flag.name and bare in SIDED:
            field, values = SIDED[bare](flag.value)
            pair.both(side + field, values)
            return
    if flag.name in SIDED:
        pair.either(*SIDED[flag.name](flag.value))
    else:
        pair.both(*PLAIN[flag.name](flag.value))


def named(enum: Any, what: str) -> Callable[[str], int]:
    """A reader of an enum's names, in any case, with `-` for `_`, or of its numbers."""

    def read(text: str) -> int:
        name = text.strip().upper().replace("-", "_").replace(" ", "_")
        if name in enum.keys():  # noqa: SIM118 - a protobuf enum wrapper is no dictionary
            return int(enum.Value(name))
        if name.isdigit() and int(name) in enum.values():
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


def identity(text: str) -> int:
    """A number, or the name of a reserved identity."""
    if text.isdigit():
        return int(text)
    name = text.lower().removeprefix("reserved:")
    if name not in IDENTITIES:
        raise FlagError(f"unknown identity {text!r}: use a number or one of {', '.join(IDENTITIES)}")
    return IDENTITIES[name]


def workload(text: str) -> flow_pb2.Workload:
    """`name` or `Kind/name`."""
    kind, _, name = text.rpartition("/")
    return flow_pb2.Workload(kind=kind, name=name)


def event_type(text: str) -> flow_pb2.EventTypeFilter:
    """`trace`, `trace:to-endpoint`, `drop`, `drop:policy-denied`, `policy-verdict`, or a number."""
    kind, separator, sub_type = text.lower().partition(":")
    if kind not in EVENT_TYPES and not kind.isdigit():
        raise FlagError(f"unknown type {kind!r}: use one of {', '.join(EVENT_TYPES)} or a number")
    number = EVENT_TYPES[kind] if kind in EVENT_TYPES else int(kind)
    if not separator:
        return flow_pb2.EventTypeFilter(type=number)
    readers = {1: DROP_REASON, 4: POINT, 7: socket_point}
    if number not in readers and not sub_type.isdigit():
        raise FlagError(f"the type {kind!r} has no sub-type {sub_type!r}: use a number or leave it out")
    found = int(sub_type) if sub_type.isdigit() else readers[number](sub_type)
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
    if text.isdigit():
        return flow_pb2.NetworkInterface(index=int(text))
    return flow_pb2.NetworkInterface(name=text)


def commas(read: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values separated by commas."""
    return lambda text: [read(part.strip()) for part in text.split(",") if part.strip()]


SIDED: dict[str, Callable[[str], Sided]] = {
    "pod": lambda text: ("pod", [text]),
    "service": lambda text: ("service", [text]),
    "namespace": lambda text: ("pod", [part.strip().rstrip("/") + "/" for part in text.split(",")]),
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
    "ipv4": lambda _: ("ip_version", [flow_pb2.IPv4]),
    "ipv6": lambda _: ("ip_version", [flow_pb2.IPv6]),
    "reply": lambda wanted: ("reply", [bool(wanted)]),
    "encrypted": lambda wanted: ("encrypted", [bool(wanted)]),
    "http_method": lambda text: ("http_method", [text]),
    "http_path": lambda text: ("http_path", [text]),
    "http_status": lambda text: ("http_status_code", [text]),
    "dns_query": lambda text: ("dns_query", [text]),
}
"""Flags that do not depend on the side."""
