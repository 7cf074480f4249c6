"""Rows as columns that people and their tools read: names instead of numbers, one row per flow.

The same columns, with the same names and types, as `hubble.frames` makes of an answer; files have `bytes`
besides, which Hubble's flows can't carry. What is repeated is a dictionary: each distinct text once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cilia.hubble.columns import (
    EGRESS,
    FLAG_ENCRYPTED,
    FLAG_IPV6,
    FLAG_REPLY,
    INGRESS,
    KIND_DROP,
    KIND_SOCKET,
    KIND_TRACE,
    KIND_VERDICT,
    VERDICT_AUDIT,
    VERDICT_DROPPED,
    Mask,
    Refs,
    Times,
    Words,
    address_words,
    flagged,
    sender_words,
    service_is_source,
    translated,
)
from cilia.hubble.directory import Party, Service
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
    constant,
    fixed_texts,
    listed,
    named,
    numbers_where,
    qualified,
    referred,
)
from cilia.hubble.pairs import address
from cilia.hubble.protocols import ICMP, ICMPV6, TCP, WITH_PORTS
from cilia.hubble.store import Rows, Rules
from cilia.hubble.uuids import uuid_texts

if TYPE_CHECKING:
    from cilia.hubble.history.codec import Known

TYPES = {KIND_DROP: "drop", KIND_TRACE: "trace", KIND_VERDICT: "policy-verdict", KIND_SOCKET: "trace-sock"}


def addresses(words: tuple[Words, Words], refs: Refs) -> pa.Array:
    """Dictionary array of the texts of addresses, given as raw halves. `refs`: what usually has one address,
    the party; where it has more, addresses are compared one by one."""
    high, low = words
    some = np.zeros(int(refs.max()) + 1, np.intp)
    some[refs] = np.arange(len(refs))
    same = some[refs]
    if not (np.array_equal(high[same], high) and np.array_equal(low[same], low)):
        refs, some = distinct(high, low)
    halves = np.column_stack((high[some], low[some])).tobytes()
    return referred(refs, [address(halves[at : at + 16]) for at in range(0, len(halves), 16)])


def distinct(high: Words, low: Words) -> tuple[Any, Any]:
    """Of pairs: the number of each, and a row that has it by number."""
    highs, lows = (np.unique(half, return_inverse=True)[1].astype(np.int64) for half in (high, low))
    _, some, numbers = np.unique(highs << 32 | lows, return_index=True, return_inverse=True)
    return numbers, some


# -- columns ------------------------------------------------------------------------------------------------


def friendly_columns(rows: Rows, known: Known, node: str) -> dict[str, pa.Array]:
    """The columns of SCHEMA, by name, and `bytes`."""
    events, count = rows.events, len(rows.wall)
    kind, verdict, protocol = events["kind"], events["verdict"], events["protocol"]
    trace = kind == KIND_TRACE
    ported = np.isin(protocol, WITH_PORTS)
    icmp = np.isin(protocol, (ICMP, ICMPV6))
    columns = {
        "time": array(rows.wall, TIME),
        "uuid": fixed_texts(uuid_texts(known.boot, rows.numbers)),
        "node": constant(node, count),
        "type": named(kind, TYPES),
        "verdict": named(verdict, VERDICTS),
        "drop_reason": named(events["reason"], REASONS, (kind == KIND_DROP) | (verdict == VERDICT_DROPPED)),
        "direction": named(events["direction"], DIRECTIONS),
        "observation_point": named(events["point"], POINTS, trace),
        "trace_reason": named(events["state"], TRACE_REASONS, trace),
        "is_reply": bools(flagged(events, FLAG_REPLY), events["state"] != 0),
        "encrypted": bools(flagged(events, FLAG_ENCRYPTED)),
        "ip_version": numbers_where(np.where(flagged(events, FLAG_IPV6), 6, 4), pa.uint8()),
        "protocol": named(protocol, PROTOCOLS),
        "tcp_flags": named(events["tcp_flags"], FLAG_NAMES, protocol == TCP),
        "icmp_type": numbers_where(events["icmp_type"], pa.uint8(), icmp),
        "icmp_code": numbers_where(events["icmp_code"], pa.uint8(), icmp),
        "interface": referred(rows.device, [device.name for device in known.devices.values]),
        "proxy_port": numbers_where(events["proxy_port"], pa.uint16(), events["proxy_port"] != 0),
        "bytes": numbers_where(events["length"], pa.uint32()),
    }
    columns |= source_addresses(rows, ported)
    columns["destination_ip"] = addresses(address_words(events, "destination"), rows.destination)
    columns["destination_port"] = numbers_where(events["destination_port"], pa.uint16(), ported)
    for side, refs in (("source", rows.source), ("destination", rows.destination)):
        columns |= party_columns(side, refs, known.parties.values)
    columns |= service_columns(rows, known.services.values)
    columns |= policy_columns(rows, known.rules.values)
    return {name: columns[name] for name in (*SCHEMA.names, "bytes")}


def source_addresses(rows: Rows, ported: Mask) -> dict[str, pa.Array]:
    """The address and port the sender used, and the address it was given for outside."""
    events, was, zero = rows.events, translated(rows.events), np.uint64(0)
    high, low = address_words(events, "source")
    ports = np.where(was, events["original_source_port"], events["source_port"])
    return {
        "source_ip": addresses(sender_words(events), rows.source),
        "source_ip_xlated": addresses((np.where(was, high, zero), np.where(was, low, zero)), rows.source),
        "source_port": numbers_where(ports, pa.uint16(), ported),
    }


def party_columns(side: str, refs: Refs, parties: Sequence[Party]) -> dict[str, pa.Array]:
    """Who is at one side."""
    identities = np.array([party.identity for party in parties] or [0], np.uint32)[refs]
    texts: dict[str, Callable[[Party], str]] = {
        "cluster": lambda party: party.cluster,
        "namespace": lambda party: party.namespace,
        "pod": lambda party: party.pod,
        "workload": lambda party: ",".join(f"{w.kind}/{w.name}" for w in party.workloads),
        "labels": lambda party: ",".join(party.labels),
        "names": lambda party: ",".join(party.names),
    }
    columns = {f"{side}_{name}": referred(refs, [text(p) for p in parties]) for name, text in texts.items()}
    columns[f"{side}_identity"] = numbers_where(identities, pa.uint32())
    return columns


def service_columns(rows: Rows, services: Sequence[Service]) -> dict[str, pa.Array]:
    """The service that was asked for, at the side that answers for it."""
    texts = [qualified(service.namespace, service.name) if service.name else "" for service in services]
    source = service_is_source(rows.events)
    return {
        "source_service": referred(rows.service, texts, source),
        "destination_service": referred(rows.service, texts, ~source),
    }


def policy_columns(rows: Rows, rules: Sequence[Rules]) -> dict[str, pa.Array]:
    """The rules behind the verdict of each side, as `convert.verdict_rules` gives them to clients."""
    events = rows.events
    judged = np.isin(events["verdict"], (VERDICT_DROPPED, VERDICT_AUDIT))
    texts = [listed(f"{qualified(r.namespace, r.name)} {r.path}" for r in each.row.rules) for each in rules]
    default = np.array([each.row.default for each in rules] or [False], np.bool_)
    columns, shown = {}, {}
    for side, name, refs in ((EGRESS, "egress", rows.egress), (INGRESS, "ingress", rows.ingress)):
        denied = judged & (events["direction"] == side)
        allowed = ~denied & ~default[refs]
        columns[f"{name}_denied_by"] = referred(refs, texts, denied)
        columns[f"{name}_allowed_by"] = referred(refs, texts, allowed)
        shown[name] = np.where(denied | allowed, refs.astype(np.int64), -1)
    used, inverse = pairs(shown["egress"], shown["ingress"], len(rules))
    texts = [
        listed(qualified(r.namespace, r.name) for ref in pair if ref >= 0 for r in rules[ref].row.rules)
        for pair in used
    ]
    columns["policies"] = referred(inverse, texts)
    return columns


def pairs(first: Times, second: Times, end: int) -> tuple[list[tuple[int, int]], Any]:
    """The distinct pairs of numbers from -1 to before `end`, and which of them each row has."""
    codes = (first + 1) * (end + 1) + (second + 1)
    if (end + 1) ** 2 <= FEW_PAIRS:
        there = np.zeros((end + 1) ** 2, np.bool_)
        there[codes] = True
        used = np.flatnonzero(there)
        table = np.zeros(len(there), np.int32)
        table[used] = np.arange(len(used))
        inverse = table[codes]
    else:
        used, inverse = np.unique(codes, return_inverse=True)
    return [(code // (end + 1) - 1, code % (end + 1) - 1) for code in used.tolist()], inverse


FEW_PAIRS = 1 << 18
"""Up to so many a table is quicker than sorting."""
