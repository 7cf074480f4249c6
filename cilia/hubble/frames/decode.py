"""Answers of GetFlows to columns.

What hardly repeats (times, UUIDs, ports) is read by vector steps; what repeats (endpoints, addresses, rules)
is told apart by its bytes and parsed once per distinct piece.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from cilia.hubble.frames.schema import (
    DIRECTIONS,
    FLAG_NAMES,
    POINTS,
    PROTOCOLS,
    REASONS,
    SCHEMA,
    TIME,
    TRACE_REASONS,
    VERDICTS,
    array,
    bools,
    fixed_texts,
    listed,
    named,
    numbers_where,
    qualified,
    referred,
    strings,
)
from cilia.hubble.frames.wire import Buffer, Occurrences
from cilia.hubble.layer4 import TCP_FLAGS
from cilia.hubble.protocols import ICMP, ICMPV6, SCTP, TCP, UDP, WITH_PORTS
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2

K = TypeVar("K", bound=Hashable)

FLOW, NODE_STATUS, LOST = 1, 2, 3
"""Fields of GetFlowsResponse."""
LAYER4 = {1: TCP, 2: UDP, 3: ICMP, 4: ICMPV6, 5: SCTP}
"""Field of flow.Layer4 to protocol number."""
TYPES = {1: "drop", 4: "trace", 5: "policy-verdict", 7: "trace-sock", 129: "l7"}
RULES = {
    "egress_allowed_by": 21001,
    "ingress_allowed_by": 21002,
    "egress_denied_by": 21004,
    "ingress_denied_by": 21005,
}
RULE_LABEL = "cilia:rule="


class Missing(msgspec.Struct):
    """What an answer says about what it lacks."""

    lost: int = 0
    """Events nobody has."""
    unavailable: list[str] = []
    """Nodes that did not answer."""


class Numbered(dict[K, int]):
    """Gives each new key the next number."""

    def __missing__(self, key: K) -> int:
        number = self[key] = len(self)
        return number


class Distinct(Generic[K]):
    """Numbers for pieces, one per distinct piece."""

    def __init__(self, nothing: K) -> None:
        """`nothing`: of flows without a piece; number 0."""
        self._index: Numbered[K] = Numbered({nothing: 0})

    def codes(self, pieces: Sequence[K]) -> Any:
        """The number of each piece: shape (n,)."""
        return np.fromiter(map(self._index.__getitem__, pieces), np.int32, len(pieces))

    def values(self) -> list[K]:
        """By number."""
        return list(self._index)


class Batch:
    """Some flows: their bytes, and where their fields are."""

    def __init__(self, buffer: Buffer, fields: dict[int, Occurrences], count: int) -> None:
        self.buffer = buffer
        self.fields = fields
        self.count = count

    def numbers(self, field: int) -> Any:
        """Of each flow: shape (n,) of uint64; 0 where it has none."""
        out = np.zeros(self.count, np.uint64)
        found = self.fields.get(field)
        if found is not None:
            out[found.rows] = found.values
        return out

    def there(self, field: int) -> Any:
        """Which flows have a field."""
        out = np.zeros(self.count, np.bool_)
        found = self.fields.get(field)
        if found is not None:
            out[found.rows] = True
        return out

    def pieces(self, field: int) -> list[bytes]:
        """The content of a field of each flow; empty where it has none."""
        out = [b""] * self.count
        found = self.fields.get(field)
        if found is not None and self._one_each(found):
            return self.contents(found)
        if found is not None:
            for row, piece in zip(found.rows.tolist(), self.contents(found), strict=True):
                out[row] = piece
        return out

    def lists(self, field: int) -> list[tuple[bytes, ...]]:
        """The contents of a repeated field of each flow."""
        out: list[tuple[bytes, ...]] = [()] * self.count
        found = self.fields.get(field)
        if found is not None and self._one_each(found):
            return list(zip(self.contents(found), strict=True))
        if found is not None:
            for row, piece in zip(found.rows.tolist(), self.contents(found), strict=True):
                out[row] += (piece,)
        return out

    def within(self, field: int) -> Batch:
        """The messages in a field, as flows are numbered; those without have no fields."""
        starts, ends = np.zeros((2, self.count), np.int64)
        found = self.fields.get(field)
        if found is not None:
            starts[found.rows], ends[found.rows] = found.starts, found.ends
        return Batch(self.buffer, self.buffer.fields(starts, ends), self.count)

    def _one_each(self, found: Occurrences) -> bool:
        """Whether every flow has a field, once."""
        return bool(np.array_equal(found.rows, np.arange(self.count)))

    def contents(self, found: Occurrences) -> list[bytes]:
        """The bytes of each occurrence."""
        data = self.buffer.data
        return [data[s:e] for s, e in zip(found.starts.tolist(), found.ends.tolist(), strict=True)]


class Decoder:
    """Takes responses as they come; `table` when all are there."""

    def __init__(self) -> None:
        self.count = 0
        """Flows so far."""
        self.completeness = Missing()
        self._columns: dict[str, list[Any]] = {}
        self._endpoints = {"source": Distinct(b""), "destination": Distinct(b"")}
        self._names = {side: Distinct[tuple[bytes, ...]](()) for side in ("source", "destination")}
        self._services = {"source": Distinct(b""), "destination": Distinct(b"")}
        self._rules = {name: Distinct[tuple[bytes, ...]](()) for name in RULES}
        self._policies = Distinct[tuple[int, ...]]((0,) * len(RULES))
        self._addresses = Distinct(b"")
        self._interfaces = Distinct(b"")
        self._nodes = Distinct(b"")
        self._flags = Distinct(b"")

    def add(self, responses: Sequence[bytes]) -> None:
        """Read serialised GetFlowsResponses. Raises wire.Malformed."""
        sizes = np.array([len(response) for response in responses], np.int64)
        ends = np.cumsum(sizes)
        buffer = Buffer(b"".join(responses))
        fields = buffer.fields(ends - sizes, ends)
        for number, read in ((NODE_STATUS, self._node_status), (LOST, self._lost)):
            found = fields.get(number)
            for row in [] if found is None else found.rows.tolist():
                read(observer_pb2.GetFlowsResponse.FromString(responses[row]))
        flows = fields.get(FLOW)
        if flows is not None:
            self._add(Batch(buffer, buffer.fields(flows.starts, flows.ends), len(flows.rows)))

    def _node_status(self, response: observer_pb2.GetFlowsResponse) -> None:
        if response.node_status.state_change != CONNECTED:
            self.completeness.unavailable += [
                name for name in response.node_status.node_names if name not in self.completeness.unavailable
            ]

    def _lost(self, response: observer_pb2.GetFlowsResponse) -> None:
        self.completeness.lost += response.lost_events.num_events_lost

    def _add(self, batch: Batch) -> None:
        self.count += batch.count
        keep = self._keep
        time = batch.within(1)
        keep("time", time.numbers(1).astype(np.int64) * 1_000_000_000 + time.numbers(2).astype(np.int64))
        keep("uuid", uuids(batch))
        keep("node", self._nodes.codes(batch.pieces(11)))
        keep("type", batch.within(19).numbers(1))
        for name, field in PLAIN_NUMBERS.items():
            keep(name, batch.numbers(field))
        keep("replied", batch.there(26))
        keep("is_reply", batch.within(26).numbers(1) != 0)
        keep("addresses", self._addresses.codes(batch.pieces(5)))
        keep("interface", self._interfaces.codes(batch.pieces(28)))
        self._add_layer4(batch.within(6))
        for side, endpoint, names, service in (("source", 8, 13, 20), ("destination", 9, 14, 21)):
            keep(side, self._endpoints[side].codes(batch.pieces(endpoint)))
            keep(f"{side}_names", self._names[side].codes(batch.lists(names)))
            keep(f"{side}_service", self._services[side].codes(batch.pieces(service)))
        codes = [self._rules[name].codes(batch.lists(field)) for name, field in RULES.items()]
        for name, code in zip(RULES, codes, strict=True):
            keep(name, code)
        keep("policies", self._policies.codes(list(zip(*(code.tolist() for code in codes), strict=True))))

    def _add_layer4(self, layer4: Batch) -> None:
        protocol = np.zeros(layer4.count, np.uint8)
        first, second = np.zeros((2, layer4.count), np.uint64)
        flags = np.zeros(layer4.count, np.int32)
        for field, number in LAYER4.items():
            if field in layer4.fields:
                there, header = layer4.there(field), layer4.within(field)
                protocol[there] = number
                first[there], second[there] = header.numbers(1)[there], header.numbers(2)[there]
                if number == TCP:
                    flags = self._flags.codes(header.pieces(3))
        for name, column in (("protocol", protocol), ("first", first), ("second", second), ("flags", flags)):
            self._keep(name, column)

    def _keep(self, name: str, column: Any) -> None:
        self._columns.setdefault(name, []).append(column)

    # -- the table ----------------------------------------------------------------------------------------

    def table(self) -> pa.Table:
        """All flows, with the columns of SCHEMA."""
        if not self.count:
            return SCHEMA.empty_table()
        have = {name: np.concatenate(parts) for name, parts in self._columns.items() if name != "uuid"}
        protocol = have["protocol"]
        ported, icmp = np.isin(protocol, WITH_PORTS), np.isin(protocol, (ICMP, ICMPV6))
        columns = {
            "time": array(have["time"], TIME),
            "uuid": pa.chunked_array(self._columns["uuid"], pa.string()),
            "node": referred(have["node"], [name.decode() for name in self._nodes.values()]),
            "type": named(have["type"], TYPES),
            "is_reply": bools(have["is_reply"], have["replied"]),
            "protocol": named(protocol, PROTOCOLS),
            "source_port": numbers_where(have["first"], pa.uint16(), ported),
            "destination_port": numbers_where(have["second"], pa.uint16(), ported),
            "icmp_type": numbers_where(have["first"], pa.uint8(), icmp),
            "icmp_code": numbers_where(have["second"], pa.uint8(), icmp),
            "tcp_flags": self._tcp_flags(have["flags"], protocol == TCP),
            "interface": self._texts(have["interface"], self._interfaces, flow_pb2.NetworkInterface, "name"),
            "proxy_port": numbers_where(have["proxy_port"], pa.uint16(), have["proxy_port"] != 0),
        }
        for name, table in NAMED.items():
            columns[name] = named(have[name], table)
        columns |= self._address_columns(have["addresses"])
        for side in ("source", "destination"):
            columns |= self._side_columns(side, have)
        columns |= self._rule_columns(have)
        return pa.table({name: columns[name] for name in SCHEMA.names}, SCHEMA)

    def _tcp_flags(self, codes: Any, mask: Any) -> pa.Array:
        texts = []
        for piece in self._flags.values():
            flags = flow_pb2.TCPFlags.FromString(piece)
            texts.append(
                FLAG_NAMES[sum(1 << bit for bit, name in enumerate(TCP_FLAGS) if getattr(flags, name))]
            )
        return referred(codes, texts, mask)

    def _texts(self, codes: Any, pieces: Distinct[bytes], kind: Any, field: str) -> pa.Array:
        return referred(codes, [getattr(kind.FromString(piece), field) for piece in pieces.values()])

    def _address_columns(self, codes: Any) -> dict[str, pa.Array]:
        parsed = [flow_pb2.IP.FromString(piece) for piece in self._addresses.values()]
        versions = np.array([{1: 4, 2: 6}.get(each.ipVersion, 0) for each in parsed], np.uint8)[codes]
        encrypted = np.array([each.encrypted for each in parsed], np.bool_)[codes]
        return {
            "source_ip": referred(codes, [each.source for each in parsed]),
            "source_ip_xlated": referred(codes, [each.source_xlated for each in parsed]),
            "destination_ip": referred(codes, [each.destination for each in parsed]),
            "ip_version": numbers_where(versions, pa.uint8(), versions != 0),
            "encrypted": bools(encrypted),
        }

    def _side_columns(self, side: str, have: dict[str, Any]) -> dict[str, pa.Array]:
        parsed = [flow_pb2.Endpoint.FromString(piece) for piece in self._endpoints[side].values()]
        identities = np.array([each.identity for each in parsed], np.uint32)
        texts: dict[str, Callable[[flow_pb2.Endpoint], str]] = {
            "cluster": lambda who: who.cluster_name,
            "namespace": lambda who: who.namespace,
            "pod": lambda who: who.pod_name,
            "workload": lambda who: ",".join(f"{w.kind}/{w.name}" for w in who.workloads),
            "labels": lambda who: ",".join(who.labels),
        }
        names = [",".join(name.decode() for name in each) for each in self._names[side].values()]
        services = [flow_pb2.Service.FromString(piece) for piece in self._services[side].values()]
        shown = [qualified(each.namespace, each.name) if each.name else "" for each in services]
        codes = have[side]
        return {
            **{
                f"{side}_{name}": referred(codes, [text(each) for each in parsed])
                for name, text in texts.items()
            },
            f"{side}_identity": numbers_where(identities[codes], pa.uint32()),
            f"{side}_names": referred(have[f"{side}_names"], names),
            f"{side}_service": referred(have[f"{side}_service"], shown),
        }

    def _rule_columns(self, have: dict[str, Any]) -> dict[str, pa.Array]:
        columns, parsed = {}, {}
        for name in RULES:
            rules = [[flow_pb2.Policy.FromString(p) for p in each] for each in self._rules[name].values()]
            parsed[name] = [[qualified(rule.namespace, rule.name) for rule in each] for each in rules]
            columns[name] = referred(have[name], [listed(map(rule_text, each)) for each in rules])
        policies = [
            listed(
                text for name, code in zip(ORDER, ordered(codes), strict=True) for text in parsed[name][code]
            )
            for codes in self._policies.values()
        ]
        columns["policies"] = referred(have["policies"], policies)
        return columns


CONNECTED = 1
"""Of relay.NodeState."""

PLAIN_NUMBERS = {
    "verdict": 2,
    "drop_reason": 25,
    "direction": 22,
    "observation_point": 24,
    "trace_reason": 36,
    "proxy_port": 29,
}
NAMED = {
    "verdict": VERDICTS,
    "drop_reason": REASONS,
    "direction": DIRECTIONS,
    "observation_point": POINTS,
    "trace_reason": TRACE_REASONS,
}

ORDER = ("egress_allowed_by", "egress_denied_by", "ingress_allowed_by", "ingress_denied_by")
"""Of policies: the sender's before the receiver's."""


def ordered(codes: tuple[int, ...]) -> list[int]:
    """Codes by RULES in ORDER."""
    by_name = dict(zip(RULES, codes, strict=True))
    return [by_name[name] for name in ORDER]


def rule_text(rule: flow_pb2.Policy) -> str:
    """`namespace/name spec.ingress[0]`; of servers that do not know the rule's place, without it."""
    path = next((label[len(RULE_LABEL) :] for label in rule.labels if label.startswith(RULE_LABEL)), "")
    return f"{qualified(rule.namespace, rule.name)} {path}".rstrip()


def uuids(batch: Batch) -> pa.Array:
    """The UUIDs of flows; null where a server gives none."""
    found = batch.fields.get(34)
    if found is not None and len(found.rows) == batch.count and (found.values == 36).all():
        places = found.starts[np.argsort(found.rows, kind="stable")]
        data = np.frombuffer(batch.buffer.data, np.uint8)
        return fixed_texts(data[places[:, None] + np.arange(36)])
    return strings([piece.decode() or None for piece in batch.pieces(34)])
