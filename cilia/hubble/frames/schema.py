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
from cilia.hubble.layer4 import TCP_FLAGS
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

NATIVE = {
    pa.uint8(): np.uint8,
    pa.uint16(): np.uint16,
    pa.uint32(): np.uint32,
    pa.uint64(): np.uint64,
    pa.int64(): np.int64,
}
"""How numpy has numbers of a kind."""

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
#
# All are made of buffers: `pyarrow.array` imports pandas where that is installed, which costs half a second
# and 50 MiB.


def array(values: Any, kind: Any, there: Mask | None = None) -> pa.Array:
    """Numbers as they are in memory, of the same width as `kind`; null where they are not there."""
    valid = None if there is None else pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(np.ascontiguousarray(values))])


def native(column: pa.Array, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The numbers of a column, as they are in memory. Raises ValueError for null and for another width."""
    size = np.dtype(dtype).itemsize
    if column.null_count or column.type.bit_width != 8 * size:
        raise ValueError(f"a column of {column.type} does not have numbers of {size} bytes in every row")
    if not len(column):
        return np.zeros(0, dtype)
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * size)


def strings(texts: Sequence[str | None]) -> pa.Array:
    """Texts; null for None."""
    encoded = [(text or "").encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    offsets[1:] = np.cumsum([len(each) for each in encoded])
    there = np.array([text is not None for text in texts], np.bool_)
    valid = np.packbits(there, bitorder="little")
    buffers = [pa.py_buffer(each) for each in (valid, offsets, b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def referred(refs: Indexes, texts: Sequence[str | None], mask: Mask | None = None) -> pa.Array:
    """Dictionary array of the text behind each reference; null for None and ''. `mask`: where it counts."""
    index: dict[str, int] = {}
    codes = [index.setdefault(text, len(index)) if text else -1 for text in texts]
    if not index:
        return pa.nulls(len(refs), STRINGS)
    found = np.array(codes or [-1], np.int32)[refs]
    if mask is not None:
        found = np.where(mask, found, np.int32(-1))
    return coded(found, list(index))


def coded(codes: Any, texts: Sequence[str]) -> pa.Array:
    """Dictionary array of indexes; below 0 is null."""
    return pa.DictionaryArray.from_arrays(array(codes, pa.int32(), codes >= 0), strings(texts))


def named(numbers: Any, table: Table, mask: Mask | None = None) -> pa.Array:
    """Dictionary array of the names of numbers."""
    if numbers.dtype.itemsize == 1:
        there = np.zeros(256, np.bool_)
        there[numbers] = True
        used = np.flatnonzero(there)
        place = np.zeros(256, np.uint8)
        place[used] = np.arange(len(used))
        numbers = place[numbers]
    else:
        used, numbers = np.unique(numbers, return_inverse=True)
    return referred(numbers, [table.get(key) for key in used.tolist()], mask)


def constant(text: str, count: int) -> pa.Array:
    """The same text in every row."""
    return coded(np.zeros(count, np.int32), [text])


def numbers_where(values: Any, kind: Any, mask: Mask | None = None) -> pa.Array:
    """Numbers, null where the mask is off."""
    return array(np.ascontiguousarray(values, NATIVE[kind]), kind, mask)


def bools(values: Mask, mask: Mask | None = None) -> pa.Array:
    """Truth, null where the mask is off."""
    bits = np.packbits(values, bitorder="little")
    valid = None if mask is None else pa.py_buffer(np.packbits(mask, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(values), [valid, pa.py_buffer(bits)])


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
