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
    flagged,
    octets,
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
    fixed_binary,
    fixed_texts,
    listed,
    named,
    native,
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


def addresses(raw: Any) -> pa.Array:
    """Dictionary array of the texts of addresses: shape (n, 16)."""
    encoded = fixed_binary(raw).dictionary_encode()
    texts = [address(value) for value in encoded.dictionary.to_pylist()]
    return referred(native(encoded.indices, np.int32), texts)


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
    columns["destination_ip"] = addresses(octets(events, "destination"))
    columns["destination_port"] = numbers_where(events["destination_port"], pa.uint16(), ported)
    for side, refs in (("source", rows.source), ("destination", rows.destination)):
        columns |= party_columns(side, refs, known.parties.values)
    columns |= service_columns(rows, known.services.values)
    columns |= policy_columns(rows, known.rules.values)
    return {name: columns[name] for name in (*SCHEMA.names, "bytes")}


def source_addresses(rows: Rows, ported: Mask) -> dict[str, pa.Array]:
    """The address and port the sender used, and the address it was given for outside."""
    events, was = rows.events, translated(rows.events)
    now, before = octets(events, "source"), octets(events, "original_source")
    ports = np.where(was, events["original_source_port"], events["source_port"])
    return {
        "source_ip": addresses(np.where(was[:, None], before, now)),
        "source_ip_xlated": addresses(np.where(was[:, None], now, np.uint8(0))),
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
    pairs = (shown["egress"] + 1) << 32 | (shown["ingress"] + 1)
    used, inverse = np.unique(pairs, return_inverse=True)
    both = [((pair >> 32) - 1, (pair & 0xFFFFFFFF) - 1) for pair in used.tolist()]
    texts = [
        listed(qualified(r.namespace, r.name) for ref in pair if ref >= 0 for r in rules[ref].row.rules)
        for pair in both
    ]
    columns["policies"] = referred(inverse, texts)
    return columns
