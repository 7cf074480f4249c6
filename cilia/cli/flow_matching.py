"""Filters over flows of a file: what a server would answer, one message at a time.

Names and texts are asked by the functions the server has for them (cilia.hubble.predicates), so that a filter
means the same over a file and over a server; what it does with columns is done here with messages.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

from cilia.hubble import predicates, questions
from cilia.hubble.cel import Condition
from cilia.hubble.convert import NodeFacts
from cilia.hubble.directory import Party, Workload
from cilia.hubble.filter_values import FilterError, Prefix, port_range
from cilia.hubble.filters import refuse_unknown, with_denials
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2

Flow = flow_pb2.Flow
Response = observer_pb2.GetFlowsResponse
Test = Callable[[Flow], bool]

ICMP_NAMES = {"ICMPv4": ("icmp", "icmpv4"), "ICMPv6": ("icmp", "icmpv6")}


class Matcher:
    """Allowlist and denylist over responses; what is no flow always passes."""

    def __init__(self, allow: Sequence[flow_pb2.FlowFilter], deny: Sequence[flow_pb2.FlowFilter]) -> None:
        """Raises FilterError for a value that can't be read, UnsupportedFilter for a field unknown here."""
        self._allow = [compiled(with_denials(each)) for each in allow]
        self._deny = [compiled(each) for each in deny]

    def __call__(self, response: Response) -> bool:
        if not response.HasField("flow"):
            return True
        flow = response.flow
        if self._allow and not any(every(tests, flow) for tests in self._allow):
            return False
        return not any(every(tests, flow) for tests in self._deny)


def every(tests: Iterable[Test], flow: Flow) -> bool:
    """Whether all tests of a filter hold."""
    return all(test(flow) for test in tests)


def compiled(message: flow_pb2.FlowFilter) -> list[Test]:
    """One test for each field that is set."""
    refuse_unknown(message)
    tests = []
    for field, values in message.ListFields():
        side, _, bare = field.name.partition("_")
        if side in ("source", "destination") and bare in SIDES:
            tests.append(SIDES[bare](side, list(values)))
        else:
            tests.append(FIELDS[field.name]([values] if field.name == "experimental" else list(values)))
    return tests


# -- of one side --------------------------------------------------------------------------------------------


def party(flow: Flow, side: str) -> Party:
    """One end of a flow, as the server's questions take it."""
    end = getattr(flow, side)
    return Party(
        id=end.ID,
        identity=end.identity,
        cluster=end.cluster_name,
        namespace=end.namespace,
        pod=end.pod_name,
        labels=tuple(end.labels),
        workloads=tuple(Workload(each.kind, each.name) for each in end.workloads),
        names=tuple(getattr(flow, f"{side}_names")),
    )


def of_party(question: Callable[[list[Any]], Callable[[Party], bool]]) -> Callable[[str, list[Any]], Test]:
    """A field whose values make a question about an end."""

    def field(side: str, values: list[Any]) -> Test:
        asked = question(values)
        return lambda flow: asked(party(flow, side))

    return field


def by_service(side: str, values: list[str]) -> Test:
    """Services by namespace and prefix."""
    wanted = questions.namespaced("service", values)

    def test(flow: Flow) -> bool:
        service = getattr(flow, f"{side}_service")
        return bool(service.name) and wanted(service.namespace, service.name)

    return test


def networks(values: list[str]) -> Callable[[str], bool]:
    """Whether an address is in one of these. Raises FilterError."""
    for value in values:
        Prefix.parse(value)
    wanted = [ipaddress.ip_network(value, strict=False) for value in values]

    def inside(text: str) -> bool:
        return bool(text) and any(ipaddress.ip_address(text) in network for network in wanted)

    return inside


def by_address(side: str, values: list[str]) -> Test:
    """Addresses and CIDRs."""
    inside = networks(values)
    return lambda flow: inside(getattr(flow.IP, side))


def by_port(side: str, values: list[str]) -> Test:
    """Ports and ranges."""
    ranges = [port_range(value) for value in values]

    def test(flow: Flow) -> bool:
        name = flow.l4.WhichOneof("protocol")
        port = getattr(getattr(flow.l4, name), f"{side}_port", None) if name else None
        return port is not None and any(first <= port <= last for first, last in ranges)

    return test


SIDES: dict[str, Callable[[str, list[Any]], Test]] = {
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


# -- of the flow --------------------------------------------------------------------------------------------


def among(read: Callable[[Flow], Any]) -> Callable[[list[Any]], Test]:
    """A field that must have one of the values."""
    return lambda values: lambda flow: read(flow) in values


def by_translated_address(values: list[str]) -> Test:
    """What the source was translated to."""
    inside = networks(values)
    return lambda flow: inside(flow.IP.source_xlated)


def by_protocol(values: list[str]) -> Test:
    """Names of transport protocols and of application records."""
    unknown = [value for value in values if value.lower() not in predicates.PROTOCOLS]
    if unknown:
        raise FilterError(f"unknown protocol {unknown[0]!r}: use one of {', '.join(predicates.PROTOCOLS)}")
    wanted = {value.lower() for value in values}

    def test(flow: Flow) -> bool:
        transport = flow.l4.WhichOneof("protocol") or ""
        names = ICMP_NAMES.get(transport, (transport.lower(),))
        return bool(wanted.intersection((*names, flow.l7.WhichOneof("record") or "")))

    return test


def by_event_type(values: list[flow_pb2.EventTypeFilter]) -> Test:
    """Types and sub-types."""

    def test(flow: Flow) -> bool:
        has = flow.event_type
        return any(
            value.type == has.type and (not value.match_sub_type or value.sub_type == has.sub_type)
            for value in values
        )

    return test


def by_reply(values: list[bool]) -> Test:
    """Replies or not, among flows of which that is known, and dropped ones (`predicates.by_reply`)."""
    return lambda flow: (
        flow.is_reply.value in values
        if flow.HasField("is_reply") or flow.verdict == flow_pb2.DROPPED
        else False
    )


def by_tcp_flags(values: list[flow_pb2.TCPFlags]) -> Test:
    """All flags of one value."""
    wanted = [[field.name for field, on in value.ListFields() if on] for value in values]

    def test(flow: Flow) -> bool:
        flags = flow.l4.TCP.flags
        return flow.l4.HasField("TCP") and any(
            all(getattr(flags, name) for name in names) for names in wanted
        )

    return test


def by_interface(values: list[flow_pb2.NetworkInterface]) -> Test:
    """Index and name; what is empty matches any."""

    def test(flow: Flow) -> bool:
        device = flow.interface
        return bool(device.index or device.name) and any(
            want.index in (0, device.index) and want.name in ("", device.name) for want in values
        )

    return test


def by_node(field: predicates.Field) -> Callable[[list[Any]], Test]:
    """What the server asks of itself, asked once of each node."""

    def make(values: list[Any]) -> Test:
        def answer(node: NodeFacts) -> bool:
            predicate = field(predicates.Context(cast(Any, None), node), values)
            return bool(predicate(cast(Any, ONE_ROW))[0])

        answer(NodeFacts(name=""))
        known: dict[tuple[str, ...], bool] = {}

        def test(flow: Flow) -> bool:
            key = (flow.node_name, *flow.node_labels)
            if key not in known:
                known[key] = answer(NodeFacts(name=flow.node_name, labels=tuple(flow.node_labels)))
            return known[key]

        return test

    return make


ONE_ROW = SimpleNamespace(wall=(0,))
"""Rows of whose columns nothing is asked."""


def by_expression(values: list[flow_pb2.FlowFilter.Experimental]) -> Test:
    """CEL over the message as it is."""
    conditions = [Condition(text) for text in values[0].cel_expression]
    return lambda flow: not conditions or any(each.matches(flow) for each in conditions)


# -- of application records ---------------------------------------------------------------------------------


def by_pattern(read: Callable[[Flow], str]) -> Callable[[list[str]], Test]:
    """Regular expressions, found anywhere."""

    def make(values: list[str]) -> Test:
        for value in values:
            predicates.pattern(value)
        patterns = [re.compile(value) for value in values]
        return lambda flow: any(pattern.search(read(flow)) for pattern in patterns) and bool(read(flow))

    return make


def by_status(values: list[str]) -> Test:
    """`404`, or `4+` for its class."""
    for value in values:
        predicates.status(value)

    def test(flow: Flow) -> bool:
        code = str(flow.l7.http.code) if flow.l7.HasField("http") else ""
        return any(code.startswith(value[:1]) if value.endswith("+") else code == value for value in values)

    return test


def by_header(values: list[flow_pb2.HTTPHeader]) -> Test:
    """Name, in any case, and value."""
    wanted = {(value.key.lower(), value.value) for value in values}
    return lambda flow: any((each.key.lower(), each.value) in wanted for each in flow.l7.http.headers)


def by_method(values: list[str]) -> Test:
    """Methods in any case."""
    wanted = {value.upper() for value in values}
    return lambda flow: flow.l7.http.method.upper() in wanted


def path(flow: Flow) -> str:
    """That of an HTTP request, without its query."""
    return urlsplit(flow.l7.http.url).path


FIELDS: dict[str, Callable[[list[Any]], Test]] = {
    "source_ip_xlated": by_translated_address,
    "verdict": among(lambda flow: flow.verdict),
    "drop_reason_desc": among(lambda flow: flow.drop_reason_desc),
    "traffic_direction": among(lambda flow: flow.traffic_direction),
    "protocol": by_protocol,
    "event_type": by_event_type,
    "reply": by_reply,
    "encrypted": among(lambda flow: flow.IP.encrypted),
    "ip_version": among(lambda flow: flow.IP.ipVersion),
    "tcp_flags": by_tcp_flags,
    "interface": by_interface,
    "uuid": among(lambda flow: flow.uuid),
    "node_name": by_node(predicates.by_node_name),
    "node_labels": by_node(predicates.by_node_labels),
    "experimental": by_expression,
    "ip_trace_id": among(lambda flow: flow.ip_trace_id.trace_id),
    "trace_id": among(lambda flow: flow.trace_context.parent.trace_id),
    "dns_query": by_pattern(lambda flow: flow.l7.dns.query),
    "http_status_code": by_status,
    "http_method": by_method,
    "http_path": by_pattern(path),
    "http_url": by_pattern(lambda flow: flow.l7.http.url),
    "http_header": by_header,
}
"""Fields that do not depend on the side."""
