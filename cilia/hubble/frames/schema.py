"""The columns of flows, and how arrays for them are made: of names, each distinct text once.

Data frames (`decode`) and sealed files (`history.friendly`) have the same columns. A name is null where there
is none, and where a flow says 0, which stands for unknown in all of Hubble's enumerations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cilia.hubble.columns import Mask
from cilia.hubble.convert import TCP_FLAGS
from cilia.hubble.protocols import ICMP, ICMPV6, NAMES, SCTP, TCP, UDP
from cilia.proto.flow import flow_pb2

PROTOCOLS = {number: NAMES[number] for number in (TCP, UDP, ICMP, ICMPV6, SCTP)}
"""Those that columns tell apart; of others the protocol is null."""

Indexes = npt.NDArray[np.integer[Any]]

Table = dict[int, str]
"""Number to name; what has none is null."""


def names_of(enum: Any) -> Table:
    """The names of a protobuf enum's numbers, but for 0: unknown."""
    return {number: name for name, number in enum.items() if number}


VERDICTS = names_of(flow_pb2.Verdict)
REASONS = names_of(flow_pb2.DropReason)
DIRECTIONS = names_of(flow_pb2.TrafficDirection)
POINTS = names_of(flow_pb2.TraceObservationPoint)
TRACE_REASONS = names_of(flow_pb2.TraceReason)


def flag_names(bits: int) -> str:
    """`SYN,ACK`, by the flag byte of a TCP header."""
    return ",".join(name for bit, name in enumerate(TCP_FLAGS) if bits >> bit & 1)


FLAG_NAMES = {bits: flag_names(bits) for bits in range(256)}

STRINGS = pa.dictionary(pa.int32(), pa.string())
TIME = pa.timestamp("ns", tz="UTC")

SCHEMA = pa.schema(
    [
        ("time", TIME),
        ("uuid", pa.string()),
        ("node", STRINGS),
        ("type", STRINGS),
        ("verdict", STRINGS),
        ("drop_reason", STRINGS),
        ("direction", STRINGS),
        ("observation_point", STRINGS),
        ("trace_reason", STRINGS),
        ("is_reply", pa.bool_()),
        ("encrypted", pa.bool_()),
        ("ip_version", pa.uint8()),
        ("protocol", STRINGS),
        ("source_ip", STRINGS),
        ("source_ip_xlated", STRINGS),
        ("source_port", pa.uint16()),
        ("source_identity", pa.uint32()),
        ("source_cluster", STRINGS),
        ("source_namespace", STRINGS),
        ("source_pod", STRINGS),
        ("source_workload", STRINGS),
        ("source_labels", STRINGS),
        ("source_names", STRINGS),
        ("source_service", STRINGS),
        ("destination_ip", STRINGS),
        ("destination_port", pa.uint16()),
        ("destination_identity", pa.uint32()),
        ("destination_cluster", STRINGS),
        ("destination_namespace", STRINGS),
        ("destination_pod", STRINGS),
        ("destination_workload", STRINGS),
        ("destination_labels", STRINGS),
        ("destination_names", STRINGS),
        ("destination_service", STRINGS),
        ("tcp_flags", STRINGS),
        ("icmp_type", pa.uint8()),
        ("icmp_code", pa.uint8()),
        ("policies", STRINGS),
        ("egress_allowed_by", STRINGS),
        ("ingress_allowed_by", STRINGS),
        ("egress_denied_by", STRINGS),
        ("ingress_denied_by", STRINGS),
        ("interface", STRINGS),
        ("proxy_port", pa.uint16()),
    ]
)
"""Of data frames, and of files."""


# -- arrays -------------------------------------------------------------------------------------------------


def referred(refs: Indexes, texts: Sequence[str | None], mask: Mask | None = None) -> pa.Array:
    """Dictionary array of the text behind each reference; null for None and ''. `mask`: where it counts."""
    index: dict[str, int] = {}
    codes = [index.setdefault(text, len(index)) if text else -1 for text in texts]
    found = np.array(codes or [-1], np.int32)[refs]
    if mask is not None and index:
        found = np.where(mask, found, np.int32(-1))
    return coded(found, list(index))


def coded(codes: Any, texts: Sequence[str]) -> pa.Array:
    """Dictionary array of indexes; below 0 is null."""
    there = np.packbits(codes >= 0, bitorder="little")
    indices = pa.Array.from_buffers(pa.int32(), len(codes), [pa.py_buffer(there), pa.py_buffer(codes)])
    return pa.DictionaryArray.from_arrays(indices, pa.array(texts, pa.string()))


def named(numbers: Any, table: Table, mask: Mask | None = None) -> pa.Array:
    """Dictionary array of the names of numbers."""
    small = numbers.dtype.itemsize == 1
    if not small:
        used, numbers = np.unique(numbers, return_inverse=True)
    keys = range(256) if small else used.tolist()
    return referred(numbers, [table.get(key) for key in keys], mask)


def constant(text: str, count: int) -> pa.Array:
    """The same text in every row."""
    return coded(np.zeros(count, np.int32), [text])


def numbers_where(values: Any, kind: Any, mask: Mask | None = None) -> pa.Array:
    """Numbers, null where the mask is off."""
    native = np.ascontiguousarray(values, kind.to_pandas_dtype())
    return pa.array(native, kind, mask=None if mask is None else ~mask)


def bools(values: Mask, mask: Mask | None = None) -> pa.Array:
    """Truth, null where the mask is off."""
    return pa.array(values, pa.bool_(), mask=None if mask is None else ~mask)


def fixed_texts(text: Any) -> pa.Array:
    """Strings of one length: shape (n, length)."""
    count, length = text.shape
    offsets = np.arange(count + 1, dtype=np.int32) * length
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text)))


def fixed_binary(raw: Any) -> pa.Array:
    """Bytes of one length: shape (n, length)."""
    count, length = raw.shape
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(length), count, [None, pa.py_buffer(np.ascontiguousarray(raw))]
    )


def qualified(namespace: str, name: str) -> str:
    """`namespace/name`, or the name of what has no namespace."""
    return f"{namespace}/{name}" if namespace else name


def listed(texts: Iterable[str]) -> str:
    """Texts with commas, each once."""
    return ",".join(dict.fromkeys(texts))


def empty_table() -> pa.Table:
    """No flows."""
    return SCHEMA.empty_table()
